"""The binding report: measured from pictures, references and detections, then written as text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from ...attention.reference import Reference, colours_of
from ...common.batching import Tick
from ...common.crops import as_bytes
from ...common.drawing import drawable
from ...common.tables import NOTHING, number, percent, table
from ..detection.crops import pictures_of
from ..detection.detections import Detections
from ..detection.matching import best_rejected, held_by
from ..encoders.embeddings import embed
from ..encoders.encoder import ImageEncoder
from ..object_embeddings import check_inputs, crops_at_most, objects_in
from .binding import WORST, Binding, bind
from .matrix_picture import draw_matrices
from .verdict import verdict


def measure_binding(
    images: Tensor,
    references: Sequence[Reference],
    detections: Detections,
    encoder: ImageEncoder,
    tick: Tick | None = None,
    places_mixed: Sequence[float] | None = None,
) -> Binding:
    """Measures the binding of a batch.

    images [B, H, W, 3]: in 0..1, those that were searched.
    detections: of the references' texts.
    tick: called with the number of pictures encoded since the last call; `to_encode` is their total.
    places_mixed: see `PictureBinding`, a number for each picture that was sampled. If there are not B of them, as when
        only the best of a batch is measured, every picture gets their mean.

    Raises ValueError with a sentence for the artist.
    """
    check_inputs(images, references, detections)
    texts = tuple(reference.text for reference in references)
    pictures = [pictures_of(reference) for reference in references]
    means = torch.stack([embed(encoder, each, tick).mean(0) for each in pictures])  # [M, E]
    objects = objects_in(images, references, detections, encoder, means, tick)
    mixed_each = _by_picture(places_mixed, len(images))
    holders = held_by([each.matches for each in objects], references, (detections.height, detections.width))
    return Binding(
        names=texts,
        weights=tuple(reference.weight for reference in references),
        has_region=tuple(reference.region is not None for reference in references),
        thumbnails=tuple(each[0] for each in pictures),
        images=as_bytes(images[..., :3]),
        encoder=encoder.name,
        pictures=tuple(
            bind(each, means, best_rejected(detections, b, texts), mixed_each[b], holders[b])
            for b, each in enumerate(objects)
        ),
        threshold=detections.threshold,
        colours=colours_of(references),
    )


def _by_picture(mixed: Sequence[float] | None, picture_count: int) -> Sequence[float | None]:
    """A number for each picture; the mean for all where their count differs."""
    if mixed is None:
        return [None] * picture_count
    return mixed if len(mixed) == picture_count else [sum(mixed) / len(mixed)] * picture_count


def headline(binding: Binding) -> tuple[float, float, float]:
    """Margin, confusion rate and presence as numbers.

    Without any object, margin and rate are the worst possible, -1 and 1, so that a search over settings does not take
    it for success. With a single reference both are 0.
    """
    nothing = (0.0, 0.0) if binding.presence > 0 else (-1.0, 1.0)
    margin, rate = binding.margin, binding.confusion_rate
    return nothing[0] if margin is None else margin, nothing[1] if rate is None else rate, binding.presence


def matrices(binding: Binding) -> Tensor:
    """A sheet for each picture, [B, H, W, 3] in 0..1: the similarity matrix and the picture's verdict."""
    drawn = replace(binding, names=drawable(binding.names))
    sentences = [verdict(drawn.only(b)) for b in range(len(drawn.pictures))]
    return torch.from_numpy(draw_matrices(drawn, sentences)).float() / 255


def to_encode(references: Sequence[Reference], detections: Detections) -> int:
    """The largest number of pictures that `measure_binding` may encode, for a progress bar."""
    return sum(each.count for each in references) + crops_at_most(detections)


def binding_report(binding: Binding) -> str:
    """The report as text: verdict, numbers, a line for every object in every picture, and the confusion matrix.

    The matrix is there only with several pictures and several references.
    """
    rate = binding.confusion_rate
    numbers = [
        f"margin {number(binding.margin, sign=True)}{_worst(binding)}",
        f"confusion rate {NOTHING if rate is None else percent(rate)}",
        f"presence {percent(binding.presence)}",
        f"pictures compared by {binding.encoder}",
    ]
    each = [percent(picture.places_mixed) for picture in binding.pictures if picture.places_mixed is not None]
    if (mixed := binding.mean_places_mixed(range(len(binding.pictures)))) is not None:
        one_by_one = f" ({', '.join(each)})" if len(each) > 1 else ""
        numbers.insert(3, f"places mixed while sampling {percent(mixed)}{one_by_one}")
    sentences = [f"- {sentence}" for sentence in verdict(binding)]
    parts = ["\n".join(sentences), ", ".join(numbers), lines(binding)]
    if len(binding.pictures) > 1 and len(binding.names) > 1:
        parts.append(whose_looks(binding))
    return "\n\n".join(parts)


def _worst(binding: Binding) -> str:
    """The object and picture with the smallest margin, in brackets; "" with fewer than two margins."""
    if len(binding.all_margins) < 2:
        return ""
    b, m, value = min(binding.all_margins, key=lambda each: each[-1])
    where = f" in picture {b + 1}" if len(binding.pictures) > 1 else ""
    return f" (the worst {number(value, sign=True)}: {binding.names[m]}{where})"


def whose_looks(binding: Binding) -> str:
    """The confusion matrix as a table: objects down, references across, the number of pictures in each cell."""
    header = ["most like, in pictures", *binding.names, "not found"]
    counts = binding.most_like_counts().tolist()
    return table(header, [[name, *map(str, row)] for name, row in zip(binding.names, counts, strict=True)])


def ranking(binding: Binding, by: str = WORST) -> str:
    """A table of the pictures, best first. by: as in `Binding.ranking`."""
    rows = []
    for place, b in enumerate(binding.ranking(by), 1):
        each = binding.pictures[b]
        found = f"{len(each.present)} of {len(binding.names)}"
        confused = sum(value < 0 for value in each.margin_by_object().values())
        margins = [number(value, sign=True) for value in (each.worst_margin, each.margin)]
        rows.append([f"{place}.", f"{b + 1}", found, *margins, f"{confused}", f"{each.surplus}"])
    header = ["place", "picture", "found", "worst margin", "mean margin", "confused", "too many"]
    return table(header, rows, words=2)


def lines(binding: Binding) -> str:
    """A table with a line for every object in every picture."""
    header = ["", "object", "found", "own", "best other", "which", "margin", "most like", "look"]
    rows = []
    for b, picture in enumerate(binding.pictures):
        margins = picture.margin_by_object()
        for m, name in enumerate(binding.names):
            crop, count, most_like = picture.crop_of[m], picture.counts[m], picture.most_like[m]
            cells = [f"picture {b + 1}", name, f"{count}" if count == 1 else f"{count} (1 expected)"]
            if crop is None:
                rows.append([*cells, *[NOTHING] * 6])
                continue
            similar = picture.similarity[crop]
            other = best_other(similar, m)
            rows.append(
                [
                    *cells,
                    number(float(similar[m])),
                    NOTHING if other is None else number(float(similar[other])),
                    NOTHING if other is None else binding.names[other],
                    number(margins.get(m), sign=True),
                    NOTHING if most_like is None else binding.names[most_like],
                    look_words(picture.look[crop], binding.names),
                ]
            )
    return table(header, rows, words=2)


def best_other(similar: Tensor, m: int) -> int | None:
    """The reference other than m that is most like a crop, None with a single one.

    similar [M]: the crop's similarity to each reference.
    """
    others = [j for j in range(len(similar)) if j != m]
    return max(others, key=lambda j: float(similar[j])) if others else None


def look_words(look: Tensor, names: Sequence[str]) -> str:
    """A look [M] in words, the largest share first: “71 % dog, 29 % cat”."""
    order = sorted(range(len(names)), key=lambda j: -float(look[j]))
    return ", ".join(f"{percent(float(look[j]))} {names[j]}" for j in order if look[j] >= 0.005) or NOTHING
