"""Boxes of other nodes: every form that they come in, whose they are, and what no one can read."""

from __future__ import annotations

from collections import namedtuple
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from mip_adapter.evaluation.detection.box_formats import CORNERS, SIDES
from mip_adapter.evaluation.detection.boxes import read_boxes, to_bounding_boxes, to_masks
from mip_adapter.evaluation.detection.detections import Detection, Detections
from mip_adapter.evaluation.detection.matching import match_objects

from ..support.sentences import says, told

SEG = namedtuple("SEG", "cropped_image cropped_mask confidence crop_region bbox label control_net_wrapper")  # Impact's
HEIGHT, WIDTH = 40, 60
SKY, CAT, DOG = (0.0, 0.0, 9.0, 9.0), (2.0, 3.0, 22.0, 33.0), (30.0, 10.0, 55.0, 38.0)


def core(box: tuple[float, ...], **more: Any) -> dict[str, Any]:
    x0, y0, x1, y1 = box
    return {"x": int(x0), "y": int(y0), "width": int(x1 - x0), "height": int(y1 - y0), **more}


def sides(box: tuple[float, ...]) -> tuple[float, ...]:
    x0, y0, x1, y1 = box
    return x0, y0, x1 - x0, y1 - y0


def seg(box: tuple[float, ...], label: str = "", mask: bool = True, confidence: Any = 0.5) -> SEG:
    """With a margin of one pixel around the box, as Impact's crops have one."""
    x0, y0, x1, y1 = (int(edge) for edge in box)
    region = [x0 - 1, y0 - 1, x1 + 1, y1 + 1]
    inside = np.zeros((y1 - y0 + 2, x1 - x0 + 2), np.float32)
    inside[1:-1, 1:-1] = 1
    return SEG(None, inside if mask else None, confidence, region, np.array([x0, y0, x1, y1]), label, None)


def painted(*boxes: tuple[float, ...]) -> torch.Tensor:
    masks = torch.zeros(len(boxes), HEIGHT, WIDTH)
    for mask, (x0, y0, x1, y1) in zip(masks, boxes, strict=True):
        mask[int(y0) : int(y1), int(x0) : int(x1)] = 1
    return masks


def read(boxes: Any, texts: tuple[str, ...] = ("cat", "dog"), pictures: int = 1, form: str = SIDES) -> Detections:
    return read_boxes(boxes, texts, pictures, HEIGHT, WIDTH, form)


def places(found: Detections) -> list[list[list[tuple[float, ...]]]]:
    return [[[each.box for each in text] for text in picture] for picture in found.found]


BOTH = {
    "dicts": ([core(CAT), core(DOG)], SIDES),
    "dicts of one frame": ([[core(CAT), core(DOG)]], SIDES),
    "KJNodes": ([sides(CAT), sides(DOG)], SIDES),
    "lists": ([list(sides(CAT)), list(sides(DOG))], SIDES),
    "corners": ([CAT, DOG], CORNERS),
    "numpy": (np.array([CAT, DOG]), CORNERS),
    "arrays": ([np.array(CAT), torch.tensor(DOG)], CORNERS),
    "a tensor": (torch.tensor([sides(CAT), sides(DOG)]), SIDES),
    "segments": (((HEIGHT, WIDTH), [seg(CAT), seg(DOG)]), SIDES),
    "segments by label": (((HEIGHT, WIDTH), [seg(DOG, "Dog"), seg(CAT, "cat"), seg(SKY, "sky", False)]), SIDES),
    "dicts by label": ([core(DOG, label=" dog"), core(CAT, label="CAT")], SIDES),
    "masks": (painted(CAT, DOG), SIDES),
}  # fmt: skip


@pytest.mark.parametrize("name", BOTH)
def test_every_form_says_the_same(name: str):
    boxes, form = BOTH[name]
    assert places(read(boxes, form=form)) == [[[CAT], [DOG]]]
    assert places(read(boxes, form=form, pictures=3)) == [[[CAT], [DOG]]] * 3  # the same for all


def test_a_list_for_each_picture():
    boxes = [[core(CAT), core(DOG)], [], [core(DOG, label="cat")]]
    assert places(read(boxes, pictures=3)) == [[[CAT], [DOG]], [[], []], [[DOG], []]]
    assert places(read([[core(CAT)], [core(DOG)]], ("cat",), 2)) == [[[CAT]], [[DOG]]]
    told(lambda: read(boxes, pictures=4), "3 pictures", "4 pictures")


def test_flat_lists_of_one_object():
    assert places(read([sides(CAT), sides(DOG)], ("cat",), 2)) == [[[CAT]], [[DOG]]]  # one a picture
    assert places(read([sides(CAT), sides(DOG)], ("cat",), 1)) == [[[CAT, DOG]]]  # both in the one
    assert places(read(core(CAT), ("cat",), 3)) == [[[CAT]]] * 3
    assert places(read(sides(CAT), ("cat",))) == [[[CAT]]]
    told(lambda: read([sides(CAT), sides(DOG)], ("cat",), 3), "2 boxes", "1 object texts", "3 pictures")


def test_masks_picture_by_picture():
    """As MIPDetectObjects and MIPRelevanceMaps give them; an empty one says that the object is not there."""
    masks = painted(CAT, DOG, DOG, (0, 0, 0, 0))
    found = read(masks, pictures=2)
    assert places(found) == [[[CAT], [DOG]], [[DOG], []]]
    assert torch.equal(to_masks(found), masks)
    half = masks[:2, ::2, ::2]  # painted on a smaller canvas
    (((cat,), (dog,)),) = read(half).found
    assert cat.mask is not None and cat.mask.shape == (HEIGHT, WIDTH)
    assert dog.box == pytest.approx(DOG, abs=1)
    told(lambda: read(painted(CAT, DOG, CAT)), "3 boxes", "2 object texts")
    told(lambda: read(torch.zeros(2, HEIGHT, WIDTH)), "no box at all")


@pytest.mark.parametrize("pictures", [1, 2, 3])
@pytest.mark.parametrize("alike", [True, False])
def test_masks_of_objects_with_one_text(pictures: int, alike: bool):
    """Two women: their masks, one an object, are one text's detections."""
    masks = torch.zeros(2, HEIGHT, WIDTH)
    masks[0, :, :4], masks[1, :, 6:] = 1, 1
    found = read(masks if alike else masks.repeat(pictures, 1, 1), ("woman", "Woman"), pictures)
    assert found.texts == ("woman",) and len(found) == pictures
    assert all(len(picture[0]) == 2 for picture in found.found)


def test_segments_of_a_picture_of_another_size():
    double = ((2 * HEIGHT, 2 * WIDTH), [seg(tuple(2 * edge for edge in box), confidence=[0.7]) for box in (CAT, DOG)])
    (((cat,), (dog,)),) = read(double).found
    assert (cat.box, dog.box, cat.score) == (CAT, DOG, pytest.approx(0.7))
    assert cat.mask is not None and torch.equal(cat.mask > 0.5, painted(CAT)[0] > 0.5)


def test_a_segment_whose_mask_is_empty_is_not_there():
    """As an empty MASK says; NaN is nothing."""
    faint, unknown = (seg(DOG)._replace(cropped_mask=np.full((30, 27), value, np.float32)) for value in (0.4, np.nan))
    for empty in (faint, unknown):
        assert places(read(((HEIGHT, WIDTH), [seg(CAT), empty]))) == [[[CAT], []]]
    holed = seg(CAT).cropped_mask.copy()
    holed[5, 5] = np.nan
    (((cat,), _),) = read(((HEIGHT, WIDTH), [seg(CAT)._replace(cropped_mask=holed), seg(DOG)])).found
    assert cat.mask is not None and torch.isfinite(cat.mask).all()


def test_boxes_are_clipped_and_ordered():
    ((found,),) = read([core((-5, -5, 999, 999), score=0.2), core(CAT, score=0.9)], ("cat",)).found
    assert [(each.box, each.score) for each in found] == [(CAT, 0.9), ((0, 0, WIDTH, HEIGHT), 0.2)]


SENTENCES: dict[str, tuple[Any, tuple[str, ...], str]] = {
    "corners read as sides": ([DOG, (30, 10, -4, 8)], ("-4", "the other format"), SIDES),
    "sides read as corners": ([(30, 10, 5, 8), CAT], ("-25", "the other format"), CORNERS),
    "not a number": ([(float("nan"), 0, 1, 1), CAT], ("nan", "holds nothing"), SIDES),
    "infinite": ([(0, 0, float("inf"), 1), CAT], ("inf",), SIDES),
    "outside": ([(100, 0, 9, 9), CAT], ("(100, 0)–(109, 9)", "60×40"), SIDES),
    "empty": ([core((5, 5, 5, 9)), core(CAT)], ("0 × 4", "holds nothing"), SIDES),
    "words": ("cat", ("no box", "'cat'", "str"), SIDES),
    "nothing": (None, ("no box", "NoneType"), SIDES),
    "no boxes": ([], ("no box at all",), SIDES),
    "no boxes in frames": ([[], []], ("2 pictures", "1 pictures"), SIDES),
    "three numbers": ([(1, 2, 3), CAT], ("no box", "(1, 2, 3)"), SIDES),
    "mixed": ([core(CAT), [core(DOG)]], ("no box",), SIDES),
    "dict without a side": ([{"x": 1, "y": 2, "width": 3}], ("no box", "width"), SIDES),
    "words in a dict": ([{"x": "a", "y": 2, "width": 3, "height": 4}, core(CAT)], ("no box", "'a'"), SIDES),
    "five dimensions": (torch.zeros(1, 1, 1, 8, 8), ("[1, 1, 1, 8, 8]",), SIDES),
    "too many": ([core(CAT)] * 3, ("3 boxes", "cat, dog"), SIDES),
    "too few": ([core(CAT)], ("1 boxes", "cat, dog"), SIDES),
    "segment of another region": (
        ((HEIGHT, WIDTH), [seg(CAT)._replace(crop_region=[0, 0, 5, 5]), seg(DOG)]),
        ("(0, 0)–(5, 5)", "SEGS anew"),
        SIDES,
    ),
    "another format": ([CAT, DOG], ("yolo", SIDES, CORNERS), "yolo"),
}


@pytest.mark.parametrize("name", SENTENCES)
def test_what_cannot_be_read(name: str):
    boxes, words, form = SENTENCES[name]
    told(lambda: read(boxes, form=form), *words)


def test_no_texts():
    told(lambda: read([core(CAT)], ()), "no object texts")


# ---- anything at all ----

numbers = st.one_of(st.integers(-100, 200), st.floats(), st.booleans(), st.none(), st.text(max_size=2))
boxes_of_any_kind = st.one_of(
    st.lists(numbers, max_size=5),
    st.tuples(*[st.integers(0, 60)] * 4),
    st.dictionaries(st.sampled_from(["x", "y", "width", "height", "label", "score"]), numbers),
    st.builds(core, st.tuples(*[st.integers(0, 60)] * 4), label=st.sampled_from(["cat", "dog", "sky", ""])),
    st.builds(lambda edges, label: seg(edges, label), st.tuples(*[st.integers(1, 39)] * 4).filter(
        lambda e: e[0] < e[2] and e[1] < e[3]), st.sampled_from(["cat", ""])),
    numbers,
)  # fmt: skip
nested = st.recursive(boxes_of_any_kind, lambda inner: st.lists(inner, max_size=4) | st.tuples(inner, inner))


@given(nested, st.sampled_from([("cat",), ("cat", "dog"), ("cat", "dog", "sky")]), st.integers(1, 3), st.booleans())
def test_anything_is_boxes_or_a_sentence(boxes, texts, pictures, corners):
    try:
        found = read(boxes, texts, pictures, CORNERS if corners else SIDES)
    except ValueError as error:
        said = str(error)
        assert said.endswith(".") and "\n" not in said and 40 < len(said) < 500, said
        return
    assert len(found) == pictures and all(len(picture) == len(texts) for picture in found.found)
    for picture in range(pictures):
        for _, each in found.every(picture):
            x0, y0, x1, y1 = each.box
            assert 0 <= x0 < x1 <= WIDTH and 0 <= y0 < y1 <= HEIGHT and 0 <= each.score <= 1
        things = match_objects(found, picture, texts)
        crops = [crop for crop in things.crop_of if crop is not None]
        assert sorted(crops) == [*range(len(crops))] and len(things.found) == len(things.found_as) >= len(crops)
        for m, crop in enumerate(things.crop_of):  # whoever was found has a thing, or shares one
            got = crop if crop is not None else things.shared_crop[m]
            assert (got is not None) == bool(found.found[picture][m])
            assert crop is None or things.found_as[crop] == m


spans = st.tuples(st.integers(0, 38), st.integers(0, 38), st.integers(1, 20), st.integers(1, 20))
some = st.lists(st.tuples(spans, st.integers(0, 100)), max_size=3)


@given(st.lists(st.tuples(some, some), min_size=1, max_size=3).filter(lambda frames: any(a or b for a, b in frames)))
def test_out_and_in_again_is_the_same(frames):
    """MIPDetectObjects' boxes, through MIPBoxes."""

    def detection(span: tuple[int, int, int, int], score: int) -> Detection:
        x, y, width, height = span
        return Detection((x, y, min(x + width, WIDTH), min(y + height, HEIGHT)), score / 100)

    found = tuple(
        tuple(tuple(sorted((detection(span, s) for span, s in text), key=lambda d: -d.score)) for text in frame)
        for frame in frames
    )
    given_out = Detections(("cat", "dog"), HEIGHT, WIDTH, found)
    back = read(to_bounding_boxes(given_out), pictures=len(frames))
    assert places(back) == places(given_out)
    assert torch.equal(to_masks(back), to_masks(given_out))


# ---- the node ----


def test_objects_from_boxes(host):
    from mip_adapter.nodes.detect import MIPBoxes

    from ..support.graphs import references

    images = torch.rand(2, HEIGHT, WIDTH, 3)
    found, shown = MIPBoxes.execute(images, painted(CAT, DOG), "cat\ndog", SIDES).args
    assert places(found) == [[[CAT], [DOG]]] * 2 and shown.shape == (2, HEIGHT * 13, WIDTH * 13, 3)
    assert found.threshold is None
    found = MIPBoxes.execute(images, [core(CAT), core(DOG)], "", SIDES, references(["cat", "dog"])).args[0]
    assert found.texts == ("cat", "dog")
    absent = MIPBoxes.execute(images, painted(CAT, (0, 0, 0, 0)), "cat, dog", SIDES).args[0]
    said = says(absent.why_missing(0, 1), "dog", "is marked in picture 1", "cat 1.00")
    assert "threshold 0" not in said
