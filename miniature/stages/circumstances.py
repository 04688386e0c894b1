"""Under which circumstances something was trained: what its log says beside losses and seeds."""

import platform
import subprocess
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[2]


def circumstances() -> dict[str, str | int]:
    """The processor or GPU, threads, PyTorch, and the commit of the code ("" outside of a checkout)."""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else _processor()
    return {"machine": device, "threads": torch.get_num_threads(), "torch": torch.__version__, "commit": _commit()}


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def _commit() -> str:
    line = ["git", "-C", str(ROOT), "rev-parse", "--short", "HEAD"]
    try:
        return subprocess.run(line, capture_output=True, text=True, timeout=10, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""
