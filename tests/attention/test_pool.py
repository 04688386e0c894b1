"""The pool of several sites' relevance against its definition in float64 (direct_pool.py)."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from mip_adapter.attention.pool import Pool, PoolHistory, agreement
from torch import Tensor

from ..support.direct_pool import measured, pooled, weighed
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
        close(got[:, picture], pooled(weighed(entries), everyone, size))


def test_permuting_objects_changes_nothing() -> None:
    sites, order = relevances(3), [2, 0, 1]
    got = filled([each[order] for each in sites], (0, 1, 2)).relevance((4, 6), (0, 1, 2), range(2), NUMBERS)
    close(got, filled(sites, (0, 1, 2)).relevance((4, 6), (0, 1, 2), range(2), NUMBERS)[order])


def test_windows_in_any_order_are_the_mean_of_what_they_saw() -> None:
    """One window shows a picture of two, another both in another order, and the reader asks in that order."""
    sites, turned, both = relevances(2), torch.tensor([1, 0]), (0, 1)
    pool = Pool(both, 2)
    for site, (relevance, size) in enumerate(zip(sites, SIZES, strict=True)):
        pool.add(site, relevance[:, :1], size, [0], NUMBERS[:1])
        pool.add(site, relevance[:, [1, 0]], size, [1, 0], turned)
    close(pool.relevance((4, 6), both, [1, 0], turned), filled(sites, both).relevance((4, 6), both, [1, 0], turned))
    close(pool.relevance((4, 6), both, range(2), NUMBERS)[:, [1, 0]], pool.relevance((4, 6), both, [1, 0], turned))


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


def test_agreement_by_hand() -> None:
    """Three sites of two objects: two see the same, one the opposite of it at half the strength."""
    one = torch.tensor([[3.0, -1.0], [-1.0, 3.0]]).view(2, 1, 1, 2)  # D: ±2
    logs = torch.stack([one, one + 5, -0.5 * one])
    close(agreement(logs)[:, 0], torch.tensor([4 - 2, 4 - 2, -2 - 2]) / (4 + 4 + 1))
    close(agreement(100 * logs), agreement(logs))
    assert agreement(logs[:1]).tolist() == [[0.0]]


def test_a_site_that_is_sure_but_alone_has_next_to_no_say() -> None:
    """Its map has nothing to do with that of the two others."""
    signs = torch.tensor([[1.0, -1, 1, -1], [1, 1, -1, -1]])
    seen, alone = (
        torch.stack([each, -each])[:, None].mul(much).softmax(-1) for each, much in zip(signs, (1, 5), strict=True)
    )
    pool, numbers = Pool((0, 1), 1), torch.zeros(1, dtype=torch.long)
    for site, relevance in enumerate((seen, alone, seen)):
        pool.add(site, relevance, (2, 2), (0,), numbers)
    assert pool.result.weights[1] < 0.01
    torch.testing.assert_close(pool.relevance((2, 2), (0, 1), (0,), numbers), seen, rtol=0.05, atol=0)


@pytest.mark.parametrize("slight", [-1e-3, -1e-5, 0.0, 1e-5, 1e-3])
def test_without_agreement_all_sites_count_alike(slight: float) -> None:
    """The weights do not jump where the agreement of the first and the last site begins."""
    signs = torch.tensor([[1.0, -1, 1, -1], [1, 1, -1, -1], [1, -1, -1, 1]])  # at right angles
    signs[2] += slight * signs[0]
    pool = Pool((0, 1), 1)
    for site, each in enumerate(signs):
        relevance = torch.stack([each, -each])[:, None].softmax(-1)
        pool.add(site, relevance, (2, 2), (0,), torch.zeros(1, dtype=torch.long))
    weights = torch.cat([*pool.result.weights.values()])
    torch.testing.assert_close(weights, torch.full((3,), 1 / 3), rtol=0, atol=0.01)


@pytest.mark.parametrize("windows", [[(0, 1), (1, 3)], [(2, 0, 1), (0, 2)], [(0, 3), (0, 3)]], ids=str)
def test_a_picture_is_pooled_from_what_was_measured_of_it(windows: list[tuple[int, ...]]) -> None:
    """In windows of a batch of four. The last window is seen by fewer sites than those before it."""
    pool, entries = Pool((0, 1), 4), {picture: [] for window in windows for picture in window}
    generator = torch.Generator().manual_seed(0)
    for window, sites in zip(windows, (4, 2), strict=True):
        for site, size in enumerate(SIZES[:sites]):
            relevance = torch.randn(2, len(window), math.prod(size), generator=generator).softmax(-1)
            pool.add(site, relevance, size, window, torch.tensor(window))
            for picture, each in zip(window, relevance.double().unbind(1), strict=True):
                entries[picture].append(measured(site, each, (0, 1), size))
    for picture, of_picture in entries.items():
        got = pool.relevance((4, 6), (0, 1), (picture,), torch.tensor([picture]))
        close(got[:, 0], pooled(weighed(of_picture), (0, 1), (4, 6)))


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


@pytest.mark.parametrize("passes", [(2, 1, 1, 1), (2, 2, 1, 1, 1)])
def test_a_turn_that_measured_nothing_leaves_the_one_before(passes: tuple[int, ...]) -> None:
    """Reference-only control that ends: two passes a turn, then one, taken for the first of two."""
    history, site = PoolHistory(), relevances(2)[0]

    def turn(number: int, count: int) -> None:
        history.begin(number, (0, 1), 2)
        for each in range(count):
            if history.enter_forward_pass(each) and history.now is not None:
                history.now.add("site", site, SIZES[0], range(2), NUMBERS)

    for number, count in enumerate(passes):
        turn(number, count)
        measured = history.now
        assert measured is not None
        assert measured.is_empty == (number == passes.index(1))
        if number:
            assert history.last is not None and not history.last.is_empty


def test_all_pictures_seen_again_count_with_their_mean() -> None:
    first, again = relevances(2), relevances(2, seed=1)
    pool = filled(first, (0, 1))
    for number, each in enumerate(again):
        pool.add(number, each, SIZES[number], range(2), NUMBERS)
        pool.add(number, each[:, :1], SIZES[number], [0], NUMBERS[:1])
    mean = [(one.log() + two.log()) / 2 for one, two in zip(first, again, strict=True)]
    for each, one, two in zip(mean, first, again, strict=True):
        each[:, 0] = (one[:, 0].log() + 2 * two[:, 0].log()) / 3
    expected = filled([each.exp() for each in mean], (0, 1))
    for size in SIZES:
        close(pool.relevance(size, (0, 1), range(2), NUMBERS), expected.relevance(size, (0, 1), range(2), NUMBERS))
