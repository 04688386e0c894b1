"""For the tests of training: a small folder of training data, and a frozen model in a few lines of plain torch."""

from __future__ import annotations

import json
import random
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

WORDS = ("cube", "ball", "star", "ring", "cone", "leaf")
CONTEXT, EMBED, WIDTH, HEADS = 12, 9, 16, 2


def write_folder(folder: Path, count: int = 8, size: tuple[int, int] = (96, 80), objects: int = 2) -> Path:
    """Write `count` pictures with coloured rectangles side by side, in the training-data layout."""
    rng = random.Random(0)
    for part in ("images", "masks", "jsons"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    for number in range(count):
        picture = np.full((size[1], size[0], 3), rng.randrange(180, 250), np.uint8)
        mask = np.zeros((size[1], size[0]), np.uint8)
        labels, entries = rng.sample(WORDS, objects), [{"value": 0, "label": "background"}]
        step = size[0] // objects
        for i, label in enumerate(labels):
            box = (step * i + 6, rng.randrange(6, 14), step * (i + 1) - 6, size[1] - rng.randrange(6, 14))
            picture[box[1] : box[3], box[0] : box[2]] = [rng.randrange(256) for _ in range(3)]
            mask[box[1] : box[3], box[0] + 1 : box[2]] = i + 1
            entries.append({"value": i + 1, "label": label, "box": list(box), "logit": 0.9 - 0.1 * i})
        text = "a " + " and a ".join(labels)
        data = {"text": text, "original_size": [size[0] * 2, size[1] * 2], "final_masks": entries}
        Image.fromarray(picture).save(folder / "images" / f"{number:03}.png")
        Image.fromarray(mask).save(folder / "masks" / f"{number:03}.png")
        (folder / "jsons" / f"{number:03}.json").write_text(json.dumps(data))
    return folder


def edit_json(folder: Path, number: int, **changes) -> None:
    """Change entries of a picture's json."""
    path = folder / "jsons" / f"{number:03}.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def small_recipe(**changes):
    """A recipe of a few small steps."""
    from mip_adapter.training.config import TrainConfig

    settings = {"steps": 4, "batch_size": 2, "resolution": 64, "workers": 0, "learning_rate": 1e-2, "save_every": 0}
    return TrainConfig(**{**settings, **changes})


# What trainings did before there were settings for it.
BEFORE: dict[str, Any] = {"head_start": "zeros", "crop_holds": "used", "latents": "mean"}
LATER = (*BEFORE, "normalization", "noise_offset")


def make_early(folder: Path) -> None:
    """A run's checkpoints, as they were written before these settings existed."""
    for path in (folder / "checkpoints").glob("step-*.pt"):
        state = torch.load(path)
        for name in LATER:
            del state["recipe"][name]
        del state["recipe"]["filters"]["cropped_aspect"]
        torch.save(state, path)


def small_adapter(sites: tuple[tuple[int, int], ...] = ((1, WIDTH), (3, WIDTH)), head: bool = False):
    """A base-family adapter for the plain model below, or for other sites (number, width)."""
    from mip_adapter.weights.adapter import build_adapter

    shapes = {
        "image_proj.proj.weight": (4 * CONTEXT, EMBED), "image_proj.proj.bias": (4 * CONTEXT,),
        "image_proj.norm.weight": (CONTEXT,), "image_proj.norm.bias": (CONTEXT,),
    }  # fmt: skip
    for number, width in sites:
        shapes |= {f"ip_adapter.{number}.to_{part}_ip.weight": (width, CONTEXT) for part in "kv"}
        if head:
            shapes[f"ip_adapter.{number}.text_to_weight.weight"] = (1, width)
    return build_adapter({key: normal(key, *shape) for key, shape in shapes.items()}, "small adapter")


def normal(name: str, *shape: int, std: float = 0.3) -> Tensor:
    """Normal numbers that depend on the name and the shape alone."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(zlib.crc32(name.encode()))) * std


class PlainModel:
    """A `FrozenModel` with two cross-attentions."""

    prediction = "eps"
    device, dtype = torch.device("cpu"), torch.float32

    def __init__(self) -> None:
        from mip_adapter.weights.sites import Site

        self.alphas = torch.linspace(0.999, 0.01, 50)
        self.sites = tuple(Site(("input", i, 0), 2 * i + 1, WIDTH, HEADS, CONTEXT) for i in range(2))
        names = [f"{number}.{part}" for number in (1, 3) for part in ("to_k", "to_v")]
        self.weights = {name: normal(name, WIDTH, CONTEXT) for name in names}
        self.weights |= {"in": normal("in", WIDTH, 4), "out": normal("out", 4, WIDTH)}
        self.weights |= {f"{number}.to_q": normal(f"{number}.to_q", WIDTH, WIDTH) for number in (1, 3)}
        self.seen: list[str] = []

    def encode(self, samples, adapter):
        from mip_adapter.training.objective import Batch

        self.seen += [sample.id for sample in samples]
        references = torch.cat([sample.references * (not sample.drop_image) for sample in samples])
        return Batch(
            ids=tuple(sample.id for sample in samples),
            indices=tuple(sample.index for sample in samples),
            latents=torch.stack([F.adaptive_avg_pool2d(s.image, 8)[[0, 1, 2, 0]] * 2 - 1 for s in samples]),
            context=torch.stack([normal("" if s.drop_text else s.caption, 5, CONTEXT, std=1) for s in samples]),
            vector=None,
            features=F.adaptive_avg_pool2d(references.mean(1), 3).flatten(1),
            texts=tuple(tuple(normal(name, 1 + len(name) % 2, CONTEXT, std=1) for name in s.names) for s in samples),
            mask=torch.stack([F.adaptive_avg_pool2d(s.mask[None], 8)[0] for s in samples]),
        )

    def predict(self, noisy, steps, batch, merging):
        x = noisy.flatten(2).transpose(1, 2) @ self.weights["in"].T  # [B, N, C]
        x = x + steps.view(-1, 1, 1) / len(self.alphas)
        for number in (1, 3):
            q = x @ self.weights[f"{number}.to_q"].T
            k, v = (batch.context @ self.weights[f"{number}.{part}"].T for part in ("to_k", "to_v"))
            split = [part.unflatten(-1, (HEADS, -1)).transpose(1, 2) for part in (q, k, v)]
            text = F.scaled_dot_product_attention(*split).transpose(1, 2).flatten(2)
            to_k = lambda y, number=number: y @ self.weights[f"{number}.to_k"].T  # noqa: E731
            x = x + merging(number, HEADS, text, q, to_k)
        return (x @ self.weights["out"].T).transpose(1, 2).unflatten(2, noisy.shape[2:])
