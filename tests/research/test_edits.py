"""The stand-in for edit models: its training goes on where it was cut, and its study compares like with like."""

from __future__ import annotations

import argparse
import inspect

import pytest
import torch
from mip_adapter.miniature import judgement, world
from mip_adapter.research.ablation import arms
from mip_adapter.research.miniature.stages import edit, stage_trainer
from mip_adapter.research.miniature.stages.base import Conditioner
from mip_adapter.research.miniature.stages.captions import Words
from mip_adapter.research.studies import edits

from ..support.paths import ROOT


@pytest.fixture(scope="module")
def condition(host):
    from mip_adapter.research.miniature import comfy_networks
    from mip_adapter.research.miniature.stages import comfy_recipe

    encoders = comfy_recipe.finished("encoders", ROOT / "output" / "nothing", torch.device("cpu"))
    return Conditioner(encoders, Words(comfy_networks.tokenize), torch.device("cpu"))


@pytest.fixture
def stage(condition, monkeypatch):
    """The stage with a narrow network of two blocks."""
    import comfy.ldm.flux.math
    from mip_adapter.research.miniature import comfy_networks

    if "apply_rope = comfy.quant_ops.ck" in inspect.getsource(comfy.ldm.flux.math):
        pytest.skip("this host's rotary embedding has no gradient")
    for name, value in {"hidden_size": 32, "num_heads": 1, "depth": 1, "depth_single_blocks": 1}.items():
        monkeypatch.setitem(comfy_networks.EDIT, name, value)

    class Small(edit.Edit):
        batch_size = 2

    def make(state=None):
        torch.manual_seed(0)
        progress = stage_trainer.Progress(Small(comfy_networks.edit(), comfy_networks.run_edit, condition))
        if state:
            progress.restore(torch.load(state, weights_only=True))
        return progress

    return make


def steps(progress, count: int):
    logs = [progress.advance() for _ in range(count)]
    return progress, [{name: float(value) for name, value in log.items()} for log in logs]


def test_resumed_equals_uninterrupted(stage, tmp_path):
    """With no, one and two references in the sequence."""
    whole, logs = steps(stage(), 4)
    stage_trainer.save(steps(stage(), 2)[0].state(), tmp_path / "edit.pt")
    again, later = steps(stage(tmp_path / "edit.pt"), 2)
    assert later == logs[2:] and again.step == 4
    assert all(torch.equal(value, again.weights[key]) for key, value in whole.weights.items())
    assert [again.stage.batch(step)[-1].shape[1] for step in range(4)] == [0, 1, 2, 2]


def test_every_weight_learns(stage):
    """The host's blocks add in place, and no gradient is lost by that. Gates start at 0, so it takes some steps."""
    progress, _ = steps(stage(), 4)
    assert not [key for key, value in progress.weights.items() if value.grad is None or not value.grad.any()]


def test_words_in_their_places():
    """The loss is −log of the owner's share, on the objects' positions alone."""
    cover = torch.tensor([[[1.0, 0.0, 0.2], [0.0, 1.0, 0.2]]])  # [B, M, N]
    right = torch.tensor([[[[0.8, 0.2, 0.5]], [[0.2, 0.8, 0.5]]]])  # [blocks, M, B, N]
    lost, won = edit.displaced(right, cover, torch.tensor([True]))
    assert float(lost) == pytest.approx(-torch.tensor(0.8).log().item()) and float(won) == 1
    lost, won = edit.displaced(right.flip(1), cover, torch.tensor([True]))
    assert float(lost) == pytest.approx(-torch.tensor(0.2).log().item()) and float(won) == 0
    assert float(edit.displaced(right, cover, torch.tensor([False]))[0]) == 0


def test_the_judge_sees_objects_in_pictures_so_small():
    trials = arms.make_trials(12, edit.OBJECTS, arms.SEED_TEST)
    small = edit.unscaled(edit.scaled(world.render(trials.scenes, edit.SIDE).images))
    found = []
    for i, image in enumerate(edits.enlarged(small)):
        looks, colours = trials.scenes.looks[i, : edit.OBJECTS], trials.scenes.colours[i, : edit.OBJECTS]
        found += judgement.score(image, trials.scenes.present(i), looks, colours)["own"]
    assert sum(map(bool, found)) >= 0.85 * len(found)


def row(name: str, trial: int, seed: int, own) -> dict:
    present = [each is not None for each in own]
    return {"key": [name, trial, seed], "own": own, "clear": own, "confused": own, "present": present, "plain": own}


def test_differences_are_of_the_same_prompts() -> None:
    rows = []
    for name in edits.SETTINGS:
        for i in range(8):
            own = [True, i % 2 == 0] if name == edits.WITHOUT else [True, None]
            rows += [row(name, i, 0, own), row(name, i, 1, [True, True])]
    lines = {line["setting"]: line for line in edits.COMPARISON.summarise(rows)}
    assert lines[edits.WITHOUT]["bound"][0] == 87.5 and lines["strength 1"]["bound"] == (75, 75, 75)
    assert lines["strength 1"]["binding"][0] == 100 and lines["strength 1"]["present"][0] == 75
    middle, low, high = lines["strength 2 adds"]["bound"]
    assert middle == -12.5 and low < middle < high <= 0
    assert "−12.5 [" in edits.COMPARISON.markdown(list(lines.values()))


def test_a_stopped_run_goes_on(stage, tmp_path, monkeypatch) -> None:
    """And strength 0 draws what the model draws by itself, the others do not."""
    from mip_adapter.research.studies import comfy_edits

    given = argparse.Namespace(
        output=tmp_path / "out", work=tmp_path, prompts=2, seeds=1, steps=1, guidance=2.0, minutes=-1
    )
    with pytest.raises(ValueError, match="train the stand-in by"):
        comfy_edits.work(given)
    progress, _ = steps(stage(), 3)
    for weight in progress.ema.values():  # the gates of its blocks begin at zero, and three steps hardly open them
        weight.add_(torch.randn_like(weight), alpha=0.1)
    stage_trainer.save(progress.state(), tmp_path / "edit.pt")
    monkeypatch.setattr(comfy_edits, "PROMPTS_AT_ONCE", 1)
    assert comfy_edits.work(given) is None
    given.minutes = 1e9
    rows = comfy_edits.work(given)
    assert rows is not None and len(rows) == 2 * len(edits.SETTINGS)
    (tmp_path / "out" / "000001.jsonl").unlink()
    assert comfy_edits.work(given) == rows
    maker = comfy_edits.EditMaker(given, tmp_path / "edit.pt")
    pictures = {name: maker.drawn(0, setting) for name, setting in edits.SETTINGS.items()}
    assert pictures[edits.WITHOUT].shape == (1, 3, edit.SIDE, edit.SIDE)
    monkeypatch.setattr("mip_adapter.patching.edit_patch.edit_references", lambda model, *_, **__: model)
    assert torch.equal(maker.drawn(0, edits.SETTINGS["strength 2"]), pictures[edits.WITHOUT])
    differences = {name: float((each - pictures[edits.WITHOUT]).abs().max()) for name, each in pictures.items()}
    assert differences.pop(edits.WITHOUT) == 0 and min(differences.values()) > 1e-3
    given.guidance = 3.0
    with pytest.raises(ValueError, match="guidance was 2.0, is 3.0"):
        comfy_edits.work(given)
