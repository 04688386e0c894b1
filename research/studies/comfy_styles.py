"""`python mip.py styles`: objects with a style beside them; do they keep their looks, and what follows the style?

It calls the functions behind the nodes, and ComfyUI's sampler as KSampler calls it. See styles.py for what is measured.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from torch import Tensor

from ...attention.block_strength import ALL
from ...attention.reference import make_reference, make_style
from ...common.hashing import file_sha256
from ...common.resumable import Row
from ...weights.adapter import load_adapter
from ..ablation import arms
from . import styles
from .comfy_study import Maker, add_drawing_options, draw_missing, run
from .options import study_parser

BATCH = 16


def main(argv: list[str]) -> int:
    purpose = (__doc__ or "").splitlines()[0]
    parser = study_parser("styles", purpose, Path("output/styles"), "parts, lines.jsonl, styles.json and styles.md")
    add_drawing_options(parser, prompts=96)
    return run("styles", parser.parse_args(argv), styles.COMPARISON, work)


def work(given: argparse.Namespace) -> list[Row] | None:
    """See `draw_missing`."""
    settings = {
        "steps": given.steps, "guidance": given.guidance, "sampler": arms.SAMPLER, "scale": given.scale,
        "adapter": file_sha256(given.adapter), "unet": file_sha256(given.miniature / "unet.safetensors"),
    }  # fmt: skip
    ids = [f"{trial} {name}" for trial in range(given.prompts) for name in styles.SETTINGS]
    return draw_missing(given, ids, settings, BATCH, lambda: StyleMaker(given).rows)


class StyleMaker(Maker):
    """Pictures of two objects with references and a third thing, beside a style."""

    def __init__(self, given: argparse.Namespace) -> None:
        super().__init__(given, styles.THINGS)
        self.adapter, self.styles = load_adapter(given.adapter), styles.style_pictures(self.trials)

    def measured(self, trial: int, image: Tensor, judged: Row) -> Row:
        taken = styles.tint_taken(image, styles.tint_of(trial))
        measures = {measure: judged[measure] for measure in ("present", "own", "clear")}
        return {**measures, "tint": None if taken is None else round(taken, 4)}

    def applied(self, trial: int, setting: str) -> Any:
        from ...patching.apply import apply_references

        pictures, texts = self.trials.references[trial].movedim(1, -1), self.trials.texts(trial)
        chain = [
            make_reference(picture[None], text)
            for picture, text in zip(pictures[: styles.OBJECTS], texts[: styles.OBJECTS], strict=True)
        ]
        weight, over_time = styles.SETTINGS[setting]
        if weight:
            style = self.styles[trial][None]
            chain.append(make_style(style, "style", weight, preset=ALL, over_time=over_time))
        scale = self.given.scale
        return apply_references(self.model, self.clip, self.vision, self.adapter, tuple(chain), scale=scale)
