"""An ONNX file as a function of one picture.

Such a file is a program, and ONNX Runtime its interpreter: it may ask for any memory, and its loops may run for ever.
So all models share a limited memory, and a call has a limited time.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from threading import Timer
from typing import Any

import numpy as np

from ...common.text import brief

MEMORY = 2 << 30  # bytes of main memory, of all models together
SECONDS = 30.0  # of one call
LARGEST = 1 << 30  # bytes of a file
# Others compile for minutes, load compiled code that the file holds, or ask another machine.
PROVIDERS = ("CUDAExecutionProvider", "ROCMExecutionProvider", "DmlExecutionProvider", "CPUExecutionProvider")


class OnnxModel:
    """shape: of the one input, whose sides may be numbers, names or None. outputs: how many it has."""

    def __init__(self, file: Path) -> None:
        """Needs the package onnxruntime. Raises ValueError with a sentence for the user."""
        if not file.is_file() or file.stat().st_size > LARGEST:  # a pipe would block for ever
            raise ValueError(f"“{file.name}” is no file of at most {LARGEST >> 30} GB: download it again.")
        try:
            self._session = _session(file)
            self._input, *more = self._session.get_inputs()
            if more:
                raise ValueError("it has several inputs")
        except Exception as error:  # onnxruntime has a class for every kind of damage
            raise ValueError(
                f"“{file.name}” cannot be opened as an ONNX model ({type(error).__name__}). Download it again."
            ) from error
        self.name, self.outputs = file.name, len(self._session.get_outputs())
        self.shape = tuple(self._input.shape)

    def __call__(self, picture: np.ndarray) -> list[np.ndarray]:
        """The outputs for [1, 3, H, W]. Raises ValueError if the model fails, or takes too much memory or time."""
        import onnxruntime

        options = onnxruntime.RunOptions()
        options.log_severity_level = 4  # its errors become ours
        timer = Timer(SECONDS, setattr, (options, "terminate", True))
        timer.start()
        try:
            return self._session.run(None, {self._input.name: picture}, options)
        except Exception as error:
            why = f"needs more than {SECONDS:g} s" if options.terminate else f"fails ({_reason(error)})"
            raise ValueError(f"The model “{self.name}” {why}: download it again, or use another one.") from error
        finally:
            timer.cancel()


def _session(file: Path) -> Any:
    import onnxruntime

    _limit_memory()
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.add_session_config_entry("session.use_env_allocators", "1")
    providers = [each for each in PROVIDERS if each in onnxruntime.get_available_providers()]
    # Folding would compute parts of the model now, where no limit holds.
    return onnxruntime.InferenceSession(str(file), options, providers, disabled_optimizers=["ConstantFolding"])


@cache
def _limit_memory() -> None:
    """Gives onnxruntime an allocator that stops at MEMORY. Sessions of other packs keep their own."""
    import onnxruntime

    limits = onnxruntime.OrtArenaCfg({"max_mem": MEMORY, "arena_extend_strategy": 1})  # no more than is asked for
    kinds = onnxruntime.OrtAllocatorType.ORT_ARENA_ALLOCATOR, onnxruntime.OrtMemType.DEFAULT
    onnxruntime.create_and_register_allocator(onnxruntime.OrtMemoryInfo("Cpu", kinds[0], 0, kinds[1]), limits)


def _reason(error: Exception) -> str:
    said = str(error)
    if "memory" in said:
        return f"it needs more than {MEMORY >> 30} GB of memory"
    return brief(" ".join(said.split("Status Message: ")[-1].split()), 200)
