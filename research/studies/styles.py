"""A style beside the objects: do the objects keep their looks, and what follows the style?

Every prompt names three things. Two of them have references, the third has none. The style's picture shows another
thing, which the prompt does not name, on a tinted ground; no reference has its colours. So three answers can be read
from one picture: whose colours the two objects wear, whether the third thing wears the style's, and how much of the
tint the ground took.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ...attention.ease import EASE_OUT, STEADY
from ...miniature import world
from ...miniature.judge import coloured
from ...miniature.world_shapes import KINDS
from ..ablation.arms import REFERENCE_SIDE, Trials
from ..ablation.table import Ratio, Row
from .comparison import Comparison, added_to

THINGS, OBJECTS = 3, 2  # named by a prompt; of these with a reference
TINTS = (
    (1.0, 0.8, 0.8),
    (0.8, 1.0, 0.8),
    (0.8, 0.8, 1.0),
)  # of the grounds; pale, or the judge would take them for objects
EDGE = 4  # pixels around an object that are no ground: soft edges


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

COMPARISON = Comparison("style", tuple(SETTINGS), added_to(WITHOUT, SETTINGS), MEASURES)
