"""How the record hears the sampling: several positives, areas, objects alone, windows, other evaluations, prompts."""

from __future__ import annotations

import pytest
import torch
from mip_adapter.attention.regions import place_on_canvas

from ..patching.test_regions import LEFT, RIGHT, area, masked
from ..patching.test_steering import applied
from ..support import graphs
from ..support.graphs import guide, prompt, references, sample

pytestmark = pytest.mark.usefixtures("host")

POSITIVES = {
    "combine": lambda: prompt("a cat") + prompt("a cup"),
    "masks": lambda: masked(prompt("a cat"), LEFT) + masked(prompt("a cup"), RIGHT),
    "three": lambda: prompt("a cat") + prompt("a cup") + prompt("a table"),
}


def maps(record, images, **options):
    from mip_adapter.nodes.relevance import MIPRelevanceMaps

    return MIPRelevanceMaps.execute(record, images, 0.6, **options).args


def freeze(record, latent):
    from mip_adapter.nodes.freeze import MIPFreezeRelevance

    return MIPFreezeRelevance.execute(record, {"samples": latent}).args[0]


def whole(shares: torch.Tensor) -> None:
    """Somebody has every position."""
    torch.testing.assert_close(shares.sum(0), torch.ones_like(shares[0]))


def without_head(chain):
    """(MODEL, MIP_RELEVANCE) of weights that carry none."""
    from mip_adapter.attention.options import FusionHead
    from mip_adapter.nodes.apply import MIPApply

    parts = graphs.bundle()
    head = FusionHead({}, "off")
    with torch.inference_mode():
        return MIPApply.execute(
            parts.model, parts.clip, parts.vision, parts.adapters["base"], chain, 1.0, 0.0, 1.0, None, head
        ).args


# ---- several positives ----


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("kind", POSITIVES)
def test_several_positives(kind: str, batch: int, monkeypatch) -> None:
    """They are of the same pictures, evaluated in one call or in several."""
    found = []
    for apart in (False, True):
        if apart:
            graphs.little_memory(monkeypatch)
        model, record = applied()
        latent = sample(guide(model, POSITIVES[kind]()), batch=batch)
        whole(record.shares())
        assert record.shares().shape == (2, batch, 8, 8)
        assert maps(record, torch.rand(batch, 64, 64, 3))[1].shape == (2 * batch, 64, 64)
        assert torch.equal(freeze(record, latent).shares(), record.shares())
        found.append((record.shares(), record.gate(), record.evenness()))
    torch.testing.assert_close(found[0], found[1], rtol=1e-4, atol=1e-5)


def test_the_same_positive_twice_is_one() -> None:
    found = []
    for positive in (prompt("a cat"), prompt("a cat") + prompt("a cat")):
        model, record = applied()
        sample(guide(model, positive), batch=3)
        found.append((record.shares(), record.gate(), record.evenness()))
    assert not torch.allclose(found[0][0][:, 0], found[0][0][:, 1], atol=1e-3)  # pictures differ
    torch.testing.assert_close(found[0], found[1], rtol=1e-4, atol=1e-5)


def test_a_guider_of_several_conditional_branches() -> None:
    from comfy_extras.nodes_custom_sampler import DualCFGGuider

    model, record = applied()
    conds = prompt("a cat beside a cup"), prompt("a photograph"), prompt("blurry")
    sample(DualCFGGuider.execute(model, *conds, 4.0, 3.0, "regular").args[0], batch=2)
    assert record.shares().shape == (2, 2, 8, 8)
    whole(record.shares())


# ---- one object alone ----


@pytest.mark.parametrize("head", [True, False])
def test_an_object_alone_has_all_of_the_picture(head: bool) -> None:
    chain = references(end_percent=[1.0, 0.5])
    model, record = applied(chain) if head else without_head(chain)
    latent = sample(model, 6)
    for phase in ("early", "middle", "late", None):
        whole(record.shares(phase=phase))
    assert bool((record.shares(phase="late")[0] == 1).all())
    assert bool(record.steps_seen().all()) and record.evenness().isfinite()[:, 0].tolist() == [True] * 3 + [False] * 3
    assert (record.gate() is not None) == head
    if head:
        torch.testing.assert_close(record.gate(phase="late").mean(), torch.tensor(1.0))
    again, second = applied(references(), frozen=freeze(record, latent))
    sample(again)
    whole(second.shares())


def test_an_object_alone_keeps_to_its_region() -> None:
    left = torch.zeros(1, 32, 32)
    left[:, :, :16] = 1
    model, record = applied(references(end_percent=[1.0, 0.5], region=[left, None]))
    sample(model, 6)
    late = record.shares((8, 8), "late")
    assert bool((late[0, :, :, :3] > 0.999).all()) and not late[0, :, :, 5:].any() and not late[1].any()


def test_a_single_reference() -> None:
    model, record = applied(references(("cat",)))
    sample(model)
    whole(record.shares())
    assert record.mean_evenness() is None
    said = maps(record, torch.rand(1, 64, 64, 3))[3]
    assert "cat: has the largest share of 100% of the picture." in said and "clearest" not in said


def test_acting_is_told_from_measuring() -> None:
    """concat without a head measures nothing at all, and yet it was sampled."""
    from mip_adapter.attention.options import FusionHead, Merge
    from mip_adapter.patching.apply import apply_references
    from mip_adapter.relevance.record import RelevanceRecord

    parts, record = graphs.bundle(), RelevanceRecord(graphs.OBJECTS)
    with torch.inference_mode():
        model = apply_references(
            parts.model, parts.clip, parts.vision, parts.adapters["base"], references(end_percent=[0.5, 0.5]),
            scale=1.0, merge=Merge("concat"), fusion_head=FusionHead({}, "off"), record=record,
        )  # fmt: skip
    sample(model, 6)
    assert record.steps_seen().tolist() == [True] * 3 + [False] * 3
    with pytest.raises(ValueError, match="Use the strategy “relevance”"):
        record.shares()


def test_the_report_names_the_steps() -> None:
    model, record = applied(references(start_percent=[0.0, 0.75], end_percent=[0.22, 1.0]))
    sample(model, 6)
    assert "acted in 4 of 6 steps: 1–2, 5–6." in maps(record, torch.rand(1, 64, 64, 3))[3]


# ---- nobody ----


def test_nobody_owns_what_is_outside_of_all_regions() -> None:
    from mip_adapter.relevance.report import places

    right, middle = torch.zeros(1, 32, 32), torch.zeros(1, 32, 32)
    right[:, :, 24:], middle[:, :, 16:24] = 1, 1
    model, record = applied(references(region=[right, middle]))
    sample(model, 3)
    _, cut, _, said = maps(record, torch.rand(1, 64, 64, 3))
    assert not cut[:, :, :28].any() and cut[0, :, 52:].all() and cut[1, :, 36:44].all()
    assert "Nobody has the largest share of 50% of the picture." in said
    owned, held = places(record.shares((8, 8)))
    assert owned.tolist() == [0.25, 0.25] and float(held.diag().min()) > 0.8


def test_the_background_is_nobody_s() -> None:
    """1 − Σ is what the competitor claims: it takes part in who owns a place."""
    from mip_adapter.relevance.maps import masks

    shares = torch.tensor([[0.5, 0.3, 0.2, 0.0], [0.1, 0.4, 0.2, 0.0]]).view(2, 1, 1, 4)
    assert masks(shares, "owner", 0.5).flatten(1).tolist() == [[1, 0, 0, 0], [0, 1, 0, 0]]
    model, record = applied(background=1.0)
    sample(model)
    _, cut, _, said = maps(record, torch.rand(1, 64, 64, 3))
    assert 0 < float(cut.sum(0).mean()) < 1 and "Nobody has the largest share" in said


def test_a_phase_without_data() -> None:
    model, record = applied()
    sample(model, 2)
    whole(record.shares(phase="early"))
    for ask in (lambda: record.shares(phase="late"), lambda: maps(record, torch.rand(1, 64, 64, 3), steps="late")):
        with pytest.raises(ValueError, match="Nothing was recorded in the late third of the steps: choose “all”"):
            ask()


# ---- areas ----


def test_where_a_site_lies() -> None:
    for level in range(6):
        for side in range(2**level, 70):
            halved = side
            for _ in range(level):
                halved = (halved + 1) // 2  # a convolution of stride 2
            for start in range(0, 70 - side, 7):
                canvas, corner = place_on_canvas((side, 64, start, 0), (70, 64), (halved, 64 >> level))
                assert canvas == (-(-70 // 2**level), 64 >> level) and corner[1] == 0
                assert 0 <= corner[0] <= canvas[0] - halved and abs(corner[0] - start / 2**level) < 1
    assert place_on_canvas(None, (70, 64), (35, 32)) == ((35, 32), (0, 0))
    assert place_on_canvas((8, 8, 1, 1), (9, 9), (7, 7)) == ((7, 7), (0, 0))  # resized by another pack


SPLITS = {
    "odd": ((16, 7, 0, 0), (16, 9, 0, 7)),
    "odd and even": ((16, 8, 0, 0), (16, 7, 0, 9), (16, 4, 0, 7)),
    "thin": ((16, 5, 0, 0), (16, 6, 0, 5), (16, 5, 0, 11)),
    "over the edge": ((16, 9, 0, 0), (20, 12, 0, 7)),
}


@pytest.mark.parametrize("kind", SPLITS)
def test_areas_of_any_size_fill_one_canvas(kind: str) -> None:
    model, record = applied()
    positive = [cond for each in SPLITS[kind] for cond in area(prompt("a cat"), *each)]
    sample(guide(model, positive))
    assert record.resolutions == [(4, 4), (8, 8)]
    for resolution in (*record.resolutions, None):
        whole(record.shares(resolution))


def test_resolutions_are_averaged_where_they_saw_something() -> None:
    from mip_adapter.relevance.observation import Observation, RunId
    from mip_adapter.relevance.record import RelevanceRecord

    record, first = RelevanceRecord(("a", "b")), torch.zeros(1, dtype=torch.long)
    coarse = torch.tensor([0.8, 0.2]).view(2, 1, 1, 1)
    fine = torch.tensor([0.4, 0.6]).view(2, 1, 1, 1).expand(2, 1, 2, 1)
    seen = [Observation(coarse, None, (1, 1), (0, 0), 2), Observation(fine, None, (2, 2), (0, 0), 2)]
    record.add(RunId(record, 1), 1, first, 1, seen)
    left, right = [0.6, 0.6], [0.8, 0.8]
    torch.testing.assert_close(record.shares()[0, 0].T, torch.tensor([left, right]))
    whole(record.shares())


def test_a_run_that_grows_keeps_what_it_recorded() -> None:
    """Pieces of a sampling that go on from each other may have more steps together than its schedule."""
    from mip_adapter.relevance.observation import Observation, RunId
    from mip_adapter.relevance.record import RelevanceRecord

    record, run = RelevanceRecord(("a", "b")), RunId(object(), 1, "queued")
    record.begin(run, cropped=True, fixed_places=True)
    for step, steps, share in ((0, 2, 0.9), (2, 4, 0.5)):
        shares = torch.tensor([share, 1 - share]).view(2, 1, 1, 1)
        record.add(run, step, torch.tensor([step]), steps, [Observation(shares, None, (1, 1), (0, 0), 2)])
    assert record.cropped and record.fixed_places and record.runs == 1
    assert record.steps_seen().tolist() == [True, False, True, False]
    assert record.evenness().isfinite().flatten().tolist() == [True, False, True, False]
    torch.testing.assert_close(record.shares().flatten(), torch.tensor([0.7, 0.3]))


# ---- other evaluations ----


@pytest.mark.parametrize("cfg", [1.0, 4.0])
def test_perturbed_attention_is_not_recorded(cfg: float) -> None:
    """In the first step everybody starts from the same noise."""
    from comfy_extras.nodes_pag import PerturbedAttentionGuidance

    found = []
    for perturb in (False, True):
        model, record = applied()
        model = PerturbedAttentionGuidance.execute(model, 3.0).args[0] if perturb else model
        sample(guide(model, cfg=cfg), 1)
        assert record._calls.tolist() == [1]
        found.append(record.shares())
    assert torch.equal(*found)


def test_every_evaluation_of_a_sampler_of_second_order_is_recorded() -> None:
    model, record = applied()
    sample(model, 3, sampler="heun")
    assert record._calls.sum() == 5  # the last step needs one


@pytest.mark.parametrize("at_once", [1, 2])
def test_tiles_that_nobody_places_leave_no_maps(at_once: int) -> None:
    model, record = applied(references())
    graphs.sample(graphs.in_tiles(model, at_once), size=(8, 32))
    assert "another pack samples the pictures in parts" in (record.absent() or "")


@pytest.mark.parametrize("length", [4, 5])  # with the one before it, a window of 5 has as many pictures as the batch
@pytest.mark.parametrize("schedule", ["standard_static", "looped_uniform"])
def test_context_windows(schedule: str, length: int) -> None:
    """The host slices a batch: every picture is recorded, and every picture gets its own frozen maps."""

    def sampled(sliced: bool, **options):
        model, record = applied(**options)
        latent = sample(graphs.in_windows(model, length, schedule) if sliced else model, 5, batch=6, size=(8, 8))
        return latent, record

    (latent, record), (other, sliced) = sampled(False), sampled(True)
    assert apart(other, latent) < 1e-5
    whole(sliced.shares())
    # Windows that move show a picture twice in some steps, which then count for no more of its maps.
    torch.testing.assert_close(sliced.shares(), record.shares(), rtol=1e-3, atol=1e-4)

    frozen = freeze(record, latent)
    (latent, _), (other, _) = (sampled(sliced, frozen=frozen) for sliced in (False, True))
    assert apart(other, latent) < 1e-5


def apart(one: torch.Tensor, other: torch.Tensor) -> float:
    """The relative difference of two latents. Processors compute batches of other lengths in other orders."""
    return float((one - other).norm() / other.norm())


def test_a_picture_that_every_context_window_shows() -> None:
    """Some hosts can keep one. Its maps are its own, not those of the picture in whose place it stands."""
    import inspect

    import comfy.context_windows as windows

    known = inspect.signature(windows.IndexListContextHandler).parameters
    if "latent_retain_index_list" not in known:
        pytest.skip("this ComfyUI keeps no picture in every context window")
    found = []
    for options in ({}, {"latent_retain_index_list": "0", "causal_window_fix": False}):
        model, record = applied()
        model = graphs.in_windows(model, 4, **options) if options else model
        sample(model, 1, batch=6, size=(8, 8))  # later steps begin with other pictures
        found.append(record.shares())
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-5)


# ---- prompts ----


def test_runs_are_counted_within_a_prompt() -> None:
    """The model lives on in the host's cache while prompt after prompt samples it."""
    from comfy_execution.utils import CurrentNodeContext

    model, record = applied()
    counted = []
    for name in ("one", "two", "two", "three"):
        with CurrentNodeContext(name, "sampler"):
            sample(model, 1)
        counted.append(record.runs)
    assert counted == [1, 1, 2, 1]
