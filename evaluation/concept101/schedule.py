"""The noise levels at which the official code samples: those of SDXL's own scheduler in diffusers."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

Schedule = Literal["host", "official"]
LEVELS = 1000


def official_timesteps(steps: int) -> list[int]:
    """Falling numbers of noise levels, 0 to 999: 958, 925, …, 1 for 30 steps.

    EulerDiscreteScheduler with timestep_spacing "leading" and steps_offset 1 (arXiv 2305.08891, table 2). Raises
    ValueError for more steps than there are levels.
    """
    if not 1 <= steps < LEVELS:
        raise ValueError(f"The official schedule has 1 to {LEVELS - 1} steps, not {steps}: set another --steps.")
    return [number * (LEVELS // steps) + 1 for number in reversed(range(steps))]


def official_sigmas(sigmas: Tensor, steps: int) -> Tensor:
    """[steps + 1], falling to 0; sigmas [1000] are the model's, rising."""
    return torch.cat([sigmas[official_timesteps(steps)].float().cpu(), torch.zeros(1)])


def start_factor(sigmas: Tensor, highest: float) -> float:
    """By what the first noise is stronger than the host makes it: diffusers begins with √(σ² + 1) times the noise, the
    host with σ times, unless it begins at the model's highest level. sigmas: as `official_sigmas` gives them."""
    first = float(sigmas[0])
    return 1.0 if math.isclose(first, highest, rel_tol=1e-5) else (1 + first**-2) ** 0.5
