"""Error messages for bad input: one sentence that says what, got, expected and how to fix it."""

from __future__ import annotations

import pytest

INPUTS = ("scale", "start_percent", "merge", "normalization", "background", "sharpness", "unclaimed", "fusion")


def told(call, *words: str) -> str:
    """The call must raise ValueError with a sentence that contains all of the words."""
    with pytest.raises(ValueError) as caught:
        call()
    return says(str(caught.value), *words)


def says(said: str, *words: str) -> str:
    """The text must be a sentence that contains all of the words."""
    assert all(word in said for word in words), said
    assert said[0] == "“" or said[0].isupper() or said.split()[0] in INPUTS, f"not a sentence: {said}"
    assert said.endswith(".") and "\n" not in said and 40 < len(said) < 500, f"not a sentence: {said}"
    return said
