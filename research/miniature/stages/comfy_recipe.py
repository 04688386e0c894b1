"""What each stage needs: opens checkpoints, builds models, trains, runs the gate and exports."""

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from safetensors.torch import load_file
from torch import nn

from ....common.bundled import MINIATURE
from ....common.hashing import weights_sha256
from ....launcher import comfyui
from .. import comfy_networks
from . import export, packing, stage_trainer
from .base import Base, Conditioner
from .captions import Words
from .edit import Edit
from .encoders import Encoders, EncoderStage, VisionStage
from .gate import gate
from .latents import Shards
from .provenance import circumstances
from .unaided import Unaided, forget
from .vae import Vae
from .word_grounding import Places

_SHORT = {"total": 10, "stop": 10}
QUICK = {  # settings of a quick run
    "vae": {**_SHORT, "batch_size": 2},
    **dict.fromkeys(("base", "places", "unaided"), {**_SHORT, "batch_size": 4}),
    **dict.fromkeys(("encoders", "vision"), {**_SHORT, "single_count": 24, "scene_count": 12}),
    "edit": {**_SHORT, "batch_size": 4},
}
QUICK_SHARDS = {"size": 8, "window": 1}  # scenes take longer to encode than to learn from
UNAIDED_SHARDS = {"size": 512, "window": 4}  # it learns less, so fewer scenes do


def train(stages: Sequence[str], work: Path, minutes: float, threads: int, quick: bool = False) -> None:
    """Train these stages in order, each for so many minutes from its last checkpoint.

    quick: a few small steps of each from scratch, in a folder of their own.
    """
    device = prepare(threads)
    for name in stages:
        folder = work / "quick" if quick else work
        if quick:
            for ending in ("pt", "csv"):
                (folder / f"{name}.{ending}").unlink(missing_ok=True)
        progress = open_stage(name, folder, device, packed=not quick)
        seconds, log_every = 60 * minutes, stage_trainer.LOG_EVERY
        if quick:
            for key, value in QUICK[name].items():
                setattr(progress.stage, key, value)
            log_every = 5
        stage_trainer.run(progress, folder / f"{name}.pt", seconds, say, log_every)


def check(work: Path, count: int, threads: int) -> bool:
    """Run the gate on the base. Writes gate.json and gate.png into `work`; returns whether it passes."""
    device = prepare(threads)
    unet, facts = opened(last_of("base", work), work, device)
    result = gate(Base(unet, comfy_networks.run_unet, *_lessons(work, device)), count)
    pictures = result.pop("pictures")
    result |= {**facts, "count": count, "base_weights_sha256": weights_sha256(unet)}
    work.mkdir(parents=True, exist_ok=True)
    (work / "gate.json").write_text(json.dumps(result, indent=1))
    save_grid(pictures[:64], work / "gate.png")
    say(json.dumps(result))
    return result["passes"]


def export_files(work: Path, folder: Path, logs: Path) -> None:
    """Write the miniature's four files from the last checkpoints, and the result of the base's gate into `logs`."""
    device = prepare(2)
    names = {"unet": last_of("base", work), "vae": "vae", "clip": "encoders"}
    names["clip_vision"] = last_of("encoders", work)
    models, facts = {}, {}
    for part, name in names.items():
        models[part], facts[part] = opened(name, work, device)
        facts[part]["exported"] = circumstances()
    for name, digest in export.write(folder, models, facts).items():
        say(f"{digest}  {name}.safetensors")
    if (work / "gate.json").is_file():
        logs.mkdir(exist_ok=True)
        shutil.copyfile(work / "gate.json", logs / "gate.json")


def last_of(name: str, folder: Path) -> str:
    """The last stage that trained the model of stage `name`: the last of those that continue it and have run, else
    itself.
    """
    return next((after for after in AFTER[name] if started(after, folder)), name)


def started(name: str, folder: Path) -> bool:
    """Whether a stage has a checkpoint, in the folder or (not for quick runs, nor for stages aside) in the
    repository.
    """
    packed = folder.name != "quick" and name not in ASIDE
    return (folder / f"{name}.pt").exists() or (packed and packing.unpack(name) is not None)


def open_stage(name: str, folder: Path, device: torch.device, packed: bool = True) -> stage_trainer.Progress:
    """A stage at its last checkpoint (the folder's, else the repository's), or at its beginning."""
    torch.manual_seed(0)  # for the initial weights
    progress = stage_trainer.Progress(BUILD[name](folder, device))
    file = folder / f"{name}.pt"
    if file.exists():
        progress.restore(torch.load(file, weights_only=True, map_location=device))
    elif packed and (state := packing.unpack(name)):
        progress.restore(state)
    return progress


def finished(name: str, folder: Path, device: torch.device) -> Any:
    """The model of an earlier stage, for a later one: its running mean, frozen. Raises ValueError if the stage never
    ran.
    """
    return opened(name, folder, device)[0]


def opened(name: str, folder: Path, device: torch.device) -> tuple[Any, dict[str, Any]]:
    """The model of `finished`, and its stage, step and seconds. It comes from a checkpoint, else from the loader's
    files.

    It is rounded to half precision, as it is shipped. So what builds on it does not depend on where it came from.
    """
    if started(name, folder):
        progress = open_stage(name, folder, device, packed=folder.name != "quick")
        progress.use_mean()
        model = progress.stage.model
        facts = {"stage": name, "step": progress.step, "seconds": round(progress.seconds)}
    elif folder.name != "quick" and (found := _shipped(name)):
        model, facts = found
        model.to(device)
    else:
        raise ValueError(f"No checkpoint of stage {name} in {folder}: run train.py --stage {name} first.")
    with torch.no_grad():
        for tensor in model.state_dict().values():
            if tensor.is_floating_point():
                tensor.copy_(tensor.half())
    return model.eval().requires_grad_(False), facts


def _shipped(name: str) -> tuple[nn.Module, dict[str, Any]] | None:
    """A stage's model from the exported files; None if one of them is missing."""
    build, parts = SHIPPED[name]
    files = {MINIATURE / f"{part}.safetensors": prefix for part, prefix in parts.items()}
    if not all(file.is_file() for file in files):
        return None
    model = build()
    tensors = {prefix + key: value for file, prefix in files.items() for key, value in load_file(file).items()}
    model.load_state_dict(tensors, strict=False)  # weights that only training needs are not exported
    return model, export.facts_of(next(iter(files)))


def _vae(folder: Path, device: torch.device) -> Vae:
    return Vae(comfy_networks.vae(), device)


def _encoders(folder: Path, device: torch.device) -> EncoderStage:
    return EncoderStage(Encoders(), Words(comfy_networks.tokenize), device)


def _vision(folder: Path, device: torch.device) -> VisionStage:
    return VisionStage(finished("encoders", folder, device), Words(comfy_networks.tokenize), device)


def _base(folder: Path, device: torch.device) -> Base:
    return Base(comfy_networks.unet(), comfy_networks.run_unet, *_lessons(folder, device))


def _places(folder: Path, device: torch.device) -> Places:
    # Starts with the base's weights, unless it has a checkpoint of its own.
    unet = comfy_networks.unet() if started("places", folder) else finished("base", folder, device).requires_grad_(True)
    return Places(unet, comfy_networks.run_unet, *_lessons(folder, device))


def _unaided(folder: Path, device: torch.device) -> Unaided:
    unet = forget(finished("places", folder, device))
    return Unaided(unet, comfy_networks.run_unet, *_lessons(folder, device, UNAIDED_SHARDS))


def _edit(folder: Path, device: torch.device) -> Edit:
    condition = Conditioner(finished("encoders", folder, device), Words(comfy_networks.tokenize), device)
    return Edit(comfy_networks.edit(), comfy_networks.run_edit, condition)


def _lessons(folder: Path, device: torch.device, sizes: Mapping[str, int] | None = None) -> tuple[Shards, Conditioner]:
    """The data of the UNet's training: scenes as latents, and their captions' conditioning."""
    sizes = QUICK_SHARDS if folder.name == "quick" else sizes or {}
    shards = Shards(finished("vae", folder, device), folder / "latents", device, **sizes)
    return shards, Conditioner(finished("encoders", folder, device), Words(comfy_networks.tokenize), device)


BUILD = {
    "vae": _vae,
    "encoders": _encoders,
    "base": _base,
    "places": _places,
    "unaided": _unaided,
    "vision": _vision,
    "edit": _edit,
}
# Stages that the exported files can restore: how to build the model, and its key prefix by file.
SHIPPED: dict[str, tuple[Callable[[], nn.Module], Mapping[str, str]]] = {
    **dict.fromkeys(("base", "places"), (comfy_networks.unet, {"unet": ""})),
    "vae": (comfy_networks.vae, {"vae": ""}),
    **dict.fromkeys(("encoders", "vision"), (Encoders, {"clip": "clip.", "clip_vision": "vision."})),
}
# Its checkpoint in the repository counts only where it was taken into the folder, by `train.py --stage unaided`.
ASIDE = ("unaided",)
AFTER = {"base": ("unaided", "places"), "encoders": ("vision",)}  # the latest first


def prepare(threads: int) -> torch.device:
    """Find ComfyUI (COMFYUI_PATH, or the one that `mip.py` unpacked) and the device. Raises ValueError if there is
    none.
    """
    folder = comfyui.given_host() or comfyui.unpacked_host_folder()
    if not folder.is_dir():
        raise ValueError("No ComfyUI here yet: run `python mip.py demo` once, or set COMFYUI_PATH to a checkout.")
    comfy_networks.use_host(folder)
    torch.set_num_threads(threads)
    torch.set_float32_matmul_precision("high")
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def save_grid(images: torch.Tensor, file: Path, columns: int = 8) -> None:
    """Write pictures [B, 3, S, S] as one PNG. An incomplete last row is left out."""
    columns = min(columns, len(images))
    rows = (
        images[: len(images) // columns * columns]
        .unflatten(0, (-1, columns))
        .permute(0, 3, 1, 4, 2)
        .flatten(0, 1)
        .flatten(1, 2)
    )
    Image.fromarray((rows * 255).byte().numpy()).save(file)


def say(text: str) -> None:
    print(text, flush=True)
