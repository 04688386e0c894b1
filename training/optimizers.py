"""AdamW for all parameters, or Muon for matrices with AdamW for the rest.

Muon (Jordan 2024, arXiv 2502.16982) runs in float32 here. torch.optim.Muon rounds to bfloat16, which an AVX2 processor
only emulates: for the miniature's adapter its step took 8 to 14 times as long there. The update is otherwise the same.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import groupby

import torch
from torch import Tensor, nn


def make_optimizers(
    parameters: Iterable[nn.Parameter], rate: float, matrix_rate: float | None, weight_decay: float,
    betas: tuple[float, float] = (0.9, 0.999), decay_vectors: bool = True,
) -> list[torch.optim.Optimizer]:  # fmt: skip
    """The optimizers of these parameters.

    rate: AdamW's learning rate.
    matrix_rate: Muon's, for weights with two or more axes; a convolution counts as a matrix [out, in·k·k]. None or 0:
        AdamW alone.
    decay_vectors: False exempts biases and norms from AdamW's weight decay.
    """
    matrices, decayed, spared = [], [], []
    for each in parameters:
        if matrix_rate and each.ndim > 1 and min(each.shape[0], each[0].numel()) > 1:
            matrices.append(each)
        else:
            (decayed if decay_vectors or each.ndim > 1 else spared).append(each)
    groups = [{"params": decayed, "weight_decay": weight_decay}, {"params": spared, "weight_decay": 0.0}]
    made: list[torch.optim.Optimizer] = []
    if groups := [group for group in groups if group["params"]]:
        made.append(torch.optim.AdamW(groups, rate, betas))
    if matrix_rate and matrices:
        made.append(Muon(matrices, matrix_rate, weight_decay))
    return made


def set_rates(optimizers: Sequence[torch.optim.Optimizer], factor: float) -> None:
    """Set all learning rates to this multiple of the rates the optimizers were made with."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = optimizer.defaults["lr"] * factor


MOMENTUM = 0.95
COEFFICIENTS = (3.4445, -4.775, 2.0315)  # of the quintic iteration that drives singular values towards 1
AT_ONCE = 1 << 23  # numbers per stack: many small matrices, or a few large ones, keep the processor busy


class Muon(torch.optim.Optimizer):
    """Steps matrices along their orthogonalised momentum, so that all directions of a matrix learn alike.

    The step is scaled to the size of AdamW's (Moonshot's rule), so that their rates compare. Weights with more axes are
    treated as matrices [out, the rest].
    """

    def __init__(self, matrices: Iterable[nn.Parameter], lr: float, weight_decay: float) -> None:
        super().__init__(list(matrices), {"lr": lr, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        for group in self.param_groups:
            own = [each for each in group["params"] if each.grad is not None]
            for (rows, columns), alike in groupby(sorted(own, key=_rows_and_columns), key=_rows_and_columns):
                matrices, some = list(alike), max(1, AT_ONCE // (rows * columns))
                for start in range(0, len(matrices), some):
                    self._step(matrices[start : start + some], group["lr"], group["weight_decay"])

    def _step(self, matrices: Sequence[nn.Parameter], rate: float, decay: float) -> None:
        """Update matrices of the same shape."""
        update = orthogonal(torch.stack([self._nesterov(each) for each in matrices]))
        for matrix, step in zip(matrices, update, strict=True):
            matrix.mul_(1 - rate * decay)
            matrix.sub_(step.view_as(matrix), alpha=rate * 0.2 * max(step.shape) ** 0.5)

    def _nesterov(self, matrix: nn.Parameter) -> Tensor:
        assert matrix.grad is not None
        gradient, state = matrix.grad.flatten(1), self.state[matrix]
        if not state:
            state["momentum_buffer"] = torch.zeros_like(gradient)
        momentum = state["momentum_buffer"].lerp_(gradient, 1 - MOMENTUM)
        return gradient.lerp(momentum, MOMENTUM)


def _rows_and_columns(weight: Tensor) -> tuple[int, int]:
    return weight.shape[0], weight[0].numel()


def orthogonal(matrices: Tensor, iterations: int = 5) -> Tensor:
    """[N, R, C] matrices with their singular values driven to about 1 by the Newton-Schulz iteration."""
    a, b, c = COEFFICIENTS
    tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.mT if tall else matrices
    x = x / x.flatten(1).norm(dim=1).clamp_min(1e-7)[:, None, None]
    for _ in range(iterations):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)  # a x + (b g + c g²) x
    return x.mT if tall else x
