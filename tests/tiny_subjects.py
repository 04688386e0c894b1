"""Training data as small as can be: coloured shapes, two a picture, in the layout of subject_dataset_10k."""

from __future__ import annotations

import json
import random
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

KINDS = ("star", "ring", "cross", "moon", "fish", "drop")


def write(folder: Path, pictures: int, size: tuple[int, int] = (96, 64), seed: int = 0) -> Path:
    """`pictures` usable pictures of two objects each, named 000, 001, …"""
    for name in ("images", "masks", "jsons"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    for number in range(pictures):
        picture(folder, f"{number:03d}", size, random.Random(f"{seed}/{number}"))
    return folder


def picture(folder: Path, name: str, size: tuple[int, int], rng: random.Random) -> None:
    width, height = size
    image = Image.new("RGB", size, tuple(rng.randrange(150, 230) for _ in range(3)))
    mask = Image.new("L", size, 0)
    kinds = rng.sample(KINDS, 2)
    entries: list[dict] = [{"value": 0, "label": "background"}]
    side = height * 5 // 8
    for i, kind in enumerate(kinds):
        left, top = 3 + i * (width // 2) + rng.randrange(3), rng.randrange(2, height - side - 2)
        box = (left, top, left + side, top + side)
        color = tuple(rng.randrange(255) for _ in range(3))
        for canvas, fill in ((image, color), (mask, 100 * (i + 1))):
            ImageDraw.Draw(canvas).ellipse(box, fill=fill)
            if kind in ("ring", "moon") and canvas is image:
                middle = tuple(side // 3 + edge if j < 2 else edge - side // 3 for j, edge in enumerate(box))
                ImageDraw.Draw(canvas).ellipse(middle, fill="white")
        entries.append({"value": 100 * (i + 1), "label": kind, "box": list(map(float, box)), "logit": 0.9 - 0.1 * i})
    noise = np.random.default_rng(rng.randrange(2**31)).integers(-6, 7, (height, width, 3))
    pixels = np.clip(np.asarray(image, np.int32) + noise, 0, 255).astype(np.uint8)
    Image.fromarray(pixels).save(folder / "images" / f"{name}.png")
    mask.save(folder / "masks" / f"{name}.png")
    data = {"text": f"a {kinds[0]} and a {kinds[1]}", "original_size": list(size), "final_masks": entries}
    (folder / "jsons" / f"{name}.json").write_text(json.dumps(data))
