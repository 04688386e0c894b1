"""The oldest supported host. A clear error replaces import errors on an older one."""

import re

OLDEST = (0, 3, 75)


def require_host() -> None:
    """Raises ImportError on a host that is too old for our API. The host prints it beside the pack's name."""
    try:
        from comfyui_version import __version__
    except ImportError:
        __version__ = "unknown"
    numbers = tuple(int(part) for part in re.findall(r"\d+", __version__)[:3])
    if numbers and numbers < OLDEST:
        needed = ".".join(map(str, OLDEST))
        raise ImportError(
            f"MIP-Adapter needs ComfyUI {needed} or newer; this is {__version__}. Update ComfyUI and start it again."
        )
