"""What a sampling passes to its records: which run it is, and what a site measured."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

PHASES = ("early", "middle", "late")  # thirds of the steps


class RunId(NamedTuple):
    """One sampling run.

    key: an object that identifies the run.
    picture_count: of its batch.
    prompt_id: of the queued graph that it belongs to; None where the host does not say.
    """

    key: object
    picture_count: int
    prompt_id: str | None = None


class Observation(NamedTuple):
    """What one site measured on its rows: C conds of P pictures, cond after cond.

    shares: [M, C·P, h, w]; None where the merge has constant shares.
    gate: [C·P, h, w], the fusion head's g̃, or None.
    canvas: (H, W) of the whole canvas at the site's resolution.
    corner: (y, x) of the canvas at which the rows begin.
    acting: how many of the objects act; the others' shares are 0.
    pictures: which pictures of the run: all, or a list of P numbers.
    """

    shares: Tensor | None
    gate: Tensor | None
    canvas: tuple[int, int]
    corner: tuple[int, int]
    acting: int
    pictures: slice | list[int] = slice(None)
