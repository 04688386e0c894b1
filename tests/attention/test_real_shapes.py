"""Full-size UNets of the host with our patches in them, run on the meta device: every shape, no memory."""

from __future__ import annotations

import pytest
import torch
from mip_adapter.attention.options import FusionHead, Merge
from mip_adapter.attention.plan import EncodedReferences, compile_plans
from mip_adapter.weights.adapter import build_adapter
from mip_adapter.weights.sites import unet_sites

from ..support import weights_samples as samples
from ..weights.test_sites import build

TOKENS = {"base": 4, "plus": 16, "full-face": 257}
META = torch.device("meta")

pytestmark = pytest.mark.slow


def patched(kind: str, family: str, strategy: str = "relevance", regional: bool = False, objects: int = 3):
    """(UNet, transformer_options) as MIPApply leaves them."""
    from comfy.model_patcher import ModelPatcher
    from mip_adapter.attention.schedule import Schedule
    from mip_adapter.patching.site_patch import install

    _, unet = build(kind)
    sites = unet_sites(unet)
    context = sites[0].context_dim
    sample = samples.Sample(family, context, 1280, tuple(s.width for s in sites), True, tokens=16, dim=128, heads=2)
    adapter = build_adapter(samples.flat(sample, samples.meta), "adapter")
    references = EncodedReferences(
        names=tuple(f"object {i}" for i in range(objects)),
        tokens=torch.empty(objects, TOKENS[family], context, device=META),
        null_tokens=torch.empty(TOKENS[family], context, device=META),
        content_tokens=tuple(torch.empty(1 + i, context, device=META) for i in range(objects)),
        weights=(1.0,) * objects,
        regions=torch.rand(objects, 1, 64, 48) if regional else None,  # on the CPU, as masks are
    )
    head = FusionHead(adapter.head)
    (plan,) = compile_plans(
        [adapter], sites, [references], scale=0.75, merge=Merge(strategy), head=head, device=META, dtype=torch.float32
    )
    model = torch.nn.Module()
    model.diffusion_model = unet
    patcher = install(ModelPatcher(model, META, META), Schedule.always(plan), 0.0, 1.0)
    return unet, plan, patcher.model_options["transformer_options"]


@pytest.mark.parametrize("kind", ["SDXL", "SSD1B", "SD15"])
@pytest.mark.parametrize(
    ("family", "strategy", "regional"),
    [("base", "relevance", False), ("plus", "relevance", True), ("full-face", "concat", False), ("base", "sum", True)],
)
def test_a_step_through_every_site(host, kind, family, strategy, regional):
    unet, plan, options = patched(kind, family, strategy, regional)
    sites = unet_sites(unet)
    assert set(plan.site_plans) == {site.key for site in sites}
    assert set(plan.site_plans) <= set(options["patches_replace"]["attn2"])
    latent = torch.empty(2, 4, 104, 152, device=META)  # 1216 × 832
    y = torch.empty(2, 2816, device=META) if unet.num_classes is not None else None
    context = torch.empty(2, 77, sites[0].context_dim, device=META)
    options |= {"cond_or_uncond": [1, 0], "optimized_attention_override": plain_attention}
    with torch.inference_mode():
        out = unet(latent, torch.empty(2, device=META), context, y, transformer_options=options)
    assert out.shape == latent.shape


@pytest.mark.parametrize(("family", "objects", "megabytes"), [("base", 2, 4), ("plus", 4, 27)])
def test_a_plan_is_as_small_as_we_say(host, family: str, objects: int, megabytes: int):
    """In half precision on SDXL."""
    _, plan, _ = patched("SDXL", family, objects=objects)
    names = ("keys", "values", "null_keys", "null_values", "head", "content_tokens")
    kept = {
        id(tensor): tensor
        for site in plan.site_plans.values()
        for name in names
        if (tensor := getattr(site, name)) is not None
    }
    assert round(sum(2 * tensor.numel() for tensor in kept.values()) / 1e6) == megabytes


def plain_attention(_, *args, **kwargs):
    """The host's attention of choice asks the device for free memory, which meta does not have."""
    from comfy.ldm.modules.attention import attention_pytorch

    return attention_pytorch(*args, **kwargs)
