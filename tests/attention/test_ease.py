"""Strength over time: the curves, and what a plan makes of them."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from mip_adapter.attention.ease import EASE_IN, EASE_IN_AND_OUT, EASE_OUT, EASES, STEADY, Ease
from mip_adapter.attention.options import Merge
from mip_adapter.attention.plan import EncodedReferences

from ..support.random_sites import Case, close

TIMES = torch.linspace(0, 1, 101, dtype=torch.float64)


@pytest.mark.parametrize("kind, points", [(EASE_IN, (0, 0.5, 1)), (EASE_OUT, (1, 0.5, 0)), (EASE_IN_AND_OUT, (0, 1, 0)),
                                          (STEADY, (1, 1, 1))])  # fmt: skip
def test_where_a_curve_begins_and_ends(kind: str, points: tuple[float, ...]) -> None:
    curve = Ease(kind).at(TIMES)
    torch.testing.assert_close(curve[[0, 50, 100]], torch.tensor(points, dtype=torch.float64), rtol=0, atol=1e-12)
    assert curve.min() >= 0 and curve.max() <= 1
    assert kind == STEADY or float(torch.trapezoid(curve, TIMES)) == pytest.approx(0.5, abs=1e-6)


@pytest.mark.parametrize("kind", EASES)
def test_a_curve_is_of_its_own_range(kind: str) -> None:
    own = Ease(kind, 0.2, 0.7)
    torch.testing.assert_close(own.at(0.2 + 0.5 * TIMES), Ease(kind).at(TIMES))
    assert torch.isfinite(Ease(kind, 0.5, 0.5).at(TIMES)).all()


@pytest.mark.parametrize("conditional", [(True, True), (True, False), (False, False)])
@pytest.mark.parametrize("regional", [False, True])
@pytest.mark.parametrize("strategy", ["relevance", "uniform", "sum", "concat"])
def test_a_moment_is_a_weight(strategy: str, regional: bool, conditional: tuple[bool, bool]) -> None:
    eases = (Ease(EASE_IN), Ease(EASE_OUT, 0.1, 0.9), Ease())
    case = Case(objects=3, merge=Merge(strategy), regional=regional, weights=(0.5, 1.0, 2.0))
    at = torch.tensor([0.3])
    weights = tuple(w * float(e.at(at)) for w, e in zip((0.5, 1.0, 2.0), eases, strict=True))
    got = replace(case, eases=eases, moment=0.3).fused(conditional)
    close(got, replace(case, weights=weights).fused(conditional))


def test_objects_that_vary_alike_share_their_null_tokens() -> None:
    assert Case(eases=(Ease(EASE_IN), Ease(EASE_IN)), moment=0.5).plan()[0].null_sets == 1
    assert Case(eases=(Ease(EASE_IN), Ease(EASE_OUT)), moment=0.5).plan()[0].null_sets == 2


def test_steady_objects_share_their_null_tokens_whatever_their_ranges() -> None:
    """Also where a third object, which varies, acts only before or after them."""
    kinds, ranges = (STEADY, STEADY, EASE_IN), ((0.0, 1.0), (0.2, 0.9), (0.0, 0.5))
    eases = tuple(Ease.over(kind, *each) for kind, each in zip(kinds, ranges, strict=True))
    tokens, texts = torch.rand(3, 4, 8), (torch.rand(1, 8),) * 3
    references = EncodedReferences(("a", "b", "c"), tokens, tokens[0], texts, (1.0,) * 3, eases=eases)
    assert references.needs_own_nulls and references.only((1, 2), ()).needs_own_nulls
    steady = references.only((0, 1), ())
    assert not steady.needs_own_nulls and not steady.eases


@pytest.mark.parametrize("regional", [False, True])
@pytest.mark.parametrize("strategy", ["relevance", "uniform", "sum", "concat"])
def test_null_tokens_of_each_object(strategy: str, regional: bool) -> None:
    """The same ones for every object are one set for all; others are another picture."""
    case = Case(objects=3, merge=Merge(strategy), regional=regional)
    shared = case.fused((True, False))
    close(replace(case, own_nulls="same").fused((True, False)), shared)
    others = replace(case, own_nulls="different").fused((True, False))
    assert torch.equal(others[0], shared[0]) and not torch.allclose(others[1], shared[1], rtol=1e-2, atol=1e-2)
