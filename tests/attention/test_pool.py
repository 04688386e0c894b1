"""The pool of several sites' relevance against its definition in float64 (direct_pool.py)."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from mip_adapter.attention.pool import LEAST, Pool, PoolHistory, sureness
from torch import Tensor

from ..support.direct_pool import measured, pooled
from ..support.random_sites import close

SIZES = ((4, 6), (2, 3), (4, 6), (7, 5))
NUMBERS = torch.arange(2)


def relevances(objects: int, seed: int = 0, spread: float = 1.0) -> list[Tensor]:
    """A [M, 2, N] of random sites, each as sure as chance has it."""
    g = torch.Generator().manual_seed(seed)
    each = [torch.randn(objects, 2, h * w, generator=g) * torch.rand((), generator=g) * spread for h, w in SIZES]
    return [logits.softmax(-1) for logits in each]


def filled(sites: list[Tensor], objects: tuple[int, ...], pictures: int = 2, numbers: Tensor = NUMBERS) -> Pool:
    pool = Pool(objects, pictures)
    for site, (relevance, size) in enumerate(zip(sites, SIZES, strict=True)):
        pool.add(site, relevance, size, numbers.tolist(), numbers)
    return pool


@given(st.integers(1, 5), st.integers(0, 99), st.sampled_from((0.1, 1.0, 5.0)), st.sampled_from(SIZES))
def test_the_pool_equals_its_definition(objects: int, seed: int, spread: float, size: tuple[int, int]) -> None:
    sites, everyone = relevances(objects, seed, spread), tuple(range(objects))
    got = filled(sites, everyone).relevance(size, everyone, range(2), NUMBERS)
    for picture in range(2):
        entries = [
            measured(i, each[:, picture].double(), everyone, at)
            for i, (each, at) in enumerate(zip(sites, SIZES, strict=True))
        ]
        close(got[:, picture], pooled(entries, everyone, size))


def test_permuting_objects_changes_nothing() -> None:
    sites, order = relevances(3), [2, 0, 1]
    got = filled([each[order] for each in sites], (0, 1, 2)).relevance((4, 6), (0, 1, 2), range(2), NUMBERS)
    close(got, filled(sites, (0, 1, 2)).relevance((4, 6), (0, 1, 2), range(2), NUMBERS)[order])


def test_equal_maps_at_all_sites_are_what_each_site_has() -> None:
    alike = relevances(3)[0]
    pool = Pool((0, 1, 2), 2)
    for site in range(5):
        pool.add(site, alike, (4, 6), range(2), NUMBERS)
    close(pool.relevance((4, 6), (0, 1, 2), range(2), NUMBERS), alike)


@pytest.mark.parametrize("objects", [1, 2])
def test_sites_that_tell_nothing_apart_count_alike(objects: int) -> None:
    """A lone object, or two with one text."""
    one, other = (each[:1].expand(objects, -1, -1) for each in (relevances(1)[0], relevances(1, 1)[0]))
    pool = Pool(tuple(range(objects)), 2)
    for site, relevance in enumerate((one, other)):
        pool.add(site, relevance, (4, 6), range(2), NUMBERS)
    close(pool.relevance((4, 6), range(objects), range(2), NUMBERS), (one * other).sqrt())


def test_a_site_is_as_sure_as_it_tells_objects_apart() -> None:
    logs = torch.tensor([[[1.0, 1.0]], [[1.0, 1.0]]])
    assert sureness(logs).tolist() == pytest.approx([LEAST])
    close(sureness(logs + torch.tensor([[[3.0, -1.0]], [[-3.0, 1.0]]])), torch.tensor([5.0]))


def test_some_objects_of_some_pictures() -> None:
    """Pictures are pooled apart from each other, in whatever windows they were measured."""
    sites = relevances(3)
    everyone = filled(sites, (4, 1, 2)).relevance((4, 6), (4, 1, 2), range(2), NUMBERS)
    turned = filled([each.flip(1) for each in sites], (4, 1, 2), 5, torch.tensor([3, 1]))
    assert turned.covers((1, 4), (1, 3)) and not turned.covers((1, 3), (1,)) and not turned.covers((1,), (1, 2))
    close(turned.relevance((4, 6), (2, 4), [3], torch.tensor([3])), everyone[[2, 0], 1:])


def test_the_surest_sites_go_on_and_are_chosen_again() -> None:
    history, sites = PoolHistory(), range(12)
    maps = relevances(2)[0]
    measuring = []
    for turn in range(11):
        history.begin(turn, (0, 1), 2)
        measuring.append([site for site in sites if history.measures(site)])
        for site in measuring[-1]:
            flat = 1.0 if (site < 4) == (turn >= 8) else 0.1  # the first four see nothing, until the turn 8
            assert history.now is not None
            history.now.add(site, (maps.log() * flat).softmax(-1), (4, 6), range(2), NUMBERS)
    everyone = list(sites)
    assert measuring == [everyone, everyone, *[everyone[4:]] * 6, everyone, everyone[4:], measuring[-1]]
    assert set(measuring[-1]) > {0, 1, 2, 3} and len(measuring[-1]) == 8
