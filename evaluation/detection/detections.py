"""What was found in pictures: boxes and masks of objects, from a detector or from other nodes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ...attention.reference import Reference, colours_of
from ...common.crops import Box
from ...common.drawing import Colour, colour, colour_numbers
from ...common.text import plain


@dataclass(frozen=True, eq=False)
class Detection:
    """One object that was found.

    box: x0, y0, x1, y1 in pixels, ends excluded.
    score: in 0..1.
    mask [H, W]: in 0..1 over the whole picture; None stands for all of the box.
    """

    box: Box
    score: float = 1.0
    mask: Tensor | None = None

    def as_mask(self, height: int, width: int) -> Tensor:
        """The mask, or the filled box as one, [H, W] in 0..1."""
        if self.mask is not None:
            return self.mask.float()
        filled = torch.zeros(height, width)
        x0, y0, x1, y1 = (round(v) for v in self.box)
        filled[max(y0, 0) : max(y1, 0), max(x0, 0) : max(x1, 0)] = 1
        return filled


@dataclass(frozen=True, eq=False)
class Detections:
    """What was found in a batch of B pictures for M object texts.

    texts: the M object texts.
    height, width: of the pictures, in pixels.
    found[b][m]: all detections in picture b for text m, best score first.
    threshold: the lowest score that counts, or None without a detector.
    best_rejected[b][m]: where nothing was found, the threshold below which something would have been; 0 for nothing at
        all.
    colours: the numbers of the texts' colours (`common/drawing.py`: `colour`); empty: in the texts' order.
    """

    texts: tuple[str, ...]
    height: int
    width: int
    found: tuple[tuple[tuple[Detection, ...], ...], ...]
    threshold: float | None = None
    best_rejected: tuple[tuple[float, ...], ...] = ()
    colours: tuple[int, ...] = ()

    def __len__(self) -> int:
        return len(self.found)

    def in_colours_of(self, references: Sequence[Reference]) -> Detections:
        """The same, each text in the colour of the reference with that text."""
        known = {plain(each.text): number for each, number in zip(references, colours_of(references), strict=True)}
        return replace(self, colours=colour_numbers(known.get(plain(text)) for text in self.texts))

    def colour(self, text: int) -> Colour:
        """In which a text's objects are drawn."""
        return colour(self.colours[text] if self.colours else text)

    def why_missing(self, picture: int, text: int) -> str:
        """Why a text has no detection in one picture, what was found there, and a remedy; "" where it has one."""
        if self.found[picture][text]:
            return ""
        others = [
            f"{name} {each[0].score:.2f}" for name, each in zip(self.texts, self.found[picture], strict=True) if each
        ]
        best = self.best_rejected[picture][text] if self.best_rejected else 0.0
        close = f" (the best candidate has {best:.2f})" if best else ""
        if self.threshold is None:
            where, remedy = "is marked", "Mark it"
        else:
            where, remedy = f"was found at threshold {self.threshold:g}{close}", "Lower the threshold"
        return (
            f"No “{self.texts[text]}” {where} in picture {picture + 1}; found there: {', '.join(others) or 'nothing'}. "
            f"{remedy}, name the object in other words, leave it out of the object texts, or leave out the picture."
        )

    def every(self, picture: int) -> Iterator[tuple[int, Detection]]:
        """All detections in one picture as (number of the text, detection)."""
        for text, each in enumerate(self.found[picture]):
            for detection in each:
                yield text, detection
