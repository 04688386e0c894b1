"""Beside packs that send the UNet a batch in parts, or more rows than the conds have: whose the rows are.

As in test_other_packs.py each pack is written here anew, and the right answer is the batch as the host sends it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from ..support import graphs
from ..support.graphs import TOLERANCE, bundle, deviation, guide, prompt, sample
from .test_other_packs import wrapped
from .test_steering import applied

pytestmark = pytest.mark.usefixtures("host")


def one_by_one(model: Any, size: int, where: str) -> Any:
    """The rows of a batch go through the UNet in parts of `size`, while the options say that all conds are there.

    A wrapper of the model begins with the last part.
    """

    def parts(executor, x, timesteps, context, y, control, options, **more):
        pieces = list(zip(*(each.split(size) for each in (x, timesteps, context, y)), strict=True))
        return torch.cat([executor(*piece, control, options, **more) for piece in pieces[::-1]][::-1])

    def called(run: Callable, call: dict) -> Tensor:
        c = call["c"]
        tensors = call["input"], call["timestep"], c["c_crossattn"], c["y"]
        pieces = zip(*(each.split(size) for each in tensors), strict=True)
        more = {"transformer_options": c["transformer_options"], "control": c.get("control")}
        return torch.cat([run(x, t, c_crossattn=context, y=y, **more) for x, t, context, y in pieces])

    if where == "function":
        model = model.clone()
        model.set_model_unet_function_wrapper(called)
        return model
    return wrapped(model, "diffusion_model", parts)


def noisy_on(model: Any) -> Any:
    from mip_adapter.patching.noise_patch import apply_text_noise

    with torch.inference_mode():
        return apply_text_noise(model, bundle().clip, graphs.OBJECTS)


@pytest.mark.parametrize("make", [graphs.apply, noisy_on])
@pytest.mark.parametrize("where", ["function", "before", "behind"])
@pytest.mark.parametrize("batch, size", [(1, 1), (2, 2), (3, 1)])
def test_conds_one_after_another(make: Callable, where: str, batch: int, size: int) -> None:
    bare = bundle().model
    without, expected = sample(bare, batch=batch), sample(make(model=bare), batch=batch)
    before = where == "before"
    model = make(model=one_by_one(bare, size, where)) if before else one_by_one(make(model=bare), size, where)
    if make is noisy_on and size < batch:
        assert sample(model, batch=batch).isfinite().all()  # nobody says which picture a row shows
    else:
        assert deviation(sample(model, batch=batch), expected, without) < TOLERANCE


def with_more_rows(model: Any, more: Sequence[int], where: str, blur: float = 0.0) -> Any:
    """Some of the batch's rows stand behind it once more: in the whole UNet or only in its cross-attention. blur: how
    far their prompt is from those that are known."""

    def appended(rows: Tensor) -> Tensor:
        return torch.cat([rows, rows[list(more)]])

    def wrapper(executor, x, timesteps, context, y, control, options, **rest):
        given = [appended(each) for each in (x, timesteps, context, y)]
        given[2][len(x) :] += blur
        return executor(*given, control, options, **rest)[: len(x)]

    if where != "sites":
        return wrapped(model, "diffusion_model", wrapper)
    model = model.clone()
    model.set_model_attn2_patch(lambda q, k, v, options: (appended(q), appended(k), appended(v)))
    model.set_model_attn2_output_patch(lambda out, options: out[: -len(more)])
    return model


def beside_more_rows(make: Callable, more: Sequence[int], where: str, blur: float = 0.0) -> Any:
    bare = bundle().model
    if where == "before":
        return make(model=with_more_rows(bare, more, where, blur))
    return with_more_rows(make(model=bare), more, where, blur)


@pytest.mark.parametrize("make", [graphs.apply, noisy_on])
@pytest.mark.parametrize("where, batch, more", [
    ("before", 2, [0]), ("before", 1, [1]), ("behind", 2, [0]), ("behind", 1, [0]), ("behind", 2, [0, 3]),
    ("sites", 2, [3]),
])  # fmt: skip
def test_rows_that_another_pack_appends(make: Callable, where: str, batch: int, more: list[int]) -> None:
    """Their text tells whose they are."""
    without, expected = sample(bundle().model, batch=batch), sample(make(model=bundle().model), batch=batch)
    got = sample(beside_more_rows(make, more, where), batch=batch)
    assert deviation(got, expected, without) < TOLERANCE


@pytest.mark.parametrize("where", ["before", "behind"])
def test_maps_do_not_hear_rows_whose_pictures_are_unknown(where: str) -> None:
    records = []

    def make(model: Any) -> Any:
        model, record = applied(model=model)
        records.append(record)
        return model

    sample(beside_more_rows(make, [0], where))
    assert records[0].absent()


@pytest.mark.parametrize("where", ["before", "behind"])
@pytest.mark.parametrize("batch, more", [(1, [0]), (2, [0]), (2, [0, 1])])
def test_rows_that_nobody_knows_are_refused(batch: int, more: list[int], where: str) -> None:
    with pytest.raises(ValueError, match=f"sends {2 * batch + len(more)} rows .* prompt or to the negative prompt"):
        sample(beside_more_rows(graphs.apply, more, where, blur=1.0), batch=batch)


@pytest.mark.parametrize("where", ["function", "before", "behind"])
def test_maps_of_conds_one_after_another(where: str) -> None:
    plain, record = applied()
    sample(plain, batch=2)
    before = where == "before"
    model, other = applied(model=one_by_one(bundle().model, 2, where) if before else bundle().model)
    sample(model if before else one_by_one(model, 2, where), batch=2)
    torch.testing.assert_close(other.shares(), record.shares(), atol=1e-4, rtol=0)


def test_conds_that_cannot_be_told_apart_are_refused() -> None:
    same = prompt("a cat beside a cup")
    with pytest.raises(ValueError, match="sends 1 rows .* prompt or to the negative prompt"):
        sample(guide(one_by_one(graphs.apply(), 1, "behind"), same, same))
