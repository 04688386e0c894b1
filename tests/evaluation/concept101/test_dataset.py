"""The dataset in the benchmark's layout."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from mip_adapter.evaluation.concept101.dataset import read_pairs, references

from ...support.concept101 import BOX, RED, write_dataset
from ...support.sentences import told


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
