"""What several files of this folder sample with."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from ..support import tiny_flux


@pytest.fixture(scope="module")
def flux(host):
    """The tiny FLUX.1: `source` is diffusers' own, `model` and `clip` are the host's; two encoded prompts."""
    source = tiny_flux.transformer()
    clip = tiny_flux.clip()
    positive = clip.encode_from_tokens_scheduled(clip.tokenize(tiny_flux.PROMPT))
    negative = clip.encode_from_tokens_scheduled(clip.tokenize("blurry"))
    return SimpleNamespace(
        source=source, model=tiny_flux.model(source), clip=clip, positive=positive, negative=negative
    )
