"""What reaches a node by mistake: nothing, lists, bytes. Every input of every node says so in a sentence."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
import torch

from ..support import graphs
from ..support.newer import absent
from ..support.paths import ROOT
from ..support.sentences import told

INFO = ROOT / "tests" / "data" / "object_info.json"

pytestmark = pytest.mark.usefixtures("host")


@pytest.fixture(autouse=True, scope="module")
def _folders(host) -> None:
    from mip_adapter.weights.comfy_files import register_folders

    register_folders()  # as the host's loading of the pack does


def linked() -> list[tuple[Any, Any]]:
    """(node, input) for all inputs that have no widget."""
    from comfy_api.latest import io
    from mip_adapter.nodes import NODES
    from mip_adapter.weights.comfy_files import register_folders

    register_folders()  # some schemas list files
    widgets = (io.Int, io.Float, io.String, io.Boolean, io.Combo)
    schemas = [(node, node.define_schema()) for node in NODES]
    return [(node, each) for node, schema in schemas for each in schema.inputs if each.Parent not in widgets]


def test_nothing() -> None:
    from mip_adapter.nodes.validation import ENCODERS, check_inputs

    for node, given in linked():
        if given.optional or given.Parent in ENCODERS:
            check_inputs(node, {given.id: None})
        else:
            with pytest.raises(ValueError, match=f"The input “{given.id}” of .* got nothing: .* switch"):
                check_inputs(node, {given.id: None})


@pytest.mark.parametrize("wrong, said", [
    (torch.randint(0, 255, (1, 8, 8, 3), dtype=torch.uint8) | 128, "values up to 2.., .* bytes. Divide by 255"),
    (torch.full((1, 8, 8, 3), 255.0), "values up to 255, .* from 0 to 1"),
    ([torch.zeros(1, 8, 8, 3)], "a list of 1 values instead of a batch"),
    ("picture.png", "a str, which is no "),
])  # fmt: skip
def test_no_pictures(wrong: Any, said: str) -> None:
    from mip_adapter.nodes.validation import PIXELS, check_inputs

    found = [(node, given) for node, given in linked() if given.Parent in PIXELS]
    assert len(found) > 8
    for node, given in found:
        with pytest.raises(ValueError, match=f"The input “{given.id}” of .* got {said}"):
            check_inputs(node, {given.id: wrong})


@pytest.mark.parametrize("right", [
    torch.rand(1, 8, 8, 3), torch.rand(1, 8, 8, 3) * 1.1, torch.ones(1, 8, 8, dtype=torch.bool),
    torch.zeros(0, 8, 8, 3), torch.full((1, 8, 8), torch.nan),
], ids=lambda each: str(each.dtype))  # fmt: skip
def test_pictures(right: torch.Tensor) -> None:
    from mip_adapter.nodes.validation import PIXELS, check_inputs

    for node, given in linked():
        if given.Parent in PIXELS:
            check_inputs(node, {given.id: right})


LOADS = "loads what is chosen from a list"
NOTHING_LINKED = {  # nodes that no other node gives anything
    "MIPAdapterLoader": LOADS,
    "MIPDetectorLoader": LOADS,
    "MIPEncoderLoader": LOADS,
    "MIPFaceAnalyserLoader": LOADS,
    "MIPMiniatureLoader": LOADS,
    "MIPSigLIPLoader": LOADS,
    "MIPMerge": "numbers and choices alone",
    "MIPMiniatureObject": "draws from choices alone",
}


def right(given: Any) -> Any:
    """A value that passes the door: what a widget begins with, else something of the kind that is connected there."""
    from comfy_api.latest import io
    from mip_adapter.nodes.validation import GROWN

    if given.get_io_type() == GROWN:
        return {"pictures.picture 1": graphs.photo(1)}
    if given.Parent is io.Combo:
        return given.default or (given.options or ["nothing to choose"])[0]
    if given.Parent is io.Mask:
        return torch.ones(1, 8, 8)
    right_values = {io.Image: graphs.photo(0), io.Latent: {"samples": torch.zeros(1, 4, 8, 8)}, io.String: ""}
    default = getattr(given, "default", None)
    return right_values.get(given.Parent, object()) if default is None else default


@pytest.mark.parametrize("name", sorted(json.loads(INFO.read_text("utf-8"))))
def test_the_nodes_themselves_check(name: str) -> None:
    """Every node, called as the host calls it, says what reaches any of its inputs by mistake."""
    from comfy_api.latest import io
    from mip_adapter.nodes import NODES
    from mip_adapter.nodes.validation import ENCODERS, PIXELS

    if name in absent():
        pytest.skip("this host has no such node")
    (node,) = (each for each in NODES if each.define_schema().node_id == name)
    schema = node.define_schema()
    entries = [given for each, given in linked() if each is node]
    assert bool(entries) == (name not in NOTHING_LINKED)
    whole = {each.id: right(each) for each in schema.inputs if not each.optional}
    for given in entries:
        mistakes: list[tuple[Any, str]] = [] if given.optional or given.Parent in ENCODERS else [(None, "nothing")]
        if given.Parent in PIXELS:
            mistakes += [
                (torch.full((1, 8, 8, 3), 255.0), "values up to 255"),
                ([graphs.photo(0)], "a list of 1 values"),
            ]
        if given.Parent is io.Latent:
            mistakes.append(({}, "no latent"))
        for wrong, said in mistakes:
            with pytest.raises(ValueError, match=re.escape(f"“{given.id}” of {schema.display_name} got {said}")):
                node.execute(**{**whole, given.id: wrong})


def test_folders_of_extra_model_paths_are_named(monkeypatch, tmp_path) -> None:
    """Where a file is missing, the sentence names the folders that are searched, also those from the user's file."""
    import folder_paths
    from mip_adapter.weights import comfy_files

    comfy_files.register_folders()
    for key in ("ipadapter", comfy_files.ENCODERS_FOLDER):
        paths, extensions = folder_paths.folder_names_and_paths[key]
        elsewhere = str(tmp_path / key)
        monkeypatch.setitem(folder_paths.folder_names_and_paths, key, ([elsewhere, *paths], extensions))
    with pytest.raises(ValueError, match=f"not found in .*{tmp_path}/ipadapter"):
        comfy_files.adapter_path("missing.safetensors")
    with pytest.raises(ValueError, match=f"not found in {tmp_path}/{comfy_files.ENCODERS_FOLDER} or "):
        comfy_files.model_folder(comfy_files.ENCODERS_FOLDER, "missing")


def test_a_file_of_the_same_name_with_the_other_ending_is_found(monkeypatch, tmp_path) -> None:
    """A workflow may name a .safetensors file where its reader has a .bin; the file that is named comes first."""
    import folder_paths
    from mip_adapter.weights import comfy_files

    comfy_files.register_folders()
    paths, extensions = folder_paths.folder_names_and_paths["ipadapter"]
    monkeypatch.setitem(folder_paths.folder_names_and_paths, "ipadapter", ([str(tmp_path), *paths], extensions))
    other, named = tmp_path / "of_somebody.bin", tmp_path / "of_somebody.safetensors"
    other.write_bytes(b"")
    assert comfy_files.adapter_path(named.name) == other == comfy_files.adapter_path(other.name)
    with pytest.raises(ValueError, match="not found"):
        comfy_files.adapter_path("of_somebody.txt")
    named.write_bytes(b"")
    assert comfy_files.adapter_path(named.name) == named and comfy_files.adapter_path(other.name) == other


def test_an_input_that_no_node_has() -> None:
    """The host hands on every link that a workflow holds, of whatever name."""
    from mip_adapter.nodes import NODES
    from mip_adapter.nodes.style import MIPStyleReference

    told(
        lambda: MIPStyleReference.execute(graphs.photo(0), 1.0, "all", image_mask=torch.ones(1, 24, 32)),
        "MIP Style Reference has no input “image_mask”", "Its inputs are image, weight, preset, ",
    )  # fmt: skip
    for node in NODES:
        for name in ("nothing of the kind", "cls"):
            with pytest.raises(ValueError, match=f"has no input “{name}”"):
                node.execute(**{name: None})
