"""The demo's sheet: references, prompt, pictures with uniform and with relevance merge, maps, and judged objects."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from ..miniature.drawing import draw_object, look_of
from ..miniature.judgement import score
from ..miniature.world_looks import palette
from ..miniature.world_shapes import KINDS

SIDE, GAP, LEFT, LINE = 192, 12, 236, 24
INK, GREY, GOOD, BAD = (25, 25, 25), (110, 110, 110), (0, 120, 80), (200, 60, 0)


class Object(NamedTuple):
    """The object that one reference shows."""

    kind: str
    picture: Tensor  # [1, S, S, 3] in 0..1
    look: tuple[int, int, int]


class Verdict(NamedTuple):
    """The judge's result for one picture.

    words: for each object its result in words, and whether it is good.
    own: how many objects wear their own reference's colours.
    """

    words: tuple[tuple[str, bool], ...]
    own: int


def objects_of(workflow: dict[str, Any]) -> list[Object]:
    """The objects that a workflow in API format draws as references, in the order of its nodes."""
    drawn = [node["inputs"] for node in workflow.values() if node["class_type"] == "MIPMiniatureObject"]
    return [
        Object(
            each["kind"],
            draw_object(each["kind"], each["pattern"], each["colour"], each["second_colour"], each["pose"]),
            look_of(each["pattern"], each["colour"], each["second_colour"]),
        )
        for each in drawn
    ]


def judged(picture: Image.Image, objects: Sequence[Object]) -> Verdict:
    pixels = torch.from_numpy(np.asarray(picture.convert("RGB")).copy()).movedim(-1, 0).float() / 255
    looks = torch.tensor([each.look for each in objects])
    found = score(pixels, [KINDS.index(each.kind) for each in objects], looks, palette()[looks[:, 1:]])
    words = []
    for each, clear, confused in zip(objects, found["clear"], found["confused"], strict=True):
        wrong = "another's colours" if confused else "mixed colours"
        what = {True: "its own colours", None: "missing"}.get(clear, wrong)
        words.append((f"{each.kind}: {what}", bool(clear)))
    return Verdict(tuple(words), sum(bool(clear) for clear in found["clear"]))


def draw_sheet(
    prompt: str, objects: Sequence[Object], rows: Sequence[tuple[str, str, Sequence[Image.Image]]],
    maps: Sequence[Image.Image],
) -> tuple[Image.Image, dict[str, tuple[int, int]]]:  # fmt: skip
    """The sheet, and for each row how many objects wear their own looks, out of how many.

    rows: (name, what it does, its pictures).
    maps: relevance maps over the last row's pictures, with their legends.
    """
    columns = max(len(pictures) for _, _, pictures in rows)
    block = SIDE + (len(objects) + 1) * LINE + GAP
    tall = max((each.height * SIDE // each.width for each in maps), default=0)
    width = LEFT + columns * (SIDE + GAP) + GAP
    sheet = Image.new("RGB", (width, 84 + len(rows) * (block + LINE) + (tall + 2 * LINE if maps else 0) + GAP), "white")
    pen, counts = ImageDraw.Draw(sheet), {}
    text, bold, small = ImageFont.load_default(15), ImageFont.load_default(24), ImageFont.load_default(14)
    pen.text((GAP, 14), f"“{prompt}”: who gets whose looks?", INK, bold)
    pen.text((GAP, 48), "The prompt names no colours. They can come from the two references alone.", GREY, text)
    _references(sheet, pen, objects, text)
    y = 84
    for name, what, pictures in rows:
        verdicts = [judged(picture, objects) for picture in pictures]
        own, of = sum(each.own for each in verdicts), len(objects) * len(pictures)
        counts[name] = own, of
        pen.text((LEFT, y), f"{name}: {own} of {of} objects wear their own colours", INK, ImageFont.load_default(18))
        pen.text((LEFT, y + LINE), what, GREY, small)
        top = y + 2 * LINE
        for i, (picture, verdict) in enumerate(zip(pictures, verdicts, strict=True)):
            x = LEFT + i * (SIDE + GAP)
            sheet.paste(picture.convert("RGB").resize((SIDE, SIDE), Image.Resampling.LANCZOS), (x, top))
            for line, (words, good) in enumerate(verdict.words):
                place = x, top + SIDE + 3 + line * (LINE - 5)
                _mark(pen, place, good)
                pen.text((place[0] + 18, place[1]), words, GOOD if good else BAD, small)
        y += block + LINE
    if maps:
        pen.text((LEFT, y), "Why: where each word points while the last row is made", INK, ImageFont.load_default(18))
        for i, overlay in enumerate(maps):
            small_one = overlay.convert("RGB").resize((SIDE, overlay.height * SIDE // overlay.width))
            sheet.paste(small_one, (LEFT + i * (SIDE + GAP), y + LINE + 4))
    return sheet, counts


def _references(sheet: Image.Image, pen: ImageDraw.ImageDraw, objects: Sequence[Object], font: Any) -> None:
    side, y = LEFT - 5 * GAP, 84 + 2 * LINE
    for each in objects:
        pen.text((GAP, y - LINE), f"the {each.kind}'s reference", INK, font)
        pixels = (each.picture[0].numpy() * 255).round().astype(np.uint8)
        sheet.paste(Image.fromarray(pixels).resize((side, side), Image.Resampling.LANCZOS), (GAP, y))
        pen.rectangle((GAP, y, GAP + side - 1, y + side - 1), outline=(190, 190, 190))
        y += side + 2 * LINE


def _mark(pen: ImageDraw.ImageDraw, at: tuple[int, int], good: bool) -> None:
    """A tick or a cross of 12 pixels, drawn because the font has neither."""
    x, y = at[0] + 1, at[1] + 3
    if good:
        pen.line([(x, y + 6), (x + 4, y + 10), (x + 12, y)], GOOD, 3)
    else:
        pen.line([(x, y), (x + 11, y + 11)], BAD, 3)
        pen.line([(x, y + 11), (x + 11, y)], BAD, 3)
