"""Whether pictures follow their prompt, and their objects the references."""

from comfy_api.latest import io

from ..attention.reference import objects_of
from ..common.text import brief
from ..evaluation.personalization import personalization, personalization_report, pictures_to_encode
from .progress import ticking
from .types import SCORES, MIPDetections, MIPEncoder, MIPReferences, searched_as

WHOLE, CROPS = "whole picture", "crops"
SCOPES = (WHOLE, CROPS)


class MIPPersonalizationScore(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="MIPPersonalizationScore",
            display_name="MIP Personalisation Score",
            category=SCORES,
            **searched_as("clip-i", "clip-t", "dino score", "similarity", "identity", "相似度"),
            description="CLIP-T, CLIP-I and DINO as in the papers: does the picture follow its prompt, do its objects "
            "look like their references? On crops, too, which see what whole pictures hide: exchanged looks.",
            inputs=[
                io.Image.Input("images", tooltip="The pictures to score, one or a batch; the scores are the means."),
                MIPReferences.Input("references", tooltip="The references that the pictures were made with."),
                io.String.Input(
                    "prompt",
                    default="",
                    multiline=True,
                    tooltip="The words that the pictures were made from, without quality words; CLIP-T scores them.",
                ),
                MIPEncoder.Input(
                    "encoder",
                    tooltip="Sees words and pictures, for CLIP-T and CLIP-I: CLIP ViT-B/32 in the papers.",
                ),
                MIPEncoder.Input(
                    "image_encoder",
                    optional=True,
                    tooltip="Sees pictures, for the DINO score: DINO ViT-S/16 in the papers. Without it: not measured.",
                ),
                MIPDetections.Input(
                    "detections",
                    optional=True,
                    tooltip="From MIP Detect Objects, for the same pictures and object texts: adds the crops' scores.",
                ),
                io.Combo.Input(
                    "scope",
                    options=list(SCOPES),
                    default=WHOLE,
                    optional=True,
                    tooltip="What the numbers on the outputs are of: whole pictures, as in the papers' tables, or the "
                    "detected crops. The report has both.",
                ),
                io.Boolean.Input(
                    "missing_as_zero",
                    default=False,
                    optional=True,
                    tooltip="Whether objects that were not found count 0 in the crops' means. Off: the means are of "
                    "the objects found, so that a picture may score higher for what it lacks.",
                ),
            ],
            outputs=[
                io.Float.Output(display_name="clip_t", tooltip="2.5 · cosine of prompt and picture; 0: not measured."),
                io.Float.Output(display_name="clip_i", tooltip="Mean cosine to the references; 0: not measured."),
                io.Float.Output(display_name="dino", tooltip="The same by image_encoder; 0: not measured."),
                io.String.Output(display_name="report", tooltip="The scores by picture and object."),
                io.Int.Output(display_name="objects", tooltip="How many objects the numbers are the mean of."),
            ],
        )

    @classmethod
    def execute(
        cls,
        images,
        references,
        prompt,
        encoder,
        image_encoder=None,
        detections=None,
        scope=WHOLE,
        missing_as_zero=False,
    ) -> io.NodeOutput:
        if scope not in SCOPES:
            raise ValueError(f"The scope is “{brief(scope, 60)}”; choose one of: {', '.join(SCOPES)}.")
        if scope == CROPS and detections is None:
            raise ValueError("The scope is “crops”, but no detections are connected: connect MIP Detect Objects.")
        encoders = 1 if image_encoder is None else 2
        references = objects_of(references)
        tick = ticking(pictures_to_encode(images, references, detections, encoders))
        scores = personalization(images, references, prompt, encoder, image_encoder, detections, tick)
        view = scores.whole if scope == WHOLE or scores.crops is None else scores.crops
        means = (view.mean(name, missing_as_zero) or 0.0 for name in ("clip_t", "clip_i", "dino"))
        return io.NodeOutput(*means, personalization_report(scores, missing_as_zero), view.objects(missing_as_zero))
