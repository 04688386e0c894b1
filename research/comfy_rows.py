"""Several patched models sampled as one batch, one picture per model.

Every row goes through its own model's patches, as if it were sampled alone. The rest of the UNet, which the models
share, runs on all rows at once. So pictures with different references cost little more than a batch with the same ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import comfy.patcher_extension
import comfy.sample
import torch
from comfy.patcher_extension import WrappersMP
from torch import Tensor

from ..patching.sampling_state import CALL, SAMPLING, SamplingState
from ..patching.site_patch import MergePatch, text_attention
from ..patching.unet_call import SiteRows, UNetCall

ROWS = "mip_adapter_rows"


def combine(models: Sequence[Any], record: bool = False) -> Any:
    """One model whose row i (in each branch of guidance) is that of models[i].

    models: outputs of MIP Apply over the same MODEL, which nothing else patches. They must act at every step, at the
        same sites.
    record: fill the models' relevance records during sampling.
    """
    combined = models[0].clone()
    patches = [model.model_options["transformer_options"]["patches_replace"]["attn2"] for model in models]
    for key in patches[0]:
        combined.set_model_attn2_replace(_RowPatch([each[key] for each in patches]), *key)

    runs: dict[Any, list[SamplingState]] = {}  # of the sampling in progress: every row's own

    def run_of_rows(options: dict) -> list[SamplingState]:
        run: SamplingState = options[SAMPLING]
        if run.run.key not in runs:
            runs.clear()
            runs[run.run.key] = [SamplingState(1, None, run.hooked, run.model_sampling) for _ in models]
        for each in runs[run.run.key]:
            each.turn, each.visited = run.turn, run.visited
        return runs[run.run.key]

    def calls_for_rows(
        executor: Any, x: Tensor, timesteps: Any, context: Any, y: Any, control: Any, options: dict, **more: Any
    ):
        branches = len(options["cond_or_uncond"])
        sampled: list[dict] = [options] * len(models)
        if SAMPLING in options:
            sampled = [{**options, SAMPLING: run} for run in run_of_rows(options)]
        calls = [UNetCall(executor.class_obj, (branches,), each) for each in sampled]
        out = executor(x, timesteps, context, y, control, {**options, ROWS: calls}, **more)
        for call in calls if record else ():
            call.close()
        return out

    comfy.patcher_extension.add_wrapper_with_key(
        WrappersMP.DIFFUSION_MODEL, ROWS, calls_for_rows, combined.model_options, is_model_options=True
    )
    return combined


class _RowPatch:
    """Computes the text attention once for all rows, then lets each model's patches add their terms to its own rows."""

    def __init__(self, patches: Sequence[MergePatch]) -> None:
        self.patches = [_in_slot(patch) for patch in patches]
        assert all(patch.period is None for slot in self.patches for patch in slot)

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, options: dict) -> Tensor:
        z_text, count = text_attention(q, k, v, options), len(self.patches)
        out = torch.empty_like(q)
        for i, (slot, call) in enumerate(zip(self.patches, options[ROWS], strict=True)):
            row = slice(i, None, count)  # this model's row in every branch
            own = z_text[row].clone()
            for patch in slot:
                call.note_visit(patch.site_key, patch.applied)
                if (term := patch.term(call)) is not None:
                    own = term(own, z_text[row], q[row], {**options, CALL: call}, SiteRows(len(own)))
            out[row] = own
        return out

    def __deepcopy__(self, memo: dict) -> _RowPatch:
        return self  # ComfyUI copies model options on every clone


def _in_slot(patch: MergePatch) -> list[MergePatch]:
    """All patches of one slot, in the order in which they add their terms: the objects' before the styles'."""
    before = patch.occupant
    assert before is None or isinstance(before, MergePatch)
    return [patch] if before is None else [*_in_slot(before), patch]


def noise_of(seeds: Sequence[int], side: int) -> Tensor:
    """[B, 4, side, side]: the noise that ComfyUI's KSampler starts from with each seed."""
    empty = torch.zeros(1, 4, side, side)
    return torch.cat([comfy.sample.prepare_noise(empty, seed) for seed in seeds])


def conditioning(parts: Sequence[tuple[Tensor, Tensor]]) -> list:
    """One conditioning with a row for each pair of context [1, 77, X] and pooled text [1, Y]."""
    context, pooled = (torch.cat(each) for each in zip(*parts, strict=True))
    return [[context, {"pooled_output": pooled}]]


def sample(
    model: Any, positive: list, negative: list, noise: Tensor, steps: int, guidance: float, sampler: str
) -> Tensor:
    """Latents of all rows, by ComfyUI's sampler as KSampler calls it (schedule "normal")."""
    latent = torch.zeros_like(noise)
    given = (noise, steps, guidance, sampler, "normal", positive, negative, latent)
    return comfy.sample.sample(model, *given, disable_pbar=True, seed=0)
