"""Personalisation scores: does the picture follow the prompt, and do its objects look like their references?

By the conventions of arXiv 2409.17920 and Concept101, with unit embeddings v of a picture, t of the prompt, and r of
the R pictures of one reference:

    CLIP-T = 2.5 · max(cos(t, v), 0)              ViT-B/32 in the paper
    CLIP-I = 1/R Σ_r cos(r, v)                    the same encoder
    DINO   = 1/R Σ_r cos(r, v)                    the first token of DINO ViT-S/16

of whole pictures, and averaged over objects and pictures. A whole picture can please two references at once, so that
objects with exchanged looks score as high as right ones. On crops (the detected object instead of v, its object text
instead of the prompt) they do not.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..attention.reference import Reference
from .crops import as_bytes, check_pictures, crop
from .detections import Detections
from .embeddings import Tick, embed, embed_words
from .encoders import ImageEncoder, need_words
from .tables import NOTHING, number, table
from .things import choose

TEXT_WEIGHT = 2.5  # of CLIPScore


def text_score(images: Tensor, text: Tensor) -> Tensor:
    """CLIP-T: unit embeddings images [..., E] and text, as many or one -> [...], 0 to 2.5."""
    return TEXT_WEIGHT * (images * text).sum(-1).clamp_min(0)


def image_score(images: Tensor, references: Sequence[Tensor]) -> Tensor:
    """CLIP-I or DINO: unit embeddings images [B, E] and M references [R_m, E] -> [B, M], the mean cosines."""
    return images @ torch.stack([each.mean(0) for each in references]).T


@dataclass(frozen=True, eq=False)
class View:
    """Scores of B pictures and M objects, [B, M] each; dino None without an encoder for it.

    measured [B, M]: where there was something to measure; elsewhere the scores are 0.
    """

    clip_t: Tensor
    clip_i: Tensor
    dino: Tensor | None
    measured: Tensor

    def mean(self, name: str) -> float | None:
        """Over all that was measured; None where nothing was."""
        values: Tensor | None = getattr(self, name)
        if values is None or not self.measured.any():
            return None
        return float(values[self.measured].mean())


@dataclass(frozen=True, eq=False)
class Personalization:
    """Scores of whole pictures (the paper's; CLIP-T is of the prompt, the same for all objects) and of crops."""

    prompt: str
    texts: tuple[str, ...]
    encoder: str
    image_encoder: str | None
    whole: View
    crops: View | None


def personalization(
    images: Tensor,
    references: Sequence[Reference],
    prompt: str,
    encoder: ImageEncoder,
    image_encoder: ImageEncoder | None = None,
    detections: Detections | None = None,
    tick: Tick | None = None,
) -> Personalization:
    """images [B, H, W, 3] in 0..1; detections: of the same pictures and the references' texts, for the crops' scores.

    encoder: of words and pictures; image_encoder: of pictures, for DINO. tick is told of every picture encoded; there
    are `pictures_to_encode` of them. Raises ValueError with a sentence for the artist.
    """
    check_parts(images, references, detections)
    words = need_words(encoder, "CLIP-T")
    if not prompt.strip():
        raise ValueError("The prompt is empty: give the words that the pictures were made from; CLIP-T scores them.")
    texts = tuple(reference.text for reference in references)
    pictures = list(as_bytes(images[..., :3]))
    shown = [as_bytes(reference.images) for reference in references]
    clip, dino = (_pictures(each, pictures, shown, tick) for each in (encoder, image_encoder))
    assert clip
    whole = View(
        text_score(clip[0], embed_words(words, [prompt])).unsqueeze(1).expand(-1, len(texts)),
        image_score(*clip),
        image_score(*dino) if dino else None,
        torch.ones(len(pictures), len(texts), dtype=torch.bool),
    )
    crops = None
    if detections is not None:
        at, cut = _cut(images, detections, texts)
        seen = [embed(each, cut, tick) if each and cut else None for each in (encoder, image_encoder)]
        own = at[:, 1]
        measured = torch.zeros(len(pictures), len(texts), dtype=torch.bool)
        measured[at[:, 0], own] = True
        by_words = text_score(seen[0], embed_words(words, texts)[own]) if seen[0] is not None else None
        crops = View(
            _placed(by_words, at, measured),
            _placed(_own_score(seen[0], clip[1], own), at, measured),
            _placed(_own_score(seen[1], dino[1], own), at, measured) if dino else None,
            measured,
        )
    name = image_encoder.name if image_encoder else None
    return Personalization(prompt, texts, encoder.name, name, whole, crops)


def check_parts(images: Tensor, references: Sequence[Reference], detections: Detections | None) -> None:
    """Raises ValueError where there is nothing to compare, or where things do not belong together."""
    if images.ndim != 4 or not len(images):
        raise ValueError(f"The pictures have the shape {list(images.shape)}; expected [pictures, height, width, 3].")
    if not references:
        raise ValueError("There are no references: connect the chain of MIP Reference that made the pictures.")
    if detections is not None:
        check_pictures(images, detections)


def pictures_to_encode(
    images: Tensor, references: Sequence[Reference], detections: Detections | None, encoders: int
) -> int:
    """How many pictures `personalization` encodes at most, for a progress bar."""
    crops = len(images) * len(references) if detections is not None else 0
    return encoders * (len(images) + sum(len(reference.images) for reference in references) + crops)


def _pictures(
    encoder: ImageEncoder | None, pictures: list, shown: list, tick: Tick | None
) -> tuple[Tensor, list[Tensor]] | None:
    """Unit embeddings of the pictures [B, E], and of every reference's [R_m, E]."""
    if encoder is None:
        return None
    return embed(encoder, pictures, tick), [embed(encoder, list(each), tick) for each in shown]


def _cut(images: Tensor, detections: Detections, texts: Sequence[str]) -> tuple[Tensor, list]:
    """(picture, object) [C, 2] of the objects that were found, and their crops."""
    at, cut = [], []
    for b, image in enumerate(images):
        things = choose(detections, b, texts)
        for m, row in enumerate(things.own):
            if row is not None:
                at.append((b, m))
                cut.append(crop(image, things.found[row]))
    return torch.tensor(at, dtype=torch.long).reshape(-1, 2), cut


def _own_score(crops: Tensor | None, references: list[Tensor], own: Tensor) -> Tensor | None:
    """[C] the score of each crop with its own reference."""
    return None if crops is None else image_score(crops, references)[torch.arange(len(own)), own]


def _placed(values: Tensor | None, at: Tensor, like: Tensor) -> Tensor:
    """[B, M] with the values [C] where their crops are from, 0 elsewhere."""
    placed = torch.zeros(like.shape)
    if values is not None:
        placed[at[:, 0], at[:, 1]] = values
    return placed


def report(scores: Personalization) -> str:
    """What was measured with what, the means, and a line an object and picture."""
    views = [("", scores.whole)] + ([("crop ", scores.crops)] if scores.crops else [])
    columns = [
        (f"{prefix}{title}", view, name)
        for prefix, view in views
        for title, name in (("CLIP-T", "clip_t"), ("CLIP-I", "clip_i"), ("DINO", "dino"))
        if getattr(view, name) is not None
    ]
    rows = [["mean", "", *(number(view.mean(name)) for _, view, name in columns)]]
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
            _about_crops(scores),
            "",
            table(["", "object", *(title for title, *_ in columns)], rows, words=2),
        ]
    )


def _about_dino(scores: Personalization) -> str:
    if scores.image_encoder:
        return f"DINO by {scores.image_encoder}."
    return "DINO was not measured: connect an image_encoder."


def _about_crops(scores: Personalization) -> str:
    if scores.crops is None:
        return "Crops were not measured: connect detections, and objects with exchanged looks no longer score as right."
    missing = [f"“{scores.texts[m]}” in picture {b + 1}" for b, m in (~scores.crops.measured).nonzero().tolist()]
    if not missing:
        return "Crops: every object was found in every picture."
    shown = ", ".join(missing[:6]) + (f" and {len(missing) - 6} more" if len(missing) > 6 else "")
    return f"Crops: not found, and not counted: {shown}."
