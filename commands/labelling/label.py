"""A picture's boxes and masks from a detector and a segmenter, written in the training layout."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ...common.atomic_io import atomic_write
from ...common.crops import Box, window
from ...common.resumable import Parts, Row
from ...evaluation.detection.detect import Detector, detect
from ...evaluation.detection.detections import Detection, Detections
from ...evaluation.faces.find import FaceAnalyser, faces_in, seen_faces
from ...training.data_folder import mask_path
from ...training.filters import Filters, candidates, refuse_names, with_masks
from .read import Source, opened

MOST = 255  # objects in a mask of one byte


class Segmenter(Protocol):
    def masks(self, picture: Image.Image, boxes: Sequence[Box]) -> Tensor: ...


class Object(NamedTuple):
    """What was found of one object text.

    mask: [H, W] bool, within the box.
    face: the embedding [F] of a face in the box; None where none was looked for or found.
    """

    label: str
    box: Box
    score: float
    mask: np.ndarray
    face: Tensor | None = None


class Dropped(ValueError):
    """Why a picture is not in the dataset."""


@dataclass(frozen=True)
class Labeller:
    """Makes training data of pictures.

    output: the folder that is written.
    segmenter: cuts objects out of their boxes; None if the detector gives masks itself.
    threshold: the lowest score of a box.
    short_side: larger pictures are made smaller, to so many pixels on their shorter side; 0 leaves them.
    least: how many objects a picture must have that training would use; 0 keeps every picture with an object.
    analyser: finds the faces of people; None if the data is not for face adapters.
    """

    output: Path
    detector: Detector
    segmenter: Segmenter | None
    threshold: float = 0.3
    short_side: int = 1024
    least: int = 2
    filters: Filters = field(default_factory=Filters)
    analyser: FaceAnalyser | None = None

    def label(self, parts: Parts, known: dict[str, Source], rank: int, world: int, report: Any) -> None:
        """Makes the unfinished parts of this process. A part is finished when all its files are written."""
        with ThreadPoolExecutor(4) as pool:
            for part, ids in parts.todo(rank, world):
                read = [pool.submit(_opened, known[name], self.short_side) for name in ids]
                rows = [self._row(known[name], each.result()) for name, each in zip(ids, read, strict=True)]
                parts.finish(part, rows)
                if rank == 0:
                    report(f"{min(parts.finished() * parts.size, len(parts.ids)):,} of {len(parts.ids):,} pictures")

    def _row(self, source: Source, read: tuple[Image.Image, tuple[int, int]] | Exception) -> Row:
        """What became of a picture: its objects, or the reason why it was dropped; and every object that was."""
        row: Row = {"id": source.id, "lost": {}}
        if isinstance(read, Exception):
            return row | {"dropped": f"the file cannot be read ({type(read).__name__}: {read})"}
        picture, size = read
        try:
            objects = self._objects(source, picture, row["lost"])
            values = self._values(objects, picture)
            self._check(source, objects, values, picture)
            objects = self._with_faces(objects, picture)
        except Dropped as why:
            return row | {"dropped": str(why)}
        self._write(source, objects, values, picture, size)
        return row | {"objects": [each.label for each in objects]}

    def _objects(self, source: Source, picture: Image.Image, lost: dict[str, str]) -> list[Object]:
        """All that was found of the named objects, the surest last. lost: is told why a text has none."""
        if not source.caption:
            raise Dropped("it has no caption")
        if not source.objects:
            raise Dropped("its caption names no object")
        pixels = torch.from_numpy(np.array(picture))[None].float() / 255
        found: list[tuple[str, Detection]] = []
        for text, detections in self._detected(pixels, source.objects, lost):
            if why := detections.why_missing(0, 0):
                lost[text] = why.partition(";")[0].replace(" in picture 1", "")
            found += [(text, each) for each in detections.found[0][0]]
        found = sorted(found, key=lambda each: each[1].score)[-MOST:]
        if not found:
            raise Dropped("none of its objects was found")
        masks = self._masks(picture, [each for _, each in found])
        objects = []
        for (text, each), mask in zip(found, masks, strict=True):
            inside = np.zeros_like(mask)
            inside[window(each.box)] = mask[window(each.box)]
            if inside.any():
                objects.append(Object(text, each.box, each.score, inside))
            else:
                lost[text] = "the segmenter found nothing in a box of it"
        return objects

    def _detected(self, pixels: Tensor, texts: Sequence[str], lost: dict[str, str]) -> list[tuple[str, Detections]]:
        found = []
        for text in texts:
            try:
                found.append((text, detect(self.detector, pixels, [text], self.threshold, self.threshold)))
            except ValueError as error:  # a text that this detector cannot look for
                lost[text] = str(error).partition(":")[0]
        return found

    def _masks(self, picture: Image.Image, found: Sequence[Detection]) -> list[np.ndarray]:
        if self.segmenter is None:
            return [each.as_mask(picture.height, picture.width).numpy() > 0.5 for each in found]
        return [mask.numpy() for mask in self.segmenter.masks(picture, [each.box for each in found])]

    def _with_faces(self, objects: Sequence[Object], picture: Image.Image) -> Sequence[Object]:
        """The objects, each with the face in its box. Raises Dropped where the analyser fails."""
        if self.analyser is None:
            return objects
        pixels = torch.from_numpy(np.array(picture)).float() / 255
        try:
            found = faces_in([each.box for each in objects], seen_faces(self.analyser, pixels, "the picture"))
            faces = [None if face is None else face.embedding("the picture") for face in found]
        except ValueError as error:
            raise Dropped(str(error)) from error
        return [each._replace(face=face) for each, face in zip(objects, faces, strict=True)]

    def _values(self, objects: Sequence[Object], picture: Image.Image) -> np.ndarray:
        """The mask [H, W]: object i has the value i + 1, and where several overlap the surest is seen."""
        values = np.zeros((picture.height, picture.width), np.uint8)
        for number, each in enumerate(objects, 1):
            values[each.mask] = number
        return values

    def _check(self, source: Source, objects: Sequence[Object], values: np.ndarray, picture: Image.Image) -> None:
        """Raises Dropped if training would not use the picture, by its own filters."""
        if not objects:
            raise Dropped("none of its objects was found")
        if not self.least:
            return
        found, why = candidates(_entries(objects), source.caption, picture.size, self.filters, self.least)
        if not why:
            found, why = with_masks(found, values, self.filters, self.least)
        if why := why or refuse_names(found[: self.least], self.filters):
            raise Dropped(why)

    def _write(
        self, source: Source, objects: Sequence[Object], values: np.ndarray, picture: Image.Image, size: tuple[int, int]
    ) -> None:
        entries = [{"value": 0, "label": "background"}, *_entries(objects)]
        data = {"text": source.caption, "original_size": list(size), "final_masks": entries}
        atomic_write(self.output / "images" / f"{source.id}.png", _png(picture))
        atomic_write(mask_path(self.output, source.id), _png(Image.fromarray(values)))
        atomic_write(self.output / "jsons" / f"{source.id}.json", json.dumps(data, ensure_ascii=False))


def _opened(source: Source, short_side: int) -> tuple[Image.Image, tuple[int, int]] | Exception:
    try:
        return opened(source.path, short_side)
    except Exception as error:  # whatever a damaged file makes its decoder raise
        return error


def _entries(objects: Sequence[Object]) -> list[dict[str, Any]]:
    """The objects as `final_masks` of the json."""
    return [
        {
            "value": number,
            "label": each.label,
            "box": [round(edge, 2) for edge in each.box],
            "logit": round(each.score, 4),
        }
        | ({} if each.face is None else {"face": [round(number, 4) for number in each.face.tolist()]})
        for number, each in enumerate(objects, 1)
    ]


def _png(picture: Image.Image) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()
