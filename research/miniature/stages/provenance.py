"""On which machine and with which code something was trained, for its log."""

import platform
from pathlib import Path

import torch

from .precision import activations

ROOT = Path(__file__).resolve().parents[3]


def circumstances() -> dict[str, str | int]:
    """The processor or GPU, the activations' dtype, the threads, PyTorch's version and the code's commit ("" if
    unknown).
    """
    gpu = torch.cuda.is_available()
    return {
        "machine": torch.cuda.get_device_name() if gpu else _processor(),
        "activations": str(activations("cuda" if gpu else "cpu")).removeprefix("torch."),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "commit": _commit(),
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def _commit() -> str:
    """Read from .git directly, because a pack in the registry must not start programs."""
    try:
        head = (ROOT / ".git" / "HEAD").read_text().strip()
        if head.startswith("ref: "):
            head = (ROOT / ".git" / head.removeprefix("ref: ")).read_text().strip()
        return head[:12]
    except OSError:
        return ""
