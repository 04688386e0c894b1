"""The nodes that artists use. Each validates its inputs, calls into the core, and returns.

The nodes of a file are in its `define_schema`; NODES lists them all. Every `execute` is wrapped by
`validation.py`: `check_whenever_it_runs`, so an error may come from there.

adapter.py          Load MIP Adapter, Load SigLIP (MIP)
reference.py        MIP Reference
several.py          MIP Several References, where inputs grow
picture.py          MIP Picture
faces.py            Load Face Analyser (MIP), MIP Face Reference
style.py            MIP Style Reference
region.py           MIP Region from Box
block_strength.py   MIP Block Strength
merge.py            MIP Merge, MIP Fusion Head
apply.py            MIP Apply
edit.py             MIP Edit References
relevance.py        MIP Relevance Maps
freeze.py           MIP Freeze Relevance
detect.py           Load MIP Detector, MIP Detect Objects, MIP Objects from Boxes
encoders.py         Load MIP Encoder, MIP Encoder from CLIP Vision
quality.py          MIP Object Quality Score
noise.py            MIP Text Noise
relevance_score.py  MIP Object Relevance Score
personalization.py  MIP Personalisation Score
binding.py          MIP Binding Report, MIP Seed Picker
train.py            Train MIP Adapter, Save MIP Adapter
miniature.py        Load Miniature (MIP), Draw Miniature Object (MIP)
types.py            socket types, and what schemas have in common
validation.py       checks at the nodes' door
progress.py         progress bars
comfy_version.py    the host's version
"""

from .comfy_version import require_host

require_host()

from comfy_api.latest import ComfyExtension, io  # noqa: E402

from ..weights.comfy_files import register_folders  # noqa: E402
from .adapter import MIPAdapterLoader, MIPSigLIPLoader  # noqa: E402
from .apply import MIPApply  # noqa: E402
from .binding import MIPBindingReport, MIPSeedPicker  # noqa: E402
from .block_strength import MIPBlockStrength  # noqa: E402
from .detect import MIPBoxes, MIPDetectObjects, MIPDetectorLoader  # noqa: E402
from .edit import MIPEditReferences  # noqa: E402
from .encoders import MIPEncoderFromModels, MIPEncoderLoader  # noqa: E402
from .faces import MIPFaceAnalyserLoader, MIPFaceReference  # noqa: E402
from .freeze import MIPFreezeRelevance  # noqa: E402
from .merge import MIPFusionHead, MIPMerge  # noqa: E402
from .miniature import MIPMiniatureLoader, MIPMiniatureObject  # noqa: E402
from .noise import MIPTextNoise  # noqa: E402
from .personalization import MIPPersonalizationScore  # noqa: E402
from .picture import MIPPicture  # noqa: E402
from .quality import MIPObjectQualityScore  # noqa: E402
from .reference import MIPReference  # noqa: E402
from .region import MIPBoxRegion  # noqa: E402
from .relevance import MIPRelevanceMaps  # noqa: E402
from .relevance_score import MIPObjectRelevanceScore  # noqa: E402
from .several import MIPSeveralReferences  # noqa: E402
from .style import MIPStyleReference  # noqa: E402
from .train import MIPSaveAdapter, MIPTrainAdapter  # noqa: E402
from .validation import check_whenever_it_runs  # noqa: E402

NODES: list[type[io.ComfyNode]] = [
    MIPAdapterLoader,
    MIPReference,
    MIPMerge,
    MIPFusionHead,
    MIPApply,
    MIPRelevanceMaps,
    MIPMiniatureLoader,
    MIPTrainAdapter,
    MIPSaveAdapter,
    MIPEncoderLoader,
    MIPEncoderFromModels,
    MIPDetectorLoader,
    MIPDetectObjects,
    MIPBoxes,
    MIPObjectQualityScore,
    MIPTextNoise,
    MIPObjectRelevanceScore,
    MIPPersonalizationScore,
    MIPBindingReport,
    MIPSeedPicker,
    MIPFreezeRelevance,
    MIPMiniatureObject,
    MIPBoxRegion,
    MIPBlockStrength,
    MIPStyleReference,
    MIPSigLIPLoader,
    MIPFaceAnalyserLoader,
    MIPFaceReference,
    MIPEditReferences,
    MIPPicture,
]
if hasattr(io, "Autogrow"):
    NODES.append(MIPSeveralReferences)
for _node in NODES:
    check_whenever_it_runs(_node)


class MIPAdapterExtension(ComfyExtension):
    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        register_folders()  # not in on_load, which hosts up to at least 0.8.0 never call
        return NODES


def extension() -> MIPAdapterExtension:
    return MIPAdapterExtension()
