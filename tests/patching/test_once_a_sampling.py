"""What does not change while a model is sampled is worked out once: object keys, shares that no query changes."""

from __future__ import annotations

from contextlib import contextmanager
from copy import deepcopy

import pytest
import torch

from ..relevance.test_record import freeze
from ..support import graphs
from ..support.graphs import bundle, guide, prompt, sample
from ..support.random_sites import Case
from .test_models import lora  # noqa: F401
from .test_steering import applied

pytestmark = pytest.mark.usefixtures("host")
LEFT = torch.linspace(1, 0, 8).expand(1, 8, 8)
STEPS = 3
RESOLUTIONS = 2  # of the small UNet's sites


@contextmanager
def counted_keys():
    """How often every to_k of the model was asked for keys of an object text: [L, X], where a prompt is [B, L, X]."""
    counts: dict = {}

    def count(module, inputs, _):
        if inputs[0].ndim == 2:
            counts[module] = counts.get(module, 0) + 1

    modules = (m for name, m in bundle().model.model.named_modules() if name.endswith("attn2.to_k"))
    handles = [module.register_forward_hook(count) for module in modules]
    try:
        yield counts
    finally:
        for handle in handles:
            handle.remove()
    assert len(counts) == len(handles)


def noisy():
    from mip_adapter.patching.noise_patch import apply_text_noise

    with torch.inference_mode():
        return apply_text_noise(bundle().model, bundle().clip, graphs.OBJECTS)


def test_packs_that_copy_the_options_copy_nothing_of_ours() -> None:
    """Some do at every step. What a sampling remembers holds modules of the model."""
    model = graphs.apply()
    modules: set[int] = set()

    def copied(args):
        options = deepcopy(args["model_options"])["transformer_options"]
        sampling = options["mip_adapter_sampling"]
        assert sampling is args["model_options"]["transformer_options"]["mip_adapter_sampling"]
        modules.update(id(to_k) for _, to_k, _ in sampling.caches.object_keys)
        return args["conds_out"]

    model.model_options["sampler_pre_cfg_function"] = [copied]
    expected = sample(graphs.apply(), STEPS)
    assert torch.equal(sample(model, STEPS), expected) and len(modules) > 1


@pytest.mark.parametrize("make", [graphs.apply, noisy])
def test_object_keys(make) -> None:
    model = make()
    for _ in range(2):  # another sampling may have other weights
        with counted_keys() as counts:
            sample(model, STEPS)
        assert set(counts.values()) == {1}


def test_object_keys_where_hooks_exchange_weights(lora) -> None:  # noqa: F811
    import comfy.hooks

    hooked = comfy.hooks.set_hooks_for_conditioning(prompt("a cat"), comfy.hooks.create_hook_lora(lora, 0.8, 0.0))
    with counted_keys() as counts:
        sample(guide(graphs.apply(), hooked), STEPS)
    assert set(counts.values()) == {STEPS}


def counted(monkeypatch, name: str) -> list:
    """The calls of a function that a site's shares come from."""
    from mip_adapter.attention import site

    calls, function = [], getattr(site, name)
    monkeypatch.setattr(site, name, lambda *given: calls.append(given) or function(*given))
    return calls


@pytest.mark.parametrize("strategy", ["relevance", "uniform", "concat"])
def test_shares_in_regions(strategy: str, monkeypatch) -> None:
    calls = counted(monkeypatch, "even_shares")
    sample(graphs.apply(graphs.references(region=[LEFT, None]), merge={"strategy": strategy}), STEPS)
    assert len(calls) == RESOLUTIONS


def test_frozen_shares(monkeypatch) -> None:
    model, record = applied()
    frozen = freeze(record, sample(model))
    calls = counted(monkeypatch, "frozen_shares")
    sample(applied(frozen=frozen, sharpness=2.0)[0], STEPS)
    assert len(calls) == RESOLUTIONS


def test_maps_stay_on_the_cpu() -> None:
    """Masks are as large as pictures, and a site sees a few thousand positions."""
    case = Case(regional=True, device="meta")
    plan, site = case.plan()
    assert plan.regions is not None and plan.regions.device.type == "cpu" and site.keys.device.type == "meta"
