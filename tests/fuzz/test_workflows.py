"""Workflows of a stranger: every node, with values out of range, through a real server.

Each prompt is refused by the host's validation, ends with a sentence, or succeeds. The server answers all the time, its
next prompt works, none takes long or much memory, and no file appears outside of the folders that nodes write into.
"""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import httpx
import psutil
from mip_adapter.evaluation.faces.analyser import INSTALL

from ..support.bounded import LONGER, MEMORY
from ..support.queueing import ended, get, run

EACH = 6  # prompts for a node
SECONDS = 5  # of the processor, for a prompt
WORDS = (
    "cat", "", " ", "\ud800", "\0", "a" * 400, "a" * 30_000, ":" + "1" * 15_000, "(" * 9000, "embedding:" * 900, "\\",
    "~nosuchuser", "../../up", "/etc/passwd", "\\\\somewhere\\share", "con", "{}", "<img src=x onerror=alert(1)>",
    "[x](javascript:alert(1))", "\u202etac", "🐈" * 200, "1", "-1", "99", "cat\ndog", "\n".join(map(str, range(900))),
)  # fmt: skip
NUMBERS = (
    0,
    1,
    -1,
    0.5,
    2**31,
    2**63,
    2**70,
    -(2**70),
    1e308,
    float("nan"),
    float("inf"),
    -float("inf"),
    "1",
    "x",
    True,
)
OTHERS = (None, [], {}, [[]], ["a", "b", "c"], {"a": 1})
# What gives a value of a type, by numbers of nodes below.
SOURCES = {
    "MODEL": ["m", 0], "CLIP": ["m", 1], "VAE": ["m", 2], "CLIP_VISION": ["m", 3], "MIP_ADAPTER": ["a", 0],
    "IMAGE": ["i", 0], "MASK": ["k", 0], "MIP_REFERENCES": ["r", 0], "MIP_DETECTOR": ["d", 0], "MIP_ENCODER": ["e", 0],
    "MIP_DETECTIONS": ["b", 0], "LATENT": ["l", 0], "MIP_MERGE": ["g", 0], "BOUNDING_BOX": ["b2", 1],
    "MIP_PICTURES": ["mp", 0], "MIP_BLOCK_STRENGTH": ["s", 0], "MIP_FUSION_HEAD": ["f", 0], "MIP_RELEVANCE": ["v", 1],
}  # fmt: skip
NODES = {
    "m": ("MIPMiniatureLoader", {}),
    "a": ("MIPAdapterLoader", {"adapter_name": "miniature_mip.safetensors"}),
    "i": ("EmptyImage", {"width": 64, "height": 64, "batch_size": 1, "color": 255}),
    "k": ("SolidMask", {"value": 1.0, "width": 64, "height": 64}),
    "r": ("MIPReference", {"image": ["i", 0], "text": "star", "weight": 1.0}),
    "mp": ("MIPPicture", {"image": ["i", 0], "weight": 1.0}),
    "d": ("MIPDetectorLoader", {"detector_name": "miniature world (pixels)"}),
    "e": ("MIPEncoderFromModels", {"clip_vision": ["m", 3]}),
    "b": ("MIPBoxes", {"images": ["i", 0], "boxes": ["k", 0], "texts": "star", "bbox_format": "x, y, width, height"}),
    "b2": ("MIPDetectObjects", {"images": ["i", 0], "detector": ["d", 0], "texts": "star", "threshold": 0.25}),
    "l": ("EmptyLatentImage", {"width": 64, "height": 64, "batch_size": 1}),
    "s": ("MIPBlockStrength", {"model": ["m", 0], "preset": "all"}),
    "f": ("MIPFusionHead", {"adapter": ["a", 0], "gate": "image", "strength": 1.0}),
    "v": ("MIPApply", {
        "model": ["m", 0], "clip": ["m", 1], "clip_vision": ["m", 3], "adapter": ["a", 0], "references": ["r", 0],
        "scale": 1.0, "start_percent": 0.0, "end_percent": 1.0,
    }),
    "g": ("MIPMerge", {"strategy": "relevance", "normalization": "sum", "background": 0.0, "sharpness": 1.0}),
}  # fmt: skip


def value(rng: random.Random, kind: Any, options: dict[str, Any], wild: bool) -> Any:
    """A value for an input; wild: most likely none that it accepts."""
    if isinstance(kind, list) or kind == "COMBO":
        choices = kind if isinstance(kind, list) else options.get("options", [])
        return rng.choice((*WORDS, *OTHERS)) if wild or not choices else rng.choice(choices)
    if kind in ("INT", "FLOAT"):
        return rng.choice((*NUMBERS, *OTHERS)) if wild else options.get("default", 1)
    if kind == "STRING":
        return rng.choice((*WORDS, *OTHERS)) if wild else rng.choice(WORDS)
    if kind == "BOOLEAN":
        return rng.choice((True, False, *OTHERS))
    sources = [SOURCES[each] for each in str(kind).split(",") if each in SOURCES]
    if wild or not sources:
        return rng.choice([*SOURCES.values(), *OTHERS, rng.choice(WORDS), rng.choice(NUMBERS)])
    return rng.choice(sources)


def prompt(rng: random.Random, name: str, about: dict[str, Any]) -> dict[str, Any]:
    given: dict[str, Any] = {}
    inputs = {**about["input"].get("required", {}), **about["input"].get("optional", {})}
    wild = set(rng.sample(sorted(inputs), min(len(inputs), rng.choice((0, 1, 1, 2)))))
    for each, (kind, *options) in inputs.items():
        required = each in about["input"].get("required", {})
        if required and rng.random() < 0.98 or not required and rng.random() < 0.6:
            given[each] = value(rng, kind, options[0] if options else {}, each in wild)
    if name == "MIPTrainAdapter":
        given["dataset_folder"] = rng.choice(WORDS)  # never a real one
    made = {"x": {"class_type": name, "inputs": given}}
    if about["output"]:
        made["p"] = {"class_type": "PreviewAny", "inputs": {"source": ["x", rng.randrange(len(about["output"]))]}}
    return made


def files(base: Path) -> set[Path]:
    """Files outside of the folders that nodes write into."""
    ours = (("output", "mip_adapter"), ("output", "mip_adapter_training"), ("temp",), ("user",), ("custom_nodes",))
    inside = (path.relative_to(base).parts for path in base.rglob("*") if path.is_file())
    return {Path(*parts) for parts in inside if not any(parts[: len(each)] == each for each in ours)}


def spent(process: psutil.Process) -> float:
    return process.cpu_times().user + process.cpu_times().system


def memory(process: psutil.Process) -> int:
    """The most bytes that a process ever had, where the system tells it; else what it has."""
    status = Path(f"/proc/{process.pid}/status")
    if status.is_file():
        return int(status.read_text().split("VmHWM:")[1].split()[0]) << 10
    return process.memory_info().rss


def test_every_node_with_values_out_of_range(server) -> None:
    known = get(server, "object_info").json()
    names = sorted(name for name in known if name.startswith("MIP"))
    assert len(names) > 20 and all(kind in known for kind, _ in NODES.values())
    everything = {key: {"class_type": kind, "inputs": inputs} for key, (kind, inputs) in NODES.items()}
    shown = {f"p{i}": {"class_type": "PreviewAny", "inputs": {"source": [key, 0]}} for i, key in enumerate("ardeb")}
    good = everything | shown
    assert run(server, good)["status"]["status_str"] == "success"
    process, rng = psutil.Process(server.process.pid), random.Random(1)
    before, beside, taken = files(server.base), set(server.base.parent.iterdir()), memory(process)
    became = {"refused": 0, "sentence": 0, "success": 0}
    for name in names * EACH * LONGER:
        began = spent(process)
        # With all nodes in every prompt, the host keeps what they gave.
        body = json.dumps({"prompt": {**everything, **prompt(rng, name, known[name])}})  # with NaN: httpx refuses it
        became[outcome(server, body)] += 1
        assert spent(process) - began < SECONDS, body[:2000]
        assert memory(process) - taken < MEMORY, body[:2000]
    assert run(server, good)["status"]["status_str"] == "success"
    assert files(server.base) == before and set(server.base.parent.iterdir()) == beside
    assert min(became.values()) > 2, became


def outcome(server: Any, body: str) -> str:
    """What becomes of a prompt: refused, sentence or success."""
    header = {"Content-Type": "application/json"}
    answer = httpx.post(f"{server.url}/prompt", content=body, headers=header, trust_env=False, timeout=None)
    assert answer.status_code in (200, 400), (answer.text, body)
    if answer.status_code == 400:
        check_refusal(answer.json(), body)
        return "refused"
    status = ended(server, answer.json()["prompt_id"])["status"]
    for kind, said in status["messages"]:
        if kind == "execution_error" and said["node_type"].startswith("MIP"):
            check_sentence(said["exception_type"], said["exception_message"].strip(), body)
    return "success" if status["status_str"] == "success" else "sentence"


def check_refusal(answer: dict[str, Any], body: str) -> None:
    """The host refuses with its own words, or with a sentence of ours; nothing of ours raises while it asks."""
    for node in answer["node_errors"].values():
        for error in node["errors"]:
            ours = node["class_type"].startswith("MIP")
            assert not ours or error["type"] != "exception_during_validation", (error, body[:2000])


def check_sentence(kind: str, said: str, body: str) -> None:
    ours = "MIP-Adapter" in kind  # a class of our own, such as of a score that is not defined
    assert ours or kind.endswith("ValueError"), (kind, said, body[:2000])
    assert len(said) < 3000 and all(line.isprintable() for line in said.split("\n")), (said, body[:2000])
    assert said[0].isupper() or said[0] in "“" or said.split()[0].isidentifier(), (said, body[:2000])
    # A command to copy has no full stop.
    assert said.endswith((".", "!", "?", INSTALL)) and len(said) > 25, (said, body[:2000])
