"""Object relevance score: does noise that is weighted by an object's relevance change the picture where the object is?

The score by which MIP-Adapter's authors show that relevance finds its object (arXiv 2409.17920). One picture is sampled
twice from one seed, once with noise on the text attention (attention/noise.py):

    Δ_in = mean |difference| over the object's box or mask        Δ_out = over the rest of the picture
    S = mean over pictures of Δ_in / Δ_out                        higher: the noise met the object
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import NamedTuple

import torch
from torch import Tensor

from ..attention.reference import object_number
from .detections import Detections
from .tables import number, table

LEAST = 0.5  # pixels; a region of less is none
UNCHANGED = 1e-5  # of full brightness; a mean difference up to this is rounding
ENOUGH = 3  # pictures from which on an interval says something
LEVEL = 0.95


class Change(NamedTuple):
    """Of one picture, mean differences in units of full brightness (0..1). ratio: inside over outside, None where it is
    not defined; why: the reason then, in words."""

    inside: float | None
    outside: float | None
    ratio: float | None
    why: str = ""


@dataclass(frozen=True)
class ObjectRelevance:
    """pictures: one a picture of the batch; interval: of the score, for the pictures' scatter, None for too few."""

    pictures: tuple[Change, ...]
    score: float
    interval: tuple[float, float] | None

    def report(self, name: str, baseline: ObjectRelevance | None = None) -> str:
        """What was measured for the object `name`, for people, and by how much it exceeds a baseline of the same
        pictures. Reads well as plain text and as Markdown."""
        ratios = [change.ratio for change in self.pictures if change.ratio is not None]
        said = [f"Object relevance score of {name}: {number(self.score)}{_uncertain(ratios)}"]
        if baseline is not None:
            said.append(self._compared(baseline))
        rows = [
            [str(i), number(change.inside, 4), number(change.outside, 4), number(change.ratio)]
            for i, change in enumerate(self.pictures, 1)
        ]
        said.append(table(["picture", "Δ inside", "Δ outside", "ratio"], rows))
        said += [f"Picture {i} does not count: {c.why}." for i, c in enumerate(self.pictures, 1) if c.why]
        said.append(MEANING)
        return "\n\n".join(said)

    def _compared(self, baseline: ObjectRelevance) -> str:
        """Picture by picture, so that what one object's place does to all ratios cancels."""
        both = zip(self.pictures, baseline.pictures, strict=True)
        more = [a.ratio - b.ratio for a, b in both if a.ratio is not None and b.ratio is not None]
        if not more:
            return f"Baseline: {number(baseline.score)}, of other pictures than those that count here."
        return (
            f"Baseline: {number(baseline.score)}; the difference is {number(fmean(more), sign=True)}{_uncertain(more)}"
        )


MEANING = (
    "A ratio above 1 says that the noise changed the object more than the rest. Compare noise by relevance with "
    "uniform noise: the first scores higher where the relevance knows the object."
)


def object_relevance(clean: Tensor, noised: Tensor, regions: Tensor) -> ObjectRelevance:
    """Score of pictures without noise and the same with it, [B, H, W, C] in 0..1.

    regions [B, H, W] or [1, H, W] in 0..1: where the object is; values between count in part, inside and outside.
    Raises ValueError for sizes that differ, and where not one picture has a defined ratio.
    """
    regions = check_pictures(clean, noised, regions)
    changes = tuple(map(_change, difference(clean, noised), regions))
    ratios = [change.ratio for change in changes if change.ratio is not None]
    if not ratios:
        which = "" if len(changes) == 1 else " for any of the pictures; of the first"
        raise ValueError(f"The object relevance score is not defined{which}: {changes[0].why}.")
    return ObjectRelevance(changes, fmean(ratios), interval(ratios))


def difference(clean: Tensor, noised: Tensor) -> Tensor:
    """[B, H, W]: mean over the channels of the absolute difference."""
    return (clean[..., :3].float() - noised[..., :3].float()).abs().mean(-1).cpu()


def interval(ratios: Sequence[float], level: float = LEVEL) -> tuple[float, float] | None:
    """Student's t interval of the mean; None for fewer than three pictures."""
    if len(ratios) < ENOUGH:
        return None
    from scipy import stats

    half = float(stats.t.ppf((1 + level) / 2, len(ratios) - 1)) * stdev(ratios) / math.sqrt(len(ratios))
    return fmean(ratios) - half, fmean(ratios) + half


def check_pictures(clean: Tensor, noised: Tensor, regions: Tensor) -> Tensor:
    """Raises ValueError unless all belong together. Returns the regions [B, H, W], float32."""
    for what, images in (("images", clean), ("noised", noised)):
        if images.ndim != 4 or images.shape[-1] not in (1, 3, 4) or 0 in images.shape:
            raise ValueError(
                f"The input “{what}” has the shape {list(images.shape)}; expected [pictures, height, width, 3]."
            )
        if not torch.isfinite(images).all():
            raise ValueError(f"The input “{what}” contains NaN or infinite values; check the node that makes it.")
    if clean.shape != noised.shape:
        raise ValueError(
            f"Without noise there are {_said(clean)}, with noise {_said(noised)}: sample both from the same latent, "
            "with everything else alike."
        )
    size = clean.shape[1:3]
    if regions.ndim != 3 or regions.shape[1:] != size or regions.shape[0] not in (1, clean.shape[0]):
        raise ValueError(
            f"The pictures are {_said(clean)}, and the object's masks or detections {_said(regions)}: detect in these "
            "very pictures, or give one mask for all or one a picture, of the pictures' size."
        )
    return regions.float().cpu().nan_to_num(0).clamp(0, 1).expand(clean.shape[0], -1, -1)


def detected(detections: Detections, wanted: str) -> tuple[str, Tensor]:
    """The object by its words or its number (`object_number`): its name, and [B, H, W], its best detection in each
    picture, empty where it was not found."""
    text = object_number(wanted, detections.texts)
    height, width = detections.height, detections.width
    best = [detections.best(picture, text) for picture in range(len(detections))]
    empty = torch.zeros(height, width)
    regions = torch.stack([empty if found is None else found.region(height, width) for found in best])
    return f"“{detections.texts[text]}”", regions


def masked(masks: Tensor, wanted: str, pictures: int) -> tuple[str, Tensor]:
    """The object's masks [pictures or 1, H, W] and what to call it, from one mask for all pictures, one a picture, or
    one an object for each picture (as MIP Relevance Maps gives them): then `wanted` is its number from 1 on."""
    masks = masks.unsqueeze(0) if masks.ndim == 2 else masks
    count = masks.shape[0]
    if count in (1, pictures):
        return wanted.strip() or "the object", masks
    if count % pictures:
        raise ValueError(
            f"There are {count} masks for {pictures} pictures: give one for all, one a picture, or one an object for "
            "each picture."
        )
    objects = count // pictures
    number = wanted.strip() or "1"
    if not number.isdecimal() or not 1 <= int(number) <= objects:
        raise ValueError(
            f"The masks are of {objects} objects, and masks have no names: write the object's number, 1 to {objects}, "
            f"instead of “{wanted}”, or connect detections."
        )
    return f"object {number}", masks.unflatten(0, (pictures, objects))[:, int(number) - 1]


def _uncertain(values: Sequence[float]) -> str:
    """The interval of the values' mean, or why there is none, in brackets."""
    found, pictures = interval(values), f"{len(values)} picture{'s' * (len(values) > 1)}"
    if found is None:
        return f" ({pictures}; {ENOUGH} or more give an interval)"
    return f" ({LEVEL * 100:.0f} % interval {number(found[0])} to {number(found[1])}, {pictures})"


def _change(difference: Tensor, region: Tensor) -> Change:
    within, without = region.sum(), (1 - region).sum()
    if within < LEAST:
        return Change(None, float(difference.mean()), None, "the object is not in it (no box, or an empty mask)")
    inside = float((difference * region).sum() / within)
    if without < LEAST:
        return Change(inside, None, None, "the object's box or mask covers all of it, so there is no outside")
    outside = float((difference * (1 - region)).sum() / without)
    if outside > UNCHANGED:
        return Change(inside, outside, inside / outside)
    if inside > UNCHANGED:
        return Change(inside, outside, None, "nothing changed outside the object, so the ratio has no bound")
    return Change(inside, outside, None, "nothing changed at all; sample the model of MIP Text Noise, at more strength")


def _said(images: Tensor) -> str:
    if images.ndim < 3:
        return f"of shape {list(images.shape)}"
    return f"{images.shape[0]} of {images.shape[2]}×{images.shape[1]} pixels"
