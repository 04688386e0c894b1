"""Random numbers from names instead of from a state: the same for any number of workers, processes and restarts."""

from __future__ import annotations

import hashlib

import torch


def seed_of(*names: int | str) -> int:
    """63 bits from (seed, purpose, position, …)."""
    digest = hashlib.blake2b("/".join(map(str, names)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def generator(*names: int | str) -> torch.Generator:
    """A generator of its own on the CPU; the global one is never touched."""
    return torch.Generator().manual_seed(seed_of(*names))
