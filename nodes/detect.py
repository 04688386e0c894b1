"""Which objects are in pictures, and where: found by a detector, or given by other nodes."""

from comfy_api.latest import io

from ..attention.reference import objects_of
from ..evaluation.comfy_models import managed
from ..evaluation.detection.annotate import annotated
from ..evaluation.detection.box_formats import FORMATS, SIDES
from ..evaluation.detection.boxes import read_boxes, to_bounding_boxes, to_masks
from ..evaluation.detection.detect import THRESHOLD, detect, detection_report, distinct, object_texts
from ..evaluation.detection.folder_detector import load_detector
from ..miniature.pixel_detector import NAME, PixelDetector
from ..relevance.maps import objects_named
from ..weights.comfy_files import DETECTORS_FOLDER, folder_version, model_folder, model_folders
from .progress import ticking
from .types import SCORES, MIPDetections, MIPDetector, MIPReferences, searched_as
from .validation import fingerprint_of, valid_or_message

BoundingBox = io.Custom("BOUNDING_BOX")
BBox = io.Custom("BBOX")
Segs = io.Custom("SEGS")


class MIPDetectorLoader(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="MIPDetectorLoader",
            display_name="Load MIP Detector",
            category=SCORES,
            **searched_as("grounding dino", "owl", "detection", "检测器"),
            description="Loads what finds objects by their words: a local Hugging Face folder (Grounding DINO, "
            "MM-Grounding-DINO, LLMDet, OWLv2), or the miniature world's own, which needs no file. Nothing is "
            "downloaded.",
            inputs=[
                io.Combo.Input(
                    "detector_name",
                    options=[NAME, *model_folders(DETECTORS_FOLDER)],
                    default=NAME,
                    tooltip="A folder in models/grounding-dino with config.json, the processor's files and "
                    ".safetensors weights; or the miniature world's detector, for pictures of the miniature only.",
                )
            ],
            outputs=[MIPDetector.Output(display_name="detector", tooltip="For MIP Detect Objects.")],
        )

    @classmethod
    def fingerprint_inputs(cls, detector_name: str | None):
        if detector_name in (None, NAME):
            return detector_name
        return fingerprint_of(lambda name: folder_version(model_folder(DETECTORS_FOLDER, name)), detector_name)

    @classmethod
    def validate_inputs(cls, detector_name: str | None = None) -> bool | str:
        return detector_name == NAME or valid_or_message(model_folder, DETECTORS_FOLDER, detector_name)

    @classmethod
    def execute(cls, detector_name: str) -> io.NodeOutput:
        if detector_name == NAME:
            return io.NodeOutput(PixelDetector())
        return io.NodeOutput(load_detector(model_folder(DETECTORS_FOLDER, detector_name), managed))


class MIPDetectObjects(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="MIPDetectObjects",
            display_name="MIP Detect Objects",
            category=SCORES,
            **searched_as("grounding dino", "find objects", "bounding box", "segment", "检测", "方框"),
            description="Finds objects by their words in every picture of a batch: boxes and masks for the scores and "
            "for other nodes, and a picture that shows them.",
            inputs=[
                io.Image.Input("images", tooltip="The pictures to search, one or a batch."),
                MIPDetector.Input("detector", tooltip="From Load MIP Detector."),
                io.String.Input(
                    "texts",
                    default="",
                    multiline=True,
                    placeholder="one object a line",
                    tooltip="What to look for: one object a line, or separated by commas. Empty: the object texts of "
                    "the references.",
                ),
                io.Float.Input(
                    "threshold",
                    default=THRESHOLD,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    tooltip="How certain the detector must be. Lower it where objects are missed, raise it where other "
                    "things are taken for them.",
                ),
                MIPReferences.Input(
                    "references",
                    optional=True,
                    tooltip="Their object texts are looked for where “texts” is empty.",
                ),
                io.Float.Input(
                    "text_threshold",
                    default=THRESHOLD,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    optional=True,
                    tooltip="How certain at least one word of the object's text must be at its box; never above "
                    "threshold. Grounding DINO and its kin only.",
                ),
                io.Int.Input(
                    "most",
                    default=0,
                    min=0,
                    max=100,
                    optional=True,
                    tooltip="At most so many of each object in a picture, the most certain ones; 0: all.",
                ),
                io.String.Input(
                    "object",
                    default="",
                    placeholder="all",
                    optional=True,
                    tooltip="Whose masks: the object's text or its number among the texts. Empty: of all.",
                ),
            ],
            outputs=[
                MIPDetections.Output(display_name="detections", tooltip="For the scores."),
                BoundingBox.Output(display_name="boxes", tooltip="For other nodes: a list of boxes for each picture."),
                io.Mask.Output(
                    display_name="masks",
                    tooltip="One per object, in the texts' order, for each picture; of one “object” one per picture; "
                    "black: absent. Of detectors that give boxes only (Grounding DINO, OWLv2): the boxes, filled.",
                ),
                io.Image.Output(display_name="annotated", tooltip="The pictures with boxes, names and certainties."),
                io.String.Output(display_name="report", tooltip="What was found where, and what was not."),
            ],
        )

    @classmethod
    def execute(
        cls, images, detector, texts, threshold, references=(), text_threshold=THRESHOLD, most=0, object=""
    ) -> io.NodeOutput:
        wanted = _wanted(texts, references)
        kept = objects_named(object, wanted)
        found = detect(detector, images, wanted, threshold, text_threshold, most, ticking(len(images)))
        found = found.in_colours_of(objects_of(references))
        masks = to_masks(found, kept)
        return io.NodeOutput(found, to_bounding_boxes(found), masks, annotated(images, found), detection_report(found))


class MIPBoxes(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="MIPBoxes",
            display_name="MIP Objects from Boxes",
            category=SCORES,
            **searched_as("bbox", "bounding box", "segs", "masks", "方框"),
            description="Takes boxes or masks of objects from any other node, or painted by hand, in place of a "
            "detector, for the scores.",
            inputs=[
                io.Image.Input("images", tooltip="The pictures that the boxes belong to."),
                io.MultiType.Input(
                    "boxes",
                    types=[BoundingBox, BBox, Segs, io.Mask],
                    tooltip="BOUNDING_BOX, BBOX (KJNodes and others), SEGS (Impact Pack) or MASK. One box or mask an "
                    "object, in the texts' order, for each picture or for all alike; labels that are texts decide.",
                ),
                io.String.Input(
                    "texts",
                    default="",
                    multiline=True,
                    placeholder="one object a line",
                    tooltip="What the boxes hold: one object a line, or separated by commas. Empty: the object texts "
                    "of the references.",
                ),
                io.Combo.Input(
                    "bbox_format",
                    options=list(FORMATS),
                    default=SIDES,
                    tooltip="What the four numbers of a BBOX mean: KJNodes gives the first; SAM 2 and Florence nodes "
                    "give the second. The other types say it themselves.",
                ),
                MIPReferences.Input(
                    "references", optional=True, tooltip="Their object texts are used where “texts” is empty."
                ),
            ],
            outputs=[
                MIPDetections.Output(display_name="detections", tooltip="For the scores."),
                io.Image.Output(display_name="annotated", tooltip="The pictures with the boxes and their names."),
            ],
        )

    @classmethod
    def execute(cls, images, boxes, texts, bbox_format, references=()) -> io.NodeOutput:
        # Repeated texts stay: each has its own box or mask.
        objects = objects_of(references)
        wanted = object_texts(texts) or tuple(each.text for each in objects)
        found = read_boxes(boxes, wanted, *images.shape[:3], form=bbox_format).in_colours_of(objects)
        return io.NodeOutput(found, annotated(images, found))


def _wanted(texts, references) -> tuple[str, ...]:
    """The written texts, else the references' texts; each once."""
    return object_texts(texts) or distinct(each.text for each in objects_of(references))
