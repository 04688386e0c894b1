"""Makes Concept101's pictures as the graph does, without its nodes: checkpoint, references, merge, sampler, VAE."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import comfy.sample
import torch
from PIL import Image

from ...attention.options import FusionHead, Merge
from ...attention.reference import Reference
from ...patching.apply import apply_references
from ...training.run_config import MINIATURE, Base
from ...weights import comfy_files
from ...weights.adapter import Adapter, load_adapter
from ..comfy_base import load_base
from .settings import Settings


class Painter:
    """Makes pictures with models that are loaded once. ComfyUI must be importable (`common.comfy_path`)."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        base = Base(settings.checkpoint, settings.clip_vision, settings.vae)
        with torch.inference_mode():
            self.model, self.clip, self.vae, self.clip_vision = load_base(base)
        self.adapter = _adapter(settings.adapter)
        self.negative = self._cond(settings.negative)

    @torch.inference_mode()
    def with_references(self, references: tuple[Reference, ...]) -> Any:
        """The ModelPatcher that MIP Apply would return for these references."""
        settings, adapter = self.settings, self.adapter
        usual = 0.75 if adapter.spec.tokens == 4 else 0.65  # the paper's scales for base and for plus weights
        return apply_references(
            self.model,
            self.clip,
            self.clip_vision,
            adapter,
            references,
            scale=usual if settings.scale is None else settings.scale,
            merge=Merge(settings.strategy, background=settings.background, sharpness=settings.sharpness),
            fusion_head=FusionHead(
                adapter.head, "image" if adapter.head and settings.head else "off", name=adapter.name
            ),
        )

    @torch.inference_mode()
    def picture(self, model: Any, prompt: str, number: int) -> Image.Image:
        """One picture of a prompt.

        model: from `with_references`.
        number: the position in a batch whose noise the picture starts from, for the seed of the settings.
        """
        settings, side = self.settings, self.settings.side // 8
        latent = comfy.sample.fix_empty_latent_channels(model, torch.zeros(1, 4, side, side))
        made = comfy.sample.sample(
            model,
            comfy.sample.prepare_noise(latent, settings.seed, [number]),
            settings.steps,
            settings.cfg,
            "euler",
            "normal",
            self._cond(prompt),
            self.negative,
            latent,
            seed=settings.seed,
            disable_pbar=True,
        )
        pixels = self.vae.decode(made)[0].clamp(0, 1).mul(255).round().to("cpu", torch.uint8)
        return Image.fromarray(pixels.numpy())

    @torch.inference_mode()
    def _cond(self, text: str) -> list:
        context, pooled = self.clip.encode_from_tokens(self.clip.tokenize(text), return_pooled=True)
        return [[context, {"pooled_output": pooled}]]


def _adapter(file: str) -> Adapter:
    if file != MINIATURE:
        return load_adapter(file)
    return load_adapter(Path(comfy_files.MINIATURE) / "miniature_mip.safetensors")
