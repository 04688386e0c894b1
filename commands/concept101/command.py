"""`python mip.py concept101`: the published table for an adapter, by the real graph on Concept101.

It runs in one process, or in one for each GPU: `accelerate launch --num_processes 8 mip.py concept101 …`. The same
command resumes a run that was killed: a picture that exists is not made again, and a pair is scored again only if its
pictures have changed. Process r of w takes the pairs r, r + w, …. A process that finds all pairs scored at its end
writes the table, so that processes never wait for each other.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import os
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from ...common.atomic_io import atomic_write
from ...common.comfy_path import prepare_host
from ...common.console import exit_status, say
from ...common.resumable import Parts, open_parts, process
from ...evaluation.concept101.dataset import Pair, digest, read_pairs, references
from ...evaluation.concept101.score import Scorer, contents
from ...evaluation.concept101.table import tables
from ...evaluation.encoders.encoder import load_encoder, need_words
from ...evaluation.model_folder import identity, on
from ...training.run_config import MINIATURE
from ...weights.files import read_tensors
from ...weights.spec import AdapterSpec, read_spec
from .options import parse, settings_of
from .remarks import of_settings, of_texts
from .settings import Settings, guard


def main(argv: Sequence[str]) -> int:
    """Runs the command.

    Returns 0 when this process's pairs are done, 1 with a sentence on stderr, 130 if it was stopped and can resume.
    """
    options = parse(argv)
    return exit_status(lambda: run(options, settings_of(options)))


def run(options: argparse.Namespace, settings: Settings) -> None:
    """Makes the missing pictures, scores the pairs, and writes the table when all pairs are scored."""
    rank, world = process()
    every = read_pairs(options.data, settings.cropped)
    pairs = [replace(pair, prompts=pair.prompts[: options.prompts]) for pair in every[: options.pairs]]
    described = {**settings.described(), "data": digest(every)}
    options.output.mkdir(parents=True, exist_ok=True)
    guard(options.output, described)
    device = _device(options.cpu)
    encoders = _encoders(options)
    if encoders:
        _scorer(options, torch.device("cpu"))  # fails here, before hours of drawing, if they cannot be loaded
    draw(pairs[rank::world], options.output, settings, device.type == "cpu", quiet=rank > 0)
    if not encoders:
        say("The pictures are made. Name --encoder, and --dino, to score them.")
        return
    parts = _open_scores(options, pairs, described)
    _remove_changed(parts, pairs, options.output, rank, world)
    if any(parts.todo(rank, world)):
        scorer = _scorer(options, device)
        for index, _ in parts.todo(rank, world):
            parts.finish(index, [scorer.row(pairs[index], picture_files(options.output, pairs[index]))])
    if (finished := parts.finished()) < len(parts):
        say(f"{finished} of {len(parts)} pairs are scored; the last process to finish writes the table.")
        return
    name = options.name or f"{Path(settings.adapter).stem}, {settings.strategy}"
    more = [*of_settings(settings, _spec(settings.adapter)), *of_texts(pairs, options.file_name_texts)]
    made = tables(name, list(parts.rows()), described, encoders, more)
    for ending, text in made.items():  # several processes may come here at once
        atomic_write(options.output / f"concept101.{ending}", text)
    say(f"{made['md']}\nWritten: {options.output / 'concept101'}.json, .csv and .md")


def draw(pairs: Sequence[Pair], output: Path, settings: Settings, cpu: bool, quiet: bool) -> None:
    """Makes the missing pictures of these pairs and writes each atomically.

    output: the run's folder.
    cpu: sample on the CPU.
    quiet: print no progress.
    """
    missing = [(pair, n, f) for pair in pairs for n, f in enumerate(picture_files(output, pair)) if not f.exists()]
    if not missing:
        return
    prepare_host(cpu)
    from .comfy_painter import Painter

    painter, model, shown = Painter(settings), None, None
    begin = last = time.monotonic()
    for made, (pair, number, file) in enumerate(missing, 1):
        if file.exists():  # by now another process has made it
            continue
        if pair is not shown:
            model, shown = painter.with_references(references(pair)), pair
        stream = io.BytesIO()
        painter.picture(model, pair.prompts[number], number).save(stream, "PNG")
        with suppress(FileExistsError):  # two at once: scores are of the first, and it stays
            atomic_write(file, stream.getvalue(), replace=False)
        now = time.monotonic()
        if not quiet and (now - last > 10 or made == len(missing)):
            last, pace = now, (now - begin) / made
            left = pace * (len(missing) - made) / 60
            say(f"{made:,} of {len(missing):,} pictures, {pace:.1f} s each, {left:.0f} min left")


def picture_files(output: Path, pair: Pair) -> list[Path]:
    """The files of a pair's pictures, one for each prompt."""
    return [output / "pictures" / pair.name / f"{number:02d}.png" for number in range(len(pair.prompts))]


def _encoders(options: argparse.Namespace) -> dict[str, str]:
    """{metric: name of its encoder}; empty without --encoder."""
    if not options.encoder:
        return {}
    named = {"clip_t": options.encoder.resolve().name, "clip_i": options.encoder.resolve().name}
    return named | ({"dino": options.dino.resolve().name} if options.dino else {})


def _scorer(options: argparse.Namespace, device: torch.device) -> Scorer:
    """The scorer, in float32: half precision would show in the table's fourth digit."""
    keeper = on(device, torch.float32)
    words = need_words(load_encoder(options.encoder, keeper), "CLIP-T")
    dino = load_encoder(options.dino, keeper) if options.dino else None
    return Scorer(words, dino, options.file_name_texts)


def _open_scores(options: argparse.Namespace, pairs: Sequence[Pair], described: Mapping[str, Any]) -> Parts:
    """A part for each pair, in a folder for just these encoders and texts."""
    by = {"encoder": identity(options.encoder), "dino": identity(options.dino) if options.dino else ""}
    about = {**described, **by, "prompts": [list(pair.prompts) for pair in pairs]}
    if options.file_name_texts:
        about["texts"] = "file names"
    key = hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:8]
    return open_parts(options.output / f"scores-{key}", [pair.name for pair in pairs], by, 1)


def _remove_changed(parts: Parts, pairs: Sequence[Pair], output: Path, rank: int, world: int) -> None:
    """Removes this process's parts whose pictures have changed, so that they are scored again."""
    for part in range(rank, len(parts), world):
        file, pictures = parts.path(part), picture_files(output, pairs[part])
        if file.exists() and json.loads(file.read_text("utf-8")).get("files") != contents(pictures):
            file.unlink(missing_ok=True)


def _spec(adapter: str) -> AdapterSpec | None:
    """None for the miniature's, and for any file where the pictures are another method's."""
    try:
        return None if adapter == MINIATURE else read_spec(read_tensors(adapter))
    except ValueError:
        return None


def _device(cpu: bool) -> torch.device:
    """The process's own GPU, or the CPU. It becomes the current device, which ComfyUI takes."""
    if cpu or not torch.cuda.is_available():
        return torch.device("cpu")
    torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", 0)) % torch.cuda.device_count())
    return torch.device("cuda", torch.cuda.current_device())
