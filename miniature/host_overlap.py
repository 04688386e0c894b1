"""`python mip.py overlap`: do the relevance maps lie on the objects? Intersection over union with true silhouettes.

Drawn scenes are made noisy and shown to the UNet once, by the host's own sampler. The maps that MIP Apply records are
compared with the text attention alone (the softmax over the prompt's tokens, at the object's own word, of the model
without an adapter), with random maps, and with the silhouettes themselves at the finest maps' resolution.
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

from ..attention.options import Merge
from ..attention.record import RelevanceRecord
from ..attention.reference import make_reference
from ..training.host_cli import prepare_host
from ..weights.adapter import load_adapter
from . import arms, overlap, trained, world

LEVELS = (200, 400, 600, 800)  # of the 1000 noise levels
# The background competitor adds no owner; it makes the recorded shares fall where no text points.
MERGE = Merge(background=1.0)
RELEVANCE, TEXT, CHANCE, TRUTH = "relevance", "text attention", "chance", "the silhouettes at that resolution"


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="mip.py overlap", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path("output/overlap"), help="overlap.json and overlap.md")
    parser.add_argument("--adapter", type=Path, default=trained.file("mip", 0), help="the miniature's by default")
    parser.add_argument("--miniature", type=Path, default=trained.FOLDER, help="folder of the model's four files")
    parser.add_argument("--scenes", type=int, default=64)
    parser.add_argument("--objects", type=int, default=2, choices=(2, 3, 4))
    parser.add_argument("--scale", type=float, default=0.75)
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args(argv)
    torch.set_num_threads(given.threads)
    try:
        prepare_host(not torch.cuda.is_available())
        results = measure(given)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 1
    settings = {key: str(value) for key, value in vars(given).items()}
    given.output.mkdir(parents=True, exist_ok=True)
    for name, text in (
        ("overlap.json", json.dumps({"settings": settings, "results": results}, indent=1)),
        ("overlap.md", overlap.table(results) + "\n"),
    ):
        part = given.output / f"{name}.part"
        part.write_text(text, "utf-8")
        part.replace(given.output / name)
    print(overlap.table(results))
    return 0


@torch.inference_mode()
def measure(given: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """By noise level, then by method."""
    from ..attention.host_apply import apply_references
    from . import host_bundle

    adapter = load_adapter(given.adapter)
    model, clip, vae, vision = host_bundle.load(given.miniature)
    trials = arms.make_trials(given.scenes, given.objects, arms.SEED_TEST)
    drawn = world.render(trials.scenes)
    found: dict[int, dict[str, list]] = {level: defaultdict(list) for level in LEVELS}
    random = torch.Generator().manual_seed(0)
    for trial in range(len(trials)):
        texts, masks = trials.texts(trial), drawn.masks[trial, : given.objects]
        latent = vae.encode(drawn.images[trial].movedim(0, -1)[None])
        noise = torch.randn(latent.shape, generator=torch.Generator().manual_seed(trials.seeds[trial]))
        positive = _conditioning(clip, trials.prompts[trial])
        pictures = trials.references[trial].movedim(1, -1)
        references = tuple(make_reference(p[None], text) for p, text in zip(pictures, texts, strict=True))
        record = RelevanceRecord(texts)
        patched = apply_references(
            model, clip, vision, adapter, references, scale=given.scale, merge=MERGE, record=record
        )
        words = [_positions(clip, trials.prompts[trial], text) for text in texts]
        for level in LEVELS:
            _look(patched, latent, noise, level, positive)
            with _text_attention(model, words) as seen:
                _look(model, latent, noise, level, positive)
            maps = {f"{RELEVANCE}, {_sides(size)}": record.shares(size)[:, 0] for size in (None, *record.resolutions)}
            maps |= {f"{TEXT}, {_sides(size)}": each for size, each in _means(seen).items()}
            finest = record.resolutions[-1]
            maps[CHANCE] = torch.rand(len(texts), *finest, generator=random)
            maps[TRUTH] = F.adaptive_avg_pool2d(masks, finest)
            for method, each in maps.items():
                found[level][method].append(overlap.overlaps(each, masks))
        print(f"\r{trial + 1} of {len(trials)} scenes", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    return {
        f"{level / 10:.0f} %": {name: overlap.summary(scenes) for name, scenes in methods.items()}
        for level, methods in found.items()
    }


def _conditioning(clip: Any, text: str) -> list:
    context, pooled = clip.encode_from_tokens(clip.tokenize(text), return_pooled=True)
    return [[context, {"pooled_output": pooled}]]


def _look(model: Any, latent: Tensor, noise: Tensor, level: int, positive: list) -> None:
    """One call of the UNet, on the latent at a noise level, through the host's sampler without guidance."""
    import comfy.sample
    import comfy.samplers

    sigma = model.get_model_object("model_sampling").sigmas[level]
    sampler = comfy.samplers.sampler_object("euler")
    sigmas = torch.stack([sigma, torch.zeros_like(sigma)])
    comfy.sample.sample_custom(model, noise, 1.0, sampler, sigmas, positive, positive, latent, disable_pbar=True)


def _positions(clip: Any, prompt: str, text: str) -> list[int]:
    """Where the prompt's tokens name the object."""
    numbers = [[token for token, *_ in clip.tokenize(words)["l"][0]] for words in (prompt, text)]
    whole, end = numbers[0], numbers[1][-1]
    content = numbers[1][1 : numbers[1].index(end, 1)]
    for start in range(len(whole)):
        if whole[start : start + len(content)] == content:
            return list(range(start, start + len(content)))
    raise ValueError(f"The prompt “{prompt}” does not name “{text}”.")


@contextmanager
def _text_attention(model: Any, words: list[list[int]]) -> Iterator[list[Tensor]]:
    """Collects, for each cross-attention, the attention to the objects' words: [M, N], mean over heads and tokens."""
    from ..weights.sites import cross_attentions

    seen: list[Tensor] = []

    def keep(module: Any, inputs: tuple, more: dict) -> None:
        q = module.to_q(inputs[0]).unflatten(-1, (module.heads, -1)).transpose(1, 2)[0].float()  # [h, N, d]
        k = module.to_k(more["context"]).unflatten(-1, (module.heads, -1)).transpose(1, 2)[0].float()  # [h, L, d]
        attention = (q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5).softmax(-1).mean(0)  # [N, L]
        seen.append(torch.stack([attention[:, each].mean(1) for each in words]))

    modules = cross_attentions(model.model.diffusion_model).values()
    handles = [module.register_forward_pre_hook(keep, with_kwargs=True) for module in modules]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def _means(seen: list[Tensor]) -> dict[tuple[int, int] | None, Tensor]:
    """[M, h, w] for each resolution of square maps, and their mean at the finest's size under None."""
    groups = defaultdict(list)
    for each in seen:
        side = round(each.shape[-1] ** 0.5)
        groups[side, side].append(each.unflatten(-1, (side, side)))
    means = {size: torch.stack(each).mean(0) for size, each in sorted(groups.items())}
    finest = max(means)
    grown = [F.interpolate(m[None], size=finest, mode="bilinear", align_corners=False)[0] for m in means.values()]
    return {None: torch.stack(grown).mean(0), **means}


def _sides(size: tuple[int, int] | None) -> str:
    return "all sites" if size is None else f"{size[1]}×{size[0]}"
