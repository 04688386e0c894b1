"""The objective: what a place, a noise level and a step count in the loss."""

from __future__ import annotations

import pytest
import torch

from ..support.training_world import small_recipe


def test_min_snr_weights() -> None:
    from mip_adapter.training.objective import snr_weight

    alpha = torch.tensor([0.5, 0.9, 0.99])  # SNR 1, 9, 99
    torch.testing.assert_close(snr_weight(alpha, "eps", 5), torch.tensor([1, 5 / 9, 5 / 99]))
    torch.testing.assert_close(snr_weight(alpha, "v", 5), torch.tensor([1 / 2, 5 / 10, 5 / 100]))
    assert snr_weight(alpha, "v", 0).eq(1).all()


def test_masked_loss_counts_the_background_less() -> None:
    from mip_adapter.training.objective import masked_mean

    error = torch.rand(3, 4, 5)
    mask = torch.zeros(3, 4, 5)
    mask[0, 1, 2], mask[1] = 1, 1  # one place; everything; nothing
    torch.testing.assert_close(masked_mean(error, mask, 1.0), error.mean((1, 2)))
    other = error[0].sum() - error[0, 1, 2]
    got = masked_mean(error, mask, 0.1)
    torch.testing.assert_close(got[0], (error[0, 1, 2] + 0.1 * other) / (1 + 0.1 * 19))
    torch.testing.assert_close(got[1:], error[1:].mean((1, 2)))
    for wrong in (0.0, 1.5, float("nan")):
        with pytest.raises(ValueError, match="background is"):
            small_recipe(background=wrong)


def test_cubic_timesteps_are_mostly_those_of_much_noise() -> None:
    """t = (1 − u³) · 1000: below 1000 (1 − u³) lies a share of 1 − u."""
    from types import SimpleNamespace

    from mip_adapter.training.objective import draw_noise

    batch = SimpleNamespace(indices=range(4000), latents=torch.zeros(4000, 1, 1, 1))
    _, steps = draw_noise(batch, small_recipe(timesteps="cubic"), 1000)  # pyright: ignore[reportArgumentType]
    assert steps.min() >= 0 and steps.max() == 999
    for u in (0.25, 0.5, 0.75):
        assert float((steps < 1000 * (1 - u**3)).float().mean()) == pytest.approx(1 - u, abs=0.03)
    _, uniform = draw_noise(batch, small_recipe(), 1000)  # pyright: ignore[reportArgumentType]
    assert float((uniform < 500).float().mean()) == pytest.approx(0.5, abs=0.03)
