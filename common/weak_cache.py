"""Results computed from frozen values, kept as long as these live."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any

from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

MAX_NAMES = 32  # kept for the same objects


class WeakCache:
    """Tensors by the identity of the objects that they were made from, and by a name.

    The cache keeps none of these objects alive. A tensor is dropped when the first of its objects goes. For the same
    objects only the last `MAX_NAMES` names are kept.
    """

    def __init__(self) -> None:
        self._tensors: dict[int, Any] = {}  # by the number of objects: those of one are no part of those of two

    def __call__(self, make: Callable[[], Tensor], *made_from: object, name: Hashable = None) -> Tensor:
        """The kept tensor, or the result of `make`, which is then kept."""
        level = self._tensors.setdefault(len(made_from), WeakIdKeyDictionary())
        for each in made_from[:-1]:
            level = level.setdefault(each, WeakIdKeyDictionary())
        named = level.setdefault(made_from[-1], {})
        if name not in named:
            named[name] = make()
            if len(named) > MAX_NAMES:
                del named[next(iter(named))]
        return named[name]
