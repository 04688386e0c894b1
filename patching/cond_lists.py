"""Which of the guider's lists the conds of an evaluation come from, and whether that is conditional."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

from torch import Tensor

Cond = Mapping[str, Any]  # the host's
# In the names that guiders give to their lists of conds: of a prompt that names no object.
UNCONDITIONAL = ("neg", "uncond", "null", "empty", "blank")
POSITIVE = ("positive", "middle")  # whatever their mark: DualCFG marks its second prompt, “middle”, as negative


class CondLists:
    """A guider's lists of conds in one noise prediction.

    lists: by the guider's names.

    conditional: whether a list gets the references' features or those of the unconditional branch, by its name. Empty
        lists are left out.
    """

    def __init__(self, lists: Mapping[Any, Sequence[Cond]]) -> None:
        lists = {name: conds for name, conds in lists.items() if conds}
        self.conditional = {name: is_conditional(name, conds) for name, conds in lists.items()}
        self._first = {conds[0].get("uuid"): name for name, conds in lists.items()}
        self._holders: dict[Hashable, set[Any]] = {}
        for name, conds in lists.items():
            for mark in (mark for cond in conds for mark in _marks(cond)):
                self._holders.setdefault(mark, set()).add(name)
        self._alive = lists  # for the ids in the marks

    def __deepcopy__(self, memo: dict) -> CondLists:
        return self  # see CondEvaluation

    def name_of(self, conds: Sequence[Cond] | None) -> Any:
        """The name of the list that these conds come from, be they all of it or some. None: of none of the guider's."""
        for mark in (mark for cond in conds or () for mark in _marks(cond)):
            if len(names := self._holders.get(mark, ())) == 1:
                return next(iter(names))
        return self._first.get(conds[0].get("uuid")) if conds else None


def _marks(cond: Cond) -> tuple[Hashable, Hashable]:
    """What tells a cond from others, best first.

    Its uuid is not enough: the host appends copies of other lists' conds to cover all areas, with a prompt of their
    new list. Nor is its embedding needed: another pack may change it.
    """
    return (cond.get("uuid"), id(context_of(cond))), cond.get("uuid")


def context_of(cond: Cond) -> Tensor | None:
    """The embedding of a cond, as the model gets it."""
    context: Any = getattr(cond.get("model_conds", {}).get("c_crossattn"), "cond", None)
    return context if isinstance(context, Tensor) and context.ndim == 3 else None


def is_conditional(name: Any, conds: Sequence[Cond]) -> bool:
    """Whether a list of a guider's conds is conditional.

    name: the guider's for the list. Where it says nothing, what the list itself is marked as decides.
    """
    words = str(name).lower()
    if any(word in words for word in UNCONDITIONAL):
        return False
    return words in POSITIVE or marked(conds, True)


def marked(conds: Sequence[Cond] | None, unmarked: bool) -> bool:
    """What the mark that the host reads as the type of a prompt says; `unmarked` if there is none."""
    marks = {mark for cond in conds or () if (mark := cond.get("prompt_type")) is not None}
    return unmarked if not marks else marks != {"negative"}
