"""Noise on the text attention: its numbers, and its weights at one site."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from mip_adapter.attention.noise import NoisePlan, NoiseSite, add_noise, normal, random_bits
from mip_adapter.attention.shared_text import SharedText
from mip_adapter.attention.site import RowGroup

from ..support.direct_noise import BITS, noisy, splitmix

# ---- the numbers alone ----


@pytest.mark.parametrize("seed", [0, 1, 2**63, BITS, 0x9E3779B97F4A7C15])
def test_the_bits_are_splitmix64(seed: int) -> None:
    signed = seed - 2**64 if seed >= 2**63 else seed
    got = [number & BITS for number in random_bits(torch.tensor(signed), torch.arange(50)).tolist()]
    assert got == splitmix(seed, 50)
    if seed == 0:
        assert got[0] == 0xE220A8397B1DCDAF  # the published test vector


def test_the_numbers_are_normal_and_the_streams_independent() -> None:
    from scipy import stats

    numbers = normal(torch.tensor([3, 4, -5]), 100_001).double().numpy()
    assert numbers.shape == (3, 100_001) and np.isfinite(numbers).all()
    for stream in numbers:
        assert stats.kstest(stream, "norm").pvalue > 1e-3
        for lag in (1, 2, 50_000, 50_001):  # the second half is made of the first half's bits
            assert abs(np.corrcoef(stream[:-lag], stream[lag:])[0, 1]) < 5 / math.sqrt(50_000)
    assert np.abs(np.corrcoef(numbers) - np.eye(3)).max() < 5 / math.sqrt(100_000)
    even, odd = (normal(torch.tensor([7]), count) for count in (10, 9))
    assert even.shape == (1, 10) and odd.shape == (1, 9)


# ---- one site ----

HEADS, WIDTH, CONTEXT, POSITIONS = 3, 24, 10, 35


def one_site(target: int | None, dtype=torch.float32, **choices: Any):
    """Inputs of `add_noise` for two pictures, conditional rows behind unconditional ones."""
    draw = torch.Generator().manual_seed(1)
    q, text = torch.randn(2, 4, POSITIONS, WIDTH, generator=draw)
    texts = [torch.randn(length, CONTEXT, generator=draw) for length in (2, 1, 3)]
    to_k = torch.randn(WIDTH, CONTEXT, generator=draw)
    keyed: tuple = (None, None)
    if target is not None:
        keyed = SharedText(texts, torch.device("cpu"), dtype).for_site(HEADS, WIDTH // HEADS)
    site = NoiseSite(int(random_bits(torch.tensor(11), torch.tensor(5))), HEADS, *keyed)
    plan = NoisePlan(choices.pop("strength", 0.5), target or 0, {})
    parts = choices.pop("parts", [RowGroup(0, 2, False), RowGroup(2, 4, True)])

    def add(rows=slice(None), shown=slice(2), step: int = 3, parts=parts):
        q_, text_ = q[rows].to(dtype), text[rows].to(dtype)
        keys = lambda: keyed[0] @ to_k.T.to(dtype)  # noqa: E731
        pictures = torch.arange(4)[shown]
        return add_noise(text_.clone(), text_, q_, plan, site, parts, pictures, torch.tensor([step]), keys)

    return add, q, text, [each.double() @ to_k.double().T for each in texts]


@pytest.mark.parametrize("target", [None, 0, 2])
def test_a_site_is_the_definition(target: int | None) -> None:
    add, q, text, keys = one_site(target)
    got = add()
    assert torch.equal(got[:2], text[:2])  # unconditional rows stay
    for row in (2, 3):
        expected = noisy(
            q[row].double(), text[row], keys, 5, HEADS, strength=0.5, seed=11, step=3, row=row - 2, target=target
        )
        torch.testing.assert_close(got[row].double(), expected, rtol=1e-5, atol=1e-5)


def test_both_modes_add_the_same_numbers_at_the_same_energy() -> None:
    (uniform, _, text, _), (weighted, *_) = one_site(None), one_site(1)
    a, b = (add()[2:] - text[2:] for add in (uniform, weighted))
    weight = (b / a).median(-1, keepdim=True).values
    torch.testing.assert_close(b, weight * a, rtol=1e-3, atol=1e-5)
    assert (weight > 0).all() and weight.std() > 0.1
    torch.testing.assert_close(weight.square().mean((1, 2)), torch.ones(2), rtol=1e-4, atol=0)
    # The energy itself, over many steps: 0.25 of the variance of Z_text.
    for add in (uniform, weighted):
        energy = torch.stack([(add(step=step)[2:] - text[2:]).square().mean((1, 2)) for step in range(200)]).mean(0)
        torch.testing.assert_close(energy, 0.25 * text[2:].var((1, 2), correction=0), rtol=0.03, atol=0)


def test_noise_belongs_to_the_picture_not_to_the_batch() -> None:
    add, _, text, _ = one_site(1)
    together = add(parts=[RowGroup(0, 4, True)], shown=slice(4))
    for row in range(4):
        one = {"rows": slice(row, row + 1), "parts": [RowGroup(0, 1, True)]}
        alone, known = add(**one, shown=slice(1)), add(**one, shown=slice(row, row + 1))
        same = torch.allclose(alone[0], together[row], atol=1e-6)
        assert same == (row == 0)  # a lone picture is the first of its batch
        torch.testing.assert_close(known[0], together[row])  # in a context window it keeps its number
    # Two conds of the same two pictures in one call, or in two.
    both = add(parts=[RowGroup(0, 4, True)])
    halves = torch.cat([add(rows, parts=[RowGroup(0, 2, True)]) for rows in (slice(0, 2), slice(2, 4))])
    torch.testing.assert_close(both, halves)
    numbers = (both - text) / text.std((1, 2), correction=0, keepdim=True)
    (uniform, *_) = one_site(None)
    plain = (uniform(parts=[RowGroup(0, 4, True)]) - text) / text.std((1, 2), correction=0, keepdim=True)
    torch.testing.assert_close(plain[:2], plain[2:], rtol=1e-4, atol=1e-5)
    assert not torch.allclose(numbers[0], numbers[1], atol=0.1)


def test_step_and_seed_decide() -> None:
    add, *_ = one_site(None)
    assert torch.equal(add(), add())
    assert not torch.allclose(add(step=3), add(step=4), atol=0.1)


@pytest.mark.parametrize("target", [None, 1])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_rounds_and_no_more(target: int | None, dtype: torch.dtype) -> None:
    exact, rounded = (one_site(target, kind)[0]() for kind in (torch.float32, dtype))
    assert rounded.dtype == dtype and rounded.isfinite().all()
    assert (rounded.float() - exact).norm() < 10 * torch.finfo(dtype).eps * exact.norm()


def test_far_from_every_text_the_weights_are_still_numbers() -> None:
    """Relevance so sharp that all of it underflows somewhere."""
    from mip_adapter.attention.noise import relevance_weights

    relevance = torch.full((2, 1, 8), 1e-30)
    relevance[0, 0, 0] = relevance[1, 0, 1] = 1.0
    weights = relevance_weights(relevance, 0)
    assert weights.isfinite().all() and float(weights.square().mean()) == pytest.approx(1)
    assert int(weights.argmax()) == 0 and 0 <= float(weights[0, 1]) < 1e-20


@pytest.mark.parametrize("target", [None, 1])
def test_nothing_waits_for_the_device(target: int | None) -> None:
    """Tensors without data: whoever reads a value on the host fails."""
    from torch._subclasses import FakeTensorMode

    add, *_ = one_site(target)
    with FakeTensorMode(allow_non_fake_inputs=True):
        assert add().shape == (4, POSITIONS, WIDTH)
