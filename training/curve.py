"""The loss curve in a run's folder: a table and a picture."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

from ..common.atomic_io import write_whole
from .config import Recipe
from .curve_picture import loss_picture


def write_curve(folder: Path, losses: Sequence[float], recipe: Recipe) -> None:
    """`loss.csv` and `loss.png`, each replaced in one step."""
    rows = [f"{step},{loss!r}" for step, loss in enumerate(losses, 1)]
    write_whole(folder / "loss.csv", "\n".join(["step,loss", *rows, ""]))
    picture = io.BytesIO()
    loss_picture(losses, recipe.steps).save(picture, "PNG")
    write_whole(folder / "loss.png", picture.getvalue())
