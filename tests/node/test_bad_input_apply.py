"""What bad input gets from MIPApply: models, adapters and encoders that do not belong together, unusable texts."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import save_file

from ..support import graphs, small
from ..support.graphs import bundle, references
from ..support.sentences import told

pytestmark = pytest.mark.usefixtures("host")
NAN = float("nan")


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
    told(lambda: apply(adapter=for_sd15), "made for SD1.5", "16 cross-attention sites", "6 cross-attention sites")
    told(lambda: apply(model=sd15), "base_ip_adapter.bin", "6 cross-attention sites", "16 cross-attention sites")
    assert graphs.sample(apply(model=sd15, adapter=for_sd15), 1).isfinite().all()


def flux():
    import comfy.ldm.flux.model
    import comfy.model_base
    import comfy.supported_models

    config = {
        "image_model": "flux", "in_channels": 16, "out_channels": 16, "patch_size": 2, "vec_in_dim": 8,
        "context_in_dim": 48, "hidden_size": 32, "mlp_ratio": 2.0, "num_heads": 2, "depth": 1, "depth_single_blocks": 1,
        "axes_dim": [4, 6, 6], "theta": 100, "qkv_bias": True, "guidance_embed": False,
    }  # fmt: skip
    if "txt_ids_dims" in comfy.ldm.flux.model.FluxParams.__annotations__:  # newer hosts
        config["txt_ids_dims"] = []
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


def test_a_model_without_a_cross_attention_unet() -> None:
    told(lambda: apply(model=sd3()), "Stable Diffusion 3", "no cross-attention UNet", "SDXL")


def test_an_adapter_for_unets_on_flux() -> None:
    told(lambda: apply(model=flux()), "is an adapter for", "Load a checkpoint that belongs to the adapter")


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
    from mip_adapter.patching.object_text import encode_object_text

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
