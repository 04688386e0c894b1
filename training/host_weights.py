"""What a ModelPatcher would sample with, whatever the host has done to the weights by now."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import Tensor


def model_parts(patcher: Any) -> Iterator[Any]:
    """What tells one MODEL from another: a few numbers of every weight, and its LoRAs."""
    yield from sorted(unpatched_weights(patcher).items())
    for key, patches in sorted(getattr(patcher, "patches", {}).items(), key=lambda item: str(item[0])):
        yield str(key), patches


def unpatched_weights(patcher: Any) -> dict[str, Tensor]:
    """The weights of a MODEL by name, without LoRAs.

    A loaded model has LoRAs inside its weights, perhaps those of another MODEL that shares them; the host keeps the
    weights as they were in `backup`.
    """
    backup = getattr(patcher, "backup", {})
    return {key: getattr(backup.get(key), "weight", tensor) for key, tensor in patcher.model.state_dict().items()}
