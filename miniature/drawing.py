"""Draws one object of the miniature's world by the names of its kind and look, as a reference picture."""

from __future__ import annotations

import torch
from torch import Tensor

from ..common.crops import CROP_SIDE
from . import world
from .world_looks import COLOURS, PATTERNS, PLAIN, palette
from .world_shapes import KINDS


def look_of(pattern: str, first: str, second: str) -> tuple[int, int, int]:
    """A look's names as numbers: pattern, first and second colour. In a plain look both colours are the first."""
    names = list(COLOURS)
    if PATTERNS.index(pattern) == PLAIN:
        second = first
    return PATTERNS.index(pattern), names.index(first), names.index(second)


def draw_object(kind: str, pattern: str, first: str, second: str, pose: int, side: int = CROP_SIDE) -> Tensor:
    """The object on white, [1, side, side, 3] in 0..1.

    kind, pattern, first, second: names; first and second are colours.
    pose: the seed of its position, size and turn.
    """
    looks = torch.tensor(look_of(pattern, first, second)).view(1, 1, 3)
    empty = torch.zeros(1, 1)
    scene = world.Scenes(
        kinds=torch.tensor([[KINDS.index(kind)]]), looks=looks, colours=palette()[looks[..., 1:]],
        centres=empty[..., None], radii=empty, turns=empty, ground=empty, texture=empty,
    )  # fmt: skip
    return world.render(world.references(scene, pose), side).images.movedim(1, -1)
