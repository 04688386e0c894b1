"""Two people and a thing through a real server: photographs, an analyser of ONNX models, one chain, one MIP Apply."""

from __future__ import annotations

import importlib.util
import json

import numpy as np
import pytest
from mip_adapter.commands import demo
from mip_adapter.evaluation.faces.analyser import INSTALL
from mip_adapter.research.miniature import seeded
from PIL import Image
from safetensors.torch import save_file

from ..support import queueing, tiny_faces, weights_samples
from ..support.weights_samples import Sample

RUNTIME = all(importlib.util.find_spec(name) for name in ("onnx", "onnxruntime"))


@pytest.fixture(scope="module")
def prepared(server):
    """The server with photographs, a folder of face models, and a face adapter for the miniature."""
    demo.prepare(server.base)
    for name, faces in (("two", ((0, 64), (128, 64))), ("none", ())):
        pixels = (tiny_faces.photo(*faces)[0].numpy() * 255).round().astype(np.uint8)
        Image.fromarray(pixels).save(server.base / "input" / f"{name}.png")
    folder = server.base / "models" / "insightface" / "models" / "tiny"
    folder.mkdir(parents=True, exist_ok=True)
    if RUNTIME:
        tiny_faces.write_models(folder)
    else:
        (folder / "detect.onnx").touch()
    sites = {key: each.shape for key, each in seeded.base_adapter().items() if key.endswith("to_k_ip.weight")}
    ordered = [shape for _, shape in sorted(sites.items(), key=lambda site: int(site[0].split(".")[1]))]
    sample = Sample("faceid", ordered[0][1], 512, tuple(shape[0] for shape in ordered), lora=2)
    file = server.base / "models" / "ipadapter" / "tiny-faceid.safetensors"
    file.parent.mkdir(parents=True, exist_ok=True)
    save_file({key: tensor / 20 for key, tensor in weights_samples.flat(sample).items()}, file)
    return server


def graph(picture: str = "two.png", face: int = 2, seed: int = 1) -> dict:
    """The left face is a woman's, the face that is asked for a man's; a cat beside them has an adapter of its own."""
    nodes = {
        "bundle": ("MIPMiniatureLoader", {}),
        "objects": ("MIPAdapterLoader", {"adapter_name": "miniature_mip.safetensors"}),
        "faces": ("MIPAdapterLoader", {"adapter_name": "tiny-faceid.safetensors"}),
        "analyser": ("MIPFaceAnalyserLoader", {"analyser_name": "tiny"}),
        "photograph": ("LoadImage", {"image": picture}),
        "cat": ("LoadImage", {"image": "cat.png"}),
        "woman": ("MIPFaceReference", {
            "image": ["photograph", 0], "text": "woman", "face_analyser": ["analyser", 0], "weight": 1.0, "face": 1,
            "adapter": ["faces", 0],
        }),
        "man": ("MIPFaceReference", {
            "image": ["photograph", 0], "text": "man", "face_analyser": ["analyser", 0], "weight": 1.0, "face": face,
            "adapter": ["faces", 0], "references": ["woman", 0],
        }),
        "thing": ("MIPReference", {"image": ["cat", 0], "text": "cat", "weight": 1.0, "references": ["man", 0]}),
        "apply": ("MIPApply", {
            "model": ["bundle", 0], "clip": ["bundle", 1], "clip_vision": ["bundle", 3], "adapter": ["objects", 0],
            "references": ["thing", 0], "scale": 0.75, "start_percent": 0.0, "end_percent": 1.0,
        }),
        "prompt": ("CLIPTextEncode", {"clip": ["bundle", 1], "text": "a woman and a man with a cat"}),
        "latent": ("EmptyLatentImage", {"width": 64, "height": 64, "batch_size": 1}),
        "sampler": ("KSampler", {
            "model": ["apply", 0], "positive": ["prompt", 0], "negative": ["prompt", 0], "latent_image": ["latent", 0],
            "seed": seed, "steps": 1, "cfg": 3.0, "sampler_name": "euler", "scheduler": "normal", "denoise": 1.0,
        }),
        "decode": ("VAEDecode", {"samples": ["sampler", 0], "vae": ["bundle", 2]}),
        "save": ("SaveImage", {"images": ["decode", 0], "filename_prefix": "faces"}),
        "crop": ("PreviewImage", {"images": ["man", 1]}),
        "said": ("PreviewAny", {"source": ["man", 2]}),
    }  # fmt: skip
    return {name: {"class_type": kind, "inputs": inputs} for name, (kind, inputs) in nodes.items()}


def problem(server, prompt: dict) -> str:
    """What the server says is wrong."""
    answer = queueing.post(server, "prompt", {"prompt": prompt}).json()
    if answer.get("node_errors"):
        return json.dumps(answer["node_errors"], ensure_ascii=False)
    entry = queueing.ended(server, answer["prompt_id"])
    return json.dumps(entry["status"]["messages"], ensure_ascii=False)


@pytest.mark.skipif(not RUNTIME, reason="onnx and onnxruntime are not installed")
def test_two_people_and_a_cat(prepared) -> None:
    outputs = queueing.run(prepared, graph())["outputs"]
    assert outputs["save"]["images"] and "one face in each picture" in outputs["said"]["text"][0]
    (crop,) = outputs["crop"]["images"]
    assert queueing.get(prepared, "view", **crop).content.startswith(b"\x89PNG")
    assert "There is no face 3 from the left" in problem(prepared, graph(face=3, seed=2))
    assert "No face was found in the picture of “woman”" in problem(prepared, graph("none.png", seed=3))


@pytest.mark.skipif(RUNTIME, reason="onnxruntime is installed")
def test_without_onnxruntime_the_sentence(prepared) -> None:
    assert INSTALL in problem(prepared, graph())


def test_an_analyser_that_is_missing(prepared) -> None:
    prompt = graph()
    prompt["analyser"]["inputs"]["analyser_name"] = "antelopev2"
    assert "“antelopev2” was not found in" in problem(prepared, prompt)
