"""Folders of a stranger: encoders, detectors, training data, captions, lists, benchmarks, with damage at random.

Each is read, or refused with a sentence, within 5 seconds of the processor and 2 GB; and nothing is written there.
"""

from __future__ import annotations

import json
import pickle
import random
import shutil
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from mip_adapter.commands.curation.read import Folder
from mip_adapter.commands.labelling.read import opened, read_ids, sources
from mip_adapter.evaluation.concept101 import dataset as concept101
from mip_adapter.evaluation.detection.detect import detect
from mip_adapter.evaluation.detection.folder_detector import load_detector
from mip_adapter.evaluation.encoders.encoder import load_encoder
from mip_adapter.evaluation.faces.analyser import load_analyser
from mip_adapter.evaluation.faces.find import find_faces
from mip_adapter.training.data_folder import picture_ids
from mip_adapter.training.dataset import SubjectFolder
from mip_adapter.training.run_config import read_run_config
from PIL import Image

from ..support import tiny_clip, tiny_faces, tiny_models
from ..support.bounded import LONGER, needs_fork, outcomes
from ..support.training_world import small_recipe, write_folder

pytestmark = needs_fork
WILD: tuple[Any, ...] = (
    None, True, -1, 0, 1, 7, 0.5, 20_000, 10**6, 10**9, 2**63, 10**400, -(2**70), 1e308, float("nan"), float("inf"), "",
    "x", "\ud800", "a" * 10_000, "../../etc/passwd", "someone/kernel", "/dev/zero", [], {}, [[]], {"a": 1}, [1, 2], 
    [0.5] * 4, [-1e9, -1e9, 1e9, 1e9], [float("nan")] * 4, ["a"] * 3, {"box": 7},
)  # fmt: skip


def places(value: Any, path: tuple = ()) -> Iterator[tuple]:
    """All places in a JSON value: keys and numbers that lead to them."""
    pairs = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, each in pairs:
        yield (*path, key)
        yield from places(each, (*path, key))


def changed(rng: random.Random, text: str) -> str:
    """The JSON with another value at one or two places, or without some of them."""
    data = json.loads(text)
    for _ in range(rng.choice((1, 1, 2))):
        if not (found := list(places(data))):
            break
        *path, last = rng.choice(found)
        inside = data
        for key in path:
            inside = inside[key]
        if rng.random() < 0.15:
            del inside[last]
        else:
            inside[last] = rng.choice(WILD)
    return json.dumps(data)


def damage(rng: random.Random, file: Path) -> None:
    """Another value in a JSON file; in any file other bytes, or its end missing."""
    whole = file.read_bytes()
    if file.suffix == ".json" and rng.random() < 0.8:
        file.write_text(changed(rng, whole.decode()))
        return
    broken = bytearray(whole[: rng.randrange(len(whole) + 1)] if rng.random() < 0.3 else whole)
    for _ in range(rng.choice((1, 1, 8, 64)) if broken else 0):
        broken[min(len(broken) - 1, int(rng.expovariate(5) * len(broken)))] = rng.randrange(256)
    file.write_bytes(broken)


def check(sound: Path, tmp_path: Path, count: int, read: Callable[[Path], Any], *kinds: str) -> None:
    """Reads the sound folder, then `count` damaged copies of it. kinds: endings of the files that are damaged."""
    read(sound)
    rng = random.Random(count)
    files = [path for path in sorted(sound.rglob("*")) if path.suffix in kinds]
    assert files

    def copies() -> Iterator[Callable[[], Any]]:
        for case in range(count * LONGER):
            copy, file = tmp_path / f"{case}", rng.choice(files)
            shutil.copytree(sound, copy)
            damage(rng, copy / file.relative_to(sound))
            before = sorted(copy.rglob("*"))
            yield lambda copy=copy: read(copy)
            if sorted(copy.rglob("*")) != before or len(list(tmp_path.iterdir())) != 1:
                raise AssertionError(f"{copy}: something was written")
            shutil.rmtree(copy)

    became = list(outcomes(copies()))
    assert len(became) == count * LONGER, became[-1]
    for case, (kind, said) in enumerate(became):
        assert kind in ("", "ValueError", "FileNotFoundError"), (case, kind, said)
        assert not kind or len(said) > 20 and said.rstrip()[-1] in ".)!" or "cannot be read" in said, (case, said)


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_clip.write(tmp_path_factory.mktemp("encoder") / "tiny-clip")


def test_encoders(encoder: Path, tmp_path: Path) -> None:
    check(encoder, tmp_path, 50, load_encoder, ".json", ".safetensors", ".txt")


def test_detectors(tmp_path_factory: pytest.TempPathFactory, tmp_path: Path) -> None:
    def read(folder: Path) -> None:
        detect(load_detector(folder), torch.rand(1, 64, 96, 3), ["star"], 0.3, 0.3)

    check(tiny_models.grounding_dino(tmp_path_factory.mktemp("dino")), tmp_path, 8, read, ".json", ".safetensors")


def test_face_analysers(tmp_path_factory: pytest.TempPathFactory, tmp_path: Path) -> None:
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")

    def read(folder: Path) -> None:
        analyser = load_analyser(folder)
        analyser.det_model.input_size = (320, 320)
        small: Any = SimpleNamespace(get=analyser.get)  # at this size alone
        find_faces(small, tiny_faces.photo((0, 0), side=96), "woman")

    check(tiny_faces.write_models(tmp_path_factory.mktemp("faces")), tmp_path, 20, read, ".onnx")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(tmp_path_factory.mktemp("data"), 2)


def test_training_data(data: Path, tmp_path: Path) -> None:
    def read(folder: Path) -> None:
        samples = SubjectFolder(folder, small_recipe())
        _ = samples[0], samples[1]

    check(data, tmp_path, 120, read, ".json", ".png")


def test_curated_data(data: Path, tmp_path: Path) -> None:
    def read(folder: Path) -> None:
        told = Folder(folder)
        for name in told.ids():
            with suppress(ValueError):  # the reason why a picture has no score
                told.objects(name)

    check(data, tmp_path, 60, read, ".json", ".png")


def test_pictures_with_captions_and_lists(tmp_path_factory: pytest.TempPathFactory, tmp_path: Path) -> None:
    sound = tmp_path_factory.mktemp("captions")
    for kind in ("jsonl", "csv", "text"):
        (sound / kind).mkdir()
        for name in "ab":
            Image.new("RGB", (40, 30), "red").save(sound / kind / f"{name}.png")
            (sound / kind / f"{name}.txt").write_text("a red cat and a blue dog")
    rows = [{"file_name": f"{name}.png", "text": "a cat", "objects": ["cat", "dog"]} for name in "ab"]
    (sound / "jsonl" / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (sound / "csv" / "metadata.csv").write_text("file_name,text\na.png,a cat\nb.png,a dog\n")
    (sound / "ids.pkl").write_bytes(pickle.dumps(["a", "b", "c"]))
    (sound / "ids.json").write_text('["a", "b"]')
    (sound / "kept.txt").write_text("# dataset: .\na\nb\n")

    def read(folder: Path) -> None:
        for kind in ("jsonl", "csv", "text"):
            for each in sources(folder / kind):
                opened(each.path, 20)
        for name in ("ids.pkl", "ids.json", "kept.txt"):
            read_ids(folder / name)
        picture_ids(folder / "kept.txt")

    check(sound, tmp_path, 120, read, ".jsonl", ".csv", ".txt", ".pkl", ".json")


RUN = """data = "data"
base.checkpoint = "miniature"
start.init = "unet"
output.folder = "out"
recipe = { steps = 2, batch_size = 2, train = "all", filters = { area_min = 0.1 } }
validation = [{ prompt = "a", images = ["run.toml"], texts = ["a"], seed = 1 }]
"""


def test_descriptions_of_a_run(tmp_path_factory: pytest.TempPathFactory, tmp_path: Path) -> None:
    sound = tmp_path_factory.mktemp("run")
    (sound / "run.toml").write_text(RUN)
    check(sound, tmp_path, 120, lambda folder: read_run_config(folder / "run.toml"), ".toml")


def test_concept101(tmp_path_factory: pytest.TempPathFactory, tmp_path: Path) -> None:
    sound = tmp_path_factory.mktemp("concept101")
    concepts = [{"class_prompt": name, "instance_data_dir": f"./benchmark_dataset/{name}"} for name in ("cat", "dog")]
    (sound / concept101.LIST).write_text(json.dumps([[*concepts, {"prompt_filename_compose": "prompts.txt"}]]))
    (sound / "prompts.txt").write_text("a {0} and a {1}\n{0} on {1}\n")
    for name in ("cat", "dog"):
        for part in (concept101.PICTURES, concept101.BOXES):
            (sound / part / name).mkdir(parents=True)
        Image.new("RGB", (120, 90), "red").save(sound / concept101.PICTURES / name / "0.jpg")
        boxes = {"mask": [{}, {"box": [10, 10, 700, 700]}]}
        (sound / concept101.BOXES / name / "0.json").write_text(json.dumps(boxes))

    def read(folder: Path) -> None:
        pairs = concept101.read_pairs(folder)
        concept101.digest(pairs)
        concept101.references(pairs[0])

    check(sound, tmp_path, 80, read, ".json", ".txt", ".jpg")
