"""The miniature: a model for trying the wiring without downloading anything."""

from comfy_api.latest import io

from ..miniature import host_bundle
from .types import CATEGORY


class MIPMiniatureLoader(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="MIPMiniatureLoader",
            display_name="Load Miniature (MIP)",
            category=CATEGORY,
            description=(
                "A tiny stand-in for SDXL with text encoders, VAE and image encoder: nothing to download, a "
                "128×128 picture in a second on a CPU. Its weights are seeded, not trained yet, so pictures "
                "look like coloured noise: use it to try the wiring and for tests, not to make art."
            ),
            inputs=[],
            outputs=[io.Model.Output(), io.Clip.Output(), io.Vae.Output(), io.ClipVision.Output()],
        )

    @classmethod
    def execute(cls) -> io.NodeOutput:
        return io.NodeOutput(*host_bundle.load())
