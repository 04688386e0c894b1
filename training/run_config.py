"""A training run as a TOML file: the model, the data, the recipe and the output. See example.toml."""

from __future__ import annotations

from dataclasses import dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

from ..common.text_files import read_text
from ..weights.adapter import load_adapter
from .config import TrainConfig, read_table
from .data_folder import expanded
from .trainable import Fresh

MINIATURE = "miniature"  # value of base.checkpoint for the small model that comes with the pack


@dataclass(frozen=True)
class Base:
    """The base model's files.

    checkpoint: an SD1.5 or SDXL file, or MINIATURE.
    clip_vision: the image encoder; "" for an adapter that reads face embeddings.
    vae: replaces the checkpoint's own; "" to keep it.
    """

    checkpoint: str = ""
    clip_vision: str = ""
    vae: str = ""


class BaseModels(NamedTuple):
    """The base model's files as ComfyUI's objects: MODEL, CLIP, VAE, CLIP_VISION."""

    model: Any
    clip: Any
    vae: Any
    clip_vision: Any


@dataclass(frozen=True)
class Start:
    """The adapter to start from.

    file: an existing adapter.
    init: "unet" for a new one, made from the UNet's weights.
    tokens: image tokens of a new adapter.
    family: of a new adapter: "base" reads pictures, "faceid" face embeddings.
    """

    file: str = ""
    init: Literal["", "unet"] = ""
    tokens: int = 4
    family: Fresh = "base"

    @property
    def reads_pictures(self) -> bool:
        """Whether the adapter needs an image encoder."""
        if self.init:
            return self.family == "base"
        return not Path(self.file).is_file() or load_adapter(self.file).spec.reads_pictures


@dataclass(frozen=True)
class Output:
    folder: str = ""
    name: str = "trained"


@dataclass(frozen=True)
class Validation:
    """A picture that is sampled every `validate_every` steps.

    images, texts: its references.
    scale: of the adapter.
    side: in pixels.
    """

    prompt: str = ""
    images: tuple[str, ...] = ()
    texts: tuple[str, ...] = ()
    negative: str = ""
    seed: int = 0
    steps: int = 20
    cfg: float = 6.0
    scale: float = 0.75
    side: int = 1024


@dataclass(frozen=True)
class RunConfig:
    data: str = ""
    base: Base = field(default_factory=Base)
    start: Start = field(default_factory=Start)
    output: Output = field(default_factory=Output)
    recipe: TrainConfig = field(default_factory=TrainConfig)
    validation: tuple[Validation, ...] = ()


def read_run_config(file: Path) -> RunConfig:
    """A run from its TOML file. Paths are relative to the file.

    Raises ValueError, in one sentence, for missing, unknown or contradictory settings.
    """
    try:
        import tomllib
    except ImportError as error:
        raise ValueError("Training from a file needs Python 3.11 or newer.") from error
    try:
        table = tomllib.loads(read_text(file))
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{file} cannot be read as TOML: {error}.") from error
    run = _resolve(read_table(RunConfig, table, file.name), file.parent)
    _check(run, file.name)
    return run


def _check(run: RunConfig, name: str) -> None:
    miniature = run.base.checkpoint == MINIATURE
    needed = {"data": run.data, "base.checkpoint": run.base.checkpoint, "output.folder": run.output.folder}
    if not miniature and run.start.reads_pictures:
        needed["base.clip_vision"] = run.base.clip_vision
    if missing := [key for key, value in needed.items() if not value]:
        raise ValueError(f"{name} does not say {', '.join(missing)}; see training/example.toml.")
    if bool(run.start.file) == bool(run.start.init):
        raise ValueError(f"{name} must say either start.file (an adapter to train on) or start.init = “unet”.")
    if run.start.init and run.start.init != "unet":
        raise ValueError(f"start.init is “{run.start.init}”; the only choice is “unet”.")
    if run.start.family not in (families := get_args(Fresh)):
        raise ValueError(f"start.family is “{run.start.family}”; choose one of {', '.join(families)}.")
    if run.start.init and run.recipe.train != "all":
        raise ValueError("A fresh adapter's image projection must be trained too: set recipe.train to “all”.")
    files = [run.start.file, *(image for each in run.validation for image in each.images)]
    files += [run.base.clip_vision, run.base.vae] if miniature else [*vars(run.base).values()]
    if absent := [file for file in files if file and not Path(file).is_file()]:
        raise ValueError(f"{name} names files that do not exist: {', '.join(absent)}.")
    if any(len(each.images) != len(each.texts) for each in run.validation):
        raise ValueError(f"{name}: every validation picture needs as many texts as images.")


_PATHS = {"data", "checkpoint", "clip_vision", "vae", "file", "folder", "images"}


def _resolve(config: Any, folder: Path) -> Any:
    """A dataclass with its paths made absolute. base.checkpoint may be MINIATURE, which is not a path."""

    def path(text: str) -> str:
        return text and str((folder / expanded(text)).resolve())

    changes = {}
    for each in fields(config):
        value = getattr(config, each.name)
        if is_dataclass(value):
            changes[each.name] = _resolve(value, folder)
        elif each.name == "validation":
            changes[each.name] = tuple(_resolve(one, folder) for one in value)
        elif each.name in _PATHS and not (each.name == "checkpoint" and value == MINIATURE):
            changes[each.name] = path(value) if isinstance(value, str) else tuple(map(path, value))
    return replace(config, **changes)
