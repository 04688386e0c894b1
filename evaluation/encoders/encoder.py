"""Encoders turn pictures, and some of them words, into embeddings that can be compared. All scores share them."""

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
from ..model_folder import FolderModel, Keeper, kind_of, on, read, reason_of

BATCH = 32  # pictures or texts in one batch
Picture = Any  # a PIL image or a uint8 array [H, W, 3]
GREY = Image.new("RGB", (64, 64), "grey")  # each encoder is tested with this picture
# Values of model_type whose first token represents the whole picture.
PICTURES_ONLY = ("vit", "dinov2", "dinov2_with_registers", "dinov3_vit")


@runtime_checkable
class ImageEncoder(Protocol):
    """Embeddings of pictures. name: the encoder's name in reports."""

    @property
    def name(self) -> str: ...

    def images(self, pictures: Sequence[Picture]) -> Tensor:
        """Pictures of any sizes -> [n, E], float32 on the CPU, not normalised."""
        ...


@runtime_checkable
class TextImageEncoder(ImageEncoder, Protocol):
    """Embeddings of words and pictures in one space."""

    def texts(self, words: Sequence[str]) -> Tensor:
        """Texts -> [n, E], float32 on the CPU, not normalised."""
        ...


def reads_words(encoder: ImageEncoder) -> TypeGuard[TextImageEncoder]:
    return isinstance(encoder, TextImageEncoder)


def need_words(encoder: ImageEncoder, score: str) -> TextImageEncoder:
    """The encoder as a TextImageEncoder.

    score: which score needs words, for the error message.

    Raises ValueError for an encoder of pictures only.
    """
    if not reads_words(encoder):
        raise ValueError(
            f"{score} compares words with pictures, but the encoder “{encoder.name}” sees pictures only: choose a CLIP "
            "or SigLIP folder, or connect a CLIP with the CLIP vision that belongs to it."
        )
    return encoder


def load_encoder(folder: str | os.PathLike[str], keeper: Keeper | None = None) -> ImageEncoder:
    """An encoder from a local Hugging Face folder.

    CLIP and SigLIP encode words and pictures; DINO, DINOv2, DINOv3 and a plain ViT encode pictures.
    keeper: takes charge of the model; by default it stays on the CPU.

    Raises ValueError for any other folder.
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
    except Exception as error:  # a processor that does not fit its model can raise anything
        why = reason_of(error.__cause__ or error)
        raise ValueError(
            f"The encoder in {folder} ({kind}) cannot encode a picture and a word ({why}): "
            "choose a CLIP or SigLIP folder (words and pictures), or a DINO, DINOv2 or DINOv3 folder (pictures only)."
        ) from error
    return encoder


def _read(folder: Path, kind: str, keeper: Keeper) -> ImageEncoder:
    if kind in PICTURES_ONLY:
        # Only classifiers use the pooler; DINO's weights have none.
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
    """The largest number of tokens in a text.

    None if neither the tokenizer nor the model tells it. A tokenizer that does not know says 1e30.
    """
    text = getattr(model.config, "text_config", None)
    said = (getattr(processor.tokenizer, "model_max_length", None), getattr(text, "max_position_embeddings", None))
    return min((int(each) for each in said if isinstance(each, int | float) and 1 <= each < 1e6), default=None)


@dataclass(frozen=True, eq=False)
class PairEncoder(FolderModel):
    """A TextImageEncoder from transformers: CLIP or SigLIP.

    tokens: the largest number of tokens in a text, None if it is not known.
    """

    what = "encoder"
    tokens: int | None

    @torch.inference_mode()
    def texts(self, words: Sequence[str]) -> Tensor:
        # Pad to the encoder's full length: SigLIP was trained that way. CLIP reads its end token, not the padding.
        options = {"padding": "max_length", "truncation": True, "max_length": self.tokens} if self.tokens else {}

        def encode(batch: Sequence[str]) -> Any:
            given = self.on_device(self.prepared(text=list(batch), **{"padding": True, **options}))
            with self.errors_named():
                return self.model.get_text_features(**given)

        return _joined(in_batches(encode, words, BATCH))

    @torch.inference_mode()
    def images(self, pictures: Sequence[Picture]) -> Tensor:
        def encode(batch: Sequence[Picture]) -> Any:
            given = self.on_device(self.prepared(images=list(batch)))
            with self.errors_named():
                return self.model.get_image_features(**given)

        return _joined(in_batches(encode, pictures, BATCH))


@dataclass(frozen=True, eq=False)
class PictureEncoder(FolderModel):
    """An ImageEncoder from transformers: the first token (CLS) of a vision transformer, after its last norm.

    cut_edges: whether pictures are resized to 8/7 of the model's side (short side, bicubic) and cut to the middle
        square of that side, whatever the folder's preprocessor does. DINO was trained and is scored so: 256, then 224
        pixels.
    """

    what = "encoder"
    cut_edges: bool

    @torch.inference_mode()
    def images(self, pictures: Sequence[Picture]) -> Tensor:
        def encode(batch: Sequence[Picture]) -> Tensor:
            if self.cut_edges:
                side = self.model.config.image_size
                cut = [middle(picture, round(side * 8 / 7), side) for picture in batch]
                made = self.prepared(images=cut, do_resize=False)
            else:
                made = self.prepared(images=list(batch))
            given = self.on_device(made)
            with self.errors_named():
                return self.model(**given).last_hidden_state[:, 0]

        return _joined(in_batches(encode, pictures, BATCH))


def middle(picture: Picture, short: int, side: int) -> Image.Image:
    """Resizes the short side to `short` pixels (bicubic), then cuts out the middle square of `side` pixels."""
    picture = picture if isinstance(picture, Image.Image) else Image.fromarray(picture)
    picture = picture.convert("RGB")
    width, height = (int(short * edge / min(picture.size)) for edge in picture.size)
    left, top = round((width - side) / 2), round((height - side) / 2)
    return picture.resize((width, height), Image.Resampling.BICUBIC).crop((left, top, left + side, top + side))


def _joined(outputs: list[Any]) -> Tensor:
    # transformers 5 returns an output object, transformers 4 the embeddings.
    parts = [each if isinstance(each, Tensor) else each.pooler_output for each in outputs]
    return torch.cat([part.float().cpu() for part in parts])
