"""The binding report: its numbers from their definitions, its truth on drawn scenes, its words and its picture."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from mip_adapter.attention.reference import make_reference
from mip_adapter.common.bundled import MINIATURE
from mip_adapter.common.crops import iou
from mip_adapter.common.drawing import Canvas
from mip_adapter.evaluation.binding.binding import FAINT, Binding, PictureBinding, looks
from mip_adapter.evaluation.binding.findings import LEAK
from mip_adapter.evaluation.binding.matrix_picture import MOST_ROWS, draw_matrices, draw_matrix
from mip_adapter.evaluation.binding.report import binding_report, measure_binding, ranking, to_encode
from mip_adapter.evaluation.binding.verdict import verdict
from mip_adapter.evaluation.detection.detect import detect
from mip_adapter.evaluation.detection.detections import Detections
from mip_adapter.evaluation.detection.matching import match_objects, rematch_by_appearance
from mip_adapter.miniature import config
from mip_adapter.miniature.pixel_detector import PixelDetector
from mip_adapter.research.miniature import clip
from PIL import Image
from safetensors.torch import load_file

from ..support.drawn import Colours, draw, thing
from ..support.sentences import told

SEEDS = (0, 1, 4, 8, 9, 11)  # whose three objects share no colour


def searched(texts, *found) -> Detections:
    """One picture; found: a list of (box, score) for each text."""
    return Detections(tuple(texts), 100, 100, (tuple(tuple(thing(*each) for each in one) for one in found),))


# ---- which things are there ----


def test_overlap_is_intersection_over_union():
    assert iou((0, 0, 10, 10), (0, 0, 10, 10)) == 1
    assert iou((0, 0, 10, 10), (5, 0, 15, 10)) == pytest.approx(50 / 150)
    assert iou((0, 0, 10, 10), (10, 0, 20, 10)) == iou((5, 5, 5, 5), (5, 5, 5, 5)) == 0


A, B, C = (0, 0, 40, 40), (50, 0, 90, 40), (0, 50, 40, 90)


def test_one_thing_found_by_two_texts_is_one_thing():
    things = match_objects(searched(["cat", "dog"], [(A, 0.4)], [((1, 0, 40, 41), 0.8)]), 0, ["cat", "dog"])
    assert things.own == (None, 0) and things.found_as == (1,) and things.found[0].score == 0.8
    assert things.also_seen_as == (0, None)


def test_objects_share_out_the_things_so_that_the_sum_of_scores_is_largest():
    found = searched(["black cat", "white cat"], [(A, 0.6), (B, 0.55)], [(A, 0.58), (B, 0.2)])
    things = match_objects(found, 0, ["black cat", "white cat"])
    assert [things.found[row].box for row in things.own if row is not None] == [B, A]


def test_what_is_left_over_counts_for_the_best_text():
    found = searched(["cat", "dog"], [(A, 0.9), (C, 0.5)], [(B, 0.9), (C, 0.3)])
    things = match_objects(found, 0, ["cat", "dog"])
    assert things.own == (0, 1) and things.found_as == (0, 1, 0) and things.found[2].box == C


def test_nothing_found_and_texts_that_nobody_asked_for():
    things = match_objects(searched(["cat", "dog", "cup"], [], [], [(A, 0.9)]), 0, ["dog", "cat"])
    assert things.own == things.also_seen_as == (None, None) and not things.found
    assert match_objects(searched(["Dog "], [(A, 0.9)]), 0, ["dog"]).own == (0,)


def test_a_detection_without_any_certainty_is_one_all_the_same():
    things = match_objects(searched(["cat", "dog"], [(A, 0.0)], [(B, 0.4)]), 0, ["cat", "dog"])
    assert things.own == (0, 1) and [each.box for each in things.found] == [A, B]
    assert match_objects(searched(["cat"], [(A, 0.0)]), 0, ["cat"]).own == (0,)
    one = match_objects(searched(["cat", "dog"], [(A, 0.0)], [(A, 0.4)]), 0, ["cat", "dog"])
    assert one.own == (None, 0) and one.also_seen_as == (0, None)


def test_objects_with_the_same_text_are_told_apart_by_their_look():
    found = searched(["cat"], [(A, 0.9), (B, 0.8)])
    things = match_objects(found, 0, ["cat", "cat"])
    for like_first in (A, B):
        similarity = [[0.9, 0.2] if each.box == like_first else [0.3, 0.8] for each in things.found]
        boxes = [A, B] if like_first == A else [B, A]
        told_apart = rematch_by_appearance(things, ["cat", "cat"], torch.tensor(similarity))
        assert [told_apart.found[row].box for row in told_apart.own if row is not None] == boxes
        assert all(told_apart.found_as[row] == m for m, row in enumerate(told_apart.own) if row is not None)


# ---- the numbers ----


@given(seed=st.integers(0, 2**31), objects=st.integers(2, 4), several=st.booleans())
def test_numbers_equal_their_definitions(seed, objects, several):
    """Everything of a picture from its embeddings, in numpy."""
    random = np.random.default_rng(seed)
    refs = [random.normal(size=(1 + several * m, 6)) + 1 for m in range(objects)]
    crops = random.normal(size=(objects, 6)) + 1
    binding = measured(refs, crops)
    (picture,) = binding.pictures

    def cos(a, b):
        return a @ b / np.linalg.norm(a) / np.linalg.norm(b)

    s = np.array([[np.mean([cos(crop, r) for r in ref]) for ref in refs] for crop in crops])
    np.testing.assert_allclose(picture.similarity.numpy(), s, atol=1e-6)
    margins = [s[m, m] - max(s[m, j] for j in range(objects) if j != m) for m in range(objects)]
    assert list(picture.margin_by_object().values()) == pytest.approx(margins, abs=1e-6)
    assert binding.margin == pytest.approx(np.mean(margins), abs=1e-6)
    assert binding.confusion_rate == np.mean([margin < 0 for margin in margins]) and binding.presence == 1
    assert picture.worst_margin == pytest.approx(min(margins), abs=1e-6)
    assert picture.nearest == tuple(s.argmax(1))


def measured(refs, crops) -> Binding:
    """A Binding of one picture whose encoder gives these vectors: each object's square has a grey of its own."""
    grey = torch.arange(1, 40) * 6 / 255
    images = torch.zeros(1, 8, 8 * len(crops), 3)
    for m in range(len(crops)):
        images[:, :, 8 * m : 8 * m + 8] = grey[m]
    vectors = {m: crop for m, crop in enumerate(crops)}
    chain = []
    for ref in refs:
        first = max(vectors) + 1
        vectors |= {first + i: vector for i, vector in enumerate(ref)}
        pictures = torch.stack([torch.full((8, 8, 3), float(grey[first + i])) for i in range(len(ref))])
        chain.append(make_reference(pictures, f"object {len(chain)}"))
    found = tuple((thing((8 * m, 0, 8 * m + 8, 8)),) for m in range(len(crops)))
    detections = Detections(tuple(each.text for each in chain), 8, 8 * len(crops), (found,))

    class Known:
        name = "known"

        def images(self, pictures):
            numbers = [round(float(np.asarray(picture).mean()) / 6) - 1 for picture in pictures]
            return torch.tensor(np.stack([vectors[n] for n in numbers]), dtype=torch.float32)

    return measure_binding(images, chain, detections, Known())


@given(seed=st.integers(0, 2**31), objects=st.integers(2, 4), own=st.integers(0, 3))
def test_the_look_equals_its_definition(seed, objects, own):
    random, own = np.random.default_rng(seed), own % objects
    refs, v = random.normal(size=(objects, 5)) + 0.7, random.normal(size=5) + 0.7

    def angle(a, b):
        return np.arccos(a @ b / np.linalg.norm(a) / np.linalg.norm(b))

    others = [(j, r) for j, r in enumerate(refs) if j != own]
    way = np.zeros(objects)
    for j, r in others:
        way[j] = max(1 - angle(v, r) / angle(refs[own], r), 0)
    way[own] = np.mean([max(1 - angle(v, refs[own]) / angle(r, refs[own]), 0) for _, r in others])
    expected = way / way.sum() if way.sum() >= FAINT else np.zeros(objects)
    np.testing.assert_allclose(look(v, refs, own), expected, atol=1e-5)


def look(v, refs, own: int = 0) -> list[float]:
    v, refs = (torch.as_tensor(np.array(each)) for each in (v, refs))
    return looks(torch.nn.functional.normalize(v, dim=-1)[None], refs, [own])[0].tolist()


@pytest.mark.parametrize("alike", [0.1, 0.75])
@pytest.mark.parametrize("share", [0.0, 0.31, 0.5, 0.8, 1.0])
def test_the_look_of_a_blend_is_the_blend(alike, share):
    """31 % means 31 %, also where the references have much in common, and however much else is in the crop."""
    dog, cat = np.array([1.0, 0.0, 0.0]), np.array([alike, np.sqrt(1 - alike**2), 0.0])
    blend = (1 - share) * dog + share * cat
    assert look(blend, [dog, cat]) == pytest.approx([1 - share, share], abs=0.05)
    assert look(blend, [cat, dog]) == pytest.approx([share, 1 - share], abs=0.05)
    if share == 0.5:
        assert look(blend, [dog, cat]) == pytest.approx([0.5, 0.5])
        foreign = blend / np.linalg.norm(blend) + np.array([0, 0, 0.3])
        assert look(foreign, [dog, cat]) == pytest.approx([0.5, 0.5])
    thirds = np.eye(3) + 1
    assert look(thirds.sum(0), thirds) == pytest.approx([1 / 3] * 3)


def test_what_all_references_have_in_common_is_nobodys_look():
    """A dog with a quarter of its reference's own detail on what dog and cat share, and nothing of the cat's own."""
    common, own, others = np.sqrt(0.75), np.sqrt(0.25), 0.5
    dog, cat = np.array([common, own, 0, 0]), np.array([common, 0, own, 0])
    for detail in (0.15, 0.3, 0.6):
        crop = np.array([common, detail * own, 0, 0])
        crop[3] = np.sqrt(1 - crop @ crop)  # and whatever else
        assert crop @ cat == pytest.approx(0.75)
        assert look(crop, [dog, cat])[1] < 0.01 < LEAK
    crop = np.array([common, 0.3 * own, 0.3 * own, others])
    assert look(crop / np.linalg.norm(crop), [dog, cat]) in ([0.0, 0.0], pytest.approx([0.5, 0.5]))


def test_several_pictures_of_a_reference_weigh_no_more():
    """Their mean is shorter the more they differ; its direction counts."""
    refs = np.array([[1.0, 0.2, 0.1], [0.3, 1.0, 0.2]])
    shorter = refs * np.array([[1.0], [0.5]])
    assert look([0.8, 0.6, 0.3], refs) == pytest.approx(look([0.8, 0.6, 0.3], shorter))


def test_nothing_in_common_is_no_share_of_anything():
    assert look([-1.0, -0.2, 0.0], np.eye(3)[:2]) == [0.0, 0.0]
    assert look([1.0, 0.0], [[1.0, 0.0]]) == [1.0]
    same = look([1.0, 0.1, 0.0], [[1.0, 0.0, 0.0], [1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
    assert np.isfinite(same).all() and same[2] < LEAK


# ---- the drawn world's truth ----


@pytest.mark.parametrize("seed", SEEDS)
def test_right_looks_are_found_right_and_exchanged_ones_exchanged(seed):
    scene = draw(seed, pictures=2, looks=[(0, 1, 2), (1, 0, 2)])
    right, wrong = (measure_one(scene, b) for b in range(2))
    assert right.confusion_rate == 0 and right.margin is not None and right.margin > 0.05
    assert right.pictures[0].nearest == (0, 1, 2)
    assert wrong.pictures[0].nearest == (1, 0, 2) and wrong.confusion_rate == pytest.approx(2 / 3)
    assert wrong.margin is not None and wrong.margin < right.margin
    for m, j in ((0, 1), (1, 0)):
        assert wrong.pictures[0].look[m].argmax() == j
    names = [f"“{reference.text}”" for reference in scene.references]
    assert verdict(wrong)[1].startswith(
        f"Exchanged: {names[0]} and {names[1]} wear each other's looks. Take another seed"
    )


class Vision:
    """The miniature's image encoder in plain torch."""

    name = "miniature"

    def __init__(self) -> None:
        self.model = clip.Vision(config.CLIP_VISION)
        self.model.load_state_dict(load_file(MINIATURE / "clip_vision.safetensors"))

    @torch.no_grad()
    def images(self, pictures):
        side = config.CLIP_VISION["image_size"]
        pixels = [
            np.array(Image.fromarray(np.asarray(p)).resize((side, side), Image.Resampling.BICUBIC)) for p in pictures
        ]
        return self.model(clip.normalised(torch.from_numpy(np.stack(pixels)).movedim(-1, 1).float() / 255))[1]


@pytest.mark.parametrize("encoder, right_at_most, wrong_at_least", [(Colours, 0.0, 1.0), (Vision, 0.15, 0.6)])
def test_what_a_detector_finds_agrees_with_the_world(encoder, right_at_most, wrong_at_least):
    """The pixels detector finds the objects, an encoder looks at them: two, so that both change their looks, without a
    colour in common."""
    confused, encoder = ([], []), encoder()
    for seed in (1, 4, 8, 9, 11, 13, 28, 31):
        scene = draw(seed, objects=2, pictures=2, looks=[(0, 1), (1, 0)])
        found = detect(PixelDetector(), scene.images, [reference.text for reference in scene.references], 0.25)
        binding = measure_binding(scene.images, scene.references, found, encoder)
        for rows, picture in zip(confused, binding.pictures, strict=True):
            rows += [margin < 0 for margin in picture.margin_by_object().values()]
    assert len(confused[0]) + len(confused[1]) > 28  # of 32
    assert np.mean(confused[0]) <= right_at_most and np.mean(confused[1]) >= wrong_at_least


def measure_one(scene, b: int) -> Binding:
    found = replace(scene.detections, found=(scene.detections.found[b],))
    return measure_binding(scene.images[b : b + 1], scene.references, found, Colours())


def test_a_batch_is_its_pictures_one_by_one():
    scene = draw(3, pictures=3, looks=[(0, 1, 2), (1, 0, 2), (2, 2, 2)])
    ticks = []
    whole = measure_binding(scene.images, scene.references, scene.detections, Colours(), ticks.append)
    assert sum(ticks) == to_encode(scene.references, scene.detections) == 3 + 9
    for b in range(3):
        alone = measure_one(scene, b).pictures[0]
        torch.testing.assert_close(alone.similarity, whole.pictures[b].similarity)
        torch.testing.assert_close(alone.look, whole.pictures[b].look)
        assert alone.nearest == whole.pictures[b].nearest
    assert whole.ranking()[0] == 0 and whole.only(1).margin == whole.pictures[1].margin


# ---- ranking ----


def made(margins, counts=None, objects: int = 2) -> PictureBinding:
    """A picture whose objects have these margins; None: not found."""
    own: list[int | None] = []
    rows, found_as = [], []
    for m, margin in enumerate(margins):
        own.append(None if margin is None else len(rows))
        if margin is not None:
            row = [0.5] * objects
            row[m] += margin
            rows.append(row)
            found_as.append(m)
    for m, count in enumerate(counts or ()):
        for _ in range(count - 1):
            rows.append([0.5] * objects)
            found_as.append(m)
    similarity = torch.tensor(rows).reshape(-1, objects)
    boxes = tuple((10.0 * i, 0.0, 10.0 * i + 9, 9.0) for i in range(len(rows)))
    crops = tuple(np.full((8, 8, 3), 100, np.uint8) for _ in rows)
    look = torch.nn.functional.one_hot(torch.tensor(found_as, dtype=torch.long), objects).float()
    return PictureBinding(crops, boxes, tuple(found_as), similarity, look, tuple(own))


def batch(*pictures: PictureBinding, names=("cat", "dog"), weights=None, placed=None) -> Binding:
    thumbnails = tuple(np.full((8, 8, 3), 15 * m, np.uint8) for m in range(len(names)))
    images = np.full((len(pictures), 50, 100, 3), 200, np.uint8)
    weights, placed = weights or (1.0,) * len(names), placed or (False,) * len(names)
    return Binding(tuple(names), weights, placed, thumbnails, images, "encoder", pictures)


def test_the_best_is_complete_then_well_bound_then_not_doubled():
    binding = batch(
        made([0.1, 0.1]), made([0.4, None]), made([0.2, 0.3], counts=(2, 1)), made([0.2, 0.3]), made([None, None])
    )
    assert binding.ranking() == [3, 2, 0, 1, 4]
    lines = ranking(binding).splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert cells[0] == ["place", "picture", "found", "worst margin", "mean margin", "confused", "too many"]
    assert cells[2] == ["1.", "4", "2 of 2", "+0.200", "+0.250", "0", "0"] and cells[3][-1] == "1"
    assert cells[6][:2] == ["5.", "5"]
    assert len({len(line) for line in lines}) == 1
    assert batch(*[made([0.1, 0.1])] * 4).ranking() == [0, 1, 2, 3]


def test_one_bad_object_is_not_outweighed_by_a_good_one():
    """The larger mean has a confused object; it is first only where the mean is asked for."""
    binding = batch(made([0.9, -0.1]), made([0.2, 0.2]), made([0.3, 0.2]))
    assert binding.ranking() == [2, 1, 0] and binding.ranking("mean") == [0, 2, 1]
    first = {by: ranking(binding, by).splitlines()[2].split("|")[2].strip() for by in ("worst object", "mean")}
    assert first == {"worst object": "3", "mean": "1"}
    told(lambda: binding.ranking("best"), "“best”", "worst object, mean")


# ---- words ----


def looking(*rows) -> PictureBinding:
    """Two objects that were found, with these similarities and looks."""
    similarity, look = (torch.tensor([row[i] for row in rows]) for i in range(2))
    return replace(made([0.1] * len(rows)), similarity=similarity, look=look)


LEAKY = looking(([0.8, 0.5], [0.95, 0.05]), ([0.6, 0.7], [0.31, 0.69]))


def test_a_leak_is_named_with_its_share_and_its_remedy():
    (overall, leak) = verdict(batch(LEAKY))
    assert overall == "Both objects were found, each looks most like its own reference (margin +0.200)."
    assert leak == (
        "Blended: “dog” takes 31 % of its look from “cat”. Raise the dog's weight (now 1, try 1.3), or give “dog” a "
        "region."
    )


def test_who_is_confused_but_takes_after_nobody():
    foreign = looking(([0.8, 0.5], [0.95, 0.05]), ([0.31, 0.3], [0.0, 0.0]))
    said = verdict(batch(foreign))
    assert said[1] == "Unclear: “dog” takes after no reference clearly. Raise the dog's weight (now 1, try 1.3)."
    assert len(said) == 2 and "nan" not in binding_report(batch(foreign)).lower()


def test_shares_are_of_the_pictures_that_leak():
    worse = looking(([0.8, 0.5], [0.95, 0.05]), ([0.7, 0.6], [0.41, 0.59]))
    fine = looking(([0.8, 0.5], [0.95, 0.05]), ([0.6, 0.7], [0.2, 0.8]))
    (overall, leak) = verdict(batch(LEAKY, fine, worse))
    assert overall.startswith("All 6 objects were found, 1 of them looks more like another reference than like its own")
    assert leak.startswith("Blended in pictures 1 and 3: “dog” takes 36 % of its look from “cat”. Raise")
    assert len(verdict(batch(fine))) == 1


def test_the_relevance_sharpens_the_advice():
    mixed, apart = (verdict(batch(replace(LEAKY, mixed=each)))[1] for each in (0.9, 0.3))
    assert "mixed 90 %" in mixed and "sharpness in MIP Merge" in mixed
    assert "mixed 30 %" in apart and "image_mask" in apart


def test_each_picture_has_its_own_relevance():
    """Of a batch the pictures that leak count, in one picture's verdict its own."""
    several = batch(replace(made([0.2, 0.2]), mixed=0.1), replace(LEAKY, mixed=0.9))
    assert "mixed 90 %" in verdict(several)[1] and len(verdict(several.only(0))) == 1
    assert "places mixed while sampling 50 % (10 %, 90 %)" in binding_report(several)


def test_advice_knows_what_is_set_already():
    assert "shrink its region" in verdict(batch(LEAKY, placed=(False, True)))[1]
    assert "Lower the cat's weight (now 1, try 0.77)" in verdict(batch(LEAKY, weights=(1.0, 2.9)))[1]
    nothing_else = verdict(batch(LEAKY, weights=(1.0, 0.0), placed=(False, True)))[1]
    assert nothing_else.endswith("from “cat”. Raise the dog's weight from 0 to 1.")
    assert "Raise scale in MIP Apply" in verdict(batch(LEAKY, weights=(0.0, 3.0)))[1]
    missing = made([0.2, None])
    assert "Raise the dog's weight from 0 to 1." in verdict(batch(missing, weights=(1.0, 0.0)))[1]
    assert "raise the dog's weight (now 2, try 2.6)" in verdict(batch(missing, weights=(1.0, 2.0)))[1]
    assert "raise scale in MIP Apply" in verdict(batch(missing, weights=(1.0, 3.0)))[1]


SWAPPED = looking(([0.4, 0.8], [0.02, 0.98]), ([0.8, 0.4], [0.98, 0.02]))


def test_exchanged_looks_ask_for_regions():
    overall, said = verdict(batch(SWAPPED))
    assert "2 of them look more like another reference than like their own (margin −0.400)" in overall
    assert said == (
        "Exchanged: “cat” and “dog” wear each other's looks. Take another seed, or give each of them a region in MIP "
        "Reference."
    )
    assert "make their regions smaller" in verdict(batch(SWAPPED, placed=(True, True)))[1]
    later = verdict(batch(made([0.2, 0.2]), SWAPPED))[1]
    assert later.startswith("Exchanged in picture 2:") and "Take another picture or seed" in later


def test_a_circle_of_three_names_its_order():
    similarity = torch.full((3, 3), 0.05)
    similarity[range(3), (2, 0, 1)] = 0.9
    circle = replace(made([0.1] * 3, objects=3), similarity=similarity, look=similarity)
    said = verdict(batch(circle, names=("cat", "dog", "bird")))[1]
    assert said.startswith(
        "Exchanged: each wears the look of the next one, “cat” → “bird” → “dog” → “cat”. Take another seed"
    )


def test_one_reference_that_takes_both_is_to_be_lowered():
    both = looking(([0.80, 0.60], [0.9, 0.1]), ([0.85, 0.60], [0.85, 0.15]))
    overall, said = verdict(batch(both))
    assert "1 of them looks more like another reference" in overall
    assert said == (
        "One takes both: “cat” and “dog” wear the look of “cat”. Lower the cat's weight (now 1, try 0.77), or give "
        "“dog” a region."
    )
    assert "sharpness in MIP Merge" in verdict(batch(replace(both, mixed=0.9)))[1]
    assert "Raise the dog's weight from 0 to 1." in verdict(batch(both, weights=(1.0, 0.0)))[1]
    similarity = torch.full((3, 3), 0.05)
    similarity[:, 2] = 0.9
    several = replace(made([0.1] * 3, objects=3), similarity=similarity, look=similarity)
    said = verdict(batch(several, names=("cat", "dog", "bird")))[1]
    assert said.startswith(
        "One takes several: “cat”, “dog” and “bird” wear the look of “bird”. Lower the bird's weight"
    )
    assert said.endswith("or give each of them a region.")


def test_who_is_taken_over_is_told_apart_from_who_is_exchanged():
    alone = replace(made([0.1, None]), similarity=torch.tensor([[0.2, 0.8]]), look=torch.tensor([[0.1, 0.9]]))
    _, missing, taken = verdict(batch(alone))
    assert missing.startswith("Missing: no “dog” was found.")
    assert taken.startswith(
        "Taken over: “cat” wears the look of “dog”. Raise the cat's weight (now 1, try 1.3), or give"
    )


def test_what_is_missing_or_doubled_is_named_with_its_pictures():
    fine, missing = made([0.2, 0.2]), made([0.2, None])
    assert verdict(batch(fine, missing))[1].startswith("Missing in picture 2: no “dog” was found. Take another picture")
    assert "in pictures 2 and 3:" in verdict(batch(fine, missing, missing))[1]
    assert "Missing in every picture: no “dog” was found. Name it" in verdict(batch(missing, missing))[1]
    assert verdict(batch(missing))[1].startswith("Missing: no “dog” was found. Name it in the prompt")
    assert "7 of 8 pictures" in verdict(batch(fine, *[missing] * 7))[1]
    doubled = verdict(batch(made([0.2, 0.2], counts=(3, 1))))[1]
    assert doubled.startswith("Too many: “cat” is there 3 times instead of once. Set background in MIP Merge to 0.5–1")


def test_two_objects_that_became_one_are_named():
    scene = draw(3, objects=2)
    (first,), (second,) = scene.detections.found[0]
    both = ((replace(first, score=0.4),), (replace(second, score=0.3), replace(first, score=0.2)))
    whole = measure_one(replace(scene, detections=replace(scene.detections, found=(both,))), 0)
    assert whole.presence == 1
    both = ((replace(first, score=0.4),), (replace(first, score=0.6),))
    one = measure_one(replace(scene, detections=replace(scene.detections, found=(both,))), 0)
    assert one.presence == 0.5
    names = [f"“{reference.text}”" for reference in scene.references]
    assert verdict(one)[1].startswith(
        f"Missing: {names[0]} has no box of its own, and the box of {names[1]} may hold both: the two may touch. If "
        "you can see both, mark"
    )
    assert "give each of them a region" in verdict(one)[1]


def test_a_near_miss_is_named_with_its_score():
    scene = draw(3, objects=2)
    missed = replace(
        scene.detections, found=((scene.detections.found[0][0], ()),), threshold=0.3, best_rejected=((0.0, 0.26),)
    )
    said = verdict(measure_one(replace(scene, detections=missed), 0))[1]
    assert said.startswith(
        f"Missing: no “{scene.references[1].text}” was found. The best candidate has 0.26, the detector's"
    )
    assert "threshold is 0.30; lower it if you can see" in said
    far = verdict(measure_one(replace(scene, detections=replace(missed, best_rejected=((0.0, 0.04),))), 0))[1]
    assert "Name it in the prompt" in far and "0.04" not in far


def test_all_is_well_and_nothing_to_measure():
    assert verdict(batch(made([0.2, 0.2]))) == [
        "All is well: both objects were found, each looks most like its own reference (margin +0.200)."
    ]
    nothing = batch(made([None, None]))
    assert verdict(nothing)[0].startswith("None of the objects was found")
    assert nothing.margin is None and nothing.confusion_rate is None and nothing.presence == 0
    single = batch(made([0.2], objects=1), names=("cat",))
    assert verdict(single)[0].startswith("The object was found. With a single reference nothing can be confused")
    assert single.margin is None
    assert verdict(batch(made([-0.1, None])))[0].startswith("1 of 2 objects was found, and it looks more like")


def test_the_report_holds_verdict_numbers_and_table():
    said = binding_report(batch(replace(LEAKY, mixed=0.9), made([0.2, None])))
    assert said.startswith("- 3 of 4 objects were found") and "presence 75 %" in said and "confusion rate 0 %" in said
    assert "places mixed while sampling 90 %" in said and "69 % dog, 31 % cat" in said
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in said.splitlines()]
    assert cells[-6][:3] == ["picture 2", "dog", "0 (1 expected)"]
    assert cells[-4:] == [
        ["most like, in pictures", "cat", "dog", "not found"],
        ["----------------------", "--:", "--:", "--------:"],
        ["cat", "2", "0", "0"],
        ["dog", "0", "1", "1"],
    ]
    assert "margin +0.200 (the worst +0.100: dog in picture 1)" in said
    assert "nan" not in said.lower() and "inf" not in said.lower()
    found = [
        line.split("|")[3].strip() for line in binding_report(batch(made([0.2, 0.1], counts=(2, 1)))).splitlines()[-2:]
    ]
    assert found == ["2 (1 expected)", "1"]


# ---- the picture ----


def test_the_matrix_shows_numbers_and_marks():
    scene = draw(3)
    binding = measure_one(scene, 0)
    sheet = np.asarray(draw_matrix(binding, 0, verdict(binding)))
    bare = np.asarray(draw_matrix(binding, 0))
    assert sheet.shape[0] > bare.shape[0] and sheet.shape[1] == bare.shape[1]
    own = binding.pictures[0].similarity.argmax()  # the brightest cell is drawn in the scale's last colour
    assert own in (0, 4, 8) and (sheet == (254, 232, 56)).all(-1).sum() > 2000


def test_what_is_too_much_to_draw_is_counted(monkeypatch: pytest.MonkeyPatch):
    words = []
    monkeypatch.setattr(Canvas, "words", lambda _, at, said, *args, **more: words.append(said))
    draw_matrix(batch(made([0.1, 0.2], counts=(9, 9))), 0)
    assert "and 6 things more" in words and sum("again" in said for said in words) == MOST_ROWS - 2
    words.clear()
    draw_matrix(batch(made([0.1, 0.2], counts=(6, 6))), 0)
    assert not [said for said in words if "more" in said] and sum("again" in said for said in words) == 10


def test_all_kinds_of_batches_can_be_drawn():
    cases = [
        batch(made([None, None]), made([0.1, 0.2], counts=(9, 9))),
        batch(made([0.2], objects=1), names=("a very long name of an object that nobody would write",)),
        batch(made([0.1] * 16, objects=16), names=tuple(f"object {m}" for m in range(16))),
    ]
    for binding in cases:
        sentences = [verdict(binding.only(b)) for b in range(len(binding.pictures))]
        pages = draw_matrices(binding, sentences)
        assert pages.dtype == np.uint8 and pages.ndim == 4 and len(pages) == len(binding.pictures)


# ---- bad input ----


def test_boxes_of_all_kinds():
    """Of the whole picture, of one pixel, outside by the most part: finite numbers."""
    scene = draw(3)
    boxes = ((0, 0, 128, 128), (40, 40, 41, 41), (127, 0, 128, 128))
    found = replace(scene.detections, found=(tuple((thing(box),) for box in boxes),))
    binding = measure_binding(scene.images, scene.references, found, Colours())
    assert binding.presence == 1 and torch.isfinite(binding.pictures[0].similarity).all()
    assert "nan" not in binding_report(binding).lower() and draw_matrix(binding, 0, verdict(binding)).width


def test_bad_input_gets_a_sentence():
    scene = draw(3)
    images, chain, found = scene.images, scene.references, scene.detections
    told(lambda: measure_binding(images, (), found, Colours()), "no references", "MIP Reference")
    told(lambda: measure_binding(images[:, :64], chain, found, Colours()), "64", "128×128", "same pictures")
    told(lambda: measure_binding(images.expand(2, -1, -1, -1), chain, found, Colours()), "2 of", "1 of")
    told(lambda: measure_binding(images[..., :1], chain, found, Colours()), "[1, 128, 128, 1]")
    other = replace(found, texts=("cat", *found.texts[1:]))
    told(lambda: measure_binding(images, chain, other, Colours()), "“cat”", chain[0].text, "same object texts")

    class Broken(Colours):
        def images(self, pictures):
            return super().images(pictures) * torch.nan

    told(lambda: measure_binding(images, chain, found, Broken()), "colour counter", "NaN", "--force-fp32")
