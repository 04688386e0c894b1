"""What sampling leaves behind about the objects' relevance."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class RelevanceRecord:
    """names: the object texts, in the order in which masks and maps list them."""

    names: tuple[str, ...]
