"""MIP-Adapter for ComfyUI: every object of the picture takes its looks from its own reference."""

WEB_DIRECTORY = "./web"


async def comfy_entrypoint():
    from .nodes import extension

    return extension()
