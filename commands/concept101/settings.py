"""The settings that shape the pictures of a Concept101 run, and the guard against mixing runs of different settings."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ...attention.options import Strategy
from ...common.atomic_io import atomic_write
from ...training.run_config import MINIATURE

NEGATIVE = "monochrome, lowres, bad anatomy, worst quality, low quality"  # the official code's


@dataclass(frozen=True)
class Settings:
    """Settings of one run.

    checkpoint, adapter: a file or “miniature”.
    clip_vision, vae: files; "" for the miniature's image encoder and for the checkpoint's VAE.
    strategy, background, sharpness: of the merge.
    head: whether the adapter's fusion head is used.
    scale: None takes the paper's for base or plus weights.
    side: of the pictures, in pixels.
    cropped: whether references are cropped to their boxes.
    """

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

    def described(self) -> dict[str, Any]:
        """The settings for tables and comparisons: files by name and size, unset ones left out.

        Raises ValueError for missing files.
        """
        files = {name: _identity(getattr(self, name)) for name in ("checkpoint", "adapter", "clip_vision", "vae")}
        return {name: value for name, value in {**asdict(self), **files}.items() if value not in ("", None)}


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
