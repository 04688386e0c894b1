"""Encoders: what turns pictures, and with some kinds words, into vectors that can be compared. Scores share them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeGuard, runtime_checkable

import torch
from PIL import Image
from torch import Tensor

from .folders import Place, Ready, kind_of, on, read

BATCH = 32  # pictures or texts that an encoder sees at once
Picture = Any  # a PIL image or a uint8 array [H, W, 3]
# Kinds whose first token stands for the whole picture.
PICTURES_ONLY = ("vit", "dinov2", "dinov2_with_registers", "dinov3_vit")


@runtime_checkable
class ImageEncoder(Protocol):
    """name: what reports call it."""

    @property
    def name(self) -> str: ...

    def images(self, pictures: Sequence[Picture]) -> Tensor:
        """Pictures of any sizes -> [n, E], float32 on the CPU, not normalised."""
        ...


@runtime_checkable
class TextImageEncoder(ImageEncoder, Protocol):
    """Embeddings of words and pictures in one space."""

    def texts(self, words: Sequence[str]) -> Tensor:
        """[n, E], as `images`."""
        ...


def reads_words(encoder: ImageEncoder) -> TypeGuard[TextImageEncoder]:
    return isinstance(encoder, TextImageEncoder)


def need_words(encoder: ImageEncoder, score: str) -> TextImageEncoder:
    """The encoder as one of words and pictures; ValueError where it sees pictures only."""
    if not reads_words(encoder):
        raise ValueError(
            f"{score} compares words with pictures, but the encoder “{encoder.name}” sees pictures only: choose a CLIP "
            "or SigLIP folder, or connect a CLIP with the CLIP vision that belongs to it."
        )
    return encoder


def load_encoder(folder: str | os.PathLike[str], place: Place | None = None) -> ImageEncoder:
    """CLIP, SigLIP (words and pictures), DINO, DINOv2, DINOv3 or a plain ViT (pictures) from a local folder.

    place: who takes charge of the model, by default the CPU. Raises ValueError, one sentence, for anything else.
    """
    folder, place = Path(folder), place or on("cpu")
    kind = kind_of(folder, "encoder")
    if kind in PICTURES_ONLY:
        # The pooler is a layer of classifiers; DINO's weights come without.
        model, processor = read(folder, "encoder", "AutoModel", "AutoImageProcessor", unused=("pooler.",))
        return PictureEncoder(folder.name, model, processor, place(model), kind == "vit")
    model, processor = read(folder, "encoder", "AutoModel", "AutoProcessor")
    if not all(hasattr(model, f"get_{what}_features") for what in ("text", "image")):
        raise ValueError(
            f"The folder {folder} holds a {kind} model, which has no embeddings of whole pictures that are known here: "
            "choose a CLIP or SigLIP folder (words and pictures), or a DINO, DINOv2 or DINOv3 folder (pictures only)."
        )
    return PairEncoder(folder.name, model, processor, place(model))


@dataclass(frozen=True, eq=False)
class PairEncoder:
    """A TextImageEncoder of transformers: CLIP, SigLIP."""

    name: str
    model: Any
    processor: Any
    ready: Ready

    @torch.inference_mode()
    def texts(self, words: Sequence[str]) -> Tensor:
        device = self.ready()
        # Padded to the encoder's own length: SigLIP was trained so, and CLIP reads its end token, not the padding.
        options = {"padding": "max_length", "truncation": True, "return_tensors": "pt"}
        batches = [self.processor(text=list(each), **options).to(device) for each in _batches(words)]
        return _joined([self.model.get_text_features(**each) for each in batches])

    @torch.inference_mode()
    def images(self, pictures: Sequence[Picture]) -> Tensor:
        device = self.ready()
        batches = (self.processor(images=each, return_tensors="pt")["pixel_values"] for each in _batches(pictures))
        return _joined([self.model.get_image_features(pixel_values=x.to(device, self.model.dtype)) for x in batches])


@dataclass(frozen=True, eq=False)
class PictureEncoder:
    """An ImageEncoder of transformers: the first token (CLS) of a vision transformer, after its last norm.

    margins: pictures are first resized to 8/7 of the model's side (bicubic, the short side), then cut to its middle:
    256 and 224 pixels, as DINO was trained and is scored with, whatever the folder's preprocessor does.
    """

    name: str
    model: Any
    processor: Any
    ready: Ready
    margins: bool

    @torch.inference_mode()
    def images(self, pictures: Sequence[Picture]) -> Tensor:
        device = self.ready()
        outputs = []
        for each in _batches(pictures):
            if self.margins:
                side = self.model.config.image_size
                cut = [middle(picture, round(side * 8 / 7), side) for picture in each]
                pixels = self.processor(images=cut, do_resize=False, return_tensors="pt")["pixel_values"]
            else:
                pixels = self.processor(images=each, return_tensors="pt")["pixel_values"]
            outputs.append(self.model(pixel_values=pixels.to(device, self.model.dtype)).last_hidden_state[:, 0])
        return _joined(outputs)


def middle(picture: Picture, short: int, side: int) -> Image.Image:
    """The short side resized to `short` pixels (bicubic), then the middle square of `side` pixels."""
    picture = picture if isinstance(picture, Image.Image) else Image.fromarray(picture)
    picture = picture.convert("RGB")
    width, height = (int(short * edge / min(picture.size)) for edge in picture.size)
    left, top = round((width - side) / 2), round((height - side) / 2)
    return picture.resize((width, height), Image.Resampling.BICUBIC).crop((left, top, left + side, top + side))


def _batches(items: Sequence[Any]) -> list[list[Any]]:
    return [list(items[start : start + BATCH]) for start in range(0, len(items), BATCH)]


def _joined(outputs: list[Any]) -> Tensor:
    # transformers 5 returns the whole output, 4 the embeddings.
    parts = [each if isinstance(each, Tensor) else each.pooler_output for each in outputs]
    return torch.cat([part.float().cpu() for part in parts])
