"""ComfyUI's CLIP_VISION, alone or with the CLIP that shares its embedding space, as an encoder for scores."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...common.batching import in_batches
from .encoder import BATCH, ImageEncoder, Picture


def host_encoder(clip_vision: Any, clip: Any = None) -> ImageEncoder:
    """An encoder from ComfyUI's own models.

    clip_vision: a CLIP_VISION.
    clip: a CLIP; with it the encoder is a TextImageEncoder.

    Raises ValueError if clip_vision is None, or if the two share no embedding space.
    """
    if clip_vision is None:
        raise ValueError("The CLIP vision is missing: this checkpoint holds none. Load one with Load CLIP Vision.")
    pictures = HostPictures("CLIP vision", clip_vision)
    blank = np.full((1, clip_vision.image_size, clip_vision.image_size, 3), 127, np.uint8)
    width = pictures.images(list(blank)).shape[-1]  # measured, because ComfyUI's encoders do not tell it
    if clip is None:
        return pictures
    both = HostPairs("CLIP vision and CLIP", clip_vision, clip)
    if (words := both.texts(["picture"]).shape[-1]) != width:
        raise ValueError(
            f"This CLIP gives vectors of {words} numbers for words, this CLIP vision {width} for pictures: they have "
            "no space in common. Take two halves of one model, such as SDXL's CLIP (its larger half is ViT-bigG) and "
            "CLIP-ViT-bigG's vision, or leave “clip” open where a score needs pictures only."
        )
    if _unprojected(clip, width):
        raise ValueError(
            "This CLIP was saved without its text projection, so its words are not in the space of any CLIP vision. "
            "SDXL checkpoints have one, SD1.5 checkpoints do not: load a CLIP file that holds text_projection, or use "
            "Load MIP Encoder with a CLIP folder."
        )
    return both


@dataclass(frozen=True, eq=False)
class HostPictures:
    """An ImageEncoder from a CLIP_VISION: CLIP's projected embeddings, DINOv2's CLS token."""

    name: str
    clip_vision: Any

    @torch.inference_mode()
    def images(self, pictures: Sequence[Picture]) -> Tensor:
        """As `ImageEncoder.images`. Pictures of one size share batches.

        ComfyUI resizes the short side and cuts out the middle.
        """
        shown = [_as_image(each) for each in pictures]
        by_size: dict[torch.Size, list[int]] = {}
        for number, image in enumerate(shown):
            by_size.setdefault(image.shape, []).append(number)
        seen: dict[int, Tensor] = {}
        for numbers in by_size.values():
            batches = in_batches(self._encode, [shown[number] for number in numbers], BATCH)
            seen |= zip(numbers, torch.cat(batches), strict=True)
        return torch.stack([seen[number] for number in range(len(shown))])

    def _encode(self, images: Sequence[Tensor]) -> Tensor:
        """n images [H, W, 3] of one size -> [n, E]."""
        embeds = self.clip_vision.encode_image(torch.stack(list(images)))["image_embeds"].float().cpu()
        if embeds.ndim != 2:
            raise ValueError(
                "This CLIP vision gives vectors of every patch but none of the whole picture (SigLIP, as the host "
                "loads it): choose a CLIP or DINOv2 file, or load the SigLIP folder with Load MIP Encoder."
            )
        return embeds


@dataclass(frozen=True, eq=False)
class HostPairs(HostPictures):
    """A TextImageEncoder from a CLIP_VISION and a CLIP: texts become the CLIP's projected pooled output."""

    clip: Any

    @torch.inference_mode()
    def texts(self, words: Sequence[str]) -> Tensor:
        pooled = [self.clip.encode_from_tokens(self.clip.tokenize(each), return_pooled=True)[1] for each in words]
        if any(each is None for each in pooled):
            raise ValueError(
                "This CLIP gives no vector of a whole text (T5 and language models have none): connect SDXL's CLIP, or "
                "use Load MIP Encoder with a CLIP folder."
            )
        return torch.cat(pooled).float().cpu()


def _as_image(picture: Picture) -> Tensor:
    """A picture as a tensor [H, W, 3] in 0..1."""
    return torch.from_numpy(np.array(picture.convert("RGB") if hasattr(picture, "convert") else picture)) / 255


def _unprojected(clip: Any, width: int) -> bool:
    """Whether a text projection of this width is the identity. ComfyUI uses that where a file has no projection."""
    layers = [m for n, m in clip.cond_stage_model.named_modules() if n.endswith("text_projection")]
    weights = [layer.weight for layer in layers if layer.weight.shape == (width, width)]
    return any(torch.equal(w.float().cpu(), torch.eye(width)) for w in weights)
