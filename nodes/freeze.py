"""Keeps the relevance maps of a first pass for a second."""

from comfy_api.latest import io

from .types import CATEGORY, MIPRelevance, searched_as


class MIPFreezeRelevance(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="MIPFreezeRelevance",
            display_name="MIP Freeze Relevance",
            category=CATEGORY,
            **searched_as("two passes", "hires fix", "upscale", "freeze", "冻结"),
            description="Keeps the relevance maps of a first pass for a second one: place it behind the first sampler, "
            "connect relevance to “frozen” of the second pass's MIP Apply, and go on with the latent from here.",
            inputs=[
                MIPRelevance.Input("relevance", tooltip="From the MIP Apply whose model the first pass sampled."),
                io.Latent.Input(
                    "latent",
                    tooltip="The first pass's result, as its sampler gives it: the maps are those of the sampling that "
                    "made it. It is handed on unchanged.",
                ),
            ],
            outputs=[
                MIPRelevance.Output(
                    display_name="frozen", tooltip="For MIP Apply's “frozen”, and for MIP Relevance Maps."
                ),
                io.Latent.Output(
                    display_name="passed_on", tooltip="The latent, for upscaling and the second pass's sampler."
                ),
            ],
        )

    @classmethod
    def execute(cls, relevance, latent) -> io.NodeOutput:
        frozen = relevance.for_latent(latent["samples"])
        pictures, recorded = latent["samples"].shape[0], frozen.shares().shape[1]
        if pictures != recorded:
            raise ValueError(
                f"The latent holds {pictures} pictures and the maps are of {recorded}: connect the latent that the "
                "model of this MIP Apply has just sampled."
            )
        return io.NodeOutput(frozen, latent)
