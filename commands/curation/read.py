"""The objects of a training picture, filtered and cut out as in training, for the encoder of the score."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ...common.pictures import open_picture
from ...training.crops import cut_reference
from ...training.data_folder import picture_ids, picture_path, read_json, read_mask
from ...training.filters import Filters, candidates, refuse_names, with_masks
from .score import LabelledCrops


@dataclass(frozen=True)
class Folder:
    """A folder in the training layout, whose pictures are read by id.

    least: how many objects a picture must have.
    most: how many of them count, the most confident first; None counts all.
    filters: those of training.
    """

    path: Path
    least: int = 2
    most: int | None = None
    filters: Filters = field(default_factory=Filters)

    def ids(self) -> list[str]:
        return picture_ids(self.path)[1]

    def objects(self, picture_id: str) -> LabelledCrops | str:
        """Labels and crops of a picture's sound objects, or the reason why training would leave the picture out.

        An object is sound if the filters let training take it. Names must differ among the first `most` objects, or
        without `most` among the first `least`. So a second cat in the background does not exclude a picture, although
        the score counts that it looks like the first.

        Raises ValueError if a file is broken.
        """
        try:
            return self._objects(picture_id)
        except Exception as error:  # a damaged file can raise anything in its decoder
            raise ValueError(f"{type(error).__name__}: {error}") from error

    def _objects(self, picture_id: str) -> LabelledCrops | str:
        with open_picture(self.picture(picture_id)) as image:
            picture = np.array(image.convert("RGB"))
        size = picture.shape[1], picture.shape[0]
        data = self.data(picture_id)
        found, why = candidates(data["final_masks"], str(data["text"]), size, self.filters, self.least)
        if why:
            return why
        values = read_mask(self.path, picture_id, size)
        found, why = with_masks(found, values, self.filters, self.least)
        chosen = found[: self.most]
        if why := why or refuse_names(found[: self.most or self.least], self.filters):
            return why
        cuts = [cut_reference(picture, values, each.box, False) for each in chosen]
        crops = [(cut.permute(1, 2, 0).numpy() * 255).round().astype(np.uint8) for cut in cuts if cut is not None]
        return LabelledCrops([each.label for each in chosen], crops)  # `with_masks` leaves no empty masks

    def data(self, picture_id: str) -> dict[str, Any]:
        return read_json(self.path, picture_id)

    def picture(self, picture_id: str) -> Path:
        return picture_path(self.path, picture_id)
