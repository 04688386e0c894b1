"""Makes Concept101's pictures as the graph does, without its nodes: checkpoint, references, merge, sampler, VAE."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import comfy.sample
import comfy.samplers
import torch
from PIL import Image

from ...attention.options import FusionHead, Merge
from ...attention.reference import Reference
from ...evaluation.concept101.schedule import official_sigmas, start_factor
from ...patching.apply import apply_references
from ...training.run_config import MINIATURE, Base
from ...weights import comfy_files
from ...weights.adapter import Adapter, load_adapter
from ..comfy_base import load_base
from .settings import Settings, usual_scale


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
        return apply_references(
            self.model,
            self.clip,
            self.clip_vision,
            adapter,
            references,
            scale=usual_scale(adapter.spec.tokens) if settings.scale is None else settings.scale,
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
        noise = comfy.sample.prepare_noise(latent, settings.seed, [number])
        conds = (self._cond(prompt), self.negative)
        more = {"seed": settings.seed, "disable_pbar": True}
        if settings.schedule == "host":
            made = comfy.sample.sample(
                model, noise, settings.steps, settings.cfg, "euler", "normal", *conds, latent, **more
            )
        else:
            sampling, euler = model.get_model_object("model_sampling"), comfy.samplers.sampler_object("euler")
            sigmas = official_sigmas(sampling.sigmas, settings.steps)
            noise = noise * start_factor(sigmas, float(sampling.sigma_max))
            made = comfy.sample.sample_custom(model, noise, settings.cfg, euler, sigmas, *conds, latent, **more)
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
