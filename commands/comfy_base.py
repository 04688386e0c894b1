"""Loads the models of a command with ComfyUI's own loaders. ComfyUI must be importable (`common.comfy_path`)."""

from __future__ import annotations

from ..training.run_config import MINIATURE, Base, BaseModels


def load_base(base: Base) -> BaseModels:
    """Raises ValueError for files that are no such model, or not all of it."""
    if base.checkpoint == MINIATURE:
        from ..miniature import comfy_bundle

        return BaseModels(*comfy_bundle.load())
    import comfy.clip_vision
    import comfy.sd
    import comfy.utils

    try:
        model, clip, vae, *_ = comfy.sd.load_checkpoint_guess_config(base.checkpoint)
    except RuntimeError as error:
        raise ValueError(f"{base.checkpoint} is no checkpoint that ComfyUI knows ({error}).") from error
    if base.vae:
        vae = comfy.sd.VAE(sd=comfy.utils.load_torch_file(base.vae))
    clip_vision = comfy.clip_vision.load(base.clip_vision) if base.clip_vision else None
    for part, name in ((model, "UNet"), (clip, "text encoder"), (vae, "VAE")):
        if part is None:
            raise ValueError(f"{base.checkpoint} holds no {name}: training needs a whole checkpoint in one file.")
    if clip_vision is None and base.clip_vision:
        raise ValueError(f"{base.clip_vision} is no CLIP vision model that ComfyUI knows.")
    return BaseModels(model, clip, vae, clip_vision)
