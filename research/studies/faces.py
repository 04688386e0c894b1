"""Faces on the miniature: its objects' looks in place of faces, as embeddings for an adapter of the FaceID family.

The miniature has no people. What a face is to a person, a look is to its objects: the words name the kind and never
the look. So a stand-in for the face analyser finds the objects of a picture and gives the look of each, as the world's
judge reads it from the pixels, as an embedding of 512 numbers. All else is the pack's own: MIP Face Reference's
function, the FaceID projection, the trainer.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ...attention.options import Strategy
from ...common.atomic_io import atomic_write
from ...common.pictures import open_picture
from ...common.rng import generator
from ...evaluation.faces.align import PLACES, SIDE
from ...evaluation.faces.find import faces_in, seen_faces
from ...miniature import world
from ...miniature.judge import Outlined, judge
from ...miniature.judge_looks import look
from ...training.data_folder import picture_ids, picture_path, read_json
from ...training.trainable import flat_tensors
from ...weights.adapter import Adapter
from ...weights.families import FACE_WIDTH
from ..ablation.table import Ratio, Row
from ..miniature import world_files
from .comparison import Comparison

SEED_DATA = 7_000_000_000  # of the scenes to train on
OBJECTS = 2  # in a prompt
RIDGE = 1e-2

# What is compared: how an adapter reads references, and how they are merged.
PICTURES, EMBEDDINGS = "pictures", "embeddings"
ARMS: dict[str, tuple[str, Strategy]] = {
    f"{reads}, {merge}": (reads, merge) for reads in (PICTURES, EMBEDDINGS) for merge in ("uniform", "relevance")
}
EFFECTS = {
    "pictures: relevance adds": ("pictures, relevance", "pictures, uniform"),
    "embeddings: relevance adds": ("embeddings, relevance", "embeddings, uniform"),
    "relevance: embeddings add": ("embeddings, relevance", "pictures, relevance"),
}


class LookAnalyser:
    """A `FaceAnalyser` for drawn pictures: every object is a face, and its look the embedding."""

    def get(self, img: np.ndarray) -> list[Any]:
        image = torch.from_numpy(np.ascontiguousarray(img[..., ::-1])).movedim(-1, 0).float() / 255
        return [_as_face(image, each) for each in judge(image[None])[0]]


def _as_face(image: Tensor, found: Outlined) -> Any:
    rows, columns = (found.mask.any(axis).nonzero() for axis in (1, 0))
    top, bottom, left, right = (float(each) for each in (rows.min(), rows.max() + 1, columns.min(), columns.max() + 1))
    points = np.array(PLACES) / SIDE * (right - left, bottom - top) + (left, top)
    return SimpleNamespace(
        bbox=np.array([left, top, right, bottom]), kps=points, embedding=embedding_of(*look(image, found))
    )


@cache
def _number(part: str, number: int) -> Tensor:
    return torch.randn(FACE_WIDTH, generator=generator(0, "look", part, number))


def embedding_of(pattern: int, first: int, second: int) -> np.ndarray:
    """A look as numbers [512]: the sum of a random vector for each of its three parts."""
    parts = _number("pattern", pattern), _number("first", first), _number("second", second)
    return torch.stack(parts).sum(0).numpy()


def write_data(scenes: world.Scenes, folder: Path) -> None:
    """Training data of drawn scenes, each object with the embedding that the analyser gives for it in that picture."""
    world_files.write(scenes, folder, random.Random(SEED_DATA))
    analyser = LookAnalyser()
    for picture_id in picture_ids(folder)[1]:
        with open_picture(picture_path(folder, picture_id)) as image:
            pixels = torch.from_numpy(np.array(image.convert("RGB"))).float() / 255
        data = read_json(folder, picture_id)
        entries = data["final_masks"][1:]
        found = faces_in([tuple(each["box"]) for each in entries], seen_faces(analyser, pixels, picture_id))
        for entry, face in zip(entries, found, strict=True):
            if face is not None:
                entry["face"] = [round(value, 4) for value in face.embedding(picture_id).tolist()]
        atomic_write(folder / "jsons" / f"{picture_id}.json", json.dumps(data))


def start_of(stock: Adapter, faces: Tensor, pictures: Tensor) -> dict[str, Tensor]:
    """The tensors of a FaceID adapter to train on: another adapter's sites, and a projection that imitates its tokens.

    stock: of the base family.
    faces: [N, F], unit embeddings of N looks.
    pictures: [N, E], the image embeddings of pictures with these looks.

    The projection begins as the ridge regression W x + b of the stock adapter's tokens before their norm. An MLP is
    that regression exactly with the hidden layer (x, −x), because gelu(x) − gelu(−x) = x.
    """
    wanted = F.linear(pictures, *(stock.image_proj[f"proj.{part}"].float() for part in ("weight", "bias")))
    centre, aim = faces.mean(0), wanted.mean(0)
    x, y = faces - centre, wanted - aim
    unit = torch.eye(faces.shape[1])
    weight = torch.linalg.solve(x.T @ x + RIDGE * unit, x.T @ y).T
    mlp = {
        "proj.0.weight": torch.cat([unit, -unit]), "proj.0.bias": torch.zeros(2 * len(unit)),
        "proj.2.weight": torch.cat([weight, -weight], 1), "proj.2.bias": aim - weight @ centre,
        "norm.weight": stock.image_proj["norm.weight"], "norm.bias": stock.image_proj["norm.bias"],
    }  # fmt: skip
    sites = {key: tensor for key, tensor in flat_tensors(stock).items() if key.startswith("ip_adapter.")}
    return {f"image_proj.{key}": tensor.float().contiguous() for key, tensor in mlp.items()} | sites


def of_each(row: Row, name: str) -> Ratio:
    """How many objects of a picture a measure holds for."""
    return sum(map(bool, row[name])), OBJECTS


def of_present(row: Row, name: str) -> Ratio:
    """The same of those that are there alone."""
    return sum(map(bool, row[name])), sum(row["present"])


MEASURES: dict[str, Callable[[Row], Ratio]] = {
    "bound": lambda row: of_each(row, "own"),
    "binding": lambda row: of_present(row, "own"),
    "clear": lambda row: of_each(row, "clear"),
    "confused": lambda row: of_present(row, "confused"),
    "present": lambda row: of_each(row, "present"),
}
COMPARISON = Comparison("arm", tuple(ARMS), EFFECTS, MEASURES)
