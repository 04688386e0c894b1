"""Which rows of a batch are what: conditional or not, of which area, of how many pictures, complete or in tiles.

The host describes its batch in `cond_or_uncond`. Other packs may change the batch afterwards: they stack tiles before
the UNet, or repeat rows at its sites.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..attention.regions import Area, Size

# Numbers of pictures of the run: all, some, or None where nobody knows.
Pictures = slice | list[int] | None

SAME_KEYS = 1e-4  # largest squared error of a cond's keys, relative to their mean square; two prompts differ by 0.1


class CondRows(NamedTuple):
    """Rows of a site that are treated alike. cond_id: the first cond's, as in `CondTreatment`."""

    start: int
    stop: int
    conditional: bool
    area: Area
    cond_id: Hashable

    @property
    def treatment(self) -> tuple[bool, Area, Hashable]:
        return self.conditional, self.area, self.cond_id


class CondEvaluation(NamedTuple):
    """One evaluation of several conds by the host.

    conditional: for each index in `cond_or_uncond`, whether it is conditional.
    areas: by the cond's uuid, in latent pixels of the canvas.
    rows: number of the latents that each cond is evaluated on.
    canvas: size (h, w) of the whole picture.
    crop: the area that the latents show; None: the whole canvas.
    in_parts: whether the latents show a part of the canvas, and nobody says which.
    main: whether the guider itself evaluates them. Only such evaluations are recorded.
    model_sampling: the sampled model's.
    window: the numbers of the run's pictures that a context window shows, None without one.
    contexts: the conds' embeddings [1 or rows, L, X], by index and uuid.
    list_ids: for each index, the name of the guider's list that its conds come from; the first cond's uuid for others.
    """

    conditional: tuple[bool, ...]
    areas: Mapping[Any, Area]
    rows: int
    canvas: Size
    crop: Area
    in_parts: bool
    main: bool
    model_sampling: Any
    window: list[int] | None
    contexts: Mapping[tuple[int, Any], Tensor]
    list_ids: tuple[Any, ...] = ()

    def __deepcopy__(self, memo: dict) -> CondEvaluation:
        return self  # other packs deep-copy the options that hold it, some at every step


class CondTreatment(NamedTuple):
    """How the rows of one cond are treated.

    cond_index: in `cond_or_uncond`.
    cond_id: what the cond is known by from step to step. Its uuid is not enough: the host copies it with a cond into
        another list.
    context: its embedding; None if unknown.
    """

    conditional: bool
    area: Area
    cond_index: int
    cond_id: Hashable
    context: Tensor | None


class BatchLayout:
    """The batch of one UNet call.

    shape: [rows, channels, h, w], or [rows] where the rest is unknown.
    options: the host's transformer_options.
    evaluation: the evaluation that the call belongs to; None where the host runs without our wrappers.
    window: the numbers of the pictures in a context window, None without one.

    rows_per_cond: as many as the pictures that this call draws.
    in_tiles: whether the rows show parts of the pictures at unknown places.
    """

    def __init__(
        self,
        shape: Sequence[int],
        options: Mapping[str, Any],
        evaluation: CondEvaluation | None,
        window: Sequence[int] | None = None,
    ) -> None:
        self._evaluation = evaluation
        self.rows_per_cond, self._conds = self._read(shape[0], options)
        self._surplus = shape[0] - self.rows_per_cond * len(self._conds)
        self._expected = len(window) if window else evaluation.rows if evaluation else self.rows_per_cond
        self.in_tiles = self._shows_tiles(shape, options.get("context_window"))
        self._cond_rows: dict[tuple[int, bool], list[CondRows]] = {}

    def _read(self, rows: int, options: Mapping[str, Any]) -> tuple[int, list[CondTreatment]]:
        indices = options.get("cond_or_uncond") or [0]
        uuids = options.get("uuids") or [None] * len(indices)
        evaluation, conds = self._evaluation, []
        for index, uuid in zip(indices, uuids, strict=False):
            conditional = index == 0
            if evaluation and index < len(evaluation.conditional):
                conditional = evaluation.conditional[index]
            area = evaluation.areas.get(uuid, evaluation.crop) if evaluation else None
            its_list = evaluation.list_ids[index] if evaluation and index < len(evaluation.list_ids) else index
            context = evaluation.contexts.get((index, uuid)) if evaluation else None
            conds.append(CondTreatment(conditional, area, index, (its_list, uuid), context))
        picture_count = max(1, rows // len(indices))
        if evaluation is not None and picture_count > evaluation.rows and picture_count % evaluation.rows == 0:
            # Tiled Diffusion stacks complete batches: all conds of one tile, then all conds of the next.
            return evaluation.rows, conds * (picture_count // evaluation.rows)
        return picture_count, conds

    def _shows_tiles(self, shape: Sequence[int], window: Any) -> bool:
        """Whether the UNet gets parts of the pictures at unknown places.

        Another pack may cut tiles, or the host's context windows may run along a side of the picture.
        """
        if getattr(window, "dim", 0) != 0:
            return True
        if self._evaluation is None or len(shape) < 4:
            return False
        if self._evaluation.in_parts:
            return True
        expected = (cond.area[:2] if cond.area else self._evaluation.canvas for cond in self._conds)
        return any(tuple(shape[-2:]) != size for size in expected)

    def cond_rows(self, count: int, each_cond: bool = False) -> list[CondRows]:
        """The `count` rows of a site. Equal neighbours are merged, with each_cond only those of one cond."""
        if (count, each_cond) not in self._cond_rows:
            times = max(1, self._repetitions(count)[0])
            found: list[CondRows] = []
            stop = 0
            for conditional, area, cond_index, cond_id, _ in self._conds:
                start, stop = stop, min(count, stop + self.rows_per_cond * (1 if cond_index == 1 else times))
                if start == stop:
                    break
                last = found[-1] if found and not each_cond else None
                if last is not None and (last.conditional, last.area) == (conditional, area):
                    found[-1] = last._replace(stop=stop)
                else:
                    found.append(CondRows(start, stop, conditional, area, cond_id))
            self._cond_rows[count, each_cond] = found
        return self._cond_rows[count, each_cond]

    def _repetitions(self, count: int) -> tuple[int, int]:
        """How often `count` rows of a site hold the conds that attention couple repeats, and how many rows are left.

        It repeats rows at every site, once per region: all conds but number 1, the negative prompt.
        """
        repeated = self.rows_per_cond * sum(cond.cond_index != 1 for cond in self._conds)
        left = count - (self.rows_per_cond * len(self._conds) - repeated)
        return divmod(left, repeated) if repeated else (1, left)

    def too_few(self, count: int) -> bool:
        """Whether `count` rows of a site cannot be all rows of the conds: another pack sends them in parts."""
        return count < self._expected * len(self._conds)

    def too_many(self, count: int, appended: int) -> bool:
        """Whether `count` rows of a site are more than all rows of the conds, in an order of another pack's.

        appended: how many the model has more than the batch.
        """
        if self._evaluation is None or self.too_few(count):
            return False  # without an evaluation nobody says how many there are
        whole = self._surplus == 0 and self.rows_per_cond <= self._evaluation.rows and appended <= 0
        return not whole or self._repetitions(count)[1] > 0

    def cond_rows_by_text_keys(self, text_keys: Tensor, to_k: Callable[[Tensor], Tensor]) -> list[CondRows] | None:
        """As `cond_rows`, for some rows of unknown conds, told by the keys of their text. None if those do not tell.

        text_keys: [rows, L, C], of the prompts. to_k: the site's.
        It waits for the device, and is called only where a count of rows says that the conds come in parts.
        """
        off = []
        for cond in self._conds:
            expected = None if cond.context is None else to_k(cond.context.to(text_keys))
            if expected is None or expected.shape[1] > text_keys.shape[1]:
                return None
            # The host repeats a shorter prompt. A cond may have an embedding for each picture.
            given = text_keys[:, : expected.shape[1]]
            error = torch.stack([(given - one).float().square().mean((1, 2)) for one in expected]).amin(0)
            off.append(error / expected.float().square().mean())
        found: list[CondRows] = []
        for row, fits in enumerate((torch.stack(off) < SAME_KEYS).T.tolist()):
            fitting = [cond for cond, fit in zip(self._conds, fits, strict=True) if fit]
            if len({(cond.conditional, cond.area) for cond in fitting}) != 1:
                return None  # nothing fits, or two branches have the same prompt
            told = fitting[0]
            here = CondRows(row, row + 1, told.conditional, told.area, told.cond_id)
            if found and found[-1].treatment == here.treatment:
                found[-1] = found[-1]._replace(stop=row + 1)
            else:
                found.append(here)
        return found


def window_of_another_pack(options: Mapping[str, Any]) -> list[int] | None:
    """The numbers of the pictures in a context window of AnimateDiff-Evolved, None without one."""
    said = options.get("ad_params")
    numbers = said.get("sub_idxs") if isinstance(said, Mapping) else None
    return [int(number) for number in numbers] if numbers else None
