"""`python mip.py convert`: torch pickles to .safetensors, which runs no code when it is read.

ComfyUI's frontend can download .safetensors files.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import shutil
from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from ..common.atomic_io import atomic_file
from ..common.console import complain, say
from ..weights.adapter import check_finite
from ..weights.files import read_tensors
from ..weights.spec import AdapterSpec, read_spec


def convert(source: str | os.PathLike[str], target: str | os.PathLike[str] | None = None, force: bool = False) -> Path:
    """Writes an adapter as .safetensors and returns the path. The file is complete or absent.

    Tensors keep their dtype. The published layout is written, whatever layout the source has.

    source: the adapter's file.
    target: the file to write, or its folder; by default beside the source.
    force: replace a file that exists.

    Raises ValueError if the source is no sound adapter, or if the target exists and force is not set.
    """
    source = Path(source)
    if source.suffix.lower() in (".safetensors", ".sft") and target is None:
        raise ValueError(f"“{source.name}” is named .safetensors already: say with --output where to write.")
    target = source.with_suffix(".safetensors") if target is None else Path(target)
    if target.is_dir():
        target = target / source.with_suffix(".safetensors").name
    if target.suffix.lower() != ".safetensors":
        raise ValueError(f"The target “{target.name}” must end in .safetensors: give it that ending.")
    tensors = read_tensors(source)
    if target.exists() and target.samefile(source):
        raise ValueError(f"“{source.name}” cannot be converted onto itself: choose another --output.")
    if target.exists() and not force:
        raise _taken(target)
    spec = read_spec(tensors, source.name)
    check_finite(tensors, source.name)
    _write(source, target, tensors, metadata(spec, source), force)
    return target


def _taken(target: Path) -> ValueError:
    return ValueError(f"{target} exists already: use --force to replace it, or --output to write elsewhere.")


def metadata(spec: AdapterSpec, source: Path) -> dict[str, str]:
    """The file's metadata, for people and other tools; the pack's own loaders read the shapes instead."""
    with source.open("rb") as stream:
        digest = hashlib.sha256()
        while block := stream.read(1 << 20):
            digest.update(block)
    return {
        "format": "pt",
        "family": spec.family,
        "architecture": spec.architecture,
        "tokens": "one per image patch" if spec.tokens is None else str(spec.tokens),
        "encoder": f"{spec.encoder.name}, {spec.encoder.output}",
        "head": "text_to_weight" if spec.has_head else "none",
        "source": source.name,
        "source_sha256": digest.hexdigest(),
    }


def _write(source: Path, target: Path, tensors: Mapping[str, Tensor], about: dict[str, str], force: bool) -> None:
    try:
        with atomic_file(target, replace=force) as temporary:
            save_file(_owned(tensors), temporary, metadata=about)
            shutil.copymode(source, temporary)  # safetensors writes for its owner only
    except FileExistsError:  # another process made it just now
        raise _taken(target) from None
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{target} cannot be written ({error}): check the folder and its free space.") from error


def _owned(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors, contiguous, each with a storage of its own.

    A slice of a larger storage is copied, and so is a tensor that another key already has.
    """
    owned: dict[str, Tensor] = {}
    storages: set[int] = set()
    for key, tensor in tensors.items():
        storage = tensor.untyped_storage()
        alone = storage.nbytes() == tensor.numel() * tensor.element_size()
        first = storage.data_ptr() not in storages
        storages.add(storage.data_ptr())
        owned[key] = tensor.contiguous() if alone and first else tensor.contiguous().clone()
    return owned


def main(argv: list[str]) -> int:
    """Converts every file of the command line; returns 0, or 1 if any of them could not be converted."""
    parser = argparse.ArgumentParser(
        prog="mip.py convert", description="Turn adapters' .bin files into .safetensors, beside them."
    )
    parser.add_argument("files", nargs="+", metavar="FILE", help="a MIP-Adapter or IP-Adapter .bin, .pt or .pth")
    parser.add_argument("--output", metavar="PATH", help="the file to write, or a folder for several")
    parser.add_argument("--force", action="store_true", help="replace files that exist")
    options = parser.parse_args(argv)
    if options.output and len(options.files) > 1 and not Path(options.output).is_dir():
        parser.error("--output must be a folder that exists when several files are given")
    failed = 0
    for file in options.files:
        try:
            target = convert(file, options.output, options.force)
            say(f"{file} -> {target} ({read_spec(read_tensors(target), target.name)})")
        except ValueError as error:
            complain(f"{file}: {error}")
            failed = 1
    return failed
