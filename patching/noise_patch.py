"""Noise on the text attention of a model, for the object relevance score."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ..attention.noise import MODES, NoisePlan, add_noise, compile_noise
from ..attention.reference import MAX_OBJECTS
from ..common.text import object_number
from ..weights.sites import unet_sites
from .object_text import check_clip, content_tokens
from .sampling_state import Applied
from .site_patch import SitePatch, Slot, Term, check_percents, compute_dtype, patched
from .unet_call import SiteRows, UNetCall


class NoisePatch(SitePatch):
    """Adds noise to the attention. Other patches in the slot still read Z_text without the noise."""

    needs_z_text = True

    def __init__(self, slot: Slot, applied: Applied, plan: NoisePlan) -> None:
        super().__init__(slot, applied)
        self.plan = plan

    def term(self, call: UNetCall) -> Term:
        return partial(self._add, call)

    def _add(
        self, call: UNetCall, out: Tensor, z_text: Tensor | None, q: Tensor, options: dict, rows: SiteRows
    ) -> Tensor:
        assert z_text is not None
        site = self.plan.noise_sites[self.site_key]
        step = call.clock.step[0] if call.clock.step else torch.zeros(1, dtype=torch.long, device=q.device)

        def object_keys() -> Tensor:
            assert site.content_tokens is not None
            return call.object_keys(self.site_key, site.content_tokens, q)

        groups, numbers = call.branches(rows), call.numbers(rows, q.device)
        return add_noise(out, z_text, q, self.plan, site.cast_like(q), groups, numbers, step, object_keys)


def apply_text_noise(
    model: Any,
    clip: Any,
    texts: Sequence[str] = (),
    *,
    mode: str = "relevance",
    target: str = "",
    strength: float = 1.0,
    seed: int = 0,
    start_percent: float = 0.0,
    end_percent: float = 1.0,
) -> Any:
    """A clone of `model` (ModelPatcher) with noise on its text attention. `model` itself is not changed.

    texts: the texts of all objects. "uniform" ignores it.
    mode: "relevance" or "uniform", see attention/noise.py.
    target: the object whose relevance weighs the noise, by its text or number; empty: the first. "uniform" ignores it.
    strength: standard deviation of the noise, in units of that of the text attention.
    seed: the noise's own.
    start_percent, end_percent: the fractions of the sampling between which the noise acts.

    Raises ValueError with a sentence for the artist.
    """
    if mode not in MODES:
        raise ValueError(f"The mode of the noise is {mode!r}; choose one of {', '.join(MODES)}.")
    if not (math.isfinite(strength) and strength >= 0):
        raise ValueError(f"The strength of the noise is {strength}; it must be 0 or more (1: as strong as the text).")
    check_percents(start_percent, end_percent)
    sites = unet_sites(model.model.diffusion_model)
    number, tokens = 0, []
    if mode == "relevance":
        number = _checked_target(target, texts)
        check_clip(clip)
        tokens = [content_tokens(clip, text) for text in texts]
        width = sites[0].context_dim
        if tokens[0].shape[-1] != width:
            raise ValueError(
                f"The text encoder gives {tokens[0].shape[-1]} values a token, but this model reads {width}: connect "
                "the CLIP of the checkpoint that is being sampled."
            )
    if strength == 0:
        return model.clone()  # the same bits as without noise
    plan = compile_noise(
        sites,
        strength=strength,
        seed=seed,
        texts=tokens,
        target=number,
        device=model.load_device,
        dtype=compute_dtype(model),
    )
    applied = Applied("MIP Text Noise", (), "the noise", len(plan.noise_sites))
    return patched(
        model, plan.noise_sites, start_percent, end_percent, applied, lambda slot: NoisePatch(slot, applied, plan)
    )


def _checked_target(target: str, texts: Sequence[str]) -> int:
    if len(texts) < 2:
        named = f"only “{texts[0]}” is named" if texts else "no object is named"
        raise ValueError(
            f"The mode “relevance” weighs objects against each other, but {named}: connect two or more references, "
            "write two or more texts, or choose the mode “uniform”."
        )
    if len(texts) > MAX_OBJECTS:
        raise ValueError(f"There are {len(texts)} object texts; at most {MAX_OBJECTS} are supported.")
    return object_number(target, texts)
