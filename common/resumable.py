"""A long job in parts of fixed size: a finished part is a file, so killed runs go on and processes need no talk.

Process r of w takes parts r, r + w, r + 2w, …; w may change between runs. Whoever finds all parts finished at its end
does what comes after, so that processes never wait for each other.
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
    """folder: where the parts lie; ids: the whole job, in order; size: ids a part."""

    folder: Path
    ids: tuple[str, ...]
    size: int

    def __len__(self) -> int:
        return -(-len(self.ids) // self.size)

    def path(self, part: int) -> Path:
        return self.folder / f"{part:06d}.jsonl"

    def todo(self, rank: int = 0, world: int = 1) -> Iterator[tuple[int, tuple[str, ...]]]:
        """(number, ids) of this process's unfinished parts."""
        for part in range(rank, len(self), world):
            if not self.path(part).exists():
                yield part, self.ids[part * self.size : (part + 1) * self.size]

    def finish(self, part: int, rows: Sequence[Row]) -> None:
        atomic_write(self.path(part), json_lines(rows))

    def finished(self) -> int:
        return sum(1 for _ in self.folder.glob("[0-9]*.jsonl"))

    def rows(self) -> Iterator[Row]:
        """All rows in the order of the ids, whoever made them."""
        for part in range(len(self)):
            with self.path(part).open(encoding="utf-8") as lines:  # which end with \n alone, unlike str.splitlines()
                yield from map(json.loads, lines)


def open_parts(folder: Path, ids: Sequence[str], settings: Mapping[str, Any], size: int, fresh: bool = False) -> Parts:
    """New parts, or those of an earlier run of the same job. fresh throws those away.

    Raises ValueError where the folder holds parts of another job: its rows must not be mixed with this one's.
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
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def process() -> tuple[int, int]:
    """(rank, world) under `accelerate launch` or torchrun; (0, 1) alone."""
    return int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
