"""What one sampling knows and keeps, and where the host's options hold it.

The wrappers in sampling_wrappers.py make it. The calls of the model (unet_call.py) read it, and fill its caches, pools
and records.
"""

from __future__ import annotations

from collections.abc import Collection, Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ..attention.plan import Plan
from ..attention.pool import PoolHistory
from ..attention.regions import Area, Size
from ..attention.schedule import Schedule
from ..attention.site import SiteConstants
from ..relevance.observation import RunId
from ..relevance.record import RelevanceRecord
from ..weights.sites import SiteKey
from .cond_lists import CondLists

# Keys of the host's transformer_options, where a running call finds what our wrappers and nodes know.
SAMPLING = "mip_adapter_sampling"  # SamplingState
TURN = "mip_adapter_turn"  # Turn
EVALUATION = "mip_adapter_evaluation"  # CondEvaluation
FORWARD_PASSES = "mip_adapter_passes"  # the UNetCalls of one evaluation, of which the last is recorded
CALL = "mip_adapter_call"  # UNetCall
APPLIED = "mip_adapter_applied"  # a tuple of Applied

# By schedule, cond_id (and what tells its pools apart) and device.
Pools = dict[tuple[Schedule, Hashable, torch.device | None], PoolHistory]


@dataclass(frozen=True, eq=False)
class Applied:
    """What one node applied to a model. Its patches note when they are called (`UNetCall.note_visit`).

    node: the node's display name.
    names: of the objects or styles; empty for noise.
    effect: what does not act where the patches are lost.
    site_count: at how many sites there is a patch.
    record: what the patches fill; None without one.
    fixed_places: whether regions or frozen maps fix the objects' places.
    always_due: whether the patches are called in every call of the model; else `UNetCall.note_due` says in which.
    """

    node: str
    names: tuple[str, ...]
    effect: str
    site_count: int
    record: RelevanceRecord | None = None
    fixed_places: bool = False
    always_due: bool = True

    def __deepcopy__(self, memo: dict) -> Applied:
        return self  # see CondEvaluation

    def note(self, model: Any) -> None:
        """Let the samplings of a model (ModelPatcher) know of this."""
        options = model.model_options["transformer_options"]
        options[APPLIED] = (*options.get(APPLIED, ()), self)

    def lost(self, visited: Collection[SiteKey]) -> str:
        """What is to be said where another pack replaced patches; empty if none is missing.

        visited: the sites at which patches were called.
        """
        lost = self.site_count - len(visited)
        if lost <= 0:
            return ""
        where = "" if lost == self.site_count else f" at {lost} of {self.site_count} places"
        return (
            f"Another pack replaced the patches of {self.node}{where}, so {self.effect} did not act"
            f"{' there' if where else ''}: put that pack's node before {self.node}."
        )


@dataclass
class Turn:
    """One noise prediction of a guider.

    lists: the guider's lists of conds.
    size: (h, w) of the latent that the sampler gave to the guider; None if unknown.
    evaluated: the conditional conds evaluated so far, as (cond, context window, crop).
    """

    lists: CondLists
    size: Size | None
    evaluated: set[tuple[Hashable, tuple[int, ...], Area]] = field(default_factory=set)

    def claim_evaluation(self, conds: Sequence[tuple[Any, Hashable]], window: Sequence[int] | None, crop: Area) -> bool:
        """Mark these conditional conds as evaluated; whether it is the guider itself that evaluates them now.

        conds: each as (list id, uuid), see `CondEvaluation`. Later evaluations of the same conds, such as PAG's with
        perturbed attention, and conds that are not the guider's give False.
        window, crop: see `CondEvaluation`. Each window and each crop is an evaluation of its own; a crop of what was
        evaluated as a whole is a later one.
        """
        if self.lists.conditional and any(name not in self.lists.conditional for name, _ in conds):
            return False
        pictures = tuple(window or ())
        now = {(cond, pictures, crop) for cond in conds}
        new = not (now | {(cond, pictures, None) for cond in conds}) & self.evaluated
        self.evaluated.update(now)
        return new


@dataclass
class Caches:
    """What is looked up once a sampling.

    constants: the plans at the sites' resolutions: by plan, canvas size (where only an area is shown), area, the site's
        resolution and device.
    object_keys: by content tokens, to_k module and dtype.
    sigmas: the noise level at a fraction of the sampling, by `model_sampling` and fraction.
    log_sigmas: the logarithms of those at `clock.FRACTIONS`, by `model_sampling` and device.
    """

    constants: dict[tuple[Plan, Size | None, Area, Size, torch.device | None], SiteConstants] = field(
        default_factory=dict
    )
    object_keys: dict[tuple[Tensor, Any, torch.dtype], Tensor] = field(default_factory=dict)
    sigmas: dict[tuple[Any, float], float] = field(default_factory=dict)
    log_sigmas: dict[tuple[Any, torch.device], Tensor] = field(default_factory=dict)


class SamplingState:
    """One sampling, as the host wraps it; perhaps of several runs of the sampler, of which the last counts. One that
    goes on from the run before (`continues`) belongs to it.

    picture_count: of the batch.
    prompt_id: of the queued graph; None where the host does not say.
    hooked: whether hooks exchange weights during the sampling. Object keys are then not kept.
    model_sampling: the sampled model's.
    canvas: size (h, w) of the latents; None if they are no pictures.
    steps: of the whole sampling; 0 if unknown.

    run: identifies the run that counts to the records.
    records: those that the run has filled so far.
    has_evaluated: whether the model has been evaluated, in this run or in one before it of the same sampling.
    due: what was to act in some call so far.
    visited: the sites at which the patches of what is applied were called.
    caches: see `Caches`.
    pools: what the sites of the last turns measured together.
    turn: number of the guider's noise prediction.
    steps_done: those before this run of the sampler, where it goes on from another.
    """

    def __init__(
        self,
        picture_count: int,
        prompt_id: str | None,
        hooked: bool,
        model_sampling: Any,
        canvas: Size | None = None,
        steps: int = 0,
    ) -> None:
        self.run, self.hooked = RunId(object(), picture_count, prompt_id), hooked
        self.model_sampling, self.canvas, self.steps = model_sampling, canvas, steps
        self.has_evaluated = False
        self.due: set[Applied] = set()
        self.visited: dict[Applied, set[SiteKey]] = {}
        self.records: list[RelevanceRecord] = []
        self.caches = Caches()
        self.pools: Pools = {}
        self.turn = self.steps_done = 0
        self._last_sigmas: Tensor | None = None  # its noise levels

    def continues(self, sigmas: Tensor) -> bool:
        """Whether a run of the sampler over these noise levels goes on where the one before ended. It waits for the
        device."""
        return self._last_sigmas is not None and float(sigmas[0]) <= float(self._last_sigmas[-1])

    def note_run(self, sigmas: Tensor, continues: bool) -> None:
        """Note that a run of the sampler over these noise levels begins. continues: see the method."""
        done = 0 if self._last_sigmas is None or not continues else self.steps_done + len(self._last_sigmas) - 1
        self.steps_done, self._last_sigmas = done, sigmas

    def begin_again(self) -> None:
        """A run of its own begins, from its first noise level: nothing measured before belongs to it."""
        self.run = self.run._replace(key=object())
        self.records.clear()
        self.pools.clear()

    def __deepcopy__(self, memo: dict) -> SamplingState:
        return self  # see CondEvaluation
