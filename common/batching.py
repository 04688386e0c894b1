"""Work in batches that shrink when memory runs out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch

Tick = Callable[[int], None]  # called with the number of items just done; may raise to stop
OUT_OF_MEMORY = torch.cuda.OutOfMemoryError  # the same exception that the host catches

Result = TypeVar("Result")
# What torch says in a RuntimeError when the processor's own memory does not suffice.
_NO_MEMORY = ("can't allocate memory", "not enough memory", "Storage size calculation overflowed")


def memory_ran_out(error: BaseException) -> bool:
    """Whether an error says that memory ran out, the machine's or a GPU's."""
    if isinstance(error, RuntimeError):
        return isinstance(error, OUT_OF_MEMORY) or any(each in str(error) for each in _NO_MEMORY)
    return isinstance(error, MemoryError)


def in_batches(
    run: Callable[[Any], Result], items: Sequence[Any] | torch.Tensor, size: int, tick: Tick | None = None
) -> list[Result]:
    """The results of `run`, one per batch of at most `size` items.

    When a batch does not fit into memory, the batch size is halved from there on. Raises the error for a single item.
    tick: called after each batch with its number of items.
    """
    results, start = [], 0
    while start < len(items):
        batch = items[start : start + size]
        try:
            results.append(run(batch))
        except OUT_OF_MEMORY:
            if len(batch) == 1:
                raise
            size = len(batch) // 2
        else:
            start += len(batch)
            if tick:
                tick(len(batch))
            continue
        torch.cuda.empty_cache()  # only here: inside `except` the exception still holds the tensors
    return results
