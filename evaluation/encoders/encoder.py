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

from ...common.batching import OUT_OF_MEMORY, in_batches
from ..model_folder import Keeper, Ready, inputs, kind_of, on, read

BATCH = 32  # pictures or texts that an encoder sees at once
Picture = Any  # a PIL image or a uint8 array [H, W, 3]
GREY = Image.new("RGB", (64, 64), "grey")  # what an encoder is tried with
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


def load_encoder(folder: str | os.PathLike[str], keeper: Keeper | None = None) -> ImageEncoder:
    """CLIP, SigLIP (words and pictures), DINO, DINOv2, DINOv3 or a plain ViT (pictures) from a local folder.

    keeper: who takes charge of the model, by default the CPU. Raises ValueError, one sentence, for anything else.
    """
    folder = Path(folder)
    kind = kind_of(folder, "encoder")
    encoder = _read(folder, kind, keeper or on("cpu"))
    try:
        encoder.images([GREY])
        if reads_words(encoder):
            encoder.texts(["picture"])
    except OUT_OF_MEMORY:
        raise
    except Exception as error:  # what a model wants to be given, and what its processor gives, may differ in any way
        reason = " ".join(str(error).split())[:200]
        raise ValueError(
            f"The encoder in {folder} ({kind}) cannot encode a picture and a word ({type(error).__name__}: {reason}): "
            "choose a CLIP or SigLIP folder (words and pictures), or a DINO, DINOv2 or DINOv3 folder (pictures only)."
        ) from error
    return encoder


def _read(folder: Path, kind: str, keeper: Keeper) -> ImageEncoder:
    if kind in PICTURES_ONLY:
        # The pooler is a layer of classifiers; DINO's weights come without.
        model, processor = read(folder, "encoder", "AutoModel", "AutoImageProcessor", unused=("pooler.",))
        return PictureEncoder(folder.name, model, processor, keeper(model), kind == "vit")
    model, processor = read(folder, "encoder", "AutoModel", "AutoProcessor")
    if not all(hasattr(model, f"get_{what}_features") for what in ("text", "image")):
        raise ValueError(
            f"The folder {folder} holds a {kind} model, which has no embeddings of whole pictures that are known here: "
            "choose a CLIP or SigLIP folder (words and pictures), or a DINO, DINOv2 or DINOv3 folder (pictures only)."
        )
    return PairEncoder(folder.name, model, processor, keeper(model), _most_tokens(model, processor))


def _most_tokens(model: Any, processor: Any) -> int | None:
    """Of a text; None where neither the tokenizer (1e30 stands for “not known”) nor the model says."""
    text = getattr(model.config, "text_config", None)
    said = (getattr(processor.tokenizer, "model_max_length", None), getattr(text, "max_position_embeddings", None))
    return min((each for each in said if each and each < 1e6), default=None)


@dataclass(frozen=True, eq=False)
class PairEncoder:
    """A TextImageEncoder of transformers: CLIP, SigLIP. tokens: the most of a text, None: not known."""

    name: str
    model: Any
    processor: Any
    ready: Ready
    tokens: int | None

    @torch.inference_mode()
    def texts(self, words: Sequence[str]) -> Tensor:
        # Padded to the encoder's own length: SigLIP was trained so, and CLIP reads its end token, not the padding.
        options = {"padding": "max_length", "truncation": True, "max_length": self.tokens} if self.tokens else {}

        def encode(batch: Sequence[str]) -> Any:
            made = self.processor(text=list(batch), return_tensors="pt", **{"padding": True, **options})
            return self.model.get_text_features(**inputs(made, self.ready, self.model.dtype))

        return _joined(in_batches(encode, words, BATCH))

    @torch.inference_mode()
    def images(self, pictures: Sequence[Picture]) -> Tensor:
        def encode(batch: Sequence[Picture]) -> Any:
            made = self.processor(images=list(batch), return_tensors="pt")
            return self.model.get_image_features(**inputs(made, self.ready, self.model.dtype))

        return _joined(in_batches(encode, pictures, BATCH))


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
        def encode(batch: Sequence[Picture]) -> Tensor:
            if self.margins:
                side = self.model.config.image_size
                cut = [middle(picture, round(side * 8 / 7), side) for picture in batch]
                made = self.processor(images=cut, do_resize=False, return_tensors="pt")
            else:
                made = self.processor(images=list(batch), return_tensors="pt")
            return self.model(**inputs(made, self.ready, self.model.dtype)).last_hidden_state[:, 0]

        return _joined(in_batches(encode, pictures, BATCH))


def middle(picture: Picture, short: int, side: int) -> Image.Image:
    """The short side resized to `short` pixels (bicubic), then the middle square of `side` pixels."""
    picture = picture if isinstance(picture, Image.Image) else Image.fromarray(picture)
    picture = picture.convert("RGB")
    width, height = (int(short * edge / min(picture.size)) for edge in picture.size)
    left, top = round((width - side) / 2), round((height - side) / 2)
    return picture.resize((width, height), Image.Resampling.BICUBIC).crop((left, top, left + side, top + side))


def _joined(outputs: list[Any]) -> Tensor:
    # transformers 5 returns the whole output, 4 the embeddings.
    parts = [each if isinstance(each, Tensor) else each.pooler_output for each in outputs]
    return torch.cat([part.float().cpu() for part in parts])
