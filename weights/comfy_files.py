"""Where models are stored.

Adapters are files in the host's model folders `mip_adapter` and `ipadapter`. Encoders and detectors are Hugging Face
folders in `mip_encoders` and `grounding-dino`.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

import folder_paths

from ..common import bundled
from ..common.text import brief

FOLDERS = ("mip_adapter", "ipadapter")
MINIATURE = str(bundled.MINIATURE / "adapters")  # the adapters that come with the pack
# Names of our adapters in the pack's first workflows.
RENAMED = {
    "miniature_base.safetensors": "miniature_mip.safetensors",
    "miniature_plus.safetensors": "miniature_mip_plus.safetensors",
}
EXTENSIONS = {".safetensors", ".bin", ".pt", ".pth"}
ENCODERS_FOLDER, DETECTORS_FOLDER = "mip_encoders", "grounding-dino"
ANALYSERS_FOLDER = Path("insightface", "models")  # where InsightFace itself and other packs keep its model packs


def register_folders() -> None:
    """Register our folders with the host. What other packs or the user's config registered stays."""
    for key in (*FOLDERS, ENCODERS_FOLDER, DETECTORS_FOLDER):
        paths, extensions = folder_paths.folder_names_and_paths.get(key, ([], set()))
        default = os.path.join(folder_paths.models_dir, key)
        ours = [default, str(output_folder()), MINIATURE] if key == "mip_adapter" else [default]
        # A new set, since the registered one is often shared by all of the host's folders.
        folder_paths.folder_names_and_paths[key] = (
            [*paths, *(folder for folder in ours if folder not in paths)],
            set(extensions) | EXTENSIONS,
        )
        with contextlib.suppress(OSError):  # the models folder may be read-only
            os.makedirs(default, exist_ok=True)


def output_folder() -> Path:
    """Where nodes save adapters: in the output folder, as the host's nodes do with LoRAs. Loaders list this folder."""
    return Path(folder_paths.get_output_directory(), "mip_adapter")


def adapter_names() -> list[str]:
    """Adapter files to choose from; the pack's own come last. `._*` files, which macOS makes, are left out."""
    names = {name for key in FOLDERS for name in folder_paths.get_filename_list(key)}
    files = (n for n in names if Path(n).suffix.lower() in EXTENSIONS and not Path(n).name.startswith("._"))
    return sorted(files, key=lambda name: (Path(MINIATURE, name).is_file(), name))


def adapter_path(name: str) -> Path:
    """The file of a name in `adapter_names`.

    If it is missing, the same name with another extension is accepted: a workflow may name a .safetensors file where
    its reader has a .bin. One of our own is also found by its former name. Raises ValueError if there is no such file.
    """
    if not name:
        raise ValueError(f"No adapter is chosen. Put one into {_places(*FOLDERS)} and press R to refresh the lists.")
    endings = sorted(EXTENSIONS) if Path(name).suffix.lower() in EXTENSIONS else []
    for candidate in (name, *(str(Path(name).with_suffix(ending)) for ending in endings)):
        for key in FOLDERS:
            for folder in folder_paths.get_folder_paths(key):
                path = _inside(folder, candidate)
                if path.is_file():
                    return path
    if name in RENAMED:
        return adapter_path(RENAMED[name])
    own = Path(MINIATURE, name)
    if name.startswith("miniature_"):
        raise ValueError(f"Adapter “{name}”, which comes with this pack, is missing: {own}.{remedy(own)}")
    raise ValueError(
        f"Adapter “{brief(name)}” was not found in {_places(*FOLDERS)}. Put it there and press R to refresh the lists."
    )


def remedy(path: Path) -> str:
    """A sentence on how to restore a file that comes with the pack; empty for any other file."""
    if path.parent != Path(MINIATURE):
        return ""
    return f" {bundled.remedy(f'adapters/{path.name}', '--stage adapters” and “--export miniature')}"


def model_folders(key: str) -> list[str]:
    """Folders to choose from below models/KEY: those with a config or weights, such as “facebook/dino-vits16”."""
    names = set()
    for base in folder_paths.get_folder_paths(key):
        for folder, below, files in os.walk(base, followlinks=True):
            name = Path(folder).relative_to(base)
            below[:] = [each for each in below if each[0] != "."] if len(name.parts) < 3 else []
            if name.parts and any(file == "config.json" or Path(file).suffix in EXTENSIONS for file in files):
                names.add(name.as_posix())
    return sorted(names)


def model_folder(key: str, name: str) -> Path:
    """The folder of a name in `model_folders`. Raises ValueError if there is none."""
    place = _places(key)
    if not name:
        raise ValueError(f"No model is chosen. Put its folder into {place} and press R to refresh the lists.")
    for base in folder_paths.get_folder_paths(key):
        path = _inside(base, name)
        if path.is_dir():
            return path
    raise ValueError(f"“{brief(name)}” was not found in {place}. Put the model's folder there and press R.")


def analyser_folders() -> list[str]:
    """Folders to choose from in models/insightface/models: those with .onnx files."""
    base = Path(folder_paths.models_dir, ANALYSERS_FOLDER)
    return sorted(file.name for file in base.glob("*") if any(file.glob("*.onnx")))


def analyser_folder(name: str) -> Path:
    """The folder of a name in `analyser_folders`. Raises ValueError if there is none."""
    base = Path(folder_paths.models_dir, ANALYSERS_FOLDER)
    if not name:
        raise ValueError(
            f"No face analyser is chosen. Unpack a model pack of InsightFace, such as buffalo_l, into a folder of its "
            f"own in {base} and press R to refresh the lists."
        )
    path = _inside(base, name)
    if path.is_dir():
        return path
    raise ValueError(f"“{brief(name)}” was not found in {base}. Put its folder there and press R to refresh the lists.")


def _inside(folder: str | Path, name: str) -> Path:
    """The path of a name in a folder. Links are not followed: they may lead elsewhere, names may not.

    Raises ValueError for a name that leads out of the folder.
    """
    path = Path(folder, name)
    if not Path(os.path.abspath(path)).is_relative_to(os.path.abspath(folder)):
        raise ValueError(f"“{brief(name)}” leads out of the models folder; choose one from the list.")
    return path


def folder_version(path: Path) -> tuple[tuple[str, int, int], ...]:
    """A value that changes whenever a file of the folder does."""
    return tuple(file_version(file) for file in sorted(path.iterdir()) if file.is_file())


def file_version(path: Path) -> tuple[str, int, int]:
    """A value that changes whenever the file does."""
    stat = path.stat()
    return str(path), stat.st_mtime_ns, stat.st_size


def _places(*keys: str) -> str:
    """The folders of some keys, in words: the host's, and those of the user's extra_model_paths.yaml."""
    own = (MINIATURE, str(output_folder()))
    folders = (folder for key in keys for folder in folder_paths.get_folder_paths(key) if folder not in own)
    return " or ".join(dict.fromkeys(folders))
