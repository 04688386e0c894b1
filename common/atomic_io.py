"""Files that appear complete or not at all."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4


@contextmanager
def atomic_file(path: Path, replace: bool = True) -> Iterator[Path]:
    """Yields a temporary path beside `path` to write to.

    On success it is renamed to `path`; on an error it is removed. Missing folders are made.
    replace: whether a file of that name is replaced. If not, raises FileExistsError, whoever made it and when.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # A random name: machines that share a folder may have equal process ids.
    temporary = path.with_name(f".{path.name}.{uuid4().hex}.tmp")
    try:
        yield temporary
        if replace:
            os.replace(temporary, path)
        elif not keep_as_new(temporary, path):
            raise FileExistsError(f"{path} exists already")
    finally:
        temporary.unlink(missing_ok=True)


def keep_as_new(finished: Path, path: Path) -> bool:
    """Give a finished file beside `path` that name. Returns False if the name is taken: nothing is ever overwritten,
    whoever saves at the same time."""
    with finished.open("rb+") as file:
        os.fsync(file.fileno())  # a name never leads to a file that a crash cut off
    try:
        os.link(finished, path)
    except FileExistsError:
        return False
    except OSError:  # no hard links there: an empty file claims the name
        try:
            os.close(os.open(path, os.O_CREAT | os.O_EXCL))
        except FileExistsError:
            return False
        os.replace(finished, path)
    return True


def atomic_write(path: Path, content: str | bytes, replace: bool = True) -> None:
    """Write a complete file or none. Text is encoded as UTF-8. replace: as for `atomic_file`."""
    with atomic_file(path, replace) as temporary:
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)
