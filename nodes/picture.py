"""One more picture of an object."""

from comfy_api.latest import io

from ..attention.reference import CENTRE, FITS, MAX_WEIGHT, make_reference
from .types import ADVANCED, CATEGORY, MIPPictures, searched_as

CALLED = "one more picture"  # in messages


class MIPPicture(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="MIPPicture",
            display_name="MIP Picture",
            category=CATEGORY,
            **searched_as("more pictures", "several pictures", "multiple views", "多张图像"),
            description="One more picture of the same object, with a size and a mask of its own: for “more_pictures” "
            "of MIP Reference, which names the object. Chain several through “pictures”.",
            inputs=[
                io.Image.Input(
                    "image",
                    tooltip="The object once more, any size; the middle square is used (see “fit”). A batch is several "
                    "pictures; all of them count alike.",
                ),
                io.Float.Input(
                    "weight",
                    default=1.0,
                    min=0.0,
                    max=MAX_WEIGHT,
                    step=0.05,
                    tooltip="How much this picture counts in the mean; those of MIP Reference itself count 1. 0: not "
                    "at all.",
                ),
                io.Mask.Input(
                    "image_mask",
                    optional=True,
                    tooltip="White on the object in this picture: it is cut out onto white, as in training.",
                ),
                MIPPictures.Input("pictures", optional=True, tooltip="The pictures so far; this one is appended."),
                io.Combo.Input(
                    "fit",
                    options=list(FITS),
                    default=CENTRE,
                    optional=True,
                    **ADVANCED,
                    tooltip="Which square of a tall or wide picture is used: the middle, all of it on white, or one "
                    "end. With image_mask the object is cut out instead.",
                ),
            ],
            outputs=[
                MIPPictures.Output(
                    display_name="pictures",
                    tooltip="For “more_pictures” of MIP Reference, or for the next MIP Picture.",
                )
            ],
        )

    @classmethod
    def execute(cls, image, weight, image_mask=None, pictures=(), fit=CENTRE) -> io.NodeOutput:
        return io.NodeOutput((*(pictures or ()), make_reference(image, CALLED, weight, image_mask, fit=fit)))
