"""Stage 4: the base goes on, and its words learn their places. A crutch, and reported as one (TRAINING.md).

SDXL's words know where their objects are without anybody having told them; at a thousandth of its training they do not
yet. Beside the base's own loss this stage pulls the relevance of the *caption's* tokens towards the objects' masks:

    A_i[n] = mean over heads of softmax_n(k_i · q_n / √d)
    loss   = mean over the objects' positions of −log (A_owner / Σ_j A_j)

The method itself reads other vectors, those of each object's text encoded on its own, which this never shows it.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import clip, world, world_words
from .base import Base, Example
from .gate import queries, relevance_maps

WEIGHT = 0.02  # of this loss beside the base's
NOISIEST = 800  # later steps hide the objects: their words cannot know yet


class Places(Base):
    name, rate, total, stop, ema_decay = "places", 5e-4, 10_000, 10_000, 0.999
    matrix_rate = 1.6e-3

    def loss(self, step: int) -> tuple[Tensor, dict[str, Tensor]]:
        given = self.example(step)
        with queries(self.model) as seen:
            error, log = self.error(given)
        lost = self.displaced(given, list(seen.values()))
        return error + WEIGHT * lost, {"error": error, "places": lost, **log}

    def displaced(self, given: Example, seen: Sequence[tuple[nn.Module, Tensor]]) -> Tensor:
        """The loss above, averaged over sites; scenes without a caption, or with too much noise, do not count."""
        tokens, there = self.tokens(given)
        masks = world.render(given.scenes, world.SIZE // 4, self.device).masks
        counts = there.any(1) & (given.steps < NOISIEST)
        losses = []
        for module, hidden in seen:
            relevance = relevance_maps(module, hidden, tokens).masked_fill(~there[..., None], 0)  # [B, M, N]
            share = relevance / relevance.sum(1, keepdim=True).clamp(min=1e-12)
            size = int(relevance.shape[-1] ** 0.5)
            cover, owner = F.adaptive_avg_pool2d(masks, size).flatten(2).max(1)  # [B, N]
            own = share.gather(1, owner[:, None])[:, 0].clamp(min=1e-6)
            weight = (cover > 0.5) * counts[:, None]
            losses.append(-(own.log() * weight).sum() / weight.sum().clamp(min=1))
        return torch.stack(losses).mean()

    def tokens(self, given: Example) -> tuple[Tensor, Tensor]:
        """[B, M, C] the hidden states of the objects' words within the captions; [B, M] whether they are there."""
        context, _ = self.condition(given.captions)
        rows = self.condition.words.rows(given.captions, clip.PAD_L, clip.LENGTH)
        kinds = given.scenes.kinds
        words = [world_words.object_text(kind) for kind in kinds.clamp(min=0).flatten().tolist()]
        numbers = torch.tensor([self.condition.words.numbers[word] for word in words])
        at = rows[:, None] == numbers.view(*kinds.shape, 1)  # [B, M, L]
        there = (kinds >= 0) & at.any(-1)
        place = at.int().argmax(-1).to(self.device)
        tokens = context.gather(1, place[..., None].expand(-1, -1, context.shape[-1]))
        return tokens, there.to(self.device)
