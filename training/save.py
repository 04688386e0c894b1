"""The trained adapter as a file: the official layout as .safetensors, with metadata about how it was made."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from uuid import uuid4

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from ..common.atomic_io import keep_as_new
from ..common.text import brief, printable
from ..weights.adapter import Adapter, check_finite
from ..weights.spec import HEAD_KEY
from .config import TrainConfig
from .trainable import TrainedAdapter, flat_tensors

LONGEST = 200  # bytes of a file's name: common systems allow 255, and a number and an ending are added
CURVE_POINTS = 200  # at most so many losses in the metadata, each a mean over equally many steps


def metadata(recipe: TrainConfig, losses: Sequence[float], about: Mapping[str, str]) -> dict[str, str]:
    """Metadata of a trained adapter: the recipe, the step and the losses, added to `about` (such as base_sha256)."""
    per_point = max(1, -(-len(losses) // CURVE_POINTS))
    means = [sum(part) / len(part) for i in range(0, len(losses), per_point) if (part := losses[i : i + per_point])]
    return {
        **about,
        "recipe": json.dumps(recipe.as_dict(), sort_keys=True),
        "step": str(len(losses)),
        "losses": json.dumps([float(f"{mean:.6g}") for mean in means]),
        "steps_per_loss": str(per_point),
    }


def save_adapter(
    adapter: Adapter, folder: str | os.PathLike[str], name: str, dtype: torch.dtype = torch.float16
) -> Path:
    """Write `image_proj.…` and `ip_adapter.N.…`. Returns the path, numbered if the name is taken.

    Raises ValueError for a name that leaves the folder, weights that are not finite, or a full disk.
    """
    about = {
        "format": "pt",
        "family": adapter.spec.family,
        "architecture": adapter.spec.architecture,
        "encoder": f"{adapter.spec.encoder.name}, {adapter.spec.encoder.output}",
        "head": "text_to_weight" if adapter.spec.has_head else "none",
    }
    return _write(flat_tensors(adapter), about | _about(adapter), Path(folder), name, dtype)


def save_head(adapter: Adapter, folder: str | os.PathLike[str], name: str, dtype: torch.dtype = torch.float16) -> Path:
    """Write only the fusion head, `N.text_to_weight.weight`, to be shared like a LoRA. Returns its path.

    Raises ValueError for an adapter without a head, and as `save_adapter` does.
    """
    if not adapter.head:
        raise ValueError(f"“{adapter.name}” has no fusion head to save: train one first, or save the whole adapter.")
    rows = {f"{number}.{HEAD_KEY}": row.unsqueeze(0) for number, row in adapter.head.items()}
    return _write(rows, {"format": "pt", "head": "text_to_weight"} | _about(adapter), Path(folder), name, dtype)


def path_in(folder: Path, name: str) -> Path:
    """The file for a name. Raises ValueError for a name that leaves the folder."""
    name = printable(name).strip().removesuffix(".safetensors")
    target = Path(os.path.abspath(folder / f"{name}.safetensors"))
    inside = target.is_relative_to(os.path.abspath(folder)) and not {"..", ""} & set(name.replace("\\", "/").split("/"))
    if not inside or target.name.startswith(".") or any(ord(each) < 32 or each in '<>:"|?*' for each in name):
        raise ValueError(f"“{brief(name)}” is no name for a file inside {folder}: use letters, digits, “-” and “_”.")
    if max(len(part.encode()) for part in name.split("/")) > LONGEST:
        raise ValueError(f"“{brief(name, 40)}” is too long for a file's name: use at most {LONGEST} letters.")
    return target


def free_path(folder: Path, name: str) -> Path:
    """The file for a name, numbered if it exists. Raises ValueError for a name that leaves the folder."""
    target = path = path_in(folder, name)
    number = 2
    while path.exists():
        path, number = target.with_name(f"{target.stem}_{number}.safetensors"), number + 1
    return path


def _about(adapter: Adapter) -> dict[str, str]:
    return dict(adapter.about) if isinstance(adapter, TrainedAdapter) else {}


def _write(flat: Mapping[str, Tensor], about: dict[str, str], folder: Path, name: str, dtype: torch.dtype) -> Path:
    check_finite(flat, name)
    stored = {key: tensor.detach().to("cpu", dtype).contiguous().clone() for key, tensor in flat.items()}
    check_finite(stored, f"{name} in {str(dtype).removeprefix('torch.')}")
    target = free_path(folder, name)
    temporary = target.with_name(f".{uuid4().hex}.tmp")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            save_file(stored, temporary, metadata=about)
            os.chmod(temporary, 0o644)  # safetensors makes it readable for its owner only
            while not keep_as_new(temporary, target):  # another process took the name just now
                target = free_path(folder, name)
        finally:
            temporary.unlink(missing_ok=True)
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{target} cannot be written ({error}): check the folder and its free space.") from error
    return target
