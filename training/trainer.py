"""The training loop: batches, updates and checkpoints, until the last step or until somebody stops it."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch

from ..common.folder_lock import only_here
from ..common.hashing import digest
from ..weights.adapter import Adapter
from ..weights.sites import check_sites
from .adapter_optimizer import AdapterOptimizer
from .checkpoints import DATASET, load_latest, newest_checkpoint, write_state
from .config import TrainConfig
from .dataset import Sample, check_broken
from .loader import Samples, batches
from .loss_curve import WINDOW, write_curve
from .objective import FrozenModel, Objective
from .processes import Alone, Processes
from .save import metadata
from .trainable import TrainedAdapter, check_family, flat_tensors

log = logging.getLogger(__name__)
_WAIT = "two trainings cannot share a folder. Wait for its end, stop it, or choose another output folder."


class Progress(NamedTuple):
    """What is known after a step.

    loss: of this step, over all processes.
    smooth: the mean over the last WINDOW steps, as the loss curve shows it.
    eta: seconds left.
    ids: of the samples that this process saw.
    """

    step: int
    steps: int
    loss: float
    smooth: float
    seconds_per_step: float
    eta: float
    ids: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class Outcome:
    """What a training returns.

    losses: one per step, from the first.
    stopped: what ended training before its last step, if anything did.
    """

    adapter: TrainedAdapter
    losses: tuple[float, ...]
    stopped: BaseException | None = None


class Stopped(Exception):
    """Training was asked to end, by a signal or since its time is over. The adapter as trained so far is kept."""


def train(
    model: FrozenModel,
    samples: Samples,
    adapter: Adapter,
    recipe: TrainConfig,
    *,
    folder: Path | None = None,
    processes: Processes | None = None,
    on_step: Callable[[Progress], None] | None = None,
    validate: Callable[[int, TrainedAdapter], None] | None = None,
    asked_to_stop: Callable[[], bool] = lambda: False,
    interrupts: tuple[type[BaseException], ...] = (),
    about: Mapping[str, str] | None = None,
) -> Outcome:
    """Train `adapter` on samples.

    samples: see `loader.Samples`.
    folder: where checkpoints and the loss curve go. A run that left checkpoints there is resumed as if it had never
        stopped; with other samples, it continues with those.
    on_step, validate: called in the first process. An Exception from on_step ends training after the step.
    asked_to_stop: called after every step.
    interrupts: exceptions that end training and need not be an Exception: raised by on_step after a step, or by the
        model within one, which is then not made.
    about: metadata of the result.

    Raises ValueError if another training runs in the folder, the adapter does not fit the model, the loss is not
    finite, or too many samples are broken.
    """
    check_sites(adapter.spec, adapter.name, model.sites)
    check_family(adapter)
    processes = processes or Alone()
    alone = nullcontext() if folder is None or processes.rank else only_here(folder, _WAIT)
    with alone:
        trainer = Trainer(model, samples, adapter, recipe, processes, folder, about or {})
        stopped = trainer.run(on_step, validate, asked_to_stop, interrupts)
        return Outcome(trainer.result(), tuple(trainer.losses), stopped)


class Trainer:
    """The state of one run: the adapter, its optimizers and the step.

    All randomness follows from the seed and the step. So the step also stands for the state of the random numbers and
    the place in the data.
    """

    def __init__(
        self,
        model: FrozenModel,
        samples: Samples,
        adapter: Adapter,
        recipe: TrainConfig,
        processes: Processes,
        folder: Path | None,
        about: Mapping[str, str],
    ) -> None:
        self.model, self.samples, self.recipe, self.processes = model, samples, recipe, processes
        self.folder, self.about, self.is_main = folder, about, processes.rank == 0
        self.origin = _origin(adapter, samples, about)
        self.optimizer = AdapterOptimizer(adapter, recipe, model.device, model.dtype)
        self.objective = processes.wrap(Objective(self.optimizer.trainable, model, recipe))
        self.step, self.losses = 0, []
        self.broken: dict[str, str] = {}
        if folder is not None and (state := load_latest(folder, recipe, processes.count, self.origin)) is not None:
            self._restore(state)
        self._check_together()

    def run(
        self,
        on_step: Callable[[Progress], None] | None,
        validate: Callable[[int, TrainedAdapter], None] | None,
        asked_to_stop: Callable[[], bool],
        interrupts: tuple[type[BaseException], ...] = (),
    ) -> BaseException | None:
        """Train to the end. Returns what stopped it early, else None.

        An interrupt within a step takes this step back and stops this process at once. What on_step raises, and a
        request to stop, let the step be and stop all processes after it.
        """
        recipe, started, first_step = self.recipe, time.monotonic(), self.step
        stream = batches(self.samples, recipe, self.processes, self.step)
        stopped: BaseException | None = None
        while self.step < recipe.steps and stopped is None:
            try:
                loss, ids = self._one_step(stream)
            except interrupts as error:
                self.optimizer.zero_grad()
                if self.step > first_step:
                    self._save(raise_on_failure=True)
                return error
            pace = (time.monotonic() - started) / (self.step - first_step)
            failure: BaseException | None = None
            if on_step is not None and self.is_main:
                try:
                    left = pace * (recipe.steps - self.step)
                    recent = self.losses[-WINDOW:]
                    smooth = sum(recent) / len(recent)
                    on_step(Progress(self.step, recipe.steps, loss, smooth, pace, left, ids))
                except (Exception, *interrupts) as error:
                    failure = error
            if self._any_process(failure is not None or asked_to_stop()):
                stopped = failure or Stopped(f"stopped at step {self.step}, as asked")
            last = stopped is not None or self.step == recipe.steps
            if last or (recipe.save_every and self.step % recipe.save_every == 0):
                self._save(raise_on_failure=stopped is not None)
            if validate is not None and recipe.validate_every and self.step % recipe.validate_every == 0:
                if self.is_main:
                    self._validate(validate)
                self.processes.wait()
        return stopped

    def _validate(self, validate: Callable[[int, TrainedAdapter], None]) -> None:
        """A validation picture that cannot be made or written does not end the run."""
        try:
            validate(self.step, self.result())
        except (OSError, RuntimeError, ValueError) as error:  # a full disk, a full GPU, references that do not fit
            log.warning("The validation pictures of step %d cannot be made: %s", self.step, error)

    def result(self) -> TrainedAdapter:
        """The adapter as trained so far."""
        return self.optimizer.finished(metadata(self.recipe, self.losses, self.about))

    def _any_process(self, ends: bool) -> bool:
        """Whether any process ends the run here. All end it after the same step, so that none waits for another."""
        return float(self.processes.mean(torch.tensor(float(ends), device=self.model.device))) > 0

    def _one_step(self, stream: Iterator[list[Sample]]) -> tuple[float, tuple[str, ...]]:
        """One optimizer step. Returns its loss over all processes, and the ids of the samples that this process saw."""
        count, total = self.recipe.accumulate, torch.zeros((), device=self.model.device)
        ids: list[str] = []
        for number in range(count):  # of the batch in this step
            samples = next(stream)
            self._note_broken(samples)
            ids += [sample.id for sample in samples]
            # Which encoder output the adapter reads is in its spec, and training does not change that.
            batch = self.model.encode(samples, self.optimizer.trainable.starting_adapter)
            sync = self.processes.no_sync(self.objective) if number + 1 < count else nullcontext()
            with torch.enable_grad(), sync:
                loss = self.objective(batch) / count
                self.optimizer.backward(loss)
            total += loss.detach()
        loss = float(self.processes.mean(total))
        self._check_number(loss, "loss", ids if not total.isfinite() else ["of another process"])
        norm = self.optimizer.update(self.step)
        if norm is not None:
            self._check_number(norm, "gradient", ids)
        self.losses.append(loss)
        self.step += 1
        return loss, tuple(ids)

    def _check_number(self, number: float, what: str, ids: list[str]) -> None:
        """Raises ValueError if a loss or a gradient is not finite."""
        if math.isfinite(number):
            return
        kept = "no checkpoint was written yet"
        if self.folder is not None and (path := newest_checkpoint(self.folder)):
            kept = f"the last good checkpoint is {path}"
        raise ValueError(
            f"The {what} is {number} at step {self.step + 1} (samples {', '.join(ids)}); training stopped, {kept}. "
            "Lower learning_rate, or use precision bf16 or fp32."
        )

    def _note_broken(self, samples: list[Sample]) -> None:
        """Log broken samples once. Raises ValueError if there are too many."""
        for picture_id, why in (each for sample in samples for each in sample.broken):
            if picture_id not in self.broken:
                log.warning("Training sample %s is broken and passed over: %s", picture_id, why)
                self.broken[picture_id] = why
        check_broken({**self.samples.broken, **self.broken}, self.samples.total)

    def _save(self, raise_on_failure: bool) -> None:
        """Write a checkpoint and the loss curve.

        A failed write is logged, and the next checkpoint is tried again.
        raise_on_failure: raise ValueError instead, because nothing else would keep what was trained.
        """
        if self.folder is not None and self.is_main:
            try:
                write_state(self.folder, self._state(), self.recipe.keep)
                write_curve(self.folder, self.losses, self.recipe)
            except OSError as error:
                if raise_on_failure:
                    raise ValueError(f"The last checkpoint cannot be written into {self.folder}: {error}.") from error
                log.warning("The checkpoint of step %d cannot be written: %s", self.step, error)
        self.processes.wait()

    def _state(self) -> dict[str, Any]:
        run = {"step": self.step, "losses": torch.tensor(self.losses, dtype=torch.float64), "broken": self.broken}
        run |= {"recipe": self.recipe.as_dict(), "processes": self.processes.count, "origin": self.origin}
        return {**self.optimizer.state(), **run}

    def _restore(self, state: dict[str, Any]) -> None:
        self.optimizer.restore(state)
        self.step, self.losses = state["step"], state["losses"].tolist()
        if state["origin"].get(DATASET) == self.origin[DATASET]:
            self.broken = dict(state["broken"])
            log.info("Training goes on after step %d.", self.step)
        else:  # broken samples may have been repaired or removed by now
            count = len(self.samples)
            log.warning(
                "Training goes on after step %d with another dataset: from here on, %d pictures.", self.step, count
            )

    def _check_together(self) -> None:
        """Raises ValueError if processes resume from different steps, as on machines that do not share the output
        folder.
        """
        mean = float(self.processes.mean(torch.tensor(float(self.step), device=self.model.device)))
        if mean != self.step:
            raise ValueError(
                f"This process goes on after step {self.step}, others do not: the output folder {self.folder} must be "
                "one that all machines share."
            )


def _origin(adapter: Adapter, samples: Samples, about: Mapping[str, str]) -> dict[str, str]:
    """Digests of what a run depends on, by the names that error messages use."""
    origin = {"starting adapter": digest(flat_tensors(adapter)), DATASET: digest(samples.ids)}
    return origin | ({"base model": about["base_weights_sha256"]} if "base_weights_sha256" in about else {})
