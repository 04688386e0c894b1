"""Segmenters from local Hugging Face folders: SAM, SAM-HQ, SAM 2 and any other model that transformers loads for mask
generation and that takes boxes."""

from __future__ import annotations

import inspect
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from ...common.crops import Box
from ..model_folder import Keeper, Ready, inputs, on, read

CLASSES = "AutoModelForMaskGeneration", "AutoProcessor"


def load_segmenter(folder: str | os.PathLike[str], keeper: Keeper | None = None) -> FolderSegmenter:
    """A segmenter from a local Hugging Face folder.

    keeper: takes charge of the model; by default it stays on the CPU.

    Raises ValueError for any other folder.
    """
    model, processor = read(folder, "segmenter", *CLASSES)
    return FolderSegmenter(Path(folder).name, model, processor, (keeper or on("cpu"))(model))


@dataclass(frozen=True, eq=False)
class FolderSegmenter:
    """Cuts out what boxes hold. ready: prepares the model before each picture (`model_folder.Ready`)."""

    name: str
    model: Any
    processor: Any
    ready: Ready

    @torch.inference_mode()
    def masks(self, picture: Image.Image, boxes: Sequence[Box]) -> Tensor:
        """The mask of the object in each box, [boxes, H, W] bool. Raises ValueError if the model answers with NaN."""
        if not boxes:
            return torch.zeros(0, picture.height, picture.width, dtype=torch.bool)
        made = self.processor(images=picture, input_boxes=[[list(box) for box in boxes]], return_tensors="pt")
        given = inputs(made, self.ready, self.model.dtype)
        output = self.model(**given, multimask_output=False)
        if torch.isnan(output.pred_masks).any():
            raise ValueError(
                f"The segmenter “{self.name}” answers with NaN: use --device cpu, or download its weights again."
            )
        process = self.processor.post_process_masks
        sizes = {name: made[name] for name in ("original_sizes", "reshaped_input_sizes") if name in made}
        asked = inspect.signature(process).parameters
        known = {name: value for name, value in sizes.items() if name in asked or "kwargs" in asked or "args" in asked}
        (masks,) = process(output.pred_masks.float().cpu(), **known)  # [boxes, 1, H, W]
        return masks[:, 0].bool()
