"""One slot a site, many tenants: MIPApply twice, other packs' replacements before and behind ours, and their clones."""

from __future__ import annotations

import copy
from copy import deepcopy
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from mip_adapter.weights.sites import unet_sites

from ..support import graphs
from ..support.direct import attention
from ..support.graphs import TOLERANCE, bundle, deviation, references, sample

pytestmark = [pytest.mark.usefixtures("host"), pytest.mark.slow]


class Tenant:
    """Another pack's replacement, after IPAdapter_plus: text attention plus the terms of its callbacks."""

    def __init__(self, callback, **kwargs) -> None:
        self.callbacks = [(callback, kwargs)]
        self.moved_to: list = []

    def add(self, callback, **kwargs) -> None:
        self.callbacks.append((callback, kwargs))

    def to(self, device):
        self.moved_to.append(device)
        return self

    def __call__(self, q, k, v, extra_options):
        from comfy.ldm.modules.attention import optimized_attention

        out, sigma = optimized_attention(q, k, v, extra_options["n_heads"]), extra_options["sigmas"][0].item()
        for callback, kwargs in self.callbacks:
            if kwargs["sigma_end"] <= sigma <= kwargs["sigma_start"]:
                out = out + callback(out, q, k, v, extra_options, **kwargs)
        return out.to(q.dtype)


def term(out, q, k, v, extra_options, strength=0.5, **kwargs):
    """A callback's term: depends on q and on the conditional rows, as IPAdapter_plus's does."""
    signs = torch.tensor([1.0 - 2 * i for i in extra_options["cond_or_uncond"]]).to(q)
    return strength * torch.tanh(q) * signs.repeat_interleave(len(q) // len(signs))[:, None, None]


def join(model, key, strength=0.5, sigma_start=1e9, sigma_end=0.0):
    """What IPAdapter_plus does to a model of its own: take a free slot, or ask its tenant to add."""
    options = model.model_options["transformer_options"] = dict(model.model_options["transformer_options"])
    replace = options["patches_replace"] = dict(options.get("patches_replace", {}))
    slots = replace["attn2"] = dict(replace.get("attn2", {}))
    kwargs = {"strength": strength, "sigma_start": sigma_start, "sigma_end": sigma_end}
    if key in slots:
        slots[key].add(term, **kwargs)
    else:
        slots[key] = Tenant(term, **kwargs)


def sites(names: str) -> list[tuple]:
    """full: (block, number, index), as packs name SDXL's sites; block: (block, number), as they name SD1.5's, whose
    blocks have one transformer each. Only such blocks have a site of that name."""
    full = [site.key for site in unet_sites(bundle().model.model.diffusion_model)]
    return full if names == "full" else [key[:2] for key in full if (*key[:2], 1) not in full]


def joined(model, names: str, **kwargs):
    """The other pack's node."""
    model = model.clone()
    for key in sites(names):
        join(model, key, **kwargs)
    return model


def summed(*models, names: str = "", **kwargs):
    """What chains must equal: at every site the differences of all models from the text attention, added up; and
    `term` at the sites of these names."""
    slots = [model.model_options["transformer_options"]["patches_replace"]["attn2"] for model in models]
    also = {(*key, 0)[:3] for key in (sites(names) if names else ())}
    result = bundle().model.clone()

    def patch(key):
        def add_up(q, k, v, options):
            rows = zip(q.double(), k.double(), v.double(), strict=True)
            text = torch.stack([attention(*row, options["n_heads"]) for row in rows])
            total = text + sum(slot[key](q, k, v, options) - text for slot in slots)
            return (total + (term(total, q, k, v, options, **kwargs) if key in also else 0)).to(q.dtype)

        return add_up

    for key in sites("full"):
        result.set_model_attn2_replace(patch(key), *key)
    return result


def check(got, expected) -> None:
    assert deviation(sample(got), sample(expected), sample(bundle().model)) < TOLERANCE


@pytest.mark.parametrize("names", ["full", "block"])
@pytest.mark.parametrize("head", ["image", "text", "off"])
def test_another_pack_before_ours(names: str, head: str) -> None:
    choice: dict[str, Any] = {"head": {"gate": head}}
    check(
        graphs.apply(model=joined(bundle().model, names), **choice),
        summed(graphs.apply_directly(**choice), names=names),
    )


@pytest.mark.parametrize("names", ["full", "block"])
def test_another_pack_behind_ours(names: str) -> None:
    """Our clone gains the guest, the model that it was made from does not."""
    ours = graphs.apply()
    alone = sample(ours)
    check(joined(ours, names), summed(graphs.apply_directly(), names=names))
    assert torch.equal(sample(ours), alone)


@pytest.mark.parametrize("names", ["full", "block"])
def test_another_pack_on_both_sides(names: str) -> None:
    both = joined(graphs.apply(model=joined(bundle().model, names, strength=0.5)), names, strength=0.25)
    check(both, summed(graphs.apply_directly(), names=names, strength=0.75))


def test_a_guest_acts_within_its_sigmas_only() -> None:
    ours = graphs.apply()
    to_sigma = ours.get_model_object("model_sampling").percent_to_sigma
    early = joined(ours, "full", sigma_start=to_sigma(0.0), sigma_end=to_sigma(0.3))
    never = joined(ours, "full", sigma_start=to_sigma(0.4), sigma_end=to_sigma(0.6))
    assert not torch.equal(sample(early), sample(ours)) and not torch.equal(sample(early), sample(joined(ours, "full")))
    assert torch.equal(sample(never, 1), sample(ours, 1))


def test_a_function_before_ours() -> None:
    model = bundle().model.clone()
    for key in sites("full"):
        model.set_model_attn2_replace(Tenant(term, sigma_start=1e9, sigma_end=0.0).__call__, *key)
    check(graphs.apply(model=model), summed(graphs.apply_directly(), names="full"))


@pytest.mark.parametrize("gates", ["image image", "text image", "image text", "text text", "off off"])
def test_twice(gates: str) -> None:
    """Each adds what it adds alone to the same text attention."""
    chains = references(), references(("rocket", "astronaut", "moon"), weight=[1.0, 0.5, 2.0])
    families, merges = ("base", "plus"), ({}, {"strategy": "concat"})
    each: list[dict[str, Any]] = [
        dict(family=f, merge=m, head={"gate": g}) for f, m, g in zip(families, merges, gates.split(), strict=True)
    ]
    twice = graphs.apply(chains[1], model=graphs.apply(chains[0], **each[0]), **each[1])
    check(twice, summed(*(graphs.apply_directly(c, **options) for c, options in zip(chains, each, strict=True))))


def test_twice_at_different_times() -> None:
    first, second = {"end": 0.3, "family": "base"}, {"start": 0.2, "end": 0.9, "family": "plus"}
    twice = graphs.apply(model=graphs.apply(**first), **second)
    expected = summed(graphs.apply_directly(**first), graphs.apply_directly(**second))
    results = [sample(model, 5) for model in (twice, expected, bundle().model)]
    assert deviation(*results) < TOLERANCE


def test_clones_share_the_plan() -> None:
    ours = graphs.apply()
    slots, copies = (m.model_options["transformer_options"]["patches_replace"]["attn2"] for m in (ours, ours.clone()))
    assert all(copies[key] is not slots[key] and copies[key].schedule is slots[key].schedule for key in slots)
    assert torch.equal(sample(ours.clone().clone()), sample(ours))
    assert deepcopy(slots[sites("full")[0]]).schedule is slots[sites("full")[0]].schedule


def shares_leaves(options):
    """How hosts since 2026 copy a model's options for its clone: the dictionaries and lists, not what they hold."""
    if isinstance(options, dict):
        return {key: shares_leaves(value) for key, value in options.items()}
    return [shares_leaves(each) for each in options] if isinstance(options, list) else options


@pytest.mark.parametrize("times", [1, 2])
@pytest.mark.parametrize("names", ["full", "block"])
def test_guests_stay_in_their_clone_where_the_host_shares_what_options_hold(
    monkeypatch, names: str, times: int
) -> None:
    """Our model, its parent in a chain of two and the next run of the other pack's node know nothing of the guest."""
    import comfy.model_patcher

    copying = SimpleNamespace(copy=copy.copy, deepcopy=shares_leaves)
    monkeypatch.setattr(comfy.model_patcher, "copy", copying, raising=False)
    ours = graphs.apply()
    for _ in range(times - 1):
        ours = graphs.apply(references(("moon", "fox")), model=ours)
    alone, guest = sample(ours), sample(joined(ours, names))
    assert torch.equal(sample(ours), alone) and not torch.equal(guest, alone)
    assert torch.equal(sample(joined(ours.clone(), names)), guest)


def test_slots_that_share_a_shell_share_its_copy() -> None:
    """A block of one transformer has two names: a guest that comes by one acts whichever the host asks for."""
    ours = graphs.apply()
    slots, copies = (m.model_options["transformer_options"]["patches_replace"]["attn2"] for m in (ours, ours.clone()))
    for block in sites("block"):
        assert slots[block] is slots[(*block, 0)] and copies[block] is copies[(*block, 0)] is not slots[block]


def test_a_clone_from_which_all_patches_were_taken_can_be_cloned() -> None:
    bare = graphs.apply().clone()
    bare.model_options["transformer_options"] = {}
    assert torch.equal(sample(bare.clone()), sample(bundle().model))


def test_the_host_moves_what_stood_there_before() -> None:
    tenant: Any = Tenant(term, sigma_start=1e9, sigma_end=0.0)
    tenant.models = lambda: ["a model"]
    model = bundle().model.clone()
    model.set_model_attn2_replace(tenant, *sites("full")[0])
    ours = graphs.apply(model=model)
    ours.model_patches_to(torch.device("cpu"))
    slot = ours.model_options["transformer_options"]["patches_replace"]["attn2"][sites("full")[0]]
    assert torch.device("cpu") in slot.occupant.moved_to and set(ours.model_patches_models()) == {"a model"}


def test_the_input_model_is_untouched() -> None:
    before, options = sample(bundle().model), deepcopy(bundle().model.model_options)
    weights = {key: value.clone() for key, value in bundle().model.model.state_dict().items()}
    sample(graphs.apply(), 1)
    sample(graphs.apply(model=graphs.apply()), 1)
    assert bundle().model.model_options == options
    assert torch.equal(sample(bundle().model), before)
    assert all(torch.equal(value, weights[key]) for key, value in bundle().model.model.state_dict().items())


def test_applied_again_it_is_the_same() -> None:
    assert torch.equal(sample(graphs.apply()), sample(graphs.apply()))


@pytest.mark.parametrize("choice", [{}, {"merge": {"strategy": "sum"}}, {"head": {"gate": "text"}}], ids=str)
def test_scale_zero_is_the_identity(choice: dict) -> None:
    assert torch.equal(sample(graphs.apply(scale=0.0, **choice)), sample(bundle().model))


def test_outside_its_steps_it_is_the_identity() -> None:
    assert torch.equal(sample(graphs.apply(start=0.4, end=0.6), 1), sample(bundle().model, 1))


def test_interrupted_sampling_leaves_the_model_usable() -> None:
    import comfy.model_management

    ours = graphs.apply()
    before = sample(ours, 3)

    def interrupt(step, *_):
        if step == 1:
            raise comfy.model_management.InterruptProcessingException

    with pytest.raises(comfy.model_management.InterruptProcessingException):
        sample(ours, 3, callback=interrupt)
    assert torch.equal(sample(ours, 3), before)
