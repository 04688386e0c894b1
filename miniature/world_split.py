"""What training never sees. The one place that decides it: pairs of kinds, and looks, kept for tests."""

import torch
from torch import Tensor

from .world_looks import PLAIN

PAIRS_OUT_OF = 7  # one pair of kinds in seven
LOOKS_OUT_OF = 5  # one two-coloured look in five


def reserved_pair(first: Tensor, second: Tensor) -> Tensor:
    """Whether two kinds together in one scene are for tests only; symmetric. Bool, of the broadcast shape."""
    return ((first + second) % PAIRS_OUT_OF == 3) & (first != second)


def reserved_look(pattern: Tensor, first: Tensor, second: Tensor) -> Tensor:
    """Whether a look is for tests only. One-coloured looks never are: they are a colour's only plain sight."""
    return ((2 * pattern + 3 * first + second) % LOOKS_OUT_OF == 1) & (pattern != PLAIN)


def has_reserved_pair(kinds: Tensor) -> Tensor:
    """[B] bool for scenes of kinds [B, M], -1 for no object."""
    a, b = kinds[:, :, None], kinds[:, None, :]
    present = (a >= 0) & (b >= 0)
    return (reserved_pair(a, b) & present).flatten(1).any(1)


def all_pairs(kinds: int, reserved: bool) -> list[tuple[int, int]]:
    """Every pair of kinds of one side of the split."""
    pairs = [(i, j) for i in range(kinds) for j in range(i + 1, kinds)]
    return [p for p in pairs if bool(reserved_pair(torch.tensor(p[0]), torch.tensor(p[1]))) == reserved]
