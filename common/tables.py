"""Numbers in tables, for reports."""

from __future__ import annotations

from collections.abc import Sequence

NOTHING = "–"  # where there is nothing to measure


def table(header: Sequence[str], rows: Sequence[Sequence[str]], words: int = 1) -> str:
    """A Markdown table whose columns are also aligned as plain text.

    words: how many of the first columns hold words, aligned left. The others hold numbers, aligned right.
    """
    lines = [header, *rows]
    widths = [max(3, *(len(line[i]) for line in lines)) for i in range(len(header))]
    ruler = ["-" * width if i < words else "-" * (width - 1) + ":" for i, width in enumerate(widths)]

    def cells(line: Sequence[str]) -> str:
        padded = (c.ljust(w) if i < words else c.rjust(w) for i, (c, w) in enumerate(zip(line, widths, strict=True)))
        return f"| {' | '.join(padded)} |"

    return "\n".join(map(cells, (header, ruler, *rows)))


def number(value: float | None, digits: int = 3, sign: bool = False) -> str:
    """A number as text with a true minus sign; a dash for None. sign: also write the plus."""
    if value is None:
        return NOTHING
    return f"{value:{'+' if sign else ''}.{digits}f}".replace("-", "−")


def percent(fraction: float) -> str:
    """A fraction in 0..1 as a percentage."""
    return f"{fraction * 100:.0f} %"
