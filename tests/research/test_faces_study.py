"""Embeddings of looks in place of faces: the stand-in for the analyser, the start, and what is measured."""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from mip_adapter.evaluation.faces.find import find_faces
from mip_adapter.miniature import world
from mip_adapter.research.miniature import trained
from mip_adapter.research.studies import faces
from mip_adapter.training.config import TrainConfig
from mip_adapter.training.dataset import SubjectFolder
from mip_adapter.weights.adapter import build_adapter, load_adapter
from mip_adapter.weights.projection import project


def test_the_stand_in_gives_the_looks_of_references() -> None:
    scenes = world.sample(4, 11, (2,))
    shown = world.references(scenes, 1).rows(torch.arange(4) * world.OBJECTS)
    pictures = world.render(shown, 224).images.movedim(1, -1)
    found = find_faces(faces.LookAnalyser(), pictures, "thing")
    wanted = np.stack([faces.embedding_of(*look) for look in scenes.looks[:, 0].tolist()])
    assert torch.equal(found.embeddings, torch.from_numpy(wanted))


def test_the_data_is_what_face_adapters_train_on(tmp_path: Path) -> None:
    scenes = world.sample(3, 12, (1, 2))
    faces.write_data(scenes, tmp_path)
    recipe = TrainConfig(min_objects=1, max_objects=2, resolution=128)
    sample = SubjectFolder(tmp_path, recipe, 512)[0]
    looks = scenes.looks[int(sample.id)][: len(sample.names)].tolist()
    wanted = np.stack([faces.embedding_of(*look) for look in looks])
    assert sample.faces is not None and np.abs(sample.faces.numpy() - wanted).max() < 1e-4


def test_the_start_imitates_the_tokens() -> None:
    """Of a linear dependence it gives the stock adapter's tokens themselves, with that adapter's sites."""
    stock = load_adapter(trained.file("stock", 0))
    random = torch.Generator().manual_seed(0)
    looks = [(p, a, b) for p in range(6) for a in range(10) for b in range(10)]
    unit = F.normalize(torch.stack([torch.from_numpy(faces.embedding_of(*look)) for look in looks]), dim=-1)
    width = stock.spec.encoder.width
    pictures = unit @ torch.randn(512, width, generator=random)
    adapter = build_adapter(faces.start_of(stock, unit, pictures), "start")
    got, wanted = project(adapter, unit), project(stock, pictures)
    assert adapter.spec.family == "faceid" and float((got - wanted).norm() / wanted.norm()) < 0.05
    assert all(torch.equal(adapter.site_weights[n].k_weight, site.k_weight) for n, site in stock.site_weights.items())


def row(arm: str, trial: int, own: list) -> dict:
    present = [each is not None for each in own]
    return {
        "key": [arm, trial],
        "own": own,
        "clear": own,
        "confused": [each is False for each in own],
        "present": present,
    }


def test_differences_are_of_the_same_prompts() -> None:
    rows = [row(arm, i, [True, i % 2 == 0]) for arm in faces.ARMS for i in range(8) if arm != "embeddings, uniform"]
    rows += [row("embeddings, uniform", i, [True, None]) for i in range(9)]
    lines = {line["arm"]: line for line in faces.COMPARISON.summarise(rows)}
    assert list(lines) == [*faces.ARMS, *faces.EFFECTS] and lines["pictures, uniform"]["prompts"] == 8
    assert lines["embeddings, uniform"]["bound"] == (50, 50, 50) and lines["embeddings, uniform"]["binding"][0] == 100
    assert lines["pictures, relevance"]["bound"][0] == 75 and lines["pictures, relevance"]["confused"][0] == 25
    assert lines["pictures: relevance adds"]["bound"] == (0, 0, 0)  # paired: no prompt changes its number
    assert lines["embeddings: relevance adds"]["bound"][0] == 25
    assert "+25.0 [" in faces.COMPARISON.markdown(list(lines.values()))


def test_the_command_prepares_a_training_and_judges_its_adapter(host, tmp_path: Path) -> None:
    from mip_adapter.common.bundled import MINIATURE
    from mip_adapter.research.studies import comfy_faces

    data = tmp_path / "data"
    given = argparse.Namespace(
        prepare=data, scenes=2, train_steps=1, miniature=MINIATURE, pictures=trained.file("stock", 0),
        adapter=data / "start.safetensors", output=tmp_path / "out", prompts=1, steps=1, guidance=3.0, scale=1.0,
        minutes=9.0, threads=1,
    )  # fmt: skip
    comfy_faces.prepare(given)
    from mip_adapter.training.run_config import read_run_config

    assert read_run_config(data / "train.toml").start.file == str(data / "start.safetensors")
    rows = comfy_faces.work(given)
    assert rows is not None and {row["key"][0] for row in rows} == set(faces.ARMS)
