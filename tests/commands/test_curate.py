"""`mip.py curate`: scores against the definition, bad pictures, the choice, two processes, a kill and a resume."""

from __future__ import annotations

import importlib.util
import io
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from mip_adapter.commands.curate import main
from mip_adapter.commands.curation.table import best, check_table, write_table
from mip_adapter.common.resumable import open_parts
from mip_adapter.evaluation.encoders.encoder import load_encoder, need_words
from mip_adapter.training.data_folder import read_subset, write_subset
from PIL import Image

from ..support import tiny_clip
from ..support.paths import ROOT
from ..support.subprocesses import started, wait_for
from ..support.training_world import edit_json, write_folder


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_clip.write(tmp_path_factory.mktemp("encoder") / "tiny-clip")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """40 usable pictures, two that no one can read, one that the filters leave out."""
    folder = write_folder(tmp_path_factory.mktemp("data"), 43)
    (folder / "images" / "040.png").write_bytes(b"\x89PNG but no more")
    (folder / "jsons" / "041.json").write_text("{")
    entries = json.loads((folder / "jsons" / "042.json").read_text())["final_masks"]
    edit_json(folder, 42, final_masks=entries[:2])
    return folder


def table(path: Path) -> dict[str, dict]:
    return {row["id"]: row for row in map(json.loads, path.read_text("utf-8").splitlines())}


@pytest.fixture(scope="module")
def alone(data: Path, encoder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The table of one process that nobody disturbed."""
    output = tmp_path_factory.mktemp("alone") / "quality.jsonl"
    assert main([str(data), "--encoder", str(encoder), "--output", str(output), "--part", "8", "--keep", "5"]) == 0
    return output


def test_scores_are_those_of_the_definition(alone: Path, data: Path, encoder: Path):
    """Crops cut and cosines taken here, in numpy, for two pictures."""
    model, rows = need_words(load_encoder(encoder), "The test"), table(alone)
    for name in ("000", "017"):
        entries = json.loads((data / "jsons" / f"{name}.json").read_text())["final_masks"][1:]
        pixels, mask = (np.asarray(Image.open(data / kind / f"{name}.png")) for kind in ("images", "masks"))
        crops = []
        for entry in entries:
            x0, y0, x1, y1 = (int(edge) for edge in entry["box"])
            inside = mask[y0:y1, x0:x1] == entry["value"]
            cut = np.where(inside[..., None], pixels[y0:y1, x0:x1], 255).astype(np.uint8)
            square = Image.new("RGB", (max(cut.shape[:2]),) * 2, "white")
            square.paste(Image.fromarray(cut), ((square.width - (x1 - x0)) // 2, (square.width - (y1 - y0)) // 2))
            crops.append(np.asarray(square.resize((224, 224), Image.Resampling.BILINEAR)))
        features = model.texts([entry["label"] for entry in entries]), model.images(crops)
        text, image = (x.numpy().astype(np.float64) for x in features)
        text, image = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (text, image))
        assert rows[name]["single"] == pytest.approx((text * image).sum(1).mean(), abs=1e-4)
        assert rows[name]["pair"] == pytest.approx(-image[0] @ image[1], abs=1e-4)
        assert rows[name]["total"] == pytest.approx(rows[name]["single"] + rows[name]["pair"], abs=2e-6)
        assert rows[name]["labels"] == [entry["label"] for entry in entries] and rows[name]["objects"] == 2


def test_all_objects_of_a_picture_count(encoder: Path, tmp_path: Path):
    """The formula sums over all objects: three here, the third one's label twice in one picture."""
    from mip_adapter.commands.curation.read import Folder

    folder = write_folder(tmp_path / "data", 4, size=(144, 80), objects=3)
    entries = json.loads((folder / "jsons" / "003.json").read_text())["final_masks"]
    entries[3]["label"] = entries[1]["label"]
    edit_json(folder, 3, final_masks=entries)
    line = [str(folder), "--encoder", str(encoder), "--output"]
    assert main([*line, str(tmp_path / "all.jsonl")]) == main(
        [*line, str(tmp_path / "two.jsonl"), "--max-objects", "2"]
    )
    model, rows, of_two = (
        need_words(load_encoder(encoder), "The test"),
        *(table(tmp_path / f"{n}.jsonl") for n in ("all", "two")),
    )
    assert len(rows) == len(of_two) == 4
    for name, row in rows.items():
        objects = Folder(folder).objects(name)
        assert not isinstance(objects, str) and row["objects"] == 3 and row["labels"] == list(objects.labels)
        t, v = (
            each / each.norm(dim=-1, keepdim=True)
            for each in (model.texts(objects.labels), model.images(objects.crops))
        )
        cosines = v @ v.T
        assert row["single"] == pytest.approx(float((t * v).sum(-1).mean()), abs=1e-5)
        assert row["pair"] == pytest.approx(-float(cosines.sum() - cosines.trace()) / 6, abs=1e-5)
        assert of_two[name]["objects"] == 2 and of_two[name]["labels"] == row["labels"][:2]


def test_the_encoder_is_named(alone: Path, encoder: Path, data: Path, capsys: pytest.CaptureFixture[str]):
    from mip_adapter.evaluation.model_folder import identity

    assert {row["encoder"] for row in table(alone).values()} == {identity(encoder)}
    assert main([str(data), "--encoder", str(encoder), "--output", str(alone), "--part", "8"]) == 0
    assert f"by the encoder tiny-clip, weights {identity(encoder)[-12:]}" in capsys.readouterr().out


def test_pictures_of_one_object_are_said_not_to_compare(
    encoder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    folder = write_folder(tmp_path / "data", 3)
    line = [str(folder), "--encoder", str(encoder), "--min-objects", "1", "--output"]
    assert main([*line, str(tmp_path / "same.jsonl")]) == 0
    assert "do not compare" not in capsys.readouterr().out
    edit_json(folder, 1, final_masks=json.loads((folder / "jsons" / "001.json").read_text())["final_masks"][:2])
    assert main([*line, str(tmp_path / "mixed.jsonl")]) == 0
    assert "totals do not compare" in capsys.readouterr().out


def test_every_picture_is_accounted_for(alone: Path, data: Path, capsys: pytest.CaptureFixture[str], encoder: Path):
    assert sorted(table(alone)) == [f"{n:03d}" for n in range(40)]
    broken = alone.with_suffix(".broken.txt").read_text()
    assert "040: UnidentifiedImageError" in broken and "041: ValueError: it is no readable JSON" in broken
    assert (
        main([str(data), "--encoder", str(encoder), "--output", str(alone), "--part", "8"]) == 0
    )  # nothing left to do
    said = capsys.readouterr().out
    assert "40 of 43 pictures scored, 2 broken" in said and "1 left out: too few objects remain" in said
    assert "left\n" not in said.split("scored")[0]


def test_keeps_the_best(alone: Path, data: Path):
    folder, ids = read_subset(alone.with_suffix(".kept.txt"))
    order = sorted(table(alone).values(), key=lambda row: -row["total"])
    assert folder == data and ids == [row["id"] for row in order[:5]]


def test_training_reads_what_is_kept(alone: Path):
    from mip_adapter.training.config import TrainConfig
    from mip_adapter.training.dataset import SubjectFolder

    kept = alone.with_suffix(".kept.txt")
    samples = SubjectFolder(kept, TrainConfig(resolution=64))
    assert len(samples) == 5 and {samples[index].id for index in range(5)} == set(read_subset(kept)[1])


def test_the_contact_sheet_is_a_picture_of_all_it_shows(alone: Path):
    with Image.open(alone.with_suffix(".png")) as sheet:
        assert sheet.mode == "RGB" and sheet.width > 1000 and sheet.height > 6 * 200
        assert len(set(sheet.getdata())) > 1000  # pyright: ignore[reportArgumentType]


def test_objects_have_the_colours_that_they_have_everywhere():
    from mip_adapter.commands.curation.sheet import Entry, contact_sheet
    from mip_adapter.common.drawing import colour

    boxes = [(10 + 60 * i, 30, 60 + 60 * i, 180) for i in range(3)]
    entry = Entry(Image.new("RGB", (192, 192), "white"), boxes, ["cat", "dog", "bird"], "")
    with Image.open(io.BytesIO(contact_sheet([("Best", [entry])]))) as sheet:
        colours = {pixel for _, pixel in sheet.getcolors(1 << 20) or ()}
    assert {colour(i) for i in range(3)} <= colours


def test_parquet_where_pyarrow_is(tmp_path: Path):
    path = tmp_path / "quality.parquet"
    rows = [{"id": name, "objects": 2, "labels": ["a", "b"], "single": 0.5, "pair": 0.0, "total": 0.5} for name in "ba"]
    by = "clip, weights 0123"
    if importlib.util.find_spec("pyarrow") is None:
        with pytest.raises(ValueError, match="needs pyarrow.*jsonl"):
            check_table(path)
        return
    write_table(path, rows, by)
    from pyarrow import parquet

    assert parquet.read_table(path).to_pylist() == [{**row, "encoder": by} for row in rows[::-1]]


def test_quantiles():
    rows = [{"id": str(i), "total": i / 10} for i in range(10)]
    assert [row["id"] for row in best(rows, quantile=0.8)] == ["9", "8"]
    assert len(best(rows, quantile=0.0)) == 10 and [row["id"] for row in best(rows, quantile=1.0)] == ["9"]
    assert [row["id"] for row in best(rows, keep=3)] == ["9", "8", "7"] and len(best(rows, keep=99)) == 10
    tied = [{"id": name, "total": 1.0} for name in "cab"]
    assert [row["id"] for row in best(tied, keep=2)] == ["a", "b"]


def command(data: Path, encoder: Path, output: Path, part: int) -> list[str]:
    return [str(ROOT / "mip.py"), "curate", str(data), "--encoder", str(encoder), "--output", str(output),
            "--part", str(part), "--keep", "5", "--device", "cpu"]  # fmt: skip


def variables(tmp_path: Path) -> dict[str, str]:
    """mip.py with this interpreter; curating reads nothing from the host."""
    (tmp_path / "host" / "comfy").mkdir(parents=True)
    (tmp_path / "host" / "main.py").touch()
    return os.environ | {"MIP_ADAPTER_PYTHON": sys.executable, "COMFYUI_PATH": str(tmp_path / "host")}


def assert_same_table(got: Path, expected: Path):
    """Up to the last digit that is written: threads may add in another order."""
    got_rows, expected_rows = table(got), table(expected)
    assert list(got_rows) == list(expected_rows)
    for name, row in expected_rows.items():
        for key, value in row.items():
            assert got_rows[name][key] == (pytest.approx(value, abs=2.1e-6) if isinstance(value, float) else value)


def test_two_processes_make_the_same_table(
    data: Path, encoder: Path, alone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """One after the other here; whoever comes last writes the table."""
    output = tmp_path / "quality.jsonl"
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank in "01":
        monkeypatch.setenv("RANK", rank)
        assert not output.exists()
        assert main(command(data, encoder, output, 8)[2:]) == 0
    assert_same_table(output, alone)
    assert output.with_suffix(".kept.txt").read_text() == alone.with_suffix(".kept.txt").read_text()


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGKILL")
def test_two_processes_are_killed_and_one_goes_on(data: Path, encoder: Path, alone: Path, tmp_path: Path):
    output = tmp_path / "quality.jsonl"
    parts = tmp_path / "quality.jsonl.parts"
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--num_processes", "2"]
    line = [*launch, *command(data, encoder, output, 1)]

    def both_began() -> bool:
        return {int(file.stem) % 2 for file in parts.glob("0*.jsonl")} == {0, 1}

    with started(line, env=variables(tmp_path), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        wait_for(process, both_began)
    before = {file: file.stat().st_mtime_ns for file in parts.glob("0*.jsonl")}
    assert both_began() and len(before) < 43 and not output.exists()
    assert main(command(data, encoder, output, 1)[2:]) == 0
    assert all(file.stat().st_mtime_ns == when for file, when in before.items())  # not done twice
    assert_same_table(output, alone)


def test_a_row_is_a_line_whatever_its_words(tmp_path: Path):
    parts = open_parts(tmp_path, ["a", "b"], {}, 2)
    rows = [{"id": "a", "label": "line\u2028separator"}, {"id": "b", "label": "next\u0085line"}]
    parts.finish(0, rows)
    assert [*parts.rows()] == rows


def test_parts_of_another_job_are_not_mixed(tmp_path: Path):
    open_parts(tmp_path, ["a", "b"], {"encoder": "wrong"}, 1)  # no part finished: as if it had never been
    open_parts(tmp_path, ["a", "b"], {"encoder": "small"}, 1).finish(0, [{"id": "a"}])
    parts = open_parts(tmp_path, ["a", "b"], {"encoder": "small"}, 1)
    assert list(parts.todo()) == [(1, ("b",))]
    for ids, settings in ((["a", "c"], {"encoder": "small"}), (["a", "b"], {"encoder": "large"})):
        with pytest.raises(ValueError, match="parts of another run.*remove it"):
            open_parts(tmp_path, ids, settings, 1)
    parts = open_parts(tmp_path, ["a", "c"], {"encoder": "large"}, 1, fresh=True)
    assert list(parts.todo(1, 2)) == [(1, ("c",))]


def test_bad_input_gets_a_sentence(data: Path, encoder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    pickled = tmp_path / "pickled"
    pickled.mkdir()
    (pickled / "config.json").write_text('{"model_type": "clip"}')
    (pickled / "pytorch_model.bin").touch()
    bert = tmp_path / "bert"
    bert.mkdir()
    (bert / "config.json").write_text('{"model_type": "bert", "hidden_size": 12, "num_hidden_layers": 0}')
    (bert / "model.safetensors").write_bytes((encoder / "model.safetensors").read_bytes())
    (tmp_path / "empty").mkdir()
    for folder, chosen, more, says in (
        (data, tmp_path / "nowhere", [], "no encoder in"),
        (data, pickled, [], "no .safetensors weights"),
        (data, bert, [], "Download"),
        (tmp_path / "empty", encoder, [], "No training data in"),
        (data / "jsons" / "000.json", encoder, [], "is a file"),
        (data, encoder, ["--output", str(tmp_path / "table.csv")], ".jsonl or .parquet"),
        (data, encoder, ["--min-objects", "3", "--max-objects", "3"], "nothing to score"),
    ):
        line = [str(folder), "--encoder", str(chosen), "--output", str(tmp_path / "out" / "q.jsonl"), *more]
        assert main(line) == 1
        assert says in capsys.readouterr().err, says
    for wrong in (
        ["--keep", "0"],
        ["--quantile", "1.5"],
        ["--keep", "1", "--quantile", "0.5"],
        ["--min-objects", "3", "--max-objects", "2"],
    ):
        with pytest.raises(SystemExit):
            main([str(data), "--encoder", str(encoder), *wrong])


def test_kept_lists(tmp_path: Path):
    (tmp_path / "data").mkdir()
    write_subset(tmp_path / "data" / "best.txt", tmp_path / "data", ["b", "a"])
    (tmp_path / "data").rename(tmp_path / "moved")
    assert read_subset(tmp_path / "moved" / "best.txt") == (tmp_path / "moved", ["b", "a"])
    for text, says in (("a\nb\n", "no list of kept"), ("# dataset: .\n", "is empty"), ("", "no list of kept")):
        (tmp_path / "bad.txt").write_text(text)
        with pytest.raises(ValueError, match=says):
            read_subset(tmp_path / "bad.txt")
