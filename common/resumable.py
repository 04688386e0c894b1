"""Long runs in parts of fixed size. A finished part is a file, so a killed run can be resumed and processes need not
communicate.

Process r of w takes parts r, r + w, r + 2w, …; w may change between runs. A process that finds all parts finished at
its end does the work that follows, so processes never wait for each other.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .atomic_io import atomic_write

Row = dict[str, Any]


@dataclass(frozen=True)
class Parts:
    """The parts of one run.

    folder: holds a file for each finished part.
    ids: all items of the run, in order.
    size: items per part.
    """

    folder: Path
    ids: tuple[str, ...]
    size: int

    def __len__(self) -> int:
        return -(-len(self.ids) // self.size)

    def path(self, part: int) -> Path:
        return self.folder / f"{part:06d}.jsonl"

    def todo(self, rank: int = 0, world: int = 1) -> Iterator[tuple[int, tuple[str, ...]]]:
        """Number and ids of the unfinished parts that belong to process `rank` of `world`."""
        for part in range(rank, len(self), world):
            if not self.path(part).exists():
                yield part, self.ids[part * self.size : (part + 1) * self.size]

    def finish(self, part: int, rows: Sequence[Row]) -> None:
        """Write a finished part."""
        atomic_write(self.path(part), json_lines(rows))

    def finished(self) -> int:
        """How many parts are finished, by all processes."""
        return sum(1 for _ in self.folder.glob("[0-9]*.jsonl"))

    def rows(self) -> Iterator[Row]:
        """All rows in the order of the ids, from all processes."""
        for part in range(len(self)):
            with self.path(part).open(encoding="utf-8") as lines:  # splits at \n only, unlike str.splitlines()
                yield from map(json.loads, lines)


def open_parts(folder: Path, ids: Sequence[str], settings: Mapping[str, Any], size: int, fresh: bool = False) -> Parts:
    """New parts, or those of an earlier run with the same ids and settings.

    settings: what the rows depend on; kept in plan.json.
    fresh: delete earlier parts first.
    Raises ValueError if the folder holds parts of other ids or settings, since rows of both must not be mixed.
    """
    digest = hashlib.sha256("\n".join(ids).encode()).hexdigest()[:16]
    plan = {**settings, "pictures": len(ids), "ids": digest, "part": size}
    if fresh:
        shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True, exist_ok=True)
    parts = Parts(folder, tuple(ids), size)
    if not parts.finished():
        atomic_write(folder / "plan.json", json.dumps(plan, indent=1, ensure_ascii=False))
    earlier = json.loads((folder / "plan.json").read_text("utf-8"))
    if changed := [key for key in {**earlier, **plan} if earlier.get(key) != plan.get(key)]:
        was = ", ".join(f"{key} was {earlier.get(key)}, is {plan.get(key)}" for key in sorted(changed)[:3])
        raise ValueError(
            f"{folder} holds the parts of another run ({was}): remove it to start over, or choose another --output."
        )
    return parts


def json_lines(rows: Sequence[Row]) -> str:
    """One JSON object per line."""
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def process() -> tuple[int, int]:
    """(rank, world) under `accelerate launch` or torchrun; (0, 1) for a single process."""
    return int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
