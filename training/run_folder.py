"""Which folder a training in the graph keeps its checkpoints in: the same settings find the same folder again."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from ..common.hashing import digest
from .config import RESUMABLE, Recipe


def run_folder(base: Path, recipe: Recipe, *parts: Any) -> Path:
    """base / name-digest, for a recipe and whatever else decides about the result.

    The number of steps is no part of it, so that a finished training can go on for more of them. Where it went beyond
    `recipe.steps` already, the folder is one for just this number of steps.
    """
    shaping = {key: value for key, value in recipe.as_dict().items() if key not in RESUMABLE}
    folder = base / f"{recipe.train}-{digest(json.dumps(shaping, sort_keys=True), parts)[:12]}"
    return folder if reached(folder) <= recipe.steps else base / f"{folder.name}-{recipe.steps}"


def reached(folder: Path) -> int:
    """The step of the newest checkpoint, 0 without any."""
    names = (re.fullmatch(r"step-(\d+)\.pt", path.name) for path in (folder / "checkpoints").glob("step-*.pt"))
    return max((int(name[1]) for name in names if name), default=0)


def earlier_losses(folder: Path, steps: int) -> list[float]:
    """The losses of the first `steps` steps of a run that left its checkpoint there."""
    try:
        lines = (folder / "loss.csv").read_text("utf-8").splitlines()[1 : steps + 1]
        return [float(line.split(",")[1]) for line in lines]
    except (OSError, ValueError, IndexError):
        return []  # for the picture only
