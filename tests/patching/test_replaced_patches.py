"""Another pack behind ours puts its patches in place of ours: said once in a sampling, in the log and by the maps."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from ..support import graphs
from ..support.graphs import bundle, references, sample
from .test_noise_patch import noise
from .test_steering import applied
from .test_styles import style

pytestmark = pytest.mark.usefixtures("host")


def their_attention(q: Any, k: Any, v: Any, options: dict) -> Any:
    from comfy.ldm.modules.attention import optimized_attention

    return optimized_attention(q, k, v, options["n_heads"])


def site_keys(model: Any) -> list[tuple]:
    return [key for key in model.model_options["transformer_options"]["patches_replace"]["attn2"] if len(key) == 3]


def replaced(model: Any, count: int | None = None) -> Any:
    """A clone with their attention at the first `count` sites; None: at all of them."""
    model, some = model.clone(), site_keys(model)[:count]
    every = list(model.model_options["transformer_options"]["patches_replace"]["attn2"])
    for key in every if count is None else some:
        model.set_model_attn2_replace(their_attention, *key)
    return model


def said(caplog: Any) -> list[str]:
    return [each.getMessage() for each in caplog.records if "replaced" in each.getMessage()]


@pytest.mark.parametrize("some", [False, True], ids=["all", "some"])
def test_of_references(some: bool, caplog: Any) -> None:
    model, record = applied()
    sample(replaced(model, 2 if some else None), 3)
    (sentence,) = said(caplog)
    assert "put that pack's node before MIP Apply" in sentence and record.patches_lost in sentence
    if some:
        assert f"2 of {len(site_keys(model))}" in sentence and record.absent() is None
    else:
        assert record.absent() == f"There is no relevance: {record.patches_lost}" and "there" not in record.patches_lost


@pytest.mark.parametrize("make, names, node", [
    (lambda: graphs.apply(style()), "style 1: ", "MIP Apply"),
    (lambda: graphs.apply(style(references())), "cat, red coffee cup, style 1: ", "MIP Apply"),
    (noise, "", "MIP Text Noise"),
    (lambda: noise(target=None), "", "MIP Text Noise"),
], ids=["styles", "objects and styles", "noise", "uniform noise"])  # fmt: skip
def test_of_everything_that_is_applied(make: Callable[[], Any], names: str, node: str, caplog: Any) -> None:
    model = make()
    expected, got = sample(bundle().model, 2), sample(replaced(model), 2)
    torch.testing.assert_close(got, expected)
    (sentence,) = said(caplog)
    assert sentence.startswith(f"{names}Another pack replaced the patches of {node}, so the ")
    assert sentence.endswith(f"put that pack's node before {node}.")


def test_each_node_is_named(caplog: Any) -> None:
    sample(replaced(noise(graphs.apply()), 2), 2)
    assert sorted("MIP Text Noise" in sentence for sentence in said(caplog)) == [False, True]


def test_nothing_is_said_of_patches_that_are_called(caplog: Any) -> None:
    """Whether they act or rest."""
    model, record = applied(references(start_percent=[0.9, 0.9]))
    sample(noise(model, start=0.9), 2)
    sample(graphs.apply(style(references())), 2)
    assert not record.patches_lost and not said(caplog)


def test_nothing_is_said_of_patches_that_were_replaced_before(caplog: Any) -> None:
    """Theirs are our patches' occupants then."""
    there = replaced(graphs.apply())
    sample(graphs.apply(style(), model=there), 2)
    assert len(said(caplog)) == 1  # of the first MIP Apply; the second one's are called
