"""Keys of an adapter's sites: `N.to_k_ip.weight`, `N.to_v_ip.weight`, `N.text_to_weight.weight`, N odd."""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor

PARTS = ("to_k_ip.weight", "to_v_ip.weight", "text_to_weight.weight")
_KEY = re.compile(r"(0|[1-9]\d{0,4})\.(to_k_ip|to_v_ip|text_to_weight)\.weight")


def site_shapes(kv: Mapping[str, Tensor], context_dim: int) -> dict[str, tuple[int, ...]]:
    """The shape every site's key must have. kv: keys without 'ip_adapter.'.

    Each transformer block counts its self-attention, then its cross-attention, so the sites' numbers
    are 1, 3, 5, … without a gap. A head must be there for all sites or for none.
    """
    with_head = any(key.endswith(PARTS[2]) for key in kv)
    shapes: dict[str, tuple[int, ...]] = {}
    for number in site_numbers(kv):
        keys, values, head = (f"{number}.{part}" for part in PARTS)
        leading = kv.get(keys, kv.get(values))
        width = leading.shape[0] if leading is not None and leading.ndim == 2 else 0
        shapes |= {keys: (width, context_dim), values: (width, context_dim)}
        if with_head:
            shapes[head] = (1, width)
    return shapes


def site_numbers(keys: Mapping[str, Tensor]) -> range:
    """1, 3, … as many as there are distinct numbers in the keys."""
    numbers = {match[1] for key in keys if (match := _KEY.fullmatch(key))}
    return range(1, 2 * max(1, len(numbers)), 2)
