"""Binding report: did each object take its look from its own reference?

For one picture, with unit embeddings v_c of the crops c, the mean r_m of the unit embeddings of all pictures of
reference m, and angles ∠ between them:

    S[c, m] = v_c · r_m                                  the mean cosine to the pictures of reference m
    margin of object m = S[c_m, m] − max_{j ≠ m} S[c_m, j]        own minus best other; below 0: confused
    near[j] = max(0, 1 − ∠(v_{c_m}, r_j) / ∠(r_m, r_j)), j ≠ m        1: at r_j; 0: as far from it as r_m is
    near[m] = mean_{j ≠ m} max(0, 1 − ∠(v_{c_m}, r_m) / ∠(r_j, r_m))  1: at r_m; 0: as far as the others are
    look of object m = near / Σ near                     which references the crop takes after; 0 where Σ near < 0.1

The verdict's percentages are looks ("31 % of its look from the cat"). What all references have in common, such as being
an object on white, brings a crop no nearer to one of them than the others are, so it counts for none. The resemblance
of all dogs to cats does not count as a look from the cat either.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ...common.crops import Box
from ...common.drawing import Colour, colour
from ..object_embeddings import ObjectEmbeddings

WORST, MEAN = RANKINGS = ("worst object", "mean")  # the margin that ranks pictures
FAINT = 0.1  # a crop with a smaller sum of nearness takes after no reference


@dataclass(frozen=True, eq=False)
class PictureBinding:
    """One picture with C detections and M references.

    crops: the C detections, cut out (PIL). The objects' own come first, then surplus ones.
    boxes [C]: where each crop was in the picture.
    found_as [C]: the number of the object that each crop counts for.
    similarity [C, M]: S.
    look [C, M]: rows add up to 1, or are 0 for a crop that takes after no reference.
    crop_of [M]: the number of each object's crop, None if it was not found.
    held_by [M]: for an object that was not found, the number of another object whose crop may hold it too
        (`matching.held_by`); else None.
    best_rejected [M]: for an object that was not found, the threshold below which the detector would have found it.
    places_mixed: how much the objects claimed each other's places while the picture was sampled, in 0..1
        (`relevance/maps.py`: `mixing`); None if it is unknown.
    """

    crops: tuple[Any, ...]
    boxes: tuple[Box, ...]
    found_as: tuple[int, ...]
    similarity: Tensor
    look: Tensor
    crop_of: tuple[int | None, ...]
    held_by: tuple[int | None, ...] = ()
    best_rejected: tuple[float, ...] = ()
    places_mixed: float | None = None

    @property
    def counts(self) -> tuple[int, ...]:
        """How often each object was found, [M]; once is expected."""
        return tuple(self.found_as.count(m) for m in range(len(self.crop_of)))

    @property
    def present(self) -> tuple[int, ...]:
        """The objects that were found."""
        return tuple(m for m, crop in enumerate(self.crop_of) if crop is not None)

    @property
    def surplus(self) -> int:
        """The number of crops beyond one for each object."""
        return len(self.crops) - len(self.present)

    def margin_by_object(self) -> dict[int, float]:
        """{object: margin} of the objects that were found; empty with a single reference, which has no other."""
        if self.similarity.shape[1] < 2:
            return {}
        margins = {}
        for m, crop in enumerate(self.crop_of):
            if crop is not None:
                others = self.similarity[crop].tolist()
                own = others.pop(m)
                margins[m] = own - max(others)
        return margins

    @property
    def margin(self) -> float | None:
        """The mean margin of the objects that were found; None without margins."""
        return _mean(list(self.margin_by_object().values()))

    @property
    def worst_margin(self) -> float | None:
        """The smallest margin of the objects that were found; None without margins."""
        return min(self.margin_by_object().values(), default=None)

    @property
    def most_like(self) -> tuple[int | None, ...]:
        """For each object the reference that its crop is most like, [M]; None if it was not found.

        Among references that are equally like the crop, its own wins.
        """
        margins = self.margin_by_object()
        most_like: list[int | None] = []
        for m, crop in enumerate(self.crop_of):
            if crop is None:
                most_like.append(None)
            elif margins.get(m, 0.0) >= 0:
                most_like.append(m)
            else:
                most_like.append(int(self.similarity[crop].argmax()))
        return tuple(most_like)


@dataclass(frozen=True, eq=False)
class Binding:
    """What the binding report measured in a batch of B pictures with M references.

    names, weights [M]: the references' texts and weights.
    has_region [M]: whether each reference has a region.
    thumbnails [M]: one picture of each reference, uint8 [H, W, 3].
    images: the pictures, uint8 [B, H, W, 3].
    encoder: the encoder's name.
    pictures [B]: the measurements of each picture.
    threshold: the detector's, or None without a detector.
    colours [M]: the numbers of the objects' colours (`common/drawing.py`: `colour`); empty: in their order.
    """

    names: tuple[str, ...]
    weights: tuple[float, ...]
    has_region: tuple[bool, ...]
    thumbnails: tuple[np.ndarray, ...]
    images: np.ndarray
    encoder: str
    pictures: tuple[PictureBinding, ...]
    threshold: float | None = None
    colours: tuple[int, ...] = ()

    def colour(self, m: int) -> Colour:
        """In which an object is drawn."""
        return colour(self.colours[m] if self.colours else m)

    @property
    def all_margins(self) -> list[tuple[int, int, float]]:
        """(picture, object, margin) of all objects that were found."""
        return [(b, m, value) for b, each in enumerate(self.pictures) for m, value in each.margin_by_object().items()]

    @property
    def margin(self) -> float | None:
        """The mean margin of all objects found in all pictures; None without objects or with a single reference."""
        return _mean([value for *_, value in self.all_margins])

    @property
    def confusion_rate(self) -> float | None:
        """The share of found objects that look more like another reference than like their own; None as for margin."""
        return _mean([float(value < 0) for *_, value in self.all_margins])

    def mean_places_mixed(self, pictures: Sequence[int]) -> float | None:
        """The mean of `places_mixed` over some pictures, given by number; None if it is known of none."""
        return _mean([value for b in pictures if (value := self.pictures[b].places_mixed) is not None])

    @property
    def presence(self) -> float:
        """The share of the expected objects, over all pictures, that were found."""
        return sum(len(each.present) for each in self.pictures) / (len(self.pictures) * len(self.names))

    def most_like_counts(self) -> Tensor:
        """Counts of pictures, [M, M + 1]: how often object i was most like reference j; the last column: not found."""
        objects = len(self.names)
        counts = torch.zeros(objects, objects + 1, dtype=torch.long)
        for each in self.pictures:
            for m, reference in enumerate(each.most_like):
                counts[m, objects if reference is None else reference] += 1
        return counts

    def only(self, picture: int) -> Binding:
        """The binding of one picture alone."""
        return replace(self, images=self.images[picture : picture + 1], pictures=(self.pictures[picture],))

    def ranking(self, by: str = WORST) -> list[int]:
        """Picture numbers, best first: most objects found, then the largest margin, then the fewest surplus crops.

        by: the margin that decides, the smallest of a picture (WORST) or the mean (MEAN). The other one decides between
            pictures with equal margins.

        Found objects count before margins, because an object that is missing has no margin. Pictures that are equal in
        all of this keep their order.

        Raises ValueError for any other `by`.
        """
        if by not in RANKINGS:
            raise ValueError(f"The pictures are to be ranked by “{by}”; choose one of: {', '.join(RANKINGS)}.")

        def key(number: int) -> tuple[float, ...]:
            each = self.pictures[number]
            worst, mean = each.worst_margin or 0.0, each.margin or 0.0
            first, second = (worst, mean) if by == WORST else (mean, worst)
            return -len(each.present), -first, -second, each.surplus

        return sorted(range(len(self.pictures)), key=key)


def bind(
    objects: ObjectEmbeddings,
    means: Tensor,
    best_rejected: Sequence[float] = (),
    places_mixed: float | None = None,
    held_by: Sequence[int | None] = (),
) -> PictureBinding:
    """Compares one picture's objects with every reference.

    objects: the picture's C crops, matched and embedded.
    means [M, E]: for each reference the mean of its pictures' unit embeddings.
    best_rejected, places_mixed, held_by: as in `PictureBinding`.
    """
    matches = objects.matches
    return PictureBinding(
        crops=objects.crops,
        boxes=tuple(each.box for each in matches.found),
        found_as=matches.found_as,
        similarity=objects.embeddings @ means.T,
        look=looks(objects.embeddings, means, matches.found_as),
        crop_of=matches.crop_of,
        held_by=tuple(held_by),
        best_rejected=tuple(best_rejected),
        places_mixed=places_mixed,
    )


def looks(embeddings: Tensor, means: Tensor, found_as: Sequence[int]) -> Tensor:
    """The looks [C, M] of crops among references.

    embeddings [C, E]: unit embeddings of the crops.
    means [M, E]: mean embeddings of the references.
    found_as [C]: the object that each crop counts for; its reference is the crop's own.
    """
    if len(means) == 1:
        return torch.ones(len(embeddings), 1)
    directions = F.normalize(means.double(), dim=-1)
    to_references, between_references = (
        torch.acos((each.double() @ directions.T).clamp(-1, 1)) for each in (embeddings, directions)
    )
    own = torch.tensor(found_as, dtype=torch.long).unsqueeze(1)  # [C, 1]
    own_to_others = between_references[own.squeeze(1)]  # [C, M]
    near = _nearness(to_references, own_to_others)
    to_own = _nearness(to_references.gather(1, own), own_to_others).scatter(1, own, 0)  # [C, M], against each other one
    near = near.scatter(1, own, to_own.sum(-1, keepdim=True) / (len(means) - 1))
    total = near.sum(-1, keepdim=True)
    return torch.where(total >= FAINT, near / total, 0.0).float()


def _nearness(away: Tensor, between: Tensor) -> Tensor:
    """`near` of the module docstring, at least 0.

    1 is at the reference; 0 is at least as far away as two references are from each other. Equal references give 0.
    """
    return (1 - away / between).nan_to_num(0.0).clamp_min(0)


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None
