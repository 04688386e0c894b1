"""The arms: fair trials, a judge that knows, rows sampled together as alone."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from mip_adapter.attention.options import Merge
from mip_adapter.miniature import judgement, world
from mip_adapter.miniature.world_looks import PLAIN
from mip_adapter.miniature.world_split import has_reserved_pair, reserved_look
from mip_adapter.research.ablation import arms, picture_grid
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
    assert len(set(both)) == len(both) == 3 * ((len(there) - 1) * 100 + 300)  # arms of one seed, base
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
