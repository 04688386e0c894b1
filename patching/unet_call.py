"""One call of a model: which of its rows are conditional, which area of the canvas they show, which UNet is running.

The host tells a patch none of this; sampling_wrappers.py passes it down the call stack.

An index in `cond_or_uncond` is a position in the caller's list of conds. Position 0 is the positive for most guiders,
the negative for DualCFG, and whatever a post-CFG function (PAG, SAG) evaluates. Only the guider's names are reliable.
Each cond carries a uuid that leads back to its name.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import normalize

from ..attention.plan import Plan
from ..attention.regions import Size, place_on_canvas
from ..attention.site import RowGroup
from ..relevance.observation import Observation, RunId
from ..relevance.record import RelevanceRecord
from ..weights.sites import SiteKey, cross_attentions
from .batch_layout import BatchLayout, CondEvaluation, CondRows, Pictures, window_of_another_pack
from .clock import Clock
from .sampling_state import CALL, EVALUATION, FORWARD_PASSES, SAMPLING, TURN, Applied, Caches, SamplingState
from .site_maps import SiteMaps, by_row
from .site_pools import PooledSite, SitePools


class SiteRows(NamedTuple):
    """The rows that one site gets.

    total: how many.
    by_text_keys: whose they are, told by the keys of their text or by their prompts, where another pack sends some rows
        in an order of its own. None: all rows, in the order of the batch.
    too_many: whether that pack appended some, of pictures that nobody knows.
    """

    total: int
    by_text_keys: list[CondRows] | None = None
    too_many: bool = False


class UNetCall:
    """One call. It is made once and shared by all sites and all our patches.

    unet: the running UNet, or FLUX.1's transformer.
    shape: the shape of its input, see `BatchLayout`.
    options: the host's transformer_options.

    clock: when in the sampling the call is.
    """

    def __init__(self, unet: Any, shape: Sequence[int], options: Mapping[str, Any]) -> None:
        self.unet = unet
        self._options = options
        self._evaluation: CondEvaluation | None = options.get(EVALUATION)
        self._sampling: SamplingState | None = options.get(SAMPLING)
        self._caches = Caches() if self._sampling is None else self._sampling.caches
        self._object_keys = {} if self._sampling is None or self._sampling.hooked else self._caches.object_keys
        source = self._evaluation or self._sampling
        steps = (self._sampling.steps_done, self._sampling.steps) if self._sampling else ()
        self.clock = Clock(options, source.model_sampling if source else None, self._caches, *steps)
        self._window = window_of_another_pack(options) or (self._evaluation.window if self._evaluation else None)
        self._batch = BatchLayout(shape, options, self._evaluation, self._window)
        canvas = self._evaluation.canvas if self._evaluation else None
        self._maps = SiteMaps(self._batch, self.sampling_run.picture_count, canvas, self._caches)
        forward_passes = len(options.get(FORWARD_PASSES) or ())
        self._pools = SitePools(self._sampling, self._evaluation, self._batch.rows_per_cond, self.shown, forward_passes)
        self._rows = shape[0]
        self._by_text_keys_everywhere: SiteRows | None = None  # where the model itself gets some of the rows
        self._observed: dict[RelevanceRecord, dict[tuple[SiteKey, int], Observation]] = {}
        self._numbers: Tensor | None = None

    def __deepcopy__(self, memo: dict) -> UNetCall:
        return self  # see CondEvaluation

    @classmethod
    def from_options(cls, options: Mapping[str, Any], batch: int, unet: Any) -> UNetCall:
        """The call in progress. A new one is made where the host runs patches without our wrappers."""
        return options.get(CALL) or cls(unet, (batch,), options)

    @cached_property
    def attentions(self) -> dict[SiteKey, Any]:
        """The running UNet's cross-attention modules."""
        return cross_attentions(self.unet)

    def object_keys(self, site_key: SiteKey, content_tokens: Tensor, q: Tensor) -> Tensor:
        """Keys [L, C] of content tokens [L, X] by the running UNet's to_k at a site, with q's device and dtype."""
        to_k = self.attentions[site_key].to_k
        cache_key = content_tokens, to_k, q.dtype
        if cache_key not in self._object_keys:
            # The module's forward, not its weight: LoRA, low-VRAM casting and fp8 are applied there.
            self._object_keys[cache_key] = to_k(content_tokens.to(q))
        return self._object_keys[cache_key]

    @cached_property
    def sampling_run(self) -> RunId:
        """The run that the call belongs to. Without our wrappers its schedule identifies it."""
        if self._sampling is not None:
            return self._sampling.run
        return RunId(self._options.get("sample_sigmas"), self._batch.rows_per_cond)

    # ---- whose the rows are, and what they show ----

    @cached_property
    def shown(self) -> Pictures:
        """Which pictures of the run the rows of one cond show: all, or those of a context window.

        None if the pictures are unknown, or if the rows show unknown parts of them.
        """
        if self._batch.in_tiles:
            return None
        if self._window is not None and len(self._window) == self._batch.rows_per_cond:
            return self._window
        return slice(None) if self._batch.rows_per_cond == self.sampling_run.picture_count else None

    def _shown_by(self, rows: SiteRows, count: int) -> Pictures:
        """`shown` for `count` of a site's rows."""
        if rows.by_text_keys is None:
            return self.shown
        unknown = self._batch.in_tiles or rows.too_many
        return None if unknown or count % self.sampling_run.picture_count else slice(None)

    def numbers(self, rows: SiteRows, device: torch.device) -> Tensor:
        """The picture numbers in `shown`, [pictures]; 0, 1, … where they are unknown. Made once per call."""
        if rows.by_text_keys is not None:
            return torch.arange(self.sampling_run.picture_count, device=device)
        if self._numbers is None:
            every = range(self._batch.rows_per_cond)
            self._numbers = torch.tensor(self.shown if isinstance(self.shown, list) else every, device=device)
        return self._numbers

    def find_rows(self, site_key: SiteKey, text_keys: Tensor, options: Mapping[str, Any]) -> SiteRows:
        """The rows of a site. Where it gets fewer or more than there are conds and pictures, the text's keys tell whose
        they are.

        text_keys: [rows, L, C], of the prompts.
        options: the site's.
        Raises ValueError if nobody says whose rows they are.
        """
        # At a site some packs repeat rows, in an order that is known. Behind our wrapper they may append some to all.
        appended = options.get("activations_shape", (self._rows,))[0] - self._rows

        def told() -> list[CondRows] | None:
            return self._batch.cond_rows_by_text_keys(text_keys, self.attentions[site_key].to_k)

        return self._find_rows(len(text_keys), appended, told)

    def find_rows_of(self, prompts: Tensor, count: int) -> SiteRows:
        """As `find_rows`, for the `count` rows of a block in which text and picture attend together: the prompts
        [rows, L, X] that this call of the model got tell whose they are."""

        def told() -> list[CondRows] | None:
            # Directions, since one token of a large language model can be a thousand times as long as the others.
            if count < len(prompts):
                return None
            return self._batch.cond_rows_by_text_keys(_directions(prompts), _directions)

        return self._find_rows(count, len(prompts) - self._rows, told)

    def _find_rows(self, count: int, appended: int, told: Callable[[], list[CondRows] | None]) -> SiteRows:
        """appended: how many rows another pack put behind those of the call."""
        too_many = self._batch.too_many(count, appended)
        if not (too_many or self._batch.too_few(count)):
            return SiteRows(count)
        if count == self._rows and self._by_text_keys_everywhere is not None:
            return self._by_text_keys_everywhere
        by_text_keys = told()
        if by_text_keys is None:
            raise ValueError(
                f"Another pack sends {count} rows of a batch through the model without saying whether they belong to "
                "the prompt or to the negative prompt, so the references cannot act: let that pack evaluate the whole "
                "batch at once, or give its sampler the model from before MIP Apply."
            )
        rows = SiteRows(count, by_text_keys, too_many)
        if count == self._rows:
            self._by_text_keys_everywhere = rows
        return rows

    def branches(self, rows: SiteRows) -> list[RowGroup]:
        """A site's rows by branch of guidance and area, without a plan's constants."""
        return [RowGroup(*each[:3], area=each.area) for each in self._cond_rows(rows)]

    def _cond_rows(self, rows: SiteRows, each_cond: bool = False) -> list[CondRows]:
        return rows.by_text_keys or self._batch.cond_rows(rows.total, each_cond)

    def enter_site(
        self, rows: SiteRows, plan: Plan, size: Size, device: torch.device, pooled: PooledSite | None
    ) -> list[RowGroup]:
        """Begin a patch's work at a site: the rows by treatment, with the plan's constants at the site's resolution.

        size: (h, w) of the site.
        pooled: for a plan whose relevance is pooled, so that every cond needs rows of its own. Each entry counts as a
            forward pass of the UNet.

        Raises ValueError where the plan's maps cannot be placed (`SiteMaps.constants`, `by_row`).
        """
        groups = []
        forward_pass = 0 if pooled is None else self._pools.begin_forward_pass(pooled)
        for start, stop, conditional, area, cond_id in self._cond_rows(rows, pooled is not None):
            count = stop - start
            constants = self._maps.constants(plan, area, size, device)
            if not conditional:  # they use null_share only, and the pictures of `share` may not be theirs
                constants = constants._replace(share=None)
            constants = by_row(constants, self._shown_by(rows, count), count)
            pool = None
            if conditional and pooled is not None:
                if rows.by_text_keys is not None:
                    pool = self._pools.of_this_site(pooled, size, count, device)
                else:
                    tile = start if self._batch.in_tiles else 0
                    pool = self._pools.of_cond(pooled, (cond_id, tile), size, self.numbers(rows, device), forward_pass)
            groups.append(RowGroup(start, stop, conditional, constants, area, pool))
        return groups

    @property
    def part(self) -> tuple[Hashable, ...]:
        """The conds whose rows the model gets, where another pack sends it a part of the batch; else ()."""
        rows = self._by_text_keys_everywhere
        return () if rows is None else tuple(each.cond_id for each in rows.by_text_keys or ())

    # ---- which patches were called, and what the sites measure ----

    def note_visit(self, site_key: SiteKey, applied: Applied) -> None:
        """Note that a patch was called at a site, whether it acts now or rests."""
        if self._sampling is not None:
            self._sampling.visited.setdefault(applied, set()).add(site_key)

    def note_due(self, applied: Applied) -> None:
        """Note that patches which are not called in every call are to act in this one."""
        if self._sampling is not None:
            self._sampling.due.add(applied)

    def observe(
        self,
        rows: SiteRows,
        site_key: SiteKey,
        record: RelevanceRecord,
        plan: Plan,
        objects: tuple[int, ...],
        size: Size,
        group: RowGroup,
        shares: Tensor | None,
        gate: Tensor | None,
    ) -> None:
        """Keep what a site measured until the call ends.

        site_key: the site's. If another pack runs the sites several times in a call, the last forward pass counts.
        objects: the plan's objects, as indices into the record's.
        size: (h, w), the site's resolution.
        group, shares [M, b, N] or None, gate [b, N] or None: see `observe` of `fuse`.
        """
        shown = self._shown_by(rows, group.length)
        if shown is None or (self._evaluation is not None and not self._evaluation.main):
            return
        if shares is None and plan.merge.strategy == "relevance":
            shares = plan.weights.new_ones(1, 1, 1)  # a lone object: its share 1 is folded into the values
        if shares is not None:
            shares = shares.expand(-1, group.length, size[0] * size[1])
            shares = _for_all(shares, plan, objects, record).unflatten(-1, size)
        if gate is not None:
            gate = gate.unflatten(-1, size)
        canvas, corner = place_on_canvas(group.area, self._evaluation.canvas if self._evaluation else size, size)
        observation = Observation(shares, gate, canvas, corner, len(objects), shown)
        self._observed.setdefault(record, {})[site_key, group.start] = observation

    def close(self) -> None:
        """End the call: pass what was measured to the records."""
        if not self._observed or self.clock.step is None:
            return
        # A guider that bypasses the host's noise prediction has no turns: each call counts as one.
        turn = self._sampling.turn if self._sampling is not None and TURN in self._options else self
        for record, observations in self._observed.items():
            record.add(self.sampling_run, turn, *self.clock.step, [*observations.values()])
            if self._sampling is not None and record not in self._sampling.records:
                self._sampling.records.append(record)


def _directions(embeddings: Tensor) -> Tensor:
    return normalize(embeddings.float(), dim=-1)


def _for_all(shares: Tensor, plan: Plan, objects: tuple[int, ...], record: RelevanceRecord) -> Tensor:
    """Shares of all the record's objects from those of the objects that act. The others get 0; the sum is 1 at most."""
    shares = shares if plan.share_sum == 1 else shares / plan.share_sum
    if plan.merge.strategy == "sum":  # each has its region to itself, and regions may overlap
        shares = shares / shares.sum(0, keepdim=True).clamp_min(1)
    if len(objects) == len(record.names):
        return shares
    by_object: dict[int, Tensor] = dict(zip(objects, shares.unbind(0), strict=True))
    nothing = torch.zeros_like(shares[0])
    return torch.stack([by_object.get(i, nothing) for i in range(len(record.names))])
