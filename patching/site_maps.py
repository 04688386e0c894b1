"""Regions and frozen maps, where a site sees them."""

from __future__ import annotations

import torch
from torch import Tensor

from ..attention.plan import Plan
from ..attention.regions import Area, Size, cut_to_site
from ..attention.site import SiteConstants
from .batch_layout import BatchLayout, Pictures
from .sampling_state import Caches


class SiteMaps:
    """The plans' maps at the sites of one call.

    picture_count: of the run.
    canvas: size (h, w) of the whole picture; None if it is unknown.
    """

    def __init__(self, batch: BatchLayout, picture_count: int, canvas: Size | None, caches: Caches) -> None:
        self._batch, self._picture_count, self._canvas = batch, picture_count, canvas
        self._known = caches.constants

    def constants(self, plan: Plan, area: Area, size: Size, device: torch.device | None) -> SiteConstants:
        """The plan's constants at a site that shows an area of the canvas.

        The plan's maps stay on the CPU. What a site sees of them is moved to the device once per resolution.
        Raises ValueError if there are maps and the pictures are sampled in unknown tiles, or if the maps are of another
        number of pictures.
        """
        if self._batch.in_tiles and not (plan.regions is None and plan.frozen is None):
            what = "Regions" if plan.frozen is None else "Frozen maps"
            raise ValueError(
                f"{what} cannot be placed: this picture is sampled in tiles, and nobody says in which. Give the tiles "
                "the model from before MIP Apply, or disconnect “region” and “frozen”."
            )
        canvas = None if area is None else self._canvas
        key = plan, canvas, area, size, device

        def at_site(maps: Tensor | None) -> Tensor | None:
            return None if maps is None else cut_to_site(maps, area, canvas, size).to(device)

        if key not in self._known:
            self._check_pictures(plan)
            self._known[key] = SiteConstants.from_plan(plan, at_site(plan.regions), at_site(plan.frozen))
        return self._known[key]

    def _check_pictures(self, plan: Plan) -> None:
        """Raises ValueError if the plan's maps are of another number of pictures than the run."""
        expected = self._picture_count
        if plan.frozen is not None and plan.frozen.shape[1] not in (1, expected):
            raise ValueError(
                f"The frozen maps are of {plan.frozen.shape[1]} pictures and this sampling makes {expected}: use the "
                "same batch size for both passes, or a first pass of one picture."
            )
        if plan.regions is not None and plan.regions.shape[1] not in (1, expected):
            raise ValueError(
                f"There are region masks for {plan.regions.shape[1]} pictures and this sampling makes {expected}: one "
                "mask is for all pictures, several are one for each. Give as many masks as pictures, or unite them "
                "before MIP Reference (MaskComposite, “add”)."
            )


def by_row(constants: SiteConstants, shown: Pictures, rows: int) -> SiteConstants:
    """Constants with maps [..., pictures, N] spread over the rows that show the pictures: [..., 1 or rows, N].

    shown: the pictures.
    Raises ValueError if the maps are of several pictures, and the pictures that the rows show are unknown.
    """

    def spread(maps: Tensor | None) -> Tensor | None:
        if maps is None or maps.shape[-2] == 1:
            return maps
        if shown is None:
            raise ValueError(
                f"The frozen maps or region masks are of {maps.shape[-2]} pictures, and another pack samples some of "
                "them at a time without saying which: use ComfyUI's own context windows, or maps and masks of one "
                "picture."
            )
        of_shown = maps[..., shown, :]
        return of_shown.repeat(1, rows // of_shown.shape[-2], 1)

    return SiteConstants(*map(spread, constants))
