"""Models from local Hugging Face folders: read once and whole, or refused in a sentence. Nothing is downloaded."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

Ready = Callable[[int], torch.device]  # makes a model ready to run on so many bytes, says on which device it is
Keeper = Callable[[nn.Module], Ready]  # takes charge of a model


def on(device: str | torch.device = "cpu", dtype: torch.dtype | None = None) -> Keeper:
    """Puts a model on a device for good; dtype: by default float16 on a GPU, float32 elsewhere."""
    device = torch.device(device)
    dtype = dtype or (torch.float16 if device.type == "cuda" else torch.float32)

    def keep(model: nn.Module) -> Ready:
        model.to(device, dtype)
        return lambda _: device

    return keep


def inputs(made: Mapping[str, Tensor], ready: Ready, dtype: torch.dtype) -> dict[str, Tensor]:
    """What a processor made, where the model runs, floating numbers in the model's dtype."""
    cast = {key: value.to(dtype) if value.is_floating_point() else value for key, value in made.items()}
    device = ready(sum(value.nbytes for value in cast.values()))
    return {key: value.to(device) for key, value in cast.items()}


def identity(folder: Path) -> str:
    """What tells one model from another: its folder's name and a digest of its weights."""
    whole = hashlib.sha256()
    for path in sorted(folder.glob("*.safetensors")):
        with path.open("rb") as file:
            while part := file.read(1 << 24):
                whole.update(part)
    return f"{folder.resolve().name}, weights {whole.hexdigest()[:12]}"


def kind_of(folder: Path, what: str) -> str:
    """The model_type of a folder with config.json and .safetensors; what: the model that is wanted, in words."""
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
    """(model, processor) by the names of two of transformers' Auto classes; unused: beginnings of keys that may lack.

    Raises ValueError, one sentence, for a folder that is not such a model, or not all of it.
    """
    folder = Path(folder)
    kind = kind_of(folder, what)
    import transformers  # here: seconds to import, and only who scores needs it

    # Code that a folder brings along is never run, nor is the user asked in a terminal that nobody sees.
    options: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
    try:
        made, loading = getattr(transformers, model).from_pretrained(
            folder, use_safetensors=True, output_loading_info=True, **options
        )
        pieces = getattr(transformers, processor).from_pretrained(folder, **options)
    except Exception as error:  # whatever a damaged file makes transformers, safetensors and tokenizers raise
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
