"""A prompt in API format from before most inputs existed: it runs, and its picture is the one that it was made for."""

from __future__ import annotations

import io
import json

import pytest
from mip_adapter.commands import demo
from PIL import Image

from ..support.paths import ROOT
from ..support.queueing import get, run

OLD = ROOT / "tests" / "data" / "first_demo_api.json"  # the demo as it was when the pack got its first workflows
BEFORE = {("MIPMerge", "measure"): "each site"}  # what a node did before it had an input, where new nodes do otherwise


@pytest.fixture(scope="module")
def prepared(server):
    demo.prepare(server.base)
    return server


def old_prompt() -> dict:
    """The prompt as it was saved, but for fewer steps."""
    prompt = json.loads(OLD.read_text("utf-8"))
    samplers = [node["inputs"] for node in prompt.values() if node["class_type"] == "KSampler"]
    for each in samplers:
        each["steps"] = 3
    assert len(samplers) == 2
    return prompt


def spelled_out(server, prompt: dict) -> dict:
    """The same, with a value for every widget that our nodes have today."""
    known = get(server, "object_info").json()
    for node in prompt.values():
        kind, inputs = node["class_type"], node["inputs"]
        if kind.startswith("MIP"):
            for name, (_, about, *_) in known[kind]["input"].get("optional", {}).items():
                if "default" in about:
                    inputs.setdefault(name, BEFORE.get((kind, name), about["default"]))
    return prompt


def pictures(server, prompt: dict) -> dict[str, bytes]:
    """The pixels that each node has saved; the host makes none again whose inputs stay."""
    outputs = run(server, prompt)["outputs"]
    files = {number: get(server, "view", **output["images"][0]).content for number, output in outputs.items()}
    return {number: Image.open(io.BytesIO(content)).tobytes() for number, content in files.items()}


def test_an_old_prompt_makes_the_picture_it_made(prepared) -> None:
    old, full = old_prompt(), spelled_out(prepared, old_prompt())
    for reference_or_merge in ("5", "12"):
        assert full[reference_or_merge]["inputs"].keys() > old[reference_or_merge]["inputs"].keys()
    made = pictures(prepared, old)
    assert set(made) == {"16", "21"} and made["16"] != made["21"]  # two ways of merging
    assert made == pictures(prepared, full)
    for name, new in (("measure", "pool"), ("unclaimed", 1.0)):
        changed = json.loads(json.dumps(full))
        changed["12"]["inputs"][name] = new
        assert pictures(prepared, changed)["16"] != made["16"]
