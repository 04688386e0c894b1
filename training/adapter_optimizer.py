"""The adapter in training with its optimizers, loss scale and moving average: one update, and the state of a
checkpoint.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..weights.adapter import Adapter
from .config import TrainConfig
from .optimizers import Muon, make_optimizers, set_rates
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

    def update(self, step: int) -> float | None:
        """Make update number `step`, counted from 0. Returns the norm of the gradient.

        If the norm is not finite, no parameter changes. In float16 that is an overflow, to which the loss scale adapts:
        the update is skipped, and None is returned.
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
                # Bias correction: the starting weights do not count in the average.
                portion = (1 - recipe.ema) / (1 - recipe.ema**self.updates)
                for average, own in zip(self.ema, self.parameters, strict=True):
                    average.lerp_(own.detach(), portion)
        self.scaler.update()  # lowers the loss scale after an overflow
        self.zero_grad()
        return norm if finite or not self.scaler.is_enabled() else None

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
        if state.get("keys") != list(self.trainable.keys):
            raise ValueError("The output folder holds a run of another adapter; choose an empty one.")
        averages = [] if self.ema is None else [self.ema]
        saved: list[Any] = [state.get("trained"), *([state.get("ema")] if averages else [])]
        optimizers: Any = state.get("optimizers")
        scaler: Any = state.get("scaler")
        if not (
            all(_same_shapes(each, self.parameters) for each in saved)
            and isinstance(optimizers, list)
            and len(optimizers) == len(self.optimizers)
            and all(_fits(each, own) for each, own in zip(optimizers, self.optimizers, strict=True))
            and isinstance(scaler, dict)
            and scaler.keys() == self.scaler.state_dict().keys()
            and all(type(each) in (int, float) and 0 <= each < math.inf for each in scaler.values())
        ):
            raise ValueError(
                "The checkpoint in the output folder does not fit this adapter and its optimizer: remove it, so that "
                "the one before it is used, or choose another output folder."
            )
        with torch.no_grad():
            for own, tensors in zip([self.parameters, *averages], saved, strict=True):
                for mine, tensor in zip(own, tensors, strict=True):
                    mine.copy_(tensor)
        for optimizer, saved_state in zip(self.optimizers, optimizers, strict=True):
            groups = optimizer.state_dict()["param_groups"]  # the recipe's own: rates and decay are no state
            optimizer.load_state_dict({"state": saved_state["state"], "param_groups": groups})
        self.scaler.load_state_dict(scaler)
        self.updates = state["updates"]


def _same_shapes(saved: Any, parameters: Sequence[Tensor]) -> bool:
    return (
        isinstance(saved, list)
        and len(saved) == len(parameters)
        and all(
            isinstance(tensor, Tensor)
            and tensor.shape == own.shape
            and tensor.is_floating_point()
            and bool(tensor.isfinite().all())
            for tensor, own in zip(saved, parameters, strict=True)
        )
    )


MOMENTS = ({"step", "exp_avg", "exp_avg_sq"}, {"momentum_buffer"})  # of AdamW, of Muon


def _fits(saved: Any, optimizer: torch.optim.Optimizer) -> bool:
    """Whether an optimizer's saved state has a moment of the right shape for each of its parameters."""
    parameters = [each for group in optimizer.param_groups for each in group["params"]]
    moments = MOMENTS[isinstance(optimizer, Muon)]
    if not isinstance(saved, dict) or not isinstance(saved.get("state"), dict):
        return False
    for number, state in saved["state"].items():
        if type(number) is not int or not 0 <= number < len(parameters) or not isinstance(state, dict):
            return False
        if state.keys() != moments:
            return False
        for name, tensor in state.items():
            size = 1 if name == "step" else parameters[number].numel()
            least = -math.inf if name in ("exp_avg", "momentum_buffer") else 0.0
            if not isinstance(tensor, Tensor) or tensor.numel() != size or not tensor.is_floating_point():
                return False
            if not (tensor >= least).all() or not tensor.isfinite().all():
                return False
    return True
