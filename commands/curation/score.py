"""Scores many pictures: they are read in threads, encoded in batches, and their scores are written part by part."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple, Protocol

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from ...common.resumable import Parts, Row
from ...evaluation.quality.score import object_quality


class LabelledCrops(NamedTuple):
    """One picture's objects. crops: PIL images or uint8 arrays [H, W, 3]."""

    labels: Sequence[str]
    crops: Sequence[object]


class Encoder(Protocol):
    def texts(self, words: Sequence[str]) -> Tensor: ...

    def images(self, pictures: Sequence[object]) -> Tensor: ...


Read = Callable[[str], LabelledCrops | str]  # id -> objects, or why there is no score; ValueError for a broken file
Report = Callable[[str], None]


def score(parts: Parts, read: Read, encoder: Encoder, rank: int, world: int, threads: int, report: Report) -> None:
    """Scores the unfinished parts of this process.

    A row holds an id with labels and scores, or with the reason `left_out` or `broken`.

    parts: the job.
    read: returns a picture's objects.
    rank, world: this process and their number.
    threads: that read pictures.
    report: called with lines of progress.
    """
    words: dict[str, Tensor] = {}
    begin, made = time.monotonic(), parts.finished()
    last = begin
    with ThreadPoolExecutor(threads) as pool:
        for part, ids, read_ahead in _ahead(parts.todo(rank, world), pool, read):
            rows = _rows(ids, [_outcome(future) for future in read_ahead], encoder, words)
            parts.finish(part, rows)
            for row in rows:
                if "broken" in row:
                    report(f"  broken: {row['id']}: {row['broken']}")
            now, done = time.monotonic(), parts.finished()
            if rank == 0 and (now - last > 5 or done == len(parts)):
                last = now
                report(_progress(parts, done, (done - made) / (now - begin)))


def _progress(parts: Parts, done: int, pace: float) -> str:
    """The progress as a line. done: finished parts; pace: parts in a second, of all processes together."""
    pictures = min(done * parts.size, len(parts.ids))
    left = (len(parts) - done) / pace if pace else 0.0
    eta = f"{left / 3600:.1f} h" if left > 5400 else f"{left / 60:.0f} min" if left > 90 else f"{left:.0f} s"
    return f"{pictures:,} of {len(parts.ids):,} pictures, {pace * parts.size:.1f}/s, {eta} left"


def _ahead(
    todo: Iterator[tuple[int, tuple[str, ...]]], pool: ThreadPoolExecutor, read: Read
) -> Iterator[tuple[int, tuple[str, ...], list[Future]]]:
    """Each part with its pictures as futures. The next part is read while one is encoded."""
    waiting = None
    for part, ids in todo:
        coming = part, ids, [pool.submit(read, name) for name in ids]
        if waiting:
            yield waiting
        waiting = coming
    if waiting:
        yield waiting


def _outcome(future: Future) -> LabelledCrops | str | ValueError:
    try:
        return future.result()
    except (ValueError, OSError) as error:
        return error if isinstance(error, ValueError) else ValueError(str(error))


def _rows(
    ids: Sequence[str], outcomes: Sequence[LabelledCrops | str | ValueError], encoder: Encoder, words: dict[str, Tensor]
) -> list[Row]:
    """The rows of a part, in the order of its ids.

    words: text embeddings by label; new ones are added.
    """
    scored = [(name, each) for name, each in zip(ids, outcomes, strict=True) if isinstance(each, LabelledCrops)]
    rows: dict[str, Row] = {}
    for name, each in zip(ids, outcomes, strict=True):
        if isinstance(each, str):
            rows[name] = {"id": name, "left_out": each}
        elif isinstance(each, ValueError):
            rows[name] = {"id": name, "broken": str(each)}
    if scored:
        unknown = sorted({label for _, each in scored for label in each.labels} - words.keys())
        if unknown:
            words.update(zip(unknown, encoder.texts(unknown), strict=True))
        image = encoder.images([crop for _, each in scored for crop in each.crops])
        counts = [len(each.labels) for _, each in scored]
        text = pad_sequence([torch.stack([words[label] for label in each.labels]) for _, each in scored], True)
        quality = object_quality(text, pad_sequence(list(image.split(counts)), True), counts)
        for row, (name, each) in enumerate(scored):
            # Six decimals of float32 are the same for any number of threads.
            values = {key: round(float(getattr(quality, key)[row]), 6) for key in quality._fields}
            rows[name] = {"id": name, "objects": counts[row], "labels": list(each.labels), **values}
    return [rows[name] for name in ids]
