"""The ablation's numbers follow from its lines, and its page says what they say."""

from __future__ import annotations

import json
import lzma
import re

import numpy as np
import pytest
from mip_adapter.research.ablation import arms, page, table
from mip_adapter.research.miniature import trained


def line(arm, trial, own, seed=0, measure="picture", scale=0.75, plain=(True, False), **more):
    present = [each is not None for each in own]
    more["plain"] = list(plain)
    of = {"margin": 0.1, "error": 0.2, "pattern": True, "clear": True, "confused": False}
    lists = {name: [value if there else None for there in present] for name, value in of.items()}
    row = {"own": own, "present": present, "count": sum(present), "clip_t": 1.0, "clip_i": 0.5, **lists, **more}
    return {"key": [measure, arm, seed, 2, scale, trial], **row}


def test_binding_counts_found_objects_and_bound_counts_all():
    rows = [line("stock + uniform", 0, [True, None]), line("stock + uniform", 1, [True, False])]
    (row,) = table.summarise(rows, 0.75)["2 objects"]["equal"]
    assert row["binding"]["value"] == pytest.approx(2 / 3) and row["bound"]["value"] == pytest.approx(2 / 4)
    assert row["present"]["value"] == pytest.approx(3 / 4) and row["all present"]["value"] == 0.5
    assert row["bound, plain"]["value"] == 1 and row["bound, two-coloured"]["value"] == 0
    assert (row["prompts"], row["pictures"]) == (2, 2)


def test_intervals_draw_prompts_and_seeds():
    """As a loop that draws both with replacement and counts every cell as often as its prompt and its seed came."""
    rng = np.random.default_rng(1)
    rows, counted = [], np.zeros((2, 3, 60))
    for prompt in range(60):
        easy = rng.random()
        for seed in range(3):
            own = [bool(rng.random() < easy - 0.1 * seed), None if rng.random() < 0.2 else bool(rng.random() < easy)]
            rows.append(line("stock + uniform", prompt, own, seed))
            counted[:, seed, prompt] = sum(filter(None, own)), sum(each is not None for each in own)
    rng, drawn = np.random.default_rng(2), []
    for _ in range(3000):
        seeds, prompts = rng.integers(3, size=3), rng.integers(60, size=60)
        bound, of = counted[:, seeds][:, :, prompts].sum((1, 2))
        drawn.append(bound / of)
    (row,) = table.summarise(rows, 0.75)["2 objects"]["equal"]
    bound, of = counted.sum((1, 2))
    assert row["binding"]["value"] == pytest.approx(bound / of)
    low, high = np.percentile(drawn, (2.5, 97.5))
    assert (row["binding"]["low"], row["binding"]["high"]) == pytest.approx((low, high), abs=0.02)
    bound, of = counted.sum(2)
    assert list(row["binding"]["by seed"].values()) == pytest.approx(list(bound / of))


def test_intervals_draw_prompts_within_their_seeds():
    """As a loop that draws seeds, and for each draw of one its own prompts."""
    rng = np.random.default_rng(3)
    rows, counted = [], np.zeros((2, 3, 20))
    for prompt in range(60):
        own = [bool(rng.random() < 0.3 + 0.2 * (prompt % 3)), None if rng.random() < 0.2 else bool(rng.random() < 0.5)]
        rows.append(line("stock + uniform", prompt, own, prompt % 3))
        counted[:, prompt % 3, prompt // 3] = sum(filter(None, own)), sum(each is not None for each in own)
    drawn = []
    for _ in range(3000):
        parts = [counted[:, seed, rng.integers(20, size=20)].sum(1) for seed in rng.integers(3, size=3)]
        bound, of = np.sum(parts, 0)
        drawn.append(bound / of)
    (row,) = table.summarise(rows, 0.75)["2 objects"]["equal"]
    low, high = np.percentile(drawn, (2.5, 97.5))
    assert (row["binding"]["low"], row["binding"]["high"]) == pytest.approx((low, high), abs=0.02)


def test_intervals_hold_the_truth_where_seeds_are_alike():
    rng = np.random.default_rng(4)
    held = 0
    for _ in range(100):
        rows = [line("stock + uniform", p, [bool(rng.random() < 0.7), True], p % 3) for p in range(90)]
        bound = table.summarise(rows, 0.75)["2 objects"]["equal"][0]["bound"]
        held += bound["low"] <= 0.85 <= bound["high"]
    assert held >= 93


def test_seeds_that_differ_make_wide_intervals():
    """Every seed has prompts of its own, as when they are shared out."""

    def width(wins):
        rows = [line("stock + uniform", p, [p // 3 % 10 < wins[p % 3], True], p % 3) for p in range(300)]
        binding = table.summarise(rows, 0.75)["2 objects"]["equal"][0]["binding"]
        return binding["high"] - binding["low"]

    assert width((9, 5, 1)) > 2 * width((5, 5, 5))


def test_effects_compare_the_same_prompts_and_seeds():
    rows = [line("stock + relevance", prompt, [True, True]) for prompt in range(10)]
    rows += [line("stock + uniform", prompt, [True, prompt < 5]) for prompt in range(8)]
    rows += [line("stock + uniform", prompt, [False, False], seed=1) for prompt in range(8)]
    tables = table.summarise(rows, 0.75)["2 objects"]
    (effect,) = tables["effects"]
    assert effect["effect"] == arms.MERGING.name
    assert effect["prompts"] == 8 and effect["binding"]["value"] == pytest.approx(1 - 13 / 16)
    assert effect["binding"]["low"] > 0 and list(effect["binding"]["by seed"]) == [0]


def test_binding_in_all_counts_what_every_compared_arm_drew():
    rows = [line("stock + relevance", p, [True, None if p % 2 else True]) for p in range(8)]
    rows += [line("stock + uniform", p, [False, p % 2 == 0]) for p in range(8)]
    (effect,) = table.summarise(rows, 0.75)["2 objects"]["effects"]
    assert effect["binding in all"]["value"] == pytest.approx(1 - 4 / 12)  # of 16 objects four are missing on one side
    assert effect["binding"]["value"] == pytest.approx(1 - 4 / 16)


def test_how_much_more_one_change_does_than_another():
    rows = []
    for arm, wins in {"stock + uniform": 2, "stock + relevance": 7, "mip + relevance": 8}.items():
        rows += [line(arm, p, [p % 10 < wins, True], p % 3) for p in range(90)]
    effects = {row["effect"]: row for row in table.summarise(rows, 0.75)["2 objects"]["effects"]}
    more = effects["merging more than training"]["bound"]
    assert more["value"] == pytest.approx((5 - 1) / 20) and more["low"] < more["value"] < more["high"]
    assert list(more["by seed"].values()) == pytest.approx([4 / 20] * 3)


def tuned(arm, best, prompts=48):
    return [line(arm.name, p, [True, s == best], measure="tune", scale=s) for p in range(prompts) for s in arm.scales]


def test_the_best_scale_is_the_one_that_binds_most():
    arm = next(arm for arm in arms.ARMS if arm.name == "stock + uniform")
    assert table.best_scale(tuned(arm, 1.0), arm, 2) == (1.0, "")
    assert table.best_scale(tuned(arm, arm.scales[-1]), arm, 2) == (arm.scales[-1], "≥")
    assert table.best_scale(tuned(arm, 1.0, 47), arm, 2) is None
    assert table.best_scale(tuned(arm, 1.0), arm, 3) is None
    assert [arms.prompts_to_choose(objects) for objects in (2, 3, 4)] == [48, 32, 24]  # 96 objects


def test_best_scales_have_tables_of_their_own():
    one, other = (next(arm for arm in arms.ARMS if arm.name == f"stock + {name}") for name in ("relevance", "uniform"))
    rows = tuned(one, 1.4) + tuned(other, 0.5)
    rows += [line(one.name, p, [True, True], scale=1.4) for p in range(9)]
    rows += [line(other.name, p, [True, False], scale=0.5) for p in range(9)]
    tables = table.summarise(rows, 0.75)["2 objects"]
    assert [(row["scale"], row["edge"]) for row in tables["best"]] == [(0.5, "≤"), (1.4, "")] and not tables["equal"]
    (effect,) = tables["effects at best scales"]
    assert effect["bound"]["value"] == 0.5 and table.is_sure(effect["bound"])


def test_scale_0_is_no_references():
    """It is chosen where nothing above it binds more; its pictures stand for the arm's. A head on the text has none."""
    one, text = (next(arm for arm in arms.ARMS if arm.name == name)
                 for name in ("stock + uniform", "mip + relevance, head on text"))  # fmt: skip
    alone = [line(arms.NO_REFERENCES, p, [True, p % 2 == 0], measure="tune", scale=0.0) for p in range(48)]
    weak = [{**row, "own": [False, row["own"][1]]} for row in tuned(one, 1.0)]  # half of them at most
    assert table.best_scale(weak + alone, one, 2) == (0.0, "") and table.best_scale(weak, one, 2) == (1.0, "")
    assert table.best_scale(tuned(one, 1.0) + alone, one, 2) == (1.0, "")
    assert table.best_scale([{**row, "own": [False, False]} for row in tuned(text, 1.0)] + alone, text, 2) == (0.5, "≤")
    drawn = [line(arms.NO_REFERENCES, p, [True, False], p % 3) for p in range(9)]
    tables = table.summarise(weak + alone + drawn, 0.75)["2 objects"]
    assert [(row["arm"], row["scale"], row["bound"]["value"]) for row in tables["best"]] == [
        (arms.NO_REFERENCES, 0, 0.5), (one.name, 0, 0.5)
    ]  # fmt: skip
    (gain,) = tables["gains at best scales"]
    assert gain["to"] == (one.name,) and gain["bound"]["value"] == gain["bound"]["high"] == 0


def test_the_parts_of_an_effect():
    """From 4 of 8 there, half of them bound, to 8 of 8 there, three quarters of them bound."""
    rows = [line("stock + uniform", p, [p % 2 == 0, None], p % 3) for p in range(24)]
    rows += [line("stock + relevance", p, [True, p % 2 == 0], p % 3) for p in range(24)]
    (effect,) = table.summarise(rows, 0.75)["2 objects"]["effects"]
    assert effect["bound"]["value"] == pytest.approx(0.75 - 0.25)
    assert effect["through presence"]["value"] == pytest.approx((0.5 * 0.5 + 0.5 * 0.75) / 2)
    assert effect["through binding"]["value"] == pytest.approx((0.5 * 0.25 + 1 * 0.25) / 2)
    assert effect["through presence"]["by seed"] == pytest.approx({seed: 0.3125 for seed in range(3)})


def test_intervals_over_kind_pairs_draw_whole_pairs():
    """Where prompts of a pair fare alike, its interval is much wider than that over prompts."""
    pairs = arms.kind_pairs(300, 2)
    assert sorted(set(pairs)) == list(range(10))
    rows = [line("stock + uniform", p, [pairs[p] % 2 == 0, True], p % 3) for p in range(300)]
    bound = table.summarise(rows, 0.75)["2 objects"]["equal"][0]["bound"]
    assert bound["high by pair"] - bound["low by pair"] > 2 * (bound["high"] - bound["low"])
    assert bound["low by pair"] < bound["value"] < bound["high by pair"]


def test_an_effect_is_sure_only_if_every_seed_agrees():
    rows = []
    for p in range(300):
        rows.append(line("stock + uniform", p, [True, p % 3 == 2], p % 3))
        rows.append(line("stock + relevance", p, [True, p % 3 < 2], p % 3))
    (effect,) = table.summarise(rows, 0.75)["2 objects"]["effects"]
    assert effect["bound"]["value"] == pytest.approx(1 / 6) and not table.is_sure(effect["bound"])
    rows = [row for row in rows if row["key"][2] < 2]
    (effect,) = table.summarise(rows, 0.75)["2 objects"]["effects"]
    assert table.is_sure(effect["bound"])


def test_the_page_says_what_the_numbers_say():
    rows = [
        line(arm, prompt, [True, prompt % 4 < wins])
        for arm, wins in {"stock + concat": 1, "stock + uniform": 1, "stock + relevance": 3,
                          "uniform-trained + uniform": 1, "mip + relevance": 4}.items()
        for prompt in range(40)
    ]  # fmt: skip
    results = table.summarise(rows, 0.75)
    settings = {
        "prompts": {"2 objects": 40}, "every_seed": True, "base": "taught",
        "steps": 8, "guidance": 2.0, "sampler": "euler", "precision": "fp32",
    }  # fmt: skip
    made = page.markdown(results, settings)
    assert json.loads(json.dumps(results))
    verdict = next(text for text in made.splitlines() if text.startswith("**Merging or training?**"))
    assert "+25.0" in verdict and "+37.5" in verdict and "+12.5" in verdict
    assert "Fewer than 3 training seeds" in made and "Fewer pictures than prompts" not in made
    assert "prompts** so far, see there: 2 objects (all arms)" in page.markdown(
        results, settings | {"prompts": {"2 objects": 41}}
    )
    tables = [text for text in made.splitlines() if text.startswith("| ")]
    assert any("**mip + relevance**" in text for text in tables)
    assert "nan" not in made and "What the miniature cannot tell" in made


def test_the_page_says_how_many_prompts_the_lines_are_of():
    shared = [line("stock + uniform", trial, [True], seed=trial % 3) for trial in range(7)]
    assert table.prompts_of(shared) == {"prompts": {"2 objects": 7}, "every_seed": False}
    assert table.prompts_of([*shared, line("stock + uniform", 4, [True], seed=2)])["every_seed"]


@pytest.mark.parametrize(("base", "name"), [("taught", "ablation.md"), ("unaided", "ablation-unaided.md")])
def test_the_shipped_page_is_made_of_the_shipped_lines(host, base, name):
    """But for the intervals, whose draws another NumPy may make otherwise."""
    from mip_adapter.research.ablation import command

    folder = trained.RESEARCH.parent / page.PAGES[base].folder
    with lzma.open(folder / "lines.jsonl.xz", "rt") as lines:
        rows = [json.loads(text) for text in lines]
    given = command._parser().parse_args([])
    plan = json.loads((folder / "plan.json").read_text())
    settings = table.prompts_of(rows) | {each: plan[each] for each in command.SETTINGS}
    assert command.base_of(plan) == base
    made = page.markdown(table.summarise(rows, given.scale), settings | {"base": base})
    shipped = (trained.RESEARCH.parent / "docs" / name).read_text("utf-8")
    assert re.sub(r" \[[^]]*\]", "", made) == re.sub(r" \[[^]]*\]", "", shipped)
