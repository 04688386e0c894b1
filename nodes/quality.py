"""The object quality score: whether objects look like their texts and unlike each other."""

from comfy_api.latest import io

from ..evaluation.quality.report import draw_quality, measure_quality, quality_report
from .progress import ticking
from .types import SCORES, MIPDetections, MIPEncoder, searched_as


class MIPObjectQualityScore(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="MIPObjectQualityScore",
            display_name="MIP Object Quality Score",
            category=SCORES,
            **searched_as("clip score", "quality", "rating", "质量评分"),
            description="Do a picture's objects look like their words, and unlike each other? The score by which the "
            "paper chose its training pictures. Higher is better; compare only scores of one encoder.",
            inputs=[
                io.Image.Input("images", tooltip="The pictures, the same that the detections belong to."),
                MIPDetections.Input("detections", tooltip="From MIP Detect Objects or MIP Objects from Boxes."),
                MIPEncoder.Input("encoder", tooltip="One of words and pictures: CLIP or SigLIP, no DINO."),
            ],
            outputs=[
                io.Float.Output(display_name="single", tooltip="Mean cosine of each object and its text."),
                io.Float.Output(display_name="pair", tooltip="Minus the mean cosine between different objects."),
                io.Float.Output(display_name="total", tooltip="The score: single + pair, the mean over the pictures."),
                io.String.Output(display_name="report", tooltip="The values of every picture and object."),
                io.Image.Output(display_name="picture", tooltip="Every picture with its objects and their numbers."),
                io.Int.Output(
                    display_name="objects",
                    tooltip="How many objects the means are of: pictures that lack one are left out.",
                ),
            ],
        )

    @classmethod
    def execute(cls, images, detections, encoder) -> io.NodeOutput:
        tick = ticking(len(images) * len(detections.texts))
        measured = measure_quality(images, detections, encoder, tick)
        drawn = draw_quality(images, detections, measured)
        return io.NodeOutput(*measured.means, quality_report(measured), drawn, measured.objects)
