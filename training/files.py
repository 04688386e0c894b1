"""Text and bytes as files that appear whole or not at all."""

from __future__ import annotations

from pathlib import Path

from ..weights.whole import whole_file


def write_whole(path: Path, content: str | bytes) -> None:
    with whole_file(path) as temporary:
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)
