"""Detectors from local Hugging Face folders: Grounding DINO, MM-Grounding-DINO, LLMDet, OWLv2 and any other model that
transformers loads for zero-shot object detection."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from copy import copy
from dataclasses import replace
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from ...common.crops import as_bytes
from ..model_folder import FolderModel
from .detect import Seen
from .detections import Detection


class FolderDetector(FolderModel):
    """A Detector from transformers."""

    what, auto = "detector", ("AutoModelForZeroShotObjectDetection", "AutoProcessor")

    @torch.inference_mode()
    def find(self, images: Tensor, texts: Sequence[str], threshold: float, text_threshold: float) -> list[list[Seen]]:
        """As `Detector.find`. Each text is a query of its own.

        In a query of several texts, the words of one text influence the boxes of another.
        """
        pictures = [Image.fromarray(as_bytes(image)) for image in images]
        with self.errors_named():
            processor = copy(self.processor)
            processor.image_processor = _Prepared(self.processor.image_processor, pictures)
        detector = replace(self, processor=processor)
        by_text = [detector._find(pictures, text, threshold, text_threshold) for text in texts]
        return [list(each) for each in zip(*by_text, strict=True)]

    def _find(self, pictures: list[Image.Image], text: str, threshold: float, text_threshold: float) -> list[Seen]:
        query = " ".join(text.lower().replace(".", " ").split())  # a dot ends a text; the processor adds its own
        if not query:
            raise ValueError(f"The object text “{text}” has no words to look for: name the object, such as “cat”.")
        queries = [[query]] * len(pictures)
        dtype = self.model.dtype
        given = self.on_device(self.prepared(images=pictures, text=queries))
        # transformers 4 computes Grounding DINO's positions in float32, whatever the weights' dtype.
        with self.errors_named(), torch.autocast(self.model.device.type, dtype, enabled=dtype != torch.float32):
            output = self.model(**given)
        self._check(output)
        seen = []
        for number, (boxes, scores) in enumerate(self._boxes(output, given, queries, pictures)):
            certain = self._certain(output, given, number, scores, text_threshold)
            certain = torch.where(_visible(boxes, pictures[number]), certain, 0.0)
            counts = certain > threshold
            answers = zip(boxes[counts].tolist(), scores[counts].tolist(), strict=True)
            found = [Detection((x0, y0, x1, y1), score) for (x0, y0, x1, y1), score in answers]
            seen.append(Seen(found, 0.0 if found or not len(certain) else float(certain.max())))
        return seen

    def _check(self, output: Any) -> None:
        if any(torch.isnan(each).any() for each in output.to_tuple() if isinstance(each, Tensor)):
            raise ValueError(
                f"The detector “{self.name}” answers with NaN: start ComfyUI with --force-fp32, or download its "
                "weights again."
            )

    def _boxes(
        self, output: Any, given: Mapping[str, Tensor], queries: list[list[str]], pictures: list[Image.Image]
    ) -> list[tuple[Tensor, Tensor]]:
        """Boxes [Q, 4] and scores [Q] of each picture, without a threshold.

        Processors differ in their parameters, so each gets those that its signature names.
        """
        process = self.processor.post_process_grounded_object_detection
        known = {
            "input_ids": given.get("input_ids"),
            "threshold": -1.0,
            "text_threshold": 1.0,
            "target_sizes": [(picture.height, picture.width) for picture in pictures],
            "text_labels": queries,
        }
        asked = inspect.signature(process).parameters
        with self.errors_named():
            results = process(output, **{name: value for name, value in known.items() if name in asked})
        return [(each["boxes"].float().cpu(), each["scores"].float().cpu()) for each in results]

    def _certain(
        self, output: Any, given: Mapping[str, Tensor], number: int, scores: Tensor, text_threshold: float
    ) -> Tensor:
        """For each box the threshold below which it counts, [Q].

        This is the box's score if one of the text's words is above text_threshold. If only the full stop or the end
        token is, it is the score of the best word. That is enough because text_threshold is never above the threshold
        (`detect`): when both are lowered to this value, the box is found.
        """
        if "text_threshold" not in inspect.signature(self.processor.post_process_grounded_object_detection).parameters:
            return scores  # such a model scores texts, not tokens
        ids, special = given["input_ids"][number].tolist(), set(self.processor.tokenizer.all_special_ids)
        tokens = self.processor.tokenizer.convert_ids_to_tokens(ids)
        is_word = torch.tensor(
            [i not in special and any(map(str.isalnum, t)) for i, t in zip(ids, tokens, strict=True)]
        )
        probability = output.logits[number, :, : len(ids)].float().sigmoid().cpu()  # [Q, tokens]
        best = torch.where(is_word, probability, 0.0).amax(-1)
        return torch.where(best > text_threshold, scores, best)


class _Prepared:
    """An image processor that prepares the pictures once. The processor calls it again for every text."""

    def __init__(self, processor: Any, pictures: list[Image.Image]) -> None:
        self._processor, self._made = processor, processor(images=pictures, return_tensors="pt")

    def __getattr__(self, name: str) -> Any:
        return getattr(self._processor, name)

    def __call__(self, *_: Any, **__: Any) -> Any:
        return self._made


def _visible(boxes: Tensor, picture: Image.Image) -> Tensor:
    """Whether at least one pixel of each box [Q, 4] lies in the picture, [Q] bool. A model may answer outside of it."""
    inside = boxes.clamp_min(0).minimum(torch.tensor([*picture.size, *picture.size]))
    return (inside[:, 2:] - inside[:, :2] >= 1).all(-1)


load_detector = FolderDetector.load
