"""Preparation of batches on the processor, ahead of time and in separate processes where a GPU would wait for it."""

from __future__ import annotations

import itertools
import multiprocessing
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset


class Prefetcher:
    """Called like `make(step)`. With workers, the following steps are prepared meanwhile.

    The workers end with the prefetcher, or with `close`.
    """

    def __init__(self, make: Callable[[int], Any], workers: int):
        self.make = make
        self.workers = workers if "fork" in multiprocessing.get_all_start_methods() else 0
        self.close()

    def __call__(self, step: int) -> Any:
        if not self.workers:
            return self.make(step)
        if step != self.next:
            self.close()
            self.made = self._from(step)
        self.next = step + 1
        return next(self.made)

    def close(self) -> None:
        """Ends the workers."""
        self.next, self.made = -1, iter(())  # the step of the workers' next result, and their results

    def _from(self, step: int) -> Iterator[Any]:
        sampler: Any = itertools.count(step)
        return iter(
            DataLoader(
                _Steps(self.make), batch_size=None, sampler=sampler, num_workers=self.workers,
                multiprocessing_context="fork", prefetch_factor=8, pin_memory=torch.cuda.is_available(),
            )
        )  # fmt: skip


class _Steps(Dataset):
    """What the workers know: not the prefetcher, which holds them, since neither would end before the other."""

    def __init__(self, make: Callable[[int], Any]):
        self.make = make

    def __getitem__(self, step: int) -> Any:
        return self.make(step)
