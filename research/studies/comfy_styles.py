"""`python mip.py styles`: objects with a style beside them; do they keep their looks, and what follows the style?

It calls the functions behind the nodes, and ComfyUI's sampler as KSampler calls it. See styles.py for what is measured.
A stopped run goes on where it was: every finished batch is a file in the output folder.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...attention.block_strength import ALL
from ...attention.reference import make_reference, make_style
from ...common.atomic_io import atomic_write
from ...common.comfy_path import prepare_host
from ...common.console import complain
from ...common.hashing import file_sha256
from ...common.resumable import Row, json_lines, open_parts
from ...miniature import judgement
from ...weights.adapter import load_adapter
from ..ablation import arms
from . import styles
from .options import study_parser

BATCH = 16
DECODED = 4  # pictures decoded at once


def main(argv: list[str]) -> int:
    purpose = (__doc__ or "").splitlines()[0]
    parser = study_parser("styles", purpose, Path("output/styles"), "parts, lines.jsonl, styles.json and styles.md")
    parser.add_argument("--prompts", type=int, default=96, help="each is drawn once in every setting")
    parser.add_argument("--steps", type=int, default=arms.STEPS)
    parser.add_argument("--guidance", type=float, default=arms.GUIDANCE)
    parser.add_argument("--minutes", type=float, default=1e9, help="stop after so long; the same command goes on")
    given = parser.parse_args(argv)
    torch.set_num_threads(given.threads)
    try:
        prepare_host(not torch.cuda.is_available())
        rows = work(given)
    except ValueError as error:
        complain(error)
        return 1
    if rows is None:
        print("Not all pictures are drawn yet: the same command goes on.")
        return 0
    lines = styles.summarise(rows)
    settings = {name: str(value) for name, value in vars(given).items()}
    for name, text in (
        ("lines.jsonl", json_lines(rows)),
        ("styles.json", json.dumps({"settings": settings, "results": lines}, indent=1)),
        ("styles.md", styles.markdown(lines) + "\n"),
    ):
        atomic_write(given.output / name, text)
    print(styles.markdown(lines))
    return 0


def work(given: argparse.Namespace) -> list[Row] | None:
    """Draw and judge what is missing. Returns all rows, or None if the time ended before."""
    settings = {
        "steps": given.steps, "guidance": given.guidance, "sampler": arms.SAMPLER, "scale": given.scale,
        "adapter": file_sha256(given.adapter), "unet": file_sha256(given.miniature / "unet.safetensors"),
    }  # fmt: skip
    ids = [f"{trial} {name}" for trial in range(given.prompts) for name in styles.SETTINGS]
    parts, end = open_parts(given.output, ids, settings, BATCH), time.monotonic() + 60 * given.minutes
    maker = None
    for part, some in parts.todo():
        if time.monotonic() > end:
            return None
        maker = maker or Maker(given)
        parts.finish(part, maker.rows([(int(trial), name) for trial, name in (each.split(" ", 1) for each in some)]))
        print(f"{parts.finished()} of {len(parts)} parts", flush=True)
    return list(parts.rows())


class Maker:
    """Draws and judges pictures with the miniature."""

    def __init__(self, given: argparse.Namespace) -> None:
        from ...miniature import comfy_bundle

        self.given, self.adapter = given, load_adapter(given.adapter)
        self.model, self.clip, self.vae, self.vision = comfy_bundle.load(given.miniature)
        self.trials = arms.make_trials(given.prompts, styles.THINGS, arms.SEED_TEST)
        self.styles = styles.style_pictures(self.trials)

    @torch.inference_mode()
    def rows(self, pictures: list[tuple[int, str]]) -> list[Row]:
        """One row for each prompt (by number) and setting (by name)."""
        trials = self.trials
        rows = []
        for (trial, name), image in zip(pictures, self._drawn(pictures), strict=True):
            looks, colours = trials.scenes.looks[trial, : styles.THINGS], trials.scenes.colours[trial, : styles.THINGS]
            judged = judgement.score(image, trials.scenes.present(trial), looks, colours)
            taken = styles.tint_taken(image, styles.tint_of(trial))
            measures = {measure: judged[measure] for measure in ("present", "own", "clear")}
            tint = None if taken is None else round(taken, 4)
            rows.append({"key": [name, trial], **measures, "tint": tint})
        return rows

    def _drawn(self, pictures: list[tuple[int, str]]) -> Tensor:
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
        model = comfy_rows.combine([self._applied(trial, styles.SETTINGS[name]) for trial, name in pictures])
        latents = comfy_rows.sample(
            model, positive, negative, noise, self.given.steps, self.given.guidance, arms.SAMPLER
        )
        images = torch.cat([self.vae.decode(some) for some in latents.split(DECODED)])
        return images.float().clamp(0, 1).movedim(-1, 1)

    def _applied(self, trial: int, setting: styles.Setting) -> Any:
        """The model with two objects, and with the style where it has a weight."""
        from ...patching.apply import apply_references

        pictures, texts = self.trials.references[trial].movedim(1, -1), self.trials.texts(trial)
        chain = [
            make_reference(picture[None], text)
            for picture, text in zip(pictures[: styles.OBJECTS], texts[: styles.OBJECTS], strict=True)
        ]
        if setting.weight:
            style = self.styles[trial][None]
            chain.append(make_style(style, "style", setting.weight, preset=ALL, over_time=setting.over_time))
        scale = self.given.scale
        return apply_references(self.model, self.clip, self.vision, self.adapter, tuple(chain), scale=scale)
