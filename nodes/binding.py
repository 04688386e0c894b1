"""Whether every object took its look from its own reference, and which picture of a batch is best."""

from comfy_api.latest import io

from ..attention.reference import objects_of
from ..evaluation.binding.binding import RANKINGS, WORST
from ..evaluation.binding.face_report import face_report
from ..evaluation.binding.report import binding_report, headline, matrices, measure_binding, ranking, to_encode
from ..relevance.report import mixed_by_picture
from .progress import ticking
from .types import ANALYSERS, SCORES, MIPBinding, MIPDetections, MIPEncoder, MIPReferences, MIPRelevance, searched_as


class MIPBindingReport(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="MIPBindingReport",
            display_name="MIP Binding Report",
            category=SCORES,
            **searched_as("confusion", "identity", "similarity", "which reference", "混淆", "绑定"),
            description="Compares every object in the pictures with every reference: which one is missing, blended or "
            "exchanged, whose look it took, and what to change. Says it in words, numbers and a picture.",
            inputs=[
                io.Image.Input("images", tooltip="The pictures to judge, one or a batch."),
                MIPReferences.Input("references", tooltip="The references that the pictures were made with."),
                MIPDetections.Input(
                    "detections", tooltip="From MIP Detect Objects, for the same pictures and object texts."
                ),
                MIPEncoder.Input(
                    "encoder",
                    tooltip="Sees the pictures: CLIP or SigLIP; DINOv2 tells individuals of one kind apart better.",
                ),
                MIPRelevance.Input(
                    "relevance",
                    optional=True,
                    tooltip="From the MIP Apply whose model was sampled: the advice then knows whether the objects "
                    "claimed the same places.",
                ),
                io.MultiType.Input(
                    "face_analyser",
                    types=ANALYSERS,
                    optional=True,
                    tooltip="For chains with MIP Face Reference, the same analyser as there: the report then also "
                    "compares the faces in the pictures with those of the references.",
                ),
            ],
            outputs=[
                io.Float.Output(
                    display_name="margin",
                    tooltip="Similarity to the own reference minus the best other, the mean over the objects found; "
                    "above 0 is right. −1: no object was found. 0: there is a single reference.",
                ),
                io.Float.Output(
                    display_name="confusion_rate",
                    tooltip="Share of the objects found that look more like another reference. 1: no object was found.",
                ),
                io.Float.Output(display_name="presence", tooltip="Share of the objects asked for that were found."),
                io.String.Output(display_name="report", tooltip="The verdict with advice, then the numbers."),
                io.Image.Output(
                    display_name="matrix",
                    tooltip="One for each picture: its objects against references, and how often in the batch each "
                    "object was most like each reference.",
                ),
                MIPBinding.Output(display_name="binding", tooltip="For MIP Seed Picker."),
            ],
        )

    @classmethod
    def execute(cls, images, references, detections, encoder, relevance=None, face_analyser=None) -> io.NodeOutput:
        references = objects_of(references)
        tick = ticking(to_encode(references, detections))
        mixed = None if relevance is None else mixed_by_picture(relevance, images)
        binding = measure_binding(images, references, detections, encoder, tick, mixed)
        report = binding_report(binding)
        if face_analyser is not None:
            report += f"\n\n{face_report(images, references, binding, face_analyser)}"
        return io.NodeOutput(*headline(binding), report, matrices(binding), binding)


class MIPSeedPicker(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="MIPSeedPicker",
            display_name="MIP Seed Picker",
            category=SCORES,
            **searched_as("best image", "choose picture", "rank", "seed", "挑选"),
            description="Of a batch of pictures, the one whose objects follow their own references best: most objects "
            "found, then the largest margin of the worst object, then the fewest objects too many.",
            inputs=[
                io.Image.Input("images", tooltip="The batch that was judged."),
                MIPBinding.Input("binding", tooltip="From the MIP Binding Report of the same pictures."),
                io.Combo.Input(
                    "rank_by",
                    options=list(RANKINGS),
                    default=WORST,
                    optional=True,
                    tooltip="Whose margin ranks a picture: that of its worst object, so that one wrong object is not "
                    "outweighed, or the mean of all. The ranking lists both.",
                ),
            ],
            outputs=[
                io.Image.Output(display_name="best", tooltip="The best picture."),
                io.Image.Output(display_name="sorted", tooltip="All pictures, the best first."),
                io.Int.Output(
                    display_name="best_index",
                    tooltip="Its place in the batch, from 0: for Latent From Batch, to go on with its latent.",
                ),
                io.String.Output(display_name="ranking", tooltip="Every picture with its numbers, the best first."),
            ],
        )

    @classmethod
    def execute(cls, images, binding, rank_by=WORST) -> io.NodeOutput:
        if images.shape[:3] != binding.images.shape[:3]:
            got, judged = (f"{b} of {w}×{h} pixels" for b, h, w in (images.shape[:3], binding.images.shape[:3]))
            raise ValueError(
                f"The pictures are {got}, but the binding report judged {judged}: connect the same pictures to MIP "
                "Binding Report and to this node."
            )
        order = binding.ranking(rank_by)
        best = order[0]
        return io.NodeOutput(images[best : best + 1], images[order], best, ranking(binding, rank_by))
