"""The miniature, a model to try workflows without a download, and pictures of its world."""

from comfy_api.latest import io, ui

from ..attention.options import one_of
from ..miniature import comfy_bundle
from ..miniature.drawing import draw_object
from ..miniature.world_looks import COLOURS, PATTERNS
from ..miniature.world_shapes import KINDS
from .types import CATEGORY, searched_as
from .validation import checked_call


class MIPMiniatureLoader(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="MIPMiniatureLoader",
            display_name="Load Miniature (MIP)",
            category=CATEGORY,
            **searched_as("tiny model", "test model", "demo", "微型模型"),
            description="A tiny stand-in for SDXL, for a world of drawn shapes: nothing to download, 128×128 pictures "
            "on any CPU. To see the method work and to try workflows, not to make art. Its prompts name "
            "shapes only, such as “a star and a fish”; colours and patterns come from the references.",
            inputs=[],
            outputs=[
                io.Model.Output(tooltip="In place of a checkpoint's model."),
                io.Clip.Output(tooltip="Reads prompts and object texts; it knows the world's few words."),
                io.Vae.Output(tooltip="For VAE Decode."),
                io.ClipVision.Output(tooltip="The image encoder, for MIP Apply and MIP Encoder from CLIP Vision."),
            ],
        )

    @classmethod
    def execute(cls) -> io.NodeOutput:
        return io.NodeOutput(*comfy_bundle.load())


class MIPMiniatureObject(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        colours = list(COLOURS)
        return io.Schema(
            node_id="MIPMiniatureObject",
            display_name="Draw Miniature Object (MIP)",
            category=CATEGORY,
            **searched_as("test picture", "shape", "demo", "测试图"),
            description="Draws one object of the miniature's world on white: a reference picture for MIP Reference, "
            "without a file. The prompt and the object text name its kind only; the look comes from this picture.",
            inputs=[
                io.Combo.Input("kind", options=list(KINDS), tooltip="What it is: the word for prompt and object text."),
                io.Combo.Input("pattern", options=list(PATTERNS), default="striped", tooltip="How its colours lie."),
                io.Combo.Input("colour", options=colours, default="yellow", tooltip="Its first colour."),
                io.Combo.Input(
                    "second_colour", options=colours, default="green", tooltip="Its second colour; none if plain."
                ),
                io.Int.Input(
                    "pose",
                    default=0,
                    min=0,
                    max=2**31 - 1,
                    tooltip="Another number is another place, size and turn of the same object.",
                ),
            ],
            outputs=[io.Image.Output(tooltip="The picture, for MIP Reference.")],
            is_output_node=True,  # it then shows its picture even when the output comes from the cache
        )

    @classmethod
    def validate_inputs(cls, kind=None, pattern=None, colour=None, second_colour=None) -> bool | str:
        for choice in _choices(kind, pattern, colour, second_colour):
            if choice[1] is not None and (wrong := checked_call(one_of, *choice)) is not True:
                return wrong  # None: linked or missing
        return True

    @classmethod
    def execute(cls, kind, pattern, colour, second_colour, pose) -> io.NodeOutput:
        for name, value, known in _choices(kind, pattern, colour, second_colour):
            one_of(name, value, known)
        picture = draw_object(kind, pattern, colour, second_colour, pose)
        return io.NodeOutput(picture, ui=ui.PreviewImage(picture, cls=cls))


def _choices(kind, pattern, colour, second_colour) -> tuple[tuple[str, object, tuple[str, ...]], ...]:
    """What is chosen: each input's name, its value, and what there is to choose from."""
    colours = tuple(COLOURS)
    return (
        ("kind", kind, tuple(KINDS)),
        ("pattern", pattern, tuple(PATTERNS)),
        ("colour", colour, colours),
        ("second_colour", second_colour, colours),
    )
