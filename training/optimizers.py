"""AdamW for all parameters, or Muon for matrices with AdamW for the rest; both stepped at one share of their rates."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import nn

from .muon import Muon


def make_optimizers(
    parameters: Iterable[nn.Parameter], rate: float, matrix_rate: float | None, weight_decay: float,
    betas: tuple[float, float] = (0.9, 0.999), decay_vectors: bool = True,
) -> list[torch.optim.Optimizer]:  # fmt: skip
    """matrix_rate: Muon's, for weights of two and more axes, convolutions as matrices [out, in·k·k]; none or 0: AdamW
    alone. decay_vectors: False spares biases and norms AdamW's decay."""
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


def set_rates(optimizers: Sequence[torch.optim.Optimizer], share: float) -> None:
    """Let each step at this share of the rate that it was made with."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = optimizer.defaults["lr"] * share
