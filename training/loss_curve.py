"""The loss curve of a run, as a table and as a picture.

Pillow draws the picture, which every ComfyUI has. It is fast enough to be shown during training.
"""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from ..common.atomic_io import atomic_write
from .config import TrainConfig

SIZE = (768, 480)
LEFT, RIGHT, TOP, BOTTOM = 76, 16, 40, 36  # margins in pixels, for the labels
TICKS = 5
WINDOW = 50  # steps of a running mean


def loss_picture(losses: Sequence[float], steps: int, title: str = "") -> Image.Image:
    """The loss of every step in grey, its running mean in blue. The x axis ends at `steps`."""
    picture = Image.new("RGB", SIZE, "white")
    draw = ImageDraw.Draw(picture)
    font = ImageFont.load_default(14)
    draw.text((LEFT, 10), title or f"loss, {len(losses)} of {steps} steps", fill="black", font=font)
    smooth = running_mean(losses)
    low, high = _range(losses)

    def at(step: float, loss: float) -> tuple[float, float]:
        x = LEFT + (SIZE[0] - LEFT - RIGHT) * step / max(steps, 1)
        return x, SIZE[1] - BOTTOM - (SIZE[1] - TOP - BOTTOM) * (min(max(loss, low), high) - low) / (high - low)

    for i in range(TICKS):
        value, step = low + (high - low) * i / (TICKS - 1), steps * i / (TICKS - 1)
        (_, y), (x, floor) = at(0, value), at(step, low)
        draw.line((LEFT, y, SIZE[0] - RIGHT, y), fill="#e9ecef")
        draw.text((LEFT - 8, y), f"{value:.4g}", fill="#495057", font=font, anchor="rm")
        draw.text((x, floor + 8), f"{step:g}", fill="#495057", font=font, anchor="mt" if 0 < i < TICKS - 1 else "rt")
    for values, color, width in ((losses, "#ced4da", 1), (smooth, "#1c7ed6", 3)):
        points = [at(step, value) for step, value in _thinned(values)]
        if len(points) == 1:
            x, y = points[0]
            draw.ellipse((x - width, y - width, x + width, y + width), fill=color)
        draw.line(points, fill=color, width=width)
    if losses:
        draw.text((SIZE[0] - RIGHT, 10), f"mean {smooth[-1]:.4f}", fill="#1c7ed6", font=font, anchor="ra")
    return picture


def running_mean(losses: Sequence[float], window: int = WINDOW) -> list[float]:
    """The mean over the last `window` steps, or over all steps so far at the beginning."""
    means, total = [], 0.0
    for i, loss in enumerate(losses):
        total += loss - (losses[i - window] if i >= window else 0.0)
        means.append(total / min(i + 1, window))
    return means


def _range(losses: Sequence[float]) -> tuple[float, float]:
    """The range of the y axis. It ends at the 99th percentile, so that one bad step does not flatten the curve."""
    order = sorted(losses) or [0.0]
    low, high = order[0], order[math.ceil(0.99 * (len(order) - 1))]
    if high == low:
        low, high = low - 0.1 * (abs(low) or 1.0), high + 0.1 * (abs(high) or 1.0)
    return low, high


def _thinned(values: Sequence[float]) -> list[tuple[int, float]]:
    """(step, value) pairs, at most about two per pixel."""
    every = max(1, len(values) // (2 * SIZE[0]))
    return [(i + 1, values[i]) for i in range(len(values)) if i % every == 0 or i == len(values) - 1]


def write_curve(folder: Path, losses: Sequence[float], recipe: TrainConfig) -> None:
    """Write `loss.csv` and `loss.png`, each atomically."""
    rows = [f"{step},{loss!r}" for step, loss in enumerate(losses, 1)]
    atomic_write(folder / "loss.csv", "\n".join(["step,loss", *rows, ""]))
    picture = io.BytesIO()
    loss_picture(losses, recipe.steps).save(picture, "PNG")
    atomic_write(folder / "loss.png", picture.getvalue())
