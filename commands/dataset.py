"""`python mip.py dataset`: from pictures with captions to training data, with boxes, masks and labels.

It runs in one process, or in one for each GPU: `accelerate launch --num_processes 8 mip.py dataset …`. The same command
resumes a run that was killed.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ..common.atomic_io import atomic_write
from ..common.console import exit_status, say
from ..common.drawing import colour
from ..common.pictures import open_picture
from ..common.resumable import Parts, Row, json_lines, open_parts, process
from ..evaluation.detection.folder_detector import load_detector
from ..evaluation.detection.segmenter import load_segmenter
from ..evaluation.faces.analyser import load_analyser
from ..evaluation.model_folder import identity, on, own_device
from ..miniature.pixel_detector import NAME, PixelDetector
from ..training.data_folder import picture_path, read_json, read_mask, write_subset
from ..training.filters import Filters
from .curation.sheet import Entry, contact_sheet
from .labelling.label import Labeller
from .labelling.read import Source, chosen, read_ids, sources
from .options import add_long_run, check_ranges

MINIATURE = Path("miniature")
PART = 16  # pictures in a part; a process that is killed makes at most so many again


def main(argv: Sequence[str]) -> int:
    """Runs the command; returns 0, or 1 with a sentence on stderr."""
    options = _parse(argv)
    finished = options.select and (options.folder / "jsons").is_dir()
    return exit_status(lambda: _list_chosen(options) if finished else make(options))


def make(options: argparse.Namespace) -> None:
    """Labels all pictures that are not done. The last process to finish writes the lists and the contact sheet."""
    rank, world = process()
    output = options.output
    if output is None or options.detector is None:
        raise ValueError("Name the folder to write, --output, and a --detector folder (or “miniature”).")
    if options.fresh and world > 1:
        raise ValueError("--fresh works with one process only; remove the folder of parts yourself.")
    if output.resolve() == options.folder.resolve():
        raise ValueError(f"--output is the folder of the pictures, {output}: choose another.")
    found = sources(options.folder, options.captions)
    if options.select:
        found, missing = chosen(found, read_ids(options.select))
        if not found:
            raise ValueError(f"No picture of {options.folder} is in {options.select}; its first id: {missing[0]}.")
        if missing and rank == 0:
            say(f"{len(missing):,} ids of {options.select.name} have no picture; the first: {missing[0]}")
    drawn = options.detector == MINIATURE
    if not drawn and options.segmenter is None:
        raise ValueError("A detector gives boxes only: name a --segmenter folder too, such as SAM.")
    settings = {
        "folder": str(options.folder.resolve()),
        "captions": _digest(found),
        "detector": NAME if drawn else identity(options.detector),
        "segmenter": "" if drawn else identity(options.segmenter),
        "threshold": options.threshold,
        "short side": options.short_side,
        "objects": options.min_objects,
        "filters": dataclasses.asdict(Filters()),
    }
    if options.faces is not None:
        settings["faces"] = options.faces.resolve().name
    ids = [source.id for source in found]
    parts = open_parts(output / "dataset.parts", ids, settings, options.part, options.fresh)
    if any(parts.todo(rank, world)):
        keeper = on(own_device(options.device))
        labeller = Labeller(
            output,
            PixelDetector() if drawn else load_detector(options.detector, keeper),
            None if drawn else load_segmenter(options.segmenter, keeper),
            options.threshold,
            options.short_side,
            options.min_objects,
            analyser=None if options.faces is None else load_analyser(options.faces),
        )
        if rank == 0 and parts.finished():
            say(f"Going on: {parts.finished()} of {len(parts)} parts are there.")
        labeller.label(parts, {source.id: source for source in found}, rank, world, say)
    if parts.finished() == len(parts):
        _conclude(parts, output, options)


def _conclude(parts: Parts, output: Path, options: argparse.Namespace) -> None:
    """Writes dropped.jsonl and the contact sheet, and says what became of all pictures.

    Several processes may do this at once. They write the same files, each atomically.
    """
    rows = list(parts.rows())
    kept = [row for row in rows if "objects" in row]
    dropped = [{"id": row["id"], "dropped": row["dropped"]} for row in rows if "dropped" in row]
    lost = [{"id": row["id"], "object": text, "dropped": why} for row in rows for text, why in row["lost"].items()]
    atomic_write(output / "dropped.jsonl", json_lines(dropped + lost))
    why = Counter(row["dropped"].partition(" (")[0] for row in dropped)
    left = "".join(f"\n  {count:,} dropped: {reason}" for reason, count in why.most_common())
    objects = sum(len(row["objects"]) for row in kept)
    say(f"{len(kept):,} of {len(rows):,} pictures are training data, with {objects:,} objects{left}")
    if lost:
        say(f"  {len(lost):,} named objects were not found or not cut out")
    if dropped or lost:
        say(f"  each with its reason: {output / 'dropped.jsonl'}")
    if not kept:
        raise ValueError(f"No picture of {options.folder} can be used for training; the reasons stand above.")
    if options.sheet:
        shown = [kept[i] for i in np.linspace(0, len(kept) - 1, min(options.sheet, len(kept))).round().astype(int)]
        title = f"{len(shown)} of {len(kept):,} pictures, with boxes, masks and labels"
        atomic_write(output / "dataset.png", contact_sheet([(title, [_entry(output, row) for row in shown])]))
        say(f"  contact sheet: {output / 'dataset.png'}")
    say(f"  train with it as data: {output}")


def _entry(output: Path, row: Row) -> Entry:
    """A picture of the sheet, each object's mask in the colour of its box."""
    data = read_json(output, row["id"])
    with open_picture(picture_path(output, row["id"])) as image:
        pixels = np.array(image.convert("RGB"), np.float32)
    values = read_mask(output, row["id"], (pixels.shape[1], pixels.shape[0]))
    found: list[dict[str, Any]] = data["final_masks"][1:]
    for number, each in enumerate(found):
        ink = np.array(colour(number), np.float32)
        pixels[values == each["value"]] = 0.6 * pixels[values == each["value"]] + 0.4 * ink
    picture = Image.fromarray(pixels.round().astype(np.uint8))
    caption = f"{row['id']}\n{data['text'][:34]}"
    return Entry(picture, [tuple(each["box"]) for each in found], [each["label"] for each in found], caption)


def _list_chosen(options: argparse.Namespace) -> None:
    """Writes the list of those pictures of a finished training folder that a list of ids names."""
    there = {path.stem for path in (options.folder / "jsons").glob("*.json")}
    ids = read_ids(options.select)
    kept = [name for name in ids if name in there]
    if not kept:
        raise ValueError(f"No picture of {options.folder} is in {options.select}; its first id: {ids[0]}.")
    path = (options.output or options.folder) / f"{options.select.stem}.kept.txt"
    write_subset(path, options.folder, kept)
    say(f"{len(kept):,} of {len(ids):,} ids are there: {path} (train with it as data)")
    if missing := [name for name in ids if name not in there]:
        say(f"  {len(missing):,} are not; the first: {missing[0]}")


def _digest(found: Sequence[Source]) -> str:
    """What a run depends on besides the pictures' ids: captions and objects."""
    text = "\n".join(f"{each.id}\t{each.caption}\t{each.objects}" for each in found)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="mip.py dataset",
        description="Make training data of pictures with captions: find the objects that captions name, cut them out, "
        "and write images/, masks/ and jsons/.",
    )
    add = parser.add_argument
    add("folder", type=Path, help="pictures; captions as .txt beside them, or in metadata.jsonl, .csv or .parquet")
    add("--output", type=Path, help="the folder of training data to write")
    add("--detector", type=Path, help="a local Grounding DINO folder, or “miniature” for drawn scenes")
    add("--segmenter", type=Path, help="a local SAM folder; not for “miniature”")
    add("--faces", type=Path, metavar="FOLDER", help="a model pack of InsightFace, such as buffalo_l: people's face "
        "embeddings are written too, for training FaceID adapters")  # fmt: skip
    add("--captions", type=Path, metavar="TABLE", help="columns file_name, text, and objects if you name them yourself")
    add("--select", type=Path, metavar="LIST", help="only these ids: selected_indexes….pkl, .json, or a text; with a "
        "folder that is training data already, only a list to train with is written")  # fmt: skip
    add("--threshold", type=float, default=0.3, help="the lowest score of a box (default 0.3)")
    add("--short-side", type=int, default=1024, metavar="PIXELS", help="larger pictures are made smaller; 0: never")
    add("--min-objects", type=int, default=2, metavar="N", help="drop pictures in which training would use fewer "
        "(default 2); 0 keeps all with an object")  # fmt: skip
    add("--sheet", type=int, default=36, metavar="N", help="pictures on the contact sheet, 0: no sheet")
    add_long_run(parser, PART, "make everything anew")
    options = parser.parse_args(argv)
    check_ranges(parser, options, threshold=(0, 1), short_side=(0, None), min_objects=(0, None), part=(1, None))
    return options
