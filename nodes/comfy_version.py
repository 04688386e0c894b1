"""The oldest host we run on, named in a sentence instead of a stack of import errors."""

import re

OLDEST = (0, 3, 75)


def require_host() -> None:
    """Raise ImportError, which the host prints beside the pack's name, on a host without the API that we use."""
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
