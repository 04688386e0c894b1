"""Markdown tables of the docs, read back."""

from __future__ import annotations


def cells(line: str) -> list[str]:
    """The cells of a row, without asterisks."""
    return [cell.strip() for cell in line.replace("*", "").strip().strip("|").split("|")]


def table(text: str, heading: str) -> list[dict[str, str]]:
    """The rows below the first line that begins with `heading`, by the names of their columns."""
    lines = text.splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith(heading))
    names, rows = cells(lines[start]), []
    for line in lines[start + 2 :]:
        if not line.startswith("|"):
            break
        rows.append(dict(zip(names, cells(line), strict=True)))
    return rows
