"""The loss curve: a table, and a picture where matplotlib is installed."""

from __future__ import annotations

import io
import os
from collections.abc import Sequence
from pathlib import Path

from .config import Recipe


def write_curve(folder: Path, losses: Sequence[float], recipe: Recipe) -> None:
    """`loss.csv` and `loss.png`, each replaced in one step."""
    rows = [f"{step},{loss!r}" for step, loss in enumerate(losses, 1)]
    _replace(folder / "loss.csv", "\n".join(["step,loss", *rows, ""]).encode())
    if (picture := draw_curve(losses, recipe.steps)) is not None:
        _replace(folder / "loss.png", picture)


def draw_curve(losses: Sequence[float], steps: int) -> bytes | None:
    """A PNG of the losses and their running mean; None without matplotlib."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return None
    figure = Figure(figsize=(7, 4), dpi=100, layout="constrained")
    axes = figure.add_subplot()
    numbers = range(1, len(losses) + 1)
    axes.plot(numbers, losses, color="0.8", linewidth=0.8, label="step")
    axes.plot(numbers, running_mean(losses), color="C0", label="running mean")
    axes.set(xlabel="step", ylabel="loss", xlim=(0, max(steps, 1)), title=f"{len(losses)} of {steps} steps")
    axes.legend()
    file = io.BytesIO()
    figure.savefig(file, format="png")
    return file.getvalue()


def running_mean(losses: Sequence[float], window: int = 50) -> list[float]:
    """The mean over the last steps, as many as there are at the beginning."""
    means, total = [], 0.0
    for i, loss in enumerate(losses):
        total += loss - (losses[i - window] if i >= window else 0.0)
        means.append(total / min(i + 1, window))
    return means


def _replace(target: Path, content: bytes) -> None:
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        temporary.write_bytes(content)
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)
