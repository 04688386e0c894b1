"""The arms: fair trials, a judge that knows, rows sampled together as alone, numbers that follow from lines."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from mip_adapter.attention.options import Merge
from mip_adapter.miniature import arms, arms_grid, arms_score, arms_table, seeded, trained, world
from mip_adapter.miniature.world_looks import PLAIN
from mip_adapter.miniature.world_split import has_reserved_pair, reserved_look
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
    assert {name for _, *pair in arms.EFFECTS for name in pair} <= names
    assert {arm.adapter for arm in arms.ARMS} <= set(trained.KINDS)
    with pytest.raises(ValueError, match="no arm “nonsense”"):
        arms.chosen(["nonsense"], ["stock"])
    assert {arm.adapter for arm in arms.chosen(None, ["stock"])} == {"stock"}


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
        assert np.mean(own) == right and np.mean(confused) == (not right)
        margins = [each for row in rows for each in row["margin"] if each is not None]
        assert min(margins) > 0.08 if right else max(margins) < -0.08
        if right:
            errors = [each for row in rows for each in row["error"] if each is not None]
            assert np.median(errors) < 0.02


def score(image, scenes, i, n):
    return arms_score.score(image, scenes.present(i), scenes.looks[i, :n], scenes.colours[i, :n])


def test_an_empty_picture_holds_nothing(trials):
    row = score(torch.ones(3, 128, 128), trials.scenes, 0, trials.objects)
    assert row["count"] == 0 and not any(row["present"])
    assert row["own"] == [None] * trials.objects == row["margin"]


# ---- numbers ----


def line(arm, trial, own, seed=0, measure="picture", scale=0.75, **more):
    present = [each is not None for each in own]
    of = {"margin": 0.1, "error": 0.2, "pattern": True, "confused": False}
    lists = {name: [value if there else None for there in present] for name, value in of.items()}
    row = {"own": own, "present": present, "count": sum(present), "clip_t": 1.0, "clip_i": 0.5, **lists, **more}
    return {"key": [measure, arm, seed, 2, scale, trial], **row}


def test_binding_counts_found_objects_and_bound_counts_all():
    rows = [line("stock + uniform", 0, [True, None]), line("stock + uniform", 1, [True, False])]
    (row,) = arms_table.summarise(rows, 0.75)["2 objects"]["equal"]
    assert row["binding"]["value"] == pytest.approx(2 / 3) and row["bound"]["value"] == pytest.approx(2 / 4)
    assert row["present"]["value"] == pytest.approx(3 / 4) and row["all present"]["value"] == 0.5
    assert (row["prompts"], row["pictures"]) == (2, 2)


def test_intervals_are_those_of_a_bootstrap_over_prompts():
    rng = np.random.default_rng(1)
    rows, sums = [], np.zeros((60, 2))
    for prompt in range(60):
        easy = rng.random()
        for seed in range(3):
            own = [bool(rng.random() < easy), None if rng.random() < 0.2 else bool(rng.random() < easy)]
            rows.append(line("stock + uniform", prompt, own, seed))
            sums[prompt] += sum(filter(None, own)), sum(each is not None for each in own)
    drawn = sums[np.random.default_rng(2).integers(60, size=(4000, 60))].sum(1)
    low, high = np.percentile(drawn[:, 0] / drawn[:, 1], (2.5, 97.5))
    (row,) = arms_table.summarise(rows, 0.75)["2 objects"]["equal"]
    assert row["binding"]["value"] == pytest.approx(sums[:, 0].sum() / sums[:, 1].sum())
    assert (row["binding"]["low"], row["binding"]["high"]) == pytest.approx((low, high), abs=0.02)
    assert set(row["binding"]["seeds"]) == {0, 1, 2}


def test_effects_compare_the_same_prompts_and_seeds():
    rows = [line("stock + relevance", prompt, [True, True]) for prompt in range(10)]
    rows += [line("stock + uniform", prompt, [True, prompt < 5]) for prompt in range(8)]
    rows += [line("stock + uniform", prompt, [False, False], seed=1) for prompt in range(8)]
    tables = arms_table.summarise(rows, 0.75)["2 objects"]
    (effect,) = tables["effects"]
    assert effect["prompts"] == 8 and effect["binding"]["value"] == pytest.approx(1 - 13 / 16)
    assert effect["binding"]["low"] > 0 and list(effect["binding"]["seeds"]) == [0]


def test_the_best_scale_is_the_one_that_binds_most():
    rows = [line("stock + uniform", p, [True, s == 1.0], measure="tune", scale=s) for p in range(3) for s in (0.5, 1.0)]
    assert arms_table.best_scale(rows, "stock + uniform", 2) == 1.0
    assert arms_table.best_scale(rows, "stock + uniform", 2, needed=7) is None
    assert arms_table.best_scale(rows, "stock + uniform", 3) is None


def test_the_page_says_what_the_numbers_say():
    rows = [
        line(arm, prompt, [True, prompt % 4 < wins])
        for arm, wins in {"stock + concat": 1, "stock + uniform": 1, "stock + relevance": 3,
                          "uniform-trained + uniform": 1, "mip + relevance": 4}.items()
        for prompt in range(40)
    ]  # fmt: skip
    results = arms_table.summarise(rows, 0.75)
    page = arms_table.markdown(results, {"prompts": 40, "steps": 8, "guidance": 2.0})
    assert json.loads(json.dumps(results))
    verdict = next(text for text in page.splitlines() if text.startswith("**Merging or training?**"))
    assert "+25.0" in verdict and "+37.5" in verdict and verdict.count("cannot be told from nothing") == 1
    tables = [text for text in page.splitlines() if text.startswith("| ")]
    assert any("**mip + relevance**" in text for text in tables)
    assert "nan" not in page and "What the miniature cannot tell" in page


def test_the_grid_shows_what_is_there(tmp_path):
    trials = arms.make_trials(2, 3, arms.SEED_TEST)
    red = torch.zeros(3, 128, 128)
    red[0] = 1
    arms_grid.save(red, tmp_path / "a" / "1.png")
    columns = {name: [tmp_path / name / f"{i}.png" for i in range(2)] for name in ("a", "b")}
    sheet = arms_grid.draw(trials, columns)
    assert sheet is not None
    pixels = np.asarray(sheet)
    assert ((pixels == (255, 0, 0)).all(-1)).sum() == 128**2
    assert arms_grid.draw(trials, {"b": columns["b"]}) is None


# ---- with the host ----


@pytest.fixture(scope="module")
def parts(host):
    from mip_adapter.miniature import host_bundle

    with torch.inference_mode():
        yield host_bundle.load()


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
    from mip_adapter.miniature import host_rows
    from mip_adapter.nodes.apply import MIPApply
    from mip_adapter.nodes.reference import MIPReference
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
        models.append(MIPApply.execute(model, clip, vision, adapter, chain, 0.75, 0.0, 1.0).result[0])
    conds = [clip.encode_from_tokens(clip.tokenize(text), return_pooled=True) for text in (*trials.prompts, "")]
    negative = host_rows.conditioning(conds[-1:])
    noise = host_rows.noise_of(trials.seeds, 16)
    together = host_rows.sample(host_rows.combine(models), host_rows.conditioning(conds[:3]), negative, noise, 3, 2.0)
    empty = {"samples": torch.zeros(1, 4, 16, 16)}
    for i, patched in enumerate(models):
        positive = host_rows.conditioning(conds[i : i + 1])
        given = (patched, trials.seeds[i], 3, 2.0, "euler", "normal", positive, negative, empty)
        alone = common_ksampler(*given)[0]["samples"]
        assert torch.allclose(together[i : i + 1], alone, atol=1e-3 * float(alone.abs().max()))
        assert not torch.allclose(together[i - 1 : i or None], alone, atol=0.1 * float(alone.abs().max()))


def run(folder, adapters, *more):
    from mip_adapter.miniature import host_arms

    arm = ("--arm", "stock + uniform", "--arm", "mip + relevance")
    given = ["--quick", "--objects", "2", "--output", str(folder), "--adapters", str(adapters), *arm, *more]
    return host_arms.main(given)


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
    (tmp_path / "rows-0-of-1.jsonl").write_text("\n".join(lines[:-1] + [lines[-1][:20]]) + "\n")
    capsys.readouterr()
    assert run(tmp_path, adapters) == 0
    assert capsys.readouterr().out.count("s each") == 1
    last = json.loads((tmp_path / "rows-0-of-1.jsonl").read_text().splitlines()[-1])
    assert last == rows[-1]


def test_arms_without_adapters_say_how_to_get_them(host, tmp_path, capsys):
    assert run(tmp_path, tmp_path) == 1
    assert "train.py --stage adapters" in capsys.readouterr().err


@torch.inference_mode()
def test_right_and_swapped_differ_by_the_references_alone(parts, adapters, tmp_path):
    """With equal references for both objects, swapping them changes nothing; with different ones it does."""
    from mip_adapter.miniature import host_arms

    given = host_arms._parser().parse_args(["--adapters", str(adapters), "--prompts", "3", "--precision", "fp32"])
    maker = host_arms.Maker(given)
    part = host_arms.Part("real", arms.Arm("x", "mip", Merge("relevance"), "image"), 0, 2, 1.0, (0, 1, 2))
    rows = maker.real(part)
    assert all(abs(row["right"] - row["swapped"]) > 1e-5 for row in rows)
    assert all(0 <= row["map"] <= 1 and 0 < row["share"] < 1 for row in rows)
    trials = maker.trials(2, "real")
    same = replace(trials, references=trials.references[:, :1].expand(-1, 2, -1, -1, -1))
    maker.trials = lambda *_: same
    assert all(row["right"] == pytest.approx(row["swapped"], rel=1e-4) for row in maker.real(part))
