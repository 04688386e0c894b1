"""The face of one person in each of their pictures, by any face analyser."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from ...common.crops import Box, as_bytes
from ...common.text import brief
from .align import PLACES, aligned, similarity

LARGEST = 0
# Widths to which analysers of InsightFace's kind shrink a picture. Faces that fill it are found in the smaller ones.
SIZES = range(640, 256, -64)


class FaceAnalyser(Protocol):
    """What other packs' sockets give: InsightFace's FaceAnalysis, or anything that answers as it does."""

    def get(self, img: np.ndarray, /) -> Sequence[Any]:
        """The faces in a picture, [H, W, 3] bytes in the order blue, green, red.

        Each has `bbox` (left, top, right, bottom), `kps` [5, 2] and `embedding` [F].
        """
        ...


class FoundFaces(NamedTuple):
    """A person's faces.

    embeddings: [B, F], before normalisation.
    crops: [B, S, S, 3] in 0..1, aligned.
    remarks: sentences about what the artist may not expect.
    """

    embeddings: Tensor
    crops: Tensor
    remarks: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class SeenFace:
    """One face in a picture.

    box: left, top, right, bottom in pixels.
    points: [5, 2], eyes, nose and corners of the mouth, x and y in pixels.
    given: what the analyser gives as its embedding.
    """

    box: Box
    points: np.ndarray
    given: Any

    @property
    def area(self) -> float:
        return (self.box[2] - self.box[0]) * (self.box[3] - self.box[1])

    @property
    def middle(self) -> tuple[float, float]:
        return (self.box[0] + self.box[2]) / 2, (self.box[1] + self.box[3]) / 2

    def embedding(self, where: str) -> Tensor:
        """[F], before normalisation. where: the picture, for the ValueError if there is no usable one."""
        embedding = torch.zeros(0) if self.given is None else torch.as_tensor(np.asarray(self.given)).float().flatten()
        if embedding.numel() == 0:
            raise ValueError(
                f"The face analyser finds the face in {where} and does not recognise it: it gives no embedding. Its "
                "folder needs a recognition model too, such as buffalo_l's w600k_r50.onnx."
            )
        if not bool(torch.isfinite(embedding).all()) or not bool(embedding.any()):
            raise ValueError(
                f"The face analyser gives no usable embedding for {where}: try another picture or analyser."
            )
        return embedding

    def is_cut_off(self, picture: Tensor) -> bool:
        """Whether the face reaches beyond the border of the picture [H, W, 3]."""
        left, top, right, bottom = self.box
        return left < 0 or top < 0 or right > picture.shape[1] or bottom > picture.shape[0]


def find_faces(analyser: FaceAnalyser, pictures: Tensor, text: str, which: int = LARGEST) -> FoundFaces:
    """One face from each picture [B, H, W, 3].

    text: whose faces, for messages.
    which: LARGEST, or 1, 2, …: the face at this place from the left.

    Pictures without a face are left out, with a remark. Raises ValueError if none has one, or if the analyser fails.
    """
    embeddings, crops, remarks = [], [], []
    for number, picture in enumerate(pictures, 1):
        where = f"picture {number} of “{text}”" if len(pictures) > 1 else f"the picture of “{text}”"
        faces = seen_faces(analyser, picture, where)
        if not faces:
            remarks.append(f"No face was found in {where}; it is left out.")
            continue
        if which > len(faces):
            raise ValueError(
                f"There is no face {which} from the left in {where}: the analyser finds {len(faces)}. Choose another "
                "number, or 0 for the largest."
            )
        place = max(range(len(faces)), key=lambda i: faces[i].area) if which == LARGEST else which - 1
        face = faces[place]
        if which == LARGEST and len(faces) > 1:
            remarks.append(
                f"{len(faces)} faces were found in {where}; the largest is used, number {place + 1} from left."
            )
        if face.is_cut_off(picture):
            remarks.append(
                f"The face in {where} is cut off by the picture's border: the missing part is black in the crop. A "
                "picture with space around the head gives a better likeness."
            )
        embeddings.append(face.embedding(where))
        crops.append(aligned(picture, face.points))
    if not crops:
        raise ValueError(
            f"No face was found in the picture{'s' * (len(pictures) > 1)} of “{text}”: use a photograph in which the "
            "face is upright, sharp and well lit, with some space around it. For drawn faces, animals and things use "
            "MIP Reference."
        )
    if len({len(each) for each in embeddings}) > 1:
        raise ValueError(f"The analyser gives embeddings of different widths for “{text}”: use another one.")
    return FoundFaces(torch.stack(embeddings), torch.stack(crops), tuple(remarks))


def seen_faces(analyser: FaceAnalyser, picture: Tensor, where: str) -> list[SeenFace]:
    """All faces in a picture [H, W, 3], from left to right. They are searched at smaller and smaller sizes until there
    is one.

    where: the picture, for messages. Raises ValueError if the analyser fails.
    """
    if not callable(getattr(analyser, "get", None)):
        raise ValueError(
            f"The face analyser is {type(analyser).__name__}, which finds no faces: connect Load Face Analyser (MIP), "
            "or the InsightFace loader of another pack."
        )
    bgr = np.ascontiguousarray(as_bytes(picture[..., :3])[..., ::-1])
    with _sizes_of(analyser) as sizes:
        for choose in sizes:
            choose()
            try:
                faces = list(analyser.get(bgr) or ())
            except Exception as error:  # any library's
                raise ValueError(
                    f"The face analyser failed on {where} ({type(error).__name__}: {brief(error)}). Try another "
                    "picture or another analyser."
                ) from error
            if faces:
                usable = [seen for face in faces if (seen := _seen(face)) is not None]
                return sorted(usable, key=lambda each: each.box[0])
    return []


def faces_in(boxes: Sequence[Box | None], faces: Sequence[SeenFace]) -> list[SeenFace | None]:
    """The face of each person.

    boxes: the persons', None where one was not found.

    A face belongs to the person whose box holds its middle; of several such, to the one whose vertical middle line is
    nearest, since a head is in the middle of its body. A person with several faces has the largest.
    """
    owned: list[SeenFace | None] = [None] * len(boxes)
    for face in sorted(faces, key=lambda each: each.area):
        x, y = face.middle
        holding = [m for m, box in enumerate(boxes) if box and box[0] <= x < box[2] and box[1] <= y < box[3]]
        if holding:
            owned[min(holding, key=lambda m: _off_middle(boxes[m], x))] = face
    return owned


def _off_middle(box: Box | None, x: float) -> float:
    """How far x is from a box's vertical middle line, in widths of the box."""
    assert box is not None
    return abs(x - (box[0] + box[2]) / 2) / max(1.0, box[2] - box[0])


def _seen(face: Any) -> SeenFace | None:
    """A face as the analyser describes it; None without box and five points, by which it could be cut out."""
    try:
        box, points = (np.asarray(getattr(face, name, ()), dtype=np.float64) for name in ("bbox", "kps"))
    except (TypeError, ValueError):
        return None
    if box.size < 4 or points.shape != (5, 2) or not (np.isfinite(box).all() and np.isfinite(points).all()):
        return None
    if not np.ptp(points, axis=0).any() or np.linalg.det(similarity(points, np.array(PLACES))[:, :2]) <= 0:
        return None  # all points in one place, or in no order
    left, top, right, bottom = box.flatten()[:4].tolist()
    return SeenFace((left, top, right, bottom), points, getattr(face, "embedding", None))


@contextmanager
def _sizes_of(analyser: Any) -> Iterator[list[Any]]:
    """Functions that set the analyser's detection size, one after the other. Its own size is back afterwards."""
    detector: Any = getattr(analyser, "det_model", None)
    if not hasattr(detector, "input_size"):
        yield [lambda: None]
        return
    before = detector.input_size
    try:
        yield [lambda side=side: setattr(detector, "input_size", (side, side)) for side in SIZES]
    finally:
        detector.input_size = before
