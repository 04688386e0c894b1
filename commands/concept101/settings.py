"""The settings that shape the pictures of a Concept101 run, and the guard against mixing runs of different settings."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ...attention.options import Strategy
from ...common.atomic_io import atomic_write
from ...evaluation.concept101.schedule import Schedule
from ...training.run_config import MINIATURE

NEGATIVE = "monochrome, lowres, bad anatomy, worst quality, low quality"  # the official code's


BASE_SCALE, PLUS_SCALE = 0.75, 0.65  # the official code's


def usual_scale(tokens: int | None) -> float:
    """tokens: the adapter's image tokens."""
    return BASE_SCALE if tokens == 4 else PLUS_SCALE


@dataclass(frozen=True)
class Settings:
    """checkpoint and adapter: a file or “miniature”; scale None: the official code's for the adapter's family; head:
    use the adapter's fusion head; side: of the pictures; cropped: references are cropped to their boxes; schedule:
    whose noise levels are sampled."""

    checkpoint: str
    adapter: str
    clip_vision: str = ""
    vae: str = ""
    strategy: Strategy = "relevance"
    head: bool = True
    background: float = 0.0
    sharpness: float = 1.0
    scale: float | None = None
    steps: int = 30
    cfg: float = 5.0
    seed: int = 420
    negative: str = NEGATIVE
    side: int = 1024
    cropped: bool = True
    schedule: Schedule = "host"

    def described(self) -> dict[str, Any]:
        """The settings for tables and comparisons: files by name and size, unset ones left out.

        Raises ValueError for missing files.
        """
        files = {name: _identity(getattr(self, name)) for name in ("checkpoint", "adapter", "clip_vision", "vae")}
        whole = {**asdict(self), **files}
        if self.schedule == "host":
            del whole["schedule"]  # folders from before it could be chosen do not name it
        return {name: value for name, value in whole.items() if value not in ("", None)}


def _identity(path: str) -> str:
    if path in ("", MINIATURE):
        return path
    if not (file := Path(path)).is_file():
        raise ValueError(f"There is no file {path}: name a local file, or “{MINIATURE}” for the built-in model.")
    return f"{file.name}, {file.stat().st_size:,} bytes"


def guard(output: Path, described: dict[str, Any]) -> None:
    """Writes a run's settings to its folder. Several processes may do so at once.

    described: from `Settings.described`.

    Raises ValueError if the folder holds pictures of other settings.
    """
    file = output / "settings.json"
    if not file.exists():
        atomic_write(file, json.dumps(described, indent=1, ensure_ascii=False))
    earlier = json.loads(file.read_text("utf-8"))
    if changed := sorted(key for key in {**earlier, **described} if earlier.get(key) != described.get(key)):
        was = ", ".join(f"{key} was {earlier.get(key)}, is {described.get(key)}" for key in changed[:3])
        raise ValueError(f"The folder {output} holds pictures of other settings ({was}): choose another --output.")
