"""Edit models (FLUX.1 Kontext, FLUX.2, Qwen-Image-Edit): their own references, told apart by the prompt's words.

Such a model takes references by itself: every ReferenceLatent's tokens stand behind the picture's in one sequence. A
patch fills the host's slot for another attention function while the model runs, and nothing else. So it acts at every
block, on all hosts, beside whatever other packs put around the blocks.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import comfy.ldm.modules.attention
import torch
from torch import Tensor

from ..attention.joint import joint_relevance
from ..attention.options import Merge
from ..attention.plan import Plan
from ..attention.reference import MAX_OBJECTS, object_text
from ..attention.schedule import PercentRange, Schedule
from ..attention.share_bias import (
    Layout,
    apart_channels,
    bias_of,
    key_channels,
    query_channels,
    with_channels,
    without_channels,
)
from ..attention.shared_text import averages
from ..attention.site import RowGroup, relevance_share
from ..relevance.record import RecordedMaps, RelevanceRecord
from ..weights.sites import SiteKey, edit_sites
from .apply import frozen_shares_of
from .joint_patch import CALL_PATCH, OVERRIDE, JointCall, ObjectTexts, describe_joint_call
from .object_text import edit_words
from .sampling_state import Applied
from .sampling_wrappers import install_wrappers
from .site_patch import check_percents
from .site_pools import PooledSite
from .unet_call import UNetCall

log = logging.getLogger(__name__)
MOST_REFERENCES = 64
EDIT_NODE = "MIP Edit References"
NOBODY = "-"  # in place of a text: a reference that belongs to no object
# Parts of the names of the host's attention functions that store queries and keys as integers. One scale for all
# channels would be chosen for ours, which are large.
INTEGERS = ("sage", "int8")
REMEDY = f", or connect the prompt to {EDIT_NODE}"


def read_texts(texts: str) -> tuple[tuple[str, ...], tuple[int | None, ...]]:
    """The M objects' names, and for each reference which of them it shows; None: none of them.

    texts: one line for each reference. The same text in several lines is one object with several references.
    Raises ValueError if no line holds a text, and for more of them than are supported.
    """
    lines = [line.strip() for line in texts.strip("\n").split("\n")]
    named = [None if line in ("", NOBODY) else object_text(line) for line in lines]
    names = tuple(dict.fromkeys(name for name in named if name is not None))
    if len(named) > MOST_REFERENCES or len(names) > MAX_OBJECTS:
        raise ValueError(
            f"There are {len(named)} texts for {len(names)} objects; at most {MOST_REFERENCES} references of "
            f"{MAX_OBJECTS} objects are supported: write one line for each ReferenceLatent."
        )
    if not names:
        raise ValueError(
            "No object is named: write one line for each ReferenceLatent, in their order, with the words of the "
            f"prompt that name what the reference shows, or “{NOBODY}” for a reference that shows no object."
        )
    return names, tuple(None if name is None else names.index(name) for name in named)


def edit_references(
    model: Any,
    clip: Any,
    texts: str,
    *,
    strength: float,
    apart: bool = True,
    start_percent: float = 0.0,
    end_percent: float = 1.0,
    merge: Merge | None = None,
    frozen: RecordedMaps | None = None,
    prompt: str = "",
    record: RelevanceRecord | None = None,
) -> Any:
    """A clone of `model` (ModelPatcher of an edit model) whose picture listens to each reference by its share.

    texts: see `read_texts`.
    strength: of the bias; 0: the same bits as without this.
    apart: whether references do not attend to each other.
    merge, frozen, record: as in `apply_references`.
    prompt: the prompt, if known: the objects' words are then encoded in it.
    Raises ValueError with a sentence for the artist when the arguments do not belong together.
    """
    if not (math.isfinite(strength) and strength >= 0):
        raise ValueError(f"The strength is {strength}; it must be 0 or more (1 follows the shares).")
    check_percents(start_percent, end_percent)
    merge = merge or Merge(measure="pool")
    if merge.strategy != "relevance":
        raise ValueError(
            f"The merge strategy is {merge.strategy}, and an edit model merges its references by itself: only "
            "relevance can tell them apart. Choose relevance, or disconnect “merge”."
        )
    sites = edit_sites(model.model.diffusion_model)
    names, owners = read_texts(texts)
    shares = None if frozen is None else frozen_shares_of(frozen, names, merge)
    if record is not None:
        record.strategy = merge.strategy
        record.switched_off = "strength is 0 in MIP Edit References" if strength == 0 else ""
    clone = model.clone()
    if strength == 0:
        return clone
    words = ObjectTexts(names, edit_words(clip, names, prompt), "" if prompt else REMEDY)
    ones = torch.ones(len(names), 1, 1)
    plan = Plan(names, merge, "off", 0.0, ones, None, {}, shares)
    period = PercentRange.from_percents(start_percent, end_percent)
    applied = Applied(EDIT_NODE, names, "the texts", len(sites), record, shares is not None, always_due=False)
    patch = EditPatch(Schedule.always(plan), words, owners, strength, apart, period, applied)
    install_wrappers(clone.model_options, describe_joint_call)
    options = clone.model_options["transformer_options"]
    if CALL_PATCH in options:
        raise ValueError(
            "This model comes from another MIP Edit References: use one, and write all references' texts into it."
        )
    options[CALL_PATCH] = patch
    applied.note(clone)
    return clone


class EditPatch:
    """What is to happen in the attention of an edit model.

    schedule: of one plan without sites, whose objects always act.
    texts: the objects' words.
    owners: see `read_texts`; references beyond them belong to no object.
    period: when the patch acts; None: at all steps.
    """

    def __init__(
        self,
        schedule: Schedule,
        texts: ObjectTexts,
        owners: tuple[int | None, ...],
        strength: float,
        apart: bool,
        period: PercentRange | None,
        applied: Applied,
    ) -> None:
        self.schedule, self.texts, self.owners = schedule, texts, owners
        self.strength, self.apart, self.period = strength, apart, period
        self.applied, self.record = applied, applied.record
        (self.plan,) = schedule.plans.values()
        self._averages: dict[tuple[int, torch.device], Tensor] = {}

    def __deepcopy__(self, memo: dict) -> EditPatch:
        return self  # it never changes

    def attention(self, call: UNetCall, joint: JointCall, options: Mapping[str, Any]) -> Callable | None:
        """The attention function for one call of the model; None: the host's own.

        Raises ValueError if the call has fewer references than there are texts.
        """
        if self.period is not None and not call.clock.within(self.period):
            return None
        conditional = any(rows.conditional for rows in call.branches(joint.find_rows(call)))
        if conditional and len(joint.references) < len(self.owners):
            raise ValueError(_too_few(len(joint.references), len(self.owners)))
        if not joint.references:
            return None
        call.note_due(self.applied)
        return _EditAttention(self, call, joint, options)

    def average(self, heads: int, device: torch.device) -> Tensor:
        """[M, h·L], see `raw_relevance`."""
        if (heads, device) not in self._averages:
            counts = [len(text) for text in self.texts.embeddings]
            self._averages[heads, device] = averages(counts, heads).to(device)
        return self._averages[heads, device]


def _too_few(references: int, texts: int) -> str:
    if not references:
        return (
            "The prompt has no reference latents, so there is nothing that could be told apart: put a ReferenceLatent "
            "for each picture behind the text encoder, in the order of the texts."
        )
    return (
        f"There are texts for {texts} references and the prompt has {references} reference latents: write one line for "
        "each ReferenceLatent, in their order. Pictures stitched into one latent cannot be told apart."
    )


class _EditAttention:
    """The attention of all blocks in one call."""

    def __init__(self, patch: EditPatch, call: UNetCall, joint: JointCall, options: Mapping[str, Any]) -> None:
        self.patch, self.call, self.joint, self.options = patch, call, joint, options
        self.before: Callable | None = options.get(OVERRIDE)
        self._channels: tuple[Layout, Tensor, Tensor] | None = None  # of keys and queries, the same at all blocks

    def __deepcopy__(self, memo: dict) -> _EditAttention:
        return self  # see CondEvaluation

    def __call__(
        self, function: Callable, q: Tensor, k: Tensor, v: Tensor, heads: int, *rest: Any, **more: Any
    ) -> Tensor:
        layout, site_key = self._layout(q, k), _site_key(more.get("transformer_options") or {})
        if layout is None or site_key is None:
            return self._attend(function, q, k, v, heads, *rest, **more)
        bias = self._bias(q, k, layout, site_key)
        if not bias and not self.patch.apart:
            return self._attend(function, q, k, v, heads, *rest, **more)
        if self._channels is None or self._channels[0] != layout or self._channels[1].dtype != q.dtype:
            keys = key_channels(layout, k)
            self._channels = layout, keys, apart_channels(layout, keys, self.patch.apart)
        _, keys, apart = self._channels
        queries = query_channels(layout, apart, bias, self.patch.owners, len(q))
        wide = with_channels(q, k, v, queries, keys, more.get("scale"))
        if any(part in getattr(function, "__name__", "") for part in INTEGERS):
            function = comfy.ldm.modules.attention.attention_pytorch
        out = self._attend(function, *wide, heads, *rest, **more)
        if more.get("skip_output_reshape"):
            return out[..., : v.shape[-1]]
        return without_channels(out, heads, v.shape[-1])

    def _attend(self, function: Callable, *given: Any, **more: Any) -> Tensor:
        """The attention function, through what another pack put into its slot."""
        if self.before is None:
            return function(*given, **more)
        try:
            return self.before(function, *given, **more)
        except (AssertionError, NotImplementedError, ValueError) as error:
            log.warning(
                "Another pack's attention refused heads of %d channels (%s); ComfyUI's own runs instead.",
                given[0].shape[-1],
                error,
            )
            self.before = None
            return function(*given, **more)

    def _layout(self, q: Tensor, k: Tensor) -> Layout | None:
        """The parts of the sequence, or None if this is no attention of text, picture and references together.

        A cache of the references' keys leaves their queries out.
        """
        if q.ndim != 4:
            return None
        references, positions = self.joint.references, math.prod(self.joint.size)
        text = k.shape[2] - positions - sum(references)
        known = text >= self.joint.prompts.shape[1] and q.shape[2] in (k.shape[2], text + positions)
        return Layout(text, positions, references) if known else None

    def _bias(self, q: Tensor, k: Tensor, layout: Layout, site_key: SiteKey) -> Sequence[tuple[slice, Tensor]]:
        """b_i[n], [M, b, N], of the rows that have one."""
        patch, plan, call, size = self.patch, self.patch.plan, self.call, self.joint.size
        call.note_visit(site_key, patch.applied)
        objects = tuple(range(plan.count))
        text, picture = slice(layout.text), layout.picture

        def relevance(rows: RowGroup) -> Tensor:
            indices = torch.cat(self.joint.token_indices(patch.texts, call, self.options), 1)[rows.slice]
            average = patch.average(q.shape[1], q.device)
            return joint_relevance(q[rows.slice, :, picture], k[rows.slice, :, text], indices, average)

        found, all_rows = [], self.joint.find_rows(call, len(q))
        pooled = PooledSite(patch.schedule, site_key, objects) if plan.is_pooled else None
        for rows in call.enter_site(all_rows, plan, size, q.device, pooled):
            if not rows.conditional:
                continue
            share = rows.constants.share
            if plan.needs_relevance:
                share = relevance_share(rows, plan, partial(relevance, rows))
            if patch.record is not None:
                call.observe(all_rows, site_key, patch.record, plan, objects, size, rows, share, None)
            if share is not None:
                found.append((rows.slice, bias_of(share, patch.strength, plan.share_sum)))
        return found


def _site_key(options: Mapping[str, Any]) -> SiteKey | None:
    """The block at work, as the host names it."""
    kind, index = options.get("block_type"), options.get("block_index")
    return None if kind is None or index is None else (f"{kind}_block", index)
