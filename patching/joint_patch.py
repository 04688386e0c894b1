"""Patches for FLUX.1, where text and picture attend together: one around every block that the adapter knows.

The host offers a slot around each block ("dit"), and one for the attention function. A patch stands in the first and
fills the second while its block runs. So it sees the queries and keys of that block's attention, on all hosts.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from ..attention.joint import NAMED, image_features, joint_relevance, naming_tokens, unrotate
from ..attention.regions import Size
from ..attention.schedule import Acting, PercentRange, Schedule
from ..attention.site import RowGroup
from ..relevance.record import RelevanceRecord
from ..weights.sites import SiteKey
from .sampling_state import CALL, SAMPLING, Applied, SamplingState
from .sampling_wrappers import end_call, install_wrappers, temporarily
from .site_patch import acting_site, applied_references
from .unet_call import SiteRows, UNetCall

JOINT_CALL = "mip_adapter_joint"
CALL_PATCH = "mip_adapter_call_patch"  # one that acts on whole calls; see edit_patch.py
OVERRIDE = "optimized_attention_override"  # the host's slot for another attention function


class ObjectTexts:
    """The object texts' embeddings, and where prompts name them.

    names: the M object texts.
    embeddings: M × [L_i, X], content tokens, each text encoded alone or in its prompt.
    remedy: what helps if a prompt does not name an object.
    """

    def __init__(self, names: tuple[str, ...], embeddings: Sequence[Tensor], remedy: str = "") -> None:
        self.names, self.embeddings, self.remedy = names, tuple(embeddings), remedy
        self._found: WeakKeyDictionary[SamplingState, dict[Hashable, list[Tensor]]] = WeakKeyDictionary()
        self._moved: dict[torch.device, tuple[Tensor, ...]] = {}  # so that no call waits for a copy

    def _on(self, device: torch.device) -> tuple[Tensor, ...]:
        if device not in self._moved:
            self._moved[device] = tuple(text.to(device) for text in self.embeddings)
        return self._moved[device]

    def token_indices(
        self, prompts: Tensor, conditional: list[int], sampling: SamplingState | None, conds: Hashable
    ) -> list[Tensor]:
        """M × [B, L_i], which tokens of the prompts [B, P, X] name the objects.

        conditional: the rows that are to name them.
        sampling, conds: the same conds are looked up once in a sampling, since reading the likeness waits for the
            device. conds is None where nobody says which they are: then they are looked up every time.
        Raises ValueError if a prompt does not name an object.
        """
        cached = self._found.setdefault(sampling, {}) if sampling is not None and conds is not None else {}
        if conds not in cached:
            longest = max(map(len, self.embeddings))
            if longest > prompts.shape[1]:
                raise ValueError(
                    f"The prompt has {prompts.shape[1]} tokens and an object text {longest}: write the object texts "
                    "into the prompt as they are."
                )
            found = [naming_tokens(prompts, text) for text in self._on(prompts.device)]
            self._check_named(torch.stack([best for _, best in found])[:, conditional].amin(1).tolist())
            cached[conds] = [indices for indices, _ in found]
        return cached[conds]

    def _check_named(self, likeness: list[float]) -> None:
        """likeness: of each object's text to the tokens that are most like it, in the prompt where they are least."""
        for name, best in zip(self.names, likeness, strict=True):
            if best < NAMED:
                raise ValueError(
                    f"The prompt does not name “{name}” (likeness {best:.2f}, at least {NAMED} is needed): this model "
                    "finds an object by the prompt's own words. Write the object text into the prompt as it is"
                    f"{self.remedy}."
                )


class JointCall:
    """What one call of a model with joint attention tells its patches.

    prompts: [B, P, X].
    size: (h, w), the picture's positions.
    references: number of tokens of each reference latent, which stand behind the picture's.

    text_length: how many the text has; the first block says it.
    """

    def __init__(self, prompts: Tensor, size: Size, references: tuple[int, ...] = ()) -> None:
        self.prompts, self.size, self.references = prompts, size, references
        self.text_length = prompts.shape[1]
        self._indices: dict[ObjectTexts, list[Tensor]] = {}

    def __deepcopy__(self, memo: dict) -> JointCall:
        return self  # see CondEvaluation

    def find_rows(self, call: UNetCall, count: int | None = None) -> SiteRows:
        """Whose the `count` rows of a block are; None: all rows of this call.

        Raises ValueError if nobody says it.
        """
        return call.find_rows_of(self.prompts, len(self.prompts) if count is None else count)

    def token_indices(self, texts: ObjectTexts, call: UNetCall, options: Mapping[str, Any]) -> list[Tensor]:
        """See `ObjectTexts.token_indices`; asked for once per call."""
        if texts not in self._indices:
            all_rows = self.find_rows(call)
            branches = call.branches(all_rows)
            conditional = [row for rows in branches if rows.conditional for row in range(rows.start, rows.stop)]
            # Those of the options are the conds of the prompts only where the batch is whole.
            uuids, shown = options.get("uuids") if all_rows.by_text_keys is None else None, call.shown
            window = tuple(shown) if isinstance(shown, list) else shown is None
            conds = (tuple(uuids), tuple(self.prompts.shape), window) if uuids else None
            self._indices[texts] = texts.token_indices(self.prompts, conditional, options.get(SAMPLING), conds)
        return self._indices[texts]


def describe_joint_call(executor: Any, *args: Any, **kwargs: Any) -> Any:
    """DIFFUSION_MODEL: make one UNetCall and one JointCall, shared by all blocks of this call.

    It goes behind other packs' wrappers, which may send the batch in parts: only the model's own arguments tell what
    the blocks get, since these see the text mixed with the picture.
    """
    if executor.idx + 1 < len(executor.wrappers):
        executor.wrappers.append(describe_joint_call)
        return executor(*args, **kwargs)
    bound = inspect.signature(executor.original).bind(*args, **kwargs)
    given = bound.arguments
    x, options, model = given["x"], given["transformer_options"], executor.class_obj
    call = UNetCall(model, x.shape, options)
    references = tuple(math.prod(_grid(each, model)) for each in given.get("ref_latents") or ())
    height, width = _grid(x, model)[-2:]
    joint = JointCall(given["context"], (height, width), references)
    patch = options.get(CALL_PATCH)
    attention = patch.attention(call, joint, options) if patch is not None else None
    with ExitStack() as notes:
        notes.enter_context(temporarily(options, CALL, call))
        notes.enter_context(temporarily(options, JOINT_CALL, joint))
        if attention is not None:
            notes.enter_context(temporarily(options, OVERRIDE, attention))
        out = executor(*bound.args, **bound.kwargs)
    end_call(call, options)
    return out


def _grid(latent: Tensor, model: Any) -> tuple[int, ...]:
    """How many positions a latent [B, C, …, h, w] becomes along each side."""
    *frames, height, width = latent.shape[2:]
    return *frames, -(-height // model.patch_size), -(-width // model.patch_size)


class JointPatch:
    """Adds the image features of the objects that act now to one block of FLUX.1.

    site_key: the block's.
    period: when the patch acts; None: at all steps.
    occupant: the patch that was in the slot before, or None.
    after_block: whether the features are added to the block's output (XLabs) or to its attention's (InstantX).
    """

    def __init__(
        self,
        site_key: SiteKey,
        period: PercentRange | None,
        occupant: Callable | None,
        schedule: Schedule,
        texts: ObjectTexts,
        applied: Applied,
        after_block: bool,
    ) -> None:
        self.site_key, self.period, self.occupant = site_key, period, occupant
        self.schedule, self.texts, self.applied, self.after_block = schedule, texts, applied, after_block

    def __deepcopy__(self, memo: dict) -> JointPatch:
        return self  # it never changes

    def __call__(self, args: dict, extra: dict) -> dict:
        def run_block(args: dict) -> dict:
            return extra["original_block"](args) if self.occupant is None else self.occupant(args, extra)

        options = args["transformer_options"]
        call, joint = options.get(CALL), options.get(JOINT_CALL)
        if call is not None:
            call.note_visit(self.site_key, self.applied)
        if call is None or joint is None or not (self.period is None or call.clock.within(self.period)):
            return run_block(args)
        if "txt" in args:
            joint.text_length = args["txt"].shape[1]
        acting = self.schedule.at(call.clock.within, self.site_key)
        if acting is None:
            return run_block(args)
        attention = _Attention(self, acting, call, joint, args.get("pe"), options)
        with temporarily(options, OVERRIDE, attention):
            out = run_block(args)
        if self.after_block and attention.features is not None:
            count = attention.features.shape[1]  # without the reference latents behind the picture
            out["img"][:, :count] += attention.features
        return out


class _Attention:
    """The attention of one block in one call, with the references' features.

    features: [B, N, C], if they are to be added after the block.
    """

    def __init__(
        self,
        patch: JointPatch,
        acting: Acting,
        call: UNetCall,
        joint: JointCall,
        rotations: Tensor | None,
        options: Mapping[str, Any],
    ) -> None:
        self.patch, self.acting, self.call, self.joint = patch, acting, call, joint
        self.rotations, self.options, self.before = rotations, options, options.get(OVERRIDE)
        self.features: Tensor | None = None
        self._attended = False

    def __call__(self, function: Callable, q: Tensor, k: Tensor, v: Tensor, *rest: Any, **more: Any) -> Tensor:
        attend = function if self.before is None else partial(self.before, function)
        out = attend(q, k, v, *rest, **more)
        if self._attended:
            return out
        self._attended = True
        text, positions = self.joint.text_length, math.prod(self.joint.size)
        # XLabs' features are the picture's. InstantX's are the text's, too, where both are one sequence.
        where = slice(0 if self.patch.site_key[0] == "single_block" else text, text + positions)
        features = self._features(q, k, where)
        if self.patch.after_block:
            self.features = features
        else:
            out[:, where] += features
        return out

    def _features(self, q: Tensor, k: Tensor, where: slice) -> Tensor:
        """Σ_i s w_i Ã_i Z_i at the positions that get features: those of the picture, perhaps with the text's in front.

        q, k: [B, h, S, d], of text and picture.
        """
        patch, text = self.patch, self.joint.text_length
        rows = self.joint.find_rows(self.call, len(q))
        site_plan, groups, observe = acting_site(
            self.call, patch.site_key, patch.schedule, self.acting, q, rows, self.joint.size, patch.applied.record
        )
        unrotated = q[:, :, where] if self.rotations is None else unrotate(q[:, :, where], self.rotations[:, :, where])
        picture = slice(text, where.stop)

        def relevance(rows: RowGroup) -> Tensor:
            found = self.joint.token_indices(patch.texts, self.call, self.options)
            indices = torch.cat([found[i] for i in self.acting.objects], 1)[rows.slice]
            return joint_relevance(q[rows.slice, :, picture], k[rows.slice, :, :text], indices, site_plan.average)

        return image_features(unrotated, self.acting.plan, site_plan, groups, relevance, text - where.start, observe)


def install_joint(
    model: Any,
    schedule: Schedule,
    start_percent: float,
    end_percent: float,
    texts: ObjectTexts,
    after_block: bool,
    record: RelevanceRecord | None = None,
) -> Any:
    """A clone of `model` (a ModelPatcher of FLUX.1) that samples with the plans and fills the record."""
    clone = model.clone()
    period = PercentRange.from_percents(start_percent, end_percent)
    options = clone.model_options.setdefault("transformer_options", {})
    occupied = options.get("patches_replace", {}).get("dit", {})
    site_keys = dict.fromkeys(key for plan in schedule.plans.values() for key in plan.site_plans)
    applied = applied_references(schedule, len(site_keys), record)
    for site_key in site_keys:
        patch = JointPatch(site_key, period, occupied.get(site_key), schedule, texts, applied, after_block)
        clone.set_model_patch_replace(patch, "dit", *site_key)
    install_wrappers(clone.model_options, describe_joint_call)
    applied.note(clone)
    return clone
