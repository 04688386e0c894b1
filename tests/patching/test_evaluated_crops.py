"""Beside packs that evaluate crops of the picture, or the whole of it at another size, while it is sampled.

Each pack is written here anew, by what it does to the host. The right answer is the definition (direct.py), told by the
test which rows are what.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from ..relevance.test_record import freeze
from ..support import graphs
from ..support.graphs import SIZE, TOLERANCE, bundle, deviation, guide, references, sample
from .test_steering import applied

pytestmark = pytest.mark.usefixtures("host")


LEFT, RIGHT = torch.zeros(1, 32, 32), torch.zeros(1, 32, 32)
LEFT[..., :18], RIGHT[..., 14:] = 1, 1


def regional() -> tuple:
    return references(region=[LEFT, RIGHT])


CROPS = ((0, 0, 10, 16), (0, 8, 16, 16), (6, 2, 16, 12))  # top, left, bottom, right of 16 × 16


def with_crops(model: Any, cut: Callable[[Tensor], Tensor], now: list) -> Any:
    """Guidance by the difference between the whole picture and the mean of overlapping crops."""
    import comfy.samplers

    def function(args):
        x = args["input"]
        mean, count = torch.zeros_like(x), torch.zeros_like(x)
        for top, left, bottom, right in CROPS:
            now[:] = [(bottom - top, right - left, top, left)]
            part = cut(x[..., top:bottom, left:right])
            (out,) = comfy.samplers.calc_cond_batch(
                args["model"], [args["cond"]], part, args["sigma"], args["model_options"].copy()
            )
            mean[..., top:bottom, left:right] += out
            count[..., top:bottom, left:right] += 1
        now.clear()
        return args["denoised"] + 2.0 * (args["cond_denoised"] - mean / count.clamp_min(1))

    model = model.clone()
    model.set_model_sampler_post_cfg_function(function)
    return model


@pytest.mark.parametrize("strategy", ["relevance", "concat"])
def test_regions_in_crops_of_a_guidance(strategy: str) -> None:
    now: list = []
    options: dict[str, Any] = {"chain": regional(), "merge": {"strategy": strategy}}

    def branch(index: int, uuid: Any) -> tuple[bool, Any]:
        return (True, now[0]) if now else (index == 0, None)

    def keep(part: Tensor) -> Tensor:
        return part

    direct = graphs.apply_directly(branch=branch, **options)
    expected, without = sample(with_crops(direct, keep, now)), sample(with_crops(bundle().model, keep, now))
    assert deviation(sample(with_crops(graphs.apply(**options), keep, now)), expected, without) < TOLERANCE


def test_maps_beside_crops_are_of_the_whole_picture() -> None:
    plain, record = applied()
    sample(plain, 1)
    cropped, other = applied()
    sample(with_crops(cropped, lambda part: part, []), 1)
    assert torch.equal(other.shares(), record.shares())


def test_frozen_maps_in_crops() -> None:
    """Maps that prefer no object are the same as equal shares, wherever they are cut."""
    first, record = applied(regional())
    frozen = freeze(record, sample(first))
    model, _ = applied(frozen=frozen)
    assert sample(with_crops(model, lambda part: part, [])).isfinite().all()
    with pytest.raises(ValueError, match="Frozen maps cannot be placed"):
        sample(with_crops(model, torch.Tensor.clone, []))


def test_crops_at_unknown_places_are_refused() -> None:
    with pytest.raises(ValueError, match="Regions cannot be placed"):
        sample(with_crops(graphs.apply(regional()), torch.Tensor.clone, []))
    sample(with_crops(graphs.apply(), torch.Tensor.clone, []))  # without regions nothing needs a place


def test_everything_evaluated_in_crops() -> None:
    """A pack that evaluates each half of the canvas by itself: maps are put together."""
    import comfy.samplers

    def function(args):
        halves = [(..., slice(0, 8)), (..., slice(8, 16))]
        out = [
            comfy.samplers.calc_cond_batch(
                args["model"], args["conds"], args["input"][half], args["sigma"], args["model_options"]
            )
            for half in halves
        ]
        return [torch.cat(each, -1) for each in zip(*out, strict=True)]

    model, record = applied(regional())
    model.model_options["sampler_calc_cond_batch_function"] = function
    sample(model, 1)
    shares = record.shares()
    assert shares.shape[-2:] == (16, 16) or shares.shape[-2] == shares.shape[-1]
    assert shares[0, ..., :2].mean() > 0.9 and shares[1, ..., -2:].mean() > 0.9


def test_a_sampler_that_evaluates_the_picture_at_another_size() -> None:
    """Some samplers look at a smaller picture in between: regions are stretched to it, as to any canvas."""
    import comfy.samplers

    def smaller(model, x, sigmas, extra_args: Any = None, callback=None, disable=None):
        ones = x.new_ones(x.shape[0])
        for sigma, after in zip(sigmas[:-1], sigmas[1:], strict=True):
            small = torch.nn.functional.interpolate(x, size=(8, 8))
            seen = torch.nn.functional.interpolate(model(small, sigma * ones, **extra_args), size=x.shape[-2:])
            denoised = 0.5 * seen + 0.5 * model(x, sigma * ones, **extra_args)
            x = x + (x - denoised) / sigma * (after - sigma)
        return x

    def sampled(model: Any) -> Tensor:
        sampling = model.get_model_object("model_sampling")
        noise = torch.randn(1, 4, *SIZE, generator=torch.Generator().manual_seed(7))
        with torch.inference_mode():
            return guide(model).sample(
                noise, torch.zeros_like(noise), comfy.samplers.KSAMPLER(smaller),
                comfy.samplers.calculate_sigmas(sampling, "normal", 2), disable_pbar=True, seed=7,
            )  # fmt: skip

    models = graphs.apply(regional()), graphs.apply_directly(regional()), bundle().model
    assert deviation(*map(sampled, models)) < TOLERANCE
