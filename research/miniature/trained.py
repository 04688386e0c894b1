"""The miniature's trained adapters: their kinds, how each is trained, and where their files lie."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from ...common.bundled import MINIATURE
from ...training.config import TrainConfig
from ...training.filters import Filters

RESEARCH = Path(__file__).resolve().parents[1]
LISTED, OTHERS = "adapters", "arms"  # folders of an export: for Load MIP Adapter, and for the ablation alone
SEEDS = (0, 1, 2)


class Kind(NamedTuple):
    """One kind of adapter.

    start: the kind whose adapter of the same seed it starts from; None for a new adapter.
    recipe: how it is trained.
    listed: the name under which the first seed's file is shown to users; "" if it is not.
    """

    start: str | None
    recipe: TrainConfig
    listed: str = ""


# 64 drawn scenes a step, every object with a reference in another pose. Beside that the paper's recipe, by Muon and at
# a higher rate for so small a model, with a running mean, and mostly at noise levels that still hide the colours:
# latents so small show them early. Objects cover a seventh of a scene: the ground counts less. What was added to
# recipes since stands as it was before, so that a training gives the same adapters again. All that differs from the
# paper's recipe: docs/training-recipe.md.
ALL = TrainConfig(
    steps=700, batch_size=64, learning_rate=3e-3, matrix_rate=2e-2, warmup=50, clip_norm=1.0, ema=0.998,
    background=0.3, timesteps="cubic", flip=0.0, resolution=128, checkpointing=False, workers=0, save_every=250, keep=1,
    head_start="zeros", crop_holds="used", latents="mean", filters=Filters(cropped_aspect="w/h"),
)  # fmt: skip
_ONE = replace(ALL, train="all", merge="uniform", gate="off", min_objects=1, max_objects=1)
_TWO = replace(ALL, train="adapter", merge="relevance", gate="image")

KINDS = {
    "stock": Kind(None, _ONE, "miniature_stock"),  # never sees two references
    "mip": Kind("stock", _TWO, "miniature_mip"),
    "uniform-trained": Kind("stock", replace(_TWO, merge="uniform")),  # a control: like mip, except for the merge
    # The other control: like mip, without the second object. With one object every merge is the same.
    "one-object-trained": Kind("stock", replace(_TWO, min_objects=1, max_objects=1)),
    "head-only": Kind("stock", replace(_TWO, train="head", steps=300, learning_rate=1e-2)),
    "stock-plus": Kind(None, _ONE, "miniature_stock_plus"),
    "mip-plus": Kind("stock-plus", _TWO, "miniature_mip_plus"),
}


def file(kind: str, seed: int, folder: Path | None = None) -> Path:
    """The path of an adapter by kind and training seed, whether it exists or not. folder: an export; None: the
    repository.
    """
    if KINDS[kind].listed and seed == 0:
        return (folder or MINIATURE) / LISTED / f"{KINDS[kind].listed}.safetensors"
    others = RESEARCH / "ablation" / "weights" if folder is None else folder / OTHERS
    return others / f"{kind}-{seed}.safetensors"


def logs(folder: Path | None = None) -> Path:
    """The folder of the losses, digests and gate results of the trainings. folder: an export; None: the repository."""
    return (RESEARCH / "miniature" if folder is None else folder) / "checkpoints"


def seeds(kind: str, folder: Path | None = None) -> tuple[int, ...]:
    """The training seeds whose files exist."""
    return tuple(seed for seed in SEEDS if file(kind, seed, folder).is_file())
