"""What was worked out from frozen values, remembered while they live."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any

from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

MOST = 32  # names beside the same objects


class WeakCache:
    """Tensors by the identity of the objects that they were made from, and by a name beside these. It keeps none of the
    objects alive, and forgets a tensor with the first of them that goes; of names it keeps the last few made."""

    def __init__(self) -> None:
        self._kept: Any = WeakIdKeyDictionary()

    def __call__(self, make: Callable[[], Tensor], *made_from: object, name: Hashable = None) -> Tensor:
        level = self._kept
        for each in made_from[:-1]:
            level = level.setdefault(each, WeakIdKeyDictionary())
        named = level.setdefault(made_from[-1], {})
        if name not in named:
            named[name] = make()
            if len(named) > MOST:
                del named[next(iter(named))]
        return named[name]
