"""Time of one UNet step in ComfyUI: plain, patched, and patched with the relevance recorded as MIP Apply does.

The weights are random, because only time is measured.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from typing import Any

import torch

# SDXL's UNet as ComfyUI configures it.
SDXL = {
    "image_size": 32, "in_channels": 4, "out_channels": 4, "model_channels": 320, "channel_mult": (1, 2, 4),
    "num_res_blocks": [2, 2, 2], "transformer_depth": [0, 0, 2, 2, 10, 10],
    "transformer_depth_output": [0, 0, 0, 2, 2, 2, 10, 10, 10], "transformer_depth_middle": 10, "context_dim": 2048,
    "adm_in_channels": 2816, "num_classes": "sequential", "num_head_channels": 64, "num_heads": -1,
    "use_linear_in_transformer": True, "use_spatial_transformer": True, "use_temporal_attention": False,
    "legacy": False,
}  # fmt: skip
# The same blocks, a fifth as wide and less deep: a smoke test of this file where SDXL does not fit.
SMALL = {**SDXL, "model_channels": 64, "transformer_depth": [0, 0, 1, 1, 2, 2], "context_dim": 256,
         "transformer_depth_output": [0, 0, 0, 1, 1, 1, 2, 2, 2], "transformer_depth_middle": 2}  # fmt: skip
CASES = ((2, 4), (4, 4), (2, 16), (4, 16))  # objects, image tokens


def bench_step(
    interleaved: Callable, rounds: int, device: torch.device, dtype: torch.dtype, *, small: bool, pixels: int
) -> list[dict]:
    """Milliseconds of one guided step (uncond and cond in one UNet call), and what patch and record add to it.

    interleaved: runs and times functions, as `bench.interleaved`.
    rounds: timed rounds.
    small: a narrow UNet in place of SDXL's.
    pixels: side of the picture.
    """
    if folder := os.environ.get("COMFYUI_PATH"):
        sys.path.insert(0, folder)
    from comfy.cli_args import args

    from ..relevance.record import RelevanceRecord

    args.cpu = device.type == "cpu"
    model = _model(SMALL if small else SDXL, device, dtype)
    step = _Step(model, device, dtype, pixels // 8)
    contestants, records = {"plain": lambda: step({})}, []
    for objects, tokens in CASES:
        records.append(RelevanceRecord(_names(objects)))
        for name, record in (("", None), (", recorded", records[-1])):
            options = _patched(model, objects, tokens, record, device, dtype)
            contestants[f"M {objects}, T {tokens}{name}"] = lambda options=options: step(options)
    ms = interleaved(contestants, rounds, device)
    for record in records:
        record.require_shares()  # raises if nothing was recorded: the time would be of a plain patch
    rows = []
    for name, value in ms.items():
        rows.append({"case": name, "pixels": pixels, "milliseconds": value, "added": value / ms["plain"] - 1})
        print(f"{name:>18s}  {value:9.2f} ms   {rows[-1]['added']:+.1%}")
    return rows


def _model(config: dict, device: torch.device, dtype: torch.dtype):
    import comfy.model_base
    import comfy.supported_models

    settings = comfy.supported_models.SDXL(dict(config))
    settings.unet_config = dict(config)
    settings.set_inference_dtype(dtype, None)
    model = comfy.model_base.SDXL(settings, device=device)
    generator = torch.Generator(device).manual_seed(0)
    for parameter in model.parameters():
        std = parameter.shape[1:].numel() ** -0.5 if parameter.ndim > 1 else 0.02
        parameter.data.normal_(0, std, generator=generator)
    return model.eval()


class _Step:
    def __init__(self, model, device: torch.device, dtype: torch.dtype, side: int) -> None:
        from ..patching.sampling_state import SAMPLING, SamplingState

        config = model.model_config.unet_config
        generator = torch.Generator(device).manual_seed(1)

        def draw(*shape: int) -> torch.Tensor:
            return torch.randn(*shape, generator=generator, device=device).to(dtype)

        self.unet, self.x = model.diffusion_model, draw(2, 4, side, side)
        self.context, self.y = draw(2, 77, config["context_dim"]), draw(2, config["adm_in_channels"])
        self.timesteps = torch.full((2,), 500.0, device=device)
        sigmas = torch.tensor([1.0, 0.0], device=device)  # a sampling of one step; every UNet call repeats it
        self.options = {"cond_or_uncond": [1, 0], "sigmas": sigmas[:1], "sample_sigmas": sigmas}
        self.options[SAMPLING] = SamplingState(1, None, hooked=False, model_sampling=model.model_sampling)

    def __call__(self, options: dict) -> torch.Tensor:
        options = {**options, **self.options}
        return self.unet(self.x, self.timesteps, context=self.context, y=self.y, transformer_options=options)


def _names(objects: int) -> tuple[str, ...]:
    return tuple(f"object {i}" for i in range(objects))


def _patched(model, objects: int, tokens: int, record: Any, device: torch.device, dtype: torch.dtype) -> dict:
    """The transformer_options of a model patched as by MIPApply, with random adapter weights."""
    from comfy.model_patcher import ModelPatcher

    from ..attention.options import FusionHead, Merge
    from ..attention.plan import EncodedReferences, compile_plans
    from ..attention.schedule import Schedule
    from ..patching.site_patch import install
    from ..weights.adapter import Adapter, SiteWeights
    from ..weights.sites import unet_sites

    sites = unet_sites(model.diffusion_model)
    width = sites[0].context_dim
    draw = _drawer(device)
    weights = {s.number: SiteWeights(draw(s.width, width), draw(s.width, width), draw(s.width)) for s in sites}
    adapter = Adapter("bench", None, {}, weights)  # pyright: ignore[reportArgumentType]
    texts: Sequence[torch.Tensor] = [draw(1 + i % 2, width) for i in range(objects)]
    references = EncodedReferences(
        _names(objects), draw(objects, tokens, width), draw(tokens, width), tuple(texts), (1.0,) * objects
    )
    (plan,) = compile_plans(
        [adapter],
        sites,
        [references],
        scale=0.75,
        merge=Merge(),
        head=FusionHead(adapter.head),
        device=device,
        dtype=dtype,
    )
    patcher = install(ModelPatcher(model, device, device), Schedule.always(plan), 0.0, 1.0, record)
    return patcher.model_options["transformer_options"]


def _drawer(device: torch.device) -> Callable[..., torch.Tensor]:
    generator = torch.Generator(device).manual_seed(2)
    return lambda *shape: torch.randn(*shape, generator=generator, device=device) * shape[-1] ** -0.5
