"""The binding report in words: which picture is the best, what happened, what to change."""

from __future__ import annotations

from dataclasses import replace

import torch
from mip_adapter.evaluation.binding.binding import PictureBinding
from mip_adapter.evaluation.binding.report import binding_report, ranking
from mip_adapter.evaluation.binding.verdict import verdict

from ..support.bindings import batch, made, measure_one
from ..support.drawn import draw
from ..support.sentences import told

# ---- ranking ----


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
    assert overall.startswith(
        "Both objects were found in every picture, 1 of 6 looks more like another reference than like its own"
    )
    assert leak.startswith("Blended in pictures 1 and 3: “dog” takes 36 % of its look from “cat”. Raise")
    assert len(verdict(batch(fine))) == 1


def test_the_relevance_sharpens_the_advice():
    mixed, apart = (verdict(batch(replace(LEAKY, places_mixed=each)))[1] for each in (0.9, 0.3))
    assert "mixed 90 %" in mixed and "sharpness in MIP Merge" in mixed
    assert "mixed 30 %" in apart and "image_mask" in apart


def test_each_picture_has_its_own_relevance():
    """Of a batch the pictures that leak count, in one picture's verdict its own."""
    several = batch(replace(made([0.2, 0.2]), places_mixed=0.1), replace(LEAKY, places_mixed=0.9))
    assert "mixed 90 %" in verdict(several)[1] and len(verdict(several.only(0))) == 1
    assert "places mixed while sampling 50 % (10 %, 90 %)" in binding_report(several)


def test_advice_knows_what_is_set_already():
    assert "shrink its region" in verdict(batch(LEAKY, has_region=(False, True)))[1]
    assert "Lower the cat's weight (now 1, try 0.77)" in verdict(batch(LEAKY, weights=(1.0, 2.9)))[1]
    nothing_else = verdict(batch(LEAKY, weights=(1.0, 0.0), has_region=(False, True)))[1]
    assert nothing_else.endswith("from “cat”. Raise the dog's weight from 0 to 1.")
    assert "Raise scale in MIP Apply" in verdict(batch(LEAKY, weights=(0.0, 3.0)))[1]
    missing = made([0.2, None])
    assert "Raise the dog's weight from 0 to 1." in verdict(batch(missing, weights=(1.0, 0.0)))[1]
    assert "set unclaimed in MIP Merge to 1" in verdict(batch(missing, weights=(1.0, 2.0)))[1]
    sometimes = missing, made([0.2, 0.2])
    assert "raise the dog's weight (now 2, try 2.6)" in verdict(batch(*sometimes, weights=(1.0, 2.0)))[1]
    assert "raise scale in MIP Apply" in verdict(batch(*sometimes, weights=(1.0, 3.0)))[1]


SWAPPED = looking(([0.4, 0.8], [0.02, 0.98]), ([0.8, 0.4], [0.98, 0.02]))


def test_exchanged_looks_ask_for_regions():
    overall, said = verdict(batch(SWAPPED))
    assert "2 of them look more like another reference than like their own (margin −0.400)" in overall
    assert said == (
        "Exchanged: “cat” and “dog” wear each other's looks. Take another seed, or give each of them a region in MIP "
        "Reference."
    )
    assert "make their regions smaller" in verdict(batch(SWAPPED, has_region=(True, True)))[1]
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
    assert "sharpness in MIP Merge" in verdict(batch(replace(both, places_mixed=0.9)))[1]
    assert "Raise the dog's weight from 0 to 1." in verdict(batch(both, weights=(1.0, 0.0)))[1]
    similarity = torch.full((3, 3), 0.05)
    similarity[:, 2] = 0.9
    several = replace(made([0.1] * 3, objects=3), similarity=similarity, look=similarity)
    said = verdict(batch(several, names=("cat", "dog", "bird")))[1]
    assert said.startswith(
        "One takes several: “cat”, “dog” and “bird” wear the look of “bird”. Lower the bird's weight"
    )
    assert said.endswith("or give each of them a region.")
    for silent, weights in (("cat", (0.0, 1.0, 1.0)), ("dog", (1.0, 0.0, 1.0))):
        said = verdict(batch(several, names=("cat", "dog", "bird"), weights=weights))[1]
        assert said.endswith(f"Raise the {silent}'s weight from 0 to 1.")


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
    several = batch(made([0.2], objects=1), made([0.2], objects=1), names=("cat",))
    assert verdict(several)[0].startswith("The object was found in every picture. With a single reference")
    assert verdict(batch(*[made([0.2, 0.2])] * 2))[0].startswith(
        "All is well: both objects were found in every picture,"
    )
    assert verdict(batch(made([-0.1, None])))[0].startswith("1 of 2 objects was found, and it looks more like")


def test_the_report_holds_verdict_numbers_and_table():
    said = binding_report(batch(replace(LEAKY, places_mixed=0.9), made([0.2, None])))
    assert (
        said.startswith("- 3 of 4 objects were found in 2 pictures")
        and "presence 75 %" in said
        and "confusion rate 0 %" in said
    )
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
