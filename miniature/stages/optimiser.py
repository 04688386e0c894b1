"""AdamW, or Muon for matrices with AdamW for the rest, behind one face."""

from collections.abc import Iterable

import torch
from torch import nn

from ...training.muon import Muon

DECAY = 0.01


class Optimiser:
    """Steps every parameter at `rate` times what the schedule says.

    With `matrix_rate`, weights of two and more axes (convolutions as matrices [out, in·k·k]) are stepped by Muon, which
    makes all directions of a matrix learn alike; TRAINING.md compares the two on the base.
    """

    def __init__(self, parameters: Iterable[nn.Parameter], rate: float, matrix_rate: float | None = None):
        self.flat: list[tuple[nn.Parameter, nn.Parameter]] = []
        decayed, plain = [], []
        for parameter in parameters:
            if matrix_rate and parameter.ndim > 1:
                view = nn.Parameter(parameter.detach().flatten(1))  # the same memory
                self.flat.append((parameter, view))
            else:
                (decayed if parameter.ndim > 1 else plain).append(parameter)
        groups = [{"params": decayed, "weight_decay": DECAY}, {"params": plain, "weight_decay": 0.0}]
        self.parts: list[torch.optim.Optimizer] = [
            torch.optim.AdamW([group for group in groups if group["params"]], lr=rate, betas=(0.9, 0.99), fused=True)
        ]
        if self.flat and matrix_rate:
            views = [view for _, view in self.flat]
            self.parts.append(Muon(views, matrix_rate, DECAY))
        self.groups = [(group, group["lr"]) for part in self.parts for group in part.param_groups]

    def step(self, share: float) -> None:
        """One step with gradients as they lie in the parameters, at this share of the rates."""
        for group, rate in self.groups:
            group["lr"] = rate * share
        for parameter, view in self.flat:
            view.grad = None if parameter.grad is None else parameter.grad.flatten(1)
        for part in self.parts:
            part.step()

    def state_dict(self) -> list[dict]:
        return [part.state_dict() for part in self.parts]

    def load_state_dict(self, states: list[dict]) -> None:
        for part, state in zip(self.parts, states, strict=True):
            part.load_state_dict(state)
        self.groups = [
            (group, rate)
            for group, (_, rate) in zip((g for p in self.parts for g in p.param_groups), self.groups, strict=True)
        ]
