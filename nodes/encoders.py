"""Encoders that turn pictures and words into vectors for the scores."""

from comfy_api.latest import io

from ..evaluation.comfy_models import managed
from ..evaluation.encoders.comfy_encoder import host_encoder
from ..evaluation.encoders.encoder import load_encoder
from ..weights.comfy_files import ENCODERS_FOLDER, folder_version, model_folder, model_folders
from .types import SCORES, MIPEncoder, searched_as
from .validation import fingerprint_of, valid_or_message


class MIPEncoderLoader(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="MIPEncoderLoader",
            display_name="Load MIP Encoder",
            category=SCORES,
            **searched_as("clip", "siglip", "dino", "embedding", "编码器"),
            description="Loads an image encoder for scores from a local Hugging Face folder: CLIP or SigLIP for words "
            "and pictures, DINO, DINOv2, DINOv3 or a plain ViT for pictures. Nothing is downloaded.",
            inputs=[
                io.Combo.Input(
                    "encoder_name",
                    options=model_folders(ENCODERS_FOLDER),
                    tooltip="A folder in models/mip_encoders with config.json, preprocessor_config.json and "
                    ".safetensors weights. The papers' CLIP-T and CLIP-I use CLIP ViT-B/32, their DINO is ViT-S/16.",
                )
            ],
            outputs=[MIPEncoder.Output(display_name="encoder", tooltip="For the scores.")],
        )

    @classmethod
    def fingerprint_inputs(cls, encoder_name: str | None):
        return fingerprint_of(lambda name: folder_version(model_folder(ENCODERS_FOLDER, name)), encoder_name)

    @classmethod
    def validate_inputs(cls, encoder_name: str | None = None) -> bool | str:
        return valid_or_message(model_folder, ENCODERS_FOLDER, encoder_name)

    @classmethod
    def execute(cls, encoder_name: str) -> io.NodeOutput:
        return io.NodeOutput(load_encoder(model_folder(ENCODERS_FOLDER, encoder_name), managed))


class MIPEncoderFromModels(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="MIPEncoderFromModels",
            display_name="MIP Encoder from CLIP Vision",
            category=SCORES,
            **searched_as("clip vision", "embedding", "编码器"),
            description="Makes an encoder for scores of models that are loaded already: any CLIP vision for pictures, "
            "together with the CLIP of the same space for words too, such as ViT-bigG's vision and SDXL's CLIP.",
            inputs=[
                io.ClipVision.Input("clip_vision", tooltip="Sees the pictures: a CLIP or DINOv2 vision file."),
                io.Clip.Input(
                    "clip",
                    optional=True,
                    tooltip="Reads the words, for scores that need them. It must be the other half of the same model.",
                ),
            ],
            outputs=[MIPEncoder.Output(display_name="encoder", tooltip="For the scores.")],
        )

    @classmethod
    def execute(cls, clip_vision, clip=None) -> io.NodeOutput:
        return io.NodeOutput(host_encoder(clip_vision, clip))
