"""Picture files made to harm: each door that reads pictures refuses them, within a bound on memory and time."""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest
from mip_adapter.commands.curation.read import Folder
from mip_adapter.commands.labelling.read import opened
from mip_adapter.common.pictures import open_picture
from mip_adapter.evaluation.concept101.dataset import load
from mip_adapter.training.data_folder import read_mask
from mip_adapter.training.dataset import SubjectFolder
from PIL import EpsImagePlugin, Image

from ..support.bounded import needs_fork, outcome, refused
from ..support.training_world import small_recipe, write_folder

SIDE = 30_000


def bomb() -> bytes:
    """A PNG of 100 KB with 30,000×30,000 pixels: 2.7 GB in RGB."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        check = struct.pack(">I", zlib.crc32(kind + content))
        return struct.pack(">I", len(content)) + kind + content + check

    packed, row = zlib.compressobj(1), bytes(1 + SIDE // 8)
    content = b"".join(packed.compress(row) for _ in range(SIDE)) + packed.flush()
    header = struct.pack(">IIBBBBB", SIDE, SIDE, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", content) + chunk(b"IEND", b"")


POSTSCRIPT = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\n(%pipe%id) (r) file\nshowpage\n%%EOF\n"


def write(path: Path, kind: str) -> Path:
    path.unlink(missing_ok=True)
    if kind == "pipe":
        os.mkfifo(path)
    else:
        path.write_bytes(bomb() if kind == "bomb" else POSTSCRIPT)
    return path


def in_training(folder: Path, kind: str) -> None:
    for number in range(3):
        write(folder / "images" / f"{number:03d}.png", kind)
    SubjectFolder(folder, small_recipe())


def in_mask(folder: Path, kind: str) -> None:
    write(folder / "masks" / "000.png", kind)
    read_mask(folder, "000", (SIDE, SIDE))


def in_curation(folder: Path, kind: str) -> None:
    write(folder / "images" / "000.png", kind)
    Folder(folder).objects("000")


def in_labelling(folder: Path, kind: str) -> None:
    opened(write(folder / "new.png", kind), 1024)


def in_concept101(folder: Path, kind: str) -> None:
    load(write(folder / "new.jpg", kind))


@needs_fork
@pytest.mark.parametrize("kind", ["bomb", "postscript", "pipe"])
@pytest.mark.parametrize("door", [in_training, in_mask, in_curation, in_labelling, in_concept101])
def test_every_door_refuses(tmp_path: Path, door: Callable[[Path, str], None], kind: str) -> None:
    folder = write_folder(tmp_path / "data", 3)
    raised, said = outcome(lambda: door(folder, kind))
    assert raised in ("ValueError", "FileNotFoundError", "UnidentifiedImageError"), (raised, said)
    words = {"bomb": "64 million pixels", "postscript": "cannot identify", "pipe": ("no file", "missing")}[kind]
    assert any(each in said for each in ([words] if isinstance(words, str) else words)), said


@pytest.mark.skipif(os.name == "nt", reason="the program in this test is a shell script")
def test_no_picture_starts_a_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pillow itself asks Ghostscript to draw PostScript, also in a file named .png."""
    mark, program = tmp_path / "it ran", tmp_path / "bin" / "gs"
    program.parent.mkdir()
    program.write_text(f"#!/bin/sh\ntouch '{mark}'\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setattr(EpsImagePlugin, "gs_binary", None)
    path = write(tmp_path / "a.png", "postscript")
    with Image.open(path) as image, pytest.raises(OSError):
        image.load()
    assert mark.exists()
    mark.unlink()
    with pytest.raises(OSError):
        open_picture(path)
    assert not mark.exists()


@needs_fork
def test_a_large_claim_is_refused_before_it_is_read(tmp_path: Path) -> None:
    refused(lambda: open_picture(write(tmp_path / "a.png", "bomb")), "a.png has more than 64 million pixels")


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF"])
def test_pictures_open_whatever_their_name_says(tmp_path: Path, kind: str) -> None:
    Image.new("RGB", (9, 7), "red").save(tmp_path / "a.jpg", kind)
    with open_picture(tmp_path / "a.jpg") as image:
        assert image.size == (9, 7) and image.convert("RGB").getpixel((3, 3))[0] > 240  # pyright: ignore
