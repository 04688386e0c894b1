"""Parity with the official implementation: sites in plain torch, whole UNets through the host's own sampling code."""

from __future__ import annotations

from functools import partial

import pytest
import torch
import torch.nn.functional as F

from ..support.direct import Direct, attention, object_relevance
from ..support.golden import FOLDER, host_unet, read, relative_error


def compiled_site(data: dict, metadata: dict, **options):
    """The plan of a golden site from its raw weights."""
    from mip_adapter.attention.options import FusionHead, Merge
    from mip_adapter.attention.plan import EncodedReferences, compile_plans
    from mip_adapter.weights.adapter import Adapter, SiteWeights
    from mip_adapter.weights.sites import Site

    heads, scale = int(metadata["heads"]), float(metadata["scale"])
    counts = data["object_token_counts"].tolist()
    key, head = ("input", 1, 0), data["text_to_weight"][0]
    adapter = Adapter("golden", None, {}, {1: SiteWeights(data["to_k_ip"], data["to_v_ip"], head)})

    def plan_of_row(row: int):
        references = EncodedReferences(
            names=tuple(f"object {i}" for i in range(len(counts))),
            tokens=data["image_tokens"][row],
            null_tokens=data["image_tokens"][row, 0],
            content_tokens=tuple(data["object_text"][row, i, 1 : 1 + n] for i, n in enumerate(counts)),
            weights=(1.0,) * len(counts),
        )
        sites = (Site(key, 1, data["to_q"].shape[0], heads, data["to_k"].shape[1]),)
        (plan,) = compile_plans(
            [adapter], sites, [references], scale=options.get("scale", scale), merge=options.get("merge", Merge()),
            head=options.get("head", FusionHead({1: head})), device=torch.device("cpu"), dtype=torch.float32,
        )  # fmt: skip
        return plan

    return plan_of_row, key, heads


def fused(data: dict, metadata: dict):
    """Z [B, N, C] of a golden site, and a record for each row, since each has objects of its own."""
    from mip_adapter.attention.site import fuse
    from mip_adapter.patching.unet_call import SiteRows, UNetCall
    from mip_adapter.relevance.record import RelevanceRecord

    plan_of_row, key, heads = compiled_site(data, metadata)
    q, side = data["hidden"] @ data["to_q"].T, round(data["hidden"].shape[1] ** 0.5)
    k, v = data["text"] @ data["to_k"].T, data["text"] @ data["to_v"].T
    q_heads, k_heads, v_heads = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (q, k, v))
    text = F.scaled_dot_product_attention(q_heads, k_heads, v_heads).transpose(1, 2).flatten(2)
    options = {"cond_or_uncond": [0], "sigmas": torch.ones(1), "sample_sigmas": torch.tensor([1.0, 0.0])}
    rows, records = [], []
    for row in range(len(q)):
        plan, call = plan_of_row(row), UNetCall(None, (1,), options)
        record, site, one = RelevanceRecord(plan.names), plan.site_plans[key], text[row : row + 1].clone()
        keys = lambda site=site: site.content_tokens @ data["to_k"].T  # noqa: E731
        observe = partial(call.observe, SiteRows(1), key, record, plan, tuple(range(plan.count)), (side, side))
        rows.append(fuse(one, one, q[row : row + 1], plan, site, call.branches(SiteRows(1)), keys, observe))
        call.close()
        records.append(record)
    return torch.cat(rows), records


@pytest.mark.parametrize("number", range(4))
def test_site(number: int) -> None:
    data, metadata = read(f"site_{number}")
    out = F.linear(fused(data, metadata)[0], data["to_out_weight"], data["to_out_bias"])
    assert relative_error(out, data["out"]) < 1e-5


@pytest.mark.parametrize("number", range(4))
def test_recorded_maps_of_a_site(number: int) -> None:
    """Shares and g̃ in MIP_RELEVANCE, against the definition."""
    data, metadata = read(f"site_{number}")
    for row, record in enumerate(fused(data, metadata)[1]):
        texts = [data["object_text"][row, i, 1 : 1 + n] for i, n in enumerate(data["object_token_counts"])]
        head, heads = data["text_to_weight"][0], int(metadata["heads"])
        shares, gate = defined(data["hidden"][row], data["text"][row], texts, head, heads, data)
        assert relative_error(record.shares().flatten(1), shares) < 1e-5
        assert relative_error(record.gate().flatten(), gate) < 1e-5


def defined(hidden, context, texts, head, heads: int, weights: dict) -> tuple[torch.Tensor, torch.Tensor]:
    """Ã [M, N] and g̃ [N] of a row: hidden [N, C], context [77, X], weights to_q, to_k, to_v of the UNet."""
    direct = Direct(tokens=(), null=torch.empty(0), texts=texts, weights=(), to_k={}, to_v={}, head={1: head})
    to_q, to_k, to_v = (weights[name].double().T for name in ("to_q", "to_k", "to_v"))
    q, context = hidden.double() @ to_q, context.double()
    text = attention(q, context @ to_k, context @ to_v, heads)
    relevance = torch.stack([object_relevance(q, each.double() @ to_k, heads) for each in texts])
    return direct.shares(relevance), direct.fusion_gate(text, 1)


class GoldenClip:
    """Stands for CLIP alone: the golden data has no text encoder, only what one gave for each object."""

    def __init__(self, data: dict) -> None:
        self.data = data

    def tokenize(self, text: str) -> dict:
        count = int(self.data["object_token_counts"][int(text)])
        ids = [49406, *range(1, 1 + count), *([49407] * (76 - count))]
        return {"l": [[(i, 1.0) for i in ids]], "object": int(text)}

    def encode_from_tokens(self, tokens: dict) -> torch.Tensor:
        return self.data["object_text"][tokens["object"]].unsqueeze(0)


class GoldenVision:
    """Stands for CLIP vision alone: the picture of object i is filled with i/16."""

    def __init__(self, data: dict) -> None:
        self.data = data
        self.model = lambda **_: (None, data["image_embeds_uncond"][:1])

    def encode_image(self, image: torch.Tensor, **_) -> dict:
        embeds = self.data["image_embeds"][int(image.mean() * 16 + 0.5)].unsqueeze(0)
        return {"image_embeds": embeds, "penultimate_hidden_states": embeds}


@pytest.fixture(scope="module")
def unet(host):
    return host_unet()


def patched(model, family: str, **options):
    """The golden model after MIPAdapterLoader's, MIPReference's and MIPApply's work. Returns (patcher, data)."""
    import comfy.model_patcher
    from mip_adapter.attention.reference import make_reference
    from mip_adapter.patching.apply import apply_references
    from mip_adapter.weights.adapter import load_adapter

    data, metadata = read(f"unet_{family}")
    patcher = comfy.model_patcher.ModelPatcher(model, torch.device("cpu"), torch.device("cpu"))
    count = len(data["object_token_counts"])
    references = tuple(make_reference(torch.full((1, 32, 32, 3), i / 16), str(i)) for i in range(count))
    adapter = load_adapter(FOLDER / f"{family}_ip_adapter.bin")
    options = {"scale": float(metadata["scale"]), **options}
    return apply_references(patcher, GoldenClip(data), GoldenVision(data), adapter, references, **options), data


def predict(patcher, data: dict, timestep: int, branches: str) -> dict[str, torch.Tensor]:
    """The UNet's noise prediction for "c" (cond) and "u" (uncond) rows in the given order, in one call."""
    unet = patcher.model.diffusion_model
    pick = {"c": "", "u": "_uncond"}
    context = torch.cat([data[f"context{pick[b]}"] for b in branches])
    time_ids = torch.cat([_time_embedding(data["time_ids"]) for _ in branches])
    y = torch.cat([torch.cat([data[f"pooled{pick[b]}"] for b in branches]), time_ids], 1)
    options = {
        **patcher.model_options["transformer_options"],
        "cond_or_uncond": ["cu".index(b) for b in branches],
    }
    x = data["x"].repeat(len(branches), 1, 1, 1)
    steps = torch.full((len(branches),), float(timestep))
    with torch.inference_mode():
        out = unet(x, steps, context=context, y=y, transformer_options=options)
    return {b: out[i : i + 1] for i, b in enumerate(branches)}


def _time_embedding(time_ids: torch.Tensor) -> torch.Tensor:
    from comfy.ldm.modules.diffusionmodules.openaimodel import Timestep

    return Timestep(256)(time_ids.flatten()).flatten().unsqueeze(0)


@pytest.mark.parametrize("timestep", [901, 400, 40])
@pytest.mark.parametrize("branches", ["uc", "cu", "c", "u"])
@pytest.mark.parametrize("family", ["base", "plus"])
def test_unet(unet, family: str, branches: str, timestep: int) -> None:
    patcher, data = patched(unet, family)
    got = predict(patcher, data, timestep, branches)
    for branch, eps in got.items():
        expected = data[f"eps_{timestep}" if branch == "c" else f"eps_uncond_{timestep}"]
        assert relative_error(eps, expected) < 1e-4


def test_the_golden_numbers_tell_right_from_wrong(unet) -> None:
    """Leaving out the relevance or the head is seen by the test above."""
    from mip_adapter.attention.options import FusionHead, Merge

    for options in ({"merge": Merge("uniform")}, {"fusion_head": FusionHead({}, "off")}):
        patcher, data = patched(unet, "base", **options)
        assert relative_error(predict(patcher, data, 400, "c")["c"], data["eps_400"]) > 1e-3


@pytest.mark.parametrize("branches", ["uc", "cu", "c"])
def test_recorded_maps_of_a_unet(unet, branches: str) -> None:
    """At each resolution the mean over its sites of what the definition gives for what entered the site."""
    from mip_adapter.relevance.record import RelevanceRecord
    from mip_adapter.weights.sites import cross_attentions, unet_sites

    record, entered = RelevanceRecord(("0", "1")), {}  # by module, its cond row
    patcher, data = patched(unet, "base", record=record)
    patcher.model_options["transformer_options"].update(sigmas=torch.ones(1), sample_sigmas=torch.tensor([1.0, 0.0]))
    modules = cross_attentions(unet.diffusion_model)
    # The host asks the projections, never the whole module; to_v for the context, since our patch asks to_k too.
    asked = [getattr(module, name) for module in modules.values() for name in ("to_q", "to_v")]
    hooks = [
        module.register_forward_pre_hook(lambda module, x: entered.update({module: x[0][branches.index("c")]}))
        for module in asked
    ]
    predict(patcher, data, 400, branches)
    for hook in hooks:
        hook.remove()

    texts = [data["object_text"][i, 1 : 1 + n] for i, n in enumerate(data["object_token_counts"])]
    heads = torch.load(FOLDER / "base_ip_adapter.bin", weights_only=True)["ip_adapter"]
    found: dict = {}
    for site in unet_sites(unet.diffusion_model):
        module = modules[site.key]
        weights = {name: getattr(module, name).weight.detach() for name in ("to_q", "to_k", "to_v")}
        row = heads[f"{site.number}.text_to_weight.weight"][0]
        maps = defined(entered[module.to_q], entered[module.to_v], texts, row, site.heads, weights)
        found.setdefault(round(len(maps[1]) ** 0.5), []).append(maps)
    assert [(side, side) for side in sorted(found)] == record.resolutions
    for side, maps in found.items():
        shares, gate = (torch.stack(each).mean(0) for each in zip(*maps, strict=True))
        assert relative_error(record.shares((side, side)).flatten(1), shares) < 1e-5
        assert relative_error(record.gate((side, side)).flatten(), gate) < 1e-5
