"""`mip.py concept101` on a tiny dataset in the benchmark's layout: read, drawn, scored, killed, resumed, shared out."""

from __future__ import annotations

import csv
import json
import os
import shutil
import subprocess
import sys
import time
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mip_adapter.commands.concept101.remarks import of_settings, of_texts
from mip_adapter.commands.concept101.settings import Settings, guard
from mip_adapter.evaluation.concept101.dataset import Concept, Pair, load, read_pairs, references
from mip_adapter.evaluation.concept101.schedule import official_sigmas, official_timesteps, start_factor
from mip_adapter.evaluation.concept101.score import texts_of
from mip_adapter.evaluation.concept101.table import PUBLISHED, means, tables
from mip_adapter.weights.spec import ARCHITECTURES, AdapterSpec, EncoderNeed
from PIL import Image, ImageDraw

from ..support import tiny_clip, tiny_models
from ..support.bounded import needs_fork
from ..support.forks import forked, four
from ..support.paths import ROOT
from ..support.sentences import told
from ..support.subprocesses import started, wait_for
from .test_personalization import Clip, Dino, cosine

RED = (220, 20, 20)
BOX = (30, 20, 90, 60)  # of the red object, in pictures of 120 × 100
PROMPTS = "A photo of the {0} and {1}.\n{1} beside a {0} \n\na painting of {0}, {1}\n"


def write_dataset(folder: Path, times: int = 1) -> Path:
    """Three pairs of four concepts, each so many times; three prompts each."""
    random = np.random.default_rng(0)
    concepts = {"pet_cat1": "cat", "pet_dog1": "dog", "things_cup2": "cup", "wearable_jacket1": "jacket"}
    for name in concepts:
        (folder / "benchmark_dataset" / name).mkdir(parents=True)
        (folder / "json_data" / name).mkdir(parents=True)
        for number in range(2):
            image = Image.fromarray(random.integers(60, 200, (100, 120, 3), np.uint8))
            ImageDraw.Draw(image).rectangle((BOX[0], BOX[1], BOX[2] - 1, BOX[3] - 1), fill=RED)
            image.save(folder / "benchmark_dataset" / name / f"photo {number}.png")
            mask = [
                {"value": 0, "label": "background"},
                {"value": 1, "label": "x", "box": [edge * 8.0 for edge in BOX]},
            ]
            (folder / "json_data" / name / f"photo {number}.json").write_text(json.dumps({"mask": mask}))
    (folder / "prompts").mkdir()
    (folder / "prompts" / "two.txt").write_text(PROMPTS)
    names = list(concepts)
    entries = [
        [
            *({"class_prompt": concepts[c], "instance_data_dir": f"./benchmark_dataset/{c}"} for c in (a, b)),
            {"prompt_filename_compose": "prompts/two.txt"},
        ]
        for a, b in (names[:2], names[2:], names[::3])
    ] * times
    (folder / "dataset_multiconcept.json").write_text(json.dumps(entries))
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dataset(tmp_path_factory.mktemp("concept101"))


@pytest.fixture(scope="module")
def encoders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    base = tmp_path_factory.mktemp("encoders")
    return tiny_clip.write(base / "tiny-clip"), tiny_models.dino(base / "tiny-dino")


def line(data: Path, output: Path, encoders: tuple[Path, Path]) -> list[str]:
    """The smallest pictures that the miniature makes."""
    return [
        *("--data", str(data), "--output", str(output), "--checkpoint", "miniature", "--adapter", "miniature"),
        *("--encoder", str(encoders[0]), "--dino", str(encoders[1]), "--steps", "1", "--side", "64", "--cpu"),
    ]


@pytest.fixture(scope="module")
def alone(host, data: Path, encoders: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One process that nobody disturbed."""
    from mip_adapter.commands.concept101.command import main

    output = tmp_path_factory.mktemp("alone")
    assert main(line(data, output, encoders)) == 0
    return output


# ---- the dataset ----


def test_the_layout_is_read(data: Path):
    pairs = read_pairs(data)
    assert [pair.name for pair in pairs] == [
        "000 pet_cat1+pet_dog1", "001 things_cup2+wearable_jacket1", "002 pet_cat1+wearable_jacket1",
    ]  # fmt: skip
    assert pairs[0].prompts == ("A photo of the cat and dog.", "dog beside a cat", "a painting of cat, dog")
    assert [concept.text for concept in pairs[2].concepts] == ["cat", "jacket"]


def test_references_are_the_boxes_on_white_squares(data: Path):
    cat, dog = references(read_pairs(data)[0])
    assert (cat.text, dog.text) == ("cat", "dog") and cat.images.shape == (2, 224, 224, 3)
    red = torch.tensor(RED) / 255
    height = round(224 * (BOX[3] - BOX[1]) / (BOX[2] - BOX[0]))  # the box is 60 × 40
    inside = slice((224 - height) // 2 + 2, (224 + height) // 2 - 2)
    assert torch.allclose(cat.images[:, inside], red.expand(2, inside.stop - inside.start, 224, 3), atol=0.01)
    assert (cat.images[:, : (224 - height) // 2 - 2] == 1).all() and (cat.images[:, -30:] == 1).all()
    whole = references(read_pairs(data, cropped=False)[0])[0]
    assert whole.images.shape == (2, 224, 224, 3) and not torch.equal(whole.images, cat.images)


def test_bad_data_gets_a_sentence(data: Path, tmp_path: Path):
    told(lambda: read_pairs(tmp_path), "dataset_multiconcept.json", "prompts/")
    broken = write_dataset(tmp_path / "broken")
    box = broken / "json_data" / "pet_dog1" / "photo 1.json"
    box.write_text('{"mask": []}')
    told(lambda: references(read_pairs(broken)[0]), "mask[1].box", "photo 1.json")
    box.unlink()
    told(lambda: read_pairs(broken), "photo 1.json", "json_data/", "--uncropped")
    assert len(read_pairs(broken, cropped=False)) == 3
    (broken / "prompts" / "two.txt").write_text(" \n")
    told(lambda: read_pairs(broken, cropped=False), "prompts of pair 0")
    (broken / "dataset_multiconcept.json").write_text('[[{"class_prompt": "cat"}, {}, {}]]')
    told(lambda: read_pairs(broken), "Pair 0", "instance_data_dir")
    for away in ("/etc/passwd", "../x.txt", "prompts\\..\\..\\x.txt", "C:x.txt", "\\\\somewhere\\share\\x.txt"):
        concepts = [{"class_prompt": "cat", "instance_data_dir": "./benchmark_dataset/pet_cat1"}] * 2
        listed = json.dumps([[*concepts, {"prompt_filename_compose": away}]])
        (broken / "dataset_multiconcept.json").write_text(listed)
        told(lambda: read_pairs(broken, cropped=False), "Pair 0", "leads out of the folder")
    (broken / "dataset_multiconcept.json").write_text("[]")
    told(lambda: read_pairs(broken), "lists no pairs")


# ---- a run ----


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


# ---- as the official code ----


def test_the_official_noise_levels_are_those_of_diffusers():
    """Printed by EulerDiscreteScheduler of diffusers 0.23.1, which the official code asks for, with SDXL's settings:
    betas "scaled_linear" from 0.00085 to 0.012, timestep_spacing "leading", steps_offset 1."""
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    alphas = (1 - betas).cumprod(0)
    sigmas = ((1 - alphas) / alphas).sqrt()
    got = official_sigmas(sigmas, 30)
    assert official_timesteps(30) == [*range(958, 0, -33)]
    first, last = [11.476851, 9.543586, 8.004313, 6.768384], [0.267653, 0.182166, 0.041314, 0.0]
    torch.testing.assert_close(got[[0, 1, 2, 3, -4, -3, -2, -1]], torch.tensor(first + last), rtol=1e-5, atol=1e-6)
    assert float(got[0]) * start_factor(got, float(sigmas[-1])) == pytest.approx(11.520334, rel=1e-5)
    assert official_timesteps(1) == [1] and official_timesteps(999)[0] == 999
    assert start_factor(official_sigmas(sigmas, 999), float(sigmas[-1])) == 1  # the host does it there
    for wrong in (0, 1000):
        told(lambda wrong=wrong: official_timesteps(wrong), "1 to 999 steps", f"not {wrong}: set another --steps")


@pytest.mark.parametrize("schedule", ["host", "official"])
def test_pictures_are_sampled_at_the_levels_that_were_asked_for(host, data: Path, schedule: str):
    """What the sampler hands to the model: noise of √(σ² + 1), then every level in turn."""
    import comfy.sample
    from mip_adapter.commands.concept101.comfy_painter import Painter

    painter = Painter(Settings("miniature", "miniature", steps=4, side=64, schedule=schedule))  # pyright: ignore[reportArgumentType]
    model, seen = painter.with_references(references(read_pairs(data)[0])), []

    def note(apply, given):
        seen.append((given["input"][:1].clone(), given["timestep"][0].clone()))
        return apply(given["input"], given["timestep"], **given["c"])

    model.set_model_unet_function_wrapper(note)
    painter.picture(model, "a cat", 1)
    sampling = model.get_model_object("model_sampling")
    levels = [int(sampling.timestep(sigma)) for _, sigma in seen]
    assert levels == ([999, 666, 333, 0] if schedule == "host" else [751, 501, 251, 1])
    noise = comfy.sample.prepare_noise(torch.zeros(1, 4, 8, 8), 420, [1])
    x, sigma = seen[0]
    torch.testing.assert_close(x.cpu(), noise * (1 + sigma.cpu() ** 2).sqrt(), rtol=1e-4, atol=1e-4)


def test_texts_from_file_names():
    """As the official code would have it: the name up to its first period, and one file for the same prompt."""
    concept = Concept("cat", "cat", ())
    prompts = ("a cat.", "a cat inside a pot", "a toy cat.", "a cat v1.5 on it.", "a toy cat.")
    pair = Pair(0, (concept, concept), prompts)
    folder: dict[str, int] = {}
    for number, prompt in enumerate(prompts):
        folder[prompt + "_gen.png"] = number
    official = {number: name.split(".")[0] + "." for name, number in folder.items()}
    assert texts_of(pair, True) == official
    assert official == {0: "a cat.", 1: "a cat inside a pot_gen.", 4: "a toy cat.", 3: "a cat v1."}
    assert texts_of(pair, False) == dict(enumerate(prompts))
    (said,) = of_texts([pair, Pair(1, (concept, concept), ("a dog.",))], False)
    assert "2 of them end in “_gen.” or early, and 1 pairs" in said and "--file-name-texts" in said
    (said,) = of_texts([pair], True)
    assert said.startswith("CLIP-T's texts come from file names") and "--file-name-texts" not in said
    assert of_texts([Pair(1, (concept, concept), ("a dog.", "a cat."))], False) == []


def test_scores_by_file_names(alone: Path, data: Path, encoders, tmp_path: Path):
    """The second and third prompt of each pair end in no period; the pictures are not made again."""
    from mip_adapter.commands.concept101.command import main

    copy, clip = shutil.copytree(alone, tmp_path / "copy"), Clip(encoders[0])
    assert main([*line(data, copy, encoders), "--file-name-texts"]) == 0
    whole, before = (table(folder) for folder in (copy, alone))
    pair = read_pairs(data)[0]
    words = [pair.prompts[0], *(f"{prompt}_gen." for prompt in pair.prompts[1:])]
    files = sorted((copy / "pictures" / pair.name).iterdir())
    cosines = [cosine(clip.picture(Image.open(f)), clip.words(w)) for f, w in zip(files, words, strict=True)]
    assert whole["pairs"][0]["clip_t"] == pytest.approx(np.mean([2.5 * max(each, 0) for each in cosines]), abs=1e-5)
    assert whole["clip_t"] != before["clip_t"] and whole["clip_i"] == pytest.approx(before["clip_i"], abs=1e-6)
    assert len([*copy.glob("scores-*")]) == 2
    for made, way in ((whole, "come from file names"), (before, "are the prompts")):
        assert any(f"CLIP-T's texts {way}" in each and "6 of them end" in each for each in made["remarks"])


def spec(architecture: str, tokens: int) -> AdapterSpec:
    context, runs = ARCHITECTURES[architecture]
    widths = [width for count, width in runs for _ in range(count)]
    need = EncoderNeed("an encoder", "image_embeds", 8)
    return AdapterSpec("base", context, tokens, need, True, tuple((2 * n + 1, w) for n, w in enumerate(widths)))


@pytest.mark.parametrize(
    ("changes", "adapter", "says"),
    [
        ({}, ("SDXL", 4), ["SDXL base 1.0, the plus rows over RealVisXL 1.0; this row over some.safetensors."]),
        ({}, ("SD1.5", 4), ["some.safetensors, which is no SDXL: its adapter is for SD1.5"]),
        ({"checkpoint": "miniature"}, None, ["this row over the miniature"]),
        ({"cropped": False}, ("SDXL", 4), ["References are whole pictures"]),
        ({"scale": 0.65}, ("SDXL", 4), ["scale 0.65 instead of 0.75"]),
        ({"scale": 0.75}, ("SDXL", 16), ["scale 0.75 instead of 0.65"]),
        ({"scale": 1.0}, None, ["scale 1.0 instead of 0.75 or 0.65"]),
        ({"strategy": "concat"}, ("SDXL", 4), ["strategy concat instead of relevance", "how the published IP-Adapter"]),
        ({"head": False, "steps": 20}, ("SDXL", 4), ["head False instead of True, steps 20 instead of 30", "t = 951"]),
        ({"negative": "", "vae": "a/b.pt"}, ("SDXL", 4), ["another negative prompt, the VAE b.pt"]),
        ({}, ("SDXL", 4), ["from t = 999; the official code begins at t = 958", "--schedule official"]),
    ],
)
def test_remarks_say_what_is_otherwise(changes: dict, adapter, says: list[str]):
    settings = Settings(**({"checkpoint": "models/some.safetensors", "adapter": "x"} | changes))
    said = of_settings(settings, adapter and spec(*adapter))
    assert all(any(words in each for each in said) for words in says)


def test_a_run_as_the_official_code_has_only_its_base_to_be_remarked():
    for tokens, scale in ((4, 0.75), (4, None), (16, 0.65), (16, None)):
        settings = Settings("sd_xl_base_1.0.safetensors", "x", scale=scale, schedule="official")
        (said,) = of_settings(settings, spec("SDXL", tokens))
        assert said.endswith("this row over sd_xl_base_1.0.safetensors.")


def test_folders_from_before_the_schedule_could_be_chosen_go_on(tmp_path: Path):
    settings = Settings("miniature", "miniature")
    assert "schedule" not in settings.described()
    guard(tmp_path, settings.described())
    official = Settings("miniature", "miniature", schedule="official").described()
    told(lambda: guard(tmp_path, official), "schedule was None, is official")


# ---- the table ----


def test_a_table_without_dino():
    row = {"id": "0", "pictures": 12, "clip_t": 0.7, "clip_i": 0.6}
    made = tables("ours", [row] * 101, {"scale": 0.75}, {"clip_t": "c", "clip_i": "c"})
    assert "| **ours** | **0.7000** | **0.6000** | **–** |" in made["md"] and "DINO was not measured" in made["md"]
    assert "the whole benchmark has" not in made["md"] and json.loads(made["json"])["dino"] is None
    assert means([]) == {"clip_t": None, "clip_i": None, "dino": None}


def table(output: Path) -> dict:
    return json.loads((output / "concept101.json").read_text("utf-8"))


def assert_same_table(got: dict, expected: dict):
    """Up to the last digits: threads may add in another order."""
    assert len(got["pairs"]) == len(expected["pairs"])
    for a, b in [*zip(got["pairs"], expected["pairs"], strict=True), (got, expected)]:
        assert a.keys() == b.keys()
        for key, value in b.items():
            if key != "pairs":
                assert a[key] == (pytest.approx(value, abs=1e-4) if isinstance(value, float) else value), key


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


def test_encoders_are_tried_before_anything_is_drawn(host, data: Path, encoders, tmp_path: Path, capsys):
    from mip_adapter.commands.concept101.command import main

    assert main(line(data, tmp_path / "a", (encoders[1], encoders[1]))) == 1
    assert "sees pictures only" in capsys.readouterr().err and not [*tmp_path.glob("a/pictures/*/*.png")]
    assert main(line(data, tmp_path / "b", (encoders[0], tmp_path))) == 1
    assert "no config.json" in capsys.readouterr().err and not [*tmp_path.glob("b/pictures/*/*.png")]


def test_two_processes_make_the_same_table(alone: Path, data: Path, encoders, tmp_path: Path, monkeypatch, capsys):
    """One after the other here; whoever comes last writes the table."""
    from mip_adapter.commands.concept101.command import main

    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank in "01":
        monkeypatch.setenv("RANK", rank)
        assert not (tmp_path / "concept101.json").exists()
        assert main(line(data, tmp_path, encoders)) == 0
        said = capsys.readouterr().out
        assert ("2 of 3 pairs are scored; the last process" in said) == (rank == "0")
    assert_same_table(table(tmp_path), table(alone))
    for file in alone.glob("pictures/*/*.png"):
        assert file.read_bytes() == (tmp_path / file.relative_to(alone)).read_bytes()


@pytest.mark.slow
@needs_fork
def test_four_processes_that_know_nothing_of_each_other(alone: Path, data: Path, encoders, tmp_path: Path):
    """Each makes all that is missing; what one has made no other one replaces."""
    from mip_adapter.commands.concept101.command import main

    asked = [*line(data, tmp_path / "run", encoders), "--pairs", "1", "--prompts", "1"]
    assert four(lambda: main(asked), tmp_path) == [0] * 4
    (picture,) = (tmp_path / "run").rglob("*.png")
    expected = load(alone / picture.relative_to(tmp_path / "run"))
    assert np.abs(np.asarray(load(picture), float) - np.asarray(expected)).max() < 3  # threads add in another order
    assert len(table(tmp_path / "run")["pairs"]) == 1


@pytest.mark.slow
@needs_fork
def test_two_processes_are_killed_and_one_goes_on(host, alone: Path, data: Path, encoders, tmp_path: Path):
    from mip_adapter.commands.concept101.command import main

    def share(rank: int) -> int:
        os.environ.update(RANK=str(rank), WORLD_SIZE="2")
        return main(line(data, tmp_path, encoders))

    pictures = tmp_path / "pictures"
    with forked(lambda: share(0)) as process, forked(lambda: share(1)):
        while process.is_alive() and not both_began(pictures):
            time.sleep(0.01)
    before = {file: file.stat().st_mtime_ns for file in pictures.glob("*/*.png")}
    assert both_began(pictures) and not (tmp_path / "concept101.json").exists()
    assert main(line(data, tmp_path, encoders)) == 0
    assert all(file.stat().st_mtime_ns == when for file, when in before.items())
    assert_same_table(table(tmp_path), table(alone))


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGKILL")
def test_two_processes_are_killed_while_scoring_and_two_go_on(host, encoders, tmp_path: Path):
    """With pictures of another method, so that there is nothing but scoring."""
    from mip_adapter.commands.concept101.command import main

    data, random = write_dataset(tmp_path / "data", times=12), np.random.default_rng(1)
    for pair in read_pairs(data):
        folder = tmp_path / "alone" / "pictures" / pair.name
        folder.mkdir(parents=True)
        for number in range(3):
            Image.fromarray(random.integers(0, 255, (64, 64, 3), np.uint8)).save(folder / f"{number:02d}.png")
    killed = shutil.copytree(tmp_path / "alone", tmp_path / "killed")
    assert main(line(data, tmp_path / "alone", encoders)) == 0

    def scores() -> dict[Path, int]:
        return {file: file.stat().st_mtime_ns for file in killed.glob("scores-*/0*.jsonl")}

    with launched(host, line(data, killed, encoders)) as process:
        wait_for(process, lambda: len(scores()) > 1)
    before = scores()
    assert 1 < len(before) < 36 and not (killed / "concept101.json").exists()
    with launched(host, line(data, killed, encoders)) as process:
        assert process.wait() == 0
    assert len(scores()) == 36 and before.items() <= scores().items()
    assert_same_table(table(killed), table(tmp_path / "alone"))


def launched(host, arguments: list[str]) -> AbstractContextManager[Any]:
    """As two processes, by accelerate."""
    two = [sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--num_processes", "2"]
    variables = os.environ | {"MIP_ADAPTER_PYTHON": sys.executable, "COMFYUI_PATH": str(host.folder)}
    command = [*two, str(ROOT / "mip.py"), "concept101", *arguments]
    return started(command, env=variables, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def both_began(pictures: Path) -> bool:
    return all(any(pictures.glob(f"{number:03d} */*.png")) for number in (0, 1))


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


def test_pictures_of_other_settings_are_not_mixed(tmp_path: Path):
    settings = Settings("miniature", "miniature")
    guard(tmp_path, settings.described())
    guard(tmp_path, settings.described())
    told(
        lambda: guard(tmp_path, Settings("miniature", "miniature", steps=20, cfg=7.0).described()),
        "cfg was 5.0, is 7.0, steps was 30, is 20",
        "--output",
    )
