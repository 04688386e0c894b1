"""Which rows of a batch are what: conditional or not, of which area, of how many pictures, complete or in tiles.

The host describes its batch in `cond_or_uncond`. Other packs may change the batch afterwards: they stack tiles before
the UNet, or repeat rows at its sites.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any, NamedTuple

from ..attention.regions import Area, Size


class CondRows(NamedTuple):
    """Rows of a site that are treated alike. cond: the first one's, as in `CondTreatment`."""

    start: int
    stop: int
    conditional: bool
    area: Area
    cond: Hashable


class CondEvaluation(NamedTuple):
    """One evaluation of several conds by the host.

    conditional: for each index in `cond_or_uncond`, whether it is conditional.
    areas: by the cond's uuid.
    rows, canvas: number and size (h, w) of the latents that each cond is evaluated on.
    main: whether the guider itself evaluates them. Only such evaluations are recorded.
    model_sampling: the sampled model's.
    window: the numbers of the run's pictures that a context window of the host shows, None without one.
    lists: for each index, the uuid of its list's first cond, which identifies the list.
    """

    conditional: tuple[bool, ...]
    areas: Mapping[Any, Area]
    rows: int
    canvas: Size
    main: bool
    model_sampling: Any
    window: list[int] | None
    lists: tuple[Any, ...] = ()

    def __deepcopy__(self, memo: dict) -> CondEvaluation:
        return self  # other packs deep-copy the options that hold it, some at every step


class CondTreatment(NamedTuple):
    """How the rows of one cond are treated.

    position: index of the cond in the evaluation.
    cond: what it is known by from step to step. Its uuid is not enough: the host copies it with a cond into another
        list.
    """

    conditional: bool
    area: Area
    position: int
    cond: Hashable


class BatchLayout:
    """The batch of one UNet call.

    shape: [rows, channels, h, w], or [rows] where the rest is unknown.
    options: the host's transformer_options.
    evaluation: the evaluation that the call belongs to; None where the host runs without our wrappers.

    pictures: rows of one cond.
    in_tiles: whether the rows show parts of the pictures at unknown places.
    """

    def __init__(self, shape: Sequence[int], options: Mapping[str, Any], evaluation: CondEvaluation | None) -> None:
        self._evaluation = evaluation
        self.pictures, self._conds = self._read(shape[0], options)
        self.in_tiles = self._shows_tiles(shape, options.get("context_window"))
        self._groups: dict[tuple[int, bool], list[CondRows]] = {}

    def _read(self, rows: int, options: Mapping[str, Any]) -> tuple[int, list[CondTreatment]]:
        indices = options.get("cond_or_uncond") or [0]
        uuids = options.get("uuids") or [None] * len(indices)
        known, conds = self._evaluation, []
        for index, uuid in zip(indices, uuids, strict=False):
            conditional = known.conditional[index] if known and index < len(known.conditional) else index == 0
            of = known.lists[index] if known and index < len(known.lists) else index
            conds.append(CondTreatment(conditional, known.areas.get(uuid) if known else None, index, (of, uuid)))
        pictures = max(1, rows // len(indices))
        if known is not None and pictures > known.rows and pictures % known.rows == 0:
            # Tiled Diffusion stacks complete batches: all conds of one tile, then all conds of the next.
            return known.rows, conds * (pictures // known.rows)
        return pictures, conds

    def _shows_tiles(self, shape: Sequence[int], window: Any) -> bool:
        """Whether the UNet gets parts of the pictures at unknown places.

        Another pack may cut tiles, or the host's context windows may run along a side of the picture.
        """
        if getattr(window, "dim", 0) != 0:
            return True
        if self._evaluation is None or len(shape) < 4:
            return False
        expected = (cond.area[:2] if cond.area else self._evaluation.canvas for cond in self._conds)
        return any(tuple(shape[-2:]) != size for size in expected)

    def groups(self, count: int, apart: bool = False) -> list[CondRows]:
        """The `count` rows of a site. Neighbours of equal treatment are merged, unless conds are kept apart."""
        if (count, apart) not in self._groups:
            # Attention couple repeats rows at every site, once per region: all conds but the one at position 1.
            repeated = sum(cond.position != 1 for cond in self._conds)
            left = count // self.pictures - (len(self._conds) - repeated)
            times = max(1, left // repeated) if repeated else 1
            groups: list[CondRows] = []
            stop = 0
            for conditional, area, position, cond in self._conds:
                start, stop = stop, min(count, stop + self.pictures * (1 if position == 1 else times))
                if start == stop:
                    break
                if groups and not apart and groups[-1][2:4] == (conditional, area):
                    start, *_, cond = groups.pop()
                groups.append(CondRows(start, stop, conditional, area, cond))
            self._groups[count, apart] = groups
        return self._groups[count, apart]
