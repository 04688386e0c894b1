"""The object relevance score."""

from comfy_api.latest import io

from ..evaluation.relevance_score.picture import draw_comparison
from ..evaluation.relevance_score.score import against, object_relevance
from ..evaluation.relevance_score.target import detected, masked
from .types import SCORES, MIPDetections, searched_as


class MIPObjectRelevanceScore(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="MIPObjectRelevanceScore",
            display_name="MIP Object Relevance Score",
            category=SCORES,
            **searched_as("relevance", "difference", "评分"),
            description="How much of what noise changed in a picture lies where the object is: mean change inside over "
            "mean change outside. Score both modes of MIP Text Noise; relevance should win.",
            inputs=[
                io.Image.Input("images", tooltip="The pictures without noise."),
                io.Image.Input(
                    "noised",
                    tooltip="The same pictures from a model behind MIP Text Noise: everything else alike, the "
                    "sampler's seed too.",
                ),
                io.String.Input(
                    "object",
                    default="",
                    placeholder="cat",
                    tooltip="The target: its text, or its number among the detections' texts or the masks. Empty: the "
                    "first.",
                ),
                MIPDetections.Input(
                    "detections",
                    optional=True,
                    tooltip="Where the objects are, from MIP Detect Objects on the pictures without noise. Each "
                    "thing counts for one text only; the object's most certain one is taken.",
                ),
                io.Mask.Input(
                    "masks",
                    optional=True,
                    tooltip="Instead of detections: white on the object, grey counts in part. One for all pictures, "
                    "one a picture, or one an object for each picture.",
                ),
                io.Image.Input(
                    "baseline",
                    optional=True,
                    tooltip="The same pictures with uniform noise: the report says by how much the score is higher "
                    "than theirs.",
                ),
            ],
            outputs=[
                io.Float.Output(
                    display_name="score", tooltip="Change inside over change outside, mean over the pictures."
                ),
                io.String.Output(
                    display_name="report", tooltip="Every picture's values; with three or more a 95 % interval."
                ),
                io.Image.Output(
                    display_name="difference",
                    tooltip="Without noise, with it, and the difference; the object is outlined.",
                ),
            ],
        )

    @classmethod
    def execute(cls, images, noised, object, detections=None, masks=None, baseline=None) -> io.NodeOutput:
        if detections is not None and masks is None:
            target = detected(detections, object)
        elif masks is not None and detections is None:
            target = masked(masks, object, images.shape[0])
        else:
            given = "neither detections nor masks" if masks is None else "both detections and masks"
            raise ValueError(
                f"The place of the object is told by {given}: connect MIP Detect Objects (on the pictures without "
                "noise), or masks that are white on the object, one of the two."
            )
        scored = object_relevance(images, noised, target)
        compared = None if baseline is None else against(images, baseline, target)
        return io.NodeOutput(
            scored.score, scored.report(target, compared), draw_comparison(images, noised, target, scored)
        )
