"""An edit model with its references told apart, written once more from the definition, in float64, with dense masks."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor


class DirectEdit:
    """The host's model with an attention of its own.

    words: M × positions of the object's tokens in the prompt.
    owners: for each reference, its object or None.
    """

    def __init__(
        self,
        model: Any,
        words: Sequence[Sequence[int]],
        owners: Sequence[int | None],
        strength: float,
        apart: bool,
        sharpness: float = 1.0,
    ) -> None:
        self.network = copy.deepcopy(model).double()
        self.words, self.owners, self.strength, self.apart = words, owners, strength, apart
        self.sharpness = sharpness

    def __call__(self, given: dict, conditional: Sequence[bool], picture: int, references: Sequence[int]) -> Tensor:
        """The model's output. given: the arguments of its forward; conditional: of each row."""

        def attention(function: Any, q: Tensor, k: Tensor, v: Tensor, heads: int, mask: Any = None, **more: Any):
            logits = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])
            logits = logits + self._mask(logits, q, k, conditional, picture, references)
            if mask is not None:
                logits = logits + (mask.unsqueeze(1) if mask.ndim == 3 else mask)
            return (logits.softmax(-1) @ v).transpose(1, 2).flatten(2)

        options = {**given["transformer_options"], "optimized_attention_override": attention, "wrappers": {}}
        with torch.inference_mode(), _any_dtype():
            return self.network(**_double({**given, "transformer_options": options}))

    def _mask(self, logits: Tensor, q: Tensor, k: Tensor, conditional, picture: int, references) -> Tensor:
        mask = torch.zeros(len(q), 1, *logits.shape[-2:], dtype=torch.float64)
        text = k.shape[2] - picture - sum(references)
        edges = [text + picture + sum(references[:i]) for i in range(len(references) + 1)]
        places = [range(a, b) for a, b in zip(edges, edges[1:], strict=False)]
        for row in range(len(q)):
            if conditional[row]:
                where = q[row, :, text : text + picture]  # [h, N, d]
                relevance = []
                for words in self.words:
                    each = k[row][:, list(words)] @ where.transpose(-1, -2) / math.sqrt(q.shape[-1])
                    relevance.append(each.softmax(-1).mean((0, 1)) ** self.sharpness)
                total = sum(relevance)
                for place, owner in zip(places, self.owners, strict=False):
                    if owner is not None:
                        bias = self.strength * (len(self.words) * relevance[owner] / total).log()
                        mask[row, 0, text : text + picture, place.start : place.stop] = bias.clamp(-8, 8).unsqueeze(1)
        if self.apart:
            for one in places:
                for other in places:
                    if one is not other and one.stop <= logits.shape[-2]:
                        mask[:, :, one.start : one.stop, other.start : other.stop] = -math.inf
        return mask


@contextmanager
def _any_dtype() -> Iterator[None]:
    """The kernels that newer hosts have for rotary embeddings know no float64; the plain formula does."""
    import comfy.ldm.flux.math
    import comfy.ldm.qwen_image.model

    with ExitStack() as changed:
        for module in (comfy.ldm.flux.math, comfy.ldm.qwen_image.model):
            for name, plain in (("apply_rope", _rotated_both), ("apply_rope1", _rotated)):
                if hasattr(module, name):
                    changed.enter_context(patch.object(module, name, plain))
        yield


def _rotated(x: Tensor, rotations: Tensor) -> Tensor:
    pairs = x.unflatten(-1, (-1, 1, 2))
    turned = (rotations[:, :, : x.shape[2]].to(x.dtype) * pairs).sum(-1)
    return turned.flatten(-2)


def _rotated_both(q: Tensor, k: Tensor, rotations: Tensor) -> tuple[Tensor, Tensor]:
    return _rotated(q, rotations), _rotated(k, rotations)


def _double(value: Any) -> Any:
    if torch.is_tensor(value):
        return value.double() if value.is_floating_point() else value
    if isinstance(value, list | tuple):
        return type(value)(_double(each) for each in value)
    return (
        {key: each if key == "transformer_options" else _double(each) for key, each in value.items()}
        if isinstance(value, dict)
        else value
    )
