"""Captions to token numbers. Every word of the world is one token of CLIP's, so a table does."""

import re
from collections.abc import Sequence

import torch
from torch import Tensor

from ....miniature import world_words
from ....miniature.world_looks import COLOURS, PATTERNS
from ....miniature.world_shapes import KINDS
from .. import clip

START = 49406


class Words:
    """A caption's token numbers, equal to the host's tokenizer's (a test compares them)."""

    def __init__(self, tokenize):
        """`tokenize(text)` gives the host's token numbers of a text, with start and end."""
        phrases = (*KINDS, *COLOURS, *PATTERNS, *world_words.OPENINGS, *world_words.LINKS, "a an ,")
        words = {word for phrase in phrases for word in _split(phrase)}
        self.numbers = {}
        for word in sorted(words):
            ids = list(tokenize(word))
            content = ids[1 : ids.index(clip.END)]
            if len(content) != 1:
                raise ValueError(f"“{word}” is {len(content)} tokens for CLIP; the world wants one. Choose another.")
            self.numbers[word] = content[0]

    def rows(self, captions: Sequence[str], pad: int, length: int | None = None) -> Tensor:
        """[B, L] token numbers, filled up with `pad`; L fits the longest where no length is given."""
        rows = [[START, *(self.numbers[word] for word in _split(c)), clip.END] for c in captions]
        length = length or max(map(len, rows))
        return torch.tensor([row + [pad] * (length - len(row)) for row in rows])


def _split(text: str) -> list[str]:
    return re.findall(r"\w+|,", text)
