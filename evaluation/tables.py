"""Numbers in rows, for people who read a report."""

from __future__ import annotations

from collections.abc import Sequence

NOTHING = "–"  # where there is nothing to measure


def aligned(header: Sequence[str], rows: Sequence[Sequence[str]], words: int = 1) -> str:
    """Lines of columns; the first `words` columns to the left, the others, numbers, to the right."""
    lines = [header, *rows]
    widths = [max(len(line[i]) for line in lines) for i in range(len(header))]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if i < words else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )


def number(value: float | None, digits: int = 3, sign: bool = False) -> str:
    """With a true minus sign; a dash for None."""
    if value is None:
        return NOTHING
    return f"{value:{'+' if sign else ''}.{digits}f}".replace("-", "−")


def percent(share: float) -> str:
    return f"{share * 100:.0f} %"
