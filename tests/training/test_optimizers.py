"""The optimizers: Muon against torch and against its iteration; the average and the loss scale."""

from __future__ import annotations

import pytest
import torch

from ..support.training_world import small_adapter, small_recipe


@pytest.mark.parametrize("shape", [(12, 20), (20, 12), (16, 16)])
def test_muon_is_torchs_own_in_float32(shape: tuple[int, int]) -> None:
    from mip_adapter.training.optimizers import Muon

    ours, theirs = (
        torch.nn.Parameter(torch.linspace(-1, 1, 240 if shape[0] != shape[1] else 256).view(shape)) for _ in "ab"
    )
    start = ours.detach().clone()
    optimizers = Muon([ours], 0.02, 0.1), torch.optim.Muon([theirs], 0.02, 0.1, adjust_lr_fn="match_rms_adamw")
    for step in range(5):
        gradient = torch.randn(shape, generator=torch.Generator().manual_seed(step))
        for own, optimizer in zip((ours, theirs), optimizers, strict=True):
            own.grad = gradient.clone()
            optimizer.step()
    moved, apart = (ours - start).norm(), (ours - theirs).norm()
    assert moved > 0.1 and apart < 0.02 * moved  # bfloat16 has 8 bits


@pytest.mark.parametrize("at_once", [1, 60, 1 << 23])
def test_muon_gives_every_matrix_the_same_whatever_it_is_stepped_with(monkeypatch, at_once: int) -> None:
    """One, three or all five of a shape at a time: the iteration written down, in float64."""
    from mip_adapter.training import optimizers

    monkeypatch.setattr(optimizers, "AT_ONCE", at_once)
    shapes = [(4, 5)] * 5 + [(7, 3), (2, 3, 2)]
    matrices = [torch.nn.Parameter(torch.randn(shape)) for shape in shapes]
    expected = [each.detach().double().flatten(1) for each in matrices]
    momentum = [torch.zeros_like(each) for each in expected]
    optimizer = optimizers.Muon(matrices, 0.02, 0.1)
    for _ in range(3):
        for i, each in enumerate(matrices):
            each.grad = torch.randn_like(each)
            gradient = each.grad.double().flatten(1)
            momentum[i] = 0.95 * momentum[i] + 0.05 * gradient
            x = 0.05 * gradient + 0.95 * momentum[i]
            x /= x.norm()
            for _ in range(5):
                x = 3.4445 * x - 4.775 * x @ x.T @ x + 2.0315 * x @ x.T @ x @ x.T @ x
            expected[i] = expected[i] * (1 - 0.02 * 0.1) - 0.02 * 0.2 * max(x.shape) ** 0.5 * x
        optimizer.step()
    for got, want in zip(matrices, expected, strict=True):
        torch.testing.assert_close(got.detach().double().flatten(1), want, rtol=1e-4, atol=1e-5)


def test_the_average_holds_the_steps_and_nothing_of_the_start() -> None:
    """After n steps, step k counts decay^(n - k): a few steps with a long memory are not mostly where they began."""
    from mip_adapter.training.adapter_optimizer import AdapterOptimizer

    decay = 0.9
    learner = AdapterOptimizer(small_adapter(), small_recipe(ema=decay), torch.device("cpu"), torch.float32)
    seen = []
    for step in range(5):
        for each in learner.parameters:
            each.grad = torch.randn(each.shape, generator=torch.Generator().manual_seed(step))
        learner.update(step)
        seen.append(learner.parameters[0].detach().clone())
    weights = torch.tensor([decay ** (4 - k) for k in range(5)])
    expected = sum(w * each for w, each in zip(weights / weights.sum(), seen, strict=True))
    torch.testing.assert_close(learner.ema[0], expected)


def test_an_update_that_overflows_is_none_of_the_average() -> None:
    from mip_adapter.training.adapter_optimizer import AdapterOptimizer

    def fresh() -> AdapterOptimizer:
        learner = AdapterOptimizer(small_adapter(), small_recipe(ema=0.9), torch.device("cpu"), torch.float16)
        learner.scaler.scale(torch.ones(()))  # makes the scale
        return learner

    learner = fresh()
    for step, gradient in enumerate([torch.inf, torch.inf, 1.0]):
        for each in learner.parameters:
            each.grad = torch.full_like(each, gradient)
        learner.update(step)
        if step == 1:  # a run that goes on from here
            state = learner.state()
            learner = fresh()
            learner.restore(state)
    assert learner.updates == 1
    torch.testing.assert_close(list(learner.ema), [each.detach() for each in learner.parameters])


def test_an_overflow_in_one_optimizers_gradients_leaves_out_the_step_of_both() -> None:
    from mip_adapter.training.adapter_optimizer import AdapterOptimizer

    recipe = small_recipe(matrix_rate=0.02, ema=0.5)
    learner = AdapterOptimizer(small_adapter(head=True), recipe, torch.device("cpu"), torch.float16)
    learner.scaler.scale(torch.ones(()))  # makes the scale
    before = [each.detach().clone() for each in learner.parameters]
    for each in learner.parameters:
        each.grad = torch.ones_like(each)
    next(each for each in learner.parameters if min(each.shape) > 1).grad[0, 0] = torch.inf
    assert learner.update(0) is None
    assert all(torch.equal(a, b) for a, b in zip(before, learner.parameters, strict=True))
    assert learner.scaler.get_scale() == 2.0**15
