"""The pooled relevance through the host's samplers, in every way in which the host evaluates a model.

Compared with its definition (direct_pool.py), which keeps all sites' measures as a list and is told by the host's own
uuids whose they are.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

from ..support import graphs
from ..support.direct_pool import DirectPool
from ..support.graphs import guide, prompt, references
from .test_chaining import summed
from .test_composition import OTHERS, couple
from .test_models import lora  # noqa: F401
from .test_regions import AREAS, LEFT, ORDER, RIGHT, masked, regional
from .test_steering import NAMES, applied, box
from .test_steering import equals as steering_equals

pytestmark = pytest.mark.usefixtures("host")
POOL: dict[str, Any] = {"measure": "pool"}


@pytest.fixture(autouse=True)
def _few_go_on_measuring(monkeypatch) -> None:
    """The small UNet has fewer sites than go on measuring in a real one: here too some must stop."""
    from mip_adapter.attention import pool

    monkeypatch.setattr(pool, "MEASURING_SITES", 3)
    monkeypatch.setattr(DirectPool, "surest", 3)


def compare(make_guider, merge: dict | None = None, sampling: dict | None = None, **options) -> None:
    graphs.compare(make_guider, merge=POOL | (merge or {}), sampling={"steps": 3} | (sampling or {}), **options)


def test_the_comparison_tells_right_from_wrong() -> None:
    without, expected = graphs.sample(graphs.bundle().model, 3), graphs.sample(graphs.apply_directly(merge=POOL), 3)
    each_site = graphs.sample(graphs.apply(), 3)
    assert graphs.deviation(each_site, expected, without) > 10 * graphs.TOLERANCE


@pytest.mark.parametrize(
    "merge",
    [
        {},
        {"normalization": "mean"},
        {"background": 1.0, "sharpness": 3.0},
        {"unclaimed": 1.0, "sharpness": 3.0},
        {"strategy": "uniform"},
    ],
    ids=str,
)
def test_choices(merge: dict) -> None:
    compare(guide, merge)


def test_batches() -> None:
    compare(guide, sampling={"batch": 2})


def test_without_cfg() -> None:
    compare(lambda model: guide(model, cfg=1.0))


def test_two_calls_a_step() -> None:
    compare(guide, sampling={"sampler": "heun"})


def test_every_cond_in_a_call_of_its_own(monkeypatch) -> None:
    """Each cond has its own pool, so that it does not matter which conds share a call."""
    conds = AREAS["sizes"]()
    together = graphs.sample(guide(graphs.apply(merge=POOL), conds))
    graphs.little_memory(monkeypatch)
    apart = graphs.sample(guide(graphs.apply(merge=POOL), conds))
    assert graphs.deviation(apart, together, graphs.sample(guide(graphs.bundle().model, conds))) < graphs.TOLERANCE


@pytest.mark.parametrize("kind", ["halves", "sizes"])
def test_areas(kind: str) -> None:
    conds = AREAS[kind]()
    compare(lambda model: guide(model, conds), order=ORDER, chain=regional(LEFT, RIGHT), sampling={"steps": 2})


def test_several_prompts_in_one_call() -> None:
    cat, cup = masked(prompt("a cat"), LEFT), masked(prompt("a red coffee cup"), RIGHT)
    compare(lambda model: guide(model, cat + cup), sampling={"steps": 2})


def test_a_cond_that_begins_later() -> None:
    """Its first call reads what it measured itself."""
    import nodes

    timed = nodes.ConditioningSetTimestepRange().set_range
    conds = timed(prompt("a cat"), 0.0, 0.5)[0] + timed(prompt("a red coffee cup"), 0.3, 1.0)[0]
    compare(lambda model: guide(model, conds), sampling={"steps": 4})


def test_context_windows() -> None:
    """A picture in two windows is measured in both."""
    compare(lambda model: guide(graphs.in_windows(model, 3)), sampling={"batch": 4, "steps": 3, "size": (8, 8)})


def test_dual_cfg() -> None:
    from comfy_extras.nodes_custom_sampler import DualCFGGuider

    conds = prompt("a cat beside a cup"), prompt("a photograph"), prompt("blurry")
    compare(lambda model: DualCFGGuider.execute(model, *conds, 4.0, 3.0, "regular").args[0], sampling={"steps": 2})


def test_perturbed_attention() -> None:
    """PAG's evaluations read the pool that the guider's own read, and add nothing."""
    from comfy_extras.nodes_pag import PerturbedAttentionGuidance

    compare(lambda model: guide(PerturbedAttentionGuidance.execute(model, 3.0).args[0]))


def test_hooks_on_one_cond(lora) -> None:  # noqa: F811
    import comfy.hooks

    hook = comfy.hooks.create_hook_lora(lora, 0.8, 0.0)
    hooked = comfy.hooks.set_hooks_for_conditioning(prompt("a cat beside a cup"), hook)
    compare(lambda model: guide(model, hooked))


def test_resolutions_that_change() -> None:
    """Deep shrink: in the first steps the sites are half as large."""
    compare(lambda model: guide(OTHERS["deep shrink"](model)), sampling={"steps": 4})


def test_objects_come_and_go() -> None:
    """Who stays is read from the pool. Where one joins, the pool begins anew."""
    chain = references(NAMES, start_percent=[0.0, 0.27, 0.0], end_percent=[1.0, 1.0, 0.55])
    stages = [(0, 0.27, [0, 2], []), (0.27, 0.55, [0, 1, 2], []), (0.55, 1, [0, 1], [])]
    steering_equals(chain, stages, **POOL)


def test_a_region_is_released() -> None:
    chain = references(region=[box(0, 16), box(12, 32)], region_until=[0.27, 0.55])
    stages = [(0, 0.27, [0, 1], [0, 1]), (0.27, 0.55, [0, 1], [1]), (0.55, 1, [0, 1], [])]
    steering_equals(chain, stages, **POOL)


def test_twice() -> None:
    """Each has its own pool, since its objects compete with each other only."""
    chains = references(), references(("rocket", "astronaut"))
    twice = graphs.apply(chains[1], model=graphs.apply(chains[0], merge=POOL), merge=POOL | {"sharpness": 2.0})
    pools = DirectPool(), DirectPool()
    once = graphs.apply_directly(chains[0], merge=POOL, pool=pools[0])
    expected = summed(once, graphs.apply_directly(chains[1], merge=POOL | {"sharpness": 2.0}, pool=pools[1]))
    for pool in pools:
        pool.watch(expected)
    results = [graphs.sample(model, 3) for model in (twice, expected, graphs.bundle().model)]
    assert graphs.deviation(*results) < graphs.TOLERANCE


def test_a_second_pass_begins_anew() -> None:
    model = graphs.apply(merge=POOL)
    first = graphs.sample(model, 3)
    graphs.sample(model, 3, seed=1, size=(24, 16))
    assert torch.equal(graphs.sample(model, 3), first)


@pytest.mark.parametrize("at_once", [1, 2])
def test_tiles(at_once: int) -> None:
    """Nobody knows where they lie, so what the sites of one call measured is all that they share."""

    class OneCall(DirectPool):
        def read(self, site, *given, **more):
            if site == 1:  # the UNet's first
                self.now, self.before, self.counted = {}, {}, set()
            return super().read(site, *given, **more)

    expected = graphs.apply_directly(merge=POOL, pool=OneCall())
    models = [graphs.in_tiles(model, 1) for model in (expected, graphs.bundle().model)]
    expected, without = (graphs.sample(model, 2, size=(8, 32)) for model in models)
    got = graphs.sample(graphs.in_tiles(graphs.apply(merge=POOL), at_once), 2, size=(8, 32))
    assert graphs.deviation(got, expected, without) < graphs.TOLERANCE


def test_attention_couple() -> None:
    without, expected = (graphs.sample(m, batch=2) for m in (graphs.bundle().model, graphs.apply(merge=POOL)))
    got = graphs.sample(couple(graphs.apply(merge=POOL), 2), batch=2)
    assert graphs.deviation(got, expected, without) < graphs.TOLERANCE


def test_without_the_wrappers_every_site_measures_its_own() -> None:
    model = graphs.apply(merge=POOL)
    del model.model_options["transformer_options"]["wrappers"]
    results = [graphs.sample(each) for each in (model, graphs.apply(), graphs.bundle().model)]
    assert graphs.deviation(*results) < graphs.TOLERANCE


def test_the_surest_sites_go_on_measuring(monkeypatch) -> None:
    from mip_adapter.attention import pool

    monkeypatch.setattr(pool, "MEASURING_SITES", 2)
    monkeypatch.setattr(pool, "TURNS_BETWEEN", 4)
    chosen = DirectPool(surest=2, again=4)
    expected = graphs.apply_directly(merge=POOL, pool=chosen)
    results = [graphs.sample(model, 8) for model in (graphs.apply(merge=POOL), expected, graphs.bundle().model)]
    assert graphs.deviation(*results) < 3 * graphs.TOLERANCE
    counts = [len(next(iter(turn.values()))) for turn in [*chosen.history, chosen.now]]
    everyone = counts[0]
    assert everyone > 2 and counts == [everyone, everyone, 2, 2, everyone, 2, 2, 2]


def test_the_record_shows_the_shares_that_act(monkeypatch) -> None:
    from mip_adapter.attention.pool import PoolAccess

    acted, shares = [], PoolAccess.share

    def noted(self, *given):
        share = shares(self, *given)
        acted.append((self.size, share))
        return share

    monkeypatch.setattr(PoolAccess, "share", noted)
    model, record = applied(measure="pool")
    graphs.sample(model, 3)
    for size in record.resolutions:
        expected = torch.stack([share for at, share in acted if at == size]).mean(0)
        torch.testing.assert_close(record.shares(size)[:, 0].flatten(1), expected[:, 0], rtol=1e-4, atol=1e-5)


def test_a_pool_of_one_call_knows_its_own_rows_alone() -> None:
    """Where nobody samples, the pool has a row for each picture of the call, whatever their numbers in the run."""
    from mip_adapter.attention.options import Merge
    from mip_adapter.attention.plan import Plan
    from mip_adapter.attention.schedule import Schedule
    from mip_adapter.patching.site_pools import PooledSite, SitePools

    plan = Plan(("a", "b"), Merge(**POOL), "off", 0.0, torch.ones(2, 1, 1), None, {})
    pools = SitePools(None, None, 2, [4, 5], 0)
    at, measured = PooledSite(Schedule.always(plan), ("input", 1, 0), (0, 1)), torch.rand(2, 2, 4).softmax(-1)
    for _ in range(2):  # the cond comes twice in this call
        site = pools.of_cond(at, "cond", (2, 2), torch.tensor([4, 5]), 0)
        torch.testing.assert_close(site.share(lambda: measured, plan, None, 2), measured / measured.sum(0))
