"""Random numbers from names instead of a state. They do not depend on workers, processes or restarts."""

from __future__ import annotations

import hashlib

import torch


def seed_of(*names: int | str) -> int:
    """A seed of 63 bits from names such as (seed, purpose, index, …)."""
    digest = hashlib.blake2b("/".join(map(str, names)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def generator(*names: int | str) -> torch.Generator:
    """A new generator on the CPU, seeded by names. The global generator is not used."""
    return torch.Generator().manual_seed(seed_of(*names))
