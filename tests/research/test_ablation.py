"""The arms: fair trials, a judge that knows, rows sampled together as alone, numbers that follow from lines."""

from __future__ import annotations

import json
import lzma
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from mip_adapter.attention.options import Merge
from mip_adapter.miniature import judgement, world
from mip_adapter.miniature.world_looks import PLAIN
from mip_adapter.miniature.world_split import has_reserved_pair, reserved_look
from mip_adapter.research.ablation import arms, page, picture_grid, table
from mip_adapter.research.miniature import seeded, trained
from safetensors.torch import save_file

# ---- trials ----


@pytest.fixture(scope="module", params=[2, 4])
def trials(request):
    return arms.make_trials(12, request.param, arms.SEED_TEST)


def test_trials_are_what_training_never_shows(trials):
    n, scenes = trials.objects, trials.scenes
    assert has_reserved_pair(scenes.kinds).all() and (scenes.counts == n).all()
    patterned = scenes.looks[:, :n][scenes.looks[:, :n, 0] > 0]
    assert reserved_look(*patterned.unbind(-1)).all()
    for i, looks in enumerate(scenes.looks[:, :n]):
        colours = [set(look[1:].tolist()) for look in looks]
        assert len(set.union(*colours)) == sum(map(len, colours)), "two references share a colour"
        assert all(text in trials.prompts[i].split(" ") + trials.prompts[i].split(", ") or text in trials.prompts[i]
                   for text in trials.texts(i))  # fmt: skip


def test_the_first_trials_do_not_depend_on_how_many_there_are(trials):
    few = arms.make_trials(5, trials.objects, arms.SEED_TEST)
    assert few.prompts == trials.prompts[:5] and few.seeds == trials.seeds[:5]
    assert torch.equal(few.references, trials.references[:5])
    assert torch.equal(few.scenes.looks, trials.scenes.looks[:5])
    assert set(few.prompts) != set(arms.make_trials(5, trials.objects, arms.SEED_TUNE).prompts)


def test_references_show_their_objects(trials):
    """The reference of object m shows colours of its look, on white."""
    for i in range(3):
        for m, picture in enumerate(trials.references[i]):
            assert picture[:, 0, 0].min() > 0.99
            plain = trials.scenes.looks[i, m, 0] == PLAIN  # then the second colour is nowhere
            for colour in trials.scenes.colours[i, m][: 1 if plain else 2]:
                assert ((picture - colour[:, None, None]).abs().amax(0) < 0.02).sum() > 50


def test_every_arm_of_an_effect_exists():
    names = {arm.name for arm in arms.ARMS}
    assert len(names) == len(arms.ARMS) and arms.METHOD in names
    assert {name for effect in arms.EFFECTS for name in effect.after + effect.before} <= names
    assert {arm.adapter for arm in arms.ARMS} == {"", *trained.KINDS}
    with pytest.raises(ValueError, match="no arm “nonsense”"):
        arms.chosen(["nonsense"], ["stock"])
    assert {arm.adapter for arm in arms.chosen(None, ["stock"])} == {"", "stock"}


# ---- the judge ----


def test_drawn_scenes_get_full_marks_and_exchanged_looks_none(trials):
    n, scenes = trials.objects, trials.scenes
    swapped = replace(
        scenes, looks=scenes.looks[:, :n].roll(1, 1), colours=scenes.colours[:, :n].roll(1, 1),
        kinds=scenes.kinds[:, :n], centres=scenes.centres[:, :n], radii=scenes.radii[:, :n], turns=scenes.turns[:, :n],
    )  # fmt: skip
    for drawn, right in ((scenes, True), (swapped, False)):
        images = world.render(drawn).images
        rows = [score(images[i], scenes, i, n) for i in range(8)]
        own = [each for row in rows for each in row["own"] if each is not None]
        confused = [each for row in rows for each in row["confused"] if each is not None]
        assert len(own) >= 0.85 * 8 * n
        clear = [each for row in rows for each in row["clear"] if each is not None]
        assert np.mean(own) == right and np.mean(confused) == (not right) and np.mean(clear) == right
        margins = [each for row in rows for each in row["margin"] if each is not None]
        assert min(margins) > 0.08 if right else max(margins) < -0.08
        if right:
            errors = [each for row in rows for each in row["error"] if each is not None]
            assert np.median(errors) < 0.02


def score(image, scenes, i, n):
    return judgement.score(image, scenes.present(i), scenes.looks[i, :n], scenes.colours[i, :n])


def test_a_plain_look_is_of_one_colour():
    """Its second colour is drawn nowhere: an object that wears it wears nobody's."""
    palette, kind = world.palette(), world.KINDS.index("star")
    looks = torch.tensor([[PLAIN, 0, 3], [PLAIN, 1, 2]])
    alone = world.sample(1, 3, (1,))
    alone = replace(alone, **{name: getattr(alone, name)[:, :1] for name in ("kinds", "centres", "radii", "turns")})

    def worn(colour):
        shown = replace(
            alone, kinds=torch.tensor([[kind]]), looks=torch.tensor([[[PLAIN, colour, colour]]]),
            colours=palette[[colour, colour]][None, None],
        )  # fmt: skip
        return judgement.score(world.render(shown).images[0], [kind, kind], looks, palette[looks[:, 1:]])

    assert worn(0)["clear"][0] and worn(0)["own"][0] and worn(0)["plain"] == [True, True]
    assert not worn(3)["clear"][0]


def test_an_empty_picture_holds_nothing(trials):
    row = score(torch.ones(3, 128, 128), trials.scenes, 0, trials.objects)
    assert row["count"] == 0 and not any(row["present"])
    assert row["own"] == [None] * trials.objects == row["margin"]


# ---- numbers ----


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
        "prompts": 40, "steps": 8, "guidance": 2.0, "sampler": "euler", "precision": "fp32", "every_seed": True
    }  # fmt: skip
    made = page.markdown(results, settings)
    assert json.loads(json.dumps(results))
    verdict = next(text for text in made.splitlines() if text.startswith("**Merging or training?**"))
    assert "+25.0" in verdict and "+37.5" in verdict and "+12.5" in verdict
    assert "Fewer than 3 training seeds" in made and "Fewer pictures than prompts" not in made
    assert "prompts** so far, see there: 2 objects (all arms)" in page.markdown(results, settings | {"prompts": 41})
    tables = [text for text in made.splitlines() if text.startswith("| ")]
    assert any("**mip + relevance**" in text for text in tables)
    assert "nan" not in made and "What the miniature cannot tell" in made


def test_the_page_says_how_many_prompts_the_lines_are_of():
    shared = [line("stock + uniform", trial, [True], seed=trial % 3) for trial in range(7)]
    assert table.prompts_of(shared) == {"prompts": 7, "every_seed": False}
    assert table.prompts_of([*shared, line("stock + uniform", 4, [True], seed=2)])["every_seed"]


def test_the_shipped_page_is_made_of_the_shipped_lines(host):
    """But for the intervals, whose draws another NumPy may make otherwise."""
    from mip_adapter.research.ablation import command

    with lzma.open(trained.RESEARCH / "ablation" / "lines.jsonl.xz", "rt") as lines:
        rows = [json.loads(text) for text in lines]
    given = command._parser().parse_args([])
    plan = json.loads((trained.RESEARCH / "ablation" / "plan.json").read_text())
    settings = table.prompts_of(rows) | {name: plan[name] for name in command.SETTINGS}
    made = page.markdown(table.summarise(rows, given.scale), settings)
    shipped = (trained.RESEARCH.parent / "docs" / "ablation.md").read_text("utf-8")
    assert re.sub(r" \[[^]]*\]", "", made) == re.sub(r" \[[^]]*\]", "", shipped)


def test_the_grid_shows_what_is_there(tmp_path):
    trials = arms.make_trials(2, 3, arms.SEED_TEST)
    red = torch.zeros(3, 128, 128)
    red[0] = 1
    picture_grid.save(red, tmp_path / "a" / "1.png")
    columns = {name: [tmp_path / name / f"{i}.png" for i in range(2)] for name in ("a", "b")}
    sheet = picture_grid.draw_grid(trials, columns)
    assert sheet is not None
    pixels = np.asarray(sheet)
    assert ((pixels == (255, 0, 0)).all(-1)).sum() == 128**2
    assert picture_grid.draw_grid(trials, {"b": columns["b"]}) is None


# ---- with the host ----


@pytest.fixture(scope="module")
def parts(host):
    from mip_adapter.miniature import comfy_bundle

    with torch.inference_mode():
        yield comfy_bundle.load()


@pytest.fixture(scope="module")
def adapters(tmp_path_factory):
    """Seeded adapters under the names of trained ones."""
    folder = tmp_path_factory.mktemp("adapters")
    for kind in ("stock", "mip"):
        file = trained.file(kind, 0, folder)
        file.parent.mkdir(parents=True, exist_ok=True)
        flat = seeded.base_adapter()
        save_file({k: v for k, v in flat.items() if kind == "mip" or "text_to_weight" not in k}, file)
    return folder


@torch.inference_mode()
def test_rows_sampled_together_are_those_sampled_alone(parts, adapters):
    """A batch of pictures with different references gives what the nodes and KSampler give one by one."""
    from mip_adapter.nodes.apply import MIPApply
    from mip_adapter.nodes.reference import MIPReference
    from mip_adapter.nodes.style import MIPStyleReference
    from mip_adapter.research import comfy_rows
    from mip_adapter.weights.adapter import load_adapter

    from nodes import common_ksampler

    model, clip, _, vision = parts
    adapter = load_adapter(trained.file("mip", 0, adapters))
    trials = arms.make_trials(3, 2, arms.SEED_TEST)
    models = []
    for i in range(3):
        chain = ()
        for picture, text in zip(trials.references[i].movedim(1, -1), trials.texts(i), strict=True):
            (chain,) = MIPReference.execute(picture[None], text, 1.0, references=chain).result
        if i == 2:
            (chain,) = MIPStyleReference.execute(trials.references[0, 0].movedim(0, -1)[None], 0.5, "all", chain).result
        merge = Merge(measure="pool" if i == 1 else "each site")
        models.append(MIPApply.execute(model, clip, vision, adapter, chain, 0.75, 0.0, 1.0, merge).result[0])
    conds = [clip.encode_from_tokens(clip.tokenize(text), return_pooled=True) for text in (*trials.prompts, "")]
    negative = comfy_rows.conditioning(conds[-1:])
    noise = comfy_rows.noise_of(trials.seeds, 16)
    positive = comfy_rows.conditioning(conds[:3])
    together = comfy_rows.sample(comfy_rows.combine(models), positive, negative, noise, 3, 2.0, "euler")
    empty = {"samples": torch.zeros(1, 4, 16, 16)}
    for i, patched in enumerate(models):
        positive = comfy_rows.conditioning(conds[i : i + 1])
        given = (patched, trials.seeds[i], 3, 2.0, "euler", "normal", positive, negative, empty)
        alone = common_ksampler(*given)[0]["samples"]
        assert torch.allclose(together[i : i + 1], alone, atol=1e-3 * float(alone.abs().max()))
        assert not torch.allclose(together[i - 1 : i or None], alone, atol=0.1 * float(alone.abs().max()))


def run(folder, adapters, *more):
    from mip_adapter.research.ablation import command

    arm = ("--arm", "stock + uniform", "--arm", "mip + relevance")
    given = ["--quick", "--objects", "2", "--output", str(folder), "--adapters", str(adapters), *arm, *more]
    return command.main(given)


def test_arms_run_stop_and_go_on(host, adapters, tmp_path, capsys):
    assert run(tmp_path, adapters) == 0
    lines = (tmp_path / "rows-0-of-1.jsonl").read_text().splitlines()
    rows = [json.loads(text) for text in lines]
    assert len(rows) == 2 * 8 * 2 and len({tuple(row["key"]) for row in rows}) == len(rows)
    for row in (row for row in rows if row["key"][0] == "real"):
        measured = row["key"][1] == "mip + relevance"
        assert row["right"] > 0 and row["swapped"] > 0 and (row["map"] is not None) == measured
    results = json.loads((tmp_path / "arms.json").read_text())
    assert {row["arm"] for row in results["2 objects"]["equal"]} == {"stock + uniform", "mip + relevance"}
    assert "mip + relevance" in (tmp_path / "arms.md").read_text()
    assert (tmp_path / "arms, 2 objects.png").stat().st_size > 10_000
    # A line cut in the middle: its batch, and only that, is made again, to the same numbers.
    (tmp_path / "rows-0-of-1.jsonl").write_text("\n".join(lines[:-1] + [lines[-1][:20]]))
    capsys.readouterr()
    assert run(tmp_path, adapters) == 0
    assert capsys.readouterr().out.count("s each") == 1
    last = json.loads((tmp_path / "rows-0-of-1.jsonl").read_text().splitlines()[-1])
    assert last == rows[-1]
    # Lines of other settings are not mixed in.
    assert run(tmp_path, adapters, "--guidance", "4") == 1
    assert "another guidance" in capsys.readouterr().err


def test_shards_share_the_batches(host, adapters, tmp_path):
    from mip_adapter.research.ablation import command

    given = command._parser().parse_args(["--output", str(tmp_path), "--adapters", str(adapters)])
    there = arms.chosen(None, ["stock", "mip"])
    shards = []
    for share in ("0/2", "1/2"):
        given.shard = share
        run = command.Run(given, there)
        shards.append([part for part in run._equal() if run._mine(part)])
    both = sorted(part.key(trial) for shard in shards for part in shard for trial in part.trials)
    assert both == sorted(part.key(trial) for part in run._equal() for trial in part.trials)
    assert len(set(both)) == len(both) == 3 * (13 * 100 + 300)  # objects; arms of one training seed, and the base alone
    assert 0.8 < len(shards[0]) / len(shards[1]) < 1.25
    for wrong in ("2/2", "1", "a/b"):
        given.shard = wrong
        with pytest.raises(ValueError, match="--shard is"):
            command.Run(given, there)


def test_every_prompt_has_one_training_seed():
    shares = arms.shared_out(10, (0, 1, 2))
    assert sorted(trial for share in shares.values() for trial in share) == list(range(10))
    assert arms.shared_out(10, (1,)) == {1: shares[1]}
    assert arms.shared_out(3, (0, 1), every_seed=True) == {0: (0, 1, 2), 1: (0, 1, 2)}


def test_arms_without_adapters_say_how_to_get_them(host, tmp_path, capsys):
    assert run(tmp_path, tmp_path) == 1
    assert "train.py --stage adapters" in capsys.readouterr().err


@torch.inference_mode()
def test_right_and_swapped_differ_by_the_references_alone(parts, adapters, tmp_path):
    """With equal references for both objects, swapping them changes nothing; with different ones it does."""
    from mip_adapter.research.ablation import comfy_maker, command

    given = command._parser().parse_args(["--adapters", str(adapters), "--prompts", "3", "--precision", "fp32"])
    maker = comfy_maker.Maker(given)
    part = comfy_maker.TrialBatch("real", arms.Arm("x", "mip", Merge("relevance"), "image"), 0, 2, 1.0, (0, 1, 2))
    rows = maker.real(part)
    assert all(abs(row["right"] - row["swapped"]) > 1e-5 for row in rows)
    assert all(0 <= row["map"] <= 1 and 0 < row["share"] < 1 for row in rows)
    trials = maker.trials(2, "real")
    same = replace(trials, references=trials.references[:, :1].expand(-1, 2, -1, -1, -1))
    maker.trials = lambda *_: same
    assert all(row["right"] == pytest.approx(row["swapped"], rel=1e-4) for row in maker.real(part))


@torch.inference_mode()
def test_sum_is_uniform_at_a_share_of_the_scale(parts, adapters):
    from mip_adapter.research.ablation import comfy_maker, command

    line = ["--adapters", str(adapters), "--prompts", "2", "--precision", "fp32"]
    maker = comfy_maker.Maker(command._parser().parse_args(line))
    added, shared = (
        maker.real(comfy_maker.TrialBatch("real", arms.Arm("x", "stock", Merge(strategy)), 0, 2, scale, (0, 1)))
        for strategy, scale in (("sum", 0.5), ("uniform", 1.0))
    )
    assert [row["right"] for row in added] == pytest.approx([row["right"] for row in shared], rel=1e-5)
