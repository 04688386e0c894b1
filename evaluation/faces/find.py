"""The face of one person in each of their pictures, by any face analyser."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from ...common.crops import as_bytes
from ...common.text import shown
from .align import aligned

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


class SeenFaces(NamedTuple):
    """A person's faces.

    embeddings: [B, F], before normalisation.
    crops: [B, S, S, 3] in 0..1, aligned.
    remarks: sentences about what the artist may not expect.
    """

    embeddings: Tensor
    crops: Tensor
    remarks: tuple[str, ...]


def find_faces(analyser: FaceAnalyser, pictures: Tensor, text: str, which: int = LARGEST) -> SeenFaces:
    """One face from each picture [B, H, W, 3].

    text: whose faces, for messages.
    which: LARGEST, or 1, 2, …: the face at this place from the left.

    Pictures without a face are left out, with a remark. Raises ValueError if none has one, or if the analyser fails.
    """
    embeddings, crops, remarks = [], [], []
    for number, picture in enumerate(pictures, 1):
        where = f"picture {number} of “{text}”" if len(pictures) > 1 else f"the picture of “{text}”"
        faces = sorted(_faces(analyser, picture, where), key=lambda each: float(each.bbox[0]))
        if not faces:
            remarks.append(f"No face was found in {where}; it is left out.")
            continue
        if which > len(faces):
            raise ValueError(
                f"There is no face {which} from the left in {where}: the analyser finds {len(faces)}. Choose another "
                "number, or 0 for the largest."
            )
        face = max(faces, key=_area) if which == LARGEST else faces[which - 1]
        if which == LARGEST and len(faces) > 1:
            place = next(i for i, each in enumerate(faces, 1) if each is face)
            remarks.append(f"{len(faces)} faces were found in {where}; the largest is used, number {place} from left.")
        if _cut_off(face, picture):
            remarks.append(
                f"The face in {where} is cut off by the picture's border: the missing part is black in the crop. A "
                "picture with space around the head gives a better likeness."
            )
        embeddings.append(_embedding(face, where))
        crops.append(aligned(picture, np.asarray(face.kps, dtype=np.float64)))
    if not crops:
        raise ValueError(
            f"No face was found in the picture{'s' * (len(pictures) > 1)} of “{text}”: use a photograph in which the "
            "face is upright, sharp and well lit, with some space around it. For drawn faces, animals and things use "
            "MIP Reference."
        )
    if len({len(each) for each in embeddings}) > 1:
        raise ValueError(f"The analyser gives embeddings of different widths for “{text}”: use another one.")
    return SeenFaces(torch.stack(embeddings), torch.stack(crops), tuple(remarks))


def _faces(analyser: FaceAnalyser, picture: Tensor, where: str) -> list[Any]:
    """The faces in a picture [H, W, 3], searched at smaller and smaller sizes until there is one."""
    if not callable(getattr(analyser, "get", None)):
        raise ValueError(
            f"The face analyser is {type(analyser).__name__}, which finds no faces: connect Load Face Analyser (MIP), "
            "or the InsightFace loader of another pack."
        )
    bgr = np.ascontiguousarray(as_bytes(picture)[..., ::-1])
    with _sizes_of(analyser) as sizes:
        for choose in sizes:
            choose()
            try:
                faces = analyser.get(bgr)
            except Exception as error:  # any library's
                raise ValueError(
                    f"The face analyser failed on {where} ({type(error).__name__}: {shown(error)}). Try another "
                    "picture or another analyser."
                ) from error
            if faces:
                return [face for face in faces if getattr(face, "kps", None) is not None]
    return []


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


def _area(face: Any) -> float:
    left, top, right, bottom = (float(side) for side in face.bbox[:4])
    return (right - left) * (bottom - top)


def _cut_off(face: Any, picture: Tensor) -> bool:
    left, top, right, bottom = (float(side) for side in face.bbox[:4])
    return left < 0 or top < 0 or right > picture.shape[1] or bottom > picture.shape[0]


def _embedding(face: Any, where: str) -> Tensor:
    given = getattr(face, "embedding", None)
    embedding = torch.zeros(0) if given is None else torch.as_tensor(np.asarray(given)).float().flatten()
    if embedding.numel() == 0:
        raise ValueError(
            f"The face analyser finds the face in {where} and does not recognise it: it gives no embedding. Its folder "
            "needs a recognition model too, such as buffalo_l's w600k_r50.onnx."
        )
    if not bool(torch.isfinite(embedding).all()) or not bool(embedding.any()):
        raise ValueError(f"The face analyser gives no usable embedding for {where}: try another picture or analyser.")
    return embedding
