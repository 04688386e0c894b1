"""The gate before any adapter: does the base draw all objects of a caption, and do its words know where they are?

*Presence*: pictures are sampled for captions of two objects and judged from their pixels. The gate requires it for
pairs of kinds that training shows, and reports it for pairs that training never shows together. *Right word*: drawn
scenes are made noisy, and the relevance that the method reads (each object's own text against the queries of a
cross-attention, softmax over positions) is compared between the objects of a scene. Counted is the share of an object's
positions where its own text has the highest relevance, by site resolution and timestep.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ....miniature import world, world_words
from ....miniature.judge import judge
from . import noise_schedule
from .base import Base

PRESENCE, RIGHT_WORD = 0.90, 0.85  # what the gate requires
TIMESTEPS = (200, 400, 600)  # of 1000
SEED = 4_000_000_000  # of the test scenes
AT_ONCE = 64  # pictures sampled in one batch


@torch.no_grad()
def gate(stage: Base, count: int = 64) -> dict[str, Any]:
    """Both numbers with their details, and whether they pass."""
    right = right_words(stage, count)
    best = max(min(values.values()) for values in right.values())
    present, _ = presence(stage, count, held_out=False)
    unseen, pictures = presence(stage, count)
    return {
        "presence": present,
        "presence_of_unseen_pairs": unseen,
        "right_word": best,  # the best resolution by its worst noise level
        "right_word_by_resolution": right,
        "passes": present >= PRESENCE and best >= RIGHT_WORD,
        "pictures": pictures,
    }


def presence(stage: Base, count: int, objects: int = 2, held_out: bool = True) -> tuple[float, Tensor]:
    """The share of pictures that show every object of their caption, and the pictures.

    held_out: with pairs of kinds that training never shows together.
    """
    scenes = world.sample(count, SEED, objects=(objects,), held_out=held_out)
    wanted = [scenes.present(i) for i in range(count)]
    captions = [" and ".join(f"a {world_words.object_text(k)}" for k in kinds) for kinds in wanted]
    pictures = []
    for part in range(0, count, AT_ONCE):
        latents = stage.draw(captions[part : part + AT_ONCE], seed=SEED + part)
        pictures.append(stage.shards.vae.taesd_decoder(latents).float().clamp(0, 1).cpu())
    images = torch.cat(pictures)
    found = [{each.kind for each in objects} for objects in judge(images)]
    hits = sum(set(kinds) <= seen for kinds, seen in zip(wanted, found, strict=True))
    return hits / count, images


def right_words(stage: Base, count: int) -> dict[int, dict[int, float]]:
    """How often the right object's text wins, by side of the relevance maps, then by timestep.

    The maps of all cross-attentions with the same side are summed first, so that one good site alone does not decide.
    """
    scenes = world.sample(count, SEED + 1, objects=(2, 3), held_out=True)
    masks, there = world.render(scenes).masks.to(stage.device), (scenes.kinds >= 0).to(stage.device)
    latents = stage.shards.encode(scenes)
    eps = torch.randn(latents.shape, generator=torch.Generator().manual_seed(1)).to(stage.device)
    kinds = [scenes.present(i) for i in range(count)]
    captions = [" and ".join(f"a {world_words.object_text(k)}" for k in row) for row in kinds]
    texts = _object_texts(stage, scenes.kinds)
    results: dict[int, dict[int, float]] = {}
    for timestep in TIMESTEPS:
        timesteps = torch.full((count,), timestep, device=stage.device)
        with queries(stage.model) as seen:
            stage.predict(noise_schedule.noisy(latents, eps, timesteps)[0], timesteps, captions)
        sums: dict[int, Tensor] = {}
        for module, hidden in seen.values():
            relevance = relevance_maps(module, hidden, texts)  # [B, M, N]
            side = int(relevance.shape[-1] ** 0.5)
            sums[side] = sums.get(side, 0) + relevance
        for side, relevance in sums.items():
            results.setdefault(side, {})[timestep] = _wins(relevance, masks, there)
    return results


def _object_texts(stage: Base, kinds: Tensor) -> Tensor:
    """[B, M, C] the hidden state of each object's single content token, its text encoded on its own."""
    names = [world_words.object_text(max(kind, 0)) for kind in kinds.flatten().tolist()]
    context, _ = stage.condition(names)
    return context[:, 1].unflatten(0, tuple(kinds.shape))


def relevance_maps(module: Any, hidden: Tensor, texts: Tensor) -> Tensor:
    """[B, M, N] relevance of texts [B, M, C]: the softmax over positions of key · query, averaged over heads.

    module: the cross-attention.
    hidden: its input.
    """
    q = module.to_q(hidden.float()).unflatten(-1, (module.heads, -1))  # [B, N, h, d]
    k = module.to_k(texts.float()).unflatten(-1, (module.heads, -1))  # [B, M, h, d]
    scores = torch.einsum("bnhd,bmhd->bmhn", q, k) * q.shape[-1] ** -0.5
    return scores.softmax(-1).mean(2)


def _wins(relevance: Tensor, masks: Tensor, there: Tensor) -> float:
    """The share of the positions mostly covered by one object where that object has the highest relevance."""
    side = int(relevance.shape[-1] ** 0.5)
    share, owner = F.adaptive_avg_pool2d(masks, side).flatten(2).max(1)  # [B, N]
    winner = relevance.masked_fill(~there[..., None], -1).argmax(1)
    return float((winner == owner)[share > 0.5].float().mean())


@contextmanager
def queries(unet: nn.Module) -> Iterator[dict[str, tuple[nn.Module, Tensor]]]:
    """Collects the input of each cross-attention of the UNet, by name, while the context is open."""
    seen: dict[str, tuple[nn.Module, Tensor]] = {}
    handles = [
        module.register_forward_pre_hook(_keeper(seen, name))
        for name, module in unet.named_modules()
        if name.endswith(".attn2")
    ]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def _keeper(seen: dict[str, tuple[nn.Module, Tensor]], name: str):
    def keep(module: nn.Module, inputs: Sequence[Tensor]) -> None:
        seen[name.removesuffix(".attn2")] = (module, inputs[0])

    return keep
