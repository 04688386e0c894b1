"""What was found in pictures: boxes and masks of objects, whoever found them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from ...common.crops import Box


@dataclass(frozen=True, eq=False)
class Detection:
    """One object that was found. score in 0..1; mask [H, W] in 0..1 over the whole picture, or None: all of the box."""

    box: Box
    score: float = 1.0
    mask: Tensor | None = None

    def region(self, height: int, width: int) -> Tensor:
        """[H, W] in 0..1: the mask, or the box filled."""
        if self.mask is not None:
            return self.mask.float()
        region = torch.zeros(height, width)
        x0, y0, x1, y1 = (round(v) for v in self.box)
        region[max(y0, 0) : max(y1, 0), max(x0, 0) : max(x1, 0)] = 1
        return region


@dataclass(frozen=True, eq=False)
class Detections:
    """What was found in a batch of B pictures for M object texts.

    found[b][m]: everything found in picture b for text m, best score first; empty where nothing was.
    threshold: the least score that counted, None where no detector was asked. near[b][m]: where nothing was found, the
    threshold below which something would have been, 0 for nothing.
    """

    texts: tuple[str, ...]
    height: int
    width: int
    found: tuple[tuple[tuple[Detection, ...], ...], ...]
    threshold: float | None = None
    near: tuple[tuple[float, ...], ...] = ()

    def __len__(self) -> int:
        return len(self.found)

    def best(self, picture: int, text: int) -> Detection | None:
        """The one with the highest score, None where nothing was found."""
        each = self.found[picture][text]
        return each[0] if each else None

    def why_missing(self, picture: int, text: int) -> str:
        """A sentence that says what was found in a picture instead of a text, and what to do; empty where it was."""
        if self.found[picture][text]:
            return ""
        others = [
            f"{name} {each[0].score:.2f}" for name, each in zip(self.texts, self.found[picture], strict=True) if each
        ]
        near = self.near[picture][text] if self.near else 0.0
        close = f" (the best candidate has {near:.2f})" if near else ""
        if self.threshold is None:
            where, mend = "is marked", "Mark it"
        else:
            where, mend = f"was found at threshold {self.threshold:g}{close}", "Lower the threshold"
        return (
            f"No “{self.texts[text]}” {where} in picture {picture + 1}; found there: {', '.join(others) or 'nothing'}. "
            f"{mend}, name the object in other words, leave it out of the object texts, or leave out the picture."
        )

    def every(self, picture: int) -> Iterator[tuple[int, Detection]]:
        """(text, detection) of all that was found in one picture."""
        for text, each in enumerate(self.found[picture]):
            for detection in each:
                yield text, detection
