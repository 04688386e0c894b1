"""What sampling records about the relevance, and the maps drawn from it."""

from __future__ import annotations

import math

import pytest
import torch

from . import graphs

pytestmark = pytest.mark.usefixtures("host")


def applied(**merge):
    """(MODEL, MIP_RELEVANCE) of an MIPApply with two objects."""
    from mip_adapter.attention.options import Merge
    from mip_adapter.nodes.apply import MIPApply

    parts = graphs.bundle()
    with torch.inference_mode():
        return MIPApply.execute(
            parts.model, parts.clip, parts.vision, parts.adapters["base"], graphs.references(), scale=1.0,
            start_percent=0.0, end_percent=1.0, merge=Merge(**merge),
        ).args  # fmt: skip


def maps(record, images, **options):
    from mip_adapter.nodes.relevance import MIPRelevanceMaps

    return MIPRelevanceMaps.execute(record, images, options.pop("opacity", 0.6), **options).args


def test_the_record_is_the_mean_of_what_the_sites_measured(monkeypatch):
    from mip_adapter.attention import site

    seen = []
    measure = site.shares

    def spy(*args):
        seen.append(measure(*args))
        return seen[-1]

    monkeypatch.setattr(site, "shares", spy)
    model, record = applied()
    graphs.sample(model, steps=4, batch=2)
    assert record.resolutions == [(4, 4), (8, 8)]
    for height, width in record.resolutions:
        mine = torch.stack([s for s in seen if s.shape[-1] == height * width]).mean(0).unflatten(-1, (height, width))
        torch.testing.assert_close(record.shares((height, width)), mine)
    torch.testing.assert_close(record.shares().sum(0), torch.ones(2, 8, 8))
    entropy = [-torch.special.xlogy(s, s).sum(0).mean() / math.log(2) for s in seen]
    assert record.confusion().shape == (4,)
    assert 0 < float(record.confusion().min()) <= float(record.confusion().max()) <= 1
    assert float(record.confusion().mean()) == pytest.approx(sum(map(float, entropy)) / len(entropy), rel=1e-4)
    torch.testing.assert_close(record.gate().mean((-1, -2)), torch.ones(2))


def test_phases_cover_the_steps():
    model, record = applied()
    graphs.sample(model, steps=6)
    parts = torch.stack([record.shares(phase=phase) for phase in ("early", "middle", "late")])
    assert not torch.equal(parts[0], parts[2])
    torch.testing.assert_close(parts.mean(0), record.shares())


def test_recording_changes_no_bit():
    from mip_adapter.attention.host_apply import apply_references

    parts = graphs.bundle()
    with torch.inference_mode():
        silent = apply_references(
            parts.model, parts.clip, parts.vision, parts.adapters["base"], graphs.references(), scale=1.0
        )
    model, _ = applied()
    assert torch.equal(graphs.sample(model), graphs.sample(silent))


@pytest.mark.parametrize("cfg", [1.0, 4.0])
def test_area_conds_fill_their_part_of_the_canvas(cfg):
    import nodes

    left, right = (
        nodes.ConditioningSetArea().append(graphs.prompt("a cat"), 64, 128, x, 0, 1.0)[0] for x in (0, 64)
    )  # half of the canvas each
    model, record = applied()
    graphs.sample(graphs.guide(model, positive=left + right, cfg=cfg))
    assert record.resolutions == [(4, 4), (8, 8)]
    torch.testing.assert_close(record.shares().sum(0), torch.ones(1, 8, 8))
    whole, halves = applied(), record.shares()
    graphs.sample(whole[0])
    assert not torch.allclose(whole[1].shares(), halves)


def test_the_last_run_wins():
    model, record = applied()
    first = graphs.sample(model)
    graphs.sample(model, size=(24, 16), seed=8)
    assert record.runs == 2 and record.resolutions == [(6, 4), (12, 8)]
    assert torch.equal(graphs.sample(model), first) and record.runs == 3 and record.resolutions == [(4, 4), (8, 8)]


def test_a_run_is_a_run_even_with_the_same_noise_levels():
    """SamplerCustom with cached SIGMAS hands the host the same tensor again."""
    import comfy.samplers

    model, record = applied()
    guider = graphs.guide(model)
    sigmas = comfy.samplers.calculate_sigmas(model.get_model_object("model_sampling"), "normal", 2)
    euler = comfy.samplers.sampler_object("euler")
    found = []
    for seed in (1, 2, 1):
        noise = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(seed))
        with torch.inference_mode():
            guider.sample(noise, torch.zeros_like(noise), euler, sigmas, disable_pbar=True, seed=seed)
        found.append(record.shares())
    assert record.runs == 3 and torch.equal(found[0], found[2]) and not torch.equal(found[0], found[1])


@pytest.mark.parametrize("merge", [{"normalization": "mean"}, {"background": 2.0}, {"sharpness": 3.0}], ids=str)
def test_shares_and_confusion_keep_their_scale(merge):
    """Whatever the merge multiplies its shares by, the maps add up to 1 or less, and confusion stays in 0..1."""
    model, record = applied(**merge)
    graphs.sample(model)
    total = record.shares().sum(0)
    if merge.get("background"):
        assert 0.2 < float(total.min()) <= float(total.max()) < 0.8
    else:
        torch.testing.assert_close(total, torch.ones_like(total))
    assert 0 < float(record.confusion().min()) <= float(record.confusion().max()) <= 1


def test_confusion_by_hand():
    from mip_adapter.attention.record import confusion

    one, half, third = torch.tensor([1.0, 0.0]), torch.tensor([0.5, 0.5]), torch.tensor([0.2, 0.2])
    maps_ = torch.stack([one, half, third]).T.reshape(2, 1, 1, 3)
    # claims 1, 1, 0.4; entropies 0, 1, 1 in units of log 2
    assert float(confusion(maps_, 2)) == pytest.approx((1 + 0.4) / 2.4)
    assert float(confusion(torch.zeros(2, 1, 1, 3), 2)) == 0


def test_the_report_says_who_claims_what():
    from mip_adapter.attention.report import places, report

    shares = torch.tensor([[0.9, 0.6, 0.1, 0.2], [0.1, 0.4, 0.9, 0.8]]).view(2, 1, 2, 2)
    owned, held = places(shares)
    assert owned.tolist() == [0.5, 0.5]
    torch.testing.assert_close(held, torch.tensor([[0.75, 0.25], [0.15, 0.85]]))
    model, record = applied()
    graphs.sample(model, steps=3, batch=2)
    said = maps(record, torch.rand(2, 64, 64, 3))[3]
    assert "Maps of 4×4, 8×8 positions; the references acted in all of 3 steps." in said and "last run" not in said
    assert "Confusion: " in said and " 3: " in said and "cat: has the largest share" in said
    graphs.sample(model, steps=2)
    assert "sampled 2 times: these maps are the last run's" in maps(record, torch.rand(1, 64, 64, 3))[3]
    record._steps = torch.tensor([[0.3], [1.0], [1.0]])  # as if it had been clear
    assert "Each object has a place of its own" in report(record, shares)
    leaking = torch.tensor([[0.6, 0.6, 0.1, 0.2], [0.4, 0.4, 0.9, 0.8]]).view(2, 1, 2, 2)
    assert "“red coffee cup” claims 40% of the place of “cat”" in report(record, leaking)
    gone = torch.stack([torch.full((1, 2, 2), 0.9), torch.full((1, 2, 2), 0.1)])
    assert "“red coffee cup” has hardly a place" in report(record, gone)


def test_the_node_draws_what_was_recorded():
    model, record = applied()
    graphs.sample(model, steps=3, batch=2)
    images = torch.rand(2, 128, 128, 3)
    overlays, masks, heads, _ = maps(record, images)
    assert overlays.shape[0] == 2 * 3 and overlays.shape[2:] == (128, 3) and overlays.shape[1] > 128
    assert masks.shape == (4, 128, 128) and heads.shape == images.shape
    for cut in masks.view(2, 2, 128, 128):
        assert torch.equal(cut.sum(0), torch.ones(128, 128)) and set(cut.unique().tolist()) == {0.0, 1.0}
    soft = maps(record, images, mask="soft")[1].view(2, 2, 128, 128)
    assert torch.equal(soft.argmax(1), masks.view(2, 2, 128, 128).argmax(1))
    torch.testing.assert_close(soft.sum(1), torch.ones(2, 128, 128), atol=1e-2, rtol=0)
    assert torch.equal(maps(record, images, mask="threshold", threshold=0.6)[1] > 0, soft.flatten(0, 1) > 0.6)
    for options in ({"resolution": "coarsest"}, {"resolution": "finest", "steps": "late"}):
        assert maps(record, images, **options)[0].shape == overlays.shape
    clear = maps(record, images, opacity=0.0)[0]
    torch.testing.assert_close(clear[0, :128], images[0])


@pytest.mark.parametrize("choice", [{"resolution": "middle"}, {"steps": "last"}, {"mask": "Soft"}])
def test_a_choice_that_there_is_not_is_refused(choice):
    """The server lets any word through."""
    model, record = applied()
    graphs.sample(model)
    (name,) = choice
    with pytest.raises(ValueError, match=f"{name} is .*choose one of"):
        maps(record, torch.zeros(1, 8, 8, 3), **choice)


def test_sentences_for_what_cannot_be_drawn():
    images = torch.rand(1, 64, 64, 3)
    model, record = applied()
    with pytest.raises(ValueError, match="Nothing has been recorded yet"):
        maps(record, images)
    graphs.sample(model, batch=2)
    with pytest.raises(ValueError, match="1 images and maps of 2"):
        maps(record, images)
    model, record = applied(strategy="uniform")
    graphs.sample(model)
    with pytest.raises(ValueError, match="Use the strategy “relevance”"):
        maps(record, images)
