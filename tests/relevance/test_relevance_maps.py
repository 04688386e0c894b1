"""What sampling records about the relevance, and the maps drawn from it."""

from __future__ import annotations

import math

import pytest
import torch

from ..support import graphs

pytestmark = pytest.mark.usefixtures("host")

RIGHT = "Each object has a place of its own. MIP Binding Report says whose look it wears there.\n"


def applied(chain=None, scale=1.0, **merge):
    """(MODEL, MIP_RELEVANCE) of an MIPApply, with two objects by default."""
    from mip_adapter.attention.options import Merge
    from mip_adapter.nodes.apply import MIPApply

    parts = graphs.bundle()
    with torch.inference_mode():
        return MIPApply.execute(
            parts.model, parts.clip, parts.vision, parts.adapters["base"], chain or graphs.references(), scale=scale,
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
    entropy = [-torch.special.xlogy(s, s).sum(0).mean(-1) / math.log(2) for s in seen]  # of each picture
    assert record.evenness().shape == (4, 2)
    assert 0 < float(record.evenness().min()) <= float(record.evenness().max()) <= 1
    torch.testing.assert_close(record.evenness().mean(0), torch.stack(entropy).mean(0), rtol=1e-4, atol=0)
    assert record.mean_evenness() == pytest.approx(float(torch.stack(entropy).mean()), rel=1e-4)
    torch.testing.assert_close(record.gate().mean((-1, -2)), torch.ones(2))


def test_phases_cover_the_steps():
    model, record = applied()
    graphs.sample(model, steps=6)
    parts = torch.stack([record.shares(phase=phase) for phase in ("early", "middle", "late")])
    assert not torch.equal(parts[0], parts[2])
    torch.testing.assert_close(parts.mean(0), record.shares())


def test_recording_changes_no_bit():
    from mip_adapter.patching.apply import apply_references

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
def test_shares_and_evenness_keep_their_scale(merge):
    """Whatever the merge multiplies its shares by, the maps add up to 1 or less, and evenness stays in 0..1."""
    model, record = applied(**merge)
    graphs.sample(model)
    total = record.shares().sum(0)
    if merge.get("background"):
        assert 0.2 < float(total.min()) <= float(total.max()) < 0.8
    else:
        torch.testing.assert_close(total, torch.ones_like(total))
    assert 0 < float(record.evenness().min()) <= float(record.evenness().max()) <= 1


def test_overlapping_regions_of_the_sum_are_parts_of_one():
    """With the merge "sum" each object has its region to itself; where two overlap, each has half in the maps."""
    left = torch.zeros(16, 16)
    left[:, :8] = 1
    model, record = applied(graphs.references(region=[left, torch.ones(16, 16)]), strategy="sum")
    graphs.sample(model)
    shares = record.shares((8, 8))[:, 0]
    torch.testing.assert_close(shares.sum(0), torch.ones(8, 8))
    torch.testing.assert_close(shares[:, :, :3], torch.full((2, 8, 3), 0.5))
    torch.testing.assert_close(shares[1, :, 5:], torch.ones(8, 3))


def test_evenness_by_hand():
    from mip_adapter.relevance.means import evenness

    one, half, third = torch.tensor([1.0, 0.0]), torch.tensor([0.5, 0.5]), torch.tensor([0.2, 0.2])
    maps_ = torch.stack([torch.stack([one, half, third]), torch.stack([one, one, half])])  # [P, w, M]
    maps_ = maps_.movedim(-1, 0).view(1, 2, 1, 2, 1, 3)  # [S, M, C, P, h, w]
    # claims 1, 1, 0.4; entropies 0, 1, 1 in units of log 2; then claims 1, 1, 1; entropies 0, 0, 1
    assert evenness(maps_, 2).tolist() == pytest.approx([(1 + 0.4) / 2.4, 1 / 3])
    assert evenness(torch.zeros_like(maps_), 2).tolist() == [0, 0]


def test_the_report_says_who_claims_what():
    from mip_adapter.relevance.report import places, relevance_report

    shares = torch.tensor([[0.9, 0.6, 0.1, 0.2], [0.1, 0.4, 0.9, 0.8]]).view(2, 1, 2, 2)
    owned, held = places(shares)
    assert owned.tolist() == [0.5, 0.5]
    torch.testing.assert_close(held, torch.tensor([[0.75, 0.25], [0.15, 0.85]]))
    model, record = applied()
    graphs.sample(model, steps=3, batch=2)
    said = maps(record, torch.rand(2, 64, 64, 3))[3]
    assert (
        said.endswith("Maps of 4×4, 8×8 positions; the references acted in all of 3 steps.") and "last run" not in said
    )
    assert "Mixed: " in said and " 3: " in said and "cat: has the largest share" in said
    graphs.sample(model, steps=2)
    assert "sampled 2 times: these maps are the last run's" in maps(record, torch.rand(1, 64, 64, 3))[3]
    record._evenness = torch.tensor([0.3, 1.0]).view(2, 1, 1)  # as if it had been clear
    assert relevance_report(record, shares).startswith(RIGHT)
    leaking = torch.tensor([[0.6, 0.6, 0.1, 0.2], [0.4, 0.4, 0.9, 0.8]]).view(2, 1, 2, 2)
    assert "“red coffee cup” claims 40% of the place of “cat”" in relevance_report(record, leaking)
    gone = torch.stack([torch.full((1, 2, 2), 0.9), torch.full((1, 2, 2), 0.1)])
    assert "“red coffee cup” has hardly a place" in relevance_report(record, gone)


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


def test_legends_of_one_batch_may_need_different_room(monkeypatch):
    """At 512 pixels "mixed 100%" goes to a second line beside these names, and "mixed 10%" does not."""
    from mip_adapter.relevance import maps as drawing

    model, record = applied(graphs.references(("teddy bear", "dogs", "oil lamp")))
    graphs.sample(model, batch=2)
    said = iter(["mixed 10%", "mixed 100%", "mixed 10%", "mixed 10%"])
    monkeypatch.setattr(drawing, "mixed", lambda value: next(said))
    images = torch.rand(2, 512, 512, 3)
    overlays = maps(record, images)[0]
    assert len(overlays) == 2 * 4
    assert maps(record, images)[0].shape[1] < overlays.shape[1] and overlays[0, -1].eq(1).all()


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
    with pytest.raises(ValueError, match="64×64 pixels and the maps 8×4 positions, another shape: .* a detailer's"):
        graphs.sample(model, size=(8, 16))
        maps(record, images)
    graphs.sample(model)
    with pytest.raises(ValueError, match="“dog” is none of the objects .1 “cat”, 2 “red coffee cup”."):
        maps(record, images, object="dog")


@pytest.mark.parametrize("kind", ["off", "uniform", "sum", "concat"])
def test_without_relevance_the_pictures_go_on(kind):
    """Switched off, or merged without it: the queue must not stop. The gate is drawn where there is one."""
    model, record = applied(scale=0.0) if kind == "off" else applied(strategy=kind)
    graphs.sample(model, batch=2)
    images = torch.rand(2, 64, 64, 3)
    assert maps(record, images[..., :1])[0].shape[-1] == 3  # a grey picture
    overlays, masks, gates, said = maps(record, images)
    assert torch.equal(overlays[:, :64], images) and len(overlays) == 2 and overlays.shape[1] > 64
    assert masks.shape == (4, 64, 64) and not masks.any() and gates.shape == images.shape
    assert bool((gates == 0.5).all()) == (kind == "off")
    assert ("scale is 0 in MIP Apply" if kind == "off" else f"the merge strategy is {kind}") in said
    for choice in ({"mask": "soft"}, {"mask": "threshold", "resolution": "finest"}, {"object": "cat"}):
        assert not maps(record, images, **choice)[1].any()


def test_equal_texts_are_named_as_the_cause():
    model, record = applied(graphs.references(("woman", "Woman")))
    graphs.sample(model)
    said = maps(record, torch.rand(1, 64, 64, 3))[3]
    assert "Several objects are called “woman”" in said and "sharpness" not in said


def test_without_relevance_nothing_is_frozen():
    from mip_adapter.nodes.freeze import MIPFreezeRelevance

    cases: list[tuple[dict, str]] = [({"scale": 0.0}, "scale is 0"), ({"strategy": "sum"}, "strategy is sum")]
    for options, reason in cases:
        model, record = applied(**options)
        latent = graphs.sample(model)
        with pytest.raises(ValueError, match=reason):
            MIPFreezeRelevance.execute(record, {"samples": latent})


def test_uniform_shares_within_regions_are_drawn():
    left = torch.zeros(1, 32, 32)
    left[:, :, :16] = 1
    model, record = applied(graphs.references(region=[left, None]), strategy="uniform")
    graphs.sample(model)
    said = maps(record, torch.rand(1, 64, 64, 3))[3]
    assert "cat: has the largest share" in said and "There is no relevance" not in said


def test_one_object_alone_tints_nothing():
    model, record = applied(graphs.references(("cat",)))
    graphs.sample(model)
    images = torch.rand(1, 64, 64, 3)
    overlays, masks, _, _ = maps(record, images, opacity=1.0)
    grey = torch.lerp(images, images.mean(-1, keepdim=True).expand_as(images), 0.5)
    torch.testing.assert_close(overlays[:, :64], grey.expand(2, -1, -1, -1))
    assert masks.all()
    model, record = applied(graphs.references(("cat",)), background=1.0)
    graphs.sample(model)
    assert not torch.allclose(maps(record, images, opacity=1.0)[0][:1, :64], grey, atol=0.05)


def test_a_background_that_all_claim_alike_is_not_mixed():
    """Two objects with clear places on a background without any: most of the picture is shared, and that is right."""
    from mip_adapter.relevance.maps import cores, mixing
    from mip_adapter.relevance.means import evenness
    from mip_adapter.relevance.report import relevance_report

    shares = torch.full((2, 1, 8, 8), 0.5)
    for i, columns in enumerate((slice(1, 3), slice(5, 7))):
        shares[:, 0, 3:6, columns] = 0.1
        shares[i, 0, 3:6, columns] = 0.9
    assert cores(shares).sum((-1, -2, -3)).tolist() == [6, 6]
    whole = float(evenness(shares[None, :, None], 2))
    assert mixing(shares[:, 0]) == pytest.approx(0.2) and whole > 0.85
    assert mixing(torch.full((2, 8, 8), 0.5)) == 1 and mixing(torch.ones(1, 8, 8)) is None
    _, record = applied()
    record._shares, record._evenness = {(8, 8): None}, torch.tensor([whole, 1.0]).view(2, 1, 1)
    record._calls = torch.ones(1)
    said = relevance_report(record, shares)
    assert said.startswith(RIGHT) and "try" not in said
    assert "Mixed: 20%." in said and "Evenness of the whole picture: 90%" in said
    assert relevance_report(record, torch.full((2, 1, 8, 8), 0.5)).startswith(
        "The objects claim nearly everything alike"
    )


def test_the_report_says_what_the_prompt_lacks():
    from mip_adapter.nodes.apply import MIPApply

    parts = graphs.bundle()
    names = ("cat", "dragon", "a very small brown coffee cup")
    with torch.inference_mode():
        model, record = MIPApply.execute(
            parts.model, parts.clip, parts.vision, parts.adapters["base"], graphs.references(names), 1.0, 0.0, 1.0,
            prompt="a photo of a (cat:1.2) and a cup in a dragonfly's garden",
        ).args  # fmt: skip
    graphs.sample(model)
    lines = maps(record, torch.rand(1, 64, 64, 3))[3].splitlines()
    assert lines[0].startswith("“dragon” is not in the prompt: ")
    assert "In the prompt: cat ✓, dragon: not in the prompt, a very small brown coffee cup: not in the prompt." in lines
    assert any("is long for an object text" in line for line in lines)


def test_every_picture_has_its_own_evenness(monkeypatch):
    """A batch says of each picture what it says when that picture is sampled alone."""
    from mip_adapter.relevance import maps as drawing

    noted = []
    monkeypatch.setattr(drawing, "mixed", lambda value: noted.append(value) or "")
    model, record = applied()
    graphs.sample(model, batch=3)
    together = record.evenness_by_picture()
    said = maps(record, torch.rand(3, 64, 64, 3))[3]
    assert len(set(noted)) == len(set(together)) == 3
    for number, value in enumerate(noted, 1):
        assert f"\nPicture {number}: mixed {value:.0%}; largest share: cat " in said
    graphs.sample(model)  # the noise of a batch begins with the noise of one
    assert record.evenness_by_picture() == pytest.approx(together[:1], rel=1e-4)
    assert "Picture 1" not in maps(record, torch.rand(1, 64, 64, 3))[3]


@pytest.mark.parametrize(("wanted", "number"), [("cat", 0), ("1", 0), ("Red  coffee cup", 1), ("2", 1)])
def test_masks_of_one_object(wanted, number):
    model, record = applied()
    graphs.sample(model, batch=2)
    images = torch.rand(2, 64, 64, 3)
    everyone = maps(record, images, mask="soft")[1]
    assert torch.equal(maps(record, images, mask="soft", object=wanted)[1], everyone[number::2])


@pytest.mark.parametrize("size", [(16, 16), (17, 31), (24, 16), (13, 40)])
@pytest.mark.parametrize("enlarged", [1, 1.5, 4])
def test_pictures_of_the_same_shape_are_drawn_on(size, enlarged):
    """Odd latents are halved upwards; an upscaled result is still the result."""
    model, record = applied()
    graphs.sample(model, 1, size=size)
    images = torch.rand(1, *(round(8 * side * enlarged) for side in size), 3)
    assert maps(record, images)[1].shape[1:] == images.shape[1:3]


def test_objects_keep_their_colours_beside_a_background_competitor():
    from mip_adapter.relevance.maps import dominance

    places = torch.tensor([[0.9, 0.5, 0.45, 0.01], [0.1, 0.5, 0.05, 0.01]])  # [M, N]; nobody has the rest
    strengths = dominance(places[:, None])[:, 0]
    torch.testing.assert_close(strengths[:, :2], torch.tensor([[0.8, 0.0], [0.0, 0.0]]))
    assert strengths[0, 2] > 0.25 and strengths[1, 2] == 0  # the most of what is claimed, though less than a half
    assert strengths[:, 3].max() == 0
