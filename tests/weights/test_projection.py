"""Image tokens equal the official implementation's and PyTorch's own modules'."""

from __future__ import annotations

import pytest
import torch
from mip_adapter.weights.adapter import build_adapter, load_adapter
from mip_adapter.weights.projection import project
from safetensors.torch import load_file
from torch import nn

from ..support import weights_samples as samples
from ..support.weights_samples import FAMILIES, GOLDEN, SMALL


def relative(got: torch.Tensor, wanted: torch.Tensor) -> float:
    return float((got - wanted).norm() / wanted.norm())


@pytest.mark.parametrize("family", ["base", "plus"])
@pytest.mark.parametrize("branch", ["", "_uncond"])
def test_golden(family, branch):
    adapter = load_adapter(GOLDEN / f"{family}_ip_adapter.bin")
    golden = load_file(GOLDEN / f"unet_{family}.safetensors")
    tokens = project(adapter, golden[f"image_embeds{branch}"])
    assert tokens.dtype == torch.float32
    assert tokens.shape == golden[f"image_tokens{branch}"].shape
    assert relative(tokens, golden[f"image_tokens{branch}"]) < 1e-5


def test_full_face_is_an_mlp_per_token():
    tensors = samples.flat(SMALL["full-face"])
    mlp = nn.Sequential(nn.Linear(10, 10), nn.GELU(), nn.Linear(10, 12), nn.LayerNorm(12))
    mlp.load_state_dict({k.removeprefix("image_proj.proj."): t for k, t in tensors.items() if "image_proj" in k})
    embeds = torch.randn(2, 257, 10)
    tokens = project(build_adapter(tensors, "a"), embeds)
    assert tokens.shape == (2, 257, 12)
    assert relative(tokens, mlp(embeds).detach()) < 1e-5


def test_half_precision_is_computed_in_float32():
    tensors = {key: tensor.half() for key, tensor in samples.flat(SMALL["plus"]).items()}
    embeds = torch.randn(2, 9, 10).half()
    full = project(build_adapter({k: t.float() for k, t in tensors.items()}, "a"), embeds.float())
    assert torch.equal(project(build_adapter(tensors, "a"), embeds), full)


def test_pictures_do_not_see_each_other():
    for family, embeds in (("base", torch.randn(3, 10)), ("plus", torch.randn(3, 9, 10))):
        adapter = build_adapter(samples.flat(SMALL[family]), "a")
        apart = torch.cat([project(adapter, one[None]) for one in embeds])
        assert relative(project(adapter, embeds), apart) < 1e-5  # other batches, other order of sums


@pytest.mark.parametrize("name", FAMILIES)
def test_real_shapes(name):
    sample = FAMILIES[name]
    adapter = build_adapter(samples.flat(sample, samples.meta), name)
    reads_states = adapter.spec.encoder.output == "penultimate_hidden_states"
    shape = (2, 257, sample.encoder) if reads_states else (2, sample.encoder)
    tokens = project(adapter, torch.empty(shape, device="meta"), torch.empty(2, 512, device="meta"))
    assert tokens.shape == (2, adapter.spec.tokens or 257, sample.context)


@pytest.mark.parametrize(
    ("name", "embeds", "expected"),
    [
        ("MIP-Adapter model_sdxl", (1, 1024), r"needs CLIP ViT-bigG/14 .*1280 wide.* with 1024 \(CLIP ViT-H/14\)"),
        ("ip-adapter_sd15", (1, 1280), r"needs CLIP ViT-H/14 .*1024 wide.* with 1280 \(CLIP ViT-bigG/14\)"),
        ("ip-adapter-plus_sd15", (1, 257, 1664), r"needs CLIP ViT-H/14 .*1280 wide.* with 1664 \(CLIP ViT-bigG/14\)"),
        ("ip-adapter-plus_sd15", (1, 257, 999), r"with 999\. Load the encoder"),
        ("ip-adapter-plus_sd15", (1, 1280), r"penultimate_hidden_states \[B, P, E\], got \[1, 1280\]"),
        ("ip-adapter_sd15", (1, 257, 1024), r"image_embeds \[B, E\], got \[1, 257, 1024\]"),
    ],
)
def test_the_wrong_encoder_is_named(name, embeds, expected):
    adapter = build_adapter(samples.flat(FAMILIES[name], samples.meta), name)
    with pytest.raises(ValueError, match=expected):
        project(adapter, torch.empty(embeds, device="meta"))
