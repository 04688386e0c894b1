"""Socket types of this pack. Saved workflows depend on their names."""

from comfy_api.latest import io

CATEGORY = "MIP-Adapter"
SCORES = f"{CATEGORY}/scores"

MIPAdapter = io.Custom("MIP_ADAPTER")
MIPReferences = io.Custom("MIP_REFERENCES")
MIPMergeOptions = io.Custom("MIP_MERGE")
MIPFusionHeadOptions = io.Custom("MIP_FUSION_HEAD")
MIPRelevance = io.Custom("MIP_RELEVANCE")
MIPEncoder = io.Custom("MIP_ENCODER")
MIPDetector = io.Custom("MIP_DETECTOR")
MIPDetections = io.Custom("MIP_DETECTIONS")
MIPBinding = io.Custom("MIP_BINDING")
