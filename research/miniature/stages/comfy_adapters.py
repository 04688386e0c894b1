"""Stage 5: the adapters, by the trainer of `training/` over drawn scenes. Each kind and seed is a separate run."""

from __future__ import annotations

import csv
import hashlib
import json
import shutil
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from ....common.atomic_io import atomic_file, atomic_write
from ....common.hashing import weights_sha256
from ....miniature import config
from ....training.config import TrainConfig
from ....training.objective import Objective
from ....training.save import save_adapter
from ....training.trainable import TrainableAdapter, flat_tensors, init_adapter
from ....training.trainer import Progress, Stopped, train
from ....weights.adapter import Adapter, build_adapter, load_adapter
from .. import comfy_networks, seeded, trained
from . import packing
from .base import Conditioner
from .captions import Words
from .comfy_frozen import Frozen
from .comfy_recipe import finished, last_of, prepare, say
from .paired import Paired
from .provenance import circumstances

LOG_EVERY = 25  # steps
HELD_OUT = 256  # scenes of the held-out loss
QUICK = {"steps": 8, "batch_size": 2, "warmup": 1, "ema": 0.5}
QUICK_SCENES = 8


def train_all(
    kinds: Sequence[str], seeds: Sequence[int], work: Path, minutes: float, threads: int, quick: bool = False,
    steps: int | None = None, ungated: bool = False,
) -> None:  # fmt: skip
    """Train adapters of these kinds and seeds until all are finished or the minutes are over.

    A finished adapter is left as it is, unless the recipe has more steps by now. Checkpoints lie in work/adapters, in a
    folder for each base, next to a file kind-seed.safetensors for each finished run.

    steps: in place of the recipe's.
    ungated: also train over a base that has not passed its gate. Without it, such a base raises ValueError.
    """
    device = prepare(threads)
    stopped: list[int] = []
    handler = signal.signal(signal.SIGTERM, lambda number, _: stopped.append(number))
    end = time.monotonic() + 60 * minutes
    work = work / "quick" if quick else work
    if quick:
        shutil.rmtree(work / "adapters", ignore_errors=True)
    parts = _parts(work, device)
    runs = runs_of(parts["unet"], work)
    if not (quick or ungated):
        check_gate(weights_sha256(parts["unet"]), work)
    for seed in seeds:
        for kind in kinds:
            recipe = replace(trained.KINDS[kind].recipe, seed=seed, **(QUICK if quick else {}))
            recipe = replace(recipe, steps=steps) if steps else recipe
            if _steps_of(result(kind, seed, runs)) < recipe.steps and not stopped and time.monotonic() < end:
                _Run(kind, recipe, work, parts, quick, lambda: bool(stopped) or time.monotonic() > end).go()
    signal.signal(signal.SIGTERM, handler)
    if stopped:
        sys.exit(143)


def check_gate(base: str, work: Path) -> None:
    """Raises ValueError unless this base has passed its gate. base: the digest of its weights."""
    for file in (work / "gate.json", packing.FOLDER / "gate.json"):
        if file.is_file() and (gate := json.loads(file.read_text()))["base_weights_sha256"] == base:
            if gate["passes"]:
                return
            raise ValueError(
                f"The base has not passed its gate ({file}: presence {gate['presence']:.2f}, right word "
                f"{gate['right_word']:.2f}). Train it on, or give --ungated."
            )
    raise ValueError("The base was not put to its gate yet: run train.py --gate 128 first, or give --ungated.")


def export(work: Path, folder: Path | None) -> list[Path]:
    """Copy the finished adapters of the present base to where the miniature's adapters are read.

    Their loss curves, facts and digests go next to those of the other stages. Returns the adapters' paths.
    """
    written, runs = [], runs_of(_parts(work, prepare(1))["unet"], work)
    for kind in trained.KINDS:
        for seed in trained.SEEDS:
            if (source := result(kind, seed, runs)).is_file():
                target = trained.file(kind, seed, folder)
                with atomic_file(target) as temporary:
                    shutil.copyfile(source, temporary)
                written.append(target)
                curves = trained.logs(folder) / "adapters"
                curves.mkdir(parents=True, exist_ok=True)
                _thin(source.with_suffix("") / "loss.csv", curves / f"{kind}-{seed}.csv")
                facts = json.loads(source.with_suffix(".json").read_text())
                facts["sha256"] = hashlib.sha256(target.read_bytes()).hexdigest()
                (curves / f"{kind}-{seed}.json").write_text(json.dumps(facts))
    return written


def runs_of(unet: torch.nn.Module, work: Path) -> Path:
    """The folder of the runs over a base. A different base gets a different folder."""
    return work / "adapters" / weights_sha256(unet)[:12]


def result(kind: str, seed: int, runs: Path) -> Path:
    """The file of a finished adapter. The folder of the same name, without the ending, holds its checkpoints and loss
    curve.
    """
    return runs / f"{kind}-{seed}.safetensors"


def _steps_of(file: Path) -> int:
    """How many steps a finished adapter was trained for; 0 if it does not exist."""
    facts = file.with_suffix(".json")
    return json.loads(facts.read_text()).get("steps", 0) if file.is_file() and facts.is_file() else 0


def _base_of(file: Path) -> str | None:
    """The digest of the UNet that an adapter was trained over."""
    with safe_open(file, "pt") as opened:
        return (opened.metadata() or {}).get("base_weights_sha256")


def _thin(source: Path, target: Path) -> None:
    """Copy a loss curve as means over LOG_EVERY steps, like those of the other stages."""
    with source.open() as rows:
        losses = [float(row["loss"]) for row in csv.DictReader(rows)]
    with target.open("w", newline="") as out:
        writer = csv.writer(out)
        writer.writerow(["step", "loss"])
        for end in range(LOG_EVERY, len(losses) + 1, LOG_EVERY):
            writer.writerow([end, f"{sum(losses[end - LOG_EVERY : end]) / LOG_EVERY:.5g}"])


def _parts(work: Path, device: torch.device) -> dict[str, Any]:
    """The trained models of the earlier stages."""
    encoders = finished("encoders", work, device)
    return {
        "unet": finished(last_of("base", work), work, device),
        "vae": finished("vae", work, device),
        "vision": finished(last_of("encoders", work), work, device).vision,
        "condition": Conditioner(encoders, Words(comfy_networks.tokenize), device),
    }


class _Run:
    """The training of one adapter."""

    def __init__(
        self, kind: str, recipe: TrainConfig, work: Path, parts: Mapping[str, Any], quick: bool,
        asked_to_stop: Callable[[], bool],
    ):  # fmt: skip
        self.kind, self.recipe, self.work, self.asked_to_stop = kind, recipe, work, asked_to_stop
        self.sha256, self.runs = weights_sha256(parts["unet"]), runs_of(parts["unet"], work)
        sizes = {"shards": 1, "size": QUICK_SCENES} if quick else {}
        self.model = self._model(parts, recipe, **sizes, asked_to_stop=asked_to_stop)
        self.test = self._model(parts, recipe, shards=1, size=QUICK_SCENES if quick else HELD_OUT, held_out=True)

    def _model(self, parts: Mapping[str, Any], recipe: TrainConfig, **scenes: Any) -> Frozen:
        drawn = Paired(parts["vae"], parts["vision"], self.work / "paired", recipe, **scenes)
        return Frozen(parts["unet"], parts["vision"], parts["condition"], drawn)

    def go(self) -> None:
        """Train from the last checkpoint to the end, or until asked to stop."""
        name, recipe, begun = f"{self.kind}-{self.recipe.seed}", self.recipe, time.monotonic()
        target = result(self.kind, recipe.seed, self.runs)
        start = self._start()
        outcome = train(
            self.model, self.model.scenes, start, recipe,
            folder=target.with_suffix(""), on_step=_Watch(name),
            asked_to_stop=self.asked_to_stop, interrupts=(Stopped,),
            about={"base": "the miniature", "base_weights_sha256": self.sha256, "trained_as": self.kind},
        )  # fmt: skip
        facts_file = target.with_suffix(".json")
        facts = json.loads(facts_file.read_text()) if facts_file.is_file() else {"seconds": 0}
        facts["seconds"] = round(facts["seconds"] + time.monotonic() - begun)
        if outcome.stopped is not None and not isinstance(outcome.stopped, Stopped):
            raise outcome.stopped
        if outcome.stopped is None:
            losses = {"before": self.held_out(start), "after": self.held_out(outcome.adapter)}
            facts |= {"steps": recipe.steps, "held_out": losses, "base_weights_sha256": self.sha256, **circumstances()}
            say(f"{name}: held-out loss {losses['before']:.5f} before, {losses['after']:.5f} after")
            # Also replaces the result of a shorter run.
            save_adapter(outcome.adapter, target.parent, target.stem).replace(target)
        atomic_write(facts_file, json.dumps(facts))

    def _start(self) -> Adapter:
        """The adapter to start from. Raises ValueError if the kind that it continues is not trained."""
        kind, seed = trained.KINDS[self.kind], self.recipe.seed
        if kind.start is not None:
            made, shipped = result(kind.start, seed, self.runs), trained.file(kind.start, seed)
            if made.is_file():
                return load_adapter(made)
            if shipped.is_file() and _base_of(shipped) == self.sha256:
                return load_adapter(shipped)
            raise ValueError(f"{self.kind} goes on from {kind.start}: run train.py --stage {kind.start} first.")
        adapter = init_adapter(
            self.model.sites, self.model.attentions, config.CLIP_VISION["projection_dim"], config.BASE_TOKENS, seed
        )
        if not self.kind.endswith("plus"):
            return adapter
        sites = {key: each for key, each in flat_tensors(adapter).items() if key.startswith("ip_adapter.")}
        return build_adapter(seeded.plus_projection(f"plus {seed}") | sites, "a fresh adapter")

    @torch.no_grad()
    def held_out(self, adapter: Adapter) -> float:
        """The loss on scenes with looks, and pairs of kinds, that training never shows.

        The noise is the same for all adapters, with all noise levels equally likely.
        """
        recipe = replace(self.recipe, seed=0, timesteps="uniform")
        objective = Objective(TrainableAdapter(adapter, recipe).to(self.test.device), self.test, recipe)
        rows, total = range(len(self.test.scenes)), 0.0
        for start in range(0, len(rows), recipe.batch_size):
            some = [self.test.scenes.plain(row) for row in rows[start : start + recipe.batch_size]]
            total += float(objective(self.test.encode(some, adapter))) * len(some)
        return total / len(rows)


class _Watch:
    """Prints a line every LOG_EVERY steps."""

    def __init__(self, name: str):
        self.name, self.sum = name, 0.0

    def __call__(self, progress: Progress) -> None:
        self.sum += progress.loss
        if progress.step % LOG_EVERY == 0:
            mean, pace = self.sum / LOG_EVERY, progress.seconds_per_step
            say(f"{self.name} {progress.step} ({pace:.2f} s a step, {progress.eta / 60:.0f} min left) loss {mean:.4g}")
            self.sum = 0.0
