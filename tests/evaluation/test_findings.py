"""What the binding report says of a picture: every name from its condition, on both sides of it, and in simulations."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from mip_adapter.attention.reference import make_reference
from mip_adapter.attention.regions import box_region
from mip_adapter.evaluation.binding.binding import PictureBinding, looks
from mip_adapter.evaluation.binding.findings import AHEAD, BLENDED, Finding, FindingKind, circles, findings, worn
from mip_adapter.evaluation.detection.matching import MUCH_LARGER, ObjectMatches, held_by

from ..support.drawn import thing

PICTURES, BLOCK = 3000, 60  # of a kind, with 2 to 4 objects each; with the same references
WORN = AHEAD / (1 + AHEAD)  # of two references, the share from which on a look is worn


def pictured(similarity, look, crop_of: Sequence[int | None] | None = None, **more) -> PictureBinding:
    """A picture from its numbers, a row a crop."""
    crop_of = tuple(range(len(similarity))) if crop_of is None else tuple(crop_of)
    found_as = tuple(m for m, crop in enumerate(crop_of) if crop is not None)
    rows, boxes = len(similarity), tuple((10.0 * i, 0.0, 10.0 * i + 9, 9.0) for i in range(len(similarity)))
    numbers = (torch.tensor(np.array(each), dtype=torch.float32) for each in (similarity, look))
    return PictureBinding((None,) * rows, boxes, found_as, *numbers, crop_of=crop_of, **more)


def two(cat: float, dog: float) -> PictureBinding:
    """Cat and dog, of whose looks these shares are the other one's."""
    shares = [[1 - cat, cat], [dog, 1 - dog]]
    return pictured(shares, shares)


def names(picture: PictureBinding) -> list[FindingKind]:
    return [finding.kind for finding in findings(picture)]


# ---- each name on both sides of its condition ----


def test_who_looks_like_the_cat_twice_was_not_exchanged():
    """The largest sum of similarities gives each reference out once, and so calls this an exchange: 0.85 + 0.60."""
    picture = pictured([[0.80, 0.60], [0.85, 0.60]], [[0.9, 0.1], [0.85, 0.15]])
    assert picture.margin_by_object() == pytest.approx({0: 0.20, 1: -0.25})
    assert findings(picture) == [Finding(FindingKind.TAKES_BOTH, (0, 1), 0)]


def test_exchanged_needs_both():
    assert findings(two(0.8, 0.8)) == [Finding(FindingKind.EXCHANGED, (0, 1))]
    assert names(two(WORN + 0.01, WORN + 0.01)) == [FindingKind.EXCHANGED]
    assert FindingKind.EXCHANGED not in names(two(0.8, WORN - 0.01))
    assert findings(two(0.8, 0.1)) == [Finding(FindingKind.TAKES_BOTH, (0, 1), 1)]
    near_misses = pictured([[0.5, 0.501], [0.501, 0.5]], [[0.51, 0.49], [0.49, 0.51]])
    assert names(near_misses) == [FindingKind.BLENDED, FindingKind.BLENDED]


def test_one_takes_both_needs_two():
    assert findings(two(0.1, WORN + 0.01)) == [Finding(FindingKind.TAKES_BOTH, (0, 1), 0)]
    assert findings(two(0.1, WORN - 0.01)) == [Finding(FindingKind.BLENDED, (1,), 0)]
    alone = pictured([[0.2, 0.8]], [[0.2, 0.8]], crop_of=(0, None))
    assert findings(alone) == [Finding(FindingKind.MISSING, (1,)), Finding(FindingKind.TAKEN_OVER, (0,), 1)]
    beside = two(0.8, WORN - 0.01)  # the dog is too blended to wear anyone's look
    assert findings(beside) == [Finding(FindingKind.TAKEN_OVER, (0,), 1), Finding(FindingKind.BLENDED, (1,), 0)]


def test_blended_begins_at_a_quarter():
    assert findings(two(BLENDED + 0.01, 0.1)) == [Finding(FindingKind.BLENDED, (0,), 1)]
    assert findings(two(BLENDED - 0.01, 0.1)) == []
    assert names(two(WORN - 0.01, 0.1)) == [FindingKind.BLENDED] and FindingKind.BLENDED not in names(
        two(WORN + 0.01, 0.1)
    )


def test_a_margin_below_0_always_has_a_name():
    foreign = pictured([[0.8, 0.5], [0.31, 0.30]], [[1, 0], [0, 0]])
    assert findings(foreign) == [Finding(FindingKind.UNCLEAR, (1,))]
    assert findings(pictured([[0.8, 0.5], [0.31, 0.32]], [[1, 0], [0, 0]])) == []
    narrow = pictured([[0.8, 0.5], [0.51, 0.50]], [[1, 0], [BLENDED - 0.01, 1.01 - BLENDED]])
    assert findings(narrow) == [Finding(FindingKind.UNCLEAR, (1,))]


@given(seed=st.integers(0, 2**31), objects=st.integers(2, 4))
def test_whoever_is_confused_is_in_a_finding(seed: int, objects: int):
    """Whatever the numbers are, also such as contradict each other."""
    random = np.random.default_rng(seed)
    picture = pictured(random.uniform(-1, 1, (objects, objects)), random.dirichlet(np.ones(objects), objects))
    named = {m for finding in findings(picture) for m in finding.objects}
    assert {m for m, margin in picture.margin_by_object().items() if margin < 0} <= named
    for finding in findings(picture):
        if finding.kind is FindingKind.EXCHANGED:
            assert all(picture.margin_by_object()[m] < 0 for m in finding.objects)


def test_missing_is_what_has_no_thing_of_its_own():
    assert findings(pictured([[0.8, 0.2]], [[1, 0]], crop_of=(0, None))) == [Finding(FindingKind.MISSING, (1,))]
    touching = pictured([[0.8, 0.2]], [[1, 0]], crop_of=(0, None), held_by=(None, 0))
    assert findings(touching) == [Finding(FindingKind.MISSING, (1,), held_by=0)]
    assert findings(pictured(np.zeros((0, 2)), np.zeros((0, 2)), crop_of=(None, None))) == [
        Finding(FindingKind.MISSING, (0,)),
        Finding(FindingKind.MISSING, (1,)),
    ]


def test_a_single_reference_is_worn_by_its_object():
    assert findings(pictured([[0.4]], [[1.0]])) == [] and worn(pictured([[0.4]], [[1.0]])) == (0,)


@pytest.mark.parametrize(
    "wearing, found",
    [
        ((0, 1, 2), []),
        ((1, 0, 2), [(0, 1)]),
        ((1, 2, 0), [(0, 1, 2)]),
        ((2, 0, 1), [(0, 2, 1)]),
        ((1, 0, 3, 2), [(0, 1), (2, 3)]),
        ((1, 0, 0), [(0, 1)]),
        ((1, 2, 2), []),
        ((1, None, 0), []),
        ((None, None), []),
    ],
)
def test_circles(wearing: tuple[int | None, ...], found: list[tuple[int, ...]]):
    assert circles(wearing) == found


def test_a_circle_of_three_and_who_hangs_on_it():
    shares = np.full((4, 4), 0.05)
    shares[range(4), (1, 2, 0, 0)] = 0.85
    assert findings(pictured(shares, shares)) == [
        Finding(FindingKind.EXCHANGED, (0, 1, 2)),
        Finding(FindingKind.TAKES_BOTH, (2, 3), 0),
    ]


# ---- simulated pictures, from embeddings ----

Case = tuple[np.ndarray, set[Finding]]  # looks [M, M] of the references, NaN: not found; what is to be said


def simulated(seed: int, kind: Callable[[np.random.Generator, int], Case]) -> Iterator[tuple[PictureBinding, set]]:
    """PICTURES of one kind with what is to be said of each: crops are mixtures of the references, and noise."""
    random = np.random.default_rng(seed)
    for _ in range(PICTURES // BLOCK):
        objects = int(random.integers(2, 5))
        references = unit(np.eye(objects, 24) + 0.05 * random.normal(size=(objects, 24)) + random.uniform(0, 0.3))
        cases = [kind(random, objects) for _ in range(BLOCK)]
        mixed = np.stack([mixture for mixture, _ in cases]) @ references  # [BLOCK, M, E]
        crops = torch.from_numpy(unit(mixed + 0.01 * random.normal(size=mixed.shape))).float()
        likeness = torch.from_numpy(references).float()
        own = list(range(objects)) * BLOCK
        look = looks(crops.flatten(0, 1), likeness, own).unflatten(0, (BLOCK, objects))
        for similarity, share, (mixture, expected) in zip(crops @ likeness.T, look, cases, strict=True):
            found = [m for m in range(objects) if not np.isnan(mixture[m]).any()]
            rows = [found.index(m) if m in found else None for m in range(objects)]
            yield pictured(similarity[found], share[found], rows), expected


def unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


def wearing(random: np.random.Generator, whose: Sequence[int]) -> np.ndarray:
    """[M, M]: object m has at least 85 % of its look from whose[m]."""
    rest = random.dirichlet(np.ones(len(whose)), len(whose)) * random.uniform(0, 0.15, (len(whose), 1))
    return rest + (1 - rest.sum(1, keepdims=True)) * np.eye(len(whose))[list(whose)]


def right(random: np.random.Generator, objects: int) -> Case:
    return wearing(random, range(objects)), set()


def one_takes_several(random: np.random.Generator, objects: int) -> Case:
    source, *others = random.permutation(objects).tolist()
    taken = others[: random.integers(1, objects)]
    whose = [source if m in taken else m for m in range(objects)]
    return wearing(random, whose), {Finding(FindingKind.TAKES_BOTH, tuple(sorted([source, *taken])), source)}


def exchanged(random: np.random.Generator, objects: int) -> Case:
    circle = random.permutation(objects)[: random.integers(2, objects + 1)].tolist()
    first = circle.index(min(circle))
    circle, whose = circle[first:] + circle[:first], list(range(objects))
    for m, j in zip(circle, circle[1:] + circle[:1], strict=True):
        whose[m] = j
    return wearing(random, whose), {Finding(FindingKind.EXCHANGED, tuple(circle))}


def blended(random: np.random.Generator, objects: int) -> Case:
    """Two objects with about half of each other's look: often both margins are below 0."""
    pair = random.permutation(objects)[:2].tolist()
    mixture = wearing(random, range(objects))
    for m, j in (pair, pair[::-1]):
        share = random.uniform(0.4, 0.52)
        mixture[m] = (1 - share) * np.eye(objects)[m] + share * np.eye(objects)[j]
    return mixture, {Finding(FindingKind.BLENDED, (m,), j) for m, j in (pair, pair[::-1])}


def missing(random: np.random.Generator, objects: int) -> Case:
    absent = random.permutation(objects)[: random.integers(1, objects + 1)].tolist()
    mixture = wearing(random, range(objects))
    mixture[absent] = np.nan
    return mixture, {Finding(FindingKind.MISSING, (m,)) for m in absent}


@pytest.mark.parametrize("kind", [right, one_takes_several, exchanged, blended, missing])
def test_every_kind_is_found_and_no_other(kind):
    """No false exchange, and no true one overlooked."""
    assert not [(picture, expected) for picture, expected in simulated(0, kind) if set(findings(picture)) != expected]


def test_both_margins_of_a_blend_do_fall_below_0():
    """What `blended` is to be told from is among its pictures."""
    below = [
        picture for picture, _ in simulated(0, blended) if sum(v < 0 for v in picture.margin_by_object().values()) > 1
    ]
    assert len(below) > PICTURES // 50


def test_any_mixture_is_named_as_its_map_says():
    """Every object wears anyone's look: circles by following the map, the rest by counting who wears what."""

    def anyone(random: np.random.Generator, objects: int) -> Case:
        whose = random.integers(0, objects, objects).tolist()
        inside = {m for m in range(objects) if whose[m] != m and returns(whose, m)}
        said = set()
        for source in range(objects):
            wearers = tuple(m for m in range(objects) if whose[m] == source)
            if any(m != source and m not in inside for m in wearers):
                said.add(
                    Finding(FindingKind.TAKES_BOTH if len(wearers) > 1 else FindingKind.TAKEN_OVER, wearers, source)
                )
        for m in inside:
            circle = [m]
            while whose[circle[-1]] != m:
                circle.append(whose[circle[-1]])
            if m == min(circle):
                said.add(Finding(FindingKind.EXCHANGED, tuple(circle)))
        return wearing(random, whose), said

    assert not [picture for picture, expected in simulated(1, anyone) if set(findings(picture)) != expected]


def returns(whose: Sequence[int], m: int) -> bool:
    at = whose[m]
    for _ in whose:
        if at == m:
            return True
        at = whose[at]
    return False


# ---- two that touch ----


def things(*boxes: tuple[float, ...] | None, shared_crop: tuple[int | None, ...] = (None, None)) -> ObjectMatches:
    """Two objects with these boxes; None: not found."""
    found = [box for box in boxes if box is not None]
    crop_of = tuple(None if box is None else found.index(box) for box in boxes)
    return ObjectMatches(
        tuple(map(thing, found)),
        tuple(m for m, crop in enumerate(crop_of) if crop is not None),
        crop_of,
        shared_crop,
    )


def chain(regions=(None, None), texts=("cat", "dog")):
    return [make_reference(torch.rand(1, 16, 16, 3), text, region=r) for text, r in zip(texts, regions, strict=True)]


CAT, DOG, BOTH = (0, 0, 40, 40), (60, 0, 100, 40), (0, 0, 100, 40)


def test_one_box_for_two_texts_may_hold_both():
    one = [things(CAT, None, shared_crop=(None, 0))]
    assert held_by(one, chain(), (100, 100)) == [(None, 0)]
    assert held_by([things(CAT, None)], chain(), (100, 100)) == [(None, None)]
    assert held_by(one, chain(texts=("cat", "Cat")), (100, 100)) == [(None, None)]


def test_a_box_much_larger_than_elsewhere_may_hold_both():
    elsewhere = [things(CAT, DOG), things((5, 5, 45, 45), DOG)]
    assert held_by([things(BOTH, None), *elsewhere], chain(), (100, 100)) == [(None, 0), (None, None), (None, None)]
    for larger, holds in ((MUCH_LARGER + 0.1, 0), (MUCH_LARGER - 0.1, None)):
        wide = (0, 0, 40 * larger, 40)
        assert held_by([things(wide, None), *elsewhere], chain(), (100, 100))[0] == (None, holds)
    assert held_by([things(BOTH, None), things(CAT, None)], chain(), (100, 100))[0] == (None, None)


def test_a_box_over_two_regions_may_hold_both():
    left, right = (box_region([(low, 0.0, low + 0.5, 1.0)]) for low in (0.0, 0.5))
    over, beside = (20, 0, 80, 100), (0, 0, 60, 100)
    for regions, box, holds in (
        ((left, right), over, 0),
        ((left, right), beside, None),
        ((left, None), over, None),
        ((None, None), over, None),
    ):
        assert held_by([things(box, None)], chain(regions), (100, 100)) == [(None, holds)]


def test_of_regions_for_each_picture_the_pictures_own_counts():
    halves, edges = ([box_region([(low, 0.0, high, 1.0)]) for low, high in pair]
                     for pair in (((0.0, 0.5), (0.5, 1.0)), ((0.0, 0.1), (0.9, 1.0))))  # fmt: skip
    over = [things((20, 0, 80, 100), None)] * 2
    for pictures, holds in (((halves, edges), (0, None)), ((edges, halves), (None, 0))):
        cat, dog = (torch.cat(masks) for masks in zip(*pictures, strict=True))
        assert held_by(over, chain((cat, dog)), (100, 100)) == [(None, each) for each in holds]
        assert held_by(over[:1], chain((cat, dog)), (100, 100)) == [(None, None)]  # which of both is unknown
