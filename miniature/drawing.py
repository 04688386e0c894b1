"""One object of the miniature's world by its names: a reference picture that nobody has to bring along."""

from __future__ import annotations

import torch
from torch import Tensor

from . import world
from .world_looks import COLOURS, PATTERNS, PLAIN, palette
from .world_shapes import KINDS

SIDE = 224  # pixels


def look_of(pattern: str, first: str, second: str) -> tuple[int, int, int]:
    """Numbers of a look; a plain one has its first colour only."""
    names = list(COLOURS)
    if PATTERNS.index(pattern) == PLAIN:
        second = first
    return PATTERNS.index(pattern), names.index(first), names.index(second)


def draw_object(kind: str, pattern: str, first: str, second: str, pose: int, side: int = SIDE) -> Tensor:
    """[1, side, side, 3] in 0..1: the object on white; where it lies, its size and its turn follow from `pose`."""
    looks = torch.tensor(look_of(pattern, first, second)).view(1, 1, 3)
    empty = torch.zeros(1, 1)
    scene = world.Scenes(
        kinds=torch.tensor([[KINDS.index(kind)]]), looks=looks, colours=palette()[looks[..., 1:]],
        centres=empty[..., None], radii=empty, turns=empty, ground=empty, texture=empty,
    )  # fmt: skip
    return world.render(world.references(scene, pose), side).images.movedim(1, -1)
