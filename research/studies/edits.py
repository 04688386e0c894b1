"""References in an edit model's own sequence: does the bias bind more?

Pictures of two objects, each with a reference, by the stand-in for edit models (research/miniature/stages/edit.py). Of
the same prompts and seeds, they are drawn without the bias and with it, and judged by their pixels.
"""

from __future__ import annotations

from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor

from ...miniature import world
from ..ablation.table import MEASURES
from ..miniature.stages.edit import REFERENCE_SIDE
from .comparison import Comparison, added_to

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
COMPARISON = Comparison(
    "setting", tuple(SETTINGS), added_to(WITHOUT, SETTINGS), {name: MEASURES[name] for name in SHOWN}
)


def shown(references: Tensor) -> Tensor:
    """Reference pictures [M, 3, S, S] in the stand-in's size."""
    return F.interpolate(references, (REFERENCE_SIDE, REFERENCE_SIDE), mode="area")


def enlarged(pictures: Tensor) -> Tensor:
    """The stand-in's pictures [B, 3, s, s] in the judge's size; of drawn scenes it then still finds most objects."""
    return F.interpolate(pictures, (world.SIZE, world.SIZE), mode="bicubic").clamp(0, 1)
