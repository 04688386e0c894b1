"""Strength by block: which blocks a preset names on real UNets, lines of numbers, what a plan keeps."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mip_adapter.attention.block_strength import PRESETS, BlockStrength, blocks_of, make_block_strength
from mip_adapter.common.bars import draw_bars
from mip_adapter.weights.sites import unet_sites

from ..support.random_sites import KEY, Case, close
from ..support.sentences import told
from ..weights.test_sites import build

# Places of the blocks in the order in which they run, as IPAdapter_plus numbers them (`transformer_index`).
PUBLISHED = {
    "SDXL": {
        "style": {6: 1.0}, "composition": {3: 1.0}, "style and composition": {3: 1.0, 6: 1.0}, "subject": {5: 1.0},
        "strong style": {place: 1.0 for place in range(11) if place != 3}, "all": dict.fromkeys(range(11), 1.0),
    },
    "SD15": {
        "style": dict.fromkeys([*range(4), *range(9, 16)], 1.0), "composition": {4: 0.25, 5: 1.0},
        "style and composition": dict.fromkeys([*range(4), *range(9, 16)], 1.0) | {4: 0.25, 5: 1.0},
        "subject": dict.fromkeys([6, 7, 8], 1.0), "all": dict.fromkeys(range(16), 1.0),
        "strong style": {place: 1.0 for place in range(16) if place not in (4, 5)},
    },
}  # fmt: skip


def sites_of(kind: str):
    return unet_sites(build(kind)[1])


def places(strength: BlockStrength) -> dict[int, float]:
    return {place: value for place, value in enumerate(strength.strengths.values()) if value}


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("kind", PUBLISHED)
def test_presets_name_the_published_blocks(host, kind: str, preset: str) -> None:
    assert places(make_block_strength(sites_of(kind), preset)) == PUBLISHED[kind][preset]


def test_derivatives_have_their_familys_presets(host) -> None:
    """SSD-1B lacks the middle's attention, SD2 has SD1.5's blocks."""
    assert places(make_block_strength(sites_of("SSD1B"), "style")) == {5: 1.0}
    assert places(make_block_strength(sites_of("SD20"), "composition")) == {4: 0.25, 5: 1.0}


def test_a_line_of_numbers(host) -> None:
    sites = sites_of("SDXL")
    line = make_block_strength(sites, "style", "1, 0.5 0;0 0\n1 1 1 1 1 3")
    assert line.name == "numbers" and [*line.strengths.values()] == [1, 0.5, 0, 0, 0, 1, 1, 1, 1, 1, 3]
    assert line.at(("input", 5, 1)) == 0.5 and line.at(("output", 5, 0)) == 3
    assert places(make_block_strength(sites, numbers="3:1.0, 6:0.5")) == {3: 1.0, 6: 0.5}
    assert blocks_of(sites)[4] == ("middle", 0)


@pytest.mark.parametrize(
    "numbers, words",
    [
        ("1 1 1", ("too few", "3 for the 11 blocks", "input 4 5 7 8, middle, output 0 1 2 3 4 5")),
        ("1 " * 12, ("too many", "12 for the 11 blocks")),
        ("1 1 style", ("“style”", "0 to 3")),
        ("1 " * 10 + "nan", ("“nan”",)),
        ("1 " * 10 + "-1", ("“-1”",)),
        ("1 " * 10 + "3.1", ("“3.1”",)),
        ("11:1", ("no block “11”", "0 to 10")),
        ("x:1", ("no block “x”",)),
        ("3:", ("“”", "0 to 3")),
        ("3:1 1", ("“3:1”",)),
    ],
)
def test_numbers_that_do_not_fit(host, numbers: str, words: tuple[str, ...]) -> None:
    told(lambda: make_block_strength(sites_of("SDXL"), numbers=numbers), *words)


def test_a_preset_on_other_blocks(host) -> None:
    sites = [site for site in sites_of("SDXL") if site.key[:2] != ("output", 1)]
    told(lambda: make_block_strength(sites, "style"), "“style”", "SDXL and SD1.5", "10 blocks")
    told(lambda: make_block_strength(sites, "mood"), "mood", "composition")
    assert len(places(make_block_strength(sites))) == 10


def test_a_strength_for_another_model(host) -> None:
    made = make_block_strength(sites_of("SD15"), "style")
    told(lambda: made.check(sites_of("SDXL"), "cat"), "“cat”", "16 blocks", "has 11", "MIP Block Strength")
    made.check(sites_of("SD20"), "cat")


def test_bars_show_the_numbers() -> None:
    one, other = (draw_bars("Strength by block", {"I4": 1.0, "M0": high, "O1": 0.0}) for high in (0.5, 0.75))
    assert one.size == other.size and one.tobytes() != other.tobytes()
    assert draw_bars("Nothing", {"I4": 0.0}).width > 0


# ---- plans ----


def by_block(*strengths: float) -> tuple[BlockStrength, ...]:
    """One for each object, of a UNet of two blocks."""
    return tuple(BlockStrength("numbers", {KEY[:2]: each, ("output", 0): 1.0}) for each in strengths)


cases = st.builds(
    Case, seed=st.integers(0, 999), objects=st.integers(1, 4), tokens=st.sampled_from((1, 4)),
    gate=st.sampled_from(("image", "text", "off")), regional=st.booleans(),
)  # fmt: skip


@settings(max_examples=40)
@given(cases, st.data())
def test_a_strength_is_a_weight_at_its_site(case: Case, data) -> None:
    strength = st.sampled_from((0.0, 0.5, 1.0, 2.0))
    strengths = data.draw(st.lists(strength, min_size=case.objects, max_size=case.objects))
    if any(strengths):
        weights = tuple(data.draw(st.lists(st.floats(0, 2), min_size=case.objects, max_size=case.objects)))
        multiplied = tuple(w * s for w, s in zip(weights, strengths, strict=True))
        got = replace(case, weights=weights, blocks=by_block(*strengths)).fused((True, False))
        close(got, replace(case, weights=multiplied).defined((True, False)))


def test_a_silent_site_has_no_plan() -> None:
    for regional in (False, True):
        plan, _ = Case(blocks=by_block(0.0, 0.5), regional=regional).plan()
        assert set(plan.site_plans) == {KEY} and plan.null_sets == (2 if regional else 1)
        assert not Case(blocks=by_block(0.0, 0.0), regional=regional).plan()[0].site_plans


def test_a_strength_of_one_changes_no_bit() -> None:
    for regional in (False, True):
        case = Case(regional=regional)
        assert torch.equal(replace(case, blocks=by_block(1.0, 1.0)).fused((True, False)), case.fused((True, False)))
