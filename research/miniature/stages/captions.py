"""Captions to token ids. Every word of the world is one CLIP token, so a table is enough."""

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
    """Token ids of captions, equal to those of ComfyUI's tokenizer (a test compares them)."""

    def __init__(self, tokenize):
        """tokenize: gives ComfyUI's token ids of a text, with start and end."""
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
        """[B, L] token ids, padded with `pad`. Without a length, L fits the longest caption."""
        rows = [[START, *(self.numbers[word] for word in _split(c)), clip.END] for c in captions]
        length = length or max(map(len, rows))
        return torch.tensor([row + [pad] * (length - len(row)) for row in rows])


def _split(text: str) -> list[str]:
    return re.findall(r"\w+|,", text)
