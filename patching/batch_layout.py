"""Which rows of a batch are what: conditional or not, of which area, of how many pictures, whole ones or tiles.

`cond_or_uncond` tells it of the UNet call that the host makes; other packs then stack tiles in front of the UNet, or
repeat rows at its sites.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from ..attention.regions import Area, Size

CondRows = tuple[int, int, bool, Area]  # start, stop, conditional, area


class CondEvaluation(NamedTuple):
    """One evaluation of several conds: per index whether it is conditional, per uuid its area, the rows and the size of
    the latents that each is evaluated on, whether it is the guider's own, the one to record, and the model's
    `model_sampling`; window: the numbers of the run's pictures that a context window of the host shows, None without
    one."""

    conditional: tuple[bool, ...]
    areas: Mapping[Any, Area]
    rows: int
    canvas: Size
    main: bool
    model_sampling: Any
    window: list[int] | None

    def __deepcopy__(self, memo: dict) -> CondEvaluation:
        return self  # other packs copy the options that it lies in, some at every step


class CondChunk(NamedTuple):
    """How the rows of one cond are treated; place: the cond's in the evaluation."""

    conditional: bool
    area: Area
    place: int


class BatchLayout:
    """The batch of one UNet call; shape: [rows, channels, h, w], or the rows alone where nobody says.

    pictures: rows of one cond; in_tiles: whether they show parts of the pictures, and nobody says which.
    """

    def __init__(self, shape: Sequence[int], options: Mapping[str, Any], frame: CondEvaluation | None) -> None:
        self._frame = frame
        self.pictures, self._chunks = self._read(shape[0], options)
        self.in_tiles = self._shows_tiles(shape, options.get("context_window"))
        self._parts: dict[int, list[CondRows]] = {}

    def _read(self, rows: int, options: Mapping[str, Any]) -> tuple[int, list[CondChunk]]:
        indices = options.get("cond_or_uncond") or [0]
        uuids = options.get("uuids") or [None] * len(indices)
        frame, chunks = self._frame, []
        for index, uuid in zip(indices, uuids, strict=False):
            conditional = frame.conditional[index] if frame and index < len(frame.conditional) else index == 0
            chunks.append(CondChunk(conditional, frame.areas.get(uuid) if frame else None, index))
        pictures = max(1, rows // len(indices))
        if frame is not None and pictures > frame.rows and pictures % frame.rows == 0:
            # Tiled Diffusion stacks whole batches, all conds of one tile after all of another.
            return frame.rows, chunks * (pictures // frame.rows)
        return pictures, chunks

    def _shows_tiles(self, shape: Sequence[int], window: Any) -> bool:
        """Whether the UNet is given parts of the pictures, and nobody says which: by another pack, or by the host's
        context windows along a side."""
        if getattr(window, "dim", 0) != 0:
            return True
        if self._frame is None or len(shape) < 4:
            return False
        whole = (chunk.area[:2] if chunk.area else self._frame.canvas for chunk in self._chunks)
        return any(tuple(shape[-2:]) != size for size in whole)

    def parts(self, count: int) -> list[CondRows]:
        """Consecutive rows of equal branch and area, merged: [(start, stop, conditional, area)]."""
        if count not in self._parts:
            # Attention couple repeats rows at every site, once a region: of every cond but the one in place 1.
            several = sum(chunk.place != 1 for chunk in self._chunks)
            left = count // self.pictures - (len(self._chunks) - several)
            each = max(1, left // several) if several else 1
            parts: list[CondRows] = []
            stop = 0
            for conditional, area, place in self._chunks:
                start, stop = stop, min(count, stop + self.pictures * (1 if place == 1 else each))
                if start == stop:
                    break
                if parts and parts[-1][2:] == (conditional, area):
                    start = parts.pop()[0]
                parts.append((start, stop, conditional, area))
            self._parts[count] = parts
        return self._parts[count]
