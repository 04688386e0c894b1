"""What was worked out from frozen values, remembered while they live."""

from __future__ import annotations

from collections.abc import Callable
from weakref import WeakKeyDictionary

from torch import Tensor


class Memo:
    """Tensors by the identity of the objects that they were made from. It keeps none of these alive, and forgets a
    tensor with the first of them that goes: so it never holds more than what could be asked for again."""

    def __init__(self) -> None:
        self._kept: WeakKeyDictionary = WeakKeyDictionary()

    def __call__(self, make: Callable[[], Tensor], *made_from: object) -> Tensor:
        level = self._kept
        for each in made_from[:-1]:
            level = level.setdefault(each, WeakKeyDictionary())
        if made_from[-1] not in level:
            level[made_from[-1]] = make()
        return level[made_from[-1]]
