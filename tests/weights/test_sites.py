"""Sites of real UNets, built by the host at full size on the meta device: numbering, adapters, refusals."""

from __future__ import annotations

import re
from dataclasses import fields
from functools import cache
from types import SimpleNamespace

import pytest
import torch
from mip_adapter.weights.adapter import build_adapter
from mip_adapter.weights.sites import Site, check_head, check_sites, cross_attentions, model_sites, unet_sites
from mip_adapter.weights.spec import architecture, read_spec

from ..support import weights_samples as samples
from ..support.weights_samples import FAMILIES, SD15_WIDTHS, SDXL_WIDTHS, SSD_1B_WIDTHS

_COMMON = {
    "use_checkpoint": False, "image_size": 32, "out_channels": 4, "use_spatial_transformer": True, "legacy": False,
    "in_channels": 4, "model_channels": 320, "use_temporal_attention": False, "use_temporal_resblock": False,
    "adm_in_channels": None, "use_linear_in_transformer": True,
}  # fmt: skip
_XL = {
    "num_classes": "sequential", "adm_in_channels": 2816, "num_res_blocks": [2, 2, 2], "channel_mult": [1, 2, 4],
    "context_dim": 2048,
}  # fmt: skip
_SD = {"num_res_blocks": [2] * 4, "transformer_depth": [1] * 6 + [0] * 2, "channel_mult": [1, 2, 4, 4],
       "transformer_depth_middle": 1, "transformer_depth_output": [1] * 9 + [0] * 3}  # fmt: skip

CONFIGS = {  # as the host's model detection finds them in the checkpoints
    "SDXL": _COMMON | _XL | {
        "transformer_depth": [0, 0, 2, 2, 10, 10], "transformer_depth_middle": 10,
        "transformer_depth_output": [0, 0, 0, 2, 2, 2, 10, 10, 10],
    },
    "SSD1B": _COMMON | _XL | {
        "transformer_depth": [0, 0, 2, 2, 4, 4], "transformer_depth_middle": -1,
        "transformer_depth_output": [0, 0, 0, 1, 1, 2, 10, 4, 4],
    },
    "SD15": _COMMON | _SD | {"context_dim": 768, "use_linear_in_transformer": False},
    "SD20": _COMMON | _SD | {"context_dim": 1024},
}  # fmt: skip

DESIGN = {  # SDXL: host block -> the numbers that published adapters use there
    **{("input", block): numbers for block, numbers in
       ((4, (1, 3)), (5, (5, 7)), (7, range(9, 28, 2)), (8, range(29, 48, 2)))},
    **{("output", block): numbers for block, numbers in
       ((0, range(49, 68, 2)), (1, range(69, 88, 2)), (2, range(89, 108, 2)),
        (3, (109, 111)), (4, (113, 115)), (5, (117, 119)))},
    ("middle", 0): range(121, 140, 2),
}  # fmt: skip


@cache
def build(name: str):
    """The host's own UNet for a checkpoint of that kind, without memory."""
    from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel
    from comfy.model_detection import model_config_from_unet_config

    config = model_config_from_unet_config(dict(CONFIGS[name]), {})
    assert type(config).__name__ == name
    return config, UNetModel(**config.unet_config, device="meta")


@pytest.fixture(params=CONFIGS)
def kind(request, host) -> str:
    return request.param


def test_sdxl_is_numbered_as_the_design_says(host):
    _, unet = build("SDXL")
    wanted = {(*block, index): number for block, numbers in DESIGN.items() for index, number in enumerate(numbers)}
    sites = unet_sites(unet)
    assert {site.key: site.number for site in sites} == wanted
    assert tuple(site.width for site in sites) == SDXL_WIDTHS
    assert {(site.context_dim, site.width // site.heads) for site in sites} == {(2048, 64)}


def test_numbers_follow_the_diffusers_order(kind):
    """An independent count: the host's own key map to diffusers, in the order of diffusers' modules."""
    from comfy.utils import unet_to_diffusers

    config, unet = build(kind)
    pattern = re.compile(
        r"(down|up|mid)_block(?:s\.(\d+))?\.attentions\.(\d+)\.transformer_blocks\.(\d+)\.attn2\.to_q\.weight"
    )
    found = []
    for key, ours in unet_to_diffusers(config.unet_config).items():
        if match := pattern.fullmatch(key):
            order = ("down", "up", "mid").index(match[1])
            found.append((order, int(match[2] or 0), int(match[3]), int(match[4]), ours))
    paths = [ours.removesuffix(".attn2.to_q.weight") for *_, ours in sorted(found)]
    assert len(paths) == len(unet_sites(unet))
    for position, (path, site) in enumerate(zip(paths, unet_sites(unet), strict=True)):
        assert site.number == 2 * position + 1
        assert cross_attentions(unet)[site.key] is unet.get_submodule(f"{path}.attn2")
        place, block, index = site.key
        assert path.endswith(f".transformer_blocks.{index}")
        assert path.startswith("middle_block.1." if place == "middle" else f"{place}_blocks.{block}.1.")


@pytest.mark.parametrize("family", ["base", "plus", "full-face"])
@pytest.mark.parametrize("head", [True, False])
def test_adapters_of_every_family_fill_every_site_once(kind, family, head):
    """Every checkpoint key is used exactly once, every site is filled."""
    _, unet = build(kind)
    sites = unet_sites(unet)
    sample = samples.Sample(
        family, sites[0].context_dim, 1280, tuple(s.width for s in sites), head, tokens=16, dim=128, heads=2
    )
    tensors = samples.flat(sample, samples.meta)
    adapter = build_adapter(tensors, "adapter")
    check_sites(adapter.spec, adapter.name, sites)
    used = [id(tensor) for tensor in adapter.image_proj.values()]
    for site in sites:
        weights, attn2 = adapter.site_weights[site.number], cross_attentions(unet)[site.key]
        assert weights.k_weight.shape == attn2.to_k.weight.shape and weights.v_weight.shape == attn2.to_v.weight.shape
        assert weights.k_weight.shape == (site.width, site.context_dim) and attn2.heads == site.heads
        used += [id(weights.k_weight), id(weights.v_weight)]
        if weights.head is not None:
            assert weights.head.shape == (attn2.to_out[0].weight.shape[1],)
            used.append(id(tensors[f"ip_adapter.{site.number}.text_to_weight.weight"]))
    assert sorted(used) == sorted(id(tensor) for tensor in tensors.values())


@pytest.mark.parametrize("name", FAMILIES)
def test_published_shapes_fit_their_unet_and_no_other(host, name):
    spec = read_spec(samples.flat(FAMILIES[name], samples.meta))
    fits = {"SDXL": "SDXL", "SD1.5": "SD15"}[spec.architecture]
    for kind in CONFIGS:
        sites = unet_sites(build(kind)[1])
        if kind == fits:
            check_sites(spec, name, sites)
        else:
            with pytest.raises(ValueError, match=re.escape(f"“{name}” is an adapter for {spec.architecture}, and")):
                check_sites(spec, name, sites)


@pytest.mark.parametrize(
    ("widths", "context", "model"),
    [(SDXL_WIDTHS, 2048, "SDXL"), (SD15_WIDTHS, 768, "SD1.5"), (SSD_1B_WIDTHS, 2048, "custom"), ((8, 8), 24, "custom")],
)
def test_architectures(widths, context, model):
    assert architecture(context, enumerate(widths)) == model


def fake_sites(widths: tuple[int, ...], context: int) -> tuple[Site, ...]:
    return tuple(Site(("input", i, 0), 2 * i + 1, c, 8, context) for i, c in enumerate(widths))


SDXL, SD15 = "MIP-Adapter model_sdxl", "ip-adapter_sd15"


@pytest.mark.parametrize(
    ("adapter", "sites", "expected"),
    [
        (SDXL, fake_sites(SD15_WIDTHS, 768), "is an adapter for SDXL, and this model is SD1.5."),
        (SD15, fake_sites(SDXL_WIDTHS, 2048), "is an adapter for SD1.5, and this model is SDXL."),
        (SDXL, fake_sites(SSD_1B_WIDTHS, 2048), "this model is SDXL's family with 34 cross-attention sites"),
        (SD15, fake_sites(SD15_WIDTHS, 1024), "this model is SD2.x with 16 cross-attention sites"),
        (SD15, fake_sites((320, 320, 999, *SD15_WIDTHS[3:]), 768), "at site 5 the model is 999 wide, the adapter 640"),
    ],
)  # fmt: skip
def test_refusals_name_both(adapter, sites, expected):
    with pytest.raises(ValueError) as error:
        check_sites(read_spec(samples.flat(FAMILIES[adapter], samples.meta)), adapter, sites)
    assert f"“{adapter}”" in str(error.value) and expected in str(error.value)


def test_a_head_must_fit():
    sites = fake_sites((8, 16), 12)
    check_head({1: torch.ones(8), 3: torch.ones(16)}, "h", sites)
    with pytest.raises(ValueError, match="1 rows and this model has 2 sites .site 3: head none, model 16 wide"):
        check_head({1: torch.ones(8)}, "h", sites)


def test_models_without_cross_attention_unet(host):
    import comfy.ops
    from comfy.ldm.flux.model import Flux, FluxParams
    from comfy.ldm.modules.diffusionmodules.mmdit import OpenAISignatureMMDITWrapper

    small = {"in_channels": 4, "out_channels": 4, "vec_in_dim": 8, "context_in_dim": 8, "hidden_size": 16,
             "mlp_ratio": 2.0, "num_heads": 2, "depth": 1, "depth_single_blocks": 1, "axes_dim": [4, 4],
             "theta": 10, "patch_size": 2, "qkv_bias": True, "guidance_embed": False}  # fmt: skip
    small = {field.name: small.get(field.name, []) for field in fields(FluxParams)}  # newer hosts have more
    common = {"dtype": torch.float32, "device": "meta", "operations": comfy.ops.disable_weight_init}
    embedder = {"target": "torch.nn.Linear", "params": {"in_features": 8, "out_features": 64}}
    sd3 = OpenAISignatureMMDITWrapper(
        input_size=None, depth=1, num_patches=16, pos_embed_max_size=4, context_embedder_config=embedder, **common
    )
    flux = Flux(**small, **common)
    assert [site.key for site in model_sites(flux)] == [("double_block", 0), ("single_block", 0)]
    for model, name in ((sd3, "a Stable Diffusion 3"), (SimpleNamespace(), "a SimpleNamespace")):
        with pytest.raises(
            ValueError, match=rf"no cross-attention UNet \(it is {name}\): MIP-Adapter works with SD1.5"
        ):
            unet_sites(model)


def test_a_unet_without_any_site(host):
    from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel

    config = CONFIGS["SD15"] | {
        "transformer_depth": [0] * 8, "transformer_depth_output": [0] * 12, "transformer_depth_middle": -1,
        "num_heads": 8, "model_channels": 32,
    }  # fmt: skip
    with pytest.raises(ValueError, match="no cross-attention UNet"):
        unet_sites(UNetModel(**config, device="meta"))
