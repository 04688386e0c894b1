"""The adapter in training with its optimizers, loss scale and moving average: one update, and the state of a
checkpoint.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ..weights.adapter import Adapter
from .config import TrainConfig
from .optimizers import make_optimizers, set_rates
from .trainable import TrainableAdapter, TrainedAdapter


class AdapterOptimizer:
    """Updates the parameters of one adapter.

    adapter: the adapter to start from.
    recipe: learning rates, warm-up, clipping and the moving average.
    dtype: of the activations. In float16 the loss is scaled, and an update that overflows is skipped.
    """

    def __init__(self, adapter: Adapter, recipe: TrainConfig, device: torch.device, dtype: torch.dtype) -> None:
        self.recipe = recipe
        self.trainable = TrainableAdapter(adapter, recipe, dtype).to(device)
        self.parameters = list(self.trainable.parameters())
        self.optimizers = make_optimizers(
            self.parameters, recipe.learning_rate, recipe.matrix_rate, recipe.weight_decay
        )
        self.scaler = torch.amp.grad_scaler.GradScaler(device.type, enabled=dtype == torch.float16)
        self.ema = [each.detach().clone() for each in self.parameters] if recipe.ema else None
        self.updates = 0  # skipped ones do not count: they are not in the average

    def backward(self, loss: Tensor) -> None:
        self.scaler.scale(loss).backward()

    def zero_grad(self) -> None:
        """Drop the gradients."""
        self.trainable.zero_grad(set_to_none=True)

    def update(self, step: int) -> float:
        """Make update number `step`, counted from 0. Returns the norm of the gradient.

        If the norm is not finite, no parameter changes. In float16 the norm is then returned as 0, because the loss
        scale adapts to an overflow.
        """
        recipe = self.recipe
        set_rates(self.optimizers, min(1.0, (step + 1) / max(1, recipe.warmup)))
        for optimizer in self.optimizers:
            self.scaler.unscale_(optimizer)
        norm = float(torch.nn.utils.clip_grad_norm_(self.parameters, recipe.clip_norm or math.inf))
        finite = math.isfinite(norm)
        if finite:  # all optimizers step or none, even if the gradients of only one overflowed
            for optimizer in self.optimizers:
                self.scaler.step(optimizer)
            self.updates += 1
            if self.ema is not None:
                # Bias correction: the starting weights have no share in the average.
                share = (1 - recipe.ema) / (1 - recipe.ema**self.updates)
                for average, own in zip(self.ema, self.parameters, strict=True):
                    average.lerp_(own.detach(), share)
        self.scaler.update()  # lowers the loss scale after an overflow
        self.zero_grad()
        return norm if finite or not self.scaler.is_enabled() else 0.0

    def finished(self, about: Mapping[str, str]) -> TrainedAdapter:
        """The adapter as trained so far; its moving average where the recipe has one. about: metadata of the file."""
        averaged = None if self.ema is None else dict(zip(self.trainable.keys, self.ema, strict=True))
        return self.trainable.finished(averaged, about)

    def state(self) -> dict[str, Any]:
        """What a checkpoint stores."""
        return {
            "keys": list(self.trainable.keys),
            "trained": [each.detach() for each in self.parameters],
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "scaler": self.scaler.state_dict(),
            "ema": self.ema,
            "updates": self.updates,
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continue from a checkpoint's state. Raises ValueError if it belongs to another adapter."""
        if state["keys"] != list(self.trainable.keys):
            raise ValueError("The output folder holds a run of another adapter; choose an empty one.")
        with torch.no_grad():
            for own, saved in zip(self.parameters, state["trained"], strict=True):
                own.copy_(saved)
            for own, saved in zip(self.ema or (), state["ema"] or (), strict=True):
                own.copy_(saved)
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        self.scaler.load_state_dict(state["scaler"])
        self.updates = state["updates"]
