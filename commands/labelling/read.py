"""Pictures with captions: texts beside them, or a table. Lists of chosen ids."""

from __future__ import annotations

import csv
import importlib.util
import io
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image, ImageOps

from ...common.pictures import open_picture
from ...common.text_files import parse_json, read_text
from ...evaluation.detection.detect import distinct, object_texts
from ...training.data_folder import PICTURES
from ...weights.pickles import read_pickle
from .words import named_objects

LARGEST_CAPTION, LARGEST_LIST, LARGEST_TABLE = 1 << 20, 1 << 26, 1 << 28  # bytes
MOST_ROWS = 2_000_000

TABLES = ("metadata.jsonl", "metadata.csv", "metadata.parquet")  # in the folder, as Hugging Face's ImageFolder has them
FILES, CAPTIONS, OBJECTS = ("file_name", "image", "id"), ("text", "caption"), "objects"  # columns


class Source(NamedTuple):
    """One picture before it is looked at. objects: given with the caption, or named by it."""

    id: str
    path: Path
    caption: str
    objects: tuple[str, ...]


def sources(folder: Path, table: Path | None = None) -> list[Source]:
    """All pictures of a folder and its subfolders, by id: their path in the folder, joined by “_”, without an ending.

    A caption is the text file beside the picture, or the row of the table that names it. The table is `table`, or one
    of TABLES in the folder.

    Raises ValueError for a folder without pictures, for two pictures with one id, and for a bad table.
    """
    if not folder.is_dir():
        raise ValueError(f"There is no folder {folder}: name the folder that holds the pictures.")
    table = table or next((folder / name for name in TABLES if (folder / name).is_file()), None)
    rows = _captions(table) if table else {}
    found: dict[str, Source] = {}
    for path in sorted(path for path in folder.rglob("*") if path.suffix.lower() in PICTURES and path.is_file()):
        inside = path.relative_to(folder)
        name = "_".join(inside.with_suffix("").parts)
        if name in found:
            raise ValueError(f"{path} and {found[name].path} would both be {name}: rename one of them.")
        given = rows.get(inside.as_posix()) or rows.get(path.name) or rows.get(path.stem) or ("", ())
        caption, objects = given
        if not caption and path.with_suffix(".txt").is_file():
            caption = read_text(path.with_suffix(".txt"), LARGEST_CAPTION)
        caption = " ".join(caption.split())
        found[name] = Source(name, path, caption, objects or named_objects(caption))
    if not found:
        raise ValueError(f"There are no pictures in {folder}: expected {', '.join(PICTURES)}.")
    return [found[name] for name in sorted(found)]


def opened(path: Path, short_side: int) -> tuple[Image.Image, tuple[int, int]]:
    """A picture, upright and at most `short_side` pixels on its shorter side (0: any size), and its size before."""
    with open_picture(path) as file:
        picture = ImageOps.exif_transpose(file).convert("RGB")
    size = picture.size
    if short_side and min(size) > short_side:
        scale = short_side / min(size)
        picture = picture.resize((round(size[0] * scale), round(size[1] * scale)), Image.Resampling.LANCZOS)
    return picture, size


def _captions(table: Path) -> dict[str, tuple[str, tuple[str, ...]]]:
    """File or id -> caption and given objects."""
    rows = _rows(table)
    columns = set().union(*rows)
    file = next((name for name in FILES if name in columns), None)
    text = next((name for name in CAPTIONS if name in columns), None)
    if not file or not text:
        raise ValueError(
            f"The table {table} has the columns {', '.join(sorted(map(str, columns))) or 'none'}; it needs file_name "
            "and text, and may have objects."
        )
    return {str(row[file]): (str(row.get(text) or ""), _given(row.get(OBJECTS))) for row in rows if row.get(file)}


def _given(objects: Any) -> tuple[str, ...]:
    """Objects as a table gives them: a list, or words separated by commas."""
    if objects is None:
        return ()
    return object_texts(objects) if isinstance(objects, str) else distinct(str(each).strip() for each in objects)


def _rows(table: Path) -> list[dict[str, Any]]:
    try:
        if table.suffix == ".jsonl":
            rows = [parse_json(line) for line in read_text(table, LARGEST_TABLE).split("\n") if line.strip()]
            if not all(isinstance(row, dict) for row in rows):
                raise ValueError("a line is no object")
            return rows
        if table.suffix == ".csv":
            return list(csv.DictReader(io.StringIO(read_text(table, LARGEST_TABLE))))
        if table.suffix == ".parquet":
            if importlib.util.find_spec("pyarrow") is None:
                raise ValueError("Parquet needs pyarrow, which is not installed: install it, or use .jsonl or .csv")
            return _parquet_rows(table)
    except (OSError, ValueError, csv.Error) as error:
        raise ValueError(f"The table of captions {table} cannot be read ({error}).") from error
    raise ValueError(f"The table of captions {table} must end in .jsonl, .csv or .parquet.")


def _parquet_rows(table: Path) -> list[dict[str, Any]]:
    """The columns of a Parquet file that are needed. Some kilobytes may hold any number of rows, and of letters."""
    from pyarrow import parquet

    with parquet.ParquetFile(table) as file:
        if file.metadata.num_rows > MOST_ROWS:
            raise ValueError(f"it has {file.metadata.num_rows:,} rows; at most {MOST_ROWS:,} are read")
        needed = [name for name in file.schema_arrow.names if name in (*FILES, *CAPTIONS, OBJECTS)]
        rows: list[dict[str, Any]] = []
        size = 0
        for batch in file.iter_batches(100, columns=needed):
            rows += (more := batch.to_pylist())
            size += sum(len(each) for row in more for each in row.values() if isinstance(each, str | list))
            if size > LARGEST_TABLE:  # a text is stored once, and made anew for every row
                raise ValueError(f"its texts have more than {LARGEST_TABLE >> 20} million letters")
    return rows


def read_ids(path: Path) -> list[str]:
    """The ids of a list: `selected_indexes….pkl` of the official code, a JSON list, or a text with an id a line.

    Raises ValueError.
    """
    try:
        if path.suffix == ".pkl":
            if not path.is_file() or path.stat().st_size > LARGEST_LIST:
                raise ValueError(f"it is no file of at most {LARGEST_LIST >> 20} MB")
            with path.open("rb") as file:
                ids: Any = read_pickle(file, {}, MOST_ROWS)
        elif path.suffix == ".json":
            ids = parse_json(read_text(path, LARGEST_LIST))
        else:
            ids = [line.strip() for line in read_text(path, LARGEST_LIST).splitlines()]
            ids = [line for line in ids if line and not line.startswith("#")]
    except Exception as error:  # a damaged pickle can raise anything
        raise ValueError(f"The list of ids {path} cannot be read ({type(error).__name__}: {error}).") from error
    if isinstance(ids, (Mapping, str)) or not isinstance(ids, Iterable):
        raise ValueError(f"{path} holds no list of ids but one {type(ids).__name__}.")
    ids = [str(each) for each in ids]
    if not ids:
        raise ValueError(f"The list of ids {path} is empty.")
    return list(dict.fromkeys(ids))


def chosen(found: Sequence[Source], ids: Sequence[str]) -> tuple[list[Source], list[str]]:
    """The pictures of a list, and the ids that no picture has."""
    known = {each.id: each for each in found}
    return [known[name] for name in sorted(ids) if name in known], [name for name in ids if name not in known]
