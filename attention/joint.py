"""The method where text and picture attend together, as in FLUX.1: relevance from the prompt's own tokens.

Such a model has one attention over text and picture. An object's words stand in the prompt, and at every site their
keys are among the text's. So no text is encoded anew at the sites: the words' indices in the prompt are enough.

Shapes: B rows, h heads of width d, S = text + picture positions, N latent positions, M objects, L words of all objects.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor
from torch.nn.functional import normalize

from .plan import Plan, SitePlan
from .relevance import FLOOR
from .site import RowGroup, add_images

# Mean cosine below which a prompt does not hold an object's words. By three small text encoders named words have 0.84
# and more, and others from 0.09 to 0.80 (`test_likeness_tells_named_words_from_others`). So no number tells them apart
# for all, and this one refuses only what is surely wrong. It is not yet tried with the released encoders.
NAMED = 0.3


def naming_tokens(prompt: Tensor, text: Tensor) -> tuple[Tensor, Tensor]:
    """Where a prompt names an object: the run of tokens that is most like the object text.

    prompt: [B, P, X], the prompts' embeddings.
    text: [L, X], the object text's content tokens, encoded alone; L at most P.
    Returns the tokens' indices [B, L] and the run's mean cosine [B]. What the directions of a prompt's tokens have in
    common is taken off before; rows of zeros, with which some hosts fill up, do not count. An encoder gives a word
    other numbers in another context, so the cosine stays below 1.
    """
    given = normalize(prompt.float(), dim=-1)
    filled = given.any(-1, keepdim=True).sum(1, keepdim=True).clamp_min(1)
    common = given.sum(1, keepdim=True) / filled
    # Directions, since one token of a large language model can be a thousand times as long as the others.
    directions, wanted = normalize(given - common, dim=-1), normalize(normalize(text.float(), dim=-1) - common, dim=-1)
    cosines = directions @ wanted.transpose(1, 2)  # [B, P, L]
    runs = prompt.shape[1] - len(text) + 1
    along = torch.stack([cosines[:, word : word + runs, word] for word in range(len(text))]).mean(0)  # [B, runs]
    best, start = along.max(-1)
    return start.unsqueeze(-1) + torch.arange(len(text), device=prompt.device), best


def joint_relevance(queries: Tensor, keys: Tensor, token_indices: Tensor, average: Tensor) -> Tensor:
    """A_i[n] = mean over heads and the object's tokens of softmax_n(k_token · q_n/√d).

    queries: [B, h, N, d], the picture's, as the model's attention uses them.
    keys: [B, h, P, d], the text's, likewise.
    token_indices: [B, L], the indices of the objects' words among the text's tokens.
    average: [M, h·L], see `raw_relevance`.
    Returns [M, B, N] float32; it sums to 1 over N.
    """
    index = token_indices[:, None, :, None].expand(-1, keys.shape[1], -1, keys.shape[-1])
    named = keys.gather(2, index) * keys.shape[-1] ** -0.5  # [B, h, L, d]
    attention = (named @ queries.transpose(-1, -2)).softmax(-1, dtype=torch.float32)  # [B, h, L, N]
    return (average @ attention.flatten(1, 2)).transpose(0, 1) + FLOOR


def unrotate(x: Tensor, rotations: Tensor) -> Tensor:
    """x [B, h, S, d] before its rotary embedding was applied.

    rotations: [B or 1, 1, S, d/2, 2, 2], the embedding's matrices. The inverse of a rotation is its transpose.
    """
    pairs = x.to(rotations.dtype).unflatten(-1, (-1, 2))  # [B, h, S, d/2, 2]
    turned = pairs[..., :1] * rotations[..., 0, :] + pairs[..., 1:] * rotations[..., 1, :]
    return turned.flatten(-2).to(x.dtype)


def image_features(
    queries: Tensor,
    plan: Plan,
    site_plan: SitePlan,
    groups: Sequence[RowGroup],
    relevance: Callable[[RowGroup], Tensor],
    text_length: int = 0,
    observe: Callable[[RowGroup, Tensor | None, Tensor | None], None] | None = None,
) -> Tensor:
    """Σ_i s w_i Ã_i Z_i, what the references add at one site: [B, P + N, C].

    queries: [B, h, P + N, d], without rotary embedding.
    groups: the rows of the batch by treatment.
    relevance: returns A_i [M, b, N] of the rows; called only for conditional rows that need it.
    text_length: P, in front of the picture's; see `add_images`.
    observe: as in `fuse`.
    """
    batch, heads, positions, width = queries.shape
    out = queries.new_zeros(batch, positions, heads * width)
    for group in groups:
        q = queries[group.slice].permute(1, 3, 0, 2).flatten(2)  # [h, d, b·(P + N)]
        measure = partial(relevance, group)
        add_images(out[group.slice], q, plan, site_plan, group, measure, observe, text_length=text_length)
    return out
