"""A style beside the objects: do the objects keep their looks, and what follows the style?

Every prompt names three things. Two of them have references, the third has none. The style's picture shows another
thing, which the prompt does not name, on a tinted ground; no reference has its colours. So three answers can be read
from one picture: whose colours the two objects wear, whether the third thing wears the style's, and how much of the
tint the ground took.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ...attention.ease import EASE_OUT, STEADY
from ...common.tables import NOTHING, number, table
from ...miniature import world
from ...miniature.judge import coloured
from ...miniature.world_shapes import KINDS
from ..ablation.arms import REFERENCE_SIDE, Trials
from ..ablation.table import Ratio, Row

THINGS, OBJECTS = 3, 2  # named by a prompt; of these with a reference
TINTS = (
    (1.0, 0.8, 0.8),
    (0.8, 1.0, 0.8),
    (0.8, 0.8, 1.0),
)  # of the grounds; pale, or the judge would take them for objects
EDGE = 4  # pixels around an object that are no ground: soft edges
RESAMPLES = 4000


class Setting(NamedTuple):
    """How the style acts. weight: 0 is without it. over_time: one of `EASES`."""

    weight: float
    over_time: str = STEADY


WITHOUT = "no style"
SETTINGS = {
    WITHOUT: Setting(0.0),
    "weight 0.3": Setting(0.3),
    "weight 0.6": Setting(0.6),
    "weight 0.6, ease out": Setting(0.6, EASE_OUT),
}


def tint_of(trial: int) -> Tensor:
    """The ground of a prompt's style picture, [3]."""
    return torch.tensor(TINTS[trial % len(TINTS)])


def style_pictures(trials: Trials) -> Tensor:
    """The style's picture of every prompt, [N, S, S, 3]: the look of the third thing at a thing that is not named."""
    count, scenes = len(trials), trials.scenes
    others = [next(kind for kind in range(len(KINDS)) if kind not in scenes.present(i)) for i in range(count)]
    shown = world.references(scenes, count).rows(torch.arange(count) * world.OBJECTS + OBJECTS)
    grounds = torch.stack([tint_of(i) for i in range(count)])
    shown = replace(shown, kinds=torch.tensor(others)[:, None], ground=grounds)
    return world.render(shown, REFERENCE_SIDE).images.movedim(1, -1)


def tint_taken(image: Tensor, tint: Tensor) -> float | None:
    """How much of a tint the ground of a picture [3, S, S] has: 1 all of it, 0 as much as grey; None without ground."""
    near = F.max_pool2d(coloured(image).float()[None, None], 2 * EDGE + 1, 1, EDGE)[0, 0]
    ground = image[:, near == 0]
    if not ground.numel():
        return None
    pull = tint - tint.mean()
    return float(ground.mean(1) @ pull / (pull @ pull))


def _of_objects(name: str) -> Callable[[Row], Ratio]:
    return lambda row: (sum(map(bool, row[name][:OBJECTS])), OBJECTS)


def _tint(row: Row) -> Ratio:
    return (0.0, 0.0) if row["tint"] is None else (row["tint"], 1.0)


MEASURES: dict[str, Callable[[Row], Ratio]] = {
    "objects bound": _of_objects("own"),
    "objects clear": _of_objects("clear"),
    "objects present": _of_objects("present"),
    "third thing like the style": lambda row: (bool(row["own"][OBJECTS]), 1),
    "third thing clearly": lambda row: (bool(row["clear"][OBJECTS]), 1),
    "tint of the ground": _tint,
}


def summarise(rows: Iterable[Row]) -> list[dict[str, Any]]:
    """A line for each setting, then one for what each style adds to none, in percent and points.

    Every measure is (value, low, high), with a 95 % bootstrap interval over prompts. All settings have the same draws,
    so that the differences are paired. The prompts are those that all settings have.
    """
    cells: dict[str, dict[int, Row]] = {name: {} for name in SETTINGS}
    for row in rows:
        name, trial = row["key"]
        cells[name][trial] = row
    prompts = sorted(set.intersection(*(set(each) for each in cells.values())))
    often = np.random.default_rng(0).multinomial(len(prompts), np.full(len(prompts), 1 / len(prompts)), RESAMPLES)
    often = np.concatenate([np.ones((1, len(prompts))), often])
    drawn = {name: _percents([cells[name][i] for i in prompts], often) for name in SETTINGS}
    added = {
        f"{name} adds": {measure: each[measure] - drawn[WITHOUT][measure] for measure in each}
        for name, each in drawn.items()
        if name != WITHOUT
    }
    return [_line(name, len(prompts), each) for name, each in (drawn | added).items()]


def _percents(rows: Sequence[Row], often: np.ndarray) -> dict[str, np.ndarray]:
    """[1 + RESAMPLES] of each measure, first of every prompt once."""
    found = {}
    for name, ratio in MEASURES.items():
        top, bottom = (often @ np.array([ratio(row) for row in rows], float)).T
        found[name] = 100 * top / np.where(bottom > 0, bottom, np.nan)
    return found


def _line(name: str, prompts: int, drawn: Mapping[str, np.ndarray]) -> dict[str, Any]:
    line: dict[str, Any] = {"style": name, "prompts": prompts}
    for measure, each in drawn.items():
        line[measure] = None
        if not np.isnan(each[0]):
            low, high = np.nanpercentile(each[1:], (2.5, 97.5))
            line[measure] = float(each[0]), float(low), float(high)
    return line


def markdown(lines: Sequence[Mapping[str, Any]]) -> str:
    """The summary as a table."""

    def cell(value: Any, sign: bool) -> str:
        if value is None:
            return NOTHING
        middle, low, high = (number(each, 1, sign) for each in value)
        return f"{middle} [{low}, {high}]"

    rows = [
        [line["style"], str(line["prompts"]), *(cell(line[name], "adds" in line["style"]) for name in MEASURES)]
        for line in lines
    ]
    return table(["style", "prompts", *(f"{name} %" for name in MEASURES)], rows)
