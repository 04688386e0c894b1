"""What `mip.py dataset` reads: captions and the objects that they name, tables, lists of ids."""

from __future__ import annotations

import importlib.util
import json
import os
import pickle
import random
from pathlib import Path

import pytest
from mip_adapter.commands.labelling.read import read_ids, sources
from mip_adapter.commands.labelling.words import named_objects
from mip_adapter.miniature import world_words
from PIL import Image

from ..support.bounded import needs_fork, refused


def save(path: Path) -> None:
    Image.new("RGB", (8, 8)).save(path)


@pytest.mark.parametrize(
    ("caption", "objects"),
    [
        ("a photo of a small brown cat beside a cup of coffee", ("cat", "cup")),
        ("A man riding a horse on the beach, with his dog.", ("man", "horse", "beach", "dog")),
        ("star and ring", ("star", "ring")),
        ("a picture of a ring next to a star", ("ring", "star")),
        ("a pair of shoes in front of the door", ("shoes", "door")),
        ("Two dogs are playing with a ball", ("dogs", "ball")),
        ("the king wears a wedding ring", ("king", "ring")),
        ("a cat and another cat", ("cat",)),
        ("eine Tür, a café", ("Tür", "café")),
        ("12 ... !", ()),
        ("", ()),
    ],
)
def test_captions_name_objects(caption: str, objects: tuple[str, ...]):
    assert named_objects(caption) == objects


def test_captions_of_the_miniature_name_all_their_objects():
    """But those that join kinds by nothing but a space."""
    rng = random.Random(0)
    for seed in range(200):
        chosen = rng.sample(range(12), 2 + seed % 2)
        text = world_words.caption(chosen, rng)
        named = {world_words.object_text(kind) for kind in chosen}
        assert set(named_objects(text)) == named or text.split() == [word for word in text.split() if word in named]


TABLE = [
    {"file_name": "a.png", "text": "a photo of things", "objects": ["teddy bear", "cup"]},
    {"file_name": "sub/b.png", "text": "a cat and a dog", "objects": None},
]


@pytest.mark.parametrize("kind", ["metadata.jsonl", "metadata.csv", "other.jsonl", "other.parquet"])
def test_tables_give_captions_and_objects(kind: str, tmp_path: Path):
    (tmp_path / "sub").mkdir()
    for name in ("a.png", "sub/b.png", "c.png"):
        save(tmp_path / name)
    (tmp_path / "c.txt").write_text("a\nlamp")
    table = tmp_path / kind
    if kind.endswith("jsonl"):
        table.write_text("\n".join(map(json.dumps, TABLE)))
    elif kind.endswith("csv"):
        table.write_text(
            'file_name,text,objects\na.png,a photo of things,"teddy bear, cup"\nsub/b.png,a cat and a dog,\n'
        )
    else:
        if importlib.util.find_spec("pyarrow") is None:
            table.touch()
            with pytest.raises(ValueError, match="needs pyarrow.*use .jsonl or .csv"):
                sources(tmp_path, table)
            return
        import pyarrow
        from pyarrow import parquet

        parquet.write_table(pyarrow.Table.from_pylist(TABLE), table)
    found = {each.id: each for each in sources(tmp_path, table if kind.startswith("other") else None)}
    assert {name: (each.caption, each.objects) for name, each in found.items()} == {
        "a": ("a photo of things", ("teddy bear", "cup")),
        "sub_b": ("a cat and a dog", ("cat", "dog")),
        "c": ("a lamp", ("lamp",)),
    }


class Harmful:
    def __reduce__(self):
        return os.mkdir, ("harm",)


def test_lists_of_ids(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.json").write_text('["sa_1", "sa_2", "sa_1"]')
    (tmp_path / "b.txt").write_text("# ids\nsa_1\n\nsa_2\n")
    (tmp_path / "c.pkl").write_bytes(pickle.dumps(["sa_1", "sa_2"]))
    assert {tuple(read_ids(tmp_path / name)) for name in ("a.json", "b.txt", "c.pkl")} == {("sa_1", "sa_2")}
    (tmp_path / "bad.pkl").write_bytes(pickle.dumps([Harmful()]))
    with pytest.raises(ValueError, match="cannot be read.*mkdir"):
        read_ids(tmp_path / "bad.pkl")
    assert not (tmp_path / "harm").exists()
    (tmp_path / "map.json").write_text('{"sa_1": 1}')
    (tmp_path / "none.txt").write_text("")
    for name, says in (("map.json", "no list"), ("none.txt", "empty"), ("not there.txt", "cannot be read")):
        with pytest.raises(ValueError, match=says):
            read_ids(tmp_path / name)


@pytest.mark.skipif(importlib.util.find_spec("pyarrow") is None, reason="Parquet needs pyarrow")
def test_a_parquet_file_that_unpacks_to_far_more_is_refused(tmp_path: Path):
    import pyarrow
    from pyarrow import parquet

    save(tmp_path / "a.png")
    long, many = ["x" * (1 << 20)] * 300, ["x"] * 2_100_000
    for texts, says in ((long, "more than 256 million letters"), (many, "2,100,000 rows")):
        column = pyarrow.array(texts).dictionary_encode()
        table = pyarrow.table({"file_name": column, "text": column})
        parquet.write_table(table, tmp_path / "metadata.parquet", compression="zstd")
        assert (tmp_path / "metadata.parquet").stat().st_size < 1 << 21
        del table, column
        with pytest.raises(ValueError, match=says):
            sources(tmp_path)


@pytest.mark.parametrize(
    "name, content, says",
    [
        ("a.txt", b"\xff\xfe\x00cat", "no text in UTF-8"),
        ("a.txt", b"a cat " * 300_000, "no file of at most 1 MB"),
        ("metadata.jsonl", b"[" * 100_000, "no readable JSON"),
        ("metadata.csv", b'file_name,text\na.png,"' + b"x" * 200_000 + b'"', "cannot be read"),
        ("metadata.parquet", b"PAR1 no more", "cannot be read"),
    ],
)
def test_captions_made_to_harm(tmp_path: Path, name: str, content: bytes, says: str):
    save(tmp_path / "a.png")
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=says):
        sources(tmp_path)


@needs_fork
def test_a_list_of_ids_that_claims_memory_is_refused(tmp_path: Path):
    for content in (b"\x80\x02]r\xff\xff\xff\xff.", b"\x80\x02]"):
        (tmp_path / "ids.pkl").write_bytes(content)
        refused(lambda: read_ids(tmp_path / "ids.pkl"), "ids.pkl")
