"""Bad input through a real server: the sentence comes back in the node that caused it, the next prompt still runs."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from mip_adapter.commands import demo
from mip_adapter.research.miniature import seeded
from PIL import Image
from safetensors.torch import save_file

from ..support.queueing import ended, get, post


@pytest.fixture(scope="module")
def prepared(server):
    """The server with the miniature's adapters, some that are not sound, and some pictures."""
    demo.prepare(server.base)
    folder = server.base / "models" / "ipadapter"
    seeded.write_adapters(folder)
    (folder / "pointer.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    (folder / "cut off.safetensors").write_bytes((folder / "miniature_base.safetensors").read_bytes()[:5000])
    save_file({"lora_unet_x.lora_up.weight": torch.zeros(2, 2)}, folder / "a lora.safetensors")
    tensors = seeded.base_adapter()
    tensors["ip_adapter.1.to_k_ip.weight"][0] = float("nan")
    save_file(tensors, folder / "not a number.safetensors")
    last = max(int(key.split(".")[1]) for key in tensors if key.startswith("ip_adapter."))
    shorter = {key: value for key, value in seeded.base_adapter().items() if not key.startswith(f"ip_adapter.{last}.")}
    save_file(shorter, folder / "for another model.safetensors")
    narrow = seeded.base_adapter()
    narrow["image_proj.proj.weight"] = narrow["image_proj.proj.weight"][:, :-8].contiguous()
    save_file(narrow, folder / "for another encoder.safetensors")
    noise = np.random.default_rng(0).integers(0, 255, (40, 60, 4), np.uint8)
    pictures = {"pixel": noise[:1, :1, :3], "rgba": noise, "grey": noise[..., 0], "wide": noise[:9, :, :3]}
    for name, pixels in pictures.items():
        Image.fromarray(pixels).save(server.base / "input" / f"{name}.png")
    return server


def graph() -> dict:
    """A good prompt of one step: one reference with a region, merge and head. A style behind it is not yet in use."""
    sampled = {"seed": 1, "steps": 1, "cfg": 3.0, "sampler_name": "euler", "scheduler": "normal", "denoise": 1.0}
    nodes = {
        "bundle": ("MIPMiniatureLoader", {}),
        "adapter": ("MIPAdapterLoader", {"adapter_name": "miniature_base.safetensors"}),
        "picture": ("LoadImage", {"image": "cat.png"}),
        "region": ("SolidMask", {"value": 1.0, "width": 64, "height": 64}),
        "reference": ("MIPReference", {"image": ["picture", 0], "text": "cat", "weight": 1.0, "region": ["region", 0]}),
        "style": ("MIPStyleReference", {
            "image": ["picture", 0], "weight": 1.0, "preset": "all", "references": ["reference", 0],
        }),
        "blocks": ("MIPBlockStrength", {"model": ["bundle", 0], "preset": "all", "numbers": ""}),
        "merge": ("MIPMerge", {"strategy": "relevance", "normalization": "sum", "background": 0.0, "sharpness": 1.0}),
        "head": ("MIPFusionHead", {"adapter": ["adapter", 0], "gate": "image", "strength": 1.0}),
        "apply": ("MIPApply", {
            "model": ["bundle", 0], "clip": ["bundle", 1], "clip_vision": ["bundle", 3], "adapter": ["adapter", 0],
            "references": ["reference", 0], "merge": ["merge", 0], "fusion_head": ["head", 0],
            "scale": 0.75, "start_percent": 0.0, "end_percent": 1.0,
        }),
        "prompt": ("CLIPTextEncode", {"clip": ["bundle", 1], "text": "a cat"}),
        "latent": ("EmptyLatentImage", {"width": 64, "height": 64, "batch_size": 1}),
        "sampler": ("KSampler", {
            "model": ["apply", 0], "positive": ["prompt", 0], "negative": ["prompt", 0], "latent_image": ["latent", 0],
            **sampled,
        }),
        "decode": ("VAEDecode", {"samples": ["sampler", 0], "vae": ["bundle", 2]}),
        "save": ("SaveImage", {"images": ["decode", 0], "filename_prefix": "after"}),
    }  # fmt: skip
    return {name: {"class_type": kind, "inputs": inputs} for name, (kind, inputs) in nodes.items()}


def ran(server, changes: dict) -> tuple[str | None, str]:
    """Run the graph with inputs changed: {"node.input": value}. Returns (node, message), or (None, "") for success."""
    prompt = graph()
    for place, value in changes.items():
        node, name = place.split(".")
        prompt[node]["inputs"][name] = value
    answer = post(server, "prompt", {"prompt": prompt}).json()
    if answer.get("node_errors"):
        ((node, found),) = answer["node_errors"].items()
        return node, json.dumps(found["errors"], ensure_ascii=False)
    entry = ended(server, answer["prompt_id"])
    for kind, message in entry["status"]["messages"]:
        if kind == "execution_error":
            return message["node_id"], f"{message['exception_type']}: {message['exception_message']}"
    assert entry["status"]["status_str"] == "success" and entry["outputs"]["save"]["images"]
    return None, ""


STYLED = {"apply.references": ["style", 0]}
BY_BLOCK = {"reference.block_strength": ["blocks", 0]}
BAD = {
    "a missing file": ({"adapter.adapter_name": "nothing.safetensors"}, "adapter", "was not found"),
    "a name that leaves": ({"adapter.adapter_name": "../../input/cat.png"}, "adapter", "leads out of the"),
    "no name": ({"adapter.adapter_name": ""}, "adapter", "No adapter is chosen"),
    "an LFS pointer": ({"adapter.adapter_name": "pointer.safetensors"}, "adapter", "Git LFS"),
    "a truncated file": ({"adapter.adapter_name": "cut off.safetensors"}, "adapter", "cut off"),
    "a LoRA": ({"adapter.adapter_name": "a lora.safetensors"}, "adapter", "LoRA"),
    "NaN weights": ({"adapter.adapter_name": "not a number.safetensors"}, "adapter", "NaN"),
    "another model's adapter": (
        {"adapter.adapter_name": "for another model.safetensors"}, "apply", "cross-attention sites"),
    "another encoder's adapter": ({"adapter.adapter_name": "for another encoder.safetensors"}, "apply", "encoder"),
    "a head that is missing": ({"head.head_name": "nothing.safetensors"}, "head", "was not found"),
    "an empty object text": ({"reference.text": "  "}, "reference", "object text is empty"),
    "a long object text": ({"reference.text": "a b " * 60}, "apply", "longer than 75 tokens"),
    "a heavy weight": ({"reference.weight": 4.0}, "reference", "3"),
    "a pixel": ({"picture.image": "pixel.png"}, "reference", "1×1 pixels"),
    "an empty region": ({"region.value": 0.0}, "reference", "region of “cat” is empty"),
    "an empty image mask": ({"reference.image_mask": ["picture", 1]}, "reference", "image_mask of “cat” is empty"),
    "a heavy style": (STYLED | {"style.weight": 4.0}, "style", "3"),
    "a style with a picture's empty mask": (STYLED | {"style.region": ["picture", 1]}, "style", "“style 1” is empty"),
    "a style with an object mask": (STYLED | {"style.image_mask": ["region", 0]}, "style", "has no input “image_mask”"),
    "a preset without such blocks": (STYLED | {"style.preset": "style"}, "apply", "SDXL and SD1.5"),
    "the same by block": (BY_BLOCK | {"blocks.preset": "composition"}, "blocks", "SDXL and SD1.5"),
    "no such preset": (STYLED | {"style.preset": "mood"}, "style", "mood"),
    "too few numbers": (BY_BLOCK | {"blocks.numbers": "1 0.5"}, "blocks", "too few block strengths: 2 for the 10"),
    "too many numbers": (BY_BLOCK | {"blocks.numbers": "1 " * 11}, "blocks", "too many block strengths: 11 for the 10"),
    "no numbers": (BY_BLOCK | {"blocks.numbers": "0.5 strong"}, "blocks", "“strong” is no block strength"),
    "a block that is not there": (BY_BLOCK | {"blocks.numbers": "10:1"}, "blocks", "no block “10”"),
    "start after end": ({"apply.start_percent": 0.8, "apply.end_percent": 0.2}, "apply", "start before end"),
    "no such strategy": ({"merge.strategy": "average"}, "merge", "average"),
    "an unconnected socket": ({"apply.clip_vision": ["prompt", 0]}, "apply", "CLIP_VISION"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_the_node_that_caused_it_says_why(prepared, case: str) -> None:
    changes, node, words = BAD[case]
    where, said = ran(prepared, changes)
    assert where == node and words in said, (where, said)
    assert not any(crash in said for crash in ("RuntimeError", "TypeError", "KeyError", "AttributeError", "IndexError"))


GOOD = {
    "the graph as it is": {},
    "an alpha channel": {"picture.image": "rgba.png"},
    "grey": {"picture.image": "grey.png"},
    "a strip": {"picture.image": "wide.png"},
    "plus weights": {"adapter.adapter_name": "miniature_plus.safetensors"},
    "weights whose file has another ending": {"adapter.adapter_name": "miniature_base.bin"},
    "scale 0": {"apply.scale": 0.0},
    "a style beside the object": STYLED | {"style.region": ["region", 0], "style.negative": ["picture", 0]},
    "numbers by block": BY_BLOCK | {"blocks.numbers": "0:1, 9:0.5", "blocks.over_time": "ease out"},
    "start is end": {"apply.start_percent": 0.5, "apply.end_percent": 0.5},
    "a wide canvas": {"latent.width": 136, "latent.height": 72, "latent.batch_size": 2},
}


@pytest.mark.parametrize("case", GOOD)
def test_afterwards_good_prompts_run(prepared, case: str) -> None:
    assert ran(prepared, GOOD[case]) == (None, "")


def test_the_list_shows_what_can_be_chosen(prepared) -> None:
    """Without the shadows that macOS leaves on foreign drives."""
    (Path(prepared.base) / "models" / "ipadapter" / "._miniature_base.safetensors").write_bytes(b"\x00\x05\x16\x07")
    info = get(prepared, "object_info/MIPAdapterLoader").json()
    names = info["MIPAdapterLoader"]["input"]["required"]["adapter_name"][1]["options"]
    assert "miniature_base.safetensors" in names and not [name for name in names if name.startswith("._")]
