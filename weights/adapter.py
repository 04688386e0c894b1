"""An adapter in memory: its spec, its image projection, its weights at every site."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..common.text import some
from .families import BY_NAME, NORM_EPS, FacePlus
from .files import read_tensors
from .foreign import reject_foreign
from .spec import BIAS_KEYS, HEAD_KEY, WEIGHT_KEYS, AdapterSpec, read_spec, site_numbers


class SiteWeights(NamedTuple):
    """An adapter's weights at one site.

    k_weight, v_weight: [C, X], the matrices to_k_ip and to_v_ip.
    head: [C], the fusion head's row w, or None.
    k_bias, v_bias: [C], or None.
    norm_eps: the epsilon of a root-mean-square norm of each head's keys and values; None without one.
    """

    k_weight: Tensor
    v_weight: Tensor
    head: Tensor | None
    k_bias: Tensor | None = None
    v_bias: Tensor | None = None
    norm_eps: float | None = None

    def on(self, device: torch.device, dtype: torch.dtype = torch.float32) -> SiteWeights:
        """What `keys_values` needs, on a device. The head is left out: a plan or a training may have another one."""
        weights = {"k_weight": self.k_weight, "v_weight": self.v_weight, "k_bias": self.k_bias, "v_bias": self.v_bias}
        moved = {name: each.to(device, dtype) for name, each in weights.items() if each is not None}
        return self._replace(head=None, **moved)

    def keys_values(self, tokens: Tensor, heads: int) -> tuple[Tensor, Tensor]:
        """Keys and values [..., L, C] of image tokens [..., L, X]."""
        return (
            self._normed(F.linear(tokens, self.k_weight, self.k_bias), heads),
            self._normed(F.linear(tokens, self.v_weight, self.v_bias), heads),
        )

    def _normed(self, flat: Tensor, heads: int) -> Tensor:
        if self.norm_eps is None:
            return flat
        per_head = flat.unflatten(-1, (heads, -1))
        return F.rms_norm(per_head, per_head.shape[-1:], eps=self.norm_eps).flatten(-2)


@dataclass(frozen=True, eq=False)
class Adapter:
    """An adapter. Its tensors are memory-mapped from the file, on the CPU.

    image_proj: the image projection's tensors, keys without prefix.
    site_weights: by number N.
    lora: the LoRA of a FaceID file, by key without 'ip_adapter.'; see `lora_shapes`.
    """

    name: str
    spec: AdapterSpec
    image_proj: Mapping[str, Tensor]
    site_weights: Mapping[int, SiteWeights]
    lora: Mapping[str, Tensor] = field(default_factory=dict)

    @property
    def head(self) -> Mapping[int, Tensor]:
        """The fusion head's rows [C] by site number; empty for weights without one."""
        return {number: site.head for number, site in self.site_weights.items() if site.head is not None}

    def __deepcopy__(self, memo: dict[int, Any]) -> Adapter:
        return self  # frozen and up to 1 GB: copies share it


def load_adapter(path: str | os.PathLike[str], name: str | None = None, face_plus: FacePlus = BY_NAME) -> Adapter:
    """Reads, recognises and validates a file.

    name: how messages call the adapter; default: the file's name.
    face_plus: which FaceID Plus a file of that family is.
    Raises ValueError with a sentence for the artist for every file that is not a valid adapter.
    """
    name = name or Path(path).name
    tensors = read_tensors(path)
    return build_adapter(tensors, name, face_plus)


def build_adapter(tensors: Mapping[str, Tensor], name: str, face_plus: FacePlus = BY_NAME) -> Adapter:
    """An adapter from tensors by flat key (`image_proj.…`, `ip_adapter.…`). The tensors are not copied.

    Raises ValueError if they are not a valid adapter.
    """
    spec = read_spec(tensors, name, face_plus)
    check_finite(tensors, name)
    sites = site_weights(tensors, (number for number, _ in spec.site_widths), spec)
    projection = {k.removeprefix("image_proj."): t for k, t in tensors.items() if k.startswith("image_proj.")}
    lora = {k.removeprefix("ip_adapter."): t for k, t in tensors.items() if "_lora." in k}
    return Adapter(name, spec, MappingProxyType(projection), sites, MappingProxyType(lora))


def site_weights(tensors: Mapping[str, Tensor], numbers: Iterable[int], spec: AdapterSpec) -> Mapping[int, SiteWeights]:
    """The weights at the sites with these numbers, from tensors by flat key. to_k_ip and to_v_ip must be there."""
    sites = {}
    for number in numbers:
        keys = (f"ip_adapter.{number}.{key}" for key in (*WEIGHT_KEYS, *BIAS_KEYS))
        k_weight, v_weight, head, k_bias, v_bias = map(tensors.get, keys)
        assert k_weight is not None and v_weight is not None
        row = None if head is None else head[0]
        sites[number] = SiteWeights(k_weight, v_weight, row, k_bias, v_bias, NORM_EPS.get(spec.family))
    return MappingProxyType(sites)


def load_head(path: str | os.PathLike[str], name: str | None = None) -> Mapping[int, Tensor]:
    """The fusion head's rows w [C] by site number, from a file with only a head or an adapter that has one.

    Raises ValueError with a sentence for the artist if the file has no valid head.
    """
    name = name or Path(path).name
    tensors = read_tensors(path)
    rows = {k.removeprefix("ip_adapter."): t for k, t in tensors.items() if k.endswith(HEAD_KEY)}
    if len(rows) < len(tensors):  # more than a head: it must be a valid adapter
        spec = read_spec(tensors, name)
        if not spec.has_head:
            raise ValueError(
                f"“{name}” has no fusion head (no text_to_weight keys): it is an {spec}. Choose a "
                "MIP-Adapter file or a saved head, or set head_name to “from the adapter”."
            )
    reject_foreign(tensors, name)
    expected = [f"{number}.{HEAD_KEY}" for number in site_numbers(rows)]
    if set(rows) != set(expected):
        absent = [key for key in expected if key not in rows][:4] or ["a readable site number"]
        raise ValueError(
            f"“{name}” is not a complete fusion head: {', '.join(absent)} missing. Download or save it again."
        )
    for key, row in rows.items():
        if row.ndim != 2 or row.shape[0] != 1 or not row.is_floating_point():
            raise ValueError(
                f"“{name}” has a fusion head of the wrong shape: {key} is {list(row.shape)} {row.dtype}, "
                "expected [1, C] floating-point numbers. Choose another file."
            )
    check_finite(rows, name)
    return MappingProxyType({n: rows[key][0] for n, key in zip(site_numbers(rows), expected, strict=True)})


def check_finite(tensors: Mapping[str, Tensor], name: str) -> None:
    """Raises ValueError naming the first tensors that hold NaN or infinity."""
    bad = [key for key, tensor in tensors.items() if not _finite(tensor)]
    if bad:
        raise ValueError(
            f"“{name}” holds NaN or infinite numbers in {some(bad)}: it is damaged or its "
            "training diverged. Download it again, or choose another file."
        )


def _finite(tensor: Tensor) -> bool:
    """Whether all numbers are finite. One vectorised pass: minimum and maximum show any NaN or infinity."""
    if tensor.is_meta or tensor.numel() == 0:
        return True
    if tensor.dtype.itemsize == 1:  # fp8 has no arithmetic on the CPU
        tensor = tensor.to(torch.float32)
    low, high = torch.aminmax(tensor)
    return bool(torch.isfinite(low) & torch.isfinite(high))
