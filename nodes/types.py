"""Sockets of this pack. Their names are promises to shared workflows."""

from comfy_api.latest import io

CATEGORY = "MIP-Adapter"

MIPAdapter = io.Custom("MIP_ADAPTER")
MIPReferences = io.Custom("MIP_REFERENCES")
MIPMergeOptions = io.Custom("MIP_MERGE")
MIPFusionHeadOptions = io.Custom("MIP_FUSION_HEAD")
MIPRelevance = io.Custom("MIP_RELEVANCE")
