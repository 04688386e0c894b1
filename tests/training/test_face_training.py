"""Training adapters that read face embeddings: their data, the inner LoRA, and a run by `mip.py train`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from ..support import weights_samples
from ..support.tiny_faces import numbers
from ..support.training_world import small_recipe, write_folder

FACE = 512


def with_faces(folder: Path, width: int = FACE) -> Path:
    """Gives the first object of every picture but the last a face embedding."""
    files = sorted((folder / "jsons").glob("*.json"))
    for number, file in enumerate(files[:-1]):
        data = json.loads(file.read_text())
        data["final_masks"][1]["face"] = numbers(number, width).tolist()
        file.write_text(json.dumps(data))
    return folder


def one_object(**changes: Any) -> Any:
    return small_recipe(min_objects=1, max_objects=1, merge="uniform", gate="off", train="all", **changes)


def test_objects_without_a_face_are_left_out(tmp_path: Path) -> None:
    from mip_adapter.training.dataset import SubjectFolder
    from mip_adapter.training.filters import NO_FACES

    folder = with_faces(write_folder(tmp_path, 4))
    samples = SubjectFolder(folder, one_object(), FACE)
    assert len(samples) == 3 and samples.left_out == {NO_FACES: 1}
    for index in range(3):
        sample = samples[index]
        first = json.loads((folder / "jsons" / f"{sample.id}.json").read_text())["final_masks"][1]
        assert sample.names == (first["label"],) and sample.faces is not None
        assert torch.equal(sample.faces, torch.from_numpy(numbers(int(sample.id)))[None])
    assert SubjectFolder(folder, one_object())[0].faces is None
    with pytest.raises(ValueError, match="for 4 of them: no object has a face embedding .mip.py dataset --faces"):
        SubjectFolder(write_folder(tmp_path / "none", 4), one_object(), FACE)


@pytest.mark.parametrize("face, why", [([1.0, 2.0], "shape .2., expected 512"), ("x", "no list of numbers"),
                                       ([float("nan")] * FACE, "expected 512 finite numbers")])  # fmt: skip
def test_bad_embeddings_are_named(face: Any, why: str) -> None:
    from mip_adapter.training.filters import faces_of

    with pytest.raises(ValueError, match=f"face.*of “cat”.*{why}"):
        faces_of([{"label": "cat", "box": [0, 0, 1, 1], "face": face}], FACE)


def start(sites: Any, lora: int = 0) -> Any:
    from mip_adapter.weights.adapter import build_adapter

    widths, context = tuple(site.width for site in sites), sites[0].context_dim
    sample = weights_samples.Sample("faceid", context, FACE, widths, lora=lora)
    return build_adapter(weights_samples.flat(sample), "start.safetensors")


@pytest.fixture(scope="module")
def miniature(host) -> Any:
    from mip_adapter.miniature import comfy_bundle

    return comfy_bundle.load()


def test_a_lora_inside_the_file_acts_and_stays(miniature, tmp_path: Path) -> None:
    from mip_adapter.training.comfy_session import train_in_graph
    from mip_adapter.training.trainable import flat_tensors
    from mip_adapter.weights.sites import unet_sites

    adapter = start(unet_sites(miniature[0].model.diffusion_model), lora=2)
    plain = start(unet_sites(miniature[0].model.diffusion_model))
    folder, recipe = with_faces(write_folder(tmp_path, 3)), one_object(steps=1)
    made = [train_in_graph(*miniature, each, folder, recipe) for each in (adapter, plain)]
    before, after = flat_tensors(adapter), flat_tensors(made[0].adapter)
    assert before.keys() == after.keys() and not miniature[0].patches
    assert {key for key in before if torch.equal(before[key], after[key])} == {key for key in before if "_lora" in key}
    assert made[0].losses != made[1].losses


def test_training_in_the_graph_needs_no_image_encoder(miniature, tmp_path: Path) -> None:
    from mip_adapter.training.comfy_session import train_session
    from mip_adapter.weights.sites import unet_sites

    adapter = start(unet_sites(miniature[0].model.diffusion_model))
    folder = with_faces(write_folder(tmp_path, 3))
    trained, _ = train_session(*miniature[:3], None, adapter, folder, one_object(steps=1))
    assert trained.spec == adapter.spec and len(json.loads(trained.about["losses"])) == 1


def test_what_the_model_reads_of_faces(miniature, tmp_path: Path) -> None:
    """Unit vectors, as of MIP Face Reference; zero where the references are dropped, as in the unconditional branch."""
    from mip_adapter.training.comfy_model import HostModel
    from mip_adapter.training.dataset import SubjectFolder
    from mip_adapter.weights.sites import unet_sites

    adapter = start(unet_sites(miniature[0].model.diffusion_model))
    folder = with_faces(write_folder(tmp_path, 3))
    for drop in (0.0, 1.0):
        recipe = one_object(drop_image=drop, drop_text=0.0, drop_both=0.0)
        sample = SubjectFolder(folder, recipe, FACE)[0]
        features = HostModel(*miniature, recipe).encode([sample], adapter).features
        assert sample.faces is not None
        assert torch.equal(features, torch.zeros(1, FACE) if drop else F.normalize(sample.faces, dim=-1))


RUN = """
data = "data"
[base]
checkpoint = "miniature"
[start]
init = "unet"
family = "faceid"
[output]
folder = "out"
name = "result"
[recipe]
steps = 2
batch_size = 2
resolution = 64
train = "all"
merge = "uniform"
gate = "off"
min_objects = 1
max_objects = 1
workers = 0
save_every = 0
"""


def test_a_run_by_the_command(host, tmp_path: Path) -> None:
    from mip_adapter.commands.train import main
    from mip_adapter.weights.adapter import load_adapter

    with_faces(write_folder(tmp_path / "data", 3))
    (tmp_path / "train.toml").write_text(RUN)
    assert main(["--config", str(tmp_path / "train.toml"), "--cpu"]) == 0
    spec = load_adapter(tmp_path / "out" / "result.safetensors").spec
    assert spec.family == "faceid" and spec.face == FACE and not spec.reads_pictures


@pytest.mark.parametrize(
    "old, new, error", [("faceid", "plus", "start.family is “plus”; choose one of base, faceid"),
                        ('"miniature"', '"a.safetensors"', "files that do not exist: .*a.safetensors")]
)  # fmt: skip
def test_what_the_run_says(tmp_path: Path, old: str, new: str, error: str) -> None:
    from mip_adapter.training.run_config import read_run_config

    (tmp_path / "train.toml").write_text(RUN.replace(old, new))
    with pytest.raises(ValueError, match=error):
        read_run_config(tmp_path / "train.toml")


def test_the_projection_of_a_new_adapter_tells_faces_apart(miniature) -> None:
    from mip_adapter.training.trainable import init_adapter
    from mip_adapter.weights.projection import project
    from mip_adapter.weights.sites import cross_attentions, unet_sites

    unet = miniature[0].model.diffusion_model
    adapter = init_adapter(unet_sites(unet), cross_attentions(unet), FACE, family="faceid")
    faces = F.normalize(torch.from_numpy(np.stack([numbers(0), numbers(1)])), dim=-1)
    tokens = project(adapter, faces)
    assert tokens.shape == (2, 4, unet_sites(unet)[0].context_dim)
    assert float((tokens[0] - tokens[1]).abs().mean()) > 0.1
