"""The method in FLUX.1, written once more from its definition, in float64, as a processor of diffusers' attentions."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from diffusers.models.embeddings import apply_rotary_emb as rotated
from torch import Tensor


class DirectFlux:
    """diffusers' transformer with references.

    tensors: the adapter's, by the keys `image_proj.…` and `ip_adapter.N.…`.
    embeds: M × [1, E], each object's image embedding; None: the zero embedding, which all objects share.
    words: M × positions of the object's tokens in the prompt.
    kind: "xlabs" or "instantx".
    merge: "relevance", "uniform", "sum" or "concat".
    region: [M, N] in 0..1, or None.
    """

    def __init__(
        self,
        source: Any,
        tensors: dict[str, Tensor],
        embeds: Sequence[Tensor] | None,
        words: Sequence[Sequence[int]],
        kind: str,
        *,
        scale: float = 0.8,
        merge: str = "relevance",
        weights: Sequence[float] | None = None,
    ) -> None:
        self.transformer = copy.deepcopy(source).double()
        self.tensors = {key: tensor.double() for key, tensor in tensors.items()}
        self.kind, self.scale, self.merge, self.words = kind, scale, merge, words
        self.null = embeds is None
        self.weights = weights or [1.0] * len(words)
        given = torch.zeros(1, self._encoder_width()) if embeds is None else torch.cat(list(embeds))
        self.tokens = self._project(given.double())  # [M or 1, T, X]
        blocks = [*self.transformer.transformer_blocks, *self.transformer.single_transformer_blocks]
        for number, block in enumerate(blocks):
            single = number >= len(self.transformer.transformer_blocks)
            if kind == "instantx" or not single:
                block.attn.processor = _Processor(self, number)

    def __call__(self, **given: Any) -> Tensor:
        given = {k: v.double() if torch.is_tensor(v) else v for k, v in given.items()}
        with torch.inference_mode():
            return self.transformer(**given, return_dict=False)[0]

    def _encoder_width(self) -> int:
        return self.tensors["image_proj.proj.weight" if self.kind == "xlabs" else "image_proj.proj.0.weight"].shape[1]

    def _project(self, x: Tensor) -> Tensor:
        t = {key.removeprefix("image_proj."): tensor for key, tensor in self.tensors.items()}
        if self.kind == "xlabs":
            x = x @ t["proj.weight"].T + t["proj.bias"]
        else:
            x = torch.nn.functional.gelu(x @ t["proj.0.weight"].T + t["proj.0.bias"])
            x = x @ t["proj.2.weight"].T + t["proj.2.bias"]
        width = len(t["norm.weight"])
        x = x.reshape(len(x), -1, width)
        mean, variance = x.mean(-1, keepdim=True), x.var(-1, unbiased=False, keepdim=True)
        return (x - mean) / (variance + 1e-5).sqrt() * t["norm.weight"] + t["norm.bias"]

    def keys_values(self, number: int, heads: int) -> tuple[Tensor, Tensor]:
        """[M or 1, h, T, d] each."""
        both = []
        for part in "kv":
            site = f"ip_adapter.{number}.to_{part}_ip"
            flat = self.tokens @ self.tensors[f"{site}.weight"].T + self.tensors.get(f"{site}.bias", 0)
            each = flat.unflatten(-1, (heads, -1)).transpose(1, 2)
            if self.kind == "instantx":
                each = each / (each.square().mean(-1, keepdim=True) + 1e-5).sqrt()
            both.append(each)
        return both[0], both[1]


class _Processor:
    def __init__(self, direct: DirectFlux, number: int) -> None:
        self.direct, self.number = direct, number

    def __call__(self, attn, hidden_states, encoder_hidden_states=None, attention_mask=None, image_rotary_emb=None):
        def heads(x):  # [B, S, C] -> [B, S, h, d]
            return x.unflatten(-1, (attn.heads, -1))

        q, k = attn.norm_q(heads(attn.to_q(hidden_states))), attn.norm_k(heads(attn.to_k(hidden_states)))
        v, pure = heads(attn.to_v(hidden_states)), q
        text = _text_length(self.direct)
        if encoder_hidden_states is not None:
            pure = torch.cat([torch.zeros_like(q[:, :1]).expand(-1, text, -1, -1), q], 1)
            q = torch.cat([attn.norm_added_q(heads(attn.add_q_proj(encoder_hidden_states))), q], 1)
            k = torch.cat([attn.norm_added_k(heads(attn.add_k_proj(encoder_hidden_states))), k], 1)
            v = torch.cat([heads(attn.add_v_proj(encoder_hidden_states)), v], 1)
        given: Any = image_rotary_emb
        turned: Any = tuple(rotated(each, given, sequence_dim=1) for each in (q, k))
        q, k = turned
        q, k, v, pure = (x.transpose(1, 2) for x in (q, k, v, pure))  # [B, h, S, d]
        root = q.shape[-1] ** 0.5
        out = ((q @ k.transpose(-1, -2) / root).softmax(-1) @ v).transpose(1, 2).flatten(2)
        added = self._features(q, k, pure, text, root)  # [B, S, C]
        if encoder_hidden_states is None:
            return out + added
        words, picture = out[:, :text], out[:, text:]
        if self.direct.kind == "instantx":
            picture = picture + added[:, text:]
        results = attn.to_out[0](picture), attn.to_add_out(words)
        return (*results, added[:, text:]) if self.direct.kind == "xlabs" else results

    def _features(self, q: Tensor, k: Tensor, pure: Tensor, text: int, root: float) -> Tensor:
        direct = self.direct
        keys, values = direct.keys_values(self.number, q.shape[1])
        relevance = []
        for words in direct.words:
            logits = k[:, :, list(words)] @ q[:, :, text:].transpose(-1, -2) / root  # [B, h, L, N]
            relevance.append(logits.softmax(-1).mean((1, 2)))
        relevance = torch.stack(relevance)  # [M, B, N]
        count = len(relevance)
        share = {
            "relevance": relevance / relevance.sum(0), "uniform": torch.full_like(relevance, 1 / count),
            "sum": torch.ones_like(relevance), "concat": torch.ones_like(relevance),
        }[direct.merge]  # fmt: skip
        if direct.null:
            share = torch.full_like(relevance, 1.0 if direct.merge == "sum" else 1 / count)
            if direct.merge == "concat":
                share = torch.full_like(relevance, 1 / count)
        # A text position hears each object as much as the picture does on average.
        share = torch.cat([share.mean(-1, keepdim=True).expand(-1, -1, text), share], -1)
        logits = torch.einsum("bhsd,mhtd->mbhst", pure, keys) / root
        if direct.merge == "concat" and not direct.null:
            together = logits.permute(1, 2, 3, 0, 4).flatten(-2).softmax(-1).unflatten(-1, (count, -1))
            chances = together.permute(3, 0, 1, 2, 4)
        else:
            chances = logits.softmax(-1)
        each = torch.einsum("mbhst,mhtd->mbshd", chances, values).flatten(-2)  # [M or 1, B, S, C]
        weights = torch.tensor(direct.weights, dtype=each.dtype).view(-1, 1, 1, 1)
        return direct.scale * (weights * share.unsqueeze(-1) * each.expand(count, -1, -1, -1)).sum(0)


def _text_length(direct: DirectFlux) -> int:
    return direct.transformer.text_length
