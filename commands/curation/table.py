"""The table of scores, as JSON lines or Parquet, and the choice of the best pictures."""

from __future__ import annotations

import importlib.util
import io
from collections.abc import Sequence
from pathlib import Path

from ...common.atomic_io import atomic_write
from ...common.resumable import Row, json_lines

COLUMNS = ("id", "objects", "labels", "single", "pair", "total", "encoder")
ENDINGS = (".jsonl", ".parquet")


def check_table(path: Path) -> None:
    """Raises ValueError if this table cannot be written, before hours of work are spent on it."""
    if path.suffix not in ENDINGS:
        raise ValueError(f"The table {path.name} must end in .jsonl or .parquet, which says how it is written.")
    if path.suffix == ".parquet" and importlib.util.find_spec("pyarrow") is None:
        raise ValueError(f"{path.name} needs pyarrow, which is not installed: install it, or choose a .jsonl name.")


def write_table(path: Path, rows: Sequence[Row], encoder: str) -> None:
    """Writes the table in the order of the ids.

    rows: scored pictures, in any order.
    encoder: named in every row, because tables may be joined and scores of different encoders do not compare.
    """
    rows = [{**row, "encoder": encoder} for row in sorted(rows, key=lambda row: row["id"])]
    rows = [{key: row[key] for key in COLUMNS} for row in rows]
    if path.suffix == ".parquet":
        atomic_write(path, _parquet(rows))
    else:
        atomic_write(path, json_lines(rows))


def _parquet(rows: Sequence[Row]) -> bytes:
    import pyarrow
    from pyarrow import parquet

    buffer = io.BytesIO()
    parquet.write_table(pyarrow.Table.from_pylist(list(rows)), buffer)
    return buffer.getvalue()


def ranked(rows: Sequence[Row]) -> list[Row]:
    """The rows with the best total first. Equal totals are ordered by id, so that the order is always the same."""
    return sorted(rows, key=lambda row: (-row["total"], row["id"]))


def best(rows: Sequence[Row], keep: int | None = None, quantile: float | None = None) -> list[Row]:
    """The `keep` best rows, or those whose total is at least the `quantile` of all totals, or all rows; best first."""
    order = ranked(rows)
    if keep is not None:
        return order[:keep]
    if quantile is not None:
        # A share `quantile` of all pictures has a lower total.
        totals = sorted(row["total"] for row in rows)
        least = totals[min(int(quantile * len(totals)), len(totals) - 1)] if totals else 0.0
        return [row for row in order if row["total"] >= least]
    return order
