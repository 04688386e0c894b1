"""Objects beside a style: what is measured, and that a stopped run goes on."""

from __future__ import annotations

import argparse

import numpy as np
import pytest
import torch
from mip_adapter.common.bundled import MINIATURE
from mip_adapter.miniature.judge import judge
from mip_adapter.miniature.judge_looks import colour_error
from mip_adapter.research.ablation import arms
from mip_adapter.research.miniature import trained
from mip_adapter.research.studies import styles


def row(name: str, trial: int, own, tint=None) -> dict:
    present = [each is not None for each in own]
    return {"key": [name, trial], "own": own, "clear": own, "present": present, "tint": tint}


def test_the_style_shows_another_thing_in_the_third_things_look() -> None:
    trials = arms.make_trials(6, styles.THINGS, arms.SEED_TEST)
    for i, picture in enumerate(styles.style_pictures(trials).movedim(-1, 1)):
        (found,) = judge(picture[None])[0]
        assert found.kind not in trials.scenes.present(i)
        errors = [colour_error(picture, found, pair) for pair in trials.scenes.colours[i, : styles.THINGS]]
        assert int(np.argmin(errors)) == styles.OBJECTS and errors[styles.OBJECTS] < 0.05
        assert styles.tint_taken(picture, styles.tint_of(i)) == pytest.approx(1, abs=1e-4)


def test_the_tint_of_a_ground() -> None:
    tint = torch.tensor([1.0, 0.8, 0.8])
    half = torch.tensor([0.9, 0.8, 0.8]).view(3, 1, 1).expand(3, 32, 32).clone()
    half[:, 8:16, 8:16] = torch.tensor([0.1, 0.1, 0.9]).view(3, 1, 1)  # an object is no ground
    assert styles.tint_taken(half, tint) == pytest.approx(0.5, abs=1e-3)
    assert styles.tint_taken(torch.full((3, 32, 32), 0.7), tint) == pytest.approx(0, abs=1e-5)
    assert styles.tint_taken(torch.zeros(3, 32, 32), tint) is None


def test_differences_are_of_the_same_prompts() -> None:
    without, weak, steady, fading = styles.SETTINGS
    rows = [row(without, i, [True, i % 2 == 0, False], 0.0) for i in range(8)]
    rows += [row(weak, i, [True, True, False], 0.0) for i in range(8)]
    rows += [row(steady, i, [True, None, i < 4], 0.25) for i in range(8)]
    rows += [row(fading, i, [i % 2 == 0, True, False]) for i in range(8)]
    lines = {line["style"]: line for line in styles.COMPARISON.summarise(rows)}
    assert list(lines) == [without, weak, steady, fading, *(f"{each} adds" for each in (weak, steady, fading))]
    assert lines[without]["objects bound"][0] == 75 and lines[steady]["objects bound"] == (50, 50, 50)
    assert lines[f"{steady} adds"]["objects bound"][0] == -25 and lines[steady]["objects present"][0] == 50
    assert lines[f"{fading} adds"]["objects bound"] == (0, 0, 0)  # paired: no prompt changes its number
    assert lines[steady]["third thing like the style"][0] == 50 and lines[steady]["tint of the ground"][0] == 25
    assert lines[fading]["tint of the ground"] is None
    assert "−25.0 [" in styles.COMPARISON.markdown(list(lines.values()))


def test_a_stopped_run_goes_on(host, tmp_path, monkeypatch) -> None:
    from mip_adapter.research.studies import comfy_styles

    given = argparse.Namespace(
        output=tmp_path, adapter=trained.file("mip", 0), miniature=MINIATURE, scale=1.0, prompts=2, steps=1,
        guidance=2.0, minutes=1e9,
    )  # fmt: skip
    monkeypatch.setattr(comfy_styles, "BATCH", 4)
    given.minutes = -1
    assert comfy_styles.work(given) is None
    given.minutes = 1e9
    first = comfy_styles.work(given)
    assert first is not None and [each["key"] for each in first] == [
        [name, trial] for trial in range(2) for name in styles.SETTINGS
    ]
    (tmp_path / "000001.jsonl").unlink()
    again = comfy_styles.work(given)
    assert again == first
    given.guidance = 3.0
    with pytest.raises(ValueError, match="guidance was 2.0, is 3.0"):
        comfy_styles.work(given)
