"""Segmenters from local Hugging Face folders: SAM, SAM-HQ, SAM 2 and any other model that transformers loads for mask
generation and that takes boxes."""

from __future__ import annotations

import inspect
from collections.abc import Sequence

import torch
from PIL import Image
from torch import Tensor

from ...common.crops import Box
from ..model_folder import FolderModel


class FolderSegmenter(FolderModel):
    """Cuts out what boxes hold."""

    what, auto = "segmenter", ("AutoModelForMaskGeneration", "AutoProcessor")

    @torch.inference_mode()
    def masks(self, picture: Image.Image, boxes: Sequence[Box]) -> Tensor:
        """The mask of the object in each box, [boxes, H, W] bool. Raises ValueError if the model answers with NaN."""
        if not boxes:
            return torch.zeros(0, picture.height, picture.width, dtype=torch.bool)
        made = self.prepared(images=picture, input_boxes=[[list(box) for box in boxes]])
        given = self.on_device(made)
        with self.errors_named():
            output = self.model(**given, multimask_output=False)
        if torch.isnan(output.pred_masks).any():
            raise ValueError(
                f"The segmenter “{self.name}” answers with NaN: use --device cpu, or download its weights again."
            )
        process = self.processor.post_process_masks
        sizes = {name: made[name] for name in ("original_sizes", "reshaped_input_sizes") if name in made}
        asked = inspect.signature(process).parameters
        known = {name: value for name, value in sizes.items() if name in asked or "kwargs" in asked or "args" in asked}
        with self.errors_named():
            (masks,) = process(output.pred_masks.float().cpu(), **known)  # [boxes, 1, H, W]
        return masks[:, 0].bool()


load_segmenter = FolderSegmenter.load
