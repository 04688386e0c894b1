"""Weights files to tensors: `.safetensors`, and torch pickles, which are never executed.

The first bytes decide the format, not the name: many `.bin` files were renamed to `.safetensors`.
Tensors stay memory-mapped, on the CPU, in their own dtype.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from ..common.text import brief
from .foreign import reject_foreign
from .layout import flat_keys
from .pickles import Forbidden, View
from .torch_files import NoTorchFile, read_torch

_AGAIN = "Download it again, or choose another file."
_MOST_KEYS, _LONGEST_KEY = 50_000, 1000  # a whole SDXL checkpoint has 2,500 keys of at most 100 letters
_SMALL = 1 << 20  # bytes
_LONGEST_HEADER = 1 << 23  # bytes; safetensors itself stops at 100 MB, which take gigabytes to parse
_FOLDERS = "Adapters belong into models/ipadapter or models/mip_adapter."
_NOT_WEIGHTS = (  # first bytes -> what the file is
    (b"\x00\x05\x16\x07", "a macOS side file (AppleDouble, '._' files from an external drive), not weights. "
     "Choose the file of the same name without '._'."),
    (b"version https://git-lfs", "a Git LFS pointer of a few lines, not the weights themselves. "
     "Run 'git lfs pull' where you cloned it, or download the file itself."),
    (b"GGUF", "a GGUF file; adapters come as .safetensors or .bin. Choose another file."),
    (b"Rar!", "a RAR archive: unpack it first."),
    (b"7z\xbc\xaf", "a 7z archive: unpack it first."),
    (b"\x1f\x8b", "a gzip archive: unpack it first."),
    (b"\x89PNG", "a picture, not weights. Choose an adapter file."),
    (b"\xff\xd8\xff", "a picture, not weights. Choose an adapter file."),
)  # fmt: skip


class _WordedError(ValueError):
    """An error already worded for the user, unlike the ValueErrors of the libraries below."""


def read_tensors(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """Tensors by flat key (`image_proj.…`, `ip_adapter.…`), whatever the file's nesting.

    Keys of files that are no adapters are not changed, so that the kind of file can be recognised.
    Raises ValueError with a sentence for the user if the file is not a readable file of tensors.
    """
    path = Path(path)
    kind = _sniff(path)
    try:
        if kind == "safetensors":
            tensors, others = _read_safetensors(path), list[str]()
        else:
            tensors, others = _flatten(*_read_torch_file(path, zipped=kind == "zip"), path.name)
    except _WordedError:
        raise
    except (Exception, MemoryError) as error:  # safetensors, torch, zipfile and pickle raise different ones
        raise ValueError(_broken(path, error)) from error
    return _checked(flat_keys(tensors, path.name), others, path.name)


def _sniff(path: Path) -> str:
    """The format: 'safetensors', 'zip' (torch) or 'pickle' (torch before 1.6). Raises ValueError for any other."""
    name = path.name
    if path.is_dir():
        raise ValueError(f"“{name}” is a folder, expected a .safetensors or .bin file inside it. {_FOLDERS}")
    if name.startswith("._"):
        raise ValueError(f"“{name}” is {_NOT_WEIGHTS[0][1]}")
    try:
        size = path.stat().st_size
        if not path.is_file():  # a pipe would block for ever
            raise OSError("not a regular file")
        with path.open("rb") as stream:
            head = stream.read(512)
    except FileNotFoundError:
        raise ValueError(f"There is no file “{name}” (looked for {path}). {_FOLDERS}") from None
    except (OSError, ValueError) as error:
        reason = f"{type(error).__name__}: {error}"
        raise ValueError(f"“{name}” cannot be opened ({reason}). Check its name and permissions.") from error
    if size == 0:
        raise ValueError(f"“{name}” is empty (0 bytes): the download never started. {_AGAIN}")
    for magic, sentence in _NOT_WEIGHTS:
        if head.startswith(magic):
            raise ValueError(f"“{name}” is {sentence}")
    if head.startswith(b"PK\x03\x04"):
        return "zip"
    length = int.from_bytes(head[:8], "little")  # safetensors: u64 header length, then JSON
    if head[8:9] == b"{" and length >= 2:
        if length > _LONGEST_HEADER:
            raise ValueError(f"“{name}” has a header of {length:,} bytes, more than any adapter's. {_AGAIN}")
        if length > size - 8:
            raise ValueError(f"“{name}” is cut off: its header says {length:,} bytes, the file has {size:,}. {_AGAIN}")
        return "safetensors"
    if head[:1] == b"\x80" and head[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05"):
        return "pickle"
    raise ValueError(_unknown(name, head, length, size))


def _unknown(name: str, head: bytes, length: int, size: int) -> str:
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if text.startswith((b"<!doctype", b"<html", b"<?xml", b"<head", b"<!--")):
        return (f"“{name}” is a web page, saved in place of the file. Use the page's download button "
                "(on Hugging Face the link with 'resolve', not 'blob').")  # fmt: skip
    if text.startswith((b"{", b"[")):
        return f"“{name}” is a JSON text (a config or an error message), not weights. {_AGAIN}"
    if name.lower().endswith((".safetensors", ".sft")):
        return (f"“{name}” is no safetensors file: it announces a header of {length:,} bytes in {size:,} "
                f"(HeaderTooLarge), so it is damaged or another kind of file. {_AGAIN}")  # fmt: skip
    return (f"“{name}” starts with {head[:8].hex(' ')}, which is neither a .safetensors nor a torch file. "
            f"{_AGAIN}")  # fmt: skip


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    with safe_open(str(path), framework="pt", device="cpu") as file:
        keys = list(file.keys())
        _check_keys(len(keys), max(map(len, keys), default=0), path.name)
        return {key: file.get_tensor(key) for key in keys}


def _read_torch_file(path: Path, zipped: bool) -> tuple[Any, Callable[[View], Tensor]]:
    try:
        return read_torch(path, zipped)
    except NoTorchFile:
        raise _WordedError(f"“{path.name}” is a zip archive, not a torch file: unpack it first.") from None
    except Forbidden as bad:
        raise _WordedError(
            f"“{path.name}” is a pickle that wants to run '{brief(bad.name)}'; weights need no code, so it was not "
            "opened. Take its .safetensors version, or a file that holds tensors only."
        ) from None


def _flatten(loaded: Any, make_tensor: Callable[[View], Tensor], name: str) -> tuple[dict[str, Tensor], list[str]]:
    """Tensors of nested mappings by dotted key, and the keys whose values are not tensors."""
    if not isinstance(loaded, Mapping):
        got = "Tensor" if isinstance(loaded, View) else type(loaded).__name__
        raise _WordedError(f"“{name}” holds a {got}, expected named tensors. Choose an adapter file.")
    tensors: dict[str, Tensor] = {}
    others: list[str] = []

    def visit(mapping: Mapping[Any, Any], prefix: str, depth: int) -> None:
        for key, value in mapping.items():
            _check_keys(len(tensors) + len(others), len(prefix) + len(str(key)), name)
            if isinstance(value, View):
                tensors[f"{prefix}{key}"] = make_tensor(value)
            elif isinstance(value, Mapping) and depth < 3:  # a pickle may contain itself
                visit(value, f"{prefix}{key}.", depth + 1)
            else:
                others.append(f"{prefix}{key}")

    visit(loaded, "", 0)
    return tensors, others


def _check_keys(count: int, longest: int, name: str) -> None:
    """Raises ValueError for more or longer keys than any file of tensors has."""
    if count > _MOST_KEYS or longest > _LONGEST_KEY:
        what = f"more than {_MOST_KEYS:,} tensors" if count > _MOST_KEYS else f"a name of {longest:,} letters"
        raise _WordedError(f"“{name}” holds {what}; an adapter has some hundred, with short names. {_AGAIN}")


def _checked(tensors: dict[str, Tensor], others: list[str], name: str) -> dict[str, Tensor]:
    """The tensors. Raises ValueError if a value is not a plain tensor, naming the kind of file if its keys show it."""
    others = others + [k for k, t in tensors.items() if t.layout != torch.strided or t.is_quantized]
    stored = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors.values()}
    if sum(t.numel() * t.itemsize for t in tensors.values()) > 2 * sum(stored.values()) + _SMALL:
        raise ValueError(f"“{name}” uses the same numbers in many tensors, which would not fit in memory. {_AGAIN}")
    if others or not tensors:
        reject_foreign(tensors, name)
        what = f"'{brief(others[0])}' is not a tensor" if others else "it holds no tensors"
        raise ValueError(f"“{name}” is not an adapter: {what}, expected tensors only. Choose another file.")
    return tensors


def _broken(path: Path, error: BaseException) -> str:
    reason = re.sub(r"\s+", " ", str(error)).strip().removeprefix("Error while deserializing header: ")
    reason = f"{type(error).__name__}: {brief(reason)}" if reason else type(error).__name__
    return f"“{path.name}” is damaged or cut off, it cannot be read ({reason}). {_AGAIN}"
