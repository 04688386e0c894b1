"""The training loop of a stage, with checkpoints often enough to lose little when the machine goes away.

All randomness of step n comes from the stage's seed and n. So a checkpoint needs no generator state, and training that
was cut off continues with exactly the pictures that it would have seen.
"""

import csv
import math
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor, nn

from ....common.atomic_io import atomic_file
from ....training.optimizers import make_optimizers, set_rates
from .cuda_graph import backward

SAVE_EVERY_S = 180
LOG_EVERY = 25  # steps
WARM_UP = 200  # steps; less where a quarter of the training is less
DECAY = 0.01  # weight decay


class Stage(Protocol):
    """One stage of the training."""

    name: str
    model: nn.Module  # only parameters that require gradients are trained and saved
    rate: float  # the highest learning rate
    matrix_rate: float | None  # Muon's, for matrices; None: AdamW for all
    total: int  # steps over which the rate falls
    stop: int  # the last step; later stages continue from it
    ema_decay: float

    def batch(self, step: int) -> tuple[Tensor, ...]:
        """What one step trains on, on the model's device."""
        ...

    def loss(self, *batch: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of one step, and what to log with it."""
        ...


class Progress:
    """The weights, their running mean, the optimizers and the number of steps made."""

    def __init__(self, stage: Stage):
        self.stage, self.step, self.seconds = stage, 0, 0.0
        self.fresh = 0  # the step at which the optimizers had no state
        self.weights = {k: p for k, p in stage.model.named_parameters() if p.requires_grad}
        self.ema = {k: p.detach().clone() for k, p in self.weights.items()}
        self.optimizers = make_optimizers(
            self.weights.values(), stage.rate, stage.matrix_rate, DECAY, betas=(0.9, 0.99), decay_vectors=False
        )
        self.backward = backward(stage.loss, list(self.weights.values()))

    def advance(self) -> dict[str, Tensor]:
        """Make one step. Returns what to log."""
        loss, log = self.backward(*self.stage.batch(self.step))
        norm = nn.utils.clip_grad_norm_(self.weights.values(), 1.0)
        set_rates(self.optimizers, schedule(self.step, self.stage.total, self.fresh))
        for optimizer in self.optimizers:
            optimizer.step()
        self.step += 1
        decay = min(self.stage.ema_decay, (1 + self.step) / (10 + self.step))
        with torch.no_grad():
            torch._foreach_lerp_(  # pyright: ignore[reportPrivateImportUsage]
                list(self.ema.values()), list(self.weights.values()), 1 - decay
            )
        return {"loss": loss, "norm": norm, **log}

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """The model with the running mean as its weights, inside the block."""
        kept = {k: p.detach().clone() for k, p in self.weights.items()}
        self._fill(self.ema)
        try:
            yield
        finally:
            self._fill(kept)

    def use_mean(self) -> None:
        """Set the weights to the running mean for good, for stages that build on this one."""
        self._fill(self.ema)

    @torch.no_grad()
    def _fill(self, values: dict[str, Tensor]) -> None:
        for key, parameter in self.weights.items():
            parameter.copy_(values[key])

    def state(self) -> dict:
        weights = {k: p.detach() for k, p in self.weights.items()}
        return {
            "step": self.step,
            "seconds": self.seconds,
            "fresh": self.fresh,
            "weights": weights,
            "ema": self.ema,
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
        }

    def restore(self, state: dict) -> None:
        """Continue from a checkpoint. Raises ValueError if it belongs to another model."""
        if wrong := sorted(self.weights.keys() ^ state["ema"].keys()):
            raise ValueError(
                f"The checkpoint of stage {self.stage.name} is of another model: {wrong[0]} and {len(wrong) - 1} "
                "more differ. Move it away to start the stage afresh."
            )
        self._fill(state.get("weights") or state["ema"])  # a packed checkpoint has the mean only
        for key, value in self.ema.items():
            value.copy_(state["ema"][key])
        self.step, self.seconds = state["step"], state["seconds"]
        if state.get("optimizers"):
            for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
                optimizer.load_state_dict(saved)
            self.fresh = state.get("fresh", 0)
        else:
            self.fresh = self.step


def schedule(step: int, total: int, fresh: int = 0) -> float:
    """The share of the full learning rate: half a cosine down to a twentieth, with a warm-up from step `fresh` on."""
    fall = 0.5 + 0.5 * math.cos(math.pi * min(step / total, 1.0))
    warm_up = min(WARM_UP, math.ceil(total / 4))
    return min((step - fresh + 1) / warm_up, 1.0) * (0.05 + 0.95 * fall)


def save(state: dict, file: Path) -> None:
    with atomic_file(file) as temporary:
        torch.save(state, temporary)


def run(
    progress: Progress,
    file: Path,
    seconds: float,
    say: Callable[[str], None] = print,
    log_every: int = LOG_EVERY,
) -> None:
    """Train for so many seconds, to the stage's last step, or until a SIGTERM, which ends the process.

    Checkpoints go to `file`, losses to the .csv of the same name.
    """
    stopped: list[int] = []
    handler = signal.signal(signal.SIGTERM, lambda number, _: stopped.append(number))
    start = saved = time.monotonic()
    before, first = progress.seconds, progress.step
    sums: dict[str, Tensor] = {}
    seen = 0
    while not stopped and (now := time.monotonic()) - start < seconds and progress.step < progress.stage.stop:
        for key, value in progress.advance().items():
            sums[key] = sums.get(key, 0) + value
        progress.seconds = before + time.monotonic() - start
        seen += 1
        if seen % log_every == 0:
            means = {key: float(value) / log_every for key, value in sums.items()}
            sums.clear()
            _log(file.with_suffix(".csv"), progress, means)
            speed = (progress.step - first) / (time.monotonic() - start)
            say(f"{progress.stage.name} {progress.step} ({speed:.2f}/s) " + _words(means))
            if not math.isfinite(means["loss"]):
                raise FloatingPointError(f"Stage {progress.stage.name}: the loss is not a number.")
        if now - saved > SAVE_EVERY_S:
            save(progress.state(), file)
            saved = now
    save(progress.state(), file)
    signal.signal(signal.SIGTERM, handler)
    if stopped:
        sys.exit(143)  # later stages must not start from a half-trained one


def _log(file: Path, progress: Progress, means: dict[str, float]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    new = not file.exists()
    with file.open("a", newline="") as out:
        writer = csv.writer(out)
        if new:
            writer.writerow(["step", "seconds", *means])
        writer.writerow([progress.step, round(progress.seconds), *(f"{v:.5g}" for v in means.values())])


def _words(means: dict[str, float]) -> str:
    return " ".join(f"{key} {value:.4g}" for key, value in means.items())
