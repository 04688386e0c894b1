"""What the commands share that draw many pictures, judge them and compare settings.

A stopped run goes on where it was: every finished batch is a file in the output folder.
"""

from __future__ import annotations

import argparse
import json
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ...common.atomic_io import atomic_write
from ...common.comfy_path import prepare_host
from ...common.console import complain
from ...common.resumable import Row, json_lines, open_parts
from ...miniature import judgement
from ..ablation import arms
from .comparison import Comparison

DECODED = 4  # pictures decoded at once


def add_drawing_options(
    parser: argparse.ArgumentParser, prompts: int, steps: int = arms.STEPS, guidance: float = arms.GUIDANCE
) -> None:
    """The options of drawing, with their defaults."""
    parser.add_argument("--prompts", type=int, default=prompts, help="each is drawn in every setting")
    parser.add_argument("--steps", type=int, default=steps)
    parser.add_argument("--guidance", type=float, default=guidance)
    parser.add_argument("--minutes", type=float, default=1e9, help="stop after so long; the same command goes on")


def begin(given: argparse.Namespace) -> None:
    """Make ComfyUI ready to be imported. Raises ValueError without one."""
    torch.set_num_threads(given.threads)
    prepare_host(not torch.cuda.is_available())


def run(
    name: str,
    given: argparse.Namespace,
    comparison: Comparison,
    work: Callable[[argparse.Namespace], list[Row] | None],
) -> int:
    """The command after its options are read. Writes lines.jsonl, NAME.json and NAME.md into --output.

    work: all rows, or None if the time ended before. A ValueError is for the user.

    Returns the exit status.
    """
    try:
        begin(given)
        rows = work(given)
    except ValueError as error:
        complain(error)
        return 1
    if rows is None:
        print("Not all pictures are drawn yet: the same command goes on.")
        return 0
    lines = comparison.summarise(rows)
    settings = {option: str(value) for option, value in vars(given).items()}
    atomic_write(given.output / "lines.jsonl", json_lines(rows))
    atomic_write(given.output / f"{name}.json", json.dumps({"settings": settings, "results": lines}, indent=1))
    atomic_write(given.output / f"{name}.md", comparison.markdown(lines) + "\n")
    print(comparison.markdown(lines))
    return 0


def draw_missing(
    given: argparse.Namespace,
    ids: Sequence[str],
    settings: Mapping[str, Any],
    size: int,
    make: Callable[[], Callable[[Sequence[str]], list[Row]]],
) -> list[Row] | None:
    """Draw and judge what is missing. Returns all rows, or None if --minutes ended before.

    settings: what a run that goes on must not change, beside `ids` in parts of `size`.
    make: makes what draws the pictures of some ids, if any are missing.
    """
    parts, end = open_parts(given.output, ids, settings, size), time.monotonic() + 60 * given.minutes
    draw = None
    for part, some in parts.todo():
        if time.monotonic() > end:
            return None
        draw = draw or make()
        parts.finish(part, draw(some))
        print(f"{parts.finished()} of {len(parts)} parts", flush=True)
    return list(parts.rows())


class Maker(ABC):
    """Draws and judges pictures with the miniature, each of a prompt and a setting.

    things: how many a prompt names.
    """

    def __init__(self, given: argparse.Namespace, things: int) -> None:
        from ...miniature import comfy_bundle

        self.given, self.things = given, things
        self.model, self.clip, self.vae, self.vision = comfy_bundle.load(given.miniature)
        self.trials = arms.make_trials(given.prompts, things, arms.SEED_TEST)

    @abstractmethod
    def applied(self, trial: int, setting: str) -> Any:
        """The model with the prompt's references in a setting."""

    @abstractmethod
    def measured(self, trial: int, image: Tensor, judged: Row) -> Row:
        """What is kept of a picture [3, S, S]. judged: by `judgement.score`."""

    @torch.inference_mode()
    def rows(self, ids: Sequence[str]) -> list[Row]:
        """One row for each "PROMPT SETTING", the prompt by its number."""
        scenes, rows = self.trials.scenes, []
        pictures = [(int(trial), setting) for trial, setting in (each.split(" ", 1) for each in ids)]
        for (trial, setting), image in zip(pictures, self._drawn(pictures), strict=True):
            looks, colours = scenes.looks[trial, : self.things], scenes.colours[trial, : self.things]
            judged = judgement.score(image, scenes.present(trial), looks, colours)
            rows.append({"key": [setting, trial], **self.measured(trial, image, judged)})
        return rows

    def _drawn(self, pictures: Sequence[tuple[int, str]]) -> Tensor:
        """[B, 3, S, S] in 0..1."""
        from .. import comfy_rows

        prompts = [self.trials.prompts[trial] for trial, _ in pictures]
        noise = comfy_rows.noise_of([self.trials.seeds[trial] for trial, _ in pictures], 16)
        positive, negative = (
            comfy_rows.conditioning(
                [self.clip.encode_from_tokens(self.clip.tokenize(text), return_pooled=True) for text in texts]
            )
            for texts in (prompts, [""])
        )
        model = comfy_rows.combine([self.applied(trial, setting) for trial, setting in pictures])
        steps, guidance = self.given.steps, self.given.guidance
        latents = comfy_rows.sample(model, positive, negative, noise, steps, guidance, arms.SAMPLER)
        images = torch.cat([self.vae.decode(some) for some in latents.split(DECODED)])
        return images.float().clamp(0, 1).movedim(-1, 1)
