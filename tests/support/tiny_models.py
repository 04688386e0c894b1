"""Random models of a few thousand weights in Hugging Face's layout: encoders and detectors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

SMALL: dict[str, Any] = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2, "num_hidden_layers": 2}
IMAGENET: dict[str, Any] = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}


def dino(folder: Path) -> Path:
    """Like facebook/dino-vits16 as published: a ViT without a pooler, and a preprocessor that resizes to a square
    bilinearly.
    """
    from transformers import ViTConfig, ViTImageProcessor, ViTModel

    torch.manual_seed(1)
    model = ViTModel(ViTConfig(**SMALL, image_size=56, patch_size=8), add_pooling_layer=False)
    ViTImageProcessor(size={"height": 56, "width": 56}, **IMAGENET).save_pretrained(folder)
    return saved(model, folder)


def dinov2(folder: Path) -> Path:
    from transformers import BitImageProcessor, Dinov2Config, Dinov2Model

    torch.manual_seed(2)
    model = Dinov2Model(Dinov2Config(**SMALL, image_size=56, patch_size=14))
    sizes: dict[str, Any] = {"size": {"shortest_edge": 64}, "crop_size": {"height": 56, "width": 56}}
    BitImageProcessor(**sizes, **IMAGENET).save_pretrained(folder)
    return saved(model, folder)


def dinov3(folder: Path) -> Path:
    """Like facebook's as published, with the name that its processor had before transformers 5."""
    from transformers import DINOv3ViTConfig, DINOv3ViTModel

    torch.manual_seed(3)
    model = DINOv3ViTModel(DINOv3ViTConfig(**SMALL, image_size=56, patch_size=14, num_register_tokens=4))
    processor: dict[str, Any] = {
        "image_processor_type": "DINOv3ViTImageProcessorFast", "size": {"height": 56, "width": 56}, "resample": 2,
        "do_resize": True, "do_rescale": True, "rescale_factor": 1 / 255, "do_normalize": True, **IMAGENET,
    }  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    return saved(model, folder)


def siglip(folder: Path) -> Path:
    from transformers import CLIPTokenizer, SiglipConfig, SiglipImageProcessor, SiglipModel, SiglipProcessor

    torch.manual_seed(4)
    words = letters(folder)
    text: dict[str, Any] = {**SMALL, "vocab_size": words, "max_position_embeddings": 16, "projection_size": 32}
    config = SiglipConfig(text_config=text, vision_config={**SMALL, "image_size": 32, "patch_size": 8})
    # SigLIP's own tokenizer needs a SentencePiece file; its processor accepts any tokenizer.
    tokenizer = CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=16)
    SiglipProcessor(SiglipImageProcessor(size={"height": 32, "width": 32}), tokenizer).save_pretrained(folder)
    return saved(SiglipModel(config), folder)


def siglip2(folder: Path) -> Path:
    """NaFlex: pictures of any shape as patches with a mask. Its tokenizer does not state how long a text may be."""
    from transformers import CLIPTokenizer, Siglip2Config, Siglip2ImageProcessor, Siglip2Model, Siglip2Processor

    torch.manual_seed(7)
    words = letters(folder)
    text: dict[str, Any] = {**SMALL, "vocab_size": words, "max_position_embeddings": 16, "projection_size": 32}
    config = Siglip2Config(text_config=text, vision_config={**SMALL, "num_patches": 256, "patch_size": 16})
    tokenizer = CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"))
    Siglip2Processor(Siglip2ImageProcessor(), tokenizer).save_pretrained(folder)
    return saved(Siglip2Model(config), folder)


def grounding_dino(folder: Path, kind: str = "GroundingDino") -> Path:
    """The real processor and post-processing around random weights. kind: “GroundingDino” or “MMGroundingDino”."""
    import transformers
    from transformers import (
        BertConfig,
        BertTokenizer,
        GroundingDinoImageProcessor,
        GroundingDinoProcessor,
        SwinConfig,
    )

    torch.manual_seed(5)
    folder.mkdir(parents=True, exist_ok=True)
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", ".", "?", "star", "ring", "cat", "dog", "red", "a"]
    (folder / "vocab.txt").write_text("\n".join(vocabulary))
    tokenizer = BertTokenizer(str(folder / "vocab.txt"))
    backbone: dict[str, Any] = {  # all versions of transformers accept out_features, though not all declare it
        "image_size": 64, "embed_dim": 16, "depths": [1, 1, 1, 1], "num_heads": [1, 2, 2, 4], "window_size": 4,
        "out_features": ["stage2", "stage3", "stage4"],
    }  # fmt: skip
    swin, text = SwinConfig(**backbone), BertConfig(**SMALL, vocab_size=len(vocabulary), max_position_embeddings=64)
    config = getattr(transformers, f"{kind}Config")(
        backbone_config=swin, text_config=text, d_model=32, encoder_layers=1, decoder_layers=2, num_queries=60,
        encoder_attention_heads=2, decoder_attention_heads=2, encoder_ffn_dim=32, decoder_ffn_dim=32, max_text_len=64,
    )  # fmt: skip
    pictures = GroundingDinoImageProcessor(size={"shortest_edge": 64, "longest_edge": 96})
    GroundingDinoProcessor(pictures, tokenizer).save_pretrained(folder)
    model = getattr(transformers, f"{kind}ForObjectDetection")(config)
    for name, weight in model.named_parameters():
        if "class_embed" in name and weight.ndim == 0:
            weight.data.zero_()  # MM-Grounding-DINO's initial bias detects nothing
    return saved(model, folder)


def owlv2(folder: Path) -> Path:
    from transformers import (
        CLIPTokenizer,
        Owlv2Config,
        Owlv2ForObjectDetection,
        Owlv2ImageProcessor,
        Owlv2Processor,
    )

    torch.manual_seed(6)
    words = letters(folder)
    ends: dict[str, Any] = {"bos_token_id": words - 2, "eos_token_id": words - 1, "pad_token_id": words - 1}
    text: dict[str, Any] = {**SMALL, **ends, "vocab_size": words, "max_position_embeddings": 16}
    vision: dict[str, Any] = {**SMALL, "image_size": 64, "patch_size": 16}
    config = Owlv2Config(text_config=text, vision_config=vision, projection_dim=32)
    tokenizer = CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=16)
    Owlv2Processor(Owlv2ImageProcessor(size={"height": 64, "width": 64}), tokenizer).save_pretrained(folder)
    return saved(Owlv2ForObjectDetection(config), folder)


def letters(folder: Path) -> int:
    """Write a byte-level vocabulary without merges as CLIP's files. Returns its size."""
    folder.mkdir(parents=True, exist_ok=True)
    signs = [chr(c) for c in range(33, 127)]
    words = [*signs, *(f"{c}</w>" for c in signs), "<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({word: i for i, word in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    return len(words)


def saved(model: Any, folder: Path) -> Path:
    """Save the model with weights large enough for outputs to differ by picture and word. Box heads keep their initial
    weights.
    """
    for name, weight in model.named_parameters():
        if weight.ndim > 1 and "class_embed" not in name and "bbox_embed" not in name:
            torch.nn.init.normal_(weight, std=weight[0].numel() ** -0.5 * 1.5)
    model.save_pretrained(folder)
    return folder


def sam(folder: Path) -> Path:
    """Like SAM as published: pictures in a padded square, boxes in the picture's own pixels."""
    from transformers import SamConfig, SamImageProcessor, SamModel, SamProcessor

    torch.manual_seed(8)
    vision: dict[str, Any] = {
        "hidden_size": 32, "output_channels": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 64,
        "patch_size": 8, "window_size": 4, "global_attn_indexes": [1], "mlp_dim": 64, "num_pos_feats": 8,
    }  # fmt: skip
    prompts = {"hidden_size": 16, "image_size": 64, "patch_size": 8, "mask_input_channels": 4}
    decoder = {"hidden_size": 16, "mlp_dim": 32, "num_attention_heads": 2, "iou_head_hidden_dim": 32}
    settings: dict[str, Any] = {"size": {"longest_edge": 64}, "pad_size": {"height": 64, "width": 64}}
    SamProcessor(SamImageProcessor(**settings)).save_pretrained(folder)
    return saved(
        SamModel(SamConfig(vision_config=vision, prompt_encoder_config=prompts, mask_decoder_config=decoder)), folder
    )
