"""What bad input gets, node by node: files, references and choices; test_bad_input_apply.py has MIPApply's.

Bad files are the business of test_weights_*.py; through a server, test_bad_input_server.py.
"""

from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import save_file

from ..support import small, weights_samples
from ..support.graphs import bundle, photo, references
from ..support.sentences import told
from .test_bad_input_apply import apply

pytestmark = pytest.mark.usefixtures("host")
NAN = float("nan")


# ---- files by name ----


@pytest.fixture
def files(host):
    """Adapters where the loader looks, and one where it must not."""
    from mip_adapter.weights.comfy_files import register_folders

    register_folders()
    folder = host.base / "models" / "ipadapter"
    folder.mkdir(parents=True, exist_ok=True)
    row = {"1.text_to_weight.weight": torch.zeros(1, 8)}
    save_file(row, folder / "head of another model.safetensors")
    save_file(row, host.base / "models" / "secret.safetensors")
    return folder


OUTSIDE = ["../secret.safetensors", "a/../../secret.safetensors", "/etc/passwd", "..", "../ipadapter_of_others/x.bin"]


@pytest.mark.parametrize("name", [*OUTSIDE, "nothing.safetensors", "", "head of another model"])
def test_names_that_are_not_in_the_list(files, name: str) -> None:
    from mip_adapter.nodes.adapter import MIPAdapterLoader
    from mip_adapter.nodes.merge import MIPFusionHead

    told(lambda: MIPAdapterLoader.execute(name), name or "No adapter")
    said = MIPAdapterLoader.validate_inputs(name)
    assert isinstance(said, str) and ("leads out" in said or "was not found" in said or "No adapter" in said)
    assert MIPFusionHead.validate_inputs(head_name=name) == said
    if name in OUTSIDE and "secret" in name:
        assert "leads out" in said


def test_a_linked_choice_is_known_later() -> None:
    """The host calls both with None for a linked input."""
    from mip_adapter.nodes.adapter import MIPAdapterLoader
    from mip_adapter.nodes.detect import MIPDetectorLoader
    from mip_adapter.nodes.encoders import MIPEncoderLoader
    from mip_adapter.nodes.merge import MIPFusionHead
    from mip_adapter.nodes.miniature import MIPMiniatureObject

    for loader in (MIPAdapterLoader, MIPDetectorLoader, MIPEncoderLoader):
        assert loader.validate_inputs(None) is True
        assert loader.fingerprint_inputs(None) == loader.fingerprint_inputs(None)
    assert MIPFusionHead.validate_inputs(head_name=None) is True
    assert MIPFusionHead.fingerprint_inputs("image", 1.0, None) == ("image", 1.0, None)
    assert MIPMiniatureObject.validate_inputs(None, "plain", None, "red") is True
    assert "choose one of" in str(MIPMiniatureObject.validate_inputs(None, "plain", None, "pink elephants"))


def test_a_models_folder_that_cannot_be_written_costs_no_node(monkeypatch, tmp_path) -> None:
    import folder_paths
    from mip_adapter.weights import comfy_files

    (tmp_path / "models").write_text("in the way")
    monkeypatch.setattr(folder_paths, "models_dir", str(tmp_path / "models"))
    monkeypatch.setattr(folder_paths, "folder_names_and_paths", {})
    comfy_files.register_folders()
    assert str(tmp_path / "models" / "mip_adapter") in folder_paths.folder_names_and_paths["mip_adapter"][0]
    assert "miniature_mip.safetensors" in comfy_files.adapter_names()


def test_a_head_of_another_model(files) -> None:
    from mip_adapter.nodes.merge import FROM_ADAPTER, MIPFusionHead

    head = MIPFusionHead.execute(bundle().adapters["base"], "image", 1.0, "head of another model.safetensors").args[0]
    told(lambda: apply(head=head), "head of another model", "1 rows", "6 sites", f"head_name to “{FROM_ADAPTER}”")


def test_a_file_without_a_head(files) -> None:
    from mip_adapter.nodes.merge import FROM_ADAPTER, MIPFusionHead

    save_file(weights_samples.flat(weights_samples.SMALL["full-face"]), files / "stock.safetensors")
    take = lambda: MIPFusionHead.execute(bundle().adapters["base"], "image", 1.0, "stock.safetensors")  # noqa: E731
    told(take, "stock.safetensors", "has no fusion head", f"head_name to “{FROM_ADAPTER}”")


def test_a_head_that_is_not_there() -> None:
    from mip_adapter.nodes.merge import MIPFusionHead

    plain = small.base_adapter(bundle().model, "plain")
    told(lambda: MIPFusionHead.execute(plain, "image", 1.0), "plain", "no fusion head", "off")
    assert MIPFusionHead.execute(plain, "off", 1.0).args[0].active is False


# ---- references ----


def reference(**inputs):
    from mip_adapter.nodes.reference import MIPReference

    return MIPReference.execute(**{"image": photo(0), "text": "cat", "weight": 1.0, **inputs}).args[0]


BAD_PICTURES = {
    "one pixel": (torch.zeros(1, 1, 1, 3), "1×1"),
    "a line": (torch.zeros(1, 1, 300, 3), "300×1"),
    "no pictures": (torch.zeros(0, 32, 32, 3), "[0, 32, 32, 3]"),
    "no batch": (torch.zeros(32, 32, 3), "[32, 32, 3]"),
    "channels first": (torch.zeros(1, 3, 32, 32), "[1, 3, 32, 32]"),
    "NaN": (torch.full((1, 32, 32, 3), NAN), "NaN"),
    "infinite": (torch.full((1, 32, 32, 3), float("inf")), "infinite"),
}


@pytest.mark.parametrize("name", BAD_PICTURES)
def test_pictures(name: str) -> None:
    picture, word = BAD_PICTURES[name]
    told(lambda: reference(image=picture), "cat", word)


def test_alpha_is_laid_on_white_and_grey_is_spread() -> None:
    picture = photo(1, 20, 20)
    transparent = torch.cat([picture, torch.zeros(1, 20, 20, 1)], -1)
    assert torch.equal(reference(image=transparent)[0].images, torch.ones_like(picture))
    opaque = torch.cat([picture, torch.ones(1, 20, 20, 1)], -1)
    torch.testing.assert_close(reference(image=opaque)[0].images, picture)
    assert reference(image=picture[..., :1])[0].images.shape == (1, 20, 20, 3)
    assert reference(image=picture * 3 - 1)[0].images.aminmax() == torch.aminmax((picture * 3 - 1).clamp(0, 1))


@pytest.mark.parametrize("text", ["", "   ", "\n\t"])
def test_empty_object_texts(text: str) -> None:
    told(lambda: reference(text=text), "object text is empty")


def test_an_object_text_is_one_line() -> None:
    assert reference(text=" red\n  cup\t")[0].text == "red cup"


def test_a_dot_is_no_mask_of_an_object() -> None:
    dot = torch.zeros(1, 24, 32)
    dot[0, 12, 20:24] = 1
    told(lambda: reference(image_mask=dot), "leaves 4×1 pixels", "whole object white")


@pytest.mark.parametrize("weight", [-0.1, 3.1, NAN, float("inf")])
def test_weights(weight: float) -> None:
    told(lambda: reference(weight=weight), "cat", str(weight), "between 0 and 3")


def test_masks() -> None:
    told(lambda: reference(region=torch.zeros(1, 64, 64)), "region", "empty")
    told(lambda: reference(region=torch.full((1, 9, 9), NAN)), "region", "empty")
    told(lambda: reference(region=torch.zeros(1, 3, 9, 9)), "region", "[1, 3, 9, 9]")
    told(lambda: reference(region=torch.zeros(1, 0, 9)), "region", "[1, 0, 9]")
    told(lambda: reference(image_mask=torch.zeros(1, 24, 32)), "image_mask", "empty")
    told(lambda: reference(image_mask=torch.ones(3, 24, 32)), "1 pictures", "3 image masks")
    assert reference(region=torch.ones(5, 5))[0].region.shape == (1, 5, 5)


def test_seventeen_references() -> None:
    sixteen = references([f"object {i}" for i in range(16)])
    assert len(sixteen) == 16
    told(lambda: reference(references=sixteen), "17", "16")


# ---- choices ----


@pytest.mark.parametrize(
    "wrong, word",
    [
        ({"strategy": "average"}, "average"),
        ({"normalization": "max"}, "max"),
        ({"background": -1.0}, "-1"),
        ({"background": NAN}, "nan"),
        ({"unclaimed": -0.5}, "-0.5"),
        ({"unclaimed": NAN}, "nan"),
        ({"sharpness": 0.0}, "0"),
        ({"sharpness": NAN}, "nan"),
    ],
)
def test_merge(wrong: dict, word: str) -> None:
    from mip_adapter.nodes.merge import MIPMerge

    right = {"strategy": "relevance", "normalization": "sum", "background": 0.0, "sharpness": 1.0}
    told(lambda: MIPMerge.execute(**{**right, **wrong}), next(iter(wrong)), word)


@pytest.mark.parametrize("wrong", [{"gate": "both"}, {"strength": -1.0}, {"strength": 9.0}, {"strength": NAN}])
def test_fusion_head(wrong: dict) -> None:
    from mip_adapter.nodes.merge import MIPFusionHead

    right = {"adapter": bundle().adapters["base"], "gate": "image", "strength": 1.0}
    told(lambda: MIPFusionHead.execute(**{**right, **wrong}), next(iter(wrong)), str(next(iter(wrong.values()))))


# ---- the host ----


@pytest.mark.parametrize("version", ["0.3.74", "0.3.9", "0.2.99", "v0.3.0", "0.3"])
def test_an_old_host(monkeypatch, version: str) -> None:
    from mip_adapter.nodes.comfy_version import require_host

    monkeypatch.setitem(sys.modules, "comfyui_version", SimpleNamespace(__version__=version))
    with pytest.raises(ImportError, match=f"needs ComfyUI 0.3.75 or newer; this is {version}"):
        require_host()


@pytest.mark.parametrize("version", ["0.3.75", "v0.3.75", "0.3.75-dev", "0.3.100", "0.8.0", "0.33.0", "1.0", "unknown"])
def test_a_host_that_will_do(monkeypatch, version: str) -> None:
    from mip_adapter.nodes.comfy_version import require_host

    monkeypatch.setitem(sys.modules, "comfyui_version", SimpleNamespace(__version__=version))
    require_host()
