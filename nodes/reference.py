"""One object of the chain of references."""

from comfy_api.latest import io

from ..attention.reference import CENTRE, FITS, MAX_WEIGHT, check_chain, make_reference, object_text
from ..common.drawing import AUTOMATIC, MAP_COLOURS, chosen_colour
from .types import (
    ADVANCED,
    CATEGORY,
    SEARCH_WORDS,
    MIPBlockStrengths,
    MIPPictures,
    MIPReferences,
    percents,
    searched_as,
)
from .validation import valid_or_message


class MIPReference(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="MIPReference",
            display_name="MIP Reference",
            category=CATEGORY,
            **searched_as(*SEARCH_WORDS),
            description="One object: its pictures and the words that name it in the prompt. Chain several, one node an "
            "object, through “references”.",
            inputs=[
                io.Image.Input(
                    "image",
                    tooltip="The object, any size; the middle square is used (see “fit”). A batch is several pictures "
                    "of the same object; they are averaged.",
                ),
                io.String.Input(
                    "text",
                    default="",
                    placeholder="cat",
                    tooltip="The object's name as it stands in the prompt, one or two words: “cat”, “red jacket”. "
                    "It decides which parts of the picture belong to this reference.",
                ),
                io.Float.Input(
                    "weight",
                    default=1.0,
                    min=0.0,
                    max=MAX_WEIGHT,
                    step=0.05,
                    tooltip="How strongly this object follows its pictures, on top of the scale of MIP Apply.",
                ),
                io.Mask.Input(
                    "image_mask",
                    optional=True,
                    tooltip="White on the object in its picture: it is cut out onto white, as in training. Helps when "
                    "the background leaks. (Invert the mask if it comes from a picture's transparency.)",
                ),
                io.Mask.Input(
                    "region",
                    optional=True,
                    tooltip="White where the object may act in the new picture; any size, stretched to the canvas. "
                    "Optional: without it the object text finds the place.",
                ),
                MIPReferences.Input(
                    "references", optional=True, tooltip="The references so far; this one is appended."
                ),
                *percents(
                    "This object acts from here on. Before, the others share the whole picture, its place too. "
                    "To leave the layout to the prompt use start_percent of MIP Apply.",
                    "This object acts up to here; then the others take over its place.",
                    optional=True,
                ),
                io.Float.Input(
                    "region_until",
                    default=1.0,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    optional=True,
                    **ADVANCED,
                    tooltip="The region holds up to here, then the object text finds the place: try 0.2–0.4 to make "
                    "the region a hint. 1: to the end.",
                ),
                io.MultiType.Input(
                    "more_pictures",
                    types=[MIPPictures, MIPReferences],  # workflows from before there was MIP Picture have references
                    optional=True,
                    tooltip="More pictures of this same object: MIP Picture nodes, each with its picture of any size, "
                    "its mask and its weight in the mean. The other objects belong to “references”.",
                ),
                io.Combo.Input(
                    "fit",
                    options=list(FITS),
                    default=CENTRE,
                    optional=True,
                    **ADVANCED,
                    tooltip="Which square of a tall or wide picture is used: the middle, all of it on white, or one "
                    "end. With image_mask the object is cut out instead.",
                ),
                io.Combo.Input(
                    "map_color",
                    options=list(MAP_COLOURS),
                    default=AUTOMATIC,
                    optional=True,
                    **ADVANCED,
                    tooltip="This object's colour in maps, boxes, tables and thumbnails. automatic: by its place in "
                    "the chain.",
                ),
                MIPBlockStrengths.Input(
                    "block_strength",
                    optional=True,
                    tooltip="From MIP Block Strength: in which blocks of the model this object speaks, and how that "
                    "varies over time. Without it: in all of them, steadily.",
                ),
                io.Image.Input(
                    "negative",
                    optional=True,
                    tooltip="A picture of what this object must not look like, for the negative side of guidance "
                    "(cfg above 1). Without it: no picture.",
                ),
            ],
            outputs=[
                MIPReferences.Output(
                    display_name="references",
                    tooltip="The chain with this object at its end: for the next MIP Reference, or for MIP Apply.",
                )
            ],
        )

    @classmethod
    def validate_inputs(cls, text: str | None = None) -> bool | str:
        return valid_or_message(object_text, text)

    @classmethod
    def execute(
        cls,
        image,
        text,
        weight,
        image_mask=None,
        region=None,
        references=(),
        start_percent=0.0,
        end_percent=1.0,
        region_until=1.0,
        more_pictures=(),
        fit=CENTRE,
        map_color=AUTOMATIC,
        block_strength=None,
        negative=None,
    ) -> io.NodeOutput:
        new = make_reference(
            image,
            text,
            weight,
            image_mask,
            region,
            start_percent=start_percent,
            end_percent=end_percent,
            region_until=region_until,
            more_pictures=more_pictures or (),
            fit=fit,
            map_color=chosen_colour(map_color),
            blocks=block_strength,
            negative=negative,
        )
        chain = (*(references or ()), new)
        check_chain(chain)
        return io.NodeOutput(chain)
