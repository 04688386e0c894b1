"""A style: a reference without a place."""

from comfy_api.latest import io

from ..attention.block_strength import PRESETS, STYLE
from ..attention.ease import EASES, STEADY
from ..attention.reference import CENTRE, FITS, MAX_WEIGHT, check_chain, make_style, styles_of
from .types import ADVANCED, CATEGORY, MIPBlockStrengths, MIPReferences, percents, searched_as


class MIPStyleReference(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="MIPStyleReference",
            display_name="MIP Style Reference",
            category=CATEGORY,
            **searched_as("style transfer", "ipadapter style", "ipadapter composition", "风格"),
            description="A style: pictures whose looks the whole picture takes, beside the objects. It has no object "
            "text, competes with nobody for a place, and stands anywhere in the chain of references.",
            inputs=[
                io.Image.Input(
                    "image",
                    tooltip="A picture in this style, any size; the middle square is used (see “fit”). A batch is "
                    "several pictures of the same style; they are averaged.",
                ),
                io.Float.Input(
                    "weight",
                    default=1.0,
                    min=0.0,
                    max=MAX_WEIGHT,
                    step=0.05,
                    tooltip="How strongly the picture follows this style, on top of the scale of MIP Apply. Several "
                    "styles add up: two of 0.5 mix half and half. 0: as if it were not there.",
                ),
                io.Combo.Input(
                    "preset",
                    options=list(PRESETS),
                    default=STYLE,
                    tooltip="What is taken from the picture: its style; strong style (all but the layout); composition "
                    "(the layout alone); all. For SDXL and SD1.5; other models need “all”.",
                ),
                MIPReferences.Input(
                    "references", optional=True, tooltip="The objects and styles so far; this style is appended."
                ),
                io.Mask.Input(
                    "region",
                    optional=True,
                    tooltip="White where the style may act; any size, stretched to the canvas. Without it: everywhere.",
                ),
                *percents(
                    "The style acts from here on. A little above 0 leaves the layout to the prompt.",
                    "The style acts up to here.",
                    optional=True,
                ),
                io.Combo.Input(
                    "over_time",
                    options=list(EASES),
                    default=STEADY,
                    optional=True,
                    tooltip="How the weight varies from start_percent to end_percent: ease in grows from 0, ease out "
                    "fades to 0, ease in and out is strongest in the middle.",
                ),
                MIPBlockStrengths.Input(
                    "block_strength",
                    optional=True,
                    tooltip="From MIP Block Strength, in place of the preset: a number for each block of the model.",
                ),
                io.Image.Input(
                    "negative",
                    optional=True,
                    tooltip="A picture of what the picture must not look like, for the negative side of guidance "
                    "(cfg above 1). Without it: no picture.",
                ),
                io.Combo.Input(
                    "fit",
                    options=list(FITS),
                    default=CENTRE,
                    optional=True,
                    **ADVANCED,
                    tooltip="Which square of a tall or wide picture is used: the middle, all of it on white, or one "
                    "end.",
                ),
                io.String.Input(
                    "name",
                    default="",
                    placeholder="watercolour",
                    optional=True,
                    tooltip="What reports call this style; it changes nothing in the picture. Empty: style 1, style 2, "
                    "…",
                ),
            ],
            outputs=[
                MIPReferences.Output(
                    display_name="references",
                    tooltip="The chain with this style at its end: for the next reference, or for MIP Apply.",
                )
            ],
        )

    @classmethod
    def execute(
        cls,
        image,
        weight,
        preset,
        references=(),
        region=None,
        start_percent=0.0,
        end_percent=1.0,
        over_time=STEADY,
        block_strength=None,
        negative=None,
        fit=CENTRE,
        name="",
    ) -> io.NodeOutput:
        before = tuple(references or ())
        name = name.strip() or f"style {len(styles_of(before)) + 1}"
        new = make_style(
            image,
            name,
            weight,
            region,
            start_percent=start_percent,
            end_percent=end_percent,
            fit=fit,
            preset=preset,
            blocks=block_strength,
            over_time=over_time,
            negative=negative,
        )
        chain = (*before, new)
        check_chain(chain)
        return io.NodeOutput(chain)
