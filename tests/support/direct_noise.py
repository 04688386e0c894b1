"""Text noise written a second time, straight from its definition: numpy and Python's whole numbers."""

from __future__ import annotations

import numpy as np
import torch

from .direct import object_relevance

BITS = 2**64 - 1


def splitmix(seed: int, count: int) -> list[int]:
    """The generator as its authors describe it: a state that steps, and a mixing function."""
    out, state = [], seed & BITS
    for _ in range(count):
        state = (state + 0x9E3779B97F4A7C15) & BITS
        z = state
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & BITS
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & BITS
        out.append(z ^ (z >> 31))
    return out


def epsilon(seed: int, number: int, step: int, row: int, count: int) -> np.ndarray:
    """Output `row` of output `step` of output `number` of the seed is the seed of this row's numbers."""
    key = seed
    for index in (number, step, row):
        key = splitmix(key, index + 1)[-1]
    with np.errstate(over="ignore"):  # the same, all at once
        state = np.uint64(key) + np.arange(1, (count + 1) // 2 + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        bits = state ^ (state >> np.uint64(31))
    radius = np.sqrt(-2 * np.log(((bits >> np.uint64(32)).astype(float) + 1) / 2**32))
    angle = 2 * np.pi * (bits & np.uint64(2**32 - 1)).astype(float) / 2**32
    return np.concatenate([radius * np.cos(angle), radius * np.sin(angle)])[:count]


def noisy(q, text, keys, number, heads, *, strength, seed, step, row, target) -> torch.Tensor:
    """One row [N, C] of one site; keys M × [L, C], target None: uniform."""
    weight = np.ones(len(q))
    if target is not None:
        maps = torch.stack([object_relevance(q, k, heads) for k in keys]).numpy()
        share = maps[target] / maps.sum(0)
        weight = share / np.sqrt((share**2).mean())
    numbers = epsilon(seed, number, step, row, q.numel()).reshape(q.shape)
    clean = text.double().numpy()
    return torch.from_numpy(clean + strength * clean.std() * weight[:, None] * numbers)
