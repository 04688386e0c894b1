"""The recorded relevance as pictures, masks and words."""

from comfy_api.latest import io

from ..relevance.maps import ALL, MASKS, RESOLUTIONS, draw_maps
from ..relevance.observation import PHASES
from ..relevance.report import relevance_report
from .types import CATEGORY, MIPRelevance, searched_as


class MIPRelevanceMaps(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="MIPRelevanceMaps",
            display_name="MIP Relevance Maps",
            category=CATEGORY,
            **searched_as("attention map", "heatmap", "segment objects", "mask", "注意力图", "热图", "分割"),
            description="Shows which parts of the picture listened to which reference while it was sampled, and gives "
            "the maps on as masks, one an object. Two objects that claim the same place are why looks mix.",
            inputs=[
                MIPRelevance.Input("relevance", tooltip="From the MIP Apply whose model was sampled."),
                io.Image.Input("images", tooltip="The decoded result of that sampling; the maps are drawn on it."),
                io.Float.Input(
                    "opacity", default=0.6, min=0.0, max=1.0, step=0.05, tooltip="How strongly the colours cover."
                ),
                io.Combo.Input(
                    "resolution",
                    options=list(RESOLUTIONS),
                    default=ALL,
                    optional=True,
                    tooltip="Which cross-attentions: coarse ones place objects, fine ones draw them; all: the mean.",
                ),
                io.Combo.Input(
                    "steps",
                    options=[ALL, *PHASES],
                    default=ALL,
                    optional=True,
                    tooltip="Which part of the sampling: early settles the layout, late the details.",
                ),
                io.Combo.Input(
                    "mask",
                    options=list(MASKS),
                    default="owner",
                    optional=True,
                    tooltip="owner: white where the object has the largest share; for masks of the objects alone set "
                    "unclaimed to 1 in MIP Merge. soft: the share itself. threshold: white where the share "
                    "exceeds the threshold.",
                ),
                io.Float.Input(
                    "threshold",
                    default=0.5,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    optional=True,
                    tooltip="For the threshold masks: the least share.",
                ),
                io.String.Input(
                    "object",
                    default="",
                    placeholder="cat",
                    optional=True,
                    tooltip="Whose masks: the object's text or its number. Empty: of all.",
                ),
            ],
            outputs=[
                io.Image.Output(
                    display_name="overlays", tooltip="Each picture with all objects, then with each alone."
                ),
                io.Mask.Output(
                    display_name="masks",
                    tooltip="One per object, in the references' order, for each picture; of one “object” one per "
                    "picture.",
                ),
                io.Image.Output(display_name="fusion_head", tooltip="The gate: mid-grey 1, white 2 or more."),
                io.String.Output(
                    display_name="report",
                    tooltip="In words: which run it was, evenness by step and picture, who claims what, what to do.",
                ),
            ],
        )

    @classmethod
    def execute(
        cls, relevance, images, opacity, resolution=ALL, steps=ALL, mask="owner", threshold=0.5, object=""
    ) -> io.NodeOutput:
        drawn = draw_maps(relevance, images, opacity, resolution, steps, mask, threshold, object)
        return io.NodeOutput(drawn.overlays, drawn.masks, drawn.gates, relevance_report(relevance, drawn.shares))
