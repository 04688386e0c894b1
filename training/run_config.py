"""A training run as a TOML file: which model, which data, which recipe, where to. See example.toml."""

from __future__ import annotations

from dataclasses import dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, Literal

from .config import TrainConfig, read_table

MINIATURE = "miniature"  # as base.checkpoint: the small model that comes with the pack


@dataclass(frozen=True)
class Base:
    """checkpoint: an SD1.5 or SDXL file; vae: another one than the checkpoint's; clip_vision: the image encoder."""

    checkpoint: str = ""
    clip_vision: str = ""
    vae: str = ""


@dataclass(frozen=True)
class Start:
    """file: the adapter to train on; or init = "unet": a fresh one of the base family."""

    file: str = ""
    init: Literal["", "unet"] = ""
    tokens: int = 4


@dataclass(frozen=True)
class Output:
    folder: str = ""
    name: str = "trained"


@dataclass(frozen=True)
class Validation:
    """A picture that is made again every `validate_every` steps. images, texts: its references."""

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
    """Raises ValueError, one sentence, for what the file lacks or has too much. Paths are relative to the file."""
    try:
        import tomllib
    except ImportError as error:
        raise ValueError("Training from a file needs Python 3.11 or newer.") from error
    try:
        table = tomllib.loads(file.read_text("utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ValueError(f"{file} cannot be read as TOML: {error}.") from error
    job = _resolve(read_table(RunConfig, table, file.name), file.parent)
    _check(job, file.name)
    return job


def _check(job: RunConfig, name: str) -> None:
    miniature = job.base.checkpoint == MINIATURE
    needed = {"data": job.data, "base.checkpoint": job.base.checkpoint, "output.folder": job.output.folder}
    if not miniature:
        needed["base.clip_vision"] = job.base.clip_vision
    if missing := [key for key, value in needed.items() if not value]:
        raise ValueError(f"{name} does not say {', '.join(missing)}; see training/example.toml.")
    if bool(job.start.file) == bool(job.start.init):
        raise ValueError(f"{name} must say either start.file (an adapter to train on) or start.init = “unet”.")
    if job.start.init and job.start.init != "unet":
        raise ValueError(f"start.init is “{job.start.init}”; the only choice is “unet”.")
    if job.start.init and job.recipe.train != "all":
        raise ValueError("A fresh adapter's image projection must be trained too: set recipe.train to “all”.")
    files = [job.start.file, *(image for each in job.validation for image in each.images)]
    files += [job.base.clip_vision, job.base.vae] if miniature else [*vars(job.base).values()]
    if absent := [file for file in files if file and not Path(file).is_file()]:
        raise ValueError(f"{name} names files that do not exist: {', '.join(absent)}.")
    if any(len(each.images) != len(each.texts) for each in job.validation):
        raise ValueError(f"{name}: every validation picture needs as many texts as images.")


_PATHS = {"data", "checkpoint", "clip_vision", "vae", "file", "folder", "images"}


def _resolve(part: Any, folder: Path) -> Any:
    """The dataclass with its paths made absolute; base.checkpoint may be MINIATURE, which is none."""

    def path(text: str) -> str:
        return text and str((folder / Path(text).expanduser()).resolve())

    changes = {}
    for each in fields(part):
        value = getattr(part, each.name)
        if is_dataclass(value):
            changes[each.name] = _resolve(value, folder)
        elif each.name == "validation":
            changes[each.name] = tuple(_resolve(one, folder) for one in value)
        elif each.name in _PATHS and not (each.name == "checkpoint" and value == MINIATURE):
            changes[each.name] = path(value) if isinstance(value, str) else tuple(map(path, value))
    return replace(part, **changes)
