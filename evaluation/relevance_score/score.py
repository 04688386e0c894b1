"""Object relevance score: does noise weighted by an object's relevance change the picture where the object is?

MIP-Adapter's authors show by this score that relevance finds its object (arXiv 2409.17920). A picture is sampled twice
from one seed, once with noise on the text attention (attention/noise.py):

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

from ...common.tables import number, table
from .target import Target

LEAST = 0.5  # pixels; a smaller region counts as empty
UNCHANGED = 1e-5  # of full brightness; a mean difference up to this is rounding
ENOUGH = 3  # an interval needs this many pictures
LEVEL = 0.95


class Undefined(ValueError):
    """The score is not defined, because no picture has a ratio."""


class Change(NamedTuple):
    """The change of one picture.

    inside, outside: mean differences in units of full brightness, 0..1; None if there is no such place.
    ratio: inside / outside, or None if it is not defined.
    why: the reason why ratio is None, in words.
    """

    inside: float | None
    outside: float | None
    ratio: float | None
    why: str = ""


@dataclass(frozen=True)
class ObjectRelevance:
    """The object relevance score of a batch.

    pictures: the change of each picture.
    score: the mean ratio.
    interval: of the score, from the scatter of the pictures; None for too few.
    """

    pictures: tuple[Change, ...]
    score: float
    interval: tuple[float, float] | None

    def report(self, target: Target, baseline: ObjectRelevance | Undefined | None = None) -> str:
        """The score as text that reads as plain text and as Markdown.

        baseline: the score of the same pictures with other noise. The report gives the difference, or the reason why
            the baseline has no score.
        """
        ratios = [change.ratio for change in self.pictures if change.ratio is not None]
        said = [f"Object relevance score of {target.name}: {number(self.score)}{_uncertain(ratios)}"]
        if isinstance(baseline, ObjectRelevance):
            said.append(self._compared(baseline))
        elif baseline is not None:
            said.append(f"Baseline: {baseline}")
        rows = [
            [str(i), number(change.inside, 4), number(change.outside, 4), number(change.ratio)]
            for i, change in enumerate(self.pictures, 1)
        ]
        said.append(table(["picture", "Δ inside", "Δ outside", "ratio"], rows))
        said += [f"Picture {i} does not count: {c.why}." for i, c in enumerate(self.pictures, 1) if c.why]
        said += [f"The object's place is told by {target.told_by}.", MEANING]
        return "\n\n".join(said)

    def _compared(self, baseline: ObjectRelevance) -> str:
        """The difference to a baseline, taken picture by picture so that the effect of an object's place cancels."""
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


def object_relevance(clean: Tensor, noised: Tensor, target: Target, what: str = "noised") -> ObjectRelevance:
    """Scores a batch.

    clean, noised [B, H, W, C]: the pictures without and with noise, in 0..1.
    target: where the object is. Region values between 0 and 1 count in part inside and in part outside.
    what: the name of the input `noised`, for the error messages.

    Raises ValueError for sizes that differ, and Undefined if no picture has a ratio.
    """
    regions = check_alike(clean, noised, target.regions, what)
    why = target.missing or ("",) * len(regions)
    changes = tuple(map(_change, difference(clean, noised), regions, why))
    ratios = [change.ratio for change in changes if change.ratio is not None]
    if not ratios:
        which = "" if len(changes) == 1 else " for any of the pictures; of the first"
        raise Undefined(f"The object relevance score of “{what}” is not defined{which}: {changes[0].why}.")
    return ObjectRelevance(changes, fmean(ratios), interval(ratios))


def difference(clean: Tensor, noised: Tensor) -> Tensor:
    """Absolute difference [B, H, W], averaged over the colour channels."""
    return (clean[..., :3].float() - noised[..., :3].float()).abs().mean(-1).cpu()


def interval(ratios: Sequence[float], level: float = LEVEL) -> tuple[float, float] | None:
    """Student's t interval of the mean; None for fewer than ENOUGH ratios."""
    if len(ratios) < ENOUGH:
        return None
    from scipy import stats

    half = float(stats.t.ppf((1 + level) / 2, len(ratios) - 1)) * stdev(ratios) / math.sqrt(len(ratios))
    return fmean(ratios) - half, fmean(ratios) + half


def check_alike(clean: Tensor, noised: Tensor, regions: Tensor, what: str) -> Tensor:
    """The regions as float32 [B, H, W] in 0..1. Raises ValueError unless pictures and regions fit together."""
    for name, images in (("images", clean), (what, noised)):
        if images.ndim != 4 or images.shape[-1] not in (1, 3, 4) or 0 in images.shape:
            raise ValueError(
                f"The input “{name}” has the shape {list(images.shape)}; expected [pictures, height, width, 3]."
            )
        if not torch.isfinite(images).all():
            raise ValueError(f"The input “{name}” contains NaN or infinite values; check the node that makes it.")
    if clean.shape[:3] != noised.shape[:3]:
        raise ValueError(
            f"“images” are {_said(clean)}, “{what}” {_said(noised)}: sample both from the same latent, with everything "
            "else alike."
        )
    size = clean.shape[1:3]
    if regions.ndim != 3 or regions.shape[1:] != size or regions.shape[0] not in (1, clean.shape[0]):
        raise ValueError(
            f"The pictures are {_said(clean)}, and the object's masks or detections {_said(regions)}: detect in these "
            "very pictures, or give one mask for all or one a picture, of the pictures' size."
        )
    return regions.float().cpu().nan_to_num(0).clamp(0, 1).expand(clean.shape[0], -1, -1)


def against(clean: Tensor, baseline: Tensor, target: Target) -> ObjectRelevance | Undefined:
    """The baseline's score, or the exception that says why it has none. The report states it; nothing is raised."""
    try:
        return object_relevance(clean, baseline, target, "baseline")
    except Undefined as error:
        return error


def _uncertain(values: Sequence[float]) -> str:
    """The interval of the mean in brackets, or why there is none."""
    found, pictures = interval(values), f"{len(values)} picture{'s' * (len(values) > 1)}"
    if found is None:
        return f" ({pictures}; {ENOUGH} or more give an interval)"
    return f" ({LEVEL * 100:.0f} % interval {number(found[0])} to {number(found[1])}, {pictures})"


def _change(difference: Tensor, region: Tensor, missing: str = "") -> Change:
    within, without = region.sum(), (1 - region).sum()
    if within < LEAST:
        why = missing.removesuffix(".") or "the object's mask is empty there"
        return Change(None, float(difference.mean()), None, why)
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
