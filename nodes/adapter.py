"""The adapter loader."""

from comfy_api.latest import io

from ..weights.adapter import load_adapter
from ..weights.comfy_files import adapter_names, adapter_path, cure, fingerprint
from .types import CATEGORY, MIPAdapter, found_by
from .validation import fingerprint_of, found


class MIPAdapterLoader(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="MIPAdapterLoader",
            display_name="Load MIP Adapter",
            category=CATEGORY,
            **found_by("ip adapter", "ipadapter loader", "load ip-adapter", "multi subject", "加载适配器"),
            description="Loads a MIP-Adapter or IP-Adapter file for SDXL or SD1.5. What it is (family, image encoder "
            "it needs, fusion head or none) is read from its tensors, never from its name.",
            inputs=[
                io.Combo.Input(
                    "adapter_name",
                    options=adapter_names(),
                    tooltip="A file in models/mip_adapter or models/ipadapter. MIP-Adapter weights carry a fusion "
                    "head; plain IP-Adapter weights work too.",
                )
            ],
            outputs=[
                MIPAdapter.Output(display_name="adapter", tooltip="For MIP Apply, MIP Fusion Head and training."),
                io.String.Output(
                    display_name="about",
                    tooltip="What the file is and which image encoder it needs, in words: for Preview as Text.",
                ),
            ],
        )

    @classmethod
    def fingerprint_inputs(cls, adapter_name: str | None):
        return fingerprint_of(lambda name: fingerprint(adapter_path(name)), adapter_name)

    @classmethod
    def validate_inputs(cls, adapter_name: str | None) -> bool | str:
        return found(adapter_path, adapter_name)

    @classmethod
    def execute(cls, adapter_name: str) -> io.NodeOutput:
        path = adapter_path(adapter_name)
        try:
            adapter = load_adapter(path, name=adapter_name)
        except ValueError as error:
            raise ValueError(f"{error}{cure(path)}") from error
        return io.NodeOutput(adapter, str(adapter.spec))
