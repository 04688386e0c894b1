"""A command in a process of its own, which starts at once since everything is imported; and four of them together."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import torch

CONTEXT: Any = multiprocessing.get_context("fork" if hasattr(os, "fork") else None)


@contextmanager
def forked(act: Callable[[], Any], said: Path | str = os.devnull) -> Iterator[Any]:
    """A process that runs a command; its exit status is what the command returns. said: the file for what it prints."""

    def run() -> None:
        torch.set_num_threads(1)  # other threads do not survive a fork
        with open(said, "w", encoding="utf-8") as output, redirect_stdout(output), redirect_stderr(output):
            status = act() or 0
        os._exit(status)

    process = CONTEXT.Process(target=run)
    process.start()
    try:
        yield process
    finally:
        process.kill()
        process.join()


def four(act: Callable[[], int], said: Path) -> list[int]:
    """The exit status of four processes at the same time; what they print goes into files 0, 1, 2, 3."""
    gate = CONTEXT.Barrier(4)

    def run() -> int:
        gate.wait()
        return act()

    with ExitStack() as stack:
        processes = [stack.enter_context(forked(run, said / str(number))) for number in range(4)]
        for each in processes:
            each.join()
        return [each.exitcode for each in processes]
