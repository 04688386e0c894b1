"""A region from a box."""

from comfy_api.latest import io

from ..attention.regions import box_region
from ..evaluation.detection.box_formats import FORMATS, SIDES
from ..evaluation.detection.boxes import edges_of
from .detect import BBox, BoundingBox, Segs
from .types import CATEGORY, MIPDetections, searched_as


class MIPBoxRegion(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        def part(name: str, default: float, tooltip: str) -> io.Input:
            return io.Float.Input(name, default=default, min=0.0, max=1.0, step=0.01, tooltip=tooltip)

        return io.Schema(
            node_id="MIPBoxRegion",
            display_name="MIP Region from Box",
            category=CATEGORY,
            **searched_as("area", "regional", "mask", "rectangle", "区域"),
            description="A box as the region of a MIP Reference: typed as parts of the canvas, or taken from another "
            "node's boxes.",
            inputs=[
                part("left", 0.0, "Where the box begins, from the left: 0.5 is the middle."),
                part("top", 0.0, "Where the box begins, from the top."),
                part("width", 0.5, "How wide the box is: 0.5 is half of the canvas."),
                part("height", 1.0, "How high the box is."),
                part("feather", 0.05, "Width of the soft edge, as a part of the canvas. 0: hard."),
                io.MultiType.Input(
                    "boxes",
                    types=[BoundingBox, BBox, Segs, MIPDetections],
                    optional=True,
                    tooltip="Boxes of another node, in place of the numbers above: BOUNDING_BOX, BBOX (KJNodes and "
                    "others), SEGS (Impact Pack) or MIP_DETECTIONS, of a picture with the layout that you want.",
                ),
                io.Image.Input(
                    "images",
                    optional=True,
                    tooltip="The picture that the boxes belong to: pixels are counted on it. MIP_DETECTIONS and SEGS "
                    "know their own.",
                ),
                io.String.Input(
                    "text",
                    default="",
                    optional=True,
                    tooltip="Whose boxes: the label that they carry, such as the object text. Empty: all of them.",
                ),
                io.Int.Input(
                    "number",
                    default=0,
                    min=0,
                    max=100,
                    optional=True,
                    tooltip="Which of these boxes, counted from 1; 0: all together.",
                ),
                io.Combo.Input(
                    "bbox_format",
                    options=list(FORMATS),
                    default=SIDES,
                    optional=True,
                    tooltip="What the four numbers of a BBOX mean: KJNodes gives the first; SAM 2 and Florence nodes "
                    "give the second. The other types say it themselves.",
                ),
            ],
            outputs=[io.Mask.Output(display_name="region", tooltip="For MIP Reference: white in the box.")],
        )

    @classmethod
    def execute(
        cls, left, top, width, height, feather, boxes=None, images=None, text="", number=0, bbox_format=SIDES
    ) -> io.NodeOutput:
        if boxes is None:
            return io.NodeOutput(box_region([(left, top, left + width, top + height)], feather))
        size = None if images is None else tuple(images.shape[1:3])
        return io.NodeOutput(box_region(edges_of(boxes, text, number, size, bbox_format), feather))
