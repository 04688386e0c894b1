"""`python mip.py sites`: which cross-attentions know where the objects are, and what does the pool make of them?

Noise is added to drawn scenes, and the UNet sees each once, called by ComfyUI's own sampler, without any adapter: the
relevance is the base's own affair. At every site the relevance of the objects' texts is compared with the silhouettes.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...attention.relevance import raw_relevance
from ...attention.shared_text import averages
from ...common.atomic_io import atomic_file, atomic_write
from ...common.bundled import MINIATURE
from ...common.comfy_path import prepare_host
from ...common.console import complain
from ...miniature import world
from ..ablation import arms
from . import sites
from .comfy_noisy import conditioning, look

LEVELS = (200, 400, 600, 800, 950)  # out of 1000 noise levels


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="mip.py sites", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path("output/sites"), help="sites.json, sites.md and sites.png")
    parser.add_argument("--miniature", type=Path, default=MINIATURE, help="folder of the model's four files")
    parser.add_argument("--scenes", type=int, default=64)
    parser.add_argument("--objects", type=int, default=2, choices=(2, 3, 4))
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args(argv)
    torch.set_num_threads(given.threads)
    try:
        prepare_host(not torch.cuda.is_available())
        results = measure(given.miniature, given.scenes, given.objects)
    except ValueError as error:
        complain(error)
        return 1
    given.output.mkdir(parents=True, exist_ok=True)
    settings = {key: str(value) for key, value in vars(given).items()}
    atomic_write(given.output / "sites.json", json.dumps({"settings": settings, "results": results}, indent=1))
    atomic_write(given.output / "sites.md", sites.table(results) + "\n")
    with atomic_file(given.output / "sites.png") as temporary:
        draw(results, temporary)
    print(sites.table(results))
    return 0


@torch.no_grad()
def measure(miniature: Path, count: int, objects: int) -> dict[str, dict[str, dict[str, tuple[float, float]]]]:
    """Results by noise level, site and field of `Placement`."""
    from ...miniature import comfy_bundle
    from ...patching.object_text import content_tokens
    from ...weights.sites import cross_attentions

    model, clip, vae, _ = comfy_bundle.load(miniature)
    attentions = cross_attentions(model.model.diffusion_model)
    trials = arms.make_trials(count, objects, arms.SEED_TEST)
    drawn = world.render(trials.scenes)
    found: dict[int, list] = {level: [] for level in LEVELS}
    for trial in range(count):
        latent = vae.encode(drawn.images[trial].movedim(0, -1)[None])
        noise = torch.randn(latent.shape, generator=torch.Generator().manual_seed(trials.seeds[trial]))
        positive = conditioning(clip, trials.prompts[trial])
        texts = [content_tokens(clip, text) for text in trials.texts(trial)]
        surest = None
        for level in reversed(LEVELS):  # as in sampling, the surest sites are chosen while there is more noise
            with _relevance(attentions, texts) as seen:
                look(model, latent, noise, level, positive)
            placements, surest = sites.placements(seen, drawn.masks[trial, :objects], surest)
            found[level].append(placements)
        print(f"\r{trial + 1} of {count} scenes", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    return {f"{level / 10:.0f} %": sites.summary(scenes) for level, scenes in found.items()}


@contextmanager
def _relevance(attentions: dict, texts: list[Tensor]) -> Iterator[dict[str, Tensor]]:
    """Collects the relevance [M, h, w] of the texts at every cross-attention, by its name, in the UNet's order."""
    seen: dict[str, Tensor] = {}
    lengths = [len(text) for text in texts]

    def keep(key: tuple, module: Any, inputs: tuple) -> None:
        q = module.to_q(inputs[0]).unflatten(-1, (module.heads, -1))[0].permute(1, 2, 0).float()  # [h, d, N]
        k = module.to_k(torch.cat(texts)).unflatten(-1, (module.heads, -1)).transpose(0, 1).float()  # [h, L, d]
        side = round(q.shape[-1] ** 0.5)
        relevance = raw_relevance(q, k * q.shape[1] ** -0.5, averages(lengths, module.heads), rows=1)
        seen[f"{key[0]} {key[1]}, {side}×{side}"] = relevance[:, 0].unflatten(-1, (side, side))

    handles = [
        module.register_forward_pre_hook(lambda module, inputs, key=key: keep(key, module, inputs))
        for key, module in attentions.items()
    ]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def draw(results: dict[str, dict[str, dict[str, tuple[float, float]]]], file: Path) -> None:
    """Write the figure: an object's own share over the noise level, a line for each site and one for the pool."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.2, 4.2), dpi=150, layout="constrained")
    axes = figure.add_subplot()
    levels = list(results)
    names = list(results[levels[0]])
    sides = sorted({name.rsplit(", ", 1)[1] for name in names if name not in sites.POOLS}, key=_side)
    colours = dict(zip(sides, ("#4c78a8", "#54a24b", "#b279a2"), strict=False))
    labelled = set()
    for name in names:
        means = [100 * results[level][name]["own"][0] for level in levels]
        if name == sites.POOL:
            axes.plot(levels, means, color="#e45756", linewidth=3, label="pool")
        if name in sites.POOLS:
            continue
        side = name.rsplit(", ", 1)[1]
        label = None if side in labelled else f"a site of {side}"
        labelled.add(side)
        axes.plot(levels, means, color=colours[side], linewidth=1.2, alpha=0.8, label=label)
    axes.set_xlabel("noise level")
    axes.set_ylabel("an object's share at its own positions, %")
    axes.set_ylim(top=100)
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    figure.savefig(file, format="png")


def _side(size: str) -> int:
    return int(size.partition("×")[0])
