"""`python mip.py overlap`: do the relevance maps lie on the objects? Intersection over union with true silhouettes.

Noise is added to drawn scenes, and the UNet sees each once, called by ComfyUI's own sampler. The maps that MIP Apply
records are compared with three others: the text attention alone (the softmax over the prompt's tokens, at the object's
own word, of the model without an adapter), random maps, and the silhouettes themselves at the resolution of the finest
maps. The merge's own equation turns all of them into shares, and masks are made as in MIP Relevance Maps. Thresholds
are chosen on other scenes.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ...attention.options import Merge
from ...attention.reference import make_reference
from ...attention.relevance import shares
from ...common.atomic_io import atomic_write
from ...common.comfy_path import prepare_host
from ...common.console import complain
from ...miniature import world
from ...relevance.observation import Observation, RunId
from ...relevance.record import RelevanceRecord
from ...weights.adapter import Adapter, load_adapter
from ..ablation import arms
from . import overlap
from .comfy_noisy import conditioning, look
from .options import study_parser

LEVELS = (200, 400, 600, 800)  # out of 1000 noise levels
# With the background competitor, no object owns a position that suits every text less than the average position does.
MERGE = Merge(background=1.0)
RELEVANCE, TEXT, CHANCE, TRUTH = "relevance", "text attention", "chance", "the silhouettes at that resolution"


def main(argv: list[str]) -> int:
    purpose = (__doc__ or "").splitlines()[0]
    parser = study_parser("overlap", purpose, Path("output/overlap"), "overlap.json and overlap.md")
    parser.add_argument("--scenes", type=int, default=64)
    parser.add_argument("--objects", type=int, default=2, choices=(2, 3, 4))
    given = parser.parse_args(argv)
    torch.set_num_threads(given.threads)
    try:
        prepare_host(not torch.cuda.is_available())
        results = measure(given)
    except ValueError as error:
        complain(error)
        return 1
    settings = {key: str(value) for key, value in vars(given).items()}
    given.output.mkdir(parents=True, exist_ok=True)
    for name, text in (
        ("overlap.json", json.dumps({"settings": settings, "results": results}, indent=1)),
        ("overlap.md", overlap.table(results) + "\n"),
    ):
        atomic_write(given.output / name, text)
    print(overlap.table(results))
    return 0


def measure(given: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """Results by noise level, then by method."""
    from ...miniature import comfy_bundle

    adapter, bundle = load_adapter(given.adapter), comfy_bundle.load(given.miniature)
    scenes, others = (_overlaps(given, adapter, bundle, seed) for seed in (arms.SEED_TEST, arms.SEED_TUNE))
    return {
        f"{level / 10:.0f} %": {name: overlap.summary(each, others[level][name]) for name, each in methods.items()}
        for level, methods in scenes.items()
    }


def _overlaps(
    given: argparse.Namespace, adapter: Adapter, bundle: tuple, seed: int
) -> dict[int, dict[str, list[dict[str, Tensor]]]]:
    """The overlaps of every scene of a seed, by noise level and method."""
    from ...patching.apply import apply_references

    model, clip, vae, vision = bundle
    trials = arms.make_trials(given.scenes, given.objects, seed)
    drawn = world.render(trials.scenes)
    found: dict[int, dict[str, list]] = {level: defaultdict(list) for level in LEVELS}
    random = torch.Generator().manual_seed(seed)
    for trial in range(len(trials)):
        texts, silhouettes = trials.texts(trial), drawn.masks[trial, : given.objects]
        latent = vae.encode(drawn.images[trial].movedim(0, -1)[None])
        noise = torch.randn(latent.shape, generator=torch.Generator().manual_seed(trials.seeds[trial]))
        positive = conditioning(clip, trials.prompts[trial])
        pictures = trials.references[trial].movedim(1, -1)
        references = tuple(make_reference(p[None], text) for p, text in zip(pictures, texts, strict=True))
        relevance, attention = RelevanceRecord(texts), RelevanceRecord(texts)
        patched = apply_references(
            model, clip, vision, adapter, references, scale=given.scale, merge=MERGE, record=relevance
        )
        words = [_positions(clip, trials.prompts[trial], text) for text in texts]
        for level in LEVELS:
            look(patched, latent, noise, level, positive)
            with _text_attention(model, words) as seen:
                look(model, latent, noise, level, positive)
            attention.add(RunId(seen, 1), level, torch.zeros(1, dtype=torch.long, device=model.load_device), 1, seen)
            finest = relevance.resolutions[-1]
            maps = {
                f"{name}, {_sides(size)}": record.shares(size)[:, 0]
                for name, record in ((RELEVANCE, relevance), (TEXT, attention))
                for size in (None, *record.resolutions)
            }
            maps[CHANCE] = _shares(torch.rand(len(texts), *finest, generator=random))
            maps[TRUTH] = _shares(F.adaptive_avg_pool2d(silhouettes, finest))
            for method, each in maps.items():
                found[level][method].append(overlap.overlaps(each, silhouettes))
        print(f"\r{trial + 1} of {len(trials)} scenes", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    return found


def _shares(maps: Tensor) -> Tensor:
    """The merge's shares of any maps [M, h, w] taken as relevance."""
    return shares(F.normalize(maps.flatten(1), p=1, dim=1), MERGE).view_as(maps)


def _positions(clip: Any, prompt: str, text: str) -> list[int]:
    """The positions of the object's tokens in the prompt. Raises ValueError if the prompt does not name it."""
    numbers = [[token for token, *_ in clip.tokenize(words)["l"][0]] for words in (prompt, text)]
    whole, end = numbers[0], numbers[1][-1]
    content = numbers[1][1 : numbers[1].index(end, 1)]
    for start in range(len(whole)):
        if whole[start : start + len(content)] == content:
            return list(range(start, start + len(content)))
    raise ValueError(f"The prompt “{prompt}” does not name “{text}”.")


@contextmanager
def _text_attention(model: Any, words: list[list[int]]) -> Iterator[list[Observation]]:
    """Collects every cross-attention to the objects' words as shares: the mean over heads and tokens."""
    from ...weights.sites import cross_attentions

    seen: list[Observation] = []

    def keep(module: Any, inputs: tuple, more: dict) -> None:
        q = module.to_q(inputs[0]).unflatten(-1, (module.heads, -1)).transpose(1, 2)[0].float()  # [h, N, d]
        k = module.to_k(more["context"]).unflatten(-1, (module.heads, -1)).transpose(1, 2)[0].float()  # [h, L, d]
        attention = (q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5).softmax(-1).mean(0)  # [N, L]
        side = round(len(attention) ** 0.5)
        maps = torch.stack([attention[:, each].mean(1) for each in words]).unflatten(1, (side, side))
        seen.append(Observation(_shares(maps).unsqueeze(1), None, (side, side), (0, 0), len(words)))

    modules = cross_attentions(model.model.diffusion_model).values()
    handles = [module.register_forward_pre_hook(keep, with_kwargs=True) for module in modules]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def _sides(size: tuple[int, int] | None) -> str:
    return "all sites" if size is None else f"{size[1]}×{size[0]}"
