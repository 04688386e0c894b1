"""Words: what an artist writes, as it is spoken and compared; what a message quotes, as it can be printed."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence


def shown(text: object, limit: int = 120) -> str:
    """One printable line: a damaged file's keys may hold anything."""
    line = "".join(c if c.isprintable() else "?" for c in str(text))
    return line if len(line) <= limit else line[:limit] + "…"


def some(names: Iterable[object], limit: int = 4) -> str:
    """The first few, and how many more there are."""
    listed = list(names)
    more = f" and {len(listed) - limit} more" if len(listed) > limit else ""
    return ", ".join(shown(name) for name in listed[:limit]) + more


def spoken(words: str) -> str:
    """The words alone, for whoever does not know the prompts' syntax: "(red jacket:1.2)" is "red jacket". Textual
    inversions go where words are left."""
    words = _WEIGHTS.sub(" ", words)
    words = _EMBEDDINGS.sub(" ", words).strip() or words
    words = " ".join(re.sub(r"\\([()])", r"\1", words).split())
    return re.sub(r" ([,.;])", r"\1", words)


# Brackets that no backslash stands before, closing ones with the number in front of them.
_WEIGHTS = re.compile(r"(?<!\\)\(|(?::\s*[+-]?(?:\d+\.?\d*|\.\d+)(?:e[+-]?\d+)?\s*)?(?<!\\)\)")
_EMBEDDINGS = re.compile(r"(?:(?<=\s)|^)embedding:\S+")


def plain(words: str) -> str:
    """What object texts and labels are compared by: as spoken, capitals and spaces do not matter."""
    return spoken(words).casefold()


def object_number(wanted: str, texts: Sequence[str]) -> int:
    """Which of several object texts is meant by its words (`plain`) or its number from 1 on; empty means the first.
    Raises ValueError for one that is not there, or there twice."""
    if not plain(wanted):
        return 0
    same = [i for i, text in enumerate(texts) if plain(text) == plain(wanted)]
    if not same and wanted.strip().isdecimal() and 1 <= int(wanted) <= len(texts):
        return int(wanted) - 1
    if len(same) != 1:
        known = ", ".join(f"{i} “{text}”" for i, text in enumerate(texts, 1))
        why = "names several of the objects" if same else "is none of the objects"
        raise ValueError(f"“{wanted.strip()}” {why} ({known}): write the words or the number of one of them.")
    return same[0]
