"""Socket types of this pack. Saved workflows depend on their names."""

from inspect import signature
from typing import Any

from comfy_api.latest import io

CATEGORY = "MIP-Adapter"
SCORES = f"{CATEGORY}/scores"

MIPAdapter = io.Custom("MIP_ADAPTER")
MIPReferences = io.Custom("MIP_REFERENCES")
MIPPictures = io.Custom("MIP_PICTURES")
MIPMergeOptions = io.Custom("MIP_MERGE")
MIPFusionHeadOptions = io.Custom("MIP_FUSION_HEAD")
MIPBlockStrengths = io.Custom("MIP_BLOCK_STRENGTH")
MIPRelevance = io.Custom("MIP_RELEVANCE")
MIPEncoder = io.Custom("MIP_ENCODER")
MIPDetector = io.Custom("MIP_DETECTOR")
MIPDetections = io.Custom("MIP_DETECTIONS")
MIPBinding = io.Custom("MIP_BINDING")
MIPFaceAnalyser = io.Custom("MIP_FACE_ANALYSER")
ANALYSERS = [MIPFaceAnalyser, io.Custom("INSIGHTFACE"), io.Custom("FACEANALYSIS")]  # ours, and those of other packs


# Inputs that few people change. Hosts that know the mark fold them away; older ones show them like all others.
ADVANCED = {"advanced": True} if "advanced" in signature(io.Float.Input.__init__).parameters else {}


# What people search for who want several objects, each after its own picture: it leads to every node that takes part.
SEARCH_WORDS = (
    *("multi", "multiple objects", "subject", "multi subject", "multiple subjects", "character", "face", "style"),
    *("reference", "reference image", "image prompt", "ip adapter", "ipadapter"),
    *("多对象", "多主体", "参考图", "角色", "人脸", "风格"),
)


def searched_as(*words: str) -> dict[str, list[str]]:
    """For a schema: what people search for who do not know the node's name. Older hosts have no place for it."""
    return {"search_aliases": list(words)} if "search_aliases" in signature(io.Schema).parameters else {}


def percents(starts: str, ends: str, **more: Any) -> tuple[Any, Any]:
    """start_percent and end_percent, when something acts. starts, ends: their tooltips. more: for both inputs."""
    each = {"min": 0.0, "max": 1.0, "step": 0.01, **ADVANCED, **more}
    return (
        io.Float.Input("start_percent", default=0.0, tooltip=starts, **each),
        io.Float.Input("end_percent", default=1.0, tooltip=ends, **each),
    )
