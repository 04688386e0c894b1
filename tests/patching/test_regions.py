"""Regional prompting and regions: several positives, areas of the canvas, masks; what each site sees of a region.

The region at a site is computed by Pillow here and by the pack's own resizing there.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ..support import graphs
from ..support.graphs import SIZE, bundle, compare, deviation, guide, prompt, references, sample

pytestmark = pytest.mark.usefixtures("host")
ORDER = ("positive", "negative")


def box(height: int, width: int, top: int, left: int, bottom: int, right: int) -> torch.Tensor:
    """MASK [1, height, width] that is white in a box."""
    mask = torch.zeros(1, height, width)
    mask[:, top:bottom, left:right] = 1
    return mask


def slope(height: int = 32, width: int = 48) -> torch.Tensor:
    """MASK that fades from left to right."""
    return torch.linspace(0, 1, width).expand(1, height, width).contiguous()


LEFT, RIGHT = box(64, 64, 0, 0, 64, 36), box(64, 64, 0, 28, 64, 64)


def regional(*regions) -> tuple:
    return references(region=regions)


def area(cond, height, width, y, x, strength=1.0):
    """ConditioningSetArea, in pixels"""
    import nodes

    return nodes.ConditioningSetArea().append(cond, width * 8, height * 8, x * 8, y * 8, strength)[0]


def percentage(cond, height, width, y, x):
    import nodes

    return nodes.ConditioningSetAreaPercentage().append(cond, width, height, x, y, 1.0)[0]


def masked(cond, mask, bounds="default"):
    import nodes

    return nodes.ConditioningSetMask().append(cond, mask, bounds, 1.0)[0]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_in_a_region_of_its_own_an_object_takes_over_however_small_its_joint_share_was(dtype) -> None:
    from mip_adapter.attention.merge import concat_attention, log_region

    queries = torch.full((1, 4, 3), 2.0, dtype=dtype)  # [h, d, P]
    keys = torch.stack([torch.full((4,), value, dtype=dtype) for value in (2.0, 2.0, 0.1, 0.1)])[None]  # logits 16, 0.8
    region = torch.tensor([[[0.0, 1.0, 0.0]], [[1.0, 0.5, 0.0]]], dtype=dtype)  # 2nd's; both's; nobody's
    got = (concat_attention(queries, keys, log_region(region)) * region.amax(0))[0, 0].double()  # [M·T, P]
    least = 0.5 * math.exp(0.8) / (math.exp(16.0) + 0.5 * math.exp(0.8)) / 2
    expected = torch.tensor([[0, 0.5, 0], [0, 0.5, 0], [0.5, least, 0], [0.5, least, 0]], dtype=torch.double)
    torch.testing.assert_close(got, expected, atol=2e-3, rtol=0)


@pytest.mark.parametrize("strategy", ["relevance", "uniform", "sum", "concat"])
def test_strategies(strategy: str) -> None:
    compare(guide, chain=regional(LEFT, RIGHT), merge={"strategy": strategy})


@pytest.mark.parametrize(
    "options",
    [
        {"merge": {"background": 1.0, "sharpness": 2.0}},
        {"merge": {"unclaimed": 1.0, "sharpness": 3.0}},
        {"merge": {"unclaimed": 1.0, "measure": "pool"}},
        {"merge": {"normalization": "mean"}, "family": "plus"},
        {"head": {"gate": "text"}},
        {"head": {"gate": "off"}},
    ],
    ids=str,
)
def test_choices(options: dict) -> None:
    compare(guide, chain=regional(LEFT, slope(64, 64)), **options)


@pytest.mark.parametrize("regions", [(LEFT, None), (None, slope()), (slope(), 1 - slope()), (slope() / 2, slope() / 3)])
def test_one_object_may_act_everywhere(regions: tuple) -> None:
    compare(guide, chain=regional(*regions))


@pytest.mark.parametrize("size", [(13, 9), (7, 31), (32, 5)], ids=str)
@pytest.mark.parametrize("region", [(64, 64), (20, 90), (3, 2)], ids=str)
def test_any_canvas_and_any_mask(size: tuple[int, int], region: tuple[int, int]) -> None:
    """A region is stretched to the canvas."""
    compare(guide, chain=regional(slope(*region), 1 - slope(*region)), sampling={"size": size, "steps": 1})


def test_batches() -> None:
    compare(guide, chain=regional(LEFT, RIGHT), sampling={"batch": 3})


def test_several_positives_with_masks() -> None:
    """ConditioningSetMask and ConditioningCombine: rows [0, 0, 1], all of them over the whole canvas."""
    cat, cup = masked(prompt("a cat"), LEFT), masked(prompt("a red coffee cup"), RIGHT)
    for chain in (references(), regional(LEFT, RIGHT)):
        compare(lambda model: guide(model, cat + cup + prompt("a table")), chain=chain)


def test_default_cond_for_the_rest_of_the_canvas() -> None:
    """ConditioningSetDefaultAndCombine: the host evaluates the default for what no mask covers."""
    import comfy.hooks

    cat, table = masked(prompt("a cat"), box(64, 64, 0, 0, 64, 30)), prompt("a table")
    both = comfy.hooks.set_default_conds_and_combine([cat], [table])[0]
    assert any("default" in options for _, options in both)
    compare(lambda model: guide(model, both), chain=regional(LEFT, RIGHT))


AREAS = {
    "halves": lambda: area(prompt("a cat"), 16, 8, 0, 0) + area(prompt("a cup"), 16, 8, 0, 8),
    "sizes": lambda: area(prompt("a cat"), 8, 8, 0, 0) + area(prompt("a cup"), 12, 6, 3, 9) + prompt("a table"),
    "over the edge": lambda: area(prompt("a cat"), 16, 16, 4, 6) + prompt("a table"),
    "percentage": lambda: percentage(prompt("a cat"), 0.5, 0.63, 0.37, 0.1) + prompt("a table"),
}
IN_PIXELS = {"percentage": [(8, 10, 6, 2), None]}  # of 16 × 16


@pytest.mark.parametrize("strategy", ["relevance", "concat"])
@pytest.mark.parametrize("kind", AREAS)
def test_areas(kind: str, strategy: str) -> None:
    """Each evaluation sees its part of the canvas, and its part of the regions."""
    chain = regional(box(64, 64, 0, 0, 64, 20), slope(64, 64))
    conds, said = AREAS[kind](), IN_PIXELS.get(kind)
    compare(lambda model: guide(model, conds), order=ORDER, areas=said, chain=chain, merge={"strategy": strategy})


def test_areas_without_regions() -> None:
    conds = AREAS["sizes"]()
    compare(lambda model: guide(model, conds), order=ORDER)


def test_areas_in_separate_calls(monkeypatch) -> None:
    conds = AREAS["sizes"]()
    graphs.little_memory(monkeypatch)
    compare(lambda model: guide(model, conds), order=ORDER, chain=regional(LEFT, RIGHT))


def test_mask_bounds() -> None:
    """ConditioningSetMask with "mask bounds": the host makes an area of the mask's box when it samples."""
    cat = masked(prompt("a cat"), box(*SIZE, 2, 3, 13, 14), "mask bounds") + prompt("a table")
    areas = [(11, 11, 2, 3), None]
    compare(lambda model: guide(model, cat), order=ORDER, areas=areas, chain=regional(LEFT, RIGHT))


def test_area_beyond_perturbed_attention() -> None:
    from comfy_extras.nodes_pag import PerturbedAttentionGuidance

    conds = AREAS["sizes"]()
    compare(
        lambda model: guide(PerturbedAttentionGuidance.execute(model, 2.0).args[0], conds, cfg=1.0),
        chain=regional(LEFT, RIGHT),
    )


@settings(max_examples=15, deadline=None, derandomize=True)
@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 3), st.sampled_from(["relevance", "concat"]))
def test_any_canvas_keeps_its_shape(height: int, width: int, batch: int, strategy: str) -> None:
    model = graphs.apply(regional(slope(), None), merge={"strategy": strategy})
    latent = sample(model, 1, size=(height, width), batch=batch)
    assert latent.shape == (batch, 4, height, width) and latent.isfinite().all()


def test_one_region_everywhere_is_none() -> None:
    white = torch.ones(1, 10, 10)
    results = [sample(model) for model in (graphs.apply(regional(white, white)), graphs.apply(), bundle().model)]
    assert deviation(*results) < graphs.TOLERANCE


def test_an_object_does_not_act_outside_its_region() -> None:
    """Z is Z_text where no region is white: one object in the left half changes nothing in the right half of a site."""
    from mip_adapter.attention.site import RowGroup, SiteConstants, fuse
    from mip_adapter.weights.sites import unet_sites

    region = torch.zeros(1, 64).index_fill_(1, torch.arange(32), 1.0)
    for strategy in ("relevance", "uniform", "sum", "concat"):
        model = graphs.apply(regional(LEFT, LEFT), merge={"strategy": strategy}, head={"gate": "off"})
        site = unet_sites(bundle().model.model.diffusion_model)[0]
        patch = model.model_options["transformer_options"]["patches_replace"]["attn2"][site.key]
        q, text = torch.randn(2, 1, 64, site.width, generator=torch.Generator().manual_seed(0))
        to_k = bundle().model.model.diffusion_model.input_blocks[site.key[1]][1].transformer_blocks[0].attn2.to_k
        for conditional in (True, False):
            (plan,) = patch.schedule.plans.values()
            rows = RowGroup(0, 1, conditional, SiteConstants.from_plan(plan, region.expand(2, 1, 64)))
            compiled = plan.site_plans[site.key]
            with torch.inference_mode():
                keys = partial(to_k, compiled.content_tokens)
                out = fuse(text.clone(), text, q, plan, compiled, (rows,), keys)
            assert torch.equal(out[:, 32:], text[:, 32:]) and not torch.allclose(out[:, :32], text[:, :32])


def by_frame(*columns: tuple[int, int]) -> torch.Tensor:
    """MASK [K, 32, 32]: in picture i the columns from, to are white."""
    return torch.cat([box(32, 32, 0, start, 32, stop) for start, stop in columns])


FRAMES = (0, 12), (10, 22), (24, 32)


def in_each(model, **options) -> torch.Tensor:
    return sample(model, batch=len(FRAMES), **options)


@pytest.mark.parametrize("strategy", ["relevance", "uniform", "sum", "concat"])
def test_a_mask_for_each_picture(strategy: str) -> None:
    """Every picture is what the same batch gives with its mask for all."""
    masks = by_frame(*FRAMES)
    options: dict[str, Any] = {"merge": {"strategy": strategy}}
    got = in_each(graphs.apply(regional(masks, RIGHT), **options))
    expected = torch.cat([
        in_each(graphs.apply(regional(masks[i : i + 1], RIGHT), **options))[i : i + 1] for i in range(len(FRAMES))
    ])  # fmt: skip
    assert deviation(got, expected, in_each(bundle().model)) < graphs.TOLERANCE
    united = in_each(graphs.apply(regional(masks.amax(0, keepdim=True), RIGHT), **options))
    assert deviation(united, expected, in_each(bundle().model)) > 100 * graphs.TOLERANCE


def test_masks_for_each_picture_of_two_objects_in_windows_and_areas() -> None:
    """In the host's context windows; and where conds cover areas of the canvas."""
    one, other = by_frame(*FRAMES), by_frame(*FRAMES).flip(-1)
    chain = regional(one, other)
    whole, without = in_each(graphs.apply(chain), steps=2), in_each(bundle().model, steps=2)
    windows = in_each(graphs.in_windows(graphs.apply(chain), 2, fuse="flat"), steps=2)
    assert deviation(windows, whole, without) < graphs.TOLERANCE
    conds = AREAS["halves"]()
    got = in_each(guide(graphs.apply(chain), conds))
    expected = torch.cat([
        in_each(guide(graphs.apply(regional(one[i : i + 1], other[i : i + 1])), conds))[i : i + 1] for i in range(3)
    ])  # fmt: skip
    assert deviation(got, expected, in_each(guide(bundle().model, conds))) < graphs.TOLERANCE


def test_an_object_that_is_absent_from_some_pictures() -> None:
    """Black masks: the object does not act in them; grey ones make it weaker."""
    masks = torch.stack([torch.zeros(8, 8), torch.ones(8, 8), torch.full((8, 8), 0.4)])
    got = in_each(graphs.apply(references(["cat"], region=[masks]), head={"gate": "off"}))
    without, full = in_each(bundle().model), in_each(graphs.apply(references(["cat"]), head={"gate": "off"}))
    torch.testing.assert_close(got[0], without[0], atol=1e-5, rtol=0)
    torch.testing.assert_close(got[1], full[1], atol=1e-4, rtol=0)
    effect = (full[2] - without[2]).norm()
    assert 0.1 < (got[2] - without[2]).norm() / effect < 0.9


def test_masks_of_another_number_of_pictures_are_refused() -> None:
    masks = by_frame(*FRAMES)
    for batch in (1, 2, 4):
        with pytest.raises(ValueError, match=f"for 3 pictures and this sampling makes {batch}: one mask is for all"):
            sample(graphs.apply(regional(masks, None)), 1, batch=batch)
    with pytest.raises(ValueError, match="not as many for each object: 3 for “cat” and 2 for “red coffee cup”"):
        graphs.apply(regional(masks, masks[:2]))


def test_masks_of_a_long_animation_are_kept_small() -> None:
    from mip_adapter.patching.encode import _regions

    regions = _regions(regional(torch.ones(20, 600, 900), None))
    assert regions is not None and regions.shape == (2, 20, 171, 256)
