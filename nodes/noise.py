"""Noise on the text attention, for the object relevance score."""

from comfy_api.latest import io

from ..attention.noise import MODES
from ..attention.reference import objects_of
from ..evaluation.detection.detect import object_texts
from ..patching.noise_patch import apply_text_noise
from .types import SCORES, MIPReferences, percents, searched_as


class MIPTextNoise(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="MIPTextNoise",
            display_name="MIP Text Noise",
            category=SCORES,
            **searched_as("relevance score", "perturb", "noise", "噪声"),
            description="Disturbs what the model takes from the prompt, either everywhere alike or where it says that "
            "one object is. Sample with and without it from one seed: MIP Object Relevance Score says whether the "
            "picture changed where the object is.",
            inputs=[
                io.Model.Input("model", tooltip="SDXL, SD1.5 or a derivative, with or without MIP Apply."),
                io.Clip.Input("clip", tooltip="The checkpoint's CLIP: encodes the object texts."),
                io.Combo.Input(
                    "mode",
                    options=list(MODES),
                    default="relevance",
                    tooltip="relevance: the more noise, the more relevant a place is to the target. uniform: the same "
                    "everywhere. Both add the same energy, and the same numbers from the same seed.",
                ),
                io.String.Input(
                    "target",
                    default="",
                    placeholder="cat",
                    tooltip="The object whose relevance weighs the noise: its text, or its number among the objects. "
                    "Empty: the first. Relevance only.",
                ),
                io.Float.Input(
                    "strength",
                    default=0.5,
                    min=0.0,
                    max=10.0,
                    step=0.05,
                    tooltip="Standard deviation of the noise, in units of that of the text attention itself. The "
                    "picture should change and yet show the same objects in the same places.",
                ),
                io.Int.Input(
                    "seed",
                    default=0,
                    min=0,
                    max=0xFFFFFFFFFFFFFFFF,
                    control_after_generate=True,
                    tooltip="Of this noise; the sampler's seed is another matter.",
                ),
                *percents(
                    "Noise from here on. A little above 0 leaves the composition as it is.",
                    "Noise up to here.",
                ),
                MIPReferences.Input(
                    "references",
                    optional=True,
                    tooltip="The objects, from the chain of MIP Reference; their pictures do not matter here.",
                ),
                io.String.Input(
                    "texts",
                    default="",
                    multiline=True,
                    placeholder="cat, cup",
                    optional=True,
                    tooltip="The objects without references: one a line or between commas, as the prompt names them.",
                ),
            ],
            outputs=[io.Model.Output(display_name="model", tooltip="For the sampler: the model with the noise.")],
        )

    @classmethod
    def execute(
        cls, model, clip, mode, target, strength, seed, start_percent, end_percent, references=(), texts=""
    ) -> io.NodeOutput:
        names = tuple(reference.text for reference in objects_of(references))
        written = object_texts(texts or "")
        if names and written:
            raise ValueError(
                "The objects are named twice, by references and by texts: clear the texts, or disconnect the "
                "references."
            )
        return io.NodeOutput(
            apply_text_noise(
                model,
                clip,
                names or written,
                mode=mode,
                target=target,
                strength=strength,
                seed=seed,
                start_percent=start_percent,
                end_percent=end_percent,
            )
        )
