"""A tiny dataset in the layout of Concept101, the command line that scores it, and the tables that a run leaves."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

RED = (220, 20, 20)
BOX = (30, 20, 90, 60)  # of the red object, in pictures of 120 × 100
PROMPTS = "A photo of the {0} and {1}.\n{1} beside a {0} \n\na painting of {0}, {1}\n"


def write_dataset(folder: Path, times: int = 1) -> Path:
    """Three pairs of four concepts, each so many times; three prompts each."""
    random = np.random.default_rng(0)
    concepts = {"pet_cat1": "cat", "pet_dog1": "dog", "things_cup2": "cup", "wearable_jacket1": "jacket"}
    for name in concepts:
        (folder / "benchmark_dataset" / name).mkdir(parents=True)
        (folder / "json_data" / name).mkdir(parents=True)
        for number in range(2):
            image = Image.fromarray(random.integers(60, 200, (100, 120, 3), np.uint8))
            ImageDraw.Draw(image).rectangle((BOX[0], BOX[1], BOX[2] - 1, BOX[3] - 1), fill=RED)
            image.save(folder / "benchmark_dataset" / name / f"photo {number}.png")
            mask = [
                {"value": 0, "label": "background"},
                {"value": 1, "label": "x", "box": [edge * 8.0 for edge in BOX]},
            ]
            (folder / "json_data" / name / f"photo {number}.json").write_text(json.dumps({"mask": mask}))
    (folder / "prompts").mkdir()
    (folder / "prompts" / "two.txt").write_text(PROMPTS)
    names = list(concepts)
    entries = [
        [
            *({"class_prompt": concepts[c], "instance_data_dir": f"./benchmark_dataset/{c}"} for c in (a, b)),
            {"prompt_filename_compose": "prompts/two.txt"},
        ]
        for a, b in (names[:2], names[2:], names[::3])
    ] * times
    (folder / "dataset_multiconcept.json").write_text(json.dumps(entries))
    return folder


def line(data: Path, output: Path, encoders: tuple[Path, Path]) -> list[str]:
    """The smallest pictures that the miniature makes."""
    return [
        *("--data", str(data), "--output", str(output), "--checkpoint", "miniature", "--adapter", "miniature"),
        *("--encoder", str(encoders[0]), "--dino", str(encoders[1]), "--steps", "1", "--side", "64", "--cpu"),
    ]


def table(output: Path) -> dict:
    return json.loads((output / "concept101.json").read_text("utf-8"))


def assert_same_table(got: dict, expected: dict):
    """Up to the last digits: threads may add in another order."""
    assert len(got["pairs"]) == len(expected["pairs"])
    for a, b in [*zip(got["pairs"], expected["pairs"], strict=True), (got, expected)]:
        assert a.keys() == b.keys()
        for key, value in b.items():
            if key != "pairs":
                assert a[key] == (pytest.approx(value, abs=1e-4) if isinstance(value, float) else value), key
