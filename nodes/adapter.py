"""The loaders of adapters, and of the image encoder that the host's own loader knows in part only."""

from pathlib import Path

import comfy.clip_vision
import folder_paths
from comfy_api.latest import io

from ..patching.siglip import siglip
from ..weights.adapter import load_adapter
from ..weights.comfy_files import adapter_names, adapter_path, file_version, remedy
from ..weights.families import BY_NAME, FACE_PLUS, FacePlus
from ..weights.files import read_tensors
from .types import CATEGORY, MIPAdapter, searched_as
from .validation import fingerprint_of, valid_or_message


class MIPAdapterLoader(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="MIPAdapterLoader",
            display_name="Load MIP Adapter",
            category=CATEGORY,
            **searched_as("ip adapter", "ipadapter loader", "load ip-adapter", "multi subject", "加载适配器"),
            description="Loads a MIP-Adapter or IP-Adapter file for SDXL, SD1.5 or FLUX.1. What it is (family, "
            "image encoder it needs, fusion head or none) is read from its tensors, never from its name. Adapters for "
            "FLUX.1 are not yet tried with released weights: tell us.",
            inputs=[
                io.Combo.Input(
                    "adapter_name",
                    options=adapter_names(),
                    tooltip="A file in models/mip_adapter or models/ipadapter. MIP-Adapter weights carry a fusion "
                    "head; plain IP-Adapter weights and face adapters (FaceID, portrait) work too.",
                ),
                io.Combo.Input(
                    "face_plus",
                    options=list(FACE_PLUS),
                    default=BY_NAME,
                    optional=True,
                    tooltip="Only for FaceID Plus files of SD1.5, whose two versions have the same tensors. By the "
                    "file's name: plus if it says “plus” without “v2”, else plus v2.",
                ),
            ],
            outputs=[
                MIPAdapter.Output(display_name="adapter", tooltip="For MIP Apply, MIP Fusion Head and training."),
                io.String.Output(
                    display_name="about",
                    tooltip="What the file is and which image encoder it needs, in words: for Preview as Text.",
                ),
            ],
        )

    @classmethod
    def fingerprint_inputs(cls, adapter_name: str | None, face_plus: FacePlus = BY_NAME):
        return fingerprint_of(lambda name: file_version(adapter_path(name)), adapter_name)

    @classmethod
    def validate_inputs(cls, adapter_name: str | None = None) -> bool | str:
        return valid_or_message(adapter_path, adapter_name)

    @classmethod
    def execute(cls, adapter_name: str, face_plus: FacePlus = BY_NAME) -> io.NodeOutput:
        path = adapter_path(adapter_name)
        try:
            adapter = load_adapter(path, adapter_name, face_plus)
        except ValueError as error:
            raise ValueError(f"{error}{remedy(path)}") from error
        about = str(adapter.spec)
        if adapter.spec.family.startswith("faceid-plus"):
            about += f". Its version was chosen: {face_plus}; “face_plus” changes it"
        return io.NodeOutput(adapter, about)


class MIPSigLIPLoader(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="MIPSigLIPLoader",
            display_name="Load SigLIP (MIP)",
            category=CATEGORY,
            **searched_as("siglip", "clip vision", "flux ip adapter", "image encoder", "加载图像编码器"),
            description="Loads SigLIP as an image encoder with its pooled embedding, which InstantX's IP-Adapter for "
            "FLUX.1 reads. Load CLIP Vision leaves that part of the file out.",
            inputs=[
                io.Combo.Input(
                    "clip_name",
                    options=folder_paths.get_filename_list("clip_vision"),
                    tooltip="A file in models/clip_vision: google/siglip-so400m-patch14-384's model.safetensors.",
                )
            ],
            outputs=[io.ClipVision.Output(tooltip="For MIP Apply.")],
        )

    @classmethod
    def fingerprint_inputs(cls, clip_name: str | None):
        return fingerprint_of(lambda name: file_version(_encoder_path(name)), clip_name)

    @classmethod
    def validate_inputs(cls, clip_name: str | None = None) -> bool | str:
        return valid_or_message(_encoder_path, clip_name)

    @classmethod
    def execute(cls, clip_name: str) -> io.NodeOutput:
        path = _encoder_path(clip_name)
        tensors = read_tensors(path)  # before the host reads it: says in a sentence what is wrong with a file
        vision = comfy.clip_vision.load(str(path))
        if vision is None:
            raise ValueError(
                f"“{clip_name}” is no image encoder that ComfyUI knows. Choose SigLIP's model.safetensors."
            )
        heads = vision.model.vision_model.encoder.layers[0].self_attn.heads
        return io.NodeOutput(siglip(vision, tensors, heads, clip_name))


def _encoder_path(name: str) -> Path:
    """The file of a name in models/clip_vision. Raises ValueError if there is none."""
    path = folder_paths.get_full_path("clip_vision", name)
    if path is None:
        raise ValueError(f"“{name}” is not in models/clip_vision. Put it there and press R to refresh the lists.")
    return Path(path)
