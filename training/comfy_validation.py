"""Validation pictures: fixed prompts, sampled with the adapter as trained so far."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import comfy.sample
import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from ..attention.options import FusionHead, Merge
from ..attention.reference import make_reference
from ..common.atomic_io import atomic_file
from ..common.pictures import open_picture
from ..patching.apply import apply_references
from ..weights.adapter import Adapter
from .config import TrainConfig
from .run_config import BaseModels, Validation
from .trainable import TrainedAdapter


def validator(
    base: BaseModels, pictures: Sequence[Validation], recipe: TrainConfig, folder: Path, start: Adapter
) -> Callable[[int, TrainedAdapter], None]:
    """A function that writes `validation/step-N-K.png`, with the recipe's merge and gate.

    base: the models to sample with.
    start: the adapter before training. All references are encoded with it once, to fail before training starts.

    Raises ValueError for references that cannot be used.
    """
    for number, each in enumerate(pictures, 1):
        try:
            with torch.inference_mode():
                _applied(base, each, start, recipe)
        except (OSError, ValueError) as error:
            raise ValueError(f"Validation picture {number} (“{each.prompt}”) cannot be made: {error}") from error

    def validate(step: int, adapter: TrainedAdapter) -> None:
        for number, each in enumerate(pictures, 1):
            with torch.inference_mode():
                image = sample(base, each, adapter, recipe)
            with atomic_file(folder / "validation" / f"step-{step:06d}-{number}.png") as temporary:
                image.save(temporary, "PNG")

    return validate


def sample(base: BaseModels, each: Validation, adapter: Adapter, recipe: TrainConfig) -> Image.Image:
    """One validation picture."""
    model, clip, vae = _applied(base, each, adapter, recipe), base.clip, base.vae
    conds = []
    for text in (each.prompt, each.negative):
        context, pooled = clip.encode_from_tokens(clip.tokenize(text), return_pooled=True)
        conds.append([[context, {"pooled_output": pooled}]])
    latent = torch.zeros(1, 4, each.side // 8, each.side // 8)
    noise = comfy.sample.prepare_noise(latent, each.seed)
    made = comfy.sample.sample(
        model, noise, each.steps, each.cfg, "euler", "normal", *conds, latent, seed=each.seed, disable_pbar=True
    )
    pixels = vae.decode(made)[0].clamp(0, 1).mul(255).round().to("cpu", torch.uint8)
    return Image.fromarray(pixels.numpy())


def _applied(base: BaseModels, each: Validation, adapter: Adapter, recipe: TrainConfig) -> Any:
    """The MODEL with the references of this picture."""
    references = tuple(make_reference(_read(f), text) for f, text in zip(each.images, each.texts, strict=True))
    if not references:
        return base.model
    head = FusionHead(adapter.head, recipe.gate if adapter.head else "off", name=adapter.name)
    merge = Merge(recipe.merge, recipe.normalization)
    return apply_references(
        base.model, base.clip, base.clip_vision, adapter, references, scale=each.scale, merge=merge, fusion_head=head
    )


def _read(file: str) -> Tensor:
    """A picture file as [1, H, W, 3] in 0..1."""
    with open_picture(Path(file)) as image:
        upright = ImageOps.exif_transpose(image).convert("RGB")
    return torch.from_numpy(np.asarray(upright, np.float32) / 255).unsqueeze(0)
