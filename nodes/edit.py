"""The node that tells an edit model's own references apart."""

from comfy_api.latest import io

from ..patching.edit_patch import edit_references, read_texts
from ..relevance.record import RelevanceRecord
from .types import CATEGORY, MIPMergeOptions, MIPRelevance, percents, searched_as


class MIPEditReferences(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="MIPEditReferences",
            display_name="MIP Edit References",
            category=CATEGORY,
            **searched_as(
                "kontext", "qwen edit", "flux2", "reference latent", "multi reference", "编辑模型", "多图参考"
            ),
            description="For FLUX.1 Kontext, FLUX.2 and Qwen-Image-Edit: each part of the picture listens to the "
            "reference of its own object, by the prompt's words. Place it between the model (after LoRAs) and the "
            "sampler. Not yet tried with released weights: tell us.",
            inputs=[
                io.Model.Input("model", tooltip="An edit model, from ComfyUI's own loader or a GGUF one."),
                io.Clip.Input("clip", tooltip="The text encoder that also encodes the prompt."),
                io.String.Input(
                    "texts",
                    default="cat\nred jacket",
                    multiline=True,
                    tooltip="One line for each ReferenceLatent, in their order: the words of the prompt that name what "
                    "it shows. The same words twice: two references of one object. A line with “-”: a reference that "
                    "shows no object, such as the picture to be edited; it is left as it is.",
                ),
                io.Float.Input(
                    "strength",
                    default=1.0,
                    min=0.0,
                    max=4.0,
                    step=0.1,
                    tooltip="How strongly each place prefers the reference of its own object. 0: off, the same picture "
                    "as without this node. 1: as much as the words say.",
                ),
                io.Boolean.Input(
                    "apart",
                    default=True,
                    tooltip="On: the references do not see each other inside the model. Off: they mix as the model "
                    "does by itself.",
                ),
                *percents(
                    "Acts from here on. Before it the model samples as by itself.",
                    "Acts up to here. Below 1 leaves the finest details to the model.",
                ),
                MIPMergeOptions.Input(
                    "merge",
                    optional=True,
                    tooltip="From MIP Merge: sharpness, background, measure and unclaimed, with the strategy "
                    "relevance. Without it: one relevance for all blocks (pool).",
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
                    tooltip="The prompt, as the text encoder gets it. With it the objects' words are found more "
                    "surely; connect it if the node does not find them.",
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
        texts,
        strength,
        apart,
        start_percent,
        end_percent,
        merge=None,
        frozen=None,
        prompt="",
    ) -> io.NodeOutput:
        names, _ = read_texts(texts)
        record = RelevanceRecord(names, frozen is not None, None, prompt or "")
        patched = edit_references(
            model,
            clip,
            texts,
            strength=strength,
            apart=apart,
            start_percent=start_percent,
            end_percent=end_percent,
            merge=merge,
            frozen=frozen,
            prompt=prompt or "",
            record=record,
        )
        return io.NodeOutput(patched, record)
