"""The recipe: every setting of a training. The defaults are the paper's, taken from its official script."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args, get_origin, get_type_hints

from ..attention.options import Gated, Normalization
from .filters import Filters

Trained = Literal["adapter", "head", "all"]
Merged = Literal["relevance", "uniform", "sum"]
Timesteps = Literal["uniform", "cubic"]
HeadStart = Literal["random", "zeros"]
Latents = Literal["sampled", "mean"]
CropHolds = Literal["all", "used"]
Precision = Literal["auto", "bf16", "fp16", "fp32"]


@dataclass(frozen=True)
class TrainConfig:
    """The settings; described are those that need a word.

    batch_size: pictures of one process in one forward pass.
    accumulate: forward passes of one step, which so sees batch_size × accumulate × processes pictures.
    matrix_rate: learning rate of Muon, which then steps the matrices, and AdamW only the rest; 0: AdamW for all.
    warmup: steps in which the rate rises.
    clip_norm: largest norm of the gradient; 0: no clipping.
    min_snr: γ of min-SNR weighting, 0 for none.
    background: how much the loss counts what lies outside the objects, beside 1 within them (masked loss): below 1 an
        adapter learns looks sooner and draws objects too eagerly; 1 is the paper's.
    ema: decay of an average over the steps that is saved instead, 0 for none; where training starts from is no part
        of it.
    train: "adapter" is to_k_ip, to_v_ip and the fusion head, "head" the head alone, "all" the image projection too.
    merge: how objects are merged while training.
    normalization: of "relevance", "sum" (official code: the shares of a place add up to 1) or "mean" (the paper's
        A_i / mean A: they add up to the number of objects).
    gate: where the fusion head acts, "off" for an adapter without one.
    head_start: a head that the starting adapter lacks begins with "random" weights, uniform in ±1/√C as torch's linear
        layers do (official), or with "zeros", which gate nothing.
    min_objects, max_objects: objects a picture may have.
    resolution: side of the training pictures in pixels.
    crop_holds: a picture's square crop holds "all" boxes of the picture, also of objects that the filters leave out
        (official), or those of the "used" objects; the middle of the picture where they do not fit.
    latents: "sampled" from the VAE's posterior (official), or its "mean".
    noise_offset: strength of one more noise, the same at all places of a channel; 0 for none.
    timesteps: which of them a step sees, all alike or "cubic" (arXiv 2302.08453): more often those of much noise,
        where looks are decided.
    drop_text, drop_image, drop_both: how often the caption, the references or both are left out, for guidance.
    flip: how often a reference is mirrored.
    checkpointing: activations are computed again for the backward pass, which saves memory.
    workers: processes that read pictures.
    save_every, validate_every: steps between checkpoints, and between validation pictures; 0: none.
    keep: how many checkpoints stay.
    """

    steps: int = 12_000
    batch_size: int = 4
    accumulate: int = 1
    learning_rate: float = 1e-4
    matrix_rate: float = 0.0
    weight_decay: float = 0.01
    warmup: int = 0
    clip_norm: float = 0.0
    min_snr: float = 0.0
    background: float = 1.0
    ema: float = 0.0
    seed: int = 0
    train: Trained = "adapter"
    merge: Merged = "relevance"
    normalization: Normalization = "sum"
    gate: Gated = "image"
    head_start: HeadStart = "random"
    min_objects: int = 2
    max_objects: int = 2
    resolution: int = 512
    crop_holds: CropHolds = "all"
    latents: Latents = "sampled"
    noise_offset: float = 0.0
    timesteps: Timesteps = "uniform"
    drop_text: float = 0.05
    drop_image: float = 0.05
    drop_both: float = 0.05
    flip: float = 0.5
    precision: Precision = "auto"
    checkpointing: bool = True
    workers: int = 4
    save_every: int = 500
    keep: int = 2
    validate_every: int = 0
    filters: Filters = field(default_factory=Filters)

    def __post_init__(self) -> None:
        hints = get_type_hints(type(self))
        for each, hint in hints.items():
            if (allowed := get_args(hint)) and getattr(self, each) not in allowed:
                raise ValueError(f"{each} is {getattr(self, each)!r}; choose one of {', '.join(allowed)}.")
        for each in ("steps", "batch_size", "accumulate", "min_objects", "keep"):
            if getattr(self, each) < 1:
                raise ValueError(f"{each} is {getattr(self, each)}; it must be 1 or more.")
        for each in (
            "weight_decay",
            "matrix_rate",
            "warmup",
            "clip_norm",
            "min_snr",
            "noise_offset",
            "workers",
            "save_every",
            "validate_every",
        ):
            if not getattr(self, each) >= 0:
                raise ValueError(f"{each} is {getattr(self, each)}; it must be 0 or more.")
        if not self.learning_rate > 0:
            raise ValueError(f"learning_rate is {self.learning_rate}; it must be above 0 (the paper's is 1e-4).")
        if not 0 <= self.ema < 1:
            raise ValueError(f"ema is {self.ema}; it must be 0 (off) or a decay below 1, such as 0.999.")
        if not 0 < self.background <= 1:
            raise ValueError(f"background is {self.background}; it must be above 0, and at most 1 (the paper's).")
        drops = (self.drop_text, self.drop_image, self.drop_both)
        if min(drops) < 0 or sum(drops) > 1:
            said = ", ".join(f"{each:g}" for each in drops)
            raise ValueError(
                f"drop_text, drop_image, drop_both are {said}; expected 0 or more each, together at most 1."
            )
        if not 0 <= self.flip <= 1:
            raise ValueError(f"flip is {self.flip}; it must be from 0 (never) to 1 (always).")
        if self.max_objects < self.min_objects:
            raise ValueError(f"max_objects is {self.max_objects}, below min_objects {self.min_objects}; raise it.")
        if self.resolution % 64 or self.resolution < 64:
            raise ValueError(f"resolution is {self.resolution}; it must be a multiple of 64 (the paper's is 512).")
        if self.train == "head" and self.gate == "off":
            raise ValueError("There is nothing to train: train is “head” and gate is “off”. Set gate to “image”.")

    def as_dict(self) -> dict[str, Any]:
        """Plain values, nested for the filters."""
        return dataclasses.asdict(self)


# Settings that may change when a run is resumed: none alters the steps already made, or how the next are computed.
RESUMABLE = {"steps", "workers", "save_every", "keep", "validate_every"}


def read_table(kind: type[Any], table: Any, where: str) -> Any:
    """A frozen dataclass of type `kind` from a table of a TOML file. Raises ValueError for unknown names and wrong
    types.

    where: the table's name in error messages.
    """
    if not isinstance(table, Mapping):
        raise ValueError(f"{where} is {table!r}, a {type(table).__name__}; expected a table of settings.")
    hints, known = get_type_hints(kind), {each.name for each in dataclasses.fields(kind)}
    if unknown := sorted(set(table) - known):
        raise ValueError(f"{where} has no setting {', '.join(unknown)}; it knows {', '.join(sorted(known))}.")
    return kind(**{name: _read(hints[name], value, f"{where}.{name}") for name, value in table.items()})


def _read(wanted: Any, value: Any, where: str) -> Any:
    """A value checked against the type of its setting. The dataclass itself checks the choices."""
    if dataclasses.is_dataclass(wanted) and isinstance(wanted, type):
        return read_table(wanted, value, where)
    got = type(value).__name__
    if get_origin(wanted) is tuple:
        item = get_args(wanted)[0]
        if not isinstance(value, list):
            name = where.rpartition(".")[2]
            form = f"a table below [[{name}]] for each" if dataclasses.is_dataclass(item) else 'a list, such as ["…"]'
            raise ValueError(f"{where} is {value!r}, a {got}; expected {form}.")
        return tuple(_read(item, each, where) for each in value)
    if wanted is float and type(value) is int:
        value = float(value)
    if wanted in (int, float, bool, str) and type(value) is not wanted:
        raise ValueError(f"{where} is {value!r}, a {got}; expected a {wanted.__name__}.")
    return value
