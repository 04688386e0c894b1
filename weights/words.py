"""Names out of files, fit to stand in a message."""

from __future__ import annotations

from collections.abc import Iterable


def shown(text: object, limit: int = 120) -> str:
    """One printable line: a damaged file's keys may hold anything."""
    line = "".join(c if c.isprintable() else "?" for c in str(text))
    return line if len(line) <= limit else line[:limit] + "…"


def some(names: Iterable[object], limit: int = 4) -> str:
    """The first few, and how many more there are."""
    listed = list(names)
    more = f" and {len(listed) - limit} more" if len(listed) > limit else ""
    return ", ".join(shown(name) for name in listed[:limit]) + more
