"""Which things are there: what several texts found, and which object has which of them."""

from __future__ import annotations

import pytest
import torch
from mip_adapter.common.crops import iou
from mip_adapter.evaluation.detection.detections import Detections
from mip_adapter.evaluation.detection.matching import match_objects, rematch_by_appearance

from ..support.drawn import thing


def searched(texts, *found) -> Detections:
    """One picture; found: a list of (box, score) for each text."""
    return Detections(tuple(texts), 100, 100, (tuple(tuple(thing(*each) for each in one) for one in found),))


def test_overlap_is_intersection_over_union():
    assert iou((0, 0, 10, 10), (0, 0, 10, 10)) == 1
    assert iou((0, 0, 10, 10), (5, 0, 15, 10)) == pytest.approx(50 / 150)
    assert iou((0, 0, 10, 10), (10, 0, 20, 10)) == iou((5, 5, 5, 5), (5, 5, 5, 5)) == 0


A, B, C = (0, 0, 40, 40), (50, 0, 90, 40), (0, 50, 40, 90)


def test_one_thing_found_by_two_texts_is_one_thing():
    things = match_objects(searched(["cat", "dog"], [(A, 0.4)], [((1, 0, 40, 41), 0.8)]), 0, ["cat", "dog"])
    assert things.crop_of == (None, 0) and things.found_as == (1,) and things.found[0].score == 0.8
    assert things.shared_crop == (0, None)


def test_objects_share_out_the_things_so_that_the_sum_of_scores_is_largest():
    found = searched(["black cat", "white cat"], [(A, 0.6), (B, 0.55)], [(A, 0.58), (B, 0.2)])
    things = match_objects(found, 0, ["black cat", "white cat"])
    assert [things.found[crop].box for crop in things.crop_of if crop is not None] == [B, A]


def test_what_is_left_over_counts_for_the_best_text():
    found = searched(["cat", "dog"], [(A, 0.9), (C, 0.5)], [(B, 0.9), (C, 0.3)])
    things = match_objects(found, 0, ["cat", "dog"])
    assert things.crop_of == (0, 1) and things.found_as == (0, 1, 0) and things.found[2].box == C


def test_nothing_found_and_texts_that_nobody_asked_for():
    things = match_objects(searched(["cat", "dog", "cup"], [], [], [(A, 0.9)]), 0, ["dog", "cat"])
    assert things.crop_of == things.shared_crop == (None, None) and not things.found
    assert match_objects(searched(["Dog "], [(A, 0.9)]), 0, ["dog"]).crop_of == (0,)


def test_a_detection_without_any_certainty_is_one_all_the_same():
    things = match_objects(searched(["cat", "dog"], [(A, 0.0)], [(B, 0.4)]), 0, ["cat", "dog"])
    assert things.crop_of == (0, 1) and [each.box for each in things.found] == [A, B]
    assert match_objects(searched(["cat"], [(A, 0.0)]), 0, ["cat"]).crop_of == (0,)
    one = match_objects(searched(["cat", "dog"], [(A, 0.0)], [(A, 0.4)]), 0, ["cat", "dog"])
    assert one.crop_of == (None, 0) and one.shared_crop == (0, None)


def test_objects_with_the_same_text_are_told_apart_by_their_look():
    found = searched(["cat"], [(A, 0.9), (B, 0.8)])
    things = match_objects(found, 0, ["cat", "cat"])
    for like_first in (A, B):
        similarity = [[0.9, 0.2] if each.box == like_first else [0.3, 0.8] for each in things.found]
        boxes = [A, B] if like_first == A else [B, A]
        told_apart = rematch_by_appearance(things, ["cat", "cat"], torch.tensor(similarity))
        assert [told_apart.found[crop].box for crop in told_apart.crop_of if crop is not None] == boxes
        assert all(told_apart.found_as[crop] == m for m, crop in enumerate(told_apart.crop_of) if crop is not None)


@pytest.mark.parametrize("texts", [["cat"], ["cat", "cat"]])
def test_what_is_left_over_stays_so_however_it_looks(texts):
    """Of one object or of several: a look decides between objects, not between places."""
    found = searched(["cat"], [(A, 0.9), (B, 0.8), (C, 0.7)])
    things = match_objects(found, 0, texts)
    similarity = torch.zeros(3, len(texts))
    similarity[2] = 1  # the crop with the lowest score is most like every reference
    told_apart = rematch_by_appearance(things, texts, similarity)
    assert things.found[2].box == C and sorted(told_apart.crop_of) == list(range(len(texts)))


def test_what_was_seen_as_a_missing_object_stays_known_whoever_of_its_text_is_missing():
    """Two dogs and a cat; one dog was found, and the cat's place was found as a dog, too."""
    texts = ["dog", "dog", "cat"]
    things = match_objects(searched(["dog", "cat"], [(A, 0.9), (B, 0.4)], [(B, 0.8)]), 0, texts)
    cat = things.crop_of[2]
    for like in ([0.9, 0.1], [0.1, 0.9]):
        told_apart = rematch_by_appearance(things, texts, torch.tensor([[*like, 0.0]] * 2))
        dog = told_apart.crop_of.index(None)
        assert dog == like.index(min(like)) and told_apart.shared_crop[dog] == cat
        assert [crop for m, crop in enumerate(told_apart.shared_crop) if m != dog] == [None, None]
