"""The object relevance score as a picture: without noise, with noise, and the difference between the two."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image, ImageChops, ImageFilter
from torch import Tensor

from ...common.crops import as_bytes
from ...common.drawing import SOFT, Canvas, cividis, drawable
from ...common.tables import number
from .score import Change, ObjectRelevance, difference
from .target import Target

SMALL, LARGE = 288, 640  # limits of a panel's longer side in pixels; panels are enlarged by integer factors
GAP, TITLE, LEGEND = 10, 28, 58  # pixels between panels, above them, below them
PEAK = 0.995  # the colour scale ends at this quantile of all differences
COLOURS = np.array([cividis(i / 255) for i in range(256)], np.uint8)


def draw_comparison(clean: Tensor, noised: Tensor, target: Target, scored: ObjectRelevance) -> Tensor:
    """A sheet for each picture, [B, H', W', 3] in 0..1. All share one colour scale.

    clean, noised [B, H, W, C]: the pictures without and with noise that were scored, in 0..1.
    """
    changed = difference(clean, noised)
    top = max(float(torch.quantile(changed.flatten()[:: max(1, changed.numel() // 1_000_000)], PEAK)), 1e-3)
    rows = zip(clean, noised, changed, target.regions.cpu().expand(len(changed), -1, -1), scored.pictures, strict=True)
    return torch.stack([_sheet(*row, target.name, top) for row in rows])


def _sheet(
    clean: Tensor, noised: Tensor, changed: Tensor, region: Tensor, change: Change, name: str, top: float
) -> Tensor:
    heat = COLOURS[(changed / top * 255).clamp(0, 255).round().to(torch.uint8).numpy()]
    width, height = _panel_size(*changed.shape)
    outline = Image.fromarray(as_bytes(region)).resize((width, height), Image.Resampling.BILINEAR)
    sheet = Canvas(3 * width + 4 * GAP, height + TITLE + LEGEND)
    panels = (
        ("without noise", as_bytes(clean[..., :3].expand(-1, -1, 3))),
        ("with noise", as_bytes(noised[..., :3].expand(-1, -1, 3))),
        ("difference", heat),
    )
    for i, (title, pixels) in enumerate(panels):
        left = GAP + i * (width + GAP)
        sheet.words((left, 6), title, 15, SOFT, width=width)
        sheet.paste((left, TITLE), _outlined(_resized(pixels, width, height), outline))
    below = TITLE + height + 8
    result = "not scored" if change.ratio is None else f"ratio {number(change.ratio, 2)}"
    sheet.words((GAP, below), f"{drawable([name])[0]}: {result}", 18, width=2 * width)
    said = (
        change.why or f"mean change inside the outline {number(change.inside, 4)}, outside {number(change.outside, 4)}"
    )
    sheet.words((GAP, below + 24), said, 14, SOFT, width=2 * width)
    left = GAP + 2 * (width + GAP)
    bar = Image.fromarray(np.repeat(COLOURS[None], 12, 0)).resize((width, 12), Image.Resampling.BILINEAR)
    sheet.paste((left, below + 4), bar)
    sheet.words((left, below + 20), "0", 14, SOFT)
    end = f"{number(top, 3)} of full brightness"
    sheet.words((left + width - sheet.pen.textlength(end, font_size=14), below + 20), end, 14, SOFT)
    return torch.from_numpy(np.asarray(sheet.image).copy()).float() / 255


def _panel_size(height: int, width: int) -> tuple[int, int]:
    longer = max(height, width)
    scale = -(-SMALL // longer) if longer < SMALL else min(1.0, LARGE / longer)
    return max(1, round(width * scale)), max(1, round(height * scale))


def _resized(pixels: np.ndarray, width: int, height: int) -> Image.Image:
    picture = Image.fromarray(pixels)
    larger = width > picture.width  # enlarged by an integer factor, so that pixels stay sharp
    return picture.resize((width, height), Image.Resampling.NEAREST if larger else Image.Resampling.LANCZOS)


def _outlined(picture: Image.Image, region: Image.Image) -> Image.Image:
    """The picture with the region's edge in white, and black beside it so that it shows on light backgrounds.

    region: a picture of mode L; values above half are inside.
    """
    margin = 4  # so that a region that touches the picture's edge has an outline there
    mask = Image.new("L", (region.width + 2 * margin, region.height + 2 * margin))
    mask.paste(Image.fromarray((np.asarray(region) > 127).astype(np.uint8) * 255), (margin, margin))
    window = (margin, margin, margin + region.width, margin + region.height)
    outer, inner, core = (
        mask.filter(each) for each in (ImageFilter.MaxFilter(3), ImageFilter.MinFilter(5), ImageFilter.MinFilter(7))
    )
    picture.paste("black", mask=ImageChops.subtract(outer, core).crop(window))
    picture.paste("white", mask=ImageChops.subtract(mask, inner).crop(window))
    return picture
