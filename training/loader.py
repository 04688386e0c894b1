"""The endless sequence of samples, cut into batches for every process and read by workers."""

from __future__ import annotations

import multiprocessing
import signal
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

from torch.utils.data import DataLoader

from .config import TrainConfig
from .dataset import Sample
from .processes import Processes


class Samples(Protocol):
    """The endless sequence of what the model encodes: a `dataset.SubjectFolder` of `Sample`s, or a drawn world.

    `len(samples)` is an epoch.

    ids: of the usable pictures. A run that is resumed knows by them whether the data is the same; () tells nothing.
    broken: {id: reason} of the pictures that cannot be read.
    total: the number of all pictures, also of those that are broken or left out.
    """

    @property
    def ids(self) -> Sequence[str]: ...

    @property
    def broken(self) -> Mapping[str, str]: ...

    @property
    def total(self) -> int: ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Any: ...


def sample_indices(recipe: TrainConfig, rank: int, count: int, step: int) -> Iterator[list[int]]:
    """The batches of one process from `step` on, as lists of indices.

    A step covers the same indices for any number of processes that share it, as long as batch_size × processes is the
    same.
    """
    batch, everyone = recipe.batch_size, recipe.batch_size * count
    while True:
        for part in range(recipe.accumulate):
            start = (step * recipe.accumulate + part) * everyone + rank * batch
            yield list(range(start, start + batch))
        step += 1


def batches(samples: Samples, recipe: TrainConfig, processes: Processes, step: int) -> Iterator[list[Sample]]:
    """Batches as lists of samples.

    `recipe.workers` processes read ahead where the system can fork. Their number does not change the samples.
    """
    # Spawned workers would import this package by name, and inside ComfyUI it has no importable name.
    workers = recipe.workers if "fork" in multiprocessing.get_all_start_methods() else 0
    loader = DataLoader(
        samples,  # pyright: ignore[reportArgumentType]
        batch_sampler=sample_indices(recipe, processes.rank, processes.count, step),  # pyright: ignore[reportArgumentType]
        num_workers=workers,
        collate_fn=_as_list,
        multiprocessing_context="fork" if workers else None,
        worker_init_fn=_leave_signals,
    )
    return iter(loader)


def _leave_signals(_: int) -> None:
    """Ignore signals that launchers and terminals send to the whole process group.

    The trainer handles them: it writes a checkpoint and ends, and its workers end with it.
    """
    for each in (signal.SIGTERM, signal.SIGINT):
        signal.signal(each, signal.SIG_IGN)


def _as_list(samples: list[Sample]) -> list[Sample]:
    """A batch stays a list, because pictures may have different numbers of objects."""
    return samples
