"""Faces as references, and what finds them."""

from comfy_api.latest import io

from ..attention.face import MAX_STRUCTURE
from ..attention.reference import MAX_WEIGHT, check_chain, make_reference, of_a_face
from ..evaluation.faces.analyser import load_analyser
from ..evaluation.faces.find import LARGEST, find_faces
from ..weights.comfy_files import analyser_folder, analyser_folders, folder_version
from .types import ADVANCED, ANALYSERS, CATEGORY, MIPAdapter, MIPFaceAnalyser, MIPReferences, percents, searched_as
from .validation import fingerprint_of, valid_or_message

LICENCE = "InsightFace's models are licensed for non-commercial research only."


class MIPFaceAnalyserLoader(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="MIPFaceAnalyserLoader",
            display_name="Load Face Analyser (MIP)",
            category=CATEGORY,
            **searched_as("insightface", "face analysis", "buffalo_l", "faceid", "人脸"),
            description="Loads what finds and recognises faces: a model pack of InsightFace, such as buffalo_l, from a "
            f"local folder. It needs the package onnxruntime. Nothing is downloaded. {LICENCE}",
            inputs=[
                io.Combo.Input(
                    "analyser_name",
                    options=analyser_folders(),
                    tooltip="A folder of .onnx files in models/insightface/models. The FaceID adapters were trained "
                    f"with buffalo_l. {LICENCE}",
                )
            ],
            outputs=[
                MIPFaceAnalyser.Output(
                    display_name="face_analyser",
                    tooltip="For MIP Face Reference, which also takes the analysers of IPAdapter_plus and InstantID.",
                )
            ],
        )

    @classmethod
    def fingerprint_inputs(cls, analyser_name: str | None):
        return fingerprint_of(lambda name: folder_version(analyser_folder(name)), analyser_name)

    @classmethod
    def validate_inputs(cls, analyser_name: str | None = None) -> bool | str:
        return valid_or_message(analyser_folder, analyser_name)

    @classmethod
    def execute(cls, analyser_name: str) -> io.NodeOutput:
        return io.NodeOutput(load_analyser(analyser_folder(analyser_name)))


class MIPFaceReference(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="MIPFaceReference",
            display_name="MIP Face Reference",
            category=CATEGORY,
            **searched_as("faceid", "face", "two people", "instantid", "portrait", "ip adapter", "人脸", "双人"),
            description="One person's face, and the words that name the person in the prompt. It stands in the chain "
            "of references, for FaceID and portrait adapters.",
            inputs=[
                io.Image.Input(
                    "image",
                    tooltip="A photograph of the person, any size. A batch is several photographs of the same person; "
                    "their embeddings are averaged. Pictures without a face are left out.",
                ),
                io.String.Input(
                    "text",
                    default="",
                    placeholder="woman",
                    tooltip="The person's name as it stands in the prompt, one or two words: “woman”, “old man”. It "
                    "decides which part of the picture gets this face.",
                ),
                io.MultiType.Input(
                    "face_analyser",
                    types=ANALYSERS,
                    tooltip="From Load Face Analyser (MIP), or the InsightFace loader of IPAdapter_plus or InstantID. "
                    f"{LICENCE}",
                ),
                io.Float.Input(
                    "weight",
                    default=1.0,
                    min=0.0,
                    max=MAX_WEIGHT,
                    step=0.05,
                    tooltip="How strongly the person follows the face, on top of the scale of MIP Apply.",
                ),
                io.Int.Input(
                    "face",
                    default=LARGEST,
                    min=LARGEST,
                    max=50,
                    tooltip="Which face of a picture with several: 0 is the largest; 1, 2, … count from the left.",
                ),
                MIPReferences.Input(
                    "references", optional=True, tooltip="The references so far; this one is appended."
                ),
                io.Mask.Input(
                    "region",
                    optional=True,
                    tooltip="White where the face may act in the new picture; any size, stretched to the canvas. "
                    "Optional: without it the text finds the person.",
                ),
                io.Float.Input(
                    "structure",
                    default=1.0,
                    min=0.0,
                    max=MAX_STRUCTURE,
                    step=0.05,
                    optional=True,
                    **ADVANCED,
                    tooltip="FaceID Plus v2 only: how much the crop's shapes count beside the embedding. Low is freer, "
                    "high keeps hair and expression too.",
                ),
                MIPReferences.Input(
                    "more_pictures",
                    optional=True,
                    tooltip="More photographs of this person, of other sizes: MIP Face Reference nodes of their own. "
                    "Their weights say how much each counts in the mean, their texts nothing.",
                ),
                MIPAdapter.Input(
                    "adapter",
                    optional=True,
                    tooltip="The face adapter, where faces and objects stand in one picture: MIP Apply then has the "
                    "objects' adapter. Without it: that of MIP Apply.",
                ),
                io.ClipVision.Input(
                    "clip_vision",
                    optional=True,
                    tooltip="The image encoder of a FaceID Plus adapter, ViT-H/14, where that of MIP Apply is another "
                    "one. FaceID and portrait adapters need none.",
                ),
                *percents(
                    "This face acts from here on. Before, the others share the whole picture, its place too.",
                    "This face acts up to here; then the others take over its place.",
                    optional=True,
                ),
            ],
            outputs=[
                MIPReferences.Output(
                    display_name="references",
                    tooltip="The chain with this face at its end: for the next reference, or for MIP Apply.",
                ),
                io.Image.Output(
                    display_name="crops",
                    tooltip="The aligned faces, one for each photograph, as the adapter gets them: for Preview Image.",
                ),
                io.String.Output(
                    display_name="about",
                    tooltip="What was found in the photographs, in words: for Preview as Text.",
                ),
            ],
        )

    @classmethod
    def execute(
        cls,
        image,
        text,
        face_analyser,
        weight,
        face,
        references=(),
        region=None,
        structure=1.0,
        more_pictures=(),
        adapter=None,
        clip_vision=None,
        start_percent=0.0,
        end_percent=1.0,
    ) -> io.NodeOutput:
        whole = make_reference(image, text, weight, None, region, start_percent, end_percent)
        seen = find_faces(face_analyser, whole.images, whole.text, face)
        models = more_pictures or (), adapter, clip_vision
        chain = (*(references or ()), of_a_face(whole, seen.embeddings, seen.crops, structure, *models))
        check_chain(chain)
        return io.NodeOutput(chain, seen.crops, "\n".join(seen.remarks) or f"“{whole.text}”: one face in each picture.")
