"""`mip.py concept101` on a tiny dataset: drawn, scored, resumed, refused."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from mip_adapter.commands.concept101.settings import Settings, guard
from mip_adapter.evaluation.concept101.dataset import read_pairs
from mip_adapter.evaluation.concept101.table import PUBLISHED, means, tables
from PIL import Image

from ...support import tiny_clip
from ...support.concept101 import line
from ...support.sentences import told
from ..test_personalization import Clip, Dino, cosine


def test_scores_are_those_of_the_definition(alone: Path, data: Path, encoders: tuple[Path, Path]):
    """Every picture against its prompt and against whole pictures of both concepts, by transformers alone."""
    clip, dino, pair = Clip(encoders[0]), Dino(encoders[1]), read_pairs(data)[1]
    pictures = [Image.open(alone / "pictures" / pair.name / f"{n:02d}.png") for n in range(3)]
    assert {picture.size for picture in pictures} == {(64, 64)}
    shown = [Image.open(file) for concept in pair.concepts for file, _ in concept.pictures]
    words = [clip.words(prompt) for prompt in pair.prompts]
    expected = {
        "clip_t": [2.5 * max(cosine(clip.picture(p), w), 0) for p, w in zip(pictures, words, strict=True)],
        "clip_i": [cosine(clip.picture(p), clip.picture(s)) for p in pictures for s in shown],
        "dino": [cosine(dino.picture(p), dino.picture(s)) for p in pictures for s in shown],
    }
    row = json.loads((alone / "concept101.json").read_text("utf-8"))["pairs"][1]
    for metric, values in expected.items():
        assert row[metric] == pytest.approx(np.mean(values), abs=1e-5)


def test_the_table_stands_beside_the_published_rows(alone: Path):
    whole = json.loads((alone / "concept101.json").read_text("utf-8"))
    assert whole["clip_i"] == pytest.approx(np.mean([row["clip_i"] for row in whole["pairs"]]))
    rows = list(csv.DictReader((alone / "concept101.csv").open(encoding="utf-8")))
    assert len(rows) == len(PUBLISHED) + 1 and rows[-1]["method"] == "miniature, relevance"
    scores = {row["method"]: row["clip_t"] for row in rows}
    assert rows[-1]["dino"] == f"{whole['dino']:.4f}" and scores["MIP-Adapter sdxl, 10k"] == "0.7694"
    markdown = (alone / "concept101.md").read_text("utf-8")
    assert "| IP-Adapter | 0.6343 | 0.6409 | 0.3481 |" in markdown
    assert f"| **miniature, relevance** | **{whole['clip_t']:.4f}** |" in markdown
    assert "3 pairs, 9 pictures; the whole benchmark has 101, 12 each" in markdown
    assert "CLIP-T, CLIP-I by tiny-clip and DINO by tiny-dino" in markdown and "seed 420" in markdown


def test_all_rows_of_the_published_table_are_there():
    """Fourteen methods; the last four are the paper's own."""
    assert len(PUBLISHED) == len({name for name, *_ in PUBLISHED}) == 14
    best = {index: max(row[index] for row in PUBLISHED) for index in (1, 2, 3)}
    assert best == {1: 0.7765, 2: 0.6967, 3: 0.4397}  # those in bold there


def test_a_table_without_dino():
    row = {"id": "0", "pictures": 12, "clip_t": 0.7, "clip_i": 0.6}
    made = tables("ours", [row] * 101, {"scale": 0.75}, {"clip_t": "c", "clip_i": "c"})
    assert "| **ours** | **0.7000** | **0.6000** | **–** |" in made["md"] and "DINO was not measured" in made["md"]
    assert "the whole benchmark has" not in made["md"] and json.loads(made["json"])["dino"] is None
    assert means([]) == {"clip_t": None, "clip_i": None, "dino": None}


# ---- a second run in the same folder ----


def test_nothing_is_made_twice(alone: Path, data: Path, encoders: tuple[Path, Path], capsys):
    from mip_adapter.commands.concept101.command import main

    before = {file: file.stat().st_mtime_ns for file in alone.glob("pictures/*/*.png")}
    lost = sorted(before)[4]
    lost_bytes = lost.read_bytes()
    lost.unlink()
    assert main(line(data, alone, encoders)) == 0
    assert "1 of 1 pictures" in capsys.readouterr().out and lost.read_bytes() == lost_bytes
    assert all(file.stat().st_mtime_ns == when for file, when in before.items() if file != lost)
    assert "pairs are scored" not in capsys.readouterr().out
    assert main([*line(data, alone, encoders)[:-1], "--scale", "0.5", "--cpu"]) == 1
    assert "pictures of other settings (scale was None, is 0.5)" in capsys.readouterr().err


def test_scores_are_of_the_pictures_that_are_there(alone: Path, data: Path, encoders, tmp_path: Path):
    """Another method's pictures, put into the folder after a run; another encoder in a folder of the same name."""
    from mip_adapter.commands.concept101.command import main

    copy, encoder = shutil.copytree(alone, tmp_path / "copy"), shutil.copytree(encoders[0], tmp_path / "tiny-clip")
    before = {file: file.stat().st_mtime_ns for file in copy.glob("scores-*/0*.jsonl")}
    changed = next(copy.glob("pictures/001 */01.png"))
    Image.open(changed).rotate(90).save(changed)
    given = line(data, copy, (encoder, encoders[1]))
    assert main(given) == 0
    again = [file for file, when in before.items() if file.stat().st_mtime_ns != when]
    assert [file.stem for file in again] == ["000001"]
    old, new = (json.loads((each / "concept101.json").read_text("utf-8"))["pairs"] for each in (alone, copy))
    assert [a == b for a, b in zip(old, new, strict=True)] == [True, False, True]
    tiny_clip.write(tmp_path / "other", seed=1)
    shutil.copy(tmp_path / "other" / "model.safetensors", encoder)
    assert main(given) == 0
    assert len({file.parent for file in copy.glob("scores-*/0*.jsonl")}) == 2


def test_a_changed_folder_of_data_is_noticed(alone: Path, data: Path, encoders, tmp_path: Path, capsys):
    from mip_adapter.commands.concept101.command import main

    copy, other = shutil.copytree(alone, tmp_path / "copy"), shutil.copytree(data, tmp_path / "data")
    box = other / "json_data" / "pet_dog1" / "photo 1.json"
    box.write_text(box.read_text().replace("240.0", "248.0"))
    assert main(line(other, copy, encoders)) == 1
    assert "pictures of other settings (data was" in capsys.readouterr().err


def test_pictures_of_other_settings_are_not_mixed(tmp_path: Path):
    settings = Settings("miniature", "miniature")
    guard(tmp_path, settings.described())
    guard(tmp_path, settings.described())
    told(
        lambda: guard(tmp_path, Settings("miniature", "miniature", steps=20, cfg=7.0).described()),
        "cfg was 5.0, is 7.0, steps was 30, is 20",
        "--output",
    )


# ---- refused before anything is drawn ----


def test_encoders_are_tried_before_anything_is_drawn(host, data: Path, encoders, tmp_path: Path, capsys):
    from mip_adapter.commands.concept101.command import main

    assert main(line(data, tmp_path / "a", (encoders[1], encoders[1]))) == 1
    assert "sees pictures only" in capsys.readouterr().err and not [*tmp_path.glob("a/pictures/*/*.png")]
    assert main(line(data, tmp_path / "b", (encoders[0], tmp_path))) == 1
    assert "no config.json" in capsys.readouterr().err and not [*tmp_path.glob("b/pictures/*/*.png")]


def test_bad_options_get_a_sentence(data: Path, encoders: tuple[Path, Path], tmp_path: Path, capsys):
    from mip_adapter.commands.concept101.command import main

    good = line(data, tmp_path, encoders)
    for changes, says in (
        ({"--data": str(tmp_path)}, "dataset_multiconcept.json"),
        ({"--adapter": "nowhere.bin"}, "There is no file nowhere.bin"),
        ({"--checkpoint": "nowhere.safetensors", "--clip-vision": "x"}, "There is no file nowhere.safetensors"),
    ):
        changed = list(good)
        for option, value in changes.items():
            if option in changed:
                changed[changed.index(option) + 1] = value
            else:
                changed += [option, value]
        assert main(changed) == 1
        assert says in capsys.readouterr().err
    for wrong in (
        ["--steps", "0"],
        ["--steps", "1000", "--schedule", "official"],
        ["--schedule", "x"],
        ["--pairs", "0"],
        ["--side", "8"],
        ["--strategy", "best"],
        ["--checkpoint", "x"],
    ):
        with pytest.raises(SystemExit):
            main([*good, *wrong])
