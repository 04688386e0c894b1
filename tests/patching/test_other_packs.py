"""Beside the kinds of packs that change what the host evaluates: lists of their own, passes, windows, patches.

Each pack is written here anew, by what it does to the host. The right answer is the definition (direct.py), told by the
test which rows are what.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from ..relevance.test_record import freeze
from ..support import graphs
from ..support.graphs import TOLERANCE, bundle, deviation, guide, prompt, sample
from .test_steering import applied

pytestmark = pytest.mark.usefixtures("host")


def wrapped(model: Any, kind: str, wrapper: Callable) -> Any:
    """A clone of the MODEL with another pack's wrapper."""
    from comfy.patcher_extension import add_wrapper_with_key

    model = model.clone()
    add_wrapper_with_key(kind, "another pack", wrapper, model.model_options, is_model_options=True)
    return model


# Guiders with lists of their own


def three_lists(model: Any, name: str, mark: str | None) -> Any:
    """A guider of three predictions: an empty prompt beside positive and negative, under a name of the pack's own."""
    import comfy.samplers
    import node_helpers

    class Guider(comfy.samplers.CFGGuider):
        def predict_noise(self, x, timestep, model_options, seed=None):
            lists = [self.conds[each] for each in ("positive", "negative", name)]
            positive, negative, empty = comfy.samplers.calc_cond_batch(
                self.inner_model, lists, x, timestep, model_options
            )
            return empty + 3.0 * (positive - empty) - 1.0 * (negative - empty)

    guider = Guider(model)
    marks = {} if mark is None else {"prompt_type": mark}
    empty = node_helpers.conditioning_set_values(prompt(""), marks)
    guider.inner_set_conds({"positive": prompt("a cat beside a cup"), "negative": prompt("blurry"), name: empty})
    return guider


@pytest.mark.parametrize("name, mark", [
    ("null", "negative"), ("uncond", None), ("empty", None), ("Unconditional", None), ("base", "negative"),
    ("neg_2", None), ("second", "positive"), ("second", None),
])  # fmt: skip
def test_lists_by_any_name(name: str, mark: str | None) -> None:
    table: dict[Any, bool] = {}
    direct = three_lists(graphs.apply_directly(branch=lambda _, uuid: (table[uuid], None)), name, mark)
    for each, conds in direct.original_conds.items():
        table |= {cond["uuid"]: each in ("positive", "second") for cond in conds}
    expected, without = sample(direct), sample(three_lists(bundle().model, name, mark))
    assert deviation(sample(three_lists(graphs.apply(), name, mark)), expected, without) < TOLERANCE


@pytest.mark.parametrize("mark", ["positive", "negative", None])
def test_a_list_that_is_not_the_guiders(mark: str | None) -> None:
    """A pack's own prompt, evaluated alone, is what it is marked as; unmarked it is an empty prompt."""
    import comfy.sampler_helpers
    import comfy.samplers

    known: set = set()

    def with_own_prompt(model: Any) -> Any:
        def function(args):
            conds = comfy.sampler_helpers.convert_cond(prompt("a photograph"))
            if mark is not None:
                conds[0]["prompt_type"] = mark
            encode = comfy.samplers.encode_model_conds
            conds = encode(args["model"].extra_conds, conds, args["input"], args["input"].device, "positive")
            (own,) = comfy.samplers.calc_cond_batch(
                args["model"], [conds], args["input"], args["sigma"], args["model_options"]
            )
            return args["denoised"] + 0.5 * (args["cond_denoised"] - own)

        model = model.clone()
        model.set_model_sampler_post_cfg_function(function)
        guider = guide(model)
        known.update(cond["uuid"] for cond in guider.original_conds["positive"])
        return guider

    def branch(_: int, uuid: Any) -> tuple[bool, None]:
        return uuid in known or (mark == "positive" and uuid not in no), None

    direct = graphs.apply_directly(branch=branch)
    guider = with_own_prompt(direct)
    no = {cond["uuid"] for cond in guider.original_conds["negative"]}
    expected, without = sample(guider), sample(with_own_prompt(bundle().model))
    assert deviation(sample(with_own_prompt(graphs.apply())), expected, without) < TOLERANCE


# Encoders


def in_pairs(clip: Any) -> Any:
    """A CLIP that gives a key and a value for each token, one behind the other."""
    clip = clip.clone()
    encode = clip.encode_from_tokens

    def doubled(*args, **more):
        result = encode(*args, **more)
        cond = result[0] if isinstance(result, tuple) else result
        cond = cond.repeat_interleave(2, dim=1)
        return (cond, *result[1:]) if isinstance(result, tuple) else cond

    clip.encode_from_tokens = doubled
    return clip


def halved(model: Any) -> Any:
    """What belongs to it: sites read keys from the even rows and values from the odd ones."""
    model = model.clone()
    model.set_model_attn2_patch(lambda q, k, v, options: (q, k[:, 0::2], v[:, 1::2]))
    return model


def test_an_encoder_of_keys_and_values() -> None:
    plain, pairs = bundle().clip, in_pairs(bundle().clip)

    def double(text: str) -> list:
        return [(cond.repeat_interleave(2, dim=1), more) for cond, more in prompt(text, plain)]

    def guided(model: Any) -> Any:
        return guide(halved(model), double("a cat beside a red coffee cup"), double("blurry"))

    expected, without = sample(guided(graphs.apply_directly())), sample(guided(bundle().model))
    assert deviation(sample(guided(graphs.apply(clip=pairs))), expected, without) < TOLERANCE


def test_an_encoder_of_unknown_rows_is_refused() -> None:
    clip = bundle().clip.clone()
    encode = clip.encode_from_tokens
    clip.encode_from_tokens = lambda *args, **more: torch.cat([encode(*args, **more)[:, :9] for _ in range(10)], 1)
    with pytest.raises(ValueError, match="gives 90 rows for the 77 tokens .* CLIP .* before"):
        graphs.apply(clip=clip)


# Crops


# Passes


@pytest.mark.parametrize("before", [True, False], ids=["before", "behind"])
@pytest.mark.parametrize("measure, steps, start", [("each site", 2, 0), ("pool", 4, 0), ("pool", 4, 1)])
def test_another_pass_of_the_unet_inside_a_call(before: bool, measure: str, steps: int, start: int) -> None:
    """Reference-only control runs the UNet on its own picture first, from some step on. Maps, and what sites pool, are
    of the picture that is made."""
    calls = []

    def twice(executor, x, *rest, **more):
        calls.append(len(x))
        if len(calls) > start:
            executor(torch.flip(x, (-1,)) * 0.5, *rest, **more)
        return executor(x, *rest, **more)

    plain, record = applied(measure=measure)
    expected, shares = sample(plain, steps), record.shares()
    first = wrapped(bundle().model, "diffusion_model", twice) if before else bundle().model
    model, other = applied(model=first, measure=measure)
    got = sample(model if before else wrapped(model, "diffusion_model", twice), steps)
    assert len(calls) == steps
    assert torch.equal(got, expected)
    torch.testing.assert_close(other.shares(), shares)
    torch.testing.assert_close(other.evenness(), record.evenness())


# Several samplings in one


@pytest.mark.parametrize("before", [True, False], ids=["before", "behind"])
@pytest.mark.parametrize("measure, first_steps", [("each site", 4), ("pool", 4), ("each site", 2)])
def test_another_sampling_before_the_last(before: bool, measure: str, first_steps: int) -> None:
    """AnimateDiff's FreeInit samples with options of its own, and then again with new noise. Maps, and what sites pool,
    are of the last sampling."""
    from comfy.model_patcher import create_model_options_clone

    steps, sampled = 4, []

    def twice(executor, noise, latent, sampler, sigmas, *rest, **more):
        guider = executor.class_obj
        guider.model_options = create_model_options_clone(guider.model_options)
        sampled.append(executor(torch.flip(noise, (-1,)), latent, sampler, sigmas[: first_steps + 1], *rest, **more))
        return executor(noise, latent, sampler, sigmas, *rest, **more)

    plain, record = applied(measure=measure)
    expected, shares = sample(plain, steps), record.shares()
    first = wrapped(bundle().model, "outer_sample", twice) if before else bundle().model
    model, other = applied(model=first, measure=measure)
    got = sample(model if before else wrapped(model, "outer_sample", twice), steps)
    assert len(sampled) == 1 and torch.equal(got, expected)
    torch.testing.assert_close(other.shares(), shares)
    torch.testing.assert_close(other.evenness(), record.evenness())
    torch.testing.assert_close(freeze(other, got).shares(), shares)
    assert other.runs == 2


@pytest.mark.parametrize("measure, cut", [("each site", 2), ("pool", 2), ("each site", 1)])
def test_a_sampling_in_two_pieces(measure: str, cut: int) -> None:
    """AnimateDiff's image injection runs the sampler up to a noise level, and from there on. It is one sampling."""

    def pieces(executor, noise, latent, sampler, sigmas, *rest, **more):
        latent = executor(noise, latent, sampler, sigmas[: cut + 1], *rest, **more)
        return executor(torch.zeros_like(noise), latent, sampler, sigmas[cut:], *rest, **more)

    plain, record = applied(measure=measure)
    expected, shares = sample(plain, 4), record.shares()
    model, other = applied(measure=measure)
    got = sample(wrapped(model, "outer_sample", pieces), 4)
    assert deviation(got, expected, sample(bundle().model, 4)) < TOLERANCE
    torch.testing.assert_close(other.shares(), shares, atol=1e-4, rtol=0)
    torch.testing.assert_close(other.evenness(), record.evenness(), atol=1e-4, rtol=0)
    torch.testing.assert_close(freeze(other, got).shares(), shares, atol=1e-4, rtol=0)
    assert other.steps_seen().all() and other.runs == 1


# Context windows


def in_windows_of_another_pack(model: Any, length: int = 4, said: bool = True) -> Any:
    """AnimateDiff's windows: batches are evaluated by parts, and an entry of transformer_options says which."""

    def windows(executor, model, conds, x, timestep, options):
        outs = [torch.zeros_like(x) for _ in conds]
        for start in range(0, len(x), length):
            numbers = list(range(start, min(start + length, len(x))))
            if said:
                options["transformer_options"]["ad_params"] = {"full_length": len(x), "sub_idxs": numbers}
            for out, part in zip(outs, executor(model, conds, x[numbers], timestep[numbers], options), strict=True):
                out[numbers] = part
        return outs  # what was said of the last window stays

    return wrapped(model, "calc_cond_batch", windows)


@pytest.mark.parametrize("before", [True, False], ids=["before", "behind"])
def test_context_windows_that_say_which_pictures_they_show(before: bool) -> None:
    sampling: dict[str, Any] = {"batch": 6, "size": (8, 8)}
    plain, record = applied()
    expected, shares = sample(plain, **sampling), record.shares()
    start = in_windows_of_another_pack(bundle().model) if before else bundle().model
    model, other = applied(model=start)
    model = model if before else in_windows_of_another_pack(model)
    got = sample(model, **sampling)
    assert deviation(got, expected, sample(bundle().model, **sampling)) < TOLERANCE
    torch.testing.assert_close(other.shares(), shares, atol=1e-4, rtol=0)
    frozen = freeze(other, got)
    second, _ = applied(frozen=frozen, model=start)
    third, _ = applied(frozen=frozen)
    second = second if before else in_windows_of_another_pack(second)
    results = [sample(each, **sampling) for each in (second, third, bundle().model)]
    assert deviation(*results) < TOLERANCE


@pytest.mark.parametrize("before", [True, False], ids=["before", "behind"])
@pytest.mark.parametrize("length", [4, 6])
def test_another_evaluation_in_context_windows(length: int, before: bool) -> None:
    """PAG evaluates the guider's conds once more, while the options still name the last window. Maps do not hear it."""
    from comfy_extras.nodes_pag import PerturbedAttentionGuidance

    def perturbed(model: Any) -> Any:
        return graphs.output(PerturbedAttentionGuidance.execute(model, 3.0))

    sampling: dict[str, Any] = {"batch": 6, "size": (8, 8), "steps": 3}
    plain, record = applied()
    expected, shares = sample(perturbed(plain), **sampling), record.shares()
    model, other = applied(model=in_windows_of_another_pack(bundle().model, length) if before else bundle().model)
    got = sample(perturbed(model if before else in_windows_of_another_pack(model, length)), **sampling)
    assert deviation(got, expected, sample(perturbed(bundle().model), **sampling)) < TOLERANCE
    torch.testing.assert_close(other.shares(), shares, atol=1e-4, rtol=0)
    assert other.steps_seen().all() and (other._calls == -(-6 // length)).all()
