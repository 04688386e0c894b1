"""References in an edit model's own sequence: does the bias bind more?

Pictures of two objects, each with a reference, by the stand-in for edit models (research/miniature/stages/edit.py). Of
the same prompts and seeds, they are drawn without the bias and with it, and judged by their pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch.nn.functional as F
from torch import Tensor

from ...common.tables import NOTHING, number, table
from ...miniature import world
from ..ablation.table import MEASURES, Ratio, Row
from ..miniature.stages.edit import REFERENCE_SIDE

RESAMPLES = 4000
SHOWN = ("bound", "binding", "clear", "confused", "present", "all present")  # of the ablation's measures


class Setting(NamedTuple):
    """What MIP Edit References is given. strength 0: it does nothing."""

    strength: float
    apart: bool = True


WITHOUT = "strength 0"
SETTINGS = {
    WITHOUT: Setting(0.0),
    "strength 1": Setting(1.0),
    "strength 2": Setting(2.0),
    "strength 1, not apart": Setting(1.0, apart=False),
}


def shown(references: Tensor) -> Tensor:
    """Reference pictures [M, 3, S, S] in the stand-in's size."""
    return F.interpolate(references, (REFERENCE_SIDE, REFERENCE_SIDE), mode="area")


def enlarged(pictures: Tensor) -> Tensor:
    """The stand-in's pictures [B, 3, s, s] in the judge's size; of drawn scenes it then still finds most objects."""
    return F.interpolate(pictures, (world.SIZE, world.SIZE), mode="bicubic").clamp(0, 1)


def summarise(rows: Iterable[Row]) -> list[dict[str, Any]]:
    """A line for each setting, then one for what each adds to none, in percent and points.

    Every measure is (value, low, high) with a 95 % bootstrap interval over prompts; a prompt is drawn with all its
    seeds. All settings have the same draws, so that differences are paired.
    """
    cells: dict[str, dict[int, list[Row]]] = {name: {} for name in SETTINGS}
    for row in rows:
        name, trial, _ = row["key"]
        cells[name].setdefault(trial, []).append(row)
    prompts = sorted(set.intersection(*(set(each) for each in cells.values())))
    often = np.random.default_rng(0).multinomial(len(prompts), np.full(len(prompts), 1 / len(prompts)), RESAMPLES)
    often = np.concatenate([np.ones((1, len(prompts))), often])
    drawn = {
        name: {each: _percents([of[i] for i in prompts], MEASURES[each], often) for each in SHOWN}
        for name, of in cells.items()
    }
    added = {
        f"{name} adds": {each: values - drawn[WITHOUT][each] for each, values in of.items()}
        for name, of in drawn.items()
        if name != WITHOUT
    }
    return [
        {"setting": name, "prompts": len(prompts), **{each: _interval(values) for each, values in of.items()}}
        for name, of in (drawn | added).items()
    ]


def _percents(by_prompt: Sequence[Sequence[Row]], ratio: Callable[[Row], Ratio], often: np.ndarray) -> np.ndarray:
    """[1 + RESAMPLES], first of every prompt once."""
    counted = np.array([np.sum([ratio(row) for row in rows], 0) for rows in by_prompt], float)
    top, bottom = (often @ counted).T
    return 100 * top / np.where(bottom > 0, bottom, np.nan)


def _interval(values: np.ndarray) -> tuple[float, float, float] | None:
    if np.isnan(values[0]):
        return None
    low, high = np.nanpercentile(values[1:], (2.5, 97.5))
    return float(values[0]), float(low), float(high)


def markdown(lines: Sequence[Mapping[str, Any]]) -> str:
    """The summary as a table."""

    def cell(value: Any, sign: bool) -> str:
        if value is None:
            return NOTHING
        middle, low, high = (number(each, 1, sign) for each in value)
        return f"{middle} [{low}, {high}]"

    rows = [
        [line["setting"], str(line["prompts"]), *(cell(line[each], "adds" in line["setting"]) for each in SHOWN)]
        for line in lines
    ]
    return table(["setting", "prompts", *(f"{each} %" for each in SHOWN)], rows)
