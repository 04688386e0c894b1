"""Stage 4, places: the base is trained further, and its words learn where their objects are.

By themselves, the words of a base that has seen so few scenes find their objects at one resolution of three only. So
this stage is a crutch, and reported as one (docs/miniature-training.md). Besides the base's own loss it pulls the
relevance of the *caption's* tokens towards the objects' masks:

    A_i[n] = mean over heads of softmax_n(k_i · q_n / √d)
    loss   = mean over the objects' positions of −log (A_owner / Σ_j A_j)

The method itself reads other vectors: each object's text encoded on its own. This stage never shows the base those.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .base import Base
from .gate import queries, relevance_maps

WEIGHT = 0.02  # of this loss; the base's has weight 1
NOISIEST = 800  # higher timesteps hide the objects, so their words cannot know their places yet


class Places(Base):
    name, rate, total, stop, ema_decay = "places", 3e-4, 1_200, 937, 0.998
    matrix_rate = 2e-3

    def loss(
        self, latents: Tensor, eps: Tensor, timesteps: Tensor, rows_l: Tensor, rows_g: Tensor, *more: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        spots, masks = more
        context, vector = self.condition.encode(rows_l, rows_g)
        with queries(self.model) as seen:
            error, log = self.error(latents, eps, timesteps, context, vector)
        tokens = context.gather(1, spots[..., None].expand(-1, -1, context.shape[-1]))
        lost = displaced(tokens, (spots > 0) & (timesteps < NOISIEST)[:, None], masks, list(seen.values()))
        return error + WEIGHT * lost, {"error": error, "places": lost, **log}


def displaced(tokens: Tensor, there: Tensor, masks: Tensor, seen: Sequence[tuple[nn.Module, Tensor]]) -> Tensor:
    """The loss above, averaged over sites.

    tokens: [B, M, C] hidden states of the objects' words within the captions.
    there: [B, M] which of them count.
    masks: [B, M, 16, 16].
    seen: each cross-attention and its input.
    """
    losses = []
    for module, hidden in seen:
        relevance = relevance_maps(module, hidden, tokens).masked_fill(~there[..., None], 0)  # [B, M, N]
        share = relevance / relevance.sum(1, keepdim=True).clamp(min=1e-12)
        size = int(relevance.shape[-1] ** 0.5)
        cover, owner = F.adaptive_avg_pool2d(masks, size).flatten(2).max(1)  # [B, N]
        own = share.gather(1, owner[:, None])[:, 0].clamp(min=1e-6)
        weight = (cover > 0.5) * there.any(1)[:, None]
        losses.append(-(own.log() * weight).sum() / weight.sum().clamp(min=1))
    return torch.stack(losses).mean()
