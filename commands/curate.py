"""`python mip.py curate`: the object quality score of every picture of a training folder, and the choice of the best.

It runs in one process, or in one for each GPU: `accelerate launch --num_processes 8 mip.py curate …`. The same command
resumes a run that was killed.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from ..common.atomic_io import atomic_write
from ..common.console import exit_status, say
from ..common.pictures import open_picture
from ..common.resumable import Parts, Row, open_parts, process
from ..evaluation.encoders.encoder import load_encoder, need_words
from ..evaluation.model_folder import identity, on, own_device
from ..training.data_folder import write_subset
from .curation.read import Folder
from .curation.score import score
from .curation.sheet import Entry, contact_sheet
from .curation.table import best, check_table, ranked, write_table
from .options import add_long_run, check_ranges

PART = 64  # pictures in a part; a process that is killed loses at most this many scores


def main(argv: Sequence[str]) -> int:
    """Runs the command; returns 0, or 1 with a sentence on stderr."""
    options = _parse(argv)
    return exit_status(lambda: curate(options))


def curate(options: argparse.Namespace) -> None:
    """Scores all pictures without a score. The last process to finish writes table, list of kept ids and sheet."""
    rank, world = process()
    output = options.output or options.folder / "quality.jsonl"
    check_table(output)
    if options.fresh and world > 1:
        raise ValueError("--fresh works with one process only; remove the folder of parts yourself.")
    if options.folder.is_file():
        raise ValueError(f"{options.folder} is a file: name the folder that holds images/, masks/ and jsons/.")
    folder = Folder(options.folder, options.min_objects, options.max_objects)
    by = identity(options.encoder)
    settings = {
        "dataset": str(folder.path.resolve()),
        "encoder": by,
        "objects": f"{folder.least} to {folder.most or 'all'}",
        "filters": dataclasses.asdict(folder.filters),
    }
    parts = open_parts(output.with_name(f"{output.name}.parts"), folder.ids(), settings, options.part, options.fresh)
    if any(parts.todo(rank, world)):
        encoder = need_words(load_encoder(options.encoder, on(own_device(options.device))), "The object quality score")
        if rank == 0 and parts.finished():
            say(f"Going on: {parts.finished()} of {len(parts)} parts are there.")
        score(parts, folder.objects, encoder, rank, world, options.workers, say)
    if parts.finished() == len(parts):
        _conclude(parts, folder, by, output, options)


def _conclude(parts: Parts, folder: Folder, encoder: str, output: Path, options: argparse.Namespace) -> None:
    """Writes the table, the list of kept ids and the contact sheet.

    Several processes may do this at once. They write the same files, each atomically.

    encoder: its identity (`model_folder.identity`).
    output: the table's path; the other files are beside it.
    """
    rows = list(parts.rows())
    scored = [row for row in rows if "total" in row]
    broken = [f"{row['id']}: {row['broken']}\n" for row in rows if "broken" in row]
    why = Counter(row["left_out"] for row in rows if "left_out" in row)
    left = "".join(f"\n  {count:,} left out: {reason}" for reason, count in why.most_common())
    say(f"{len(scored):,} of {len(rows):,} pictures scored, {len(broken):,} broken{left}")
    if broken:
        atomic_write(output.with_suffix(".broken.txt"), "".join(broken))
        say(f"  broken pictures: {output.with_suffix('.broken.txt')}")
    if not scored:
        raise ValueError(
            f"No picture of {folder.path} has {folder.least} objects that training takes, so there is nothing to score."
        )
    write_table(output, scored, encoder)
    say(f"  scores: {output}, by the encoder {encoder}")
    if len({row["objects"] == 1 for row in scored}) > 1:
        say("  pictures of one object have no pairs, so their totals do not compare with the others'")
    if options.keep is not None or options.quantile is not None:
        kept, path = best(scored, options.keep, options.quantile), output.with_suffix(".kept.txt")
        write_subset(path, folder.path, [row["id"] for row in kept])
        say(f"  kept: {len(kept):,} pictures, total {kept[-1]['total']:.3f} or more: {path} (train with it as dataset)")
    if options.sheet:
        order, path = ranked(scored), output.with_suffix(".png")
        shown = min(options.sheet, (len(order) + 1) // 2)
        sections = [
            (f"Best {shown} of {len(order):,} by object quality, seen by {encoder}", order[:shown]),
            ("Worst, the very worst last", order[len(order) - min(shown, len(order) - shown) :]),
        ]
        atomic_write(path, contact_sheet([(title, [_entry(folder, row) for row in each]) for title, each in sections]))
        say(f"  the best and the worst: {path}")


def _entry(folder: Folder, row: Row) -> Entry:
    data, boxes, left = folder.data(row["id"]), [], list(row["labels"])
    for found in sorted((e for e in data["final_masks"] if "box" in e), key=lambda e: -float(e.get("logit", 1))):
        label = str(found["label"]).strip()
        if label in left:
            left.remove(label)
            boxes.append((label, tuple(found["box"])))
    with open_picture(folder.picture(row["id"])) as image:
        picture = image.convert("RGB")
    caption = f"{row['total']:.3f}\nsingle {row['single']:.3f}  pair {row['pair']:.3f}\n{row['id']}"
    return Entry(picture, [box for _, box in boxes], [label for label, _ in boxes], caption)


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="mip.py curate",
        description="Score how well the objects of training pictures match their words and differ from each other "
        "(S = mean cos(text, image) - mean cos between the images of different objects), and keep the best.",
    )
    add = parser.add_argument
    add("folder", type=Path, help="training data: images/ID.png, masks/ID.png, jsons/ID.json")
    add("--encoder", type=Path, required=True, help="a local CLIP or SigLIP folder (config.json, .safetensors, …)")
    add("--output", type=Path, help="the table, .jsonl or .parquet (default: quality.jsonl in the folder)")
    choice = parser.add_mutually_exclusive_group()
    choice.add_argument("--keep", type=int, metavar="K", help="list the K best pictures")
    choice.add_argument(
        "--quantile", type=float, metavar="Q", help="list the pictures above this quantile, 0.9: the best tenth"
    )
    add("--sheet", type=int, default=18, metavar="N", help="pictures of each end on the contact sheet, 0: no sheet")
    add("--min-objects", type=int, default=2, help="objects a picture must have (default 2)")
    add("--max-objects", type=int, help="objects that are scored, the most confident first (default: all usable ones)")
    add("--workers", type=int, default=min(8, os.cpu_count() or 1), help="threads that read pictures")
    add_long_run(parser, PART, "forget the scores of earlier runs")
    options = parser.parse_args(argv)
    check_ranges(parser, options, keep=(1, None), quantile=(0, 1), workers=(1, None), part=(1, None))
    most = options.min_objects if options.max_objects is None else options.max_objects
    if not 1 <= options.min_objects <= most:
        parser.error("--min-objects must be 1 or more, and not above --max-objects")
    return options
