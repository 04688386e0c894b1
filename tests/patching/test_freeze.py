"""Whose maps MIP Freeze Relevance keeps: those of the sampling that gave the latent, whatever was sampled since."""

from __future__ import annotations

import pytest
import torch

from ..relevance.test_record import freeze, maps
from ..support.graphs import guide, prompt, references, sample
from .test_steering import applied

pytestmark = pytest.mark.usefixtures("host")


def sampled(model, record, **options):
    """(latent, its maps)"""
    latent = sample(model, **options)
    return latent, record.shares()


def test_the_maps_are_those_of_the_latent() -> None:
    """One model in a first pass, a larger second one, and a third of the first's size."""
    model, record = applied()
    passes = [sampled(model, record, **each) for each in ({}, {"size": (24, 24), "seed": 8}, {"seed": 9})]
    assert not torch.allclose(passes[0][1], passes[2][1], atol=1e-2)
    for latent, shares in passes:
        assert torch.equal(freeze(record, latent).shares(), shares)
        assert torch.equal(freeze(freeze(record, latent), latent).shares(), shares)
    assert [freeze(record, latent).runs for latent, _ in passes] == [1, 2, 3]


def test_a_small_change_is_another_sampling() -> None:
    """Inpainting leaves most of the latent as it was."""
    from comfy.samplers import calculate_sigmas, sampler_object

    model, record = applied()
    first, shares = sampled(model, record)
    mask = torch.zeros(1, 1, 16, 16)
    mask[..., 3:6, 3:6] = 1
    sigmas = calculate_sigmas(model.get_model_object("model_sampling"), "normal", 2)
    with torch.inference_mode():
        second = guide(model).sample(
            torch.randn(1, 4, 16, 16), first, sampler_object("euler"), sigmas, denoise_mask=mask, disable_pbar=True
        )
    torch.testing.assert_close(second[..., 8:, :], first[..., 8:, :])
    assert torch.equal(freeze(record, first).shares(), shares)
    assert torch.equal(freeze(record, second).shares(), record.shares())


@pytest.mark.parametrize("as_kept", [torch.Tensor.clone, torch.Tensor.half])
def test_a_latent_is_known_wherever_it_was_kept(as_kept) -> None:
    model, record = applied()
    latent, shares = sampled(model, record)
    sample(model, seed=8)
    assert torch.equal(freeze(record, as_kept(latent)).shares(), shares)


def test_both_outputs_of_the_host_s_sampler() -> None:
    from comfy_extras import nodes_custom_sampler as custom

    model, record = applied()
    kept = []
    for seed in (1, 2):
        latent = {"samples": torch.zeros(1, 4, 16, 16)}
        sigmas = custom.BasicScheduler.execute(model, "normal", 3, 1.0).args[0]
        with torch.inference_mode():
            outputs = custom.SamplerCustomAdvanced.execute(
                custom.RandomNoise.execute(seed).args[0], guide(model),
                custom.KSamplerSelect.execute("euler").args[0], sigmas, latent,
            ).args  # fmt: skip
        kept.append((outputs, record.shares()))
    for outputs, shares in kept:
        for each in outputs:
            assert torch.equal(freeze(record, each["samples"]).shares(), shares)


def test_an_unknown_latent() -> None:
    """After a single sampling there is nothing to take it for; after several it is refused, and so is a forgotten
    one."""
    from mip_adapter.relevance.record import KEPT

    model, record = applied()
    latent, shares = sampled(model, record)
    assert torch.equal(freeze(record, latent * 2).shares(), shares)
    sample(model, seed=8)
    with pytest.raises(ValueError, match="none of the last 2 samplings .* before it is upscaled or cut"):
        freeze(record, latent * 2)
    with pytest.raises(ValueError, match="none of the last 2"):
        freeze(record, latent * torch.nan)
    for seed in range(9, 8 + KEPT):
        sample(model, 1, seed=seed)
    with pytest.raises(ValueError, match=f"none of the last {KEPT} samplings .* change its seed"):
        freeze(record, latent)


def test_an_interrupted_sampling_gives_no_latent() -> None:
    def stop(step, *rest):
        raise KeyboardInterrupt

    model, record = applied()
    latent, shares = sampled(model, record)
    with pytest.raises(KeyboardInterrupt):
        sample(model, 3, seed=8, callback=stop)
    assert record.runs == 2 and not torch.equal(record.shares(), shares)
    for given in (latent, latent * 2):
        assert torch.equal(freeze(record, given).shares(), shares)


def test_a_sampling_in_which_no_reference_acts() -> None:
    """A second pass with a low denoise, after the references' end: its maps are none, not the first pass's."""
    import comfy.sample

    model, record = applied(references(end_percent=[0.5, 0.5]))
    first, shares = sampled(model, record, steps=4)
    with torch.inference_mode():
        conds = prompt("a cat"), prompt("")
        noise = comfy.sample.prepare_noise(first, 8)
        second = comfy.sample.sample(
            model, noise, 4, 4.0, "euler", "normal", *conds, first, denoise=0.3, disable_pbar=True, seed=8
        )
    assert record.runs == 2
    overlays, masks, _, said = maps(record, torch.rand(1, 64, 64, 3))
    assert "no reference acted in this sampling. Let the references act in some of its steps" in said
    assert not masks.any() and len(overlays) == 1
    with pytest.raises(ValueError, match="no reference acted"):
        freeze(record, second)
    assert torch.equal(freeze(record, first).shares(), shares)


def test_every_record_of_a_model_and_its_clones_begins_afresh() -> None:
    """Behind one MIP Apply another, whose references act in no step; the host copies options deeply."""
    one, first = applied()
    model, second = applied(references(start_percent=[0.9, 0.9]), model=one)
    sample(model.clone().clone(), 1)
    assert first.runs == second.runs == 1 and first.absent() is None
    assert "no reference acted" in (second.absent() or "")
