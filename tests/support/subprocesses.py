"""Processes that tests start. None outlives its test, whatever fails."""

from __future__ import annotations

import os
import signal
import subprocess
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil

# An environment variable. All descendants inherit it, also those that left the process group or lost their parent.
MARK = "MIP_ADAPTER_TEST_PROCESS"


@contextmanager
def started(line: Sequence[str | Path], *, env: Mapping[str, str] | None = None, **options: Any) -> Iterator[Any]:
    """A `Popen` in a session of its own. Leaving the block kills it and all processes that it started.

    env: environment variables; None for the current ones.
    options: passed to `Popen`.
    """
    mark = uuid.uuid4().hex
    variables = {**(os.environ if env is None else env), MARK: mark}
    with _heeding_interrupts():
        process = subprocess.Popen([str(part) for part in line], env=variables, start_new_session=True, **options)
    try:
        yield process
    finally:
        process.kill()
        _kill_marked(mark)
        process.wait()
        for stream in (process.stdin, process.stdout, process.stderr):
            if stream is not None:
                with suppress(OSError):
                    stream.close()


def finished(line: Sequence[str | Path], **options: Any) -> subprocess.CompletedProcess[str]:
    """Run a command to its end like `subprocess.run`, with its output as text. Only the test's limit applies."""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "encoding": "utf-8"}
    with started(line, **pipes, **options) as process:
        said, complained = process.communicate()
    return subprocess.CompletedProcess(process.args, process.returncode, said, complained)


def wait_for(process: Any, happened: Callable[[], bool]) -> None:
    """Wait until `happened()` is true or the process ends."""
    while not happened() and process.poll() is None:
        time.sleep(0.01)


@contextmanager
def _heeding_interrupts() -> Iterator[None]:
    """Start processes in this block with Ctrl-C enabled. A shell disables it for background jobs, and children inherit
    that.
    """
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _kill_marked(mark: str) -> None:
    """Kill all marked processes, repeatedly, because they may start others meanwhile."""
    deadline = time.monotonic() + 20
    while left := [each for each in psutil.process_iter() if _marked(each, mark)]:
        if time.monotonic() > deadline:
            raise RuntimeError(f"These processes of a test cannot be ended: {left}")
        for each in left:
            with suppress(psutil.Error):
                each.kill()
        time.sleep(0.01)


def _marked(process: psutil.Process, mark: str) -> bool:
    try:
        return process.environ().get(MARK) == mark
    except (psutil.Error, OSError):  # it has ended, or belongs to another user
        return False
