"""Models from local Hugging Face folders. A folder that is not complete is refused; nothing is downloaded."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

Ready = Callable[[int], torch.device]  # takes the inputs' size in bytes, makes the model ready, returns its device
Keeper = Callable[[nn.Module], Ready]  # takes charge of a model: where it lies, and in which dtype


def on(device: str | torch.device = "cpu", dtype: torch.dtype | None = None) -> Keeper:
    """A Keeper that puts a model on one device and leaves it there.

    dtype: by default float16 on a GPU, float32 elsewhere.
    """
    device = torch.device(device)
    dtype = dtype or (torch.float16 if device.type == "cuda" else torch.float32)

    def keep(model: nn.Module) -> Ready:
        model.to(device, dtype)
        return lambda _: device

    return keep


def own_device(wanted: str | None = None) -> torch.device:
    """The device that was asked for; else a GPU of its own for every process of a machine, else the CPU."""
    if wanted:
        return torch.device(wanted)
    if torch.cuda.is_available():
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)) % torch.cuda.device_count())
    return torch.device("cpu")


def inputs(made: Mapping[str, Tensor], ready: Ready, dtype: torch.dtype) -> dict[str, Tensor]:
    """A processor's tensors on the model's device, floating point ones in the model's dtype."""
    cast = {key: value.to(dtype) if value.is_floating_point() else value for key, value in made.items()}
    device = ready(sum(value.nbytes for value in cast.values()))
    return {key: value.to(device) for key, value in cast.items()}


def identity(folder: Path) -> str:
    """A text that identifies a model: its folder's name and a digest of its weights."""
    digest = hashlib.sha256()
    for path in sorted(folder.glob("*.safetensors")):
        with path.open("rb") as file:
            while block := file.read(1 << 24):
                digest.update(block)
    return f"{folder.resolve().name}, weights {digest.hexdigest()[:12]}"


def kind_of(folder: Path, what: str) -> str:
    """The model_type from a folder's config.json.

    what: the wanted model in words, for the error messages, such as "encoder".

    Raises ValueError for a folder without a readable config.json or without .safetensors weights.
    """
    config = folder / "config.json"
    if not config.is_file():
        raise ValueError(
            f"There is no {what} in {folder} (no config.json): name the local folder of a model in Hugging Face's "
            "layout, with config.json, preprocessor_config.json and .safetensors weights. Nothing is downloaded for "
            "you."
        )
    try:
        kind = str(json.loads(config.read_text("utf-8")).get("model_type"))
    except (ValueError, AttributeError) as error:
        raise ValueError(f"The file {config} is not readable JSON ({error}): download the folder again.") from error
    if not any(folder.glob("*.safetensors")):
        raise ValueError(
            f"The folder {folder} has no .safetensors weights; pickles (.bin) can run code and are not opened. "
            "Download the model.safetensors of the same model."
        )
    return kind


def read(folder: str | os.PathLike[str], what: str, model: str, processor: str, unused: Sequence[str] = ()) -> Any:
    """Loads a model in eval mode, without gradients, and its processor: (model, processor).

    what: the wanted model in words, for the error messages.
    model, processor: names of transformers' Auto classes.
    unused: prefixes of keys that may be missing from the weights.

    Raises ValueError for a folder that holds no such model, or not all of it.
    """
    folder = Path(folder)
    kind = kind_of(folder, what)
    import transformers  # imported here because it takes seconds and only scores need it

    # False: code from the folder never runs. Unset, transformers would ask in a terminal that nobody sees.
    options: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
    try:
        made, loading = getattr(transformers, model).from_pretrained(
            folder, use_safetensors=True, output_loading_info=True, **options
        )
        pieces = getattr(transformers, processor).from_pretrained(folder, **options)
    except Exception as error:  # a damaged file can raise anything in transformers, safetensors and tokenizers
        reason = " ".join(str(error).split())[:200]
        raise ValueError(
            f"The {what} in {folder} ({kind}) cannot be loaded ({type(error).__name__}: {reason}). Download its whole "
            "folder: config.json, preprocessor_config.json, the tokenizer's files and the .safetensors weights."
        ) from error
    if missing := sorted(key for key in loading["missing_keys"] if not key.startswith(tuple(unused))):
        more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
        raise ValueError(
            f"The weights in {folder} lack {', '.join(missing[:3])}{more}, which transformers would fill with random "
            "numbers. Download the folder again."
        )
    return made.eval().requires_grad_(False), pieces
