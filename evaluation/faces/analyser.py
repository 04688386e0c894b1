"""A face analyser from the ONNX models that InsightFace publishes: SCRFD finds faces, ArcFace recognises them.

It needs the package onnxruntime, and not InsightFace itself. The files are the user's; nothing is downloaded.
Sources: J. Guo et al., Sample and Computation Redistribution for Efficient Face Detection, 2021; J. Deng et al.,
ArcFace, 2018; for the layout of inputs and outputs InsightFace's own use of these models.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from .align import SIDE, aligned
from .onnx_model import OnnxModel

INSTALL = "pip install onnxruntime"
STRIDES = {3: (8, 16, 32), 5: (8, 16, 32, 64, 128)}  # by the number of feature maps
THRESHOLD = 0.5  # score of a face
OVERLAP = 0.4  # above it two boxes are one face
MOST_MODELS = 20  # of a folder; a pack has five
MOST_ANCHORS = 5000  # that claim a face, the surest ones
MOST_FACES = 50  # of a picture, the surest ones; each costs a call of the recognition model


@dataclass(frozen=True)
class Face:
    """A face, as InsightFace's own objects have it.

    bbox: left, top, right, bottom in pixels.
    kps: [5, 2], eyes, nose, corners of the mouth.
    det_score: in 0..1.
    embedding: [F].
    """

    bbox: np.ndarray
    kps: np.ndarray
    det_score: float
    embedding: np.ndarray

    @property
    def normed_embedding(self) -> np.ndarray:
        return self.embedding / np.linalg.norm(self.embedding)


def load_analyser(folder: str | os.PathLike[str]) -> OnnxAnalyser:
    """An analyser from a folder with a detection and a recognition model.

    Which file is which is read from their inputs and outputs. Raises ValueError with a sentence for the user.
    """
    folder = Path(folder)
    try:
        import onnxruntime  # noqa: F401
    except ImportError:
        raise ValueError(
            f"Finding faces needs the package onnxruntime, which is not installed here. Install it into ComfyUI's own "
            f"Python and restart: {INSTALL}"
        ) from None
    files = sorted(folder.glob("*.onnx"))
    if len(files) > MOST_MODELS:
        raise ValueError(f"The folder {folder} has {len(files)} .onnx files: leave only those of one model pack there.")
    models = [OnnxModel(file) for file in files]
    detector = next((each for each in models if each.outputs // 3 in STRIDES and each.outputs % 3 == 0), None)
    recogniser = next((each for each in models if each.outputs == 1 and each.shape[2:] == (SIDE, SIDE)), None)
    if detector is None or recogniser is None:
        lacks = "detects faces (such as det_10g.onnx)" if detector is None else "recognises them (w600k_r50.onnx)"
        raise ValueError(
            f"The folder {folder} has no model that {lacks}. Unpack a model pack of InsightFace into it, such as "
            "buffalo_l: its .onnx files belong directly into the folder."
        )
    return OnnxAnalyser(folder.name, SimpleNamespace(session=detector, input_size=(640, 640)), recogniser)


@dataclass(frozen=True, eq=False)
class OnnxAnalyser:
    """A `FaceAnalyser`. det_model: the detection model, with the size to which it shrinks pictures."""

    name: str
    det_model: Any
    recogniser: OnnxModel

    def get(self, img: np.ndarray) -> list[Face]:
        """As `FaceAnalyser.get`; the surest face comes first."""
        picture = torch.from_numpy(np.ascontiguousarray(img[..., ::-1]))  # red, green, blue
        boxes, points, scores = self._detect(picture)
        return [
            Face(box, five, float(score), self._recognise(picture, five))
            for box, five, score in zip(boxes, points, scores, strict=True)
        ]

    def _detect(self, picture: Tensor) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Boxes [K, 4], points [K, 5, 2] and scores [K] of the faces, the surest first."""
        width, height = self.det_model.input_size
        rows, columns = picture.shape[:2]
        scale = min(width / columns, height / rows)
        size = max(1, int(rows * scale)), max(1, int(columns * scale))
        pixels = picture.movedim(-1, 0).unsqueeze(0).float()
        small = F.interpolate(pixels, size=size, mode="bilinear", antialias=False)
        canvas = F.pad(small, (0, width - size[1], 0, height - size[0]))
        outputs = self.det_model.session(((canvas - 127.5) / 128).numpy())
        boxes, points, scores = _decode(outputs, (height, width))
        keep = _apart(boxes, scores)
        return boxes[keep] / scale, points[keep] / scale, scores[keep]

    def _recognise(self, picture: Tensor, points: np.ndarray) -> np.ndarray:
        """The embedding [F] of a face."""
        crop = aligned(picture, points, SIDE).round().movedim(-1, 0).unsqueeze(0)
        return self.recogniser(((crop - 127.5) / 127.5).numpy())[0].reshape(-1)


def _decode(outputs: Sequence[np.ndarray], size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """SCRFD's outputs as boxes, points and scores, those above the threshold.

    For every stride there are scores [K, 1], distances to the four sides [K, 4] and offsets of the five points [K, 10],
    in strides from the anchors' centres. The outputs are all scores, then all boxes, then all points.
    size: (height, width) of the canvas.
    """
    maps = len(outputs) // 3
    flat = [output.reshape(-1, output.shape[-1]) for output in outputs]  # some models have an axis for the batch
    found: list[tuple[np.ndarray, ...]] = []
    for level, stride in enumerate(STRIDES[maps]):
        scores, boxes, points = (flat[level + kind * maps] for kind in range(3))
        rows, columns = np.mgrid[: size[0] // stride, : size[1] // stride]
        grid = np.stack([columns, rows], axis=-1).reshape(-1, 2) * stride
        centres = np.repeat(grid, len(scores) // max(1, len(grid)), axis=0).astype(np.float32)  # anchors of a place
        keep = scores[:, 0] >= THRESHOLD
        centres, boxes, points = centres[keep], boxes[keep] * stride, points[keep].reshape(-1, 5, 2) * stride
        sides = np.concatenate([centres - boxes[:, :2], centres + boxes[:, 2:]], axis=1)
        found.append((sides, centres[:, None] + points, scores[keep, 0]))
    boxes, points, scores = (np.concatenate(parts) for parts in zip(*found, strict=True))
    order = np.argsort(-scores, kind="stable")[:MOST_ANCHORS]
    return boxes[order], points[order], scores[order]


def _apart(boxes: np.ndarray, scores: np.ndarray) -> list[int]:
    """The boxes to keep, at most MOST_FACES; those that overlap a surer one are left out.

    boxes [K, 4]: the surest first.
    """
    kept: list[int] = []
    areas = (boxes[:, 2:] - boxes[:, :2]).clip(0).prod(1)
    for i in range(len(scores)):
        others = boxes[kept]
        low, high = np.maximum(boxes[i, :2], others[:, :2]), np.minimum(boxes[i, 2:], others[:, 2:])
        shared = (high - low).clip(0).prod(1)
        if not (shared > OVERLAP * (areas[i] + areas[kept] - shared)).any():
            kept.append(i)
        if len(kept) == MOST_FACES:
            break
    return kept
