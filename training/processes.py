"""One process or many: what the loop must know of the others."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol

from torch import Tensor, nn


class Processes(Protocol):
    rank: int
    count: int

    def wrap(self, module: nn.Module) -> nn.Module:
        """The module whose backward pass averages gradients over all processes."""
        ...

    def no_sync(self, module: nn.Module) -> AbstractContextManager[Any]:
        """Where gradients are not averaged yet: the passes before the last of an accumulation."""
        ...

    def mean(self, numbers: Tensor) -> Tensor: ...

    def wait(self) -> None: ...


class Alone:
    """A single process."""

    rank: int = 0
    count: int = 1

    def wrap(self, module: nn.Module) -> nn.Module:
        return module

    def no_sync(self, module: nn.Module) -> AbstractContextManager[Any]:
        return nullcontext()

    def mean(self, numbers: Tensor) -> Tensor:
        return numbers

    def wait(self) -> None:
        return None


class Accelerated:
    """Processes and nodes started by `accelerate launch`. Precision is the recipe's, so accelerate leaves it alone."""

    def __init__(self, cpu: bool = False) -> None:
        try:
            from accelerate import Accelerator
        except ImportError as error:
            raise ValueError(
                "Training with several processes needs the package accelerate: install it (pip install accelerate), or "
                "start one process without `accelerate launch`."
            ) from error
        self.accelerator = Accelerator(mixed_precision="no", cpu=cpu)
        self.rank: int = int(self.accelerator.process_index)
        self.count: int = int(self.accelerator.num_processes)

    def wrap(self, module: nn.Module) -> nn.Module:
        return self.accelerator.prepare_model(module)

    def no_sync(self, module: nn.Module) -> AbstractContextManager[Any]:
        return self.accelerator.no_sync(module)

    def mean(self, numbers: Tensor) -> Tensor:
        return self.accelerator.reduce(numbers, reduction="mean")  # pyright: ignore[reportReturnType]

    def wait(self) -> None:
        self.accelerator.wait_for_everyone()
