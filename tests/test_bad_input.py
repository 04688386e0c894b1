"""What bad input gets, node by node: one sentence that says what, got, expected and how to mend, and never a crash.

Bad files are the business of test_weights_*.py; through a server, test_bad_input_server.py.
"""

from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import save_file

from . import graphs, small
from .graphs import bundle, photo, references

pytestmark = pytest.mark.usefixtures("host")
NAN = float("nan")


def told(call, *words: str) -> str:
    """The call must fail with a sentence that contains all of the words."""
    with pytest.raises(ValueError) as caught:
        call()
    said = str(caught.value)
    assert all(word in said for word in words), said
    assert said[0] in "“" or said[0].isupper() or said.split()[0] in INPUTS, f"not a sentence: {said}"
    assert said.endswith(".") and "\n" not in said and 40 < len(said) < 500, f"not a sentence: {said}"
    return said


INPUTS = ("scale", "start_percent", "merge", "normalization", "background", "sharpness", "fusion")


# ---- files by name ----


@pytest.fixture
def files(host):
    """Adapters where the loader looks, and one where it must not."""
    from mip_adapter.weights.host_files import register_folders

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


def test_a_head_of_another_model(files) -> None:
    from mip_adapter.nodes.merge import MIPFusionHead

    head = MIPFusionHead.execute(bundle().adapters["base"], "image", 1.0, "head of another model.safetensors").args[0]
    told(lambda: apply(head=head), "head of another model", "1 rows", "17 sites")


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


# ---- MIPApply ----


def apply(chain=None, **inputs):
    """MIPApply, with the graph's right parts but for the given ones."""
    from mip_adapter.nodes.apply import MIPApply

    parts = bundle()
    with torch.inference_mode():
        return MIPApply.execute(
            inputs.get("model", parts.model), inputs.get("clip", parts.clip), inputs.get("vision", parts.vision),
            inputs.get("adapter", parts.adapters["base"]), references() if chain is None else chain,
            inputs.get("scale", 1.0), inputs.get("start", 0.0), inputs.get("end", 1.0), None, inputs.get("head"),
        ).args[0]  # fmt: skip


@pytest.mark.parametrize("scale", [-1.0, NAN, float("inf")])
def test_scale(scale: float) -> None:
    told(lambda: apply(scale=scale), "scale", str(scale))


@pytest.mark.parametrize("start, end", [(0.6, 0.4), (-0.1, 1.0), (0.0, 1.1), (NAN, 1.0), (0.0, NAN)])
def test_start_and_end(start: float, end: float) -> None:
    told(lambda: apply(start=start, end=end), str(start), str(end))


def test_zero_references() -> None:
    told(lambda: apply(()), "no references", "MIP Reference")


@pytest.mark.parametrize("family", ["base", "plus"])
def test_the_wrong_image_encoder(family: str) -> None:
    """The message names the right one, here by its width alone."""
    other = small.vision(hidden_size=24, projection_dim=24)
    told(lambda: apply(vision=other, adapter=bundle().adapters[family]), family, "40 wide", "24", "encoder")


def test_adapters_for_other_models() -> None:
    sd15 = small.sd15()
    for_sd15 = small.base_adapter(sd15, "made for SD1.5")
    told(lambda: apply(adapter=for_sd15), "made for SD1.5", "16 cross-attention sites", "17 cross-attention sites")
    told(lambda: apply(model=sd15), "base_ip_adapter.bin", "17 cross-attention sites", "16 cross-attention sites")
    assert graphs.sample(apply(model=sd15, adapter=for_sd15), 1).isfinite().all()


def flux():
    import comfy.model_base
    import comfy.supported_models

    config = {
        "image_model": "flux", "in_channels": 16, "out_channels": 16, "patch_size": 2, "vec_in_dim": 8,
        "context_in_dim": 48, "hidden_size": 32, "mlp_ratio": 2.0, "num_heads": 2, "depth": 1, "depth_single_blocks": 1,
        "axes_dim": [4, 6, 6], "theta": 100, "qkv_bias": True, "guidance_embed": False,
    }  # fmt: skip
    settings = comfy.supported_models.FluxSchnell(config)
    settings.set_inference_dtype(torch.float32, None)
    return small.patcher(comfy.model_base.Flux(settings, device=torch.device("cpu")))


def sd3():
    import comfy.model_base
    import comfy.supported_models

    config = {
        "in_channels": 16, "depth": 1, "context_size": 48, "input_size": None, "pos_embed_scaling_factor": None,
        "adm_in_channels": 8, "pos_embed_max_size": 8, "num_patches": 64,
        "context_embedder_config": {"target": "torch.nn.Linear", "params": {"in_features": 48, "out_features": 64}},
    }  # fmt: skip
    settings = comfy.supported_models.SD3(config)
    settings.set_inference_dtype(torch.float32, None)
    return small.patcher(comfy.model_base.SD3(settings, device=torch.device("cpu")))


@pytest.mark.parametrize("model, name", [(flux, "Flux"), (sd3, "Stable Diffusion 3")])
def test_models_without_a_cross_attention_unet(model, name: str) -> None:
    told(lambda: apply(model=model()), name, "no cross-attention UNet", "SDXL")


def test_missing_encoders() -> None:
    """A checkpoint without CLIP gives None, which the socket accepts."""
    told(lambda: apply(clip=None), "CLIP", "checkpoint")
    told(lambda: apply(vision=None), "image encoder", "Load CLIP Vision")


def test_the_clip_of_another_model() -> None:
    import comfy.sd
    import comfy.sd1_clip

    class SD15:
        params: dict = {}
        clip = comfy.sd1_clip.SD1ClipModel
        tokenizer = comfy.sd1_clip.SD1Tokenizer

    other = comfy.sd.CLIP(SD15, model_options={"clip_l_model_config": small.CLIP_L})
    small.fill(other.cond_stage_model)
    told(lambda: apply(clip=other), "16 values", "48", "CLIP")


# ---- object texts ----


def encode(text: str) -> torch.Tensor:
    from mip_adapter.attention.host_encode import encode_object_text

    with torch.inference_mode():
        return encode_object_text(bundle().clip, text, bundle().adapters["base"])


def test_long_object_texts() -> None:
    assert encode("cat " * 75).shape == (75, 48)
    told(lambda: encode("cat " * 76), "longer than 75 tokens", "cat cat")
    told(lambda: encode("cat " * 300), "longer than 75 tokens")


@pytest.mark.parametrize("text", ["()", "( )"])
def test_object_texts_without_words(text: str) -> None:
    told(lambda: encode(text), text, "no words")


@pytest.mark.parametrize("text", ["cat", "a cat", "(red cat:1.3)", "猫", "🐱", "C" * 9, "cat, cat", "BREAK", "<cat>"])
def test_content_tokens_are_counted(text: str) -> None:
    """As many rows as the tokenizer has content tokens, whatever the text."""
    tokens = [entry[0] for entry in bundle().clip.tokenize(text)["l"][0]]
    assert len(encode(text)) == tokens.index(49407) - 1


def test_textual_inversion_in_an_object_text(host) -> None:
    folder = host.base / "models" / "embeddings"
    folder.mkdir(parents=True, exist_ok=True)
    save_file({"clip_l": torch.ones(2, 16), "clip_g": torch.ones(2, 32)}, folder / "mycat.safetensors")
    assert encode("embedding:mycat cat").shape == (3, 48)


# ---- the host ----


@pytest.mark.parametrize("version", ["0.3.74", "0.3.9", "0.2.99", "v0.3.0", "0.3"])
def test_an_old_host(monkeypatch, version: str) -> None:
    from mip_adapter.nodes.host_version import require_host

    monkeypatch.setitem(sys.modules, "comfyui_version", SimpleNamespace(__version__=version))
    with pytest.raises(ImportError, match=f"needs ComfyUI 0.3.75 or newer; this is {version}"):
        require_host()


@pytest.mark.parametrize("version", ["0.3.75", "v0.3.75", "0.3.75-dev", "0.3.100", "0.8.0", "0.33.0", "1.0", "unknown"])
def test_a_host_that_will_do(monkeypatch, version: str) -> None:
    from mip_adapter.nodes.host_version import require_host

    monkeypatch.setitem(sys.modules, "comfyui_version", SimpleNamespace(__version__=version))
    require_host()
