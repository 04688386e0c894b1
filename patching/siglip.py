"""SigLIP with its pooled embedding, which the host's own loader leaves out and InstantX's adapter for FLUX.1 reads."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch.nn.functional as F
from torch import Tensor

HEAD = "vision_model.head."  # the pooling head's keys in SigLIP's file
KEYS = (
    "probe",
    *(f"attention.{name}" for name in ("in_proj_weight", "in_proj_bias", "out_proj.weight", "out_proj.bias")),
    *(f"{name}.{part}" for name in ("layernorm", "mlp.fc1", "mlp.fc2") for part in ("weight", "bias")),
)


class PooledSigLIP:
    """A CLIP_VISION whose outputs also have `pooled`, [B, E]. Everything else is the host's.

    vision: the host's ClipVisionModel of a SigLIP.
    head: the pooling head's tensors, keys in `KEYS`.
    heads: number of attention heads.
    """

    def __init__(self, vision: Any, head: Mapping[str, Tensor], heads: int) -> None:
        self._vision, self._head, self._heads = vision, head, heads

    def __getattr__(self, name: str) -> Any:
        return getattr(self._vision, name)

    def encode_image(self, image: Tensor, *given: Any, **more: Any) -> Any:
        outputs = self._vision.encode_image(image, *given, **more)
        outputs["pooled"] = pooled(outputs["last_hidden_state"], self._head, self._heads)
        return outputs


def siglip(vision: Any, tensors: Mapping[str, Tensor], heads: int, name: str) -> PooledSigLIP:
    """The host's SigLIP with the pooling head of its file. Raises ValueError if the file has none.

    tensors: the file's, by key. name: the file's, for messages.
    """
    missing = [key for key in KEYS if HEAD + key not in tensors]
    if missing:
        raise ValueError(
            f"“{name}” is no SigLIP with a pooling head (no {HEAD}{missing[0]}): choose the model.safetensors "
            "of google/siglip-so400m-patch14-384."
        )
    return PooledSigLIP(vision, {key: tensors[HEAD + key] for key in KEYS}, heads)


def pooled(hidden: Tensor, head: Mapping[str, Tensor], heads: int) -> Tensor:
    """SigLIP's attention pooling: one learned query reads all patches. hidden: [B, P, E], normed. Returns [B, E]."""
    x = hidden.float()
    t = {key: tensor.to(x) for key, tensor in head.items()}
    width = x.shape[-1]
    w, b = t["attention.in_proj_weight"].split(width), t["attention.in_proj_bias"].split(width)
    inputs = (t["probe"].expand(len(x), -1, -1), x, x)
    q, k, v = (
        F.linear(each, weight, bias).unflatten(-1, (heads, -1)).transpose(1, 2)
        for each, weight, bias in zip(inputs, w, b, strict=True)
    )
    read = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
    read = F.linear(read, t["attention.out_proj.weight"], t["attention.out_proj.bias"])
    normed = F.layer_norm(read, (width,), t["layernorm.weight"], t["layernorm.bias"], eps=1e-6)
    hidden = F.gelu(F.linear(normed, t["mlp.fc1.weight"], t["mlp.fc1.bias"]), approximate="tanh")
    return (read + F.linear(hidden, t["mlp.fc2.weight"], t["mlp.fc2.bias"]))[:, 0]
