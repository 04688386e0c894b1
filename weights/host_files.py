"""Where adapters lie: the host's model folders `ipadapter` and `mip_adapter`."""

from __future__ import annotations

import os
from pathlib import Path

import folder_paths

FOLDERS = ("mip_adapter", "ipadapter")
EXTENSIONS = {".safetensors", ".bin", ".pt", ".pth"}


def register_folders() -> None:
    """Make the folders known without taking away what other packs or the user's config registered."""
    for key in FOLDERS:
        paths, extensions = folder_paths.folder_names_and_paths.get(key, ([], set()))
        default = os.path.join(folder_paths.models_dir, key)
        ours = [default, str(output_folder())] if key == "mip_adapter" else [default]
        # A new set: registered ones are often the host's own shared set of model extensions.
        folder_paths.folder_names_and_paths[key] = (
            [*paths, *(folder for folder in ours if folder not in paths)],
            set(extensions) | EXTENSIONS,
        )
        os.makedirs(default, exist_ok=True)


def output_folder() -> Path:
    """Where nodes save adapters: below output, as the host's own nodes save LoRAs, and listed by the loaders."""
    return Path(folder_paths.get_output_directory(), "mip_adapter")


def adapter_names() -> list[str]:
    """Files an artist can choose, without the `._*` shadows that macOS leaves on foreign drives."""
    names = {name: None for key in FOLDERS for name in folder_paths.get_filename_list(key)}
    return sorted(
        name for name in names if Path(name).suffix.lower() in EXTENSIONS and not Path(name).name.startswith("._")
    )


def adapter_path(name: str) -> Path:
    """The file behind a name of `adapter_names`. Raises ValueError for anything else."""
    if not name:
        raise ValueError(f"No adapter is chosen. Put one into {_places()} and press R to refresh the lists.")
    for key in FOLDERS:
        for folder in folder_paths.get_folder_paths(key):
            path = Path(folder, name)
            # Links inside the folder may lead elsewhere, names may not: compare before links are followed.
            if not Path(os.path.abspath(path)).is_relative_to(os.path.abspath(folder)):
                raise ValueError(f"“{name}” leads out of the models folder; choose a file from the list.")
            if path.is_file():
                return path
    raise ValueError(f"Adapter “{name}” was not found in {_places()}. Put it there and press R to refresh the lists.")


def fingerprint(path: Path) -> tuple[str, int, int]:
    """Changes whenever the file does."""
    stat = path.stat()
    return str(path), stat.st_mtime_ns, stat.st_size


def _places() -> str:
    return " or ".join(os.path.join(folder_paths.models_dir, key) for key in FOLDERS)
