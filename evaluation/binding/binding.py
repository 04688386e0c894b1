"""Binding report: did every object take its look from its own reference?

For one picture, with unit embeddings v_c of the cut-out objects c, r_m, the mean of the unit embeddings of all pictures
of reference m, and angles ∠ between them:

    S[c, m] = v_c · r_m                                  the mean cosine to the pictures of reference m
    margin of object m = S[c_m, m] − max_{j ≠ m} S[c_m, j]        own minus best other; below 0: confused
    way[j] = 1 − ∠(v_{c_m}, r_j) / ∠(r_m, r_j), j ≠ m    how much nearer to j the crop is than its own reference is
    way[m] = mean_{j ≠ m} 1 − ∠(v_{c_m}, r_m) / ∠(r_j, r_m)       how much nearer to its own than the others are
    look of object m = way / Σ way, each at least 0      which references the crop takes after

The look is where the verdict's percentages come from ("31 % of its look from the cat"). What all references have in
common, such as being an object on white, brings a crop no nearer to one of them than the others are, so it counts for
none; neither does it leak that a dog resembles cats, as all dogs do.
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
from ..object_embeddings import ObjectEmbeddings

WORST, MEAN = RANKINGS = ("worst object", "mean")  # whose margin ranks pictures
FAINT = 0.1  # of the way to a reference: who goes less far takes after none


@dataclass(frozen=True, eq=False)
class PictureBinding:
    """One picture with C things found in it, M references.

    crops: C cut-out pictures (PIL); boxes, found_as: where each was, and as which object it counts; the objects' own
    come first, in the references' order, then what is there too often.
    similarity [C, M]: S; look [C, M]: rows add up to 1, or are 0 for what takes after no reference.
    own: for each object the number of its crop, None where it was not found.
    instead: for an object that was not found the number of another one's crop that may hold it too
    (`things.may_hold`), None where nothing speaks for it.
    near: for each object that was not found the threshold below which the detector would have found it.
    confusion: of the relevance while the picture was sampled, 0 to 1 (`relevance/record.py`), None where it is unknown.
    """

    crops: tuple[Any, ...]
    boxes: tuple[Box, ...]
    found_as: tuple[int, ...]
    similarity: Tensor
    look: Tensor
    own: tuple[int | None, ...]
    instead: tuple[int | None, ...] = ()
    near: tuple[float, ...] = ()
    confusion: float | None = None

    @property
    def counts(self) -> tuple[int, ...]:
        """How many of each object were found; one is expected."""
        return tuple(self.found_as.count(m) for m in range(len(self.own)))

    @property
    def present(self) -> tuple[int, ...]:
        """The objects that were found."""
        return tuple(m for m, row in enumerate(self.own) if row is not None)

    @property
    def surplus(self) -> int:
        """Things that are there more often than expected."""
        return len(self.crops) - len(self.present)

    def margins(self) -> dict[int, float]:
        """Own minus best other of every object that was found; empty with a single reference, which has no other."""
        if self.similarity.shape[1] < 2:
            return {}
        margins, similarity = {}, self.similarity.tolist()
        for m, row in enumerate(self.own):
            if row is not None:
                own, others = similarity[row][m], similarity[row][:m] + similarity[row][m + 1 :]
                margins[m] = own - max(others)
        return margins

    @property
    def margin(self) -> float | None:
        """Mean over the objects that were found; None where there is none to take."""
        return _mean(list(self.margins().values()))

    @property
    def worst_margin(self) -> float | None:
        """The smallest of the objects that were found; None as for margin."""
        return min(self.margins().values(), default=None)

    @property
    def nearest(self) -> tuple[int | None, ...]:
        """For each object the reference that its crop is most like, its own of equal ones; None: it was not found."""
        margins = self.margins()
        return tuple(
            row if row is None else m if margins.get(m, 0.0) >= 0 else int(self.similarity[row].argmax())
            for m, row in enumerate(self.own)
        )


@dataclass(frozen=True, eq=False)
class Binding:
    """What the binding report measured in a batch of pictures.

    names, weights, placed: text and weight of the M references, and whether each has a region; thumbnails: one picture
    of each, uint8 [H, W, 3]; images: the pictures, uint8 [B, H, W, 3]; threshold: the detector's, None without one.
    """

    names: tuple[str, ...]
    weights: tuple[float, ...]
    placed: tuple[bool, ...]
    thumbnails: tuple[np.ndarray, ...]
    images: np.ndarray
    encoder: str
    pictures: tuple[PictureBinding, ...]
    threshold: float | None = None

    @property
    def margins(self) -> list[tuple[int, int, float]]:
        """(picture, object, margin) of all objects that were found."""
        return [(b, m, value) for b, each in enumerate(self.pictures) for m, value in each.margins().items()]

    @property
    def margin(self) -> float | None:
        """Mean over all objects found in all pictures; None: nothing was found, or there is one reference only."""
        return _mean([value for *_, value in self.margins])

    @property
    def confusion_rate(self) -> float | None:
        """Share of the objects found that look more like another reference than like their own; None as for margin."""
        return _mean([float(value < 0) for *_, value in self.margins])

    def relevance_confusion(self, pictures: Sequence[int]) -> float | None:
        """Mean over some of the pictures."""
        return _mean([value for b in pictures if (value := self.pictures[b].confusion) is not None])

    @property
    def presence(self) -> float:
        """Share of the objects asked for, over all pictures, that were found."""
        return sum(len(each.present) for each in self.pictures) / (len(self.pictures) * len(self.names))

    def confusion_matrix(self) -> Tensor:
        """[M, M + 1], whole numbers: in how many pictures object i was most like reference j; last, not found."""
        objects = len(self.names)
        counts = torch.zeros(objects, objects + 1, dtype=torch.long)
        for each in self.pictures:
            for m, reference in enumerate(each.nearest):
                counts[m, objects if reference is None else reference] += 1
        return counts

    def only(self, picture: int) -> Binding:
        """One picture of the batch, as if there were no others."""
        return replace(self, images=self.images[picture : picture + 1], pictures=(self.pictures[picture],))

    def ranking(self, by: str = WORST) -> list[int]:
        """Picture numbers, best first: most objects found, then the largest margin, then fewest things too many.

        by: whose margin, of the object with the smallest one (WORST) or the mean of all (MEAN); the other one decides
        between equal pictures. What is not there has no margin; so objects count before margins, and pictures that are
        equal in all of it keep their order. Raises ValueError for any other `by`.
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
    seen: ObjectEmbeddings,
    references: Tensor,
    near: Sequence[float] = (),
    confusion: float | None = None,
    instead: Sequence[int | None] = (),
) -> PictureBinding:
    """One picture's objects against every reference's mean embedding [M, E]; the others as in `PictureBinding`."""
    things = seen.things
    return PictureBinding(
        crops=seen.crops,
        boxes=tuple(each.box for each in things.found),
        found_as=things.found_as,
        similarity=seen.embeddings @ references.T,
        look=looks(seen.embeddings, references, things.found_as),
        own=things.own,
        instead=tuple(instead),
        near=tuple(near),
        confusion=confusion,
    )


def looks(embeddings: Tensor, references: Tensor, own: Sequence[int]) -> Tensor:
    """[C, M]: look of crops [C, E], each an object of the reference own[c], among references [M, E]."""
    if len(references) == 1:
        return torch.ones(len(embeddings), 1)
    directions = F.normalize(references.double(), dim=-1)
    away, apart = (torch.acos((each.double() @ directions.T).clamp(-1, 1)) for each in (embeddings, directions))
    between = apart[list(own)]  # [C, M], of the own reference and every other
    mine = F.one_hot(torch.tensor(own, dtype=torch.long), len(references))
    others = _way(away, between) * (1 - mine)
    towards_own = _way((away * mine).sum(-1, keepdim=True), between) * (1 - mine)
    way = others + mine * towards_own.sum(-1, keepdim=True) / (len(references) - 1)
    total = way.sum(-1, keepdim=True)
    return torch.where(total >= FAINT, way / total, 0.0).float()


def _way(away: Tensor, between: Tensor) -> Tensor:
    """1: there; 0: as far away as two references are from each other, or further; of equal references 0."""
    return (1 - away / between).nan_to_num(0.0).clamp_min(0)


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None
