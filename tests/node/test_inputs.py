"""What reaches a node by mistake: nothing, lists, bytes. Every input of every node says so in a sentence."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from ..support import graphs
from ..support.sentences import told

pytestmark = pytest.mark.usefixtures("host")


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


def test_the_nodes_themselves_check() -> None:
    from mip_adapter.nodes.apply import MIPApply
    from mip_adapter.nodes.freeze import MIPFreezeRelevance
    from mip_adapter.nodes.reference import MIPReference

    with pytest.raises(ValueError, match="“image” of MIP Reference got nothing"):
        MIPReference.execute(None, "cat", 1.0)
    with pytest.raises(ValueError, match="“region” of MIP Reference got values up to 255"):
        MIPReference.execute(graphs.photo(0), "cat", 1.0, region=torch.full((1, 8, 8), 255))
    with pytest.raises(ValueError, match="“model” of MIP Apply got nothing"):
        MIPApply.execute(None, None, None, None, (), 1.0, 0.0, 1.0)
    with pytest.raises(ValueError, match="“latent” of MIP Freeze Relevance got no latent"):
        MIPFreezeRelevance.execute(object(), {})


def test_folders_of_extra_model_paths_are_named(monkeypatch, tmp_path) -> None:
    """Where a file is missing, the sentence names the folders that are searched, also those from the user's file."""
    import folder_paths
    from mip_adapter.weights import comfy_files

    comfy_files.register_folders()
    for key in ("ipadapter", comfy_files.ENCODERS):
        paths, extensions = folder_paths.folder_names_and_paths[key]
        elsewhere = str(tmp_path / key)
        monkeypatch.setitem(folder_paths.folder_names_and_paths, key, ([elsewhere, *paths], extensions))
    with pytest.raises(ValueError, match=f"not found in .*{tmp_path}/ipadapter"):
        comfy_files.adapter_path("missing.safetensors")
    with pytest.raises(ValueError, match=f"not found in {tmp_path}/{comfy_files.ENCODERS} or "):
        comfy_files.model_folder(comfy_files.ENCODERS, "missing")


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
