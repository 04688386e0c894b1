"""The dtype of activations in training: bf16 where the device computes in it, float32 where it would be emulated."""

from functools import cache

import torch


@cache
def activations(device_type: str) -> torch.dtype:
    """Emulated bf16 is slow: on a processor with AVX2 alone, a matrix product takes 60 times as long as in float32."""
    fast = device_type != "cpu" or torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return torch.bfloat16 if fast else torch.float32


def autocast(device: torch.device) -> torch.autocast:
    dtype = activations(device.type)
    return torch.autocast(device.type, dtype, enabled=dtype != torch.float32)
