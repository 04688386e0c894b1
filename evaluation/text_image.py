"""Text-image encoders (CLIP, SigLIP) from a local Hugging Face folder, behind two methods. Nothing is downloaded."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class TextImageEncoder:
    """Embeddings [n, E], float32 on the CPU, in one space for words and pictures; not normalised."""

    name: str
    model: Any
    processor: Any
    device: torch.device

    @torch.inference_mode()
    def texts(self, words: Sequence[str]) -> Tensor:
        # Padded to the encoder's own length: SigLIP was trained so, and CLIP reads its end token, not the padding.
        inputs = self.processor(text=list(words), padding="max_length", truncation=True, return_tensors="pt")
        return self._embeds(self.model.get_text_features(**inputs.to(self.device)))

    @torch.inference_mode()
    def images(self, pictures: Sequence[Any]) -> Tensor:
        """pictures: PIL images or uint8 arrays [H, W, 3], of any sizes."""
        pixels = self.processor(images=list(pictures), return_tensors="pt")["pixel_values"]
        return self._embeds(self.model.get_image_features(pixel_values=pixels.to(self.device, self.model.dtype)))

    @staticmethod
    def _embeds(output: Any) -> Tensor:
        # transformers 5 returns the whole output, 4 the embeddings.
        return (output if isinstance(output, Tensor) else output.pooler_output).float().cpu()


def load_text_image(folder: str | os.PathLike[str], device: str | torch.device = "cpu") -> TextImageEncoder:
    """Reads a folder with config.json, a tokenizer, a preprocessor and .safetensors weights.

    float16 on a GPU, float32 elsewhere. Raises ValueError, one sentence, for a folder that is not such an encoder.
    """
    folder = Path(folder)
    kind = _check_folder(folder)
    from transformers import AutoModel, AutoProcessor  # here: seconds to import, and only who scores needs it

    device = torch.device(device)
    try:
        model, loading = AutoModel.from_pretrained(
            folder, local_files_only=True, use_safetensors=True, output_loading_info=True
        )
        processor = AutoProcessor.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, KeyError, RuntimeError, ImportError, AttributeError, TypeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ValueError(
            f"The encoder in {folder} cannot be loaded ({type(error).__name__}: {reason}). Download its whole folder: "
            "config.json, preprocessor_config.json, the tokenizer's files and the .safetensors weights."
        ) from error
    if not all(hasattr(model, f"get_{what}_features") for what in ("text", "image")):
        raise ValueError(
            f"{folder} holds a {kind} model, which has no text and image embeddings in one space: choose a CLIP or "
            "SigLIP folder, such as that of CLIP ViT-B/32."
        )
    if missing := sorted(loading["missing_keys"]):
        more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
        raise ValueError(
            f"The weights in {folder} lack {', '.join(missing[:3])}{more}, which transformers would fill with random "
            "numbers. Download the folder again."
        )
    dtype = torch.float16 if device.type == "cuda" else torch.float32
    return TextImageEncoder(folder.name, model.eval().to(device, dtype), processor, device)


def _check_folder(folder: Path) -> str:
    """The model_type of a folder that can be an encoder."""
    config = folder / "config.json"
    if not config.is_file():
        raise ValueError(
            f"There is no text-image encoder in {folder} (no config.json): name the local folder of a CLIP or SigLIP "
            "model in Hugging Face's layout, such as that of CLIP ViT-B/32. Nothing is downloaded for you."
        )
    try:
        kind = str(json.loads(config.read_text("utf-8")).get("model_type"))
    except (ValueError, AttributeError) as error:
        raise ValueError(f"{config} is not readable JSON ({error}): download the folder again.") from error
    if not any(folder.glob("*.safetensors")):
        raise ValueError(
            f"{folder} has no .safetensors weights; pickles (.bin) can run code and are not opened. Download the "
            "model.safetensors of the same model."
        )
    return kind
