"""Words: object texts as they are spoken and compared, and quoted names as they can be printed."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence


def brief(text: object, limit: int = 120) -> str:
    """One printable line of at most `limit` characters. The keys of a damaged file may contain anything."""
    line = "".join(c if c.isprintable() else "?" for c in str(text))
    return line if len(line) <= limit else line[:limit] + "…"


def some(names: Iterable[object], limit: int = 4) -> str:
    """The first `limit` names and how many more there are."""
    listed = list(names)
    more = f" and {len(listed) - limit} more" if len(listed) > limit else ""
    return ", ".join(brief(name) for name in listed[:limit]) + more


LONGEST_TEXT = 300  # letters of one object text
MOST_TEXTS = 64  # object texts at a time


def printable(text: str) -> str:
    """The text with a “?” for every half of a surrogate pair, which no file, log or tokenizer can encode."""
    return text.encode("utf-8", "replace").decode()


def check_texts(texts: Sequence[str]) -> None:
    """Raises ValueError if these are more object texts, or longer ones, than any picture needs."""
    if len(texts) > MOST_TEXTS:
        raise ValueError(
            f"There are {len(texts)} object texts, from “{brief(texts[0], 40)}” on; at most {MOST_TEXTS} can be "
            "searched at a time: leave some out, or use several nodes."
        )
    if long := [text for text in texts if len(text) > LONGEST_TEXT]:
        raise ValueError(
            f"The object text “{brief(long[0], 40)}” has {len(long[0])} letters; at most {LONGEST_TEXT} are accepted: "
            "name the object in a word or two, such as “red cat”."
        )


def spoken(words: str) -> str:
    """The words without the prompt's syntax: "(red jacket:1.2)" becomes "red jacket".

    Textual inversions are removed, unless nothing else is left.
    """
    words = _WEIGHTS.sub(" ", words)
    words = _EMBEDDINGS.sub(" ", words).strip() or words
    words = " ".join(re.sub(r"\\([()])", r"\1", words).split())
    return re.sub(r" ([,.;])", r"\1", words)


MOST_WORDS = 5  # of an object text: a sentence points at the whole picture instead of a thing in it

# Brackets without a backslash before them; a closing one includes the weight in front of it.
_WEIGHTS = re.compile(r"(?<!\\)\(|(?::\s*[+-]?(?:\d+(?:\.\d*)?|\.\d+)(?:e[+-]?\d+)?\s*)?(?<!\\)\)")
_EMBEDDINGS = re.compile(r"(?:(?<=\s)|^)embedding:\S+")


def plain(words: str) -> str:
    """The form in which object texts and labels are compared: as spoken, without regard to case and spaces."""
    return spoken(words).casefold()


def holds(prompt: str, words: str) -> bool:
    """Whether a prompt holds the words, one after the other and not as a part of other words; both as `plain`."""
    return re.search(rf"(?<![a-z0-9]){re.escape(plain(words))}(?![a-z0-9])", plain(prompt)) is not None


def whole_number(text: str) -> int | None:
    """The number that a text of digits says; None for any other text, and for more digits than a number here has."""
    return int(text) if len(text) < 10 and text.isdecimal() else None


def object_number(wanted: str, texts: Sequence[str]) -> int:
    """The index of the object text that is meant.

    wanted: its words (compared by `plain`) or its number from 1; empty: the first.
    Raises ValueError if no text or several texts match.
    """
    if not plain(wanted):
        return 0
    same = [i for i, text in enumerate(texts) if plain(text) == plain(wanted)]
    if not same and 1 <= (whole_number(wanted.strip()) or 0) <= len(texts):
        return int(wanted) - 1
    if len(same) != 1:
        known = some((f"{i} “{brief(text, 40)}”" for i, text in enumerate(texts, 1)), 16)
        why = "names several of the objects" if same else "is none of the objects"
        raise ValueError(
            f"“{brief(wanted.strip(), 60)}” {why} ({known}): write the words or the number of one of them."
        )
    return same[0]
