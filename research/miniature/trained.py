"""The miniature's trained adapters: which there are, how each is trained, where their files lie."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from ...common.bundled import MINIATURE
from ...training.config import TrainConfig
from ...training.filters import Filters

RESEARCH = Path(__file__).resolve().parents[1]
LISTED, OTHERS = "adapters", "arms"  # below an export: what Load MIP Adapter shows, and what only the ablation reads
SEEDS = (0, 1, 2)


class Kind(NamedTuple):
    """start: the adapter that it goes on from, of the same seed; None for a fresh one. listed: whether the first seed's
    file is shown to artists, by this name."""

    start: str | None
    recipe: TrainConfig
    listed: str = ""


# 64 drawn scenes a step, every object with a reference in another pose. Beside that the paper's recipe, by Muon and at
# a higher rate for so small a model, with a running mean, and mostly at noise levels that still hide the colours:
# latents so small show them early. Objects cover a seventh of a scene: the ground counts less. What was added to
# recipes since stands as it was before, so that a training gives the same adapters again. All that differs from the
# paper's recipe: docs/training-recipe.md.
_ALL = TrainConfig(
    steps=700, batch_size=64, learning_rate=3e-3, matrix_rate=2e-2, warmup=50, clip_norm=1.0, ema=0.998,
    background=0.3, timesteps="cubic", flip=0.0, resolution=128, checkpointing=False, workers=0, save_every=250, keep=1,
    head_start="zeros", crop_holds="used", latents="mean", filters=Filters(cropped_aspect="w/h"),
)  # fmt: skip
_ONE = replace(_ALL, train="all", merge="uniform", gate="off", min_objects=1, max_objects=1)
_TWO = replace(_ALL, train="adapter", merge="relevance", gate="image")

KINDS = {
    "stock": Kind(None, _ONE, "miniature_stock"),  # has never seen two references
    "mip": Kind("stock", _TWO, "miniature_mip"),
    "uniform-trained": Kind("stock", replace(_TWO, merge="uniform")),  # the control: all but the merge as with mip
    # The other control: all but the second object. With one alone every merge is the same.
    "one-object-trained": Kind("stock", replace(_TWO, min_objects=1, max_objects=1)),
    "head-only": Kind("stock", replace(_TWO, train="head", steps=300, learning_rate=1e-2)),
    "stock-plus": Kind(None, _ONE, "miniature_stock_plus"),
    "mip-plus": Kind("stock-plus", _TWO, "miniature_mip_plus"),
}


def file(kind: str, seed: int, folder: Path | None = None) -> Path:
    """Where the adapter of a kind and training seed lies, or would lie: in the repository, or below an export."""
    if KINDS[kind].listed and seed == 0:
        return (folder or MINIATURE) / LISTED / f"{KINDS[kind].listed}.safetensors"
    others = RESEARCH / "ablation" / "weights" if folder is None else folder / OTHERS
    return others / f"{kind}-{seed}.safetensors"


def logs(folder: Path | None = None) -> Path:
    """Where losses, digests and the gate's result of the trainings lie: in the repository, or below an export."""
    return (RESEARCH / "miniature" if folder is None else folder) / "checkpoints"


def seeds(kind: str, folder: Path | None = None) -> tuple[int, ...]:
    """The training seeds of which there are files."""
    return tuple(seed for seed in SEEDS if file(kind, seed, folder).is_file())
