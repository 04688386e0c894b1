"""FLUX.1 and edit models beside packs that send a batch through the model in parts, or run the model twice.

Each pack is written here anew, by what it does to the host. The right answer is what comes without the pack.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from mip_adapter.attention.options import Merge
from mip_adapter.relevance.record import RelevanceRecord
from torch import Tensor

from ..support import graphs, tiny_edit, tiny_flux
from ..support.graphs import TOLERANCE, deviation
from ..support.sentences import told
from .test_edit_patch import PROMPT, bound, latents, with_references
from .test_other_packs import wrapped

SIZE = (8, 12)
NAMES = ("cat", "red jacket")


def pieces(value: Any, rows: int, size: int) -> list:
    """What each part of a batch gets of an argument."""
    count = -(-rows // size)
    if isinstance(value, Tensor) and len(value) == rows:
        return list(value.split(size))
    if isinstance(value, list):
        return list(zip(*(pieces(each, rows, size) for each in value), strict=True)) if value else [value] * count
    return [value] * count


def in_parts(model: Any, size: int, where: str) -> Any:
    """The rows of a batch go through the model in parts of `size`, while the options say that all conds are there.

    A wrapper of the model begins with the last part.
    """

    def parts(executor: Any, *args: Any, **more: Any) -> Tensor:
        given = inspect.signature(executor.original).bind(*args, **more)
        rows = len(args[0])
        positional = list(zip(*(pieces(each, rows, size) for each in given.args), strict=True))
        return torch.cat([executor(*each, **given.kwargs) for each in positional[::-1]][::-1])

    def called(run: Callable, call: dict) -> Tensor:
        rows, c = len(call["input"]), call["c"]
        split = {key: pieces(each, rows, size) for key, each in c.items()}
        both = zip(call["input"].split(size), call["timestep"].split(size), strict=True)
        outs = [run(x, t, **{key: each[i] for key, each in split.items()}) for i, (x, t) in enumerate(both)]
        return torch.cat(outs)

    if where == "function":
        model = model.clone()
        model.set_model_unet_function_wrapper(called)
        return model
    return wrapped(model, "diffusion_model", parts)


def twice(model: Any, calls: list) -> Any:
    """Reference-only control runs the model on its own picture first."""

    def both(executor: Any, x: Tensor, *rest: Any, **more: Any) -> Tensor:
        calls.append(len(x))
        executor(torch.flip(x, (-1,)) * 0.5, *rest, **more)
        return executor(x, *rest, **more)

    return wrapped(model, "diffusion_model", both)


@pytest.fixture(scope="module")
def flux_parts(flux) -> SimpleNamespace:
    def make(model: Any, **options: Any) -> Any:
        return tiny_flux.applied(flux, tiny_flux.instantx(), tiny_flux.references(*NAMES), model=model, **options)

    return SimpleNamespace(**vars(flux), make=make, channels=(tiny_flux.CHANNELS,))


@pytest.fixture(scope="module")
def kontext_parts(flux) -> SimpleNamespace:
    parts = SimpleNamespace(**vars(flux))
    two = latents((6, 10), (9, 7))
    parts.positive, parts.negative = (with_references(each, two) for each in (flux.positive, flux.negative))

    def make(model: Any, **options: Any) -> Any:
        return bound(parts, model=model, **options)

    parts.make, parts.channels = make, (tiny_flux.CHANNELS,)
    return parts


@pytest.fixture(scope="module")
def qwen_parts(host) -> SimpleNamespace:
    """Prompts of a language model, of the same number of tokens."""
    clip = tiny_edit.clip()
    two = latents((1, 6, 10), (1, 9, 7), channels=16)

    def encoded(text: str) -> list:
        return with_references(clip.encode_from_tokens_scheduled(clip.tokenize(text)), two)

    parts = SimpleNamespace(model=tiny_edit.qwen(), clip=clip, channels=(16, 1))
    parts.positive, parts.negative = encoded(PROMPT), encoded("put a dog beside a blue jacket")

    def make(model: Any, **options: Any) -> Any:
        return bound(parts, model=model, **options)

    parts.make = make
    return parts


@pytest.fixture(params=["flux", "kontext", "qwen"])
def parts(request) -> SimpleNamespace:
    return request.getfixturevalue(f"{request.param}_parts")


def sample(parts: Any, model: Any, steps: int = 2, batch: int = 1, **conds: Any) -> Tensor:
    given = {"positive": parts.positive, "negative": parts.negative, **conds}
    guider = graphs.guide(model, given["positive"], given["negative"], 3.0)
    return graphs.sample(guider, steps, size=SIZE, batch=batch, channels=parts.channels)


@pytest.mark.parametrize("where", ["function", "before", "behind"])
@pytest.mark.parametrize("batch, size", [(1, 1), (2, 2), (3, 1)])
def test_conds_one_after_another(parts, where: str, batch: int, size: int) -> None:
    bare, merge = parts.model, Merge()
    expected, without = sample(parts, parts.make(bare, merge=merge), batch=batch), sample(parts, bare, batch=batch)
    if where == "before":
        model = parts.make(in_parts(bare, size, where), merge=merge)
    else:
        model = in_parts(parts.make(bare, merge=merge), size, where)
    assert deviation(sample(parts, model, batch=batch), expected, without) < TOLERANCE


def test_the_pool_of_parts(parts) -> None:
    """Every block then goes by its own."""
    model = in_parts(parts.make(parts.model, merge=Merge(measure="pool")), 1, "behind")
    expected, without = sample(parts, parts.make(parts.model, merge=Merge())), sample(parts, parts.model)
    assert deviation(sample(parts, model), expected, without) < TOLERANCE


@pytest.mark.parametrize("where", ["function", "before", "behind"])
def test_maps_of_conds_one_after_another(parts, where: str) -> None:
    maps = []
    for size in (4, 2):
        record, merge = RelevanceRecord(NAMES), Merge()
        if where == "before":
            model = parts.make(in_parts(parts.model, size, where), record=record, merge=merge)
        else:
            model = in_parts(parts.make(parts.model, record=record, merge=merge), size, where)
        sample(parts, model, batch=2)
        maps.append(record.shares())
    torch.testing.assert_close(*maps, atol=1e-4, rtol=0)


def test_conds_that_cannot_be_told_apart_are_refused(parts) -> None:
    model = in_parts(parts.make(parts.model), 1, "function")
    told(
        lambda: sample(parts, model, negative=parts.positive),
        "sends 1 rows", "prompt or to the negative prompt", "let that pack evaluate",
    )  # fmt: skip


def test_parts_inside_a_block_are_refused(flux_parts) -> None:
    """There the text is mixed with the picture, and nobody says whose it is."""

    def row_by_row(args: dict, extra: dict) -> dict:
        rows = len(args["img"])
        split = {key: pieces(args[key], rows, 1) for key in ("img", "txt", "vec", "pe", "attn_mask")}
        outs = [extra["original_block"]({**args, **{key: each[i] for key, each in split.items()}}) for i in range(rows)]
        return {key: torch.cat([out[key] for out in outs]) for key in ("img", "txt")}

    model = flux_parts.model.clone()
    model.set_model_patch_replace(row_by_row, "dit", "double_block", 0)
    assert torch.isfinite(sample(flux_parts, model)).all()
    told(
        lambda: sample(flux_parts, flux_parts.make(model)),
        "sends 1 rows", "prompt or to the negative prompt", "let that pack evaluate",
    )  # fmt: skip


@pytest.mark.parametrize("before", [True, False], ids=["before", "behind"])
@pytest.mark.parametrize("measure", ["each site", "pool"])
def test_another_pass_of_the_model_inside_a_call(parts, before: bool, measure: str) -> None:
    """Maps, and what the blocks pool, are of the picture that is made."""
    calls: list = []
    merge, record, other = Merge(measure=measure), RelevanceRecord(NAMES), RelevanceRecord(NAMES)
    expected = sample(parts, parts.make(parts.model, merge=merge, record=record), 4)
    if before:
        model = parts.make(twice(parts.model, calls), merge=merge, record=other)
    else:
        model = twice(parts.make(parts.model, merge=merge, record=other), calls)
    got = sample(parts, model, 4)
    assert len(calls) == 4 and torch.equal(got, expected)
    torch.testing.assert_close(other.shares(), record.shares())


def test_blocks_that_were_replaced(flux_parts, caplog) -> None:
    """By a pack that does not run ours: said of MIP Apply on FLUX.1 too."""
    model = flux_parts.make(flux_parts.model, record=(record := RelevanceRecord(NAMES)))
    for key in dict(model.model_options["transformer_options"]["patches_replace"]["dit"]):
        model.set_model_patch_replace(lambda args, extra: extra["original_block"](args), "dit", *key)
    sample(flux_parts, model)
    assert (
        "Another pack replaced the patches of MIP Apply, so" in record.patches_lost
        and record.patches_lost in caplog.text
    )
