"""`python mip.py concept101`: the paper's table for an adapter, by the real graph on Concept101.

Alone, or one process a GPU: `accelerate launch --num_processes 8 mip.py concept101 …`. Killed, it goes on where it was:
a picture that is there is not made again, a pair that is scored is not scored again. Process r of w takes the pairs r,
r + w, …; whoever finds all of them scored at its end writes the table, so that processes never wait for each other.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import os
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from ..attention.options import STRATEGIES
from ..training.curate_parts import Parts, open_parts, process, write_whole
from ..training.host_cli import prepare_host
from ..training.job import MINIATURE
from .concept101 import Pair, read_pairs, references
from .concept101_score import Scorer
from .concept101_settings import NEGATIVE, Settings, guard
from .concept101_table import tables
from .encoders import load_encoder, need_words
from .folders import on


def main(argv: Sequence[str]) -> int:
    """0 when this process's part is done, 1 with a sentence on stderr, 130 when it was stopped and can go on."""
    options = _parse(argv)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")  # pyright: ignore  (consoles without our quotation marks)
    try:
        run(options, _settings(options))
    except (ValueError, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("Stopped. The same command goes on from here.", file=sys.stderr)
        return 130
    return 0


def run(options: argparse.Namespace, settings: Settings) -> None:
    """Pictures, scores, and the table when nothing is left."""
    rank, world = process()
    pairs = [
        replace(pair, prompts=pair.prompts[: options.prompts])
        for pair in read_pairs(options.data, settings.cropped)[: options.pairs]
    ]
    described = settings.described()
    options.output.mkdir(parents=True, exist_ok=True)
    guard(options.output, described)
    encoders = _encoders(options)
    parts = _open_scores(options.output, pairs, described, encoders) if encoders else None
    device = _device(options.cpu)
    draw(pairs[rank::world], options.output, settings, device.type == "cpu", quiet=rank > 0)
    if parts is None:
        _say("The pictures are made. Name --encoder, and --dino, to score them.")
        return
    if any(parts.todo(rank, world)):
        words = need_words(load_encoder(options.encoder, on(device)), "CLIP-T")
        scorer = Scorer(words, load_encoder(options.dino, on(device)) if options.dino else None)
        for position, _ in parts.todo(rank, world):
            parts.finish(position, [scorer.row(pairs[position], picture_files(options.output, pairs[position]))])
    if parts.finished() == len(parts):
        name = options.name or f"{Path(settings.adapter).stem}, {settings.strategy}"
        made = tables(name, list(parts.rows()), described, encoders)
        for ending, text in made.items():  # several processes may come here at once
            write_whole(options.output / f"concept101.{ending}", text)
        _say(f"{made['md']}\nWritten: {options.output / 'concept101'}.json, .csv and .md")


def draw(pairs: Sequence[Pair], output: Path, settings: Settings, cpu: bool, quiet: bool) -> None:
    """The pictures of these pairs that are not there yet, each written whole or not at all."""
    missing = [(pair, n, f) for pair in pairs for n, f in enumerate(picture_files(output, pair)) if not f.exists()]
    if not missing:
        return
    prepare_host(cpu)
    from .host_painter import Painter

    painter, model, shown = Painter(settings), None, None
    begin = last = time.monotonic()
    for made, (pair, number, file) in enumerate(missing, 1):
        if pair is not shown:
            model, shown = painter.with_references(references(pair)), pair
        stream = io.BytesIO()
        painter.picture(model, pair.prompts[number], number).save(stream, "PNG")
        file.parent.mkdir(parents=True, exist_ok=True)
        write_whole(file, stream.getvalue())
        now = time.monotonic()
        if not quiet and (now - last > 10 or made == len(missing)):
            last, pace = now, (now - begin) / made
            left = pace * (len(missing) - made) / 60
            _say(f"{made:,} of {len(missing):,} pictures, {pace:.1f} s each, {left:.0f} min left")


def picture_files(output: Path, pair: Pair) -> list[Path]:
    """One a prompt."""
    return [output / "pictures" / pair.name / f"{number:02d}.png" for number in range(len(pair.prompts))]


def _encoders(options: argparse.Namespace) -> dict[str, str]:
    """The name of every metric's encoder."""
    if not options.encoder:
        return {}
    named = {"clip_t": options.encoder.resolve().name, "clip_i": options.encoder.resolve().name}
    return named | ({"dino": options.dino.resolve().name} if options.dino else {})


def _open_scores(
    output: Path, pairs: Sequence[Pair], described: Mapping[str, Any], encoders: Mapping[str, str]
) -> Parts:
    """A part for each pair, in a folder for just these encoders and prompts."""
    about = {**described, **encoders, "prompts": [list(pair.prompts) for pair in pairs]}
    digest = hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:8]
    return open_parts(output / f"scores-{digest}", [pair.name for pair in pairs], encoders, 1)


def _device(cpu: bool) -> torch.device:
    """A GPU of its own for every process; the host takes the current one."""
    if cpu or not torch.cuda.is_available():
        return torch.device("cpu")
    torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", 0)) % torch.cuda.device_count())
    return torch.device("cuda", torch.cuda.current_device())


def _say(text: str) -> None:
    print(text, flush=True)


def _settings(options: argparse.Namespace) -> Settings:
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
    )


def _parse(argv: Sequence[str]) -> argparse.Namespace:
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
    add("--pairs", type=int, metavar="N", help="only the first N pairs")
    add("--prompts", type=int, metavar="N", help="only the first N prompts of each pair")
    add("--name", help="of the row in the table (default: adapter and strategy)")
    add("--cpu", action="store_true", help="do not use a GPU")
    options = parser.parse_args(argv)
    for name, low in (("steps", 1), ("pairs", 1), ("prompts", 1), ("side", 64)):
        value = getattr(options, name)
        if value is not None and value < low:
            parser.error(f"--{name} is {value}; it must be {low} or more")
    if options.checkpoint != MINIATURE and not options.clip_vision:
        parser.error("--clip-vision is missing: name the image encoder that the adapter was trained with")
    if options.dino and not options.encoder:
        parser.error("--dino needs --encoder as well")
    return options
