"""Text files from anywhere, read with care."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from .text import brief

LARGEST = 1 << 24  # bytes


def read_text(path: Path, largest: int = LARGEST) -> str:
    """The text of a file, without a byte order mark.

    Raises ValueError for what is no regular file of at most `largest` bytes (a pipe would block for ever) and for what
    is not UTF-8; OSError for a file that cannot be opened.
    """
    if path.exists() and (not path.is_file() or path.stat().st_size > largest):
        raise ValueError(f"{brief(path, 300)} is no file of at most {largest >> 20} MB")
    try:
        return path.read_text("utf-8-sig")
    except UnicodeError as error:
        raise ValueError(f"{brief(path, 300)} is no text in UTF-8 ({error})") from error


def parse_json(text: str) -> Any:
    """What a text in JSON holds. Raises ValueError for any other text, and for one that is nested too deeply."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"it is no readable JSON ({brief(error)})") from error
