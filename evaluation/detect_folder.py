"""Detectors from local Hugging Face folders: Grounding DINO, MM-Grounding-DINO, LLMDet, OWLv2, whatever transformers
knows as zero-shot object detection."""

from __future__ import annotations

import inspect
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from .crops import as_bytes
from .detect import Seen
from .detections import Box, Detection
from .folders import Place, Ready, on, read


def load_detector(folder: str | os.PathLike[str], place: Place | None = None) -> FolderDetector:
    """place: who takes charge of the model, by default the CPU. Raises ValueError, one sentence, for anything else."""
    model, processor = read(folder, "detector", "AutoModelForZeroShotObjectDetection", "AutoProcessor")
    return FolderDetector(Path(folder).name, model, processor, (place or on("cpu"))(model))


@dataclass(frozen=True, eq=False)
class FolderDetector:
    name: str
    model: Any
    processor: Any
    ready: Ready

    @torch.inference_mode()
    def find(self, images: Tensor, texts: Sequence[str], threshold: float, text_threshold: float) -> list[list[Seen]]:
        """One query a text, for in one query of several texts the words of one colour the boxes of another."""
        pictures = [Image.fromarray(as_bytes(image)) for image in images]
        by_text = [self._find(pictures, text, threshold, text_threshold) for text in texts]
        return [list(each) for each in zip(*by_text, strict=True)]

    def _find(self, pictures: list[Image.Image], text: str, threshold: float, text_threshold: float) -> list[Seen]:
        query = " ".join(text.lower().replace(".", " ").split())  # a dot ends a text; the processor sets it
        if not query:
            raise ValueError(f"The object text “{text}” has no words to look for: name the object, such as “cat”.")
        queries = [[query]] * len(pictures)
        device, dtype = self.ready(), self.model.dtype
        inputs = self.processor(images=pictures, text=queries, return_tensors="pt").to(device)
        inputs = {key: value.to(dtype) if value.is_floating_point() else value for key, value in inputs.items()}
        # transformers 4 computes Grounding DINO's positions in float32, whatever its weights are in.
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            output = self.model(**inputs)
        results = self._results(output, inputs, queries, pictures, threshold, text_threshold)
        found = [[Detection(*each) for each in self._boxes(result)] for result in results]
        if all(found):
            return [Seen(each) for each in found]
        everything = self._results(output, inputs, queries, pictures, 0.0, 0.0)
        best = [float(result["scores"].max()) if len(result["scores"]) else 0.0 for result in everything]
        return [Seen(each, 0.0 if each else near) for each, near in zip(found, best, strict=True)]

    def _results(
        self,
        output: Any,
        inputs: Mapping[str, Tensor],
        queries: list[list[str]],
        pictures: list[Image.Image],
        threshold: float,
        text_threshold: float,
    ) -> list[dict[str, Any]]:
        """scores, boxes and text_labels of each picture; processors differ in what they want to know."""
        process = self.processor.post_process_grounded_object_detection
        known = {
            "input_ids": inputs.get("input_ids"),
            "threshold": threshold,
            "text_threshold": text_threshold,
            "target_sizes": [(picture.height, picture.width) for picture in pictures],
            "text_labels": queries,
        }
        asked = inspect.signature(process).parameters
        return process(output, **{name: value for name, value in known.items() if name in asked})

    def _boxes(self, result: Mapping[str, Any]) -> list[tuple[Box, float]]:
        """Box and score of what one of the text's words stands for, rather than its full stop or its end alone."""
        special = re.compile("|".join(map(re.escape, self.processor.tokenizer.all_special_tokens)))
        boxes, scores = (result[key].float().tolist() for key in ("boxes", "scores"))
        return [
            ((x0, y0, x1, y1), score)
            for (x0, y0, x1, y1), score, words in zip(boxes, scores, result["text_labels"], strict=True)
            if any(sign.isalnum() for sign in special.sub("", words))
        ]
