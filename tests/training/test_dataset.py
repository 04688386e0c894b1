"""The folder of training data: what counts as a sample, what it holds, what happens to bad input."""

from __future__ import annotations

import json
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ..support.training_world import edit_json, small_recipe, write_folder


def open_folder(folder: Path, **changes):
    from mip_adapter.training.dataset import SubjectFolder

    return SubjectFolder(folder, small_recipe(**changes))


def same(a, b) -> bool:
    plain = ("id", "index", "caption", "names", "original_size", "corner", "drop_text", "drop_image", "broken")
    return all(getattr(a, key) == getattr(b, key) for key in plain) and all(
        torch.equal(getattr(a, key), getattr(b, key)) for key in ("image", "references", "mask")
    )


def test_a_sample(tmp_path: Path) -> None:
    samples = open_folder(write_folder(tmp_path), drop_text=0, drop_image=0, drop_both=0)
    sample = samples[3]
    assert len(samples) == 8 and sample.index == 3
    assert sample.image.shape == (3, 64, 64) and sample.image.min() >= 0 and sample.image.max() <= 1
    assert sample.references.shape == (2, 3, 224, 224)
    assert sample.caption == f"a {sample.names[0]} and a {sample.names[1]}"
    assert sample.original_size == (160, 192) and sample.corner[0] == 0 and 0 <= sample.corner[1] <= 16
    corners = sample.references[:, :, [0, 0, -1, -1], [0, -1, 0, -1]]
    assert (corners > 0.99).all()  # white around the object
    assert (sample.references[:, :, 112, 112] < 0.99).any(1).all()  # the object in the middle
    ground = sample.image[:, :1, :1]
    objects = (sample.image - ground).abs().amax(0) > 0.02  # the rectangles, as they lie in the picture
    assert sample.mask.shape == (8, 8) and sample.mask.amax() == 1 and sample.mask.amin() == 0
    assert (sample.mask - objects.float().unflatten(0, (8, 8)).unflatten(2, (8, 8)).mean((1, 3))).abs().max() < 0.3


def test_the_reference_is_the_masked_object_in_its_own_shape() -> None:
    from mip_adapter.training.crops import cut_reference

    picture, values = np.zeros((60, 60, 3), np.uint8), np.zeros((60, 60), np.uint8)
    values[10:50, 20:40] = 2
    values[25:35, 25:35] = 0  # a hole, filled
    values[10:12, 10:12] = 1
    picture[values == 2] = (255, 0, 0)
    cut = cut_reference(picture, values, (10, 10, 50, 50), False)
    assert cut is not None
    red = (cut[0] > 0.9) & (cut[1] < 0.1)
    black = cut.amax(0) < 0.1
    assert abs(float(red.float().mean()) - (20 * 40 - 100) / 40**2) < 0.04
    assert abs(float(black.float().mean()) - 100 / 40**2) < 0.02  # the hole belongs to the object
    assert cut_reference(picture, values * 0, (10, 10, 50, 50), False) is None


def test_the_mask_is_that_of_the_objects_of_the_boxes() -> None:
    from mip_adapter.training.crops import latent_mask

    values = np.zeros((64, 64), np.uint8)
    values[8:24, 8:20], values[8:24, 40:64], values[40:64, :] = 1, 2, 3
    values[20:24, 8:12] = 2  # another's piece within the first box
    mask = latent_mask(values, [(8, 8, 20, 24), (0, 40, 64, 64)], 64)
    wanted = torch.zeros(8, 8)
    wanted[1:3, 1], wanted[1:3, 2], wanted[5:, :] = 1, 0.5, 1
    wanted[2, 1] = 1 - 16 / 64
    assert torch.allclose(mask, wanted, atol=1 / 255)


def test_the_same_whatever_the_number_of_workers_and_the_order(tmp_path: Path) -> None:
    from mip_adapter.training.loader import batches
    from mip_adapter.training.processes import Alone

    write_folder(tmp_path, 6)
    runs = []
    for workers in (0, 2):
        recipe = small_recipe(workers=workers, batch_size=3)
        from mip_adapter.training.dataset import SubjectFolder

        stream = batches(SubjectFolder(tmp_path, recipe), recipe, Alone(), 0)
        runs.append([sample for _ in range(4) for sample in next(stream)])
    assert all(same(a, b) for a, b in zip(*runs, strict=True))
    ids = [sample.id for sample in runs[0]]
    assert sorted(ids[:6]) == sorted(ids[6:]) == [f"{i:03}" for i in range(6)] and ids[:6] != ids[6:]
    again = open_folder(tmp_path)
    assert all(same(again[sample.index], sample) for sample in reversed(runs[0]))
    other = open_folder(tmp_path, seed=1)
    assert [other[i].id for i in range(6)] != ids[:6]


def test_processes_share_a_step() -> None:
    from mip_adapter.training.loader import sample_indices

    def step(number: int, count: int, **changes) -> list[int]:
        recipe = small_recipe(**changes)
        streams = [sample_indices(recipe, rank, count, number) for rank in range(count)]
        return sorted(each for stream in streams for _ in range(recipe.accumulate) for each in next(stream))

    for number in (0, 5):
        assert (
            step(number, 1, batch_size=4)
            == step(number, 2, batch_size=2)
            == step(number, 1, batch_size=2, accumulate=2)
        )
        assert step(number, 1, batch_size=4) == list(range(4 * number, 4 * number + 4))


def test_shares_of_what_is_left_out() -> None:
    from mip_adapter.training.dataset import _drops

    recipe = small_recipe(drop_text=0.2, drop_image=0.1, drop_both=0.3)
    kinds = [_drops(random.Random(i), recipe) for i in range(3000)]
    for kind, share in (((True, False), 0.2), ((False, True), 0.1), ((True, True), 0.3), ((False, False), 0.4)):
        assert abs(kinds.count(kind) / 3000 - share) < 0.03


@pytest.mark.parametrize("objects", [1, 3, 4])
def test_other_numbers_of_objects(tmp_path: Path, objects: int) -> None:
    write_folder(tmp_path, 2, (120, 60), objects)
    samples = open_folder(tmp_path, min_objects=1, max_objects=3)
    assert 1 <= len(samples[0].names) <= 3 and len(samples[0].references) == len(samples[0].names)


def entry(label: str, box: list[float], logit: float = 0.9) -> dict:
    return {"label": label, "box": box, "logit": logit}


@pytest.mark.parametrize(
    "wrong, kept",
    [
        (entry("cat", [0, 0, 20, 20]), False),  # 4 % of the picture
        (entry("cat", [0, 0, 90, 90]), False),  # 81 %
        (entry("cat", [0, 0, 100, 12]), False),  # too wide
        (entry("cat", [40, 40, 90, 90], 0.3), False),  # not confident enough
        (entry("big cat", [40, 40, 90, 90]), False),  # two words
        (entry("cow", [40, 40, 90, 90]), False),  # not in the caption
        (entry("cat", [0, 2, 36, 38], 0.8), False),  # inside the dog
        (entry("dog", [50, 50, 90, 90], 0.8), False),  # the same name
        (entry("cat", [50, 50, 90, 90], 0.8), True),
    ],
)
def test_filters(wrong: dict, kept: bool) -> None:
    from mip_adapter.training.filters import Filters, candidates, refuse_names

    entries = [{"label": "background"}, entry("dog", [0, 0, 40, 40]), wrong]
    found, why = candidates(entries, "a dog and a cat", (100, 100), Filters(), 2)
    why = why or refuse_names(found, Filters())
    assert (why is None) == kept
    if kept:
        assert [each.label for each in found] == ["dog", "cat"]


@pytest.mark.parametrize("caption, kept", [("a dog in education", True), ("a dog and a bird", False)])
def test_a_label_is_looked_for_as_letters(caption: str, kept: bool) -> None:
    """The official rule: “cat” stands in “education”."""
    from mip_adapter.training.filters import NOT_IN_CAPTION, Filters, candidates

    entries = [entry("dog", [0, 0, 40, 40]), entry("cat", [50, 50, 90, 90])]
    assert candidates(entries, caption, (100, 100), Filters(), 2)[1] == (None if kept else NOT_IN_CAPTION)


@pytest.mark.parametrize(
    "labels, why",
    [
        (("dog", "inside"), "too few objects remain"),
        (("dog", "dog"), "two objects have the same name"),
        (("dog", "inside", "cat"), None),
        (("dog", "dog", "cat"), None),  # one of the dogs may have a mask that cannot be used
        (("dog", "dog", "inside"), None),
    ],
)
def test_a_picture_stays_if_some_masks_could_make_it_usable(labels: tuple[str, ...], why: str | None) -> None:
    from mip_adapter.training.filters import Filters, candidates

    boxes = [[0.0, 0.0, 40.0, 40.0], [50.0, 50.0, 90.0, 90.0], [50.0, 0.0, 90.0, 40.0]]
    entries = [entry(*pair) for pair in zip(labels, boxes, strict=False)]
    for each in entries:
        if each["label"] == "inside":
            each.update(box=[2, 2, 36, 36], logit=0.5)
    found, said = candidates(entries, "a dog and a cat inside", (100, 100), Filters(), 2)
    assert said == why and len(found) == (0 if why else len(labels))


@pytest.mark.parametrize("sound", [True, False])
def test_a_box_counts_as_inside_another_only_where_that_has_a_sound_mask(tmp_path: Path, sound: bool) -> None:
    """A more confident box around the first object, in training and in curation."""
    from mip_adapter.commands.curation.read import Folder
    from mip_adapter.commands.curation.score import LabelledCrops

    write_folder(tmp_path, 1)
    data = json.loads((tmp_path / "jsons" / "000.json").read_text())
    around = {"label": "cat", "box": [0, 0, 50, 79], "logit": 0.95}
    edit_json(tmp_path, 0, text=data["text"] + " and a cat", final_masks=[*data["final_masks"], around])
    mask = np.array(Image.open(tmp_path / "masks" / "000.png"))
    if sound:
        mask[2:79, :50] = 9
    else:
        mask[:70, 44:50] = np.repeat(np.arange(10, 17), 10)[:, None]  # beside the object: too many values
    Image.fromarray(mask).save(tmp_path / "masks" / "000.png")
    first, second = (each["label"] for each in data["final_masks"][1:])
    wanted = {"cat" if sound else first, second}
    assert set(open_folder(tmp_path)[0].names) == wanted
    scored = Folder(tmp_path).objects("000")
    assert isinstance(scored, LabelledCrops) and set(scored.labels) == wanted and len(scored.crops) == 2


@pytest.mark.parametrize("share, sound", [(0.7, True), (0.5, False), (0.0, False)])
def test_masks_inside_boxes(share: float, sound: bool) -> None:
    from mip_adapter.training.filters import Filters, mask_is_sound

    values = np.zeros((40, 40), np.uint8)
    values[10 : 10 + int(20 * share), 10:30] = 1
    if 0 < share < 0.6:
        values[10:30, 10:14] = 2  # so that nothing covers 60 %
    assert mask_is_sound(values, (10, 10, 30, 30), Filters()) == sound


# ---- bad input ----


def test_an_empty_folder(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="No training data in .*jsons/ID.json"):
        open_folder(tmp_path)
    with pytest.raises(ValueError, match="No training data"):
        open_folder(tmp_path / "absent")


def test_one_object_only(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="None of the 3 pictures .*too few objects remain.* 2 or more objects"):
        open_folder(write_folder(tmp_path, 3, objects=1))


def test_labels_that_are_not_in_the_captions(tmp_path: Path) -> None:
    write_folder(tmp_path, 3)
    for number in range(3):
        edit_json(tmp_path, number, text="two things")
    with pytest.raises(ValueError, match="labels do not stand in the caption"):
        open_folder(tmp_path)


def test_few_broken_samples_are_reported_and_passed_over(tmp_path: Path, caplog) -> None:
    write_folder(tmp_path, 40)
    (tmp_path / "jsons" / "007.json").write_text("{")
    picture = tmp_path / "images" / "011.png"
    picture.write_bytes(picture.read_bytes()[:-60])  # its header can be read, its pixels cannot
    samples = open_folder(tmp_path)
    assert set(samples.broken) == {"007"} and len(samples) == 39 and "sample 007 is broken" in caplog.text
    epoch = [samples[i] for i in range(39)]
    slot = next(i for i, sample in enumerate(epoch) if sample.broken)
    assert epoch[slot].broken[0][0] == "011" and epoch[slot].broken[0][1]
    assert epoch[slot].id == epoch[(slot + 1) % 39].id  # the next of the epoch
    assert sum(bool(sample.broken) for sample in epoch) == 1


@pytest.mark.parametrize("early", [True, False])
def test_many_broken_samples_stop_with_the_list(tmp_path: Path, early: bool) -> None:
    write_folder(tmp_path, 20)
    for number in (3, 5):
        if early:
            (tmp_path / "images" / f"{number:03}.png").unlink()
        else:
            Image.new("L", (5, 5)).save(tmp_path / "masks" / f"{number:03}.png")
    with pytest.raises(ValueError, match="2 of 20 training samples cannot be read") as caught:
        samples = open_folder(tmp_path)
        from mip_adapter.training.trainer import train

        from ..support.training_world import PlainModel, small_adapter

        train(PlainModel(), samples, small_adapter(), small_recipe(steps=20))
    assert "003" in str(caught.value) and "005" in str(caught.value)


def test_the_folder_tells_what_it_left_out(tmp_path: Path) -> None:
    write_folder(tmp_path, 5)
    edit_json(tmp_path, 1, text="nothing")
    data = json.loads((tmp_path / "jsons" / "002.json").read_text())
    edit_json(tmp_path, 2, final_masks=data["final_masks"][:2])
    assert str(open_folder(tmp_path)).startswith("3 of 5 pictures are usable; 1 left out: ")


def test_sizes_that_do_not_belong_together(tmp_path: Path) -> None:
    from mip_adapter.training.config import TrainConfig, read_table

    for table, message in (
        ({"stepz": 3}, "no setting stepz"),
        ({"steps": "many"}, "expected a int"),
        ({"train": "everything"}, "choose one of adapter, head, all"),
        ({"filters": {"area_min": 0.9}}, "area_min is 0.9"),
        ({"max_objects": 1}, "below min_objects"),
        ({"train": "head", "gate": "off"}, "nothing to train"),
    ):
        with pytest.raises(ValueError, match=message):
            read_table(TrainConfig, table, "recipe")
    assert read_table(TrainConfig, {"ema": 0, "filters": {"one_word": False}}, "recipe").filters.one_word is False


@pytest.mark.parametrize(
    ("shares", "said"),
    [
        ({"drop_text": 0.5, "drop_image": 0.4, "drop_both": 0.2}, "0.5, 0.4, 0.2; expected .* together at most 1"),
        ({"flip": 1.5}, "^flip is 1.5"),
    ],
)
def test_shares_above_one_are_refused(shares: dict, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        small_recipe(**shares)
    small_recipe(drop_text=0.5, drop_image=0.3, drop_both=0.2, flip=1.0)  # flip is not one of those that add up
