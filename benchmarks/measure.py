"""Operations, operator calls and memory of a function, counted rather than sampled."""

from __future__ import annotations

import weakref
from collections.abc import Callable

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode


def flops(run: Callable[[], object]) -> int:
    """Floating-point operations of the matrix products and attentions in `run`."""
    with FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops()


def operator_calls(run: Callable[[], object]) -> int:
    """How many of PyTorch's operators `run` calls, without those that return a view."""
    with _Calls() as calls:
        run()
    return calls.count


class _Calls(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += not func.is_view
        return func(*args, **(kwargs or {}))


def peak_memory(run: Callable[[], object], device: torch.device) -> int:
    """The largest number of bytes that tensors made by `run` hold at once."""
    if device.type == "cuda":
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        run()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    with _LiveStorages() as live:
        run()
    return live.peak


class _LiveStorages(TorchDispatchMode):
    """Adds up the storages that operations return, until they are freed.

    Temporary memory within an operation is not counted.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._seen: set[int] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        inputs = {t.untyped_storage()._cdata for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)}
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if not isinstance(tensor, torch.Tensor):
                continue
            storage = tensor.untyped_storage()
            identity = storage._cdata
            if identity in inputs or identity in self._seen:
                continue
            self._seen.add(identity)
            self.now += storage.nbytes()
            self.peak = max(self.peak, self.now)
            weakref.finalize(storage, self._free, identity, storage.nbytes())
        return result

    def _free(self, identity: int, size: int) -> None:
        self._seen.discard(identity)
        self.now -= size
