"""Work in batches, smaller ones where memory runs out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch

Tick = Callable[[int], None]  # told how many pieces were done since; may raise to stop
OUT_OF_MEMORY = torch.cuda.OutOfMemoryError  # what the host waits for, too

Answer = TypeVar("Answer")


def in_batches(
    run: Callable[[Any], Answer], items: Sequence[Any] | torch.Tensor, size: int, tick: Tick | None = None
) -> list[Answer]:
    """run's answers, one a batch of at most `size` items. From one that does not fit into memory on they are halves."""
    answers, start = [], 0
    while start < len(items):
        batch = items[start : start + size]
        try:
            answers.append(run(batch))
        except OUT_OF_MEMORY:
            if len(batch) == 1:
                raise
            size = len(batch) // 2
        else:
            start += len(batch)
            if tick:
                tick(len(batch))
            continue
        torch.cuda.empty_cache()  # here, where the exception no longer holds what was computed
    return answers
