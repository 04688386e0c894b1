"""Files that appear whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path
from uuid import uuid4


def write_whole(path: Path, content: str | bytes) -> None:
    """A temporary name beside the file, then one rename."""
    temporary = path.with_name(f".{path.name}.{uuid4().hex}.tmp")  # machines that share a folder share process ids
    try:
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
