"""How many operators run inside each transformer block while a model samples."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

from torch.utils._python_dispatch import TorchDispatchMode

from .graphs import SIZE, sample


class Operators(TorchDispatchMode):
    """Counts them by step and site."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter = Counter()
        self.step, self.inside = -1, None

    def __torch_dispatch__(self, func, types, args=(), kwargs=None) -> Any:
        if self.inside is not None:
            self.counts[self.step, self.inside] += 1
        return func(*args, **(kwargs or {}))

    def begin(self, *_) -> None:
        self.step += 1

    def enter(self, key: Any) -> Callable:
        return lambda *_: setattr(self, "inside", key)


def operators_of(model: Any, steps: int = 2, size: tuple[int, int] = SIZE) -> Counter:
    """{(step, site's key): operators} of a sampling with the MODEL."""
    from mip_adapter.weights.sites import cross_attentions

    unet, operators = model.model.diffusion_model, Operators()
    blocks = {id(module): key for key, module in cross_attentions(unet).items()}
    handles = [unet.register_forward_pre_hook(operators.begin)]
    for block in unet.modules():
        if (key := blocks.get(id(getattr(block, "attn2", None)))) is not None:
            handles.append(block.register_forward_pre_hook(operators.enter(key)))
            handles.append(block.register_forward_hook(operators.enter(None)))
    try:
        with operators:
            sample(model, steps, size=size)
    finally:
        for handle in handles:
            handle.remove()
    assert operators.step == steps - 1 and len(operators.counts) == steps * len(blocks)
    return operators.counts
