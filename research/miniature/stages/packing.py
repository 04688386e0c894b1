"""Checkpoints small enough for the repository: the running mean in half precision, without the optimizer.

Training that continues from one warms its optimizer up again, which costs a few hundred steps.
"""

import json
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from ....common.atomic_io import atomic_file

FOLDER = Path(__file__).resolve().parents[1] / "checkpoints"


def pack(name: str, work: Path) -> Path:
    """Write the last checkpoint of a stage into the repository. Returns its path."""
    state = torch.load(work / f"{name}.pt", weights_only=True, map_location="cpu")
    tensors = {key: value.half().contiguous() for key, value in state["ema"].items()}
    file = FOLDER / f"{name}.safetensors"
    facts = {"stage": name, "step": state["step"], "seconds": round(state["seconds"])}
    with atomic_file(file) as temporary:
        save_file(tensors, temporary, metadata={"format": "pt", "training": json.dumps(facts)})
    if (curve := work / f"{name}.csv").exists():
        (FOLDER / curve.name).write_bytes(curve.read_bytes())
    return file


def unpack(name: str) -> dict | None:
    """The repository's checkpoint of a stage, in the form that `Progress.restore` takes; None if there is none."""
    file = FOLDER / f"{name}.safetensors"
    if not file.exists():
        return None
    with safe_open(file, "pt") as tensors:
        facts = json.loads(tensors.metadata()["training"])
        ema = {key: tensors.get_tensor(key).float() for key in tensors.keys()}  # noqa: SIM118
    return {"step": facts["step"], "seconds": facts["seconds"], "ema": ema}
