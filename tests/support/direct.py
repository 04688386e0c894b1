"""The method written a second time, straight from its definition: float64, one row, one object and one head at a time.

It is slow and plain on purpose, and independent of attention/. The tests compare the pack with it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from .direct_pool import DirectPool

SiteKey = tuple[str, int, int]


@dataclass
class Direct:
    """References and settings.

    tokens: M × [T, X]; null: [T, X].
    texts: M × [L, X].
    regions: M × ([H, W] or None), or None.
    to_k, to_v: the adapter's [C, X] by site number.
    head: [C] by site number; empty for none.
    The others are those of MIP Merge, MIP Fusion Head and MIP Apply.
    """

    tokens: Sequence[Tensor]
    null: Tensor
    texts: Sequence[Tensor]
    weights: Sequence[float]
    to_k: Mapping[int, Tensor]
    to_v: Mapping[int, Tensor]
    head: Mapping[int, Tensor] = field(default_factory=dict)
    regions: Sequence[Tensor | None] | None = None
    scale: float = 1.0
    strategy: str = "relevance"
    normalization: str = "sum"
    background: float = 0.0
    sharpness: float = 1.0
    gate: str = "image"
    strength: float = 1.0
    measure: str = "each site"
    unclaimed: float = 0.0
    pooled: Callable[[Tensor], Tensor] | None = None  # replaces the relevance A [M, N] that the site measured

    def row(self, q: Tensor, text: Tensor, to_k: Tensor, number: int, heads: int, conditional: bool,
            regions: np.ndarray | None = None) -> Tensor:  # fmt: skip
        """Z [N, C] of one row at one site.

        q, text: [N, C], the queries and Z_text.
        to_k: the UNet's [C, X].
        regions: [M, N] at the site's resolution.
        """
        q, text, to_k = q.double(), text.double(), to_k.double()
        gate = self.fusion_gate(text, number)[:, None]
        if conditional:
            image = self.objects(q, to_k, number, heads, regions)
        else:
            image = self.nothing(q, number, heads, regions)
        if self.gate == "text":
            return gate * text + self.scale * image
        return text + self.scale * gate * image

    def fusion_gate(self, text: Tensor, number: int) -> Tensor:
        """g̃ [N]."""
        if self.gate == "off" or number not in self.head:
            return torch.ones(len(text), dtype=torch.float64)
        g = 1 / (1 + torch.exp(-(text @ self.head[number].double())))
        return 1 + self.strength * (g / g.mean() - 1)

    def objects(self, q: Tensor, to_k: Tensor, number: int, heads: int, regions: np.ndarray | None) -> Tensor:
        """Σ_i w_i Ã_i Z_i for a conditional row."""
        keys = [tokens.double() @ self.to_k[number].double().T for tokens in self.tokens]
        values = [tokens.double() @ self.to_v[number].double().T for tokens in self.tokens]
        if self.strategy == "concat":
            return self.concatenated(q, keys, values, heads, regions)
        relevance = torch.stack([object_relevance(q, text.double() @ to_k.T, heads) for text in self.texts])
        share = self.shares(self.pooled(relevance) if self.pooled else relevance, regions)
        each = (attention(q, k, v, heads) for k, v in zip(keys, values, strict=True))
        return torch.stack([w * s[:, None] * z for w, s, z in zip(self.weights, share, each, strict=True)]).sum(0)

    def nothing(self, q: Tensor, number: int, heads: int, regions: np.ndarray | None) -> Tensor:
        """The unconditional row: one set of image tokens for all objects. The empty text prefers no position."""
        flat = torch.full((len(self.tokens), len(q)), 1 / len(q), dtype=torch.float64)
        share = self.shares(flat, regions) if self.strategy != "concat" else self.shares(flat, regions, "uniform")
        total = torch.stack([w * s for w, s in zip(self.weights, share, strict=True)]).sum(0)
        keys, values = (self.null.double() @ w[number].double().T for w in (self.to_k, self.to_v))
        return total[:, None] * attention(q, keys, values, heads)

    def shares(self, relevance: Tensor, regions: np.ndarray | None = None, strategy: str | None = None) -> Tensor:
        """Ã [M, N] from A [M, N]."""
        strategy = strategy or self.strategy
        objects, positions = relevance.shape
        r = torch.ones_like(relevance) if regions is None else torch.from_numpy(regions).double()
        if strategy == "sum":
            return r
        a = (relevance * positions) ** self.sharpness if strategy == "relevance" else torch.ones_like(relevance)
        below = (r * a).sum(0) + (self.background if strategy == "relevance" else 0)
        if strategy == "relevance" and self.unclaimed and (r > 0).any():
            best = torch.where(r > 0, relevance, 0).max(0).values[(r > 0).any(0)]
            typical = math.exp(sum(math.log(max(float(each), 1e-30)) for each in best) / len(best))
            below = below + (self.unclaimed * typical * positions) ** self.sharpness
        share = torch.where(below > 0, r * a / below, 0) * r.max(0).values
        return share * objects if strategy == "relevance" and self.normalization == "mean" else share

    def concatenated(self, q: Tensor, keys: list, values: list, heads: int, regions: np.ndarray | None) -> Tensor:
        """One softmax over the tokens of all objects. Regions are added to its logits as log r."""
        width = q.shape[1] // heads
        owner = torch.tensor([i for i, k in enumerate(keys) for _ in range(len(k))])
        weight = torch.tensor(self.weights, dtype=torch.float64)[owner]
        k, v = torch.cat(keys), torch.cat(values) * weight[:, None]
        r = None if regions is None else torch.from_numpy(regions).double()
        out = torch.zeros_like(q)
        for head in range(heads):
            at = slice(head * width, (head + 1) * width)
            p = (q[:, at] @ k[:, at].T / width**0.5).softmax(-1)
            if r is not None:
                p = p * r[owner].T
                total = p.sum(-1, keepdim=True)
                p = torch.where(total > 0, p / total, 0) * r.max(0).values[:, None]
            out[:, at] = p @ v[:, at]
        return out


def attention(q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
    """Attention of q [N, C] to k and v [T, C]: [N, C]."""
    width = q.shape[1] // heads
    parts = [slice(i * width, (i + 1) * width) for i in range(heads)]
    return torch.cat([(q[:, at] @ k[:, at].T / width**0.5).softmax(-1) @ v[:, at] for at in parts], 1)


def object_relevance(q: Tensor, k: Tensor, heads: int) -> Tensor:
    """A [N]: the softmax over the positions of q [N, C], averaged over heads and over the tokens of k [L, C]."""
    width = q.shape[1] // heads
    parts = [slice(i * width, (i + 1) * width) for i in range(heads)]
    maps = [(q[:, at] @ token[at] / width**0.5).softmax(0) for at in parts for token in k]
    return torch.stack(maps).mean(0)


def region_at(region: Tensor | None, canvas: tuple[int, int], area: Sequence[int] | None, site: tuple[int, int]):
    """A region [H, W] at a site's resolution [h·w]: stretched to the canvas, cropped, resized, all by Pillow."""
    if region is None:
        return np.ones(site[0] * site[1], np.float32)
    picture = Image.fromarray(region.numpy().astype(np.float32), "F")
    if area is not None:
        height, width, y, x = area
        picture = picture.resize((canvas[1], canvas[0]), Image.Resampling.BILINEAR)
        picture = picture.crop((x, y, min(x + width, canvas[1]), min(y + height, canvas[0])))
    return np.asarray(picture.resize((site[1], site[0]), Image.Resampling.BILINEAR)).reshape(-1)


class DirectPatch:
    """A replacement of one cross-attention that computes `Direct`.

    branch: `branch(index, uuid)` gives (conditional, area or None) of the rows of one cond in the batch. The test knows
        it from its own graph.
    canvas: (height, width) in latent pixels.
    window: the first and the last sigma at which the adapter acts.
    pool: what all sites share, where the relevance is pooled. objects: those of `direct` as indices of all, then.
    """

    def __init__(self, direct: Direct, attention2: Any, number: int, branch: Any, canvas: tuple[int, int],
                 window: tuple[float, float] = (float("inf"), 0.0),
                 pool: DirectPool | None = None) -> None:  # fmt: skip
        self.direct, self.attention2, self.number, self.branch = direct, attention2, number, branch
        self.canvas, self.window, self.pool = canvas, window, pool
        self.objects: Sequence[int] = range(len(direct.texts))

    def __deepcopy__(self, memo: dict) -> DirectPatch:
        return self

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, options: dict) -> Tensor:
        heads, conds = options["n_heads"], options["cond_or_uncond"]
        rows, size = len(q) // len(conds), tuple(options["activations_shape"][-2:])
        sigma = float(options["sigmas"][0])
        out = []
        for row in range(len(q)):
            text = attention(q[row].double(), k[row].double(), v[row].double(), heads)
            conditional, area = self.branch(conds[row // rows], options["uuids"][row // rows])
            regions = None
            if self.direct.regions is not None:
                regions = np.stack([region_at(r, self.canvas, area, size) for r in self.direct.regions])
            if self.window[1] <= sigma <= self.window[0]:
                to_k = self.attention2.to_k.weight
                if self.pool is not None:
                    window = options.get("context_window")
                    shown = tuple(getattr(window, "index_list", range(rows)))
                    # Newer hosts put the picture before the window in front of it.
                    first = getattr(window, "causal_anchor_index", None)
                    shown = shown if first is None else (first, *shown)
                    picture = options["uuids"][row // rows], shown[row % rows]
                    self.direct.pooled = partial(self._read, self.pool, picture, shown, size=size)
                text = self.direct.row(q[row], text, to_k, self.number, heads, conditional, regions)
            out.append(text)
        return torch.stack(out).to(q.dtype)

    def _read(self, pool: DirectPool, picture: Any, shown: Any, relevance: Tensor, **at: Any) -> Tensor:
        return pool.read(self.number, picture, shown, relevance, self.objects, **at)
