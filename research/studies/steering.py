"""Each means of steering as a before and an after, and the picture that shows both."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from ...attention.options import Merge
from ...attention.regions import box_region
from ...common.drawing import colour
from ...relevance.maps import dominance, overlay, upscale
from ..ablation.arms import Trials
from ..ablation.picture_grid import to_pil

FIRST_PASS = 6  # steps of the first of two passes
LEFT_HALF, RIGHT_HALF = (0.0, 0.0, 0.5, 1.0), (0.5, 0.0, 1.0, 1.0)
SIDE, GAP, LINE = 160, 12, 20  # pixels
INK, GREY = (25, 25, 25), (110, 110, 110)


@dataclass(frozen=True, eq=False)
class Setting:
    """How a picture is steered.

    merge: of MIP Merge.
    references: more inputs of each MIP Reference.
    two_pass: freeze the relevance that a short first pass recorded.
    """

    merge: Merge = field(default_factory=Merge)
    references: tuple[Mapping[str, Any], Mapping[str, Any]] = ({}, {})
    two_pass: bool = False


class Means(NamedTuple):
    """A means of steering. what: a description of `after`."""

    before: Setting
    after: Setting
    what: str


def _halves(**more: Any) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    return tuple({"region": box_region([box], 0.1), **more} for box in (LEFT_HALF, RIGHT_HALF))  # pyright: ignore


PLAIN = Setting()
MEANS = {
    "sharpness": Means(PLAIN, Setting(Merge(sharpness=3.0)), "MIP Merge: sharpness 3"),
    "background": Means(PLAIN, Setting(Merge(background=1.0)), "MIP Merge: background 1"),
    "range": Means(
        PLAIN,
        Setting(references=({"start_percent": 0.1}, {"start_percent": 0.1, "end_percent": 0.7})),
        "MIP Reference: start_percent 0.1 for both, end_percent 0.7 for the second",
    ),
    "boxes": Means(PLAIN, Setting(references=_halves()), "MIP Region from Box: left half, right half"),
    "released": Means(
        Setting(references=_halves()), Setting(references=_halves(region_until=0.3)), "MIP Reference: region_until 0.3"
    ),
    "two-pass": Means(
        PLAIN, Setting(two_pass=True), f"MIP Freeze Relevance: the maps of a first pass of {FIRST_PASS} steps"
    ),
}


class Shown(NamedTuple):
    """One row of the picture.

    pictures: [K, 3, S, S] in 0..1.
    shares: [K, M, h, w].
    clear, of: how many objects clearly wear their own colours, of how many.
    """

    pictures: Tensor
    shares: Tensor
    clear: int
    of: int


def draw_pair(name: str, trials: Trials, before: Shown, after: Shown) -> Image.Image:
    """The picture of a means: a column per trial with its references, a row before and a row after, each picture beside
    its map.
    """
    columns, cell = len(before.pictures), 2 * SIDE + GAP
    head, thumb = 3 * LINE + GAP, 64
    row = LINE + SIDE + GAP
    width, top = columns * (cell + 2 * GAP) + GAP, head + thumb + 2 * LINE + GAP
    sheet = Image.new("RGB", (width, top + 2 * row + GAP), "white")
    pen = ImageDraw.Draw(sheet)
    large, text, small = (ImageFont.load_default(size) for size in (20, 15, 12))
    pen.text((GAP, GAP), MEANS[name].what, INK, large)
    note = "Beside each picture: which object claims which place, in the colours of the references' frames."
    pen.text((GAP, GAP + 1.5 * LINE), note, GREY, text)
    for column in range(columns):
        x = GAP + column * (cell + 2 * GAP)
        for i, (reference, words) in enumerate(zip(trials.references[column], trials.texts(column), strict=True)):
            at = x + i * (SIDE + GAP), head
            sheet.paste(to_pil(reference).resize((thumb, thumb), Image.Resampling.LANCZOS), at)
            pen.rectangle((at[0] - 1, at[1] - 1, at[0] + thumb, at[1] + thumb), outline=colour(i), width=3)
            pen.text((at[0] + thumb + 6, at[1] + 4), words, INK, text)
        prompt = textwrap.shorten(trials.prompts[column], 52, placeholder=" …")
        pen.text((x, head + thumb + 6), prompt, GREY, small)
        for line, shown in enumerate((before, after)):
            picture, shares = shown.pictures[column], shown.shares[column]
            strengths = dominance(upscale(shares, (picture.shape[-2], picture.shape[-1])).clamp(0, 1))
            covered = overlay(picture.movedim(0, -1), strengths, list(range(len(shares))), 0.7).movedim(-1, 0)
            for place, image in enumerate((picture, covered)):
                grown = to_pil(image).resize((SIDE, SIDE), Image.Resampling.LANCZOS)
                sheet.paste(grown, (x + place * (SIDE + GAP // 2), top + line * row + LINE))
    for line, (when, shown) in enumerate((("before", before), ("after", after))):
        said = f"{when}: {shown.clear} of {shown.of} objects clearly wear their own reference's colours"
        pen.text((GAP, top + line * row - 2), said, INK, text)
    return sheet
