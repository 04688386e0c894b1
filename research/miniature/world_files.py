"""Drawn scenes as files in the training-data layout of subject_dataset_10k, for the trainer's dataset."""

import json
import random
from pathlib import Path

import numpy as np
from PIL import Image
from torch import Tensor

from ...miniature import world
from ...miniature.world_shapes import KINDS


def write(scenes: world.Scenes, folder: Path, rng: random.Random, size: int = world.SIZE) -> None:
    """Write images/ID.png, masks/ID.png (0 for the background, objects from 1 on) and jsons/ID.json; IDs start at
    000000.
    """
    for name in ("images", "masks", "jsons"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    captions = scenes.captions(rng)
    picture = world.render(scenes, size)
    boxes = world.boxes(picture.masks).tolist()
    for i, caption in enumerate(captions):
        _save(picture.images[i].permute(1, 2, 0) * 255, folder / "images" / f"{i:06d}.png")
        _save(_numbered(picture.masks[i]), folder / "masks" / f"{i:06d}.png")
        kinds = scenes.present(i)
        facts = {
            "text": caption,
            "original_size": [size, size],
            "final_masks": [
                {"value": 0, "label": "background"},
                *(
                    {"value": m + 1, "label": KINDS[kind], "box": boxes[i][m], "logit": 1.0}
                    for m, kind in enumerate(kinds)
                ),
            ],
        }
        (folder / "jsons" / f"{i:06d}.json").write_text(json.dumps(facts))


def _numbered(masks: Tensor) -> Tensor:
    """[S, S] the number of the object that covers most of a pixel, from masks [M, S, S]."""
    share, owner = masks.max(0)
    return (owner + 1) * (share > 0.5)


def _save(pixels: Tensor, file: Path) -> None:
    Image.fromarray(pixels.round().numpy().astype(np.uint8)).save(file)
