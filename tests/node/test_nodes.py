"""The nodes' schemas: what shared workflows depend on, compared with tests/data/object_info.json, and what newer hosts
fold away and find nodes by, compared with tests/data/marks.json.

After a change that is meant:  MIP_ADAPTER_UPDATE=1 python mip.py test tests/node/test_nodes.py
"""

from __future__ import annotations

import json
import os

import pytest
import torch
from safetensors.torch import save_file

from ..support import graphs
from ..support.loops import complete
from ..support.newer import absent
from ..support.paths import DATA

FILE = DATA / "object_info.json"
MARKS = DATA / "marks.json"
LISTS_FILES = {
    ("MIPAdapterLoader", "adapter_name"),
    ("MIPFusionHead", "head_name"),
    ("MIPEncoderLoader", "encoder_name"),
    ("MIPDetectorLoader", "detector_name"),
    ("MIPFaceAnalyserLoader", "analyser_name"),
}
KEPT = ("default", "min", "max", "step", "options", "multiline", "control_after_generate")


@pytest.fixture(scope="module")
def nodes(host) -> list:
    from mip_adapter.nodes import extension

    return complete(extension().get_node_list())


def facts(node: type) -> dict:
    """What a saved workflow relies on: order, types, defaults and limits; not what is said about it."""
    info = node.GET_NODE_INFO_V1()
    inputs = {}
    for needed in ("required", "optional"):
        for name, (kind, *more) in info["input"].get(needed, {}).items():
            known = {key: value for key, value in (more[0] if more else {}).items() if key in KEPT}
            if (info["name"], name) in LISTS_FILES:
                known["options"] = "files"
            if kind == "COMFY_AUTOGROW_V3":
                known["sockets"] = {key: more[0]["template"][key] for key in ("names", "min")}
            inputs[name] = {"type": kind, "needed": needed, **known}
    return {"inputs": inputs, "outputs": list(zip(info["output_name"], info["output"], strict=True))}


def test_saved_workflows_still_fit(nodes) -> None:
    now = json.loads(json.dumps({node.GET_NODE_INFO_V1()["name"]: facts(node) for node in nodes}))
    now |= {name: promised(name) for name in absent()}
    if os.environ.get("MIP_ADAPTER_UPDATE"):
        FILE.write_text(json.dumps(now, indent=1) + "\n", encoding="utf-8")
    broken = [*differences(json.loads(FILE.read_text(encoding="utf-8")), now)]
    assert not broken, (
        "Saved workflows would break, or the promise is out of date (see this file's top):\n" + "\n".join(broken)
    )


def marks(node: type) -> dict:
    """What hosts of a certain age show of a node: the inputs that are folded away, and the words that find it."""
    schema = node.define_schema()
    return {
        "advanced": [each.id for each in schema.inputs if getattr(each, "advanced", None)],
        "search_aliases": schema.search_aliases,
    }


def test_advanced_inputs_and_search_words_are_kept(nodes) -> None:
    from mip_adapter.nodes.types import ADVANCED, searched_as

    if absent() or not (ADVANCED and searched_as("a word")):
        pytest.skip("this host has no place for them, or lacks nodes that have them")
    now = {node.define_schema().node_id: marks(node) for node in nodes}
    if os.environ.get("MIP_ADAPTER_UPDATE"):
        MARKS.write_text(json.dumps(now, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    assert now == json.loads(MARKS.read_text(encoding="utf-8"))
    assert all(each["search_aliases"] for each in now.values())
    for node in nodes:  # what says when something acts is folded away, at every node alike
        names = {each.id for each in node.define_schema().inputs} & {"start_percent", "end_percent"}
        assert names <= set(now[node.define_schema().node_id]["advanced"]), node


def promised(name: str) -> dict:
    return json.loads(FILE.read_text(encoding="utf-8"))[name]


def differences(promised: dict, now: dict):
    for node in [*promised, *(node for node in now if node not in promised)]:
        if node not in now:
            yield f"{node} is gone"
        elif node not in promised:
            yield f"{node} is new"
        elif now[node] != promised[node]:
            yield f"{node}: promised {json.dumps(promised[node])}\n  now {json.dumps(now[node])}"
        elif list(now[node]["inputs"]) != list(promised[node]["inputs"]):
            yield f"{node}: the inputs' order was {list(promised[node]['inputs'])}, now {list(now[node]['inputs'])}"


def test_everything_is_explained(nodes) -> None:
    for node in nodes:
        schema = node.define_schema()
        assert schema.node_id.startswith("MIP") and schema.display_name and schema.description, node
        assert schema.category.split("/")[0] == "MIP-Adapter", node
        unexplained = [each.id for each in schema.inputs if not each.tooltip]
        unexplained += [each.display_name or each.io_type for each in schema.outputs if not each.tooltip]
        assert not unexplained, f"{schema.node_id}: {unexplained} without a tooltip"


def test_a_head_from_another_file(host) -> None:
    """MIPFusionHead with head_name: the same as the adapter that the head was taken from."""
    from mip_adapter.nodes.merge import MIPFusionHead
    from mip_adapter.weights.comfy_files import register_folders

    register_folders()
    adapter = graphs.bundle().adapters["base"]
    rows = {f"{number}.text_to_weight.weight": row.unsqueeze(0).clone() for number, row in adapter.head.items()}
    file = host.base / "models" / "mip_adapter" / "head.safetensors"
    file.parent.mkdir(parents=True, exist_ok=True)
    save_file(rows, file)
    before = MIPFusionHead.fingerprint_inputs("image", 1.0, "head.safetensors")
    heads = [MIPFusionHead.execute(adapter, "image", 1.0, *name).args[0] for name in ((), ("head.safetensors",))]
    own, other = (graphs.sample(graphs.apply(fusion_head=head), 1) for head in heads)
    assert torch.equal(own, other)
    os.utime(file, (1, 1))
    assert MIPFusionHead.fingerprint_inputs("image", 1.0, "head.safetensors") != before


def test_sockets_are_called_after_the_design(nodes) -> None:
    """Inputs and outputs of ours by the names of the design's table."""
    ours = {"MIP_ADAPTER", "MIP_REFERENCES", "MIP_MERGE", "MIP_FUSION_HEAD", "MIP_RELEVANCE"}
    kinds = {kind for node in nodes for _, kind in facts(node)["outputs"]}
    assert ours <= kinds
    apply = facts(next(node for node in nodes if node.__name__ == "MIPApply"))
    assert list(apply["inputs"]) == [
        "model", "clip", "clip_vision", "adapter", "references", "scale", "start_percent", "end_percent", "merge",
        "fusion_head", "frozen", "prompt", "face_lora",
    ]  # fmt: skip
    defaults = {name: each["default"] for name, each in apply["inputs"].items() if "default" in each}
    assert defaults == {"scale": 0.75, "start_percent": 0.0, "end_percent": 1.0, "face_lora": 1.0}
