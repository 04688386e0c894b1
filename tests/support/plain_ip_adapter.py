"""Plain IP-Adapter with one picture at every cross-attention, written from its definition, in float64."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .direct import attention
from .graphs import bundle


class Plain:
    """One attention to the text, one more to the tokens of one picture.

    tokens: of the conditional and of the unconditional branch, each [T, X].
    before: what stood at the site; the text's attention if None.
    """

    def __init__(self, tokens: list[Tensor], scale: float, weights: Any, before: Any = None) -> None:
        self.tokens, self.scale, self.before = tokens, scale, before
        self.to_k, self.to_v = (each.double() for each in (weights.k_weight, weights.v_weight))

    def __deepcopy__(self, memo: dict) -> Plain:
        return self

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, options: dict) -> Tensor:
        conds, heads = options["cond_or_uncond"], options["n_heads"]
        rows = len(q) // len(conds)
        if self.before is None:
            out = [attention(q[i].double(), k[i].double(), v[i].double(), heads) for i in range(len(q))]
        else:
            out = self.before(q, k, v, options).double()
        done = []
        for i, text in enumerate(out):
            tokens = self.tokens[conds[i // rows]].double()
            done.append(text + self.scale * attention(q[i].double(), tokens @ self.to_k.T, tokens @ self.to_v.T, heads))
        return torch.stack(done).to(q.dtype)


def plain_ip_adapter(style: tuple, scale: float, model: Any, adapter: Any) -> Any:
    """A clone of the MODEL with a chain's one style, at this scale and with no weight of its own."""
    from mip_adapter.patching.encode import encode_styles
    from mip_adapter.weights.sites import unet_sites

    with torch.inference_mode():
        encoded = encode_styles(style, adapter, bundle().vision)
    patched = model.clone()
    slots = patched.model_options["transformer_options"].get("patches_replace", {}).get("attn2", {})
    for site in unet_sites(patched.model.diffusion_model):
        tokens = [encoded.tokens[0], encoded.null_tokens]
        patched.set_model_attn2_replace(
            Plain(tokens, scale, adapter.site_weights[site.number], slots.get(site.key)), *site.key
        )
    return patched
