"""Options of the merge and the fusion head."""

from comfy_api.latest import io

from ..attention.options import GATED, MEASURES, NORMALIZATIONS, STRATEGIES, FusionHead, Measure, Merge
from ..weights.adapter import load_head
from ..weights.comfy_files import adapter_names, adapter_path, file_version
from .types import ADVANCED, CATEGORY, MIPAdapter, MIPFusionHeadOptions, MIPMergeOptions, searched_as
from .validation import fingerprint_of, valid_or_message

FROM_ADAPTER = "from the adapter"


class MIPMerge(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="MIPMerge",
            display_name="MIP Merge",
            category=CATEGORY,
            **searched_as("combine embeds", "ipadapter combine", "relevance", "sharpness", "background", "合并"),
            description="How the image features of several objects become one. Without this node: relevance, as "
            "in the paper's official code. With it, as it comes: one relevance for all sites and sharper shares, which "
            "keep objects further apart.",
            inputs=[
                io.Combo.Input(
                    "strategy",
                    options=list(STRATEGIES),
                    default="relevance",
                    tooltip="relevance: each position listens to the object its text points at (the paper). uniform: "
                    "equal shares. sum: all at full strength. concat: plain IP-Adapter with several pictures.",
                ),
                io.Combo.Input(
                    "normalization",
                    options=list(NORMALIZATIONS),
                    default="sum",
                    **ADVANCED,
                    tooltip="sum: shares add up to 1 (official code; the released weights were trained so). mean: the "
                    "paper's formula, as many times stronger as there are objects: lower the scale. Relevance only.",
                ),
                io.Float.Input(
                    "background",
                    default=0.0,
                    min=0.0,
                    max=10.0,
                    step=0.05,
                    tooltip="A competitor that claims what no object text points at, so that looks leak less into the "
                    "background. 0: off (official). 1: competes like an average object. Relevance only.",
                ),
                io.Float.Input(
                    "sharpness",
                    default=3.0,
                    min=0.1,
                    max=10.0,
                    step=0.1,
                    tooltip="Above 1 the most relevant object takes more of each position; try up to 6 when objects "
                    "mix. 1: official. Relevance only.",
                ),
                io.Combo.Input(
                    "measure",
                    options=list(MEASURES),
                    default="pool",
                    optional=True,
                    **ADVANCED,
                    tooltip="Where the relevance comes from. pool: all sites of the UNet read one map, in which "
                    "those count that agree with others; meant for models that find words badly at many sites. "
                    "each site: every site goes by its own map (the paper). Relevance only.",
                ),
                io.Float.Input(
                    "unclaimed",
                    default=0.0,
                    min=0.0,
                    max=2.0,
                    step=0.05,
                    optional=True,
                    **ADVANCED,
                    tooltip="1 leaves to the prompt what stands out for no object; try it when objects are missing. A "
                    "competitor as strong as the best object is at a typical position of the picture, times this. "
                    "0: off (official). Relevance only.",
                ),
            ],
            outputs=[MIPMergeOptions.Output(display_name="merge", tooltip="For MIP Apply.")],
        )

    @classmethod
    def execute(
        cls, strategy, normalization, background, sharpness, measure: Measure = "each site", unclaimed: float = 0.0
    ) -> io.NodeOutput:
        # Graphs that were saved before there was a measure do not give it: they sample as they did.
        return io.NodeOutput(Merge(strategy, normalization, background, sharpness, measure, unclaimed))


class MIPFusionHead(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="MIPFusionHead",
            display_name="MIP Fusion Head",
            category=CATEGORY,
            **searched_as("gate", "fusion", "融合"),
            description="The small trained gate of MIP-Adapter weights: where image features should speak. Without "
            "this node the adapter's own head gates the image features, as in the official code.",
            inputs=[
                MIPAdapter.Input(
                    "adapter", tooltip="The adapter whose head is used, unless another file is chosen below."
                ),
                io.Combo.Input(
                    "gate",
                    options=list(GATED),
                    default="image",
                    tooltip="image: gates the image features (official code). text: gates the text features (the "
                    "paper's formula). off: no gate.",
                ),
                io.Float.Input(
                    "strength",
                    default=1.0,
                    min=0.0,
                    max=2.0,
                    step=0.05,
                    tooltip="0: no gate, 1: as trained, above 1: exaggerated.",
                ),
                io.Combo.Input(
                    "head_name",
                    options=[FROM_ADAPTER, *adapter_names()],
                    default=FROM_ADAPTER,
                    optional=True,
                    tooltip="A head from another file: one trained on its own, or any MIP-Adapter for the same UNet.",
                ),
            ],
            outputs=[MIPFusionHeadOptions.Output(display_name="fusion_head", tooltip="For MIP Apply.")],
        )

    @classmethod
    def fingerprint_inputs(cls, gate, strength, head_name=FROM_ADAPTER, adapter=None):
        own = head_name in (None, FROM_ADAPTER)  # None: linked
        return gate, strength, None if own else fingerprint_of(lambda name: file_version(adapter_path(name)), head_name)

    @classmethod
    def validate_inputs(cls, head_name=FROM_ADAPTER) -> bool | str:
        return head_name == FROM_ADAPTER or valid_or_message(adapter_path, head_name)

    @classmethod
    def execute(cls, adapter, gate, strength, head_name=FROM_ADAPTER) -> io.NodeOutput:
        own = head_name == FROM_ADAPTER
        weights = adapter.head if own else load_head(adapter_path(head_name), name=head_name)
        head = FusionHead(weights, gate, strength, name=adapter.name if own else head_name)
        if head.active and not weights:
            raise ValueError(
                f"“{adapter.name}” carries no fusion head (plain IP-Adapter weights have none): choose a file with one "
                "as head_name, set gate to off, or remove this node."
            )
        return io.NodeOutput(head)
