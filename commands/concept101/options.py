"""The command line of `mip.py concept101`."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

from ...attention.options import STRATEGIES
from ...evaluation.concept101.schedule import Schedule, official_timesteps
from ...training.run_config import MINIATURE
from ..options import check_ranges
from .settings import NEGATIVE, Settings


def parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="mip.py concept101",
        description="Make the pictures of Concept101 (101 pairs, 12 prompts each) with an adapter, score them, and put "
        "the scores beside the published ones. The same command goes on where a stopped one was.",
    )
    add = parser.add_argument
    add("--data", type=Path, required=True, metavar="DIR", help="Concept101: dataset_multiconcept.json, prompts/, …")
    add("--output", type=Path, required=True, metavar="DIR", help="for pictures, scores and concept101.json, .csv, .md")
    add("--checkpoint", required=True, metavar="FILE", help="SDXL or SD1.5, or “miniature”")
    add("--clip-vision", default="", metavar="FILE", help="the adapter's image encoder; the miniature has its own")
    add("--vae", default="", metavar="FILE", help="another VAE than the checkpoint's")
    add("--adapter", required=True, metavar="FILE", help="MIP-Adapter or IP-Adapter, or “miniature”")
    add("--encoder", type=Path, metavar="DIR", help="for CLIP-T and CLIP-I: a local folder, CLIP ViT-B/32 in the paper")
    add("--dino", type=Path, metavar="DIR", help="for DINO: a local folder, dino-vits16 in the paper")
    add("--strategy", choices=STRATEGIES, default="relevance", help="the merge (default relevance)")
    add("--no-head", action="store_true", help="leave the adapter's fusion head out")
    add("--background", type=float, default=0.0, help="of the merge (default 0)")
    add("--sharpness", type=float, default=1.0, help="of the merge (default 1)")
    add("--scale", type=float, help="default 0.75 for base, 0.65 for plus weights")
    add("--steps", type=int, default=30, help="default 30")
    add("--cfg", type=float, default=5.0, help="default 5")
    add("--seed", type=int, default=420, help="default 420")
    add("--negative", default=NEGATIVE, help="negative prompt (default: the official code's)")
    add("--side", type=int, help="of the pictures (default 1024, miniature 128)")
    add("--uncropped", action="store_true", help="references are whole pictures: no json_data/ is needed")
    levels = "whose noise levels: the host's (default) or the official code's, which begin lower"
    add("--schedule", choices=get_args(Schedule), default="host", help=levels)
    add("--file-name-texts", action="store_true", help="CLIP-T reads file names, as in the official code")
    add("--pairs", type=int, metavar="N", help="only the first N pairs")
    add("--prompts", type=int, metavar="N", help="only the first N prompts of each pair")
    add("--name", help="of the row in the table (default: adapter and strategy)")
    add("--cpu", action="store_true", help="do not use a GPU")
    options = parser.parse_args(argv)
    check_ranges(parser, options, steps=(1, None), pairs=(1, None), prompts=(1, None), side=(64, None))
    if options.checkpoint != MINIATURE and not options.clip_vision:
        parser.error("--clip-vision is missing: name the image encoder that the adapter was trained with")
    if options.schedule == "official":
        try:
            official_timesteps(options.steps)
        except ValueError as error:
            parser.error(str(error))
    if options.dino and not options.encoder:
        parser.error("--dino needs --encoder as well")
    return options


def settings_of(options: argparse.Namespace) -> Settings:
    return Settings(
        checkpoint=options.checkpoint,
        adapter=options.adapter,
        clip_vision=options.clip_vision,
        vae=options.vae,
        strategy=options.strategy,
        head=not options.no_head,
        background=options.background,
        sharpness=options.sharpness,
        scale=options.scale,
        steps=options.steps,
        cfg=options.cfg,
        seed=options.seed,
        negative=options.negative,
        side=options.side or (128 if options.checkpoint == MINIATURE else 1024),
        cropped=not options.uncropped,
        schedule=options.schedule,
    )
