"""`python mip.py arms`: every arm over the same prompts, measured by the judge; see arms.py for what they are.

Pictures come from the nodes (MIP Reference, MIP Apply) and ComfyUI's sampler. Each
measured picture is one line of JSON in the output folder. So a stopped run resumes where it was, and several processes
can share the work, one shard each. plan.json records the weights and settings behind the lines, so that lines made with
others are never mixed in.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import time
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from ...common.atomic_io import atomic_write
from ...common.bundled import MINIATURE
from ...common.comfy_path import prepare_host
from ...common.console import complain, say
from ...common.hashing import weights_sha256
from ..miniature import trained
from ..miniature.stages.precision import activations
from . import arms, page, picture_grid, table
from .arms import Arm
from .comfy_maker import BF16, Maker, TrialBatch

SETTINGS = ("steps", "sampler", "guidance", "precision")  # options that every line depends on
BATCH = 16  # pictures at most: more do not fit into the processor's cache
GRID = 24  # prompts looked at for the picture grid; the first training seed has every third of them


def main(argv: list[str]) -> int:
    given = _parser().parse_args(argv)
    torch.set_num_threads(given.threads)
    try:
        prepare_host(not torch.cuda.is_available())
        kinds = [kind for kind in trained.KINDS if trained.seeds(kind, given.adapters)]
        chosen = arms.chosen(given.arm, kinds)
        if wrong := sorted(set(given.seed or ()) - set(trained.SEEDS)):
            raise ValueError(f"There is no training seed {wrong[0]}; choose from {', '.join(map(str, trained.SEEDS))}.")
        if not kinds:
            raise ValueError(
                f"No trained adapters lie in {given.adapters or trained.RESEARCH}: python "
                "research/miniature/train.py --stage adapters trains them, and --export miniature puts them there."
            )
        run = Run(given, chosen)
        if not given.report:
            run.work()
        run.report()
    except ValueError as error:
        complain(error)
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="mip.py arms", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path("output/arms"), help="lines, tables, pictures")
    parser.add_argument("--prompts", type=int, default=300, help="for each number of objects")
    parser.add_argument(
        "--every-seed", action="store_true", help="all prompts on every training seed, not a share each"
    )
    parser.add_argument("--objects", type=int, nargs="+", default=[2, 3, 4], choices=(2, 3, 4))
    parser.add_argument("--seed", type=int, action="append", help="of the adapters' training; without it all there are")
    parser.add_argument("--arm", action="append", help="one of the arms by its name; without it all")
    parser.add_argument("--scale", type=float, default=1.0, help="at which all arms are compared; trained at 1")
    parser.add_argument("--no-tuning", action="store_true", help="not at each arm's own best scale")
    parser.add_argument("--steps", type=int, default=arms.STEPS)
    parser.add_argument("--sampler", default=arms.SAMPLER)
    parser.add_argument("--guidance", type=float, default=arms.GUIDANCE)
    parser.add_argument(
        "--precision",
        choices=("auto", "bf16", "fp32"),
        default="auto",
        help="of activations; auto: bf16 where it is fast",
    )
    parser.add_argument("--shard", default="0/1", metavar="I/N", help="do the I-th of N shares of the batches, from 0")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--minutes", type=float, default=1e9, help="stop after so long; the same command goes on")
    parser.add_argument("--quick", action="store_true", help="8 prompts of two objects, 8 steps, no tuning")
    parser.add_argument("--report", action="store_true", help="tables and pictures of the lines that are there")
    parser.add_argument("--miniature", type=Path, default=MINIATURE, help="folder of the model's four files")
    parser.add_argument("--adapters", type=Path, help="folder with adapters/ and arms/ in place of the repository's")
    return parser


class Run:
    """One call of the command.

    given: its options.
    chosen: the arms to compare.
    """

    def __init__(self, given: argparse.Namespace, chosen: Sequence[Arm]):
        if given.quick:
            given.prompts, given.objects, given.steps, given.no_tuning = 8, [2], 8, True
            given.every_seed = True
        if given.precision == "auto":
            given.precision = "bf16" if activations("cuda" if torch.cuda.is_available() else "cpu") == BF16 else "fp32"
        self.given, self.arms = given, chosen
        self.folder: Path = given.output
        self.folder.mkdir(parents=True, exist_ok=True)
        self.shard, self.shards = _share(given.shard)
        self.lines = self.folder / f"rows-{self.shard}-of-{self.shards}.jsonl"
        self.end = time.monotonic() + 60 * given.minutes

    # ---- making the pictures ----

    def work(self) -> None:
        """Make what is missing: pictures at the equal scale, pictures to choose scales, pictures at the best scales,
        real scenes.

        A best scale is known once all shards have tried all scales. Before that, a message asks to run the command
        again.
        """
        maker = Maker(self.given)
        self._check_plan()
        done = {tuple(row["key"]) for row in self.rows()}
        tuned = (self._equal, self._tuning, self._best, self._real)
        for stage in (self._equal, self._real) if self.given.no_tuning else tuned:
            batches = [batch.without(done) for batch in stage() if self._mine(batch)]
            batches = [batch for batch in batches if batch.trials]
            left, begun, made = sum(len(batch.trials) for batch in batches), time.monotonic(), 0
            for batch in batches:
                if time.monotonic() > self.end:
                    return
                rows = maker.real(batch) if batch.measure == "real" else maker.pictures(batch, self._keep(batch))
                self._append(rows)
                made += len(rows)
                left -= len(rows)
                pace = (time.monotonic() - begun) / made
                print(
                    f"{batch.measure}: {batch.arm.name}, seed {batch.seed}, {batch.objects} objects, "
                    f"scale {batch.scale:g}: {pace:.2f} s each, {pace * left / 60:.0f} min left",
                    flush=True,
                )

    def _mine(self, batch: TrialBatch) -> bool:
        """Whether a batch belongs to this shard. It depends on the batch alone, not on which adapters or arms are
        there.
        """
        return zlib.crc32(repr(batch.key(batch.trials[0])).encode()) % self.shards == self.shard

    def _append(self, rows: Sequence[dict[str, Any]]) -> None:
        lines = "".join(f"{json.dumps(row)}\n" for row in rows).encode()
        with self.lines.open("ab+", buffering=0) as out:  # in one piece: others may append to the same file
            if out.tell():
                out.seek(-1, os.SEEK_END)
                if out.read() != b"\n":
                    lines = b"\n" + lines  # ends a line that a killed process left unfinished
            out.write(lines)

    def _check_plan(self) -> None:
        """Write plan.json. Raises ValueError if the folder's lines were made with other weights or settings."""
        from ...miniature.comfy_bundle import MODELS

        now: dict[str, Any] = {name: getattr(self.given, name) for name in SETTINGS}
        now |= {name: _sha256(self.given.miniature / f"{name}.safetensors") for name in MODELS}
        for arm in self.arms:
            for seed in self._seeds(arm) if arm.adapter else ():
                now[f"{arm.adapter}-{seed}"] = _sha256(trained.file(arm.adapter, seed, self.given.adapters))
        before = self._plan()
        if not before and self.rows():
            raise ValueError(
                f"The lines in {self.folder} came without the plan.json that says what they were made with. That of "
                "the shipped lines is research/ablation/plan.json: copy it there."
            )
        if changed := [name for name in before.keys() & now.keys() if before[name] != now[name]]:
            raise ValueError(
                f"The lines in {self.folder} were made with another {', another '.join(sorted(changed))}. Give another "
                "--output, or delete that folder to begin anew."
            )
        atomic_write(self.folder / "plan.json", json.dumps(before | now, indent=1))

    def _plan(self) -> dict[str, Any]:
        """What the folder's lines were made with; empty for a new folder."""
        plan = self.folder / "plan.json"
        return json.loads(plan.read_text()) if plan.is_file() else {}

    def _seeds(self, arm: Arm) -> tuple[int, ...]:
        """The training seeds of an arm's adapter; all seeds for the arm without an adapter."""
        there = trained.seeds(arm.adapter, self.given.adapters) if arm.adapter else trained.SEEDS
        return tuple(seed for seed in there if not self.given.seed or seed in self.given.seed)

    def _each(self, measure: str, scales: Callable[[Arm, int], Sequence[float]]) -> Iterator[TrialBatch]:
        """Batches of all arms, one training seed after the other, so that a stopped run has covered something of
        everything.
        """
        shares = arms.shared_out(self.given.prompts, trained.SEEDS, self.given.every_seed)
        for seed in trained.SEEDS:
            for objects in self.given.objects:
                for arm in self.arms:
                    if seed in self._seeds(arm):
                        for scale in scales(arm, objects):
                            yield from _batches(measure, arm, seed, objects, scale, shares[seed])

    def _real(self) -> Iterator[TrialBatch]:
        return self._each("real", lambda arm, _: (self.given.scale,) if arm.adapter else ())

    def _tuning(self) -> Iterator[TrialBatch]:
        """Batches to choose scales from, on training seed 0 alone, which every kind of adapter has."""
        for objects in self.given.objects:
            for arm in self.arms:
                for scale in arm.scales if 0 in self._seeds(arm) else ():
                    prompts = range(arms.prompts_to_choose(objects))
                    yield from _batches("tune", arm, 0, objects, scale, prompts)

    def _equal(self) -> Iterator[TrialBatch]:
        return self._each("picture", lambda *_: (self.given.scale,))

    def _best(self) -> Iterator[TrialBatch]:
        rows, missing = self.rows(), set()

        def scales(arm: Arm, objects: int) -> tuple[float, ...]:
            best = table.best_scale(rows, arm, objects)
            if best is None and arm.scales:
                missing.add(f"{arm.name}, {objects} objects")
            return () if best is None or best.scale in (0.0, self.given.scale) else (best.scale,)

        yield from self._each("picture", scales)
        if missing:
            print(f"Not all scales are tried yet ({'; '.join(sorted(missing))}): run this again when they are.")

    def _keep(self, batch: TrialBatch) -> Callable[[int, Tensor], None]:
        """A function that saves the pictures of the comparison, for people to look at."""

        def keep(trial: int, image: Tensor) -> None:
            if batch.measure == "picture":
                picture_grid.save(image, self._picture(batch.key(trial)))

        return keep

    def _picture(self, key: Sequence[Any]) -> Path:
        _, arm, seed, objects, scale, trial = key
        return self.folder / "pictures" / f"{objects} objects" / f"{arm}, scale {scale:g}, seed {seed}" / f"{trial}.png"

    # ---- the results ----

    def rows(self) -> list[dict[str, Any]]:
        """The lines of all shards. A line cut off by a full disk or a kill is ignored, so it is made again."""
        rows = []
        for file in sorted(self.folder.glob("rows-*.jsonl")):
            for line in file.read_text().splitlines():
                try:
                    rows.append(json.loads(line))
                except ValueError:
                    continue
        return list({tuple(row["key"]): row for row in rows}.values())

    def report(self) -> None:
        rows = self.rows()
        settings = {name: getattr(self.given, name) for name in SETTINGS} | table.prompts_of(rows)
        plan = self._plan()
        settings |= {name: value for name, value in plan.items() if name in SETTINGS}
        settings["base"] = base_of(plan)
        results = table.summarise(rows, self.given.scale)
        atomic_write(self.folder / "arms.json", json.dumps({"settings": settings, **results}, indent=1))
        atomic_write(self.folder / "arms.md", page.markdown(results, settings))
        for objects in self.given.objects:
            trials = arms.make_trials(GRID, objects, arms.SEED_TEST)
            columns = {
                arm.name: [self._picture(("", arm.name, 0, objects, self.given.scale, trial)) for trial in range(GRID)]
                for arm in self.arms
            }
            if (grid := picture_grid.draw_grid(trials, columns)) is not None:
                grid.save(self.folder / f"arms, {objects} objects.png")
        say(f"{self.folder.resolve()}: arms.json, arms.md, and a picture for each number of objects")


def _batches(
    measure: str, arm: Arm, seed: int, objects: int, scale: float, trials: Sequence[int]
) -> Iterator[TrialBatch]:
    """Batches of about equal size, with at most BATCH trials."""
    if trials:
        for some in torch.tensor(trials).tensor_split(math.ceil(len(trials) / BATCH)):
            yield TrialBatch(measure, arm, seed, objects, scale, tuple(some.tolist()))


def base_of(plan: Mapping[str, Any]) -> str:
    """Which of `page.PAGES` the lines of a plan.json are of, by the UNet that drew them; "taught" for any other."""
    root = trained.RESEARCH.parent
    for base, its in page.PAGES.items():
        if plan.get("unet") == json.loads((root / its.folder / "plan.json").read_text())["unet"]:
            return base
    return "taught"


def _share(text: str) -> tuple[int, int]:
    shard, _, shards = text.partition("/")
    if not (shard.isdigit() and shards.isdigit() and int(shard) < int(shards)):
        raise ValueError(f"--shard is {text}; it must be I/N with I from 0 to N - 1, such as 0/2 and 1/2.")
    return int(shard), int(shards)


def _sha256(file: Path) -> str:
    """Of its weights alone: what else a file says, as the machine that exported it, makes no other pictures."""
    return weights_sha256(load_file(file))
