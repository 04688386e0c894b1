"""Files that are often chosen in place of an adapter are called by their name."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from mip_adapter.weights.adapter import load_adapter
from mip_adapter.weights.spec import read_spec
from safetensors.torch import save_file

from ..support import weights_samples as samples
from ..support.weights_samples import FAMILIES, SMALL, meta


def keys(*names: str) -> dict[str, torch.Tensor]:
    return {name: meta(4, 4) for name in names}


KOLORS_FACE = {"image_proj.perceiver_resampler.layers.0.0.to_out.weight": meta(4096, 768)}
KOLORS = replace(FAMILIES["ip-adapter-plus_sdxl_vit-h"], dim=2048, heads=12, encoder=1024)
FLUX = replace(SMALL["base"], context=4096, widths=(3072, 3072), head=False)

FOREIGN = {
    "FaceID Plus for Kolors": KOLORS_FACE,
    "IP-Adapter for Kolors": samples.flat(KOLORS, meta),
    "IP-Adapter for Flux": samples.flat(FLUX, meta),
    "Stable Diffusion 3": keys("image_proj.latents", "image_proj.time_embedding.linear_1.weight", "ip_adapter.0.x"),
    "PuLID": keys("image_proj.body.0.weight", "image_proj.mapping_0.0.weight", "ip_adapter.1.to_k_ip.weight"),
    "PuLID ": keys("pulid_encoder.latents", "pulid_ca.0.to_q.weight"),
    "MS-Diffusion": keys("image_proj.grounding_latents", "ip_adapter.1.to_k_ip.weight"),
    "LoRA": keys("lora_unet_down_blocks_1_attentions_0_proj_in.lora_down.weight", "lora_te1_text_model.alpha"),
    "LoRA ": keys("unet.down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q.lora_A.weight"),
    "LoRA  ": keys("base_model.model.layers.0.self_attn.q_proj.lora_B.weight"),
    "LoRA   ": keys("transformer.single_transformer_blocks.0.attn.to_k.lora.down.weight"),
    "ControlNet": keys("control_model.input_blocks.0.0.weight", "control_model.zero_convs.0.0.weight"),
    "ControlNet ": keys("controlnet_cond_embedding.conv_in.weight", "down_blocks.0.resnets.0.conv1.weight"),
    "T2I-Adapter": keys("adapter.body.0.block1.weight", "adapter.conv_in.weight"),
    "full checkpoint": keys(
        "model.diffusion_model.input_blocks.0.0.weight",
        "model.diffusion_model.output_blocks.0.0.in_layers.0.weight",
        "first_stage_model.decoder.conv_in.weight",
        "conditioner.embedders.0.transformer.text_model.encoder.layers.0.mlp.fc1.weight",
    ),
    "UNet": keys(
        "down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k.weight", "mid_block.resnets.0.conv1.weight"
    ),
    "diffusion model": keys("double_blocks.0.img_attn.qkv.weight", "single_blocks.0.linear1.weight"),
    "diffusion model ": keys("model.diffusion_model.joint_blocks.0.x_block.attn.qkv.weight"),
    "CLIP image encoder": keys("vision_model.encoder.layers.0.layer_norm1.weight", "visual_projection.weight"),
    "CLIP image encoder ": keys("visual.transformer.resblocks.0.attn.in_proj_weight"),
    "text encoder": keys("text_model.encoder.layers.0.mlp.fc1.weight"),
    "text encoder ": keys("encoder.block.0.layer.0.SelfAttention.k.weight", "shared.weight"),
    "a VAE": keys("decoder.conv_in.weight", "encoder.conv_in.weight", "quant_conv.weight"),
    "a VAE ": keys("decoder.up_blocks.0.resnets.0.norm1.weight"),
    "Redux": keys("redux_down.weight", "redux_up.weight"),
    "AnimateDiff": keys("down_blocks.0.motion_modules.0.temporal_transformer.norm.weight"),
    "embedding": keys("clip_l", "clip_g"),
    "embedding ": keys("emb_params"),
    "upscaler": keys("model.0.weight", "model.1.sub.0.RDB1.conv1.0.weight"),
    "upscaler ": keys("conv_first.weight", "body.0.rdb1.conv1.weight"),
}


@pytest.mark.parametrize("kind", FOREIGN)
def test_it_is_named(kind):
    with pytest.raises(ValueError) as error:
        read_spec(FOREIGN[kind], "chosen.safetensors")
    sentence = str(error.value)
    assert sentence.startswith("“chosen.safetensors” is ")
    assert kind.strip(" ") in sentence or kind.strip(" .") + "," in sentence
    assert "expected a MIP-Adapter or IP-Adapter" in sentence
    assert "Load it with" in sentence or "Choose" in sentence or "load it with" in sentence or "Write" in sentence


@pytest.mark.parametrize("name", [*FAMILIES, *SMALL])
def test_no_adapter_is_taken_for_something_else(name):
    read_spec(samples.flat({**FAMILIES, **SMALL}[name], meta))


def test_an_unknown_file_shows_its_keys():
    with pytest.raises(ValueError, match=r"not an adapter: it holds some\.thing, other, expected image_proj"):
        read_spec(keys("some.thing", "other"))


def test_an_old_pickled_embedding_is_named(tmp_path):
    torch.save(
        {"string_to_token": {"*": 265}, "string_to_param": {"*": torch.zeros(2, 768)}, "step": 7}, tmp_path / "e.pt"
    )
    with pytest.raises(ValueError, match="“e.pt” is a textual inversion embedding"):
        load_adapter(tmp_path / "e.pt")


def test_a_lora_file_is_named(tmp_path):
    save_file({"lora_unet_mid_block.lora_up.weight": torch.zeros(2, 2)}, tmp_path / "style.safetensors")
    with pytest.raises(ValueError, match="“style.safetensors” is a LoRA.*Load LoRA"):
        load_adapter(tmp_path / "style.safetensors")
