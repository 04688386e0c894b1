"""The node that applies references to a model."""

from comfy_api.latest import io

from ..attention.reference import colours_of, objects_of, styles_of
from ..patching.apply import apply_references
from ..relevance.record import RelevanceRecord
from .types import (
    ADVANCED,
    CATEGORY,
    SEARCH_WORDS,
    MIPAdapter,
    MIPFusionHeadOptions,
    MIPMergeOptions,
    MIPReferences,
    MIPRelevance,
    percents,
    searched_as,
)


class MIPApply(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="MIPApply",
            display_name="MIP Apply",
            category=CATEGORY,
            **searched_as(*SEARCH_WORDS, "apply ip-adapter", "personalize", "personalise", "应用参考", "个性化"),
            description="Gives the model its references: every object of the picture takes its looks from its own "
            "reference. Place it between the model (after LoRAs) and the sampler; the prompt must name the objects.",
            inputs=[
                io.Model.Input(
                    "model", tooltip="SDXL, SD1.5, FLUX.1 or a derivative; the adapter must be made for the same."
                ),
                io.Clip.Input("clip", tooltip="The checkpoint's CLIP: encodes the object texts."),
                io.ClipVision.Input(
                    "clip_vision",
                    tooltip="The image encoder the adapter was trained with: “about” of Load MIP Adapter names it, and "
                    "a wrong one is refused.",
                ),
                MIPAdapter.Input("adapter", tooltip="From Load MIP Adapter."),
                MIPReferences.Input(
                    "references", tooltip="One or more MIP Reference nodes in a chain, up to 16 objects."
                ),
                io.Float.Input(
                    "scale",
                    default=0.75,
                    min=0.0,
                    max=3.0,
                    step=0.05,
                    tooltip="Strength of the references as a whole. The paper uses 0.75 for base and 0.65 for plus "
                    "weights; lower it when the picture ignores the prompt.",
                ),
                *percents(
                    "References act from here on. A little above 0 leaves the composition to the prompt.",
                    "References act up to here. Below 1 leaves the finest details to the model.",
                ),
                MIPMergeOptions.Input("merge", optional=True, tooltip="From MIP Merge. Without it: relevance."),
                MIPFusionHeadOptions.Input(
                    "fusion_head",
                    optional=True,
                    tooltip="From MIP Fusion Head. Without it: the adapter's own head.",
                ),
                MIPRelevance.Input(
                    "frozen",
                    optional=True,
                    tooltip="From MIP Freeze Relevance: the maps of a first pass decide who gets which part of the "
                    "picture. Without it the relevance is measured at every step.",
                ),
                io.String.Input(
                    "prompt",
                    force_input=True,
                    optional=True,
                    tooltip="The prompt, as the text encoder gets it. It changes no picture: the thumbnails here and "
                    "the report of MIP Relevance Maps then say which object texts it does not hold.",
                ),
                io.Float.Input(
                    "face_lora",
                    default=1.0,
                    min=0.0,
                    max=2.0,
                    step=0.05,
                    optional=True,
                    **ADVANCED,
                    tooltip="Strength of the LoRA inside a FaceID adapter, which acts on the whole picture. 0: without "
                    "it. A model that has it already, from the separate LoRA file, does not get it twice.",
                ),
            ],
            outputs=[
                io.Model.Output(
                    display_name="model", tooltip="For the sampler. The model that came in samples as before."
                ),
                MIPRelevance.Output(
                    display_name="relevance", tooltip="Filled while the model samples; for MIP Relevance Maps."
                ),
            ],
        )

    @classmethod
    def execute(
        cls,
        model,
        clip,
        clip_vision,
        adapter,
        references,
        scale,
        start_percent,
        end_percent,
        merge=None,
        fusion_head=None,
        frozen=None,
        prompt="",
        face_lora=1.0,
    ) -> io.NodeOutput:
        objects, styles = objects_of(references), tuple(each.text for each in styles_of(references))
        names, colours = tuple(each.text for each in objects), colours_of(objects)
        record = RelevanceRecord(names, frozen=frozen is not None, colours=colours, prompt=prompt or "", styles=styles)
        patched = apply_references(
            model,
            clip,
            clip_vision,
            adapter,
            references,
            scale=scale,
            start_percent=start_percent,
            end_percent=end_percent,
            merge=merge,
            fusion_head=fusion_head,
            record=record,
            frozen=frozen,
            face_lora=face_lora,
        )
        return io.NodeOutput(patched, record)
