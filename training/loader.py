"""The row of samples, cut into batches and shared out to processes and workers."""

from __future__ import annotations

import multiprocessing
import signal
from collections.abc import Iterator
from typing import Any

from torch.utils.data import DataLoader

from .config import TrainConfig
from .dataset import Sample
from .processes import Processes


def positions(recipe: TrainConfig, rank: int, count: int, step: int) -> Iterator[list[int]]:
    """The batches of one process from `step` on. A step sees the same positions however many processes share it."""
    own, everyone = recipe.batch_size, recipe.batch_size * count
    while True:
        for part in range(recipe.accumulate):
            start = (step * recipe.accumulate + part) * everyone + rank * own
            yield list(range(start, start + own))
        step += 1


def batches(samples: Any, recipe: TrainConfig, processes: Processes, step: int) -> Iterator[list[Sample]]:
    """Lists of samples, read ahead by `recipe.workers` processes where the system can fork; their number changes
    nothing about the samples."""
    # Spawned workers would have to import this package by a name that it does not have inside a host.
    workers = recipe.workers if "fork" in multiprocessing.get_all_start_methods() else 0
    loader = DataLoader(
        samples,
        batch_sampler=positions(recipe, processes.rank, processes.count, step),  # pyright: ignore[reportArgumentType]
        num_workers=workers,
        collate_fn=_as_list,
        multiprocessing_context="fork" if workers else None,
        worker_init_fn=_leave_signals,
    )
    return iter(loader)


def _leave_signals(_: int) -> None:
    """Launchers and terminals signal the whole group: it is the trainer who then ends, after a checkpoint, and with it
    its workers."""
    for each in (signal.SIGTERM, signal.SIGINT):
        signal.signal(each, signal.SIG_IGN)


def _as_list(samples: list[Sample]) -> list[Sample]:
    """Batches stay lists: pictures may have different numbers of objects."""
    return samples
