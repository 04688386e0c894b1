"""Personalisation scores: does the picture follow the prompt, and do its objects look like their references?

By the conventions of arXiv 2409.17920 and Concept101, with unit embeddings v of a picture, t of the prompt, and r of
the R pictures of one reference:

    CLIP-T = 2.5 · max(cos(t, v), 0)              ViT-B/32 in the paper
    CLIP-I = 1/R Σ_r cos(r, v)                    the same encoder
    DINO   = 1/R Σ_r cos(r, v)                    the first token of DINO ViT-S/16

They are taken of whole pictures and averaged over objects and pictures. A whole picture can resemble two references at
once, so objects with exchanged looks score as high as right ones. On crops they do not: there the detected object takes
the place of v, and its object text the place of the prompt.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..attention.reference import Reference
from ..common.batching import Tick
from ..common.crops import as_bytes
from ..common.tables import NOTHING, number, table
from .detection.crops import pictures_of
from .detection.detections import Detections
from .detection.matching import missing
from .encoders.embeddings import embed, embed_words
from .encoders.encoder import ImageEncoder, need_words
from .object_embeddings import ObjectEmbeddings, check_inputs, crops_at_most, objects_in

TEXT_WEIGHT = 2.5  # the factor of CLIPScore
MOST = 6  # a report explains at most this many missing objects


def text_score(images: Tensor, text: Tensor) -> Tensor:
    """CLIP-T, [...] in 0..2.5.

    images [..., E]: unit embeddings.
    text [..., E]: unit embeddings, as many as images, or one for all.
    """
    return TEXT_WEIGHT * (images * text).sum(-1).clamp_min(0)


def image_score(images: Tensor, references: Sequence[Tensor]) -> Tensor:
    """CLIP-I or DINO, [B, M]: mean cosines of each picture to the pictures of each reference.

    images [B, E]: unit embeddings.
    references: M tensors [R_m, E] of unit embeddings.
    """
    return images @ torch.stack([each.mean(0) for each in references]).T


@dataclass(frozen=True, eq=False)
class View:
    """Scores of B pictures and M objects, of whole pictures or of crops.

    clip_t, clip_i, dino [B, M]: the scores; dino is None without an encoder for it.
    measured [B, M] bool: where there was something to measure; elsewhere the scores are 0.
    """

    clip_t: Tensor
    clip_i: Tensor
    dino: Tensor | None
    measured: Tensor

    def objects(self, missing_as_zero: bool = False) -> int:
        """The number of objects, over all pictures, that the means are taken of."""
        return self.measured.numel() if missing_as_zero else int(self.measured.sum())

    def mean(self, name: str, missing_as_zero: bool = False) -> float | None:
        """The mean of one score, or None without values.

        name: clip_t, clip_i or dino.
        missing_as_zero: whether objects that were not found count as 0; otherwise they do not count.
        """
        values: Tensor | None = getattr(self, name)
        objects = self.objects(missing_as_zero)
        if values is None or not objects:
            return None
        return float(values[self.measured].sum()) / objects


@dataclass(frozen=True, eq=False)
class Personalization:
    """CLIP-T, CLIP-I and DINO of a batch of pictures.

    prompt: what the pictures were made from.
    texts: the M object texts.
    encoder, image_encoder: names of the encoders for CLIP and for DINO; image_encoder is None without DINO.
    whole: scores of whole pictures, as in the paper. CLIP-T is of the prompt, so it is the same for all objects.
    crops: scores of the objects' crops, or None without detections.
    missing: a sentence for every object that was not found in a picture.
    """

    prompt: str
    texts: tuple[str, ...]
    encoder: str
    image_encoder: str | None
    whole: View
    crops: View | None
    missing: tuple[str, ...] = ()


def personalization(
    images: Tensor,
    references: Sequence[Reference],
    prompt: str,
    encoder: ImageEncoder,
    image_encoder: ImageEncoder | None = None,
    detections: Detections | None = None,
    tick: Tick | None = None,
) -> Personalization:
    """Measures CLIP-T, CLIP-I and DINO.

    images [B, H, W, 3]: in 0..1.
    prompt: what the pictures were made from.
    encoder: of words and pictures, for CLIP-T and CLIP-I.
    image_encoder: of pictures, for DINO.
    detections: of the same pictures and the references' texts, for the scores of crops.
    tick: called with the number of pictures encoded since the last call; `pictures_to_encode` is their total.

    Raises ValueError with a sentence for the artist.
    """
    check_inputs(images, references, detections)
    words = need_words(encoder, "CLIP-T")
    if not prompt.strip():
        raise ValueError("The prompt is empty: give the words that the pictures were made from; CLIP-T scores them.")
    texts = tuple(reference.text for reference in references)
    pictures = list(as_bytes(images[..., :3]))
    of_references = [pictures_of(reference) for reference in references]
    clip, dino = (_pictures(each, pictures, of_references, tick) for each in (encoder, image_encoder))
    assert clip
    whole = View(
        text_score(clip[0], embed_words(words, [prompt])).unsqueeze(1).expand(-1, len(texts)),
        image_score(*clip),
        image_score(*dino) if dino else None,
        torch.ones(len(pictures), len(texts), dtype=torch.bool),
    )
    crops, absent = None, []
    if detections is not None:
        means = torch.stack([each.mean(0) for each in clip[1]])
        objects = objects_in(images, references, detections, encoder, means, tick)
        crops = _crops(objects, embed_words(words, texts), clip[1], image_encoder, dino[1] if dino else [], tick)
        for b, each in enumerate(objects):
            absent += missing(detections, b, texts, each.matches).values()
    name = image_encoder.name if image_encoder else None
    return Personalization(prompt, texts, encoder.name, name, whole, crops, tuple(absent))


def pictures_to_encode(
    images: Tensor, references: Sequence[Reference], detections: Detections | None, encoders: int
) -> int:
    """The largest number of pictures that `personalization` may encode, for a progress bar.

    encoders: how many encoders there are, 1 or 2 (with DINO).
    """
    crops = 0 if detections is None else crops_at_most(detections) + (encoders - 1) * len(images) * len(references)
    return encoders * (len(images) + sum(each.count for each in references)) + crops


def _pictures(
    encoder: ImageEncoder | None, pictures: list, of_references: list, tick: Tick | None
) -> tuple[Tensor, list[Tensor]] | None:
    """Unit embeddings of the pictures [B, E] and of every reference's pictures [R_m, E]; None without an encoder."""
    if encoder is None:
        return None
    return embed(encoder, pictures, tick), [embed(encoder, each, tick) for each in of_references]


def _crops(
    objects: Sequence[ObjectEmbeddings],
    words: Tensor,
    clip: Sequence[Tensor],
    image_encoder: ImageEncoder | None,
    dino: Sequence[Tensor],
    tick: Tick | None,
) -> View:
    """Scores of every object's crop against its own text and its own reference.

    words [M, E]: unit embeddings of the object texts.
    clip, dino: M tensors [R_m, E] of the references' unit embeddings, by the encoder and by the image_encoder.
    """
    measured = torch.tensor([[crop is not None for crop in each.matches.crop_of] for each in objects])  # [B, M]
    found = [(each, crop) for each in objects for crop in each.matches.crop_of if crop is not None]
    whose = measured.nonzero()[:, 1]  # [C], in the order of `found`

    def placed(values: Tensor | None = None) -> Tensor:
        everywhere = torch.zeros(measured.shape)
        if values is not None:
            everywhere[measured] = values
        return everywhere

    def like_own(crops: Tensor, references: Sequence[Tensor]) -> Tensor:
        return placed(image_score(crops, references)[torch.arange(len(found)), whose])

    if not found:
        return View(placed(), placed(), placed() if image_encoder else None, measured)
    by_clip = torch.stack([each.embeddings[row] for each, row in found])
    by_dino = embed(image_encoder, [each.crops[row] for each, row in found], tick) if image_encoder else None
    return View(
        placed(text_score(by_clip, words[whose])),
        like_own(by_clip, clip),
        None if by_dino is None else like_own(by_dino, dino),
        measured,
    )


def personalization_report(scores: Personalization, missing_as_zero: bool = False) -> str:
    """The report: encoders, means, and a line for every object of every picture.

    missing_as_zero: as in `View.mean`.
    """
    views = [("", scores.whole)] + ([("crop ", scores.crops)] if scores.crops else [])
    columns = [
        (f"{prefix}{title}", view, name)
        for prefix, view in views
        for title, name in (("CLIP-T", "clip_t"), ("CLIP-I", "clip_i"), ("DINO", "dino"))
        if getattr(view, name) is not None
    ]
    rows = [["mean", "", *(number(view.mean(name, missing_as_zero)) for _, view, name in columns)]]
    for b in range(len(scores.whole.measured)):
        for m, text in enumerate(scores.texts):
            cells = [
                number(float(getattr(view, name)[b, m])) if view.measured[b, m] else NOTHING
                for _, view, name in columns
            ]
            rows.append([f"picture {b + 1}", text, *cells])
    return "\n".join(
        [
            f"Prompt: “{scores.prompt}”",
            f"CLIP-T and CLIP-I by {scores.encoder}. " + _about_dino(scores),
            _about_crops(scores, missing_as_zero),
            "",
            table(["", "object", *(title for title, *_ in columns)], rows, words=2),
        ]
    )


def _about_dino(scores: Personalization) -> str:
    if scores.image_encoder:
        return f"DINO by {scores.image_encoder}."
    return "DINO was not measured: connect an image_encoder."


def _about_crops(scores: Personalization, missing_as_zero: bool) -> str:
    if scores.crops is None:
        return "Crops were not measured: connect detections, and objects with exchanged looks no longer score as right."
    found, asked = scores.crops.objects(), scores.crops.measured.numel()
    if not scores.missing:
        return f"Crops: the mean of all {asked} objects; every one was found."
    said = f"Crops: the mean of {found} of {asked} objects; what was not found is not counted (missing_as_zero is off)."
    if missing_as_zero:
        said = f"Crops: the mean of all {asked} objects; {asked - found} not found count 0."
    more = len(scores.missing) - MOST
    tail = [f"- and {more} more"] if more > 0 else []
    return "\n".join([said, *(f"- {why}" for why in scores.missing[:MOST]), *tail])
