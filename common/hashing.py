"""Digests of weights, settings and files."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

SAMPLED = 16  # numbers of each tensor that `digest` reads


def weights_sha256(weights: nn.Module | Mapping[str, Tensor]) -> str:
    """The sha256 of all weights of a module, or of weights by name; sorted by name."""
    total = hashlib.sha256()
    for name, tensor in sorted((weights.state_dict() if isinstance(weights, nn.Module) else weights).items()):
        total.update(name.encode())
        total.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return total.hexdigest()


def digest(*parts: Any) -> str:
    """A sha256 of settings, adapters, models or lists of names. Of a large tensor only a few numbers are read."""
    total = hashlib.sha256()
    for piece in _pieces(parts):
        total.update(piece)
    return total.hexdigest()


def _pieces(part: Any) -> Iterator[bytes]:
    if isinstance(part, Tensor):
        flat = part.detach().flatten()[:: max(1, part.numel() // SAMPLED)][:SAMPLED]
        yield f"{list(part.shape)} {flat.cpu().float().tolist()}".encode()
    elif isinstance(part, Mapping):
        for key in sorted(part, key=str):
            yield str(key).encode()
            yield from _pieces(part[key])
    elif part is None or isinstance(part, str | int | float):
        yield repr(part).encode()
    elif isinstance(part, Iterable):
        for each in part:
            yield from _pieces(each)
    elif hasattr(part, "weights"):  # a LoRA, as the host stores it
        yield from _pieces(part.weights)


def file_sha256(path: Path) -> str:
    """The sha256 of a file, read in blocks."""
    total = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(1 << 20):
            total.update(block)
    return total.hexdigest()
