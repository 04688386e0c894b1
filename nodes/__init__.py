"""What the artist sees. Every node validates, makes one call into the core, and returns."""

from .host_version import require_host

require_host()

from comfy_api.latest import ComfyExtension, io  # noqa: E402

from ..weights.host_files import register_folders  # noqa: E402
from .adapter import MIPAdapterLoader  # noqa: E402
from .apply import MIPApply  # noqa: E402
from .merge import MIPFusionHead, MIPMerge  # noqa: E402
from .miniature import MIPMiniatureLoader  # noqa: E402
from .reference import MIPReference  # noqa: E402

NODES: list[type[io.ComfyNode]] = [
    MIPAdapterLoader,
    MIPReference,
    MIPMerge,
    MIPFusionHead,
    MIPApply,
    MIPMiniatureLoader,
]


class MIPAdapterExtension(ComfyExtension):
    async def on_load(self) -> None:
        register_folders()

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return NODES


def extension() -> MIPAdapterExtension:
    return MIPAdapterExtension()
