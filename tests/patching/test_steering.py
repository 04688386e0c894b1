"""Steering: objects that act in a part of the sampling, regions that are released, shares from frozen maps.

Compared with the definition, which gets another set of objects at every step.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from ..support import graphs
from ..support.direct import Direct, DirectPatch, region_at
from ..support.direct_pool import DirectPool
from ..support.graphs import SIZE, TOLERANCE, bundle, deviation, prompt, references, sample

pytestmark = pytest.mark.usefixtures("host")
NAMES = ("cat", "red coffee cup", "dog")
STEPS = 6  # none of which begins at a percentage used here


def box(left: int, right: int) -> Tensor:
    mask = torch.zeros(1, 32, 32)
    mask[:, :, left:right] = 1
    return mask


class Stages(DirectPatch):
    """The definition with other objects at other noise levels. stages: (from percent, to percent, objects, Direct or
    None)."""

    def __init__(self, stages, to_sigma, *given) -> None:
        super().__init__(next(direct for *_, direct in stages if direct), *given)
        self.stages = [(to_sigma(start), to_sigma(end), *what) for start, end, *what in stages]

    def __call__(self, q, k, v, options):
        sigma = float(options["sigmas"][0])
        ((self.objects, now),) = [what for start, end, *what in self.stages if end < sigma <= start]
        self.window = (float("inf"), 0.0) if now else (-2.0, -1.0)
        self.direct = now or self.direct
        return super().__call__(q, k, v, options)


def directly(chain, stages, **merge):
    """A MODEL of the definition. stages: (from, to, objects, those of them whose region holds)."""
    from mip_adapter.patching.encode import encode_references
    from mip_adapter.weights.sites import cross_attentions, unet_sites

    parts = bundle()
    adapter = parts.adapters["base"]
    with torch.inference_mode():
        encoded = encode_references(chain, adapter, parts.clip, parts.vision)

    def of(objects, confined):
        regions = [chain[i].region[0] if i in confined and chain[i].region is not None else None for i in objects]
        return Direct(
            tokens=encoded.tokens[objects], null=encoded.null_tokens,
            texts=[encoded.content_tokens[i] for i in objects],
            weights=[encoded.weights[i] for i in objects], head=adapter.head,
            to_k={n: w.k_weight for n, w in adapter.site_weights.items()},
            to_v={n: w.v_weight for n, w in adapter.site_weights.items()},
            regions=regions if any(r is not None for r in regions) else None, **merge,
        ) if objects else None  # fmt: skip

    prepared = [(start, end, objects, of(objects, confined)) for start, end, objects, confined in stages]
    patched, unet = parts.model.clone(), parts.model.model.diffusion_model
    pool = DirectPool()
    pool.watch(patched)
    pooled = pool if merge.get("measure") == "pool" else None
    modules = cross_attentions(unet)
    to_sigma = parts.model.get_model_object("model_sampling").percent_to_sigma
    for site in unet_sites(unet):
        always = (float("inf"), 0.0)
        given = (modules[site.key], site.number, graphs.positive_first, SIZE, always, pooled)
        patched.set_model_attn2_replace(Stages(prepared, to_sigma, *given), *site.key)
    return patched


def equals(chain, stages, start=0.0, end=1.0, **merge) -> None:
    expected = sample(directly(chain, stages, **merge), STEPS)
    got = sample(graphs.apply(chain, start=start, end=end, merge=merge), STEPS)
    assert deviation(got, expected, sample(bundle().model, STEPS)) < 3 * TOLERANCE  # of an effect in few steps


@pytest.mark.parametrize("strategy", ["relevance", "uniform", "concat"])
def test_every_object_acts_in_its_own_part(strategy: str) -> None:
    chain = references(NAMES, start_percent=[0.0, 0.27, 0.0], end_percent=[1.0, 1.0, 0.55])
    equals(chain, [(0, 0.27, [0, 2], []), (0.27, 0.55, [0, 1, 2], []), (0.55, 1, [0, 1], [])], strategy=strategy)


def test_alone_or_not_at_all() -> None:
    chain = references(start_percent=[0.22, 0.75], end_percent=[0.5, 1.0])
    equals(chain, [(0, 0.22, [], []), (0.22, 0.5, [0], []), (0.5, 0.75, [], []), (0.75, 1, [1], [])], background=0.5)


def test_within_the_range_of_apply() -> None:
    chain = references(end_percent=[0.55, 1.0], weight=[1.0, 0.5])
    equals(chain, [(0, 0.22, [], []), (0.22, 0.55, [0, 1], []), (0.55, 0.83, [1], []), (0.83, 1, [], [])], 0.22, 0.83)


@pytest.mark.parametrize("strategy", ["relevance", "sum"])
def test_a_region_is_released(strategy: str) -> None:
    chain = references(region=[box(0, 16), box(12, 32)], region_until=[0.27, 0.55])
    stages = [(0, 0.27, [0, 1], [0, 1]), (0.27, 0.55, [0, 1], [1]), (0.55, 1, [0, 1], [])]
    equals(chain, stages, strategy=strategy)


def test_ranges_without_effect_change_no_bit() -> None:
    plain = sample(graphs.apply())
    assert torch.equal(sample(graphs.apply(references(region_until=[0.2, 0.5]))), plain)  # without a region
    late = sample(graphs.apply(references(region_until=[0.0, 0.0], region=[box(0, 16), None])))
    assert torch.equal(late, plain)


def test_a_plan_for_every_stretch_and_no_other() -> None:
    from mip_adapter.weights.sites import unet_sites

    key = unet_sites(bundle().model.model.diffusion_model)[0].key
    for regions, plans in (([None, None], 1), ([box(0, 16), None], 2), ([box(0, 16), box(16, 32)], 3)):
        model = graphs.apply(references(region_until=[0.2, 0.5], region=regions))
        patch = model.model_options["transformer_options"]["patches_replace"]["attn2"][key]
        assert len(patch.schedule.plans) == plans


def test_plans_of_stretches_share_no_work_at_the_sites() -> None:
    """The noise level is not asked for, hence no device sync, unless something depends on it."""
    from mip_adapter.attention.plan import Plan
    from mip_adapter.attention.schedule import ActiveSet, ObjectTiming, PercentRange, Schedule

    def never(_: PercentRange) -> bool:
        raise AssertionError

    here, silent = ("output", 1, 0), ("output", 2, 0)
    plan = Plan(("a", "b"), None, "image", 1.0, torch.ones(2, 1, 1), None, {here: None})  # pyright: ignore[reportArgumentType]
    assert Schedule.always(plan).at(never, here) == ((0, 1), plan) and Schedule.always(plan).at(never, silent) is None
    timed = Schedule((ObjectTiming(PercentRange(0.2, 0.5)),) * 2, {ActiveSet((0, 1), (0, 1)): plan})
    assert timed.at(lambda _: True, here) == ((0, 1), plan) and timed.at(lambda _: False, here) is None
    # At one noise level of several moments both may act, though there is no moment at which they do.
    apart = Schedule(
        (ObjectTiming(PercentRange(0.0, 0.4)), ObjectTiming(PercentRange(0.6, 1.0))),
        {ActiveSet((i,), (i,)): plan for i in (0, 1)},
    )
    assert apart.at(lambda _: True, here) == ((0,), plan)


def test_the_record_covers_all_objects() -> None:
    model, record = applied(references(NAMES, start_percent=[0.0, 0.0, 0.5], end_percent=[1.0, 0.5, 1.0]))
    sample(model, STEPS)
    early, late = record.shares(phase="early"), record.shares(phase="late")
    assert not early[2].any() and not late[1].any() and early[1].min() > 0 and late[2].min() > 0
    torch.testing.assert_close(record.shares().sum(0), torch.ones(1, 8, 8))
    assert 0 < record.evenness().min() <= record.evenness().max() <= 1


# ---- two passes ----


def applied(chain=None, **merge):
    """(MODEL, MIP_RELEVANCE) of MIPApply."""
    from mip_adapter.attention.options import Merge
    from mip_adapter.nodes.apply import MIPApply

    frozen, parts = merge.pop("frozen", None), bundle()
    model = merge.pop("model", parts.model)
    with torch.inference_mode():
        return MIPApply.execute(
            model, parts.clip, parts.vision, parts.adapters["base"], chain or references(), 1.0, 0.0, 1.0,
            Merge(**merge), None, frozen,
        ).args  # fmt: skip


def first_pass(batch: int = 1, **merge):
    """(frozen maps, the first pass's live record)"""
    from mip_adapter.nodes.freeze import MIPFreezeRelevance

    model, record = applied(**merge)
    latent = {"samples": sample(model, 3, batch=batch, size=(24, 16), seed=3)}
    frozen, passed_on = MIPFreezeRelevance.execute(record, latent).args
    assert passed_on is latent
    return frozen, record


class Frozen(DirectPatch):
    """The definition with shares from maps [M, H, W] instead of a measurement, resampled by Pillow."""

    def __init__(self, maps, *given) -> None:
        super().__init__(*given)
        self.maps = maps

    def __call__(self, q, k, v, options):
        size = tuple(options["activations_shape"][-2:])
        shares = torch.stack([torch.from_numpy(region_at(m, SIZE, None, size).copy()).double() for m in self.maps])
        nobody = (1 - shares.sum(0)).clamp(min=0)
        direct = self.direct

        def shared(relevance, regions=None, strategy=None):
            flat = bool((relevance == relevance[0, 0]).all())  # the unconditional branch
            if flat:
                return Direct.shares(direct, relevance, regions, strategy)
            a, p = shares * len(shares), direct.sharpness
            share = a**p / ((a**p).sum(0) + (nobody * len(shares)) ** p + direct.background)
            return share * len(shares) if direct.normalization == "mean" else share

        object.__setattr__(direct, "shares", shared)
        try:
            return super().__call__(q, k, v, options)
        finally:
            object.__delattr__(direct, "shares")


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ({}, {}),
        ({"background": 1.0}, {}),
        ({"measure": "pool"}, {"measure": "pool"}),
        ({"normalization": "mean"}, {"normalization": "mean"}),
        ({"background": 0.5}, {"sharpness": 3.0, "background": 0.7}),
        ({"unclaimed": 1.0, "measure": "pool"}, {"unclaimed": 1.0, "measure": "pool"}),
    ],
    ids=str,
)
def test_frozen_maps_are_the_shares(first: dict, second: dict) -> None:
    frozen, _ = first_pass(**first)
    maps = frozen.shares()[:, 0]
    model, record = applied(frozen=frozen, **second)
    expected = graphs.apply_directly(merge=second)
    slots = expected.model_options["transformer_options"]["patches_replace"]["attn2"]
    for key, patch in slots.items():
        slots[key] = Frozen(maps, patch.direct, patch.attention2, patch.number, patch.branch, SIZE)
    assert deviation(sample(model), sample(expected), sample(bundle().model)) < 2 * TOLERANCE  # Pillow resamples
    if not second:
        torch.testing.assert_close(record.shares().mean(), maps.mean(), atol=1e-3, rtol=0)
    assert record.frozen and not frozen.frozen


def test_maps_frozen_are_kept() -> None:
    from mip_adapter.relevance.observation import RunId

    frozen, record = first_pass()
    before = frozen.shares()
    model, second = applied(frozen=frozen)
    sample(model, seed=1)
    sample(applied()[0], seed=9)
    record.add(RunId(object(), 1), 0, torch.zeros(1, dtype=torch.long), 2, [])  # the first model samples again
    assert torch.equal(frozen.shares(), before) and record.runs == 2
    one = second.shares((4, 4))
    sample(model, seed=2)
    torch.testing.assert_close(second.shares((4, 4)), one)  # whatever is sampled, the shares stay


def test_frozen_batches_and_areas() -> None:
    import nodes

    frozen, _ = first_pass(batch=2)
    model, _ = applied(frozen=frozen)
    both = sample(model, batch=2)
    swapped, _ = first_pass(batch=2)
    for sums in swapped._shares.values():
        sums.total = sums.total.flip(2)
    assert not torch.allclose(sample(applied(frozen=swapped)[0], batch=2), both)
    with pytest.raises(ValueError, match="maps are of 2 pictures and this sampling makes 1"):
        sample(model, batch=1)
    one, _ = first_pass()
    left, right = (
        nodes.ConditioningSetArea().append(prompt("a cat"), 64, 128, x, 0, 1.0)[0] for x in (0, 64)
    )  # half of the canvas each
    model, record = applied(frozen=one)
    sample(graphs.guide(model, positive=left + right))
    whole, again = applied(frozen=one)
    sample(whole)
    got, expected = record.shares((8, 8)), again.shares((8, 8))
    off, off_mirrored = ((each - expected).abs().mean() for each in (got, got.flip(-1)))
    assert off < 0.03 < off_mirrored / 2


def test_sentences_for_what_cannot_be_frozen() -> None:
    from mip_adapter.nodes.freeze import MIPFreezeRelevance

    model, record = applied()
    latent = {"samples": torch.zeros(1, 4, 16, 16)}
    with pytest.raises(ValueError, match="Nothing has been recorded yet"):
        MIPFreezeRelevance.execute(record, latent)
    sample(model)
    with pytest.raises(ValueError, match="latent holds 3 pictures and the maps are of 1"):
        MIPFreezeRelevance.execute(record, {"samples": torch.zeros(3, 4, 16, 16)})
    with pytest.raises(ValueError, match="put MIP Freeze Relevance between"):
        applied(frozen=record)
    frozen = MIPFreezeRelevance.execute(record, latent).args[0]
    with pytest.raises(ValueError, match="maps are of cat, red coffee cup, and the references here are cat, dog"):
        applied(references(("cat", "dog")), frozen=frozen)
    with pytest.raises(ValueError, match="strategy is uniform"):
        applied(strategy="uniform", frozen=frozen)
    again = MIPFreezeRelevance.execute(frozen, latent).args[0]  # frozen maps may be frozen again
    assert torch.equal(again.shares(), frozen.shares())


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"start_percent": [0.5, 0], "end_percent": [0.2, 1]}, "“cat” acts from 0.5 to 0.2"),
        ({"region_until": [1.5, 1]}, "region of “cat” holds until 1.5"),
    ],
)
def test_sentences_for_ranges(given: dict, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        references(**given)


# ---- boxes as regions ----


def box_region(**given):
    from mip_adapter.nodes.region import MIPBoxRegion

    numbers = {"left": 0.25, "top": 0.5, "width": 0.25, "height": 0.5, "feather": 0.0}
    return MIPBoxRegion.execute(**{**numbers, **given}).args[0]


def test_a_typed_box() -> None:
    expected = torch.zeros(1, 256, 256)
    expected[:, 128:, 64:128] = 1
    torch.testing.assert_close(box_region(), expected)
    soft = box_region(feather=0.1)[0]
    assert (
        0 < float(soft[200, 64]) < 1 and float(soft[200, 96]) == 1 and float(soft[255, 96]) == 1
    )  # hard at the border
    assert float(soft.mean()) == pytest.approx(0.125, rel=0.02)
    for width, feather in ((0.2, 0.5), (0.01, 0.05), (0.3, 1.0)):  # however soft, its middle is white
        assert float(box_region(left=0.4, top=0.4, width=width, height=width, feather=feather).max()) > 0.8
    with pytest.raises(ValueError, match="holds nothing of the canvas"):
        box_region(width=0.0)


def test_boxes_of_other_nodes() -> None:
    from mip_adapter.evaluation.detection.detections import Detection, Detections

    picture, expected = torch.zeros(1, 80, 160, 3), box_region()
    pixels = {"x": 40, "y": 40, "width": 40, "height": 40}
    other = {"x": 0, "y": 0, "width": 40, "height": 40, "label": "dog"}
    found = Detections(("cat", "dog"), 80, 160, (((Detection((40, 40, 80, 80)),), (Detection((0, 0, 40, 40)),)),))
    for given in (
        {"boxes": pixels, "images": picture},
        {"boxes": [[{**pixels, "label": "Cat"}], [other]], "images": picture, "text": "cat"},
        {"boxes": [pixels, other], "images": picture, "number": 1},
        {"boxes": [[40, 40, 80, 80]], "images": picture, "bbox_format": "x0, y0, x1, y1"},
        {"boxes": found, "text": "cat"},
    ):
        torch.testing.assert_close(box_region(**given), expected)
    both = box_region(boxes=found)
    assert torch.equal(both, torch.maximum(expected, box_region(left=0, top=0, width=0.25, height=0.5)))
    for given, sentence in (
        ({"boxes": pixels}, "connect it as “images”"),
        ({"boxes": found, "text": "bird"}, "no box of “bird” for the region. There are boxes of cat, dog"),
        ({"boxes": found, "number": 3}, "Box 3 was asked for and there are 2"),
        ({"boxes": "cat", "images": picture}, "BOUNDING_BOX"),
    ):
        with pytest.raises(ValueError, match=sentence):
            box_region(**given)


def test_the_mask_is_a_region() -> None:
    left = box_region(left=0, top=0, width=0.5, height=1)
    half = torch.zeros(1, 16, 16)
    half[:, :, :8] = 1
    a, b = (sample(graphs.apply(references(region=[mask, None]))) for mask in (left, half))
    torch.testing.assert_close(a, b, rtol=0, atol=2e-2 * float((b - sample(graphs.apply())).abs().max()))
