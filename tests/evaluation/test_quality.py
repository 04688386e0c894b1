"""The object quality score against numpy from the definition."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mip_adapter.evaluation.quality.score import object_quality


def by_definition(text: np.ndarray, image: np.ndarray) -> tuple[float, float]:
    """One picture, [M, E] each, in float64: the sums as the paper writes them."""

    def cos(a: np.ndarray, b: np.ndarray) -> float:
        return float(a @ b / (np.linalg.norm(a) * np.linalg.norm(b)))

    objects = range(len(text))
    single = float(np.mean([cos(text[o], image[o]) for o in objects]))
    pairs = [cos(image[a], image[b]) for a, b in permutations(objects, 2)]
    return single, -float(np.mean(pairs)) if pairs else 0.0


@settings(max_examples=60, deadline=None)
@given(
    counts=st.lists(st.integers(1, 6), min_size=1, max_size=5),
    width=st.integers(1, 40),
    seed=st.integers(0, 2**31),
    size=st.sampled_from([1e-4, 1.0, 1e4]),
)
def test_equals_the_definition(counts, width, seed, size):
    random = np.random.default_rng(seed)
    most = max(counts) + seed % 2
    text, image = (size * random.normal(size=(len(counts), most, width)) for _ in range(2))
    score = object_quality(torch.tensor(text).float(), torch.tensor(image).float(), counts)
    for row, count in enumerate(counts):
        single, pair = by_definition(text[row, :count], image[row, :count])
        assert score.single[row] == pytest.approx(single, abs=2e-6)
        assert score.pair[row] == pytest.approx(pair, abs=2e-6)
        assert score.total[row] == pytest.approx(single + pair, abs=4e-6)


def test_known_values():
    text = torch.tensor([[[2.0, 0.0], [0.0, 3.0]]])
    assert [float(v) for v in object_quality(text, text)] == [1.0, 0.0, 1.0]  # right and unlike: the best of its kind
    same = text[:, :1].expand(-1, 2, -1)
    assert [float(v) for v in object_quality(same, same)] == [1.0, -1.0, 0.0]  # two of the same


def test_one_object_has_no_pairs():
    score = object_quality(torch.tensor([[[3.0, 4.0]]]), torch.tensor([[[0.0, 1.0]]]))
    assert float(score.pair) == 0.0 and float(score.total) == float(score.single) == pytest.approx(0.8)


def test_padding_is_ignored_even_where_it_is_not_finite():
    text, image = torch.randn(2, 1, 3, 8, generator=torch.Generator().manual_seed(0))
    padded_text, padded_image = (torch.cat([x, torch.full((1, 2, 8), torch.nan)], 1) for x in (text, image))
    expected, got = object_quality(text, image), object_quality(padded_text, padded_image, [3])
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(expected, got, strict=True))


def test_order_and_length_do_not_matter():
    text, image = torch.randn(2, 1, 4, 16, generator=torch.Generator().manual_seed(1))
    order = [2, 0, 3, 1]
    lengths = torch.tensor([0.5, 2.0, 7.0, 0.1])[:, None]
    expected, got = object_quality(text, image), object_quality(text[:, order], image[:, order] * lengths)
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(expected, got, strict=True))


@pytest.mark.parametrize(
    ("text", "image", "counts", "says"),
    [
        (torch.ones(1, 2, 3), torch.ones(1, 2, 4), None, "[1, 2, 4]"),
        (torch.ones(2, 3), torch.ones(2, 3), None, "[2, 3]"),
        (torch.ones(2, 2, 3), torch.ones(2, 2, 3), [1], "2 pictures"),
        (torch.ones(2, 2, 3), torch.ones(2, 2, 3), [1, 0], "Picture 1 has 0 objects"),
        (torch.ones(2, 2, 3), torch.ones(2, 2, 3), [3, 1], "Picture 0 has 3 objects"),
        (torch.full((1, 2, 3), torch.nan), torch.ones(1, 2, 3), None, "NaN"),
    ],
)
def test_bad_input_gets_a_sentence(text, image, counts, says):
    with pytest.raises(ValueError, match=".{30,}") as caught:
        object_quality(text, image, counts)
    assert says in str(caught.value)
