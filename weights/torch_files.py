"""Torch's files: which numbers lie where, mapped into memory. Bounds are checked before anything is read.

Since torch 1.6 a file is a zip archive: `data.pkl` is the index, `data/KEY` are the numbers of a storage. Before, it
was five pickles in a row and then the storages, each after its count.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from .pickles import LARGEST, Storage, View, read_pickle

_MAGIC = 0x1950A86A20F9469CFC6C  # the first pickle before torch 1.6
_MOST_RECORDS = 20_000  # of an archive: a storage each, and a few more
_DIRECTORY = 100 * _MOST_RECORDS  # bytes that list so many records
_UNPACKED = 4  # a compressed archive holds at most so many times its own size; weights hardly shrink
_SMALL = 1 << 26  # bytes; archives that unpack to less may shrink as they like

Fetch = Callable[[Storage], torch.UntypedStorage]


class NoTorchFile(ValueError):
    """A zip archive of something else."""


def read_torch(path: Path, zipped: bool) -> tuple[Any, Callable[[View], torch.Tensor]]:
    """A torch file's value, in which tensors are `View`s, and the function that makes a tensor of a `View`.

    zipped: whether it is an archive.

    Raises NoTorchFile, `pickles.Forbidden`, or an error of zipfile, pickletools or the system for a damaged file.
    """
    value, fetch = _read_archive(path) if zipped else _read_five_pickles(path)
    fetched: dict[str, torch.UntypedStorage] = {}

    def tensor(view: View) -> torch.Tensor:
        storage = view.storage
        if storage.key not in fetched:
            fetched[storage.key] = fetch(storage)
        return torch.empty(0, dtype=storage.dtype).set_(fetched[storage.key], view.offset, view.size, view.stride)

    return value, tensor


def _read_archive(path: Path) -> tuple[Any, Fetch]:
    size = path.stat().st_size
    if _directory_size(path, size) > _DIRECTORY:
        raise ValueError("the archive has more records than any adapter")
    with zipfile.ZipFile(path) as archive:
        records = {record.filename: record for record in archive.infolist()}
        if sum(record.file_size for record in archive.infolist()) > max(_SMALL, _UNPACKED * size):
            raise ValueError("unpacked it would be far larger than the file")
        indices = [name for name in records if name.rpartition("/")[2] == "data.pkl"]
        if not indices:
            raise NoTorchFile
        if len(indices) > 1 or records[indices[0]].file_size > LARGEST:
            raise ValueError("it has more than one index" if len(indices) > 1 else "its index is too large")
        folder = indices[0].removesuffix("data.pkl")
        index = archive.read(records[indices[0]])
        if f"{folder}byteorder" in records and archive.read(f"{folder}byteorder") == b"big":
            raise ValueError("its numbers are in big-endian order")
    value = read_pickle(io.BytesIO(index), {})
    whole = _mapped(path, size)

    def fetch(storage: Storage) -> torch.UntypedStorage:
        record = records[f"{folder}data/{storage.key}"]
        wanted = storage.numbers * storage.dtype.itemsize
        if record.file_size < wanted:
            raise ValueError(f"record {storage.key} is smaller than the index says")
        if record.compress_type != zipfile.ZIP_STORED or record.flag_bits & 1:
            with zipfile.ZipFile(path) as archive:
                return _copied(archive.read(record)[:wanted])
        with path.open("rb") as stream:  # the local header is of another length than the directory's
            stream.seek(record.header_offset)
            header = stream.read(30)
        if header[:4] != b"PK\x03\x04":
            raise ValueError(f"record {storage.key} is not where the archive says")
        start = record.header_offset + 30 + int.from_bytes(header[26:28], "little")
        start += int.from_bytes(header[28:30], "little")
        return _part(whole, start, wanted, storage.dtype.itemsize)

    return value, fetch


def _directory_size(path: Path, size: int) -> int:
    """How many bytes list the records of an archive, which zipfile reads at once; 0 if it is no whole archive."""
    longest = 22 + 65535  # the end record, with the longest comment
    with path.open("rb") as stream:
        stream.seek(max(0, size - longest - 76))
        ending = stream.read()
        at = ending.rfind(b"PK\x05\x06")
        listed = int.from_bytes(ending[at + 12 : at + 16], "little") if at >= 0 else 0
        at = ending.rfind(b"PK\x06\x06")  # of zip64, which archives above 4 GB or 65535 records need
        return max(listed, int.from_bytes(ending[at + 40 : at + 48], "little")) if listed == 0xFFFFFFFF else listed


def _read_five_pickles(path: Path) -> tuple[Any, Fetch]:
    size, storages = path.stat().st_size, dict[str, Storage]()
    with path.open("rb") as stream:
        begin = io.BytesIO(stream.read(LARGEST))
        magic, _, _, value, keys = (read_pickle(begin, storages) for _ in range(5))
        if magic != _MAGIC or not isinstance(keys, list):
            raise ValueError("it is no torch file")
        starts, at = {}, begin.tell()
        for key in keys:
            storage = storages[key]
            stream.seek(at)
            count = int.from_bytes(stream.read(8), "little")
            if count != storage.numbers:
                raise ValueError(f"record {key} is not as long as the index says")
            starts[key], at = at + 8, at + 8 + count * storage.dtype.itemsize
    if at > size:
        raise ValueError(f"it should have {at:,} bytes and has {size:,}")
    whole = _mapped(path, size)

    def fetch(storage: Storage) -> torch.UntypedStorage:
        itemsize = storage.dtype.itemsize
        return _part(whole, starts[storage.key], storage.numbers * itemsize, itemsize)

    return value, fetch


def _mapped(path: Path, size: int) -> torch.UntypedStorage:
    """The file as a storage, mapped into memory where the system can."""
    try:
        mapped: Any = torch.UntypedStorage.from_file(str(path), False, size)
        return mapped
    except (RuntimeError, OSError):  # some network drives cannot be mapped
        return _copied(path.read_bytes())


def _part(whole: torch.UntypedStorage, start: int, count: int, itemsize: int) -> torch.UntypedStorage:
    """`count` bytes from `start` on: a view, or a copy if its numbers would lie at odd addresses."""
    if start + count > whole.nbytes():
        raise ValueError(f"its numbers should end at byte {start + count:,} and the file has {whole.nbytes():,}")
    part: Any = whole[start : start + count]
    return part.clone() if start % itemsize else part


def _copied(content: bytes) -> torch.UntypedStorage:
    if not content:  # which frombuffer refuses
        return torch.UntypedStorage(0)
    return torch.frombuffer(bytearray(content), dtype=torch.uint8).untyped_storage()
