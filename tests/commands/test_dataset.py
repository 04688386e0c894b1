"""`mip.py dataset`: drawn scenes whose truth is known, both real models, what is dropped, a kill and a resume."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from mip_adapter.commands.dataset import main
from mip_adapter.miniature import world, world_words
from mip_adapter.training.config import TrainConfig
from mip_adapter.training.data_folder import read_subset
from mip_adapter.training.dataset import SubjectFolder
from mip_adapter.training.filters import Filters
from PIL import Image

from ..support import tiny_faces, tiny_models
from ..support.paths import ROOT
from ..support.subprocesses import started, wait_for

SIDE, SCENES = 128, 12
FILES = ("images", "masks", "jsons")


@pytest.fixture(scope="module")
def truth() -> tuple[world.Scenes, torch.Tensor, torch.Tensor]:
    """Scenes of two objects, their masks and boxes. The objects stand apart, and where their two colours meet they do
    not mix to grey, which the judge would take for the ground.
    """
    scenes = world.sample(250, 11, (2,))
    x0, y0, x1, y1 = world.boxes(world.render(scenes, 64).masks)[:, :2].unbind(-1)  # [B, 2] each
    apart = torch.maximum(x0.amax(1) - x1.amin(1), y0.amax(1) - y1.amin(1)) > 4
    mixed = scenes.colours[:, :2].mean(2)  # [B, 2, 3]
    apart &= ((mixed.amax(-1) - mixed.amin(-1) > 0.18) | (mixed.amax(-1) < 0.2)).all(1)
    scenes = scenes.rows(apart.nonzero().flatten()[:SCENES])
    picture = world.render(scenes, SIDE)
    return scenes, picture.masks[:, :2], world.boxes(picture.masks)[:, :2]


@pytest.fixture(scope="module")
def drawn(truth, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The scenes as pictures with a caption beside each, some of them in a subfolder; and five that must be dropped."""
    folder, (scenes, _, _) = tmp_path_factory.mktemp("drawn"), truth
    (folder / "more").mkdir()
    images = world.render(scenes, SIDE).images
    for number in range(SCENES):
        path = folder / ("more" if number >= 8 else "") / f"{number:02}.png"
        save(images[number], path)
        path.with_suffix(".txt").write_text(caption(scenes, number) + "\n")
    save(images[0], folder / "90.png")  # no caption
    (folder / "91.jpg").write_bytes(b"\xff\xd8 but no more")
    (folder / "91.txt").write_text("a star and a ring")
    save(torch.full((3, SIDE, SIDE), 0.9), folder / "92.png")  # nothing on it
    (folder / "92.txt").write_text("a star and a ring")
    save(images[1], folder / "93.png")  # one of its objects, and a word that this world does not have
    (folder / "93.txt").write_text(f"a {kinds(scenes, 1)[0]} and an elephant")
    save(images[2], folder / "94.png")
    (folder / "94.txt").write_text("12 345 ...")
    return folder


def save(image: torch.Tensor, path: Path) -> None:
    Image.fromarray((image.movedim(0, -1) * 255).round().byte().numpy()).save(path)


def kinds(scenes: world.Scenes, number: int) -> list[str]:
    return [world_words.object_text(kind) for kind in scenes.present(number)]


def caption(scenes: world.Scenes, number: int) -> str:
    first, second = kinds(scenes, number)
    return f"a drawing of a {first} next to a {second}"


def line(folder: Path, output: Path, *more: str) -> list[str]:
    return [str(folder), "--output", str(output), "--detector", "miniature", "--part", "3", *more]


def usable(name: str) -> int | None:
    """The number of the scene that an id stands for."""
    number = name.removeprefix("more_")
    return int(number) if int(number) < SCENES else None


@pytest.fixture(scope="module")
def made(drawn: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What one process makes of them, undisturbed. 0: small objects stay."""
    output = tmp_path_factory.mktemp("made") / "data"
    assert main(line(drawn, output, "--min-objects", "0")) == 0
    return output


def contents(folder: Path) -> dict[str, bytes]:
    names = [*FILES, "dropped.jsonl", "dataset.png"]
    files = [path for name in names for path in ([folder / name] if "." in name else (folder / name).iterdir())]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def test_boxes_labels_and_masks_are_those_of_the_scenes(made: Path, drawn: Path, truth):
    scenes, masks, boxes = truth
    known = {path.stem: number for path in (made / "jsons").iterdir() if (number := usable(path.stem)) is not None}
    assert sorted(known.values()) == list(range(SCENES)) and known["more_11"] == 11
    for name, number in known.items():
        data = json.loads((made / "jsons" / f"{name}.json").read_text())
        assert data["text"] == caption(scenes, number) and data["original_size"] == [SIDE, SIDE]
        background, *found = data["final_masks"]
        assert background == {"value": 0, "label": "background"}
        assert sorted(each["label"] for each in found) == sorted(kinds(scenes, number))
        values = np.array(Image.open(made / "masks" / f"{name}.png"))
        assert set(np.unique(values)) == {0, 1, 2}
        for each in found:
            m = kinds(scenes, number).index(each["label"])
            assert np.abs(np.array(each["box"]) - boxes[number, m].numpy()).max() <= 2
            ours, right = values == each["value"], masks[number, m].numpy() > 0.5
            assert (ours & right).sum() / (ours | right).sum() > 0.9
            assert 0.5 < each["logit"] <= 1
        given = next(drawn.rglob(f"{name.removeprefix('more_')}.png"))
        assert np.array_equal(np.array(Image.open(made / "images" / f"{name}.png")), np.array(Image.open(given)))


def test_every_face_stands_with_the_object_that_has_it(drawn: Path, truth, tmp_path: Path, monkeypatch):
    """The looks of drawn objects stand in for faces. Nothing else changes, and FaceID adapters can be trained on it."""
    from mip_adapter.commands import dataset
    from mip_adapter.research.studies.faces import LookAnalyser, embedding_of

    few, scenes = tmp_path / "few", truth[0]
    few.mkdir()
    for number in range(2):
        for ending in ("png", "txt"):
            (few / f"{number:02}.{ending}").write_bytes((drawn / f"{number:02}.{ending}").read_bytes())
    monkeypatch.setattr(dataset, "load_analyser", lambda folder: LookAnalyser())
    for output, more in (("with", ["--faces", str(tmp_path)]), ("without", [])):
        assert main(line(few, tmp_path / output, "--min-objects", "0", *more)) == 0
    for number in range(2):
        data, plain = (
            json.loads((tmp_path / output / "jsons" / f"{number:02}.json").read_text())
            for output in ("with", "without")
        )
        for each in data["final_masks"][1:]:
            look = scenes.looks[number, kinds(scenes, number).index(each["label"])].tolist()
            assert np.abs(each.pop("face") - embedding_of(*look)).max() < 1e-4
        assert data == plain
    recipe = TrainConfig(resolution=64, filters=Filters(area_min=0.01))
    sample = SubjectFolder(tmp_path / "with", recipe, 512)[0]
    assert sample.faces is not None and sample.faces.shape == (2, 512)
    monkeypatch.setattr(dataset, "load_analyser", lambda folder: tiny_faces.Analyser(RuntimeError("no memory")))
    assert main(line(few, tmp_path / "failed", "--faces", str(tmp_path))) == 1
    assert "The face analyser failed on the picture" in (tmp_path / "failed" / "dropped.jsonl").read_text("utf-8")


def test_everything_dropped_is_told_with_its_reason(made: Path, drawn: Path, capsys: pytest.CaptureFixture[str]):
    rows = [json.loads(text) for text in (made / "dropped.jsonl").read_text("utf-8").splitlines()]
    pictures = {row["id"]: row["dropped"] for row in rows if "object" not in row}
    assert {name: why.partition(" (")[0] for name, why in pictures.items()} == {
        "90": "it has no caption",
        "91": "the file cannot be read",
        "92": "none of its objects was found",
        "94": "its caption names no object",
    }
    lost = {(row["id"], row["object"]): row["dropped"] for row in rows if "object" in row}
    assert set(lost) == {("92", "star"), ("92", "ring"), ("93", "elephant")}
    assert "cannot look for “elephant”" in lost["93", "elephant"] and "was found at threshold" in lost["92", "star"]
    assert main(line(drawn, made, "--min-objects", "0")) == 0  # nothing left to do
    said = capsys.readouterr().out
    assert "13 of 17 pictures are training data, with 25 objects" in said and "dropped.jsonl" in said
    assert "1 dropped: it has no caption" in said and "1 dropped: the file cannot be read" in said


def test_the_contact_sheet_shows_them(made: Path):
    from mip_adapter.common.drawing import colour

    with Image.open(made / "dataset.png") as sheet:
        colours = {pixel for _, pixel in sheet.getcolors(1 << 22) or ()}
    assert {colour(0), colour(1)} <= colours


def test_two_processes_make_the_same(made: Path, drawn: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """One after the other here; whoever comes last writes the lists."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank in "01":
        monkeypatch.setenv("RANK", rank)
        assert not (tmp_path / "dropped.jsonl").exists()
        assert main(line(drawn, tmp_path, "--min-objects", "0")) == 0
    assert contents(tmp_path) == contents(made)


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGKILL")
def test_killed_and_resumed(made: Path, drawn: Path, tmp_path: Path):
    (tmp_path / "host" / "comfy").mkdir(parents=True)
    (tmp_path / "host" / "main.py").touch()
    env = os.environ | {"MIP_ADAPTER_PYTHON": sys.executable, "COMFYUI_PATH": str(tmp_path / "host")}
    given = [*line(drawn, tmp_path / "data", "--min-objects", "0", "--device", "cpu")[:-4], "--part", "1"]
    given += ["--min-objects", "0", "--device", "cpu"]
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--num_processes", "2"]
    parts = tmp_path / "data" / "dataset.parts"

    def both_began() -> bool:
        return {int(file.stem) % 2 for file in parts.glob("0*.jsonl")} == {0, 1}

    command = [*launch, str(ROOT / "mip.py"), "dataset", *given]
    with started(command, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        wait_for(process, both_began)
    before = {file: file.stat().st_mtime_ns for file in parts.glob("0*.jsonl")}
    assert both_began()
    assert main(given) == 0
    assert all(file.stat().st_mtime_ns == when for file, when in before.items())  # not done twice
    assert contents(tmp_path / "data") == contents(made)


def test_training_reads_what_was_made(made: Path):
    recipe = TrainConfig(resolution=64, filters=Filters(area_min=0.01))
    folder = SubjectFolder(made, recipe)
    assert len(folder) >= 10 and not folder.broken
    sample = folder[0]
    assert len(sample.names) == 2 and set(sample.names) <= set(sample.caption.split())
    assert sample.references.shape == (2, 3, 224, 224) and 0 < sample.mask.mean() < 1


def test_training_runs_on_what_was_made(host, made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    from mip_adapter.commands.train import main as train

    config = tmp_path / "train.toml"
    config.write_text(
        f"data = {json.dumps(str(made))}\n[base]\ncheckpoint = 'miniature'\n[start]\ninit = 'unet'\n"
        "[output]\nfolder = 'out'\nname = 'result'\n"
        "[recipe]\nsteps = 2\nbatch_size = 2\nresolution = 64\ntrain = 'all'\nworkers = 0\nsave_every = 0\n"
        "filters = { area_min = 0.01 }\n"
    )
    assert train(["--config", str(config), "--cpu"]) == 0
    assert (tmp_path / "out" / "result.safetensors").is_file()
    assert "step 2/2  loss" in capsys.readouterr().out


def test_pictures_that_training_would_leave_out_are_dropped(drawn: Path, tmp_path: Path):
    """By default, and by its own reasons. What is left is used, every picture."""
    assert main(line(drawn, tmp_path / "data")) == 0
    rows = [json.loads(text) for text in (tmp_path / "data" / "dropped.jsonl").read_text("utf-8").splitlines()]
    why = {row["id"]: row["dropped"] for row in rows if "object" not in row}
    assert why["93"] in (
        "too few objects remain",
        "no object has a usable box (area, aspect, confidence, one-word label)",
    )
    folder = SubjectFolder(tmp_path / "data", TrainConfig(resolution=64))
    assert len(folder) == folder.total == SCENES + 5 - len(why) > 0


# ---- lists ----


def test_only_the_chosen_pictures(drawn: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    (tmp_path / "selected_indexes_few.pkl").write_bytes(pickle.dumps(["03", "more_08", "nowhere"]))
    given = line(drawn, tmp_path / "data", "--min-objects", "0", "--select", str(tmp_path / "selected_indexes_few.pkl"))
    assert main(given) == 0
    assert sorted(path.stem for path in (tmp_path / "data" / "jsons").iterdir()) == ["03", "more_08"]
    assert "1 ids of selected_indexes_few.pkl have no picture; the first: nowhere" in capsys.readouterr().out


def test_a_list_over_finished_training_data(made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    (tmp_path / "selected_indexes_few.pkl").write_bytes(pickle.dumps(["03", "more_08", "nowhere"], protocol=4))
    given = [str(made), "--select", str(tmp_path / "selected_indexes_few.pkl"), "--output", str(tmp_path)]
    assert main(given) == 0
    assert read_subset(tmp_path / "selected_indexes_few.kept.txt") == (made, ["03", "more_08"])
    assert "2 of 3 ids are there" in capsys.readouterr().out
    kept = SubjectFolder(tmp_path / "selected_indexes_few.kept.txt", TrainConfig(filters=Filters(area_min=0.01)))
    assert kept.total == 2


# ---- real models, small ----


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("models")
    return tiny_models.grounding_dino(folder / "dino"), tiny_models.sam(folder / "sam")


def test_grounding_dino_and_sam(models: tuple[Path, Path], drawn: Path, tmp_path: Path):
    """Random weights find nonsense. It is written as it was found: boxes in the picture, a mask in each."""
    dino, sam = models
    for name in ("03.png", "05.png"):
        Image.open(drawn / name).crop((0, 0, 200, 150)).save(tmp_path / name)
        (tmp_path / name).with_suffix(".txt").write_text("a cat and a dog")
    given = [str(tmp_path), "--output", str(tmp_path / "data"), "--detector", str(dino), "--segmenter", str(sam)]
    given += ["--threshold", "0.05", "--min-objects", "0", "--short-side", "100"]
    assert main(given) == 0
    jsons = list((tmp_path / "data" / "jsons").iterdir())
    assert jsons
    for path in jsons:
        data = json.loads(path.read_text())
        assert data["original_size"] == [200, 150]
        values = np.array(Image.open(tmp_path / "data" / "masks" / f"{path.stem}.png"))
        assert values.shape == (100, 133)
        for each in data["final_masks"][1:]:
            x0, y0, x1, y1 = each["box"]
            assert 0 <= x0 < x1 <= 133 and 0 <= y0 < y1 <= 100 and each["label"] in ("cat", "dog")
            inside = np.zeros_like(values, bool)
            inside[max(round(y0) - 1, 0) : round(y1) + 2, max(round(x0) - 1, 0) : round(x1) + 2] = True
            assert not (values[~inside] == each["value"]).any()


def test_masks_are_those_of_the_segmenter(models: tuple[Path, Path]):
    """Against transformers called directly, box by box."""
    from mip_adapter.evaluation.detection.segmenter import load_segmenter

    segmenter = load_segmenter(models[1])
    pixels = np.random.default_rng(0).integers(0, 255, (90, 120, 3), np.uint8)
    picture, boxes = Image.fromarray(pixels), [(10.0, 5.0, 60.0, 80.0), (50.0, 20.0, 110.0, 70.0)]
    masks = segmenter.masks(picture, boxes)
    assert masks.shape == (2, 90, 120) and masks.dtype == torch.bool and 0 < masks.float().mean() < 1
    for box, mask in zip(boxes, masks, strict=True):
        made = segmenter.processor(images=picture, input_boxes=[[list(box)]], return_tensors="pt")
        made["input_boxes"] = made["input_boxes"].float()
        with torch.no_grad():
            low = segmenter.model(**made, multimask_output=False).pred_masks
        big = torch.nn.functional.interpolate(low[0], (64, 64), mode="bilinear", align_corners=False)
        scaled = big[..., :48, :64]  # the picture fills 48 of 64 rows
        full = torch.nn.functional.interpolate(scaled, (90, 120), mode="bilinear", align_corners=False)
        assert ((full[0, 0] > 0) == mask).float().mean() > 0.999
    assert segmenter.masks(picture, []).shape == (0, 90, 120)


def test_bad_input_gets_a_sentence(drawn: Path, models: tuple[Path, Path], tmp_path: Path,
                                   capsys: pytest.CaptureFixture[str]):  # fmt: skip
    (tmp_path / "empty").mkdir()
    (tmp_path / "table.jsonl").write_text('{"name": "a"}')
    (tmp_path / "broken.jsonl").write_text("{")
    (tmp_path / "nobody.txt").write_text("nobody\n")
    dino, sam = map(str, models)
    out = ["--output", str(tmp_path / "out")]
    for folder, more, says in (
        (drawn, [], "--output"),
        (drawn, out, "--detector"),
        (drawn, [*out, "--detector", dino], "--segmenter"),
        (drawn, ["--output", str(drawn), "--detector", "miniature"], "choose another"),
        (drawn, [*out, "--detector", str(tmp_path / "nowhere"), "--segmenter", sam], "no detector in"),
        (drawn, [*out, "--detector", dino, "--segmenter", dino], "segmenter in"),
        (tmp_path / "empty", [*out, "--detector", "miniature"], "no pictures"),
        (tmp_path / "nowhere", [*out, "--detector", "miniature"], "no folder"),
        (drawn, [*out, "--detector", "miniature", "--captions", str(tmp_path / "table.jsonl")], "file_name"),
        (drawn, [*out, "--detector", "miniature", "--captions", str(tmp_path / "broken.jsonl")], "cannot be read"),
        (drawn, [*out, "--detector", "miniature", "--select", str(tmp_path / "nobody.txt")], "first id: nobody"),
    ):
        assert main([str(folder), *more]) == 1
        assert says in capsys.readouterr().err, says
    for wrong in (["--threshold", "2"], ["--min-objects", "-1"]):
        with pytest.raises(SystemExit):
            main([str(drawn), *out, *wrong])
