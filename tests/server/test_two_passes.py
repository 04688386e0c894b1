"""Two passes on a real server: the maps are taken between them, and stay when only the second pass runs again. With one
model for both they are the first one's, whenever they are asked for."""

from __future__ import annotations

import pytest
from mip_adapter.commands import demo

from ..support import queueing
from .test_live_preview import prompt


@pytest.fixture(scope="module")
def prepared(server):
    demo.prepare(server.base)
    return server


def two_passes(seed: int) -> dict:
    """The second sampler goes on from the first one's latent, enlarged, with the first one's maps."""
    graph = prompt(seed=1)
    first = graph["sampler"]["inputs"]
    more = {
        "freeze": ("MIPFreezeRelevance", {"relevance": ["apply", 1], "latent": ["sampler", 0]}),
        "apply2": ("MIPApply", {**graph["apply"]["inputs"], "frozen": ["freeze", 0]}),
        "larger": ("LatentUpscale", {
            "samples": ["freeze", 1], "upscale_method": "bilinear", "width": 192, "height": 96, "crop": "disabled",
        }),
        "sampler2": (
            "KSampler",
            {**first, "model": ["apply2", 0], "latent_image": ["larger", 0], "seed": seed, "denoise": 0.5},
        ),
        "decode2": ("VAEDecode", {"samples": ["sampler2", 0], "vae": ["bundle", 2]}),
        "maps": ("MIPRelevanceMaps", {"relevance": ["apply2", 1], "images": ["decode2", 0], "opacity": 0.6}),
        "said": ("PreviewAny", {"source": ["maps", 3]}),
        "first maps": ("MIPRelevanceMaps", {"relevance": ["freeze", 0], "images": ["decode", 0], "opacity": 0.6}),
        "first said": ("PreviewAny", {"source": ["first maps", 3]}),
    }  # fmt: skip
    return graph | {name: {"class_type": kind, "inputs": inputs} for name, (kind, inputs) in more.items()}


def run(server, graph: dict) -> tuple[dict[str, str], set[str]]:
    """What the two reports say, and which nodes came from the cache."""
    entry = queueing.run(server, graph)
    (cached,) = [message["nodes"] for kind, message in entry["status"]["messages"] if kind == "execution_cached"]
    outputs = entry["outputs"]
    return {name: outputs[name]["text"][0] for name in ("said", "first said") if name in outputs}, set(cached)


def test_a_second_pass_with_the_maps_of_the_first(prepared) -> None:
    said, _ = run(prepared, two_passes(seed=5))
    assert "The shares were frozen" in said["said"] and "sampled" not in said["said"]
    assert "The shares were frozen" not in said["first said"] and "in all of 3 steps" in said["first said"]
    again, cached = run(prepared, two_passes(seed=6))
    assert {"sampler", "freeze", "apply2", "first maps"} <= cached and not {"sampler2", "maps"} & cached
    assert "The shares were frozen" in again["said"] and "sampled" not in again["said"]  # each prompt samples once


def test_maps_of_a_first_pass_that_came_from_the_cache(prepared) -> None:
    """One model makes both passes; only then somebody asks for the maps of the first."""
    graph, more = prompt(seed=11), two_passes(seed=12)
    second = {**more["sampler2"]["inputs"], "model": ["apply", 0], "latent_image": ["larger", 0]}
    graph |= {
        "larger": {**more["larger"], "inputs": {**more["larger"]["inputs"], "samples": ["sampler", 0]}},
        "sampler2": {"class_type": "KSampler", "inputs": second},
        "decode2": more["decode2"],
        "kept": {"class_type": "PreviewImage", "inputs": {"images": ["decode2", 0]}},
    }
    run(prepared, graph)
    said, cached = run(prepared, graph | {name: more[name] for name in ("freeze", "first maps", "first said")})
    assert {"sampler", "sampler2"} <= cached and "freeze" not in cached
    assert "Maps of 4×2, 8×4, 16×8 positions" in said["first said"] and "sampled" not in said["first said"]


def test_scale_0_lets_the_queue_go_on(prepared) -> None:
    graph, more = prompt(seed=13), two_passes(seed=14)
    graph["apply"]["inputs"]["scale"] = 0.0
    drawn = {"class_type": "MIPRelevanceMaps", "inputs": {**more["first maps"]["inputs"], "relevance": ["apply", 1]}}
    said, _ = run(prepared, graph | {"first maps": drawn, "first said": more["first said"]})
    assert "scale is 0 in MIP Apply" in said["first said"]
