"""Numbers in rows, for people who read a report."""

from __future__ import annotations

from collections.abc import Sequence

NOTHING = "–"  # where there is nothing to measure


def table(header: Sequence[str], rows: Sequence[Sequence[str]], words: int = 1) -> str:
    """A Markdown table whose columns stand straight as plain text too; the first `words` columns to the left, the
    others, numbers, to the right."""
    lines = [header, *rows]
    widths = [max(3, *(len(line[i]) for line in lines)) for i in range(len(header))]
    ruler = ["-" * width if i < words else "-" * (width - 1) + ":" for i, width in enumerate(widths)]

    def cells(line: Sequence[str]) -> str:
        padded = (c.ljust(w) if i < words else c.rjust(w) for i, (c, w) in enumerate(zip(line, widths, strict=True)))
        return f"| {' | '.join(padded)} |"

    return "\n".join(map(cells, (header, ruler, *rows)))


def number(value: float | None, digits: int = 3, sign: bool = False) -> str:
    """With a true minus sign; a dash for None."""
    if value is None:
        return NOTHING
    return f"{value:{'+' if sign else ''}.{digits}f}".replace("-", "−")


def percent(share: float) -> str:
    return f"{share * 100:.0f} %"
