"""A folder in which only one process writes at a time."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

_held: set[str] = set()  # by this process, which the system would let in again


@contextmanager
def only_here(folder: Path, remedy: str) -> Iterator[None]:
    """Holds a folder until the end of the block. The system lets go of it however the process ends.

    Raises ValueError, which names the process that holds the folder. remedy: what to do then, the rest of the sentence.
    On a file system that knows no locks, it holds nothing and lets everybody in.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = os.path.realpath(folder / ".lock")
    refusal = f"Another process writes into {folder}"
    if path in _held:
        raise ValueError(f"{refusal} (this one, process {os.getpid()}): {remedy}")
    # POSIX drops a lock when its process closes the file anywhere, so the file is opened only once in a process.
    with open(path, "a+", encoding="utf-8") as file:
        if not _locked(file):
            file.seek(0)
            raise ValueError(f"{refusal} ({file.read(200).strip() or 'unknown'}): {remedy}")
        _held.add(path)
        try:
            file.truncate(0)
            file.write(f"process {os.getpid()}, since {time.strftime('%Y-%m-%d %H:%M')}")
            file.flush()
            yield
        finally:
            _held.discard(path)


def _locked(file: IO[str]) -> bool:
    """Whether the lock was free. Forked children, such as readers of pictures, do not share it."""
    try:
        if sys.platform == "win32":
            import msvcrt

            os.lseek(file.fileno(), 1 << 20, os.SEEK_SET)  # what stands in the file can be read by others
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return False
    except OSError:  # a network drive without locks
        return True
    return True
