"""The pairs of kinds and the looks that are reserved for tests. Training never sees them."""

import torch
from torch import Tensor

from .world_looks import PLAIN

PAIRS_OUT_OF = 7  # one pair of kinds in seven
LOOKS_OUT_OF = 5  # one two-coloured look in five


def reserved_pair(first: Tensor, second: Tensor) -> Tensor:
    """Whether two kinds in one scene are for tests only: bool, of the broadcast shape. The order does not matter."""
    return ((first + second) % PAIRS_OUT_OF == 3) & (first != second)


def reserved_look(pattern: Tensor, first: Tensor, second: Tensor) -> Tensor:
    """Whether a look is for tests only. Plain looks never are, because only they show a colour alone."""
    return ((2 * pattern + 3 * first + second) % LOOKS_OUT_OF == 1) & (pattern != PLAIN)


def has_reserved_pair(kinds: Tensor) -> Tensor:
    """Whether each scene holds a reserved pair, [B] bool. kinds [B, M]: -1 for no object."""
    a, b = kinds[:, :, None], kinds[:, None, :]
    present = (a >= 0) & (b >= 0)
    return (reserved_pair(a, b) & present).flatten(1).any(1)


def all_pairs(kinds: int, reserved: bool) -> list[tuple[int, int]]:
    """Every pair of kinds on one side of the split. kinds: how many there are."""
    pairs = [(i, j) for i in range(kinds) for j in range(i + 1, kinds)]
    return [p for p in pairs if bool(reserved_pair(torch.tensor(p[0]), torch.tensor(p[1]))) == reserved]
