"""Preparation of batches on the processor, ahead of time and in separate processes where a GPU would wait for it."""

from __future__ import annotations

import itertools
import multiprocessing
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset


class Prefetcher(Dataset):
    """Called like `make(step)`. With workers, the following steps are prepared meanwhile."""

    def __init__(self, make: Callable[[int], Any], workers: int):
        self.make = make
        self.workers = workers if "fork" in multiprocessing.get_all_start_methods() else 0
        self.next, self.made = -1, iter(())  # the step of the workers' next result, and their results

    def __call__(self, step: int) -> Any:
        if not self.workers:
            return self.make(step)
        if step != self.next:
            self.made = self._from(step)
        self.next = step + 1
        return next(self.made)

    def __getitem__(self, step: int) -> Any:
        return self.make(step)

    def _from(self, step: int) -> Iterator[Any]:
        sampler: Any = itertools.count(step)
        return iter(
            DataLoader(
                self, batch_size=None, sampler=sampler, num_workers=self.workers, multiprocessing_context="fork",
                prefetch_factor=8, pin_memory=torch.cuda.is_available(),
            )
        )  # fmt: skip
