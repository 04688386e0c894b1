"""One process or several: what the training loop needs to know about the others."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol

from torch import Tensor, nn


class Processes(Protocol):
    """The processes that train together.

    rank: the number of this process, from 0.
    count: how many there are.
    """

    rank: int
    count: int

    def wrap(self, module: nn.Module) -> nn.Module:
        """The module with gradients averaged over all processes in its backward pass."""
        ...

    def no_sync(self, module: nn.Module) -> AbstractContextManager[Any]:
        """A context without this averaging, for all but the last backward pass of an accumulation."""
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
    """Processes and nodes started by `accelerate launch`. The precision is the recipe's, not accelerate's."""

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
