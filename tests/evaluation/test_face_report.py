"""Faces in pictures beside those of the references: by the definition, in words; what is wrong in a sentence."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from mip_adapter.attention.reference import Reference, make_reference, of_a_face
from mip_adapter.evaluation.binding.binding import Binding, PictureBinding
from mip_adapter.evaluation.binding.face_report import face_likenesses, face_report

from ..support.tiny_faces import Analyser, numbers, photo, seen

LEFT, RIGHT = (0.0, 20.0, 90.0, 192.0), (100.0, 20.0, 190.0, 192.0)


def person(text: str, *embeddings: np.ndarray) -> Reference:
    crops = torch.zeros(len(embeddings), 8, 8, 3)
    return of_a_face(make_reference(crops, text), torch.from_numpy(np.stack(embeddings)), crops)


def found(*boxes: tuple[float, ...] | None) -> PictureBinding:
    """A picture with an object in each box; None: it was not found."""
    there = [i for i, box in enumerate(boxes) if box is not None]
    rows = tuple(there.index(i) if i in there else None for i in range(len(boxes)))
    zeros = torch.zeros(len(there), len(boxes))
    return PictureBinding((), tuple(box for box in boxes if box is not None), tuple(there), zeros, zeros, rows)  # pyright: ignore[reportArgumentType]


def binding(*pictures: PictureBinding) -> Binding:
    images = np.zeros((len(pictures), 192, 192, 3), np.uint8)
    return Binding(("a", "b"), (1.0, 1.0), (False, False), (), images, "encoder", pictures)


def likenesses(faces: Sequence, *pictures: PictureBinding, references: Sequence[Reference] | None = None):
    references = references or (person("woman", numbers(0)), person("man", numbers(1)))
    images = photo().expand(len(pictures), -1, -1, -1)
    return face_likenesses(images, references, binding(*pictures), Analyser(*faces))


def test_similarity_and_margin_are_the_definitions() -> None:
    """One of the persons has two photographs, whose unit embeddings are averaged."""
    man = person("man", numbers(1), numbers(2) * 30)
    face = numbers(0) + 0.5 * numbers(1)
    references = person("woman", numbers(0)), man
    got, other = likenesses([[seen(50, 60, 40, face)]], found(LEFT, RIGHT), references=references)
    unit = [F.normalize(torch.from_numpy(numbers(i)).double(), dim=0) for i in range(3)]
    expected = [float(torch.nn.functional.cosine_similarity(torch.from_numpy(face).double(), each, dim=0))
                for each in (unit[0], unit[1] + unit[2])]  # fmt: skip
    assert got.similarity == pytest.approx(expected, abs=1e-6)
    assert got.margin == pytest.approx(expected[0] - expected[1], abs=1e-6)
    assert other.similarity is None and other.margin is None


def test_exchanged_faces_have_margins_below_zero() -> None:
    right = [seen(50, 60, 40, numbers(0)), seen(140, 60, 40, numbers(1))]
    wrong = [seen(50, 60, 40, numbers(1)), seen(140, 60, 40, numbers(0))]
    got = likenesses([right, wrong], found(LEFT, RIGHT), found(LEFT, RIGHT))
    assert [(each.picture, each.person) for each in got] == [(0, 0), (0, 1), (1, 0), (1, 1)]
    margins = [each.margin or 0.0 for each in got]
    assert margins[:2] == pytest.approx([1.0, 1.0], abs=0.2) and margins[2:] == pytest.approx([-1.0, -1.0], abs=0.2)


def test_a_face_in_two_boxes_belongs_to_the_nearer_body() -> None:
    wide, wider = (0.0, 20.0, 150.0, 192.0), (40.0, 20.0, 190.0, 192.0)
    faces = [seen(75, 60, 40, numbers(0)), seen(115, 60, 44, numbers(1))]
    got = likenesses([faces], found(wide, wider))
    assert all(each.margin and each.margin > 0.5 for each in got)


def test_the_largest_of_several_faces_counts() -> None:
    faces = [seen(30, 60, 20, numbers(1)), seen(60, 90, 40, numbers(0)), seen(20, 120, 10, numbers(1))]
    first, second = likenesses([faces], found(LEFT, None))
    assert first.margin and first.margin > 0.5 and second.similarity is None


def test_only_persons_are_compared_and_one_has_no_other() -> None:
    thing = make_reference(torch.zeros(1, 8, 8, 3), "cat")
    references = thing, person("man", numbers(1))
    (only,) = likenesses([[seen(140, 60, 40, numbers(1))]], found(LEFT, RIGHT), references=references)
    assert only.similarity == pytest.approx([1.0]) and only.margin is None


def test_the_report_in_words() -> None:
    references = (person("woman", numbers(0)), person("man", numbers(1)))
    faces = ([seen(50, 60, 40, numbers(0)), seen(140, 60, 40, numbers(0))], [])
    said = face_report(
        photo().expand(2, -1, -1, -1), references, binding(found(LEFT, RIGHT), found(LEFT, RIGHT)), Analyser(*faces)
    )
    first, _, *lines = said.splitlines()
    assert first.startswith("faces: 2 of 4 found, margin ") and first.endswith("1 of 2 most like their own")
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines]
    assert cells[0] == ["", "face of", "own", "best other", "which", "margin"]
    assert cells[2][:3] == ["picture 1", "woman", "1.000"] and cells[2][4] == "man"
    assert cells[3][:2] == ["picture 1", "man"] and cells[3][3:5] == ["1.000", "woman"] and cells[3][5][0] == "−"
    assert cells[4] == ["picture 2", "woman", "–", "–", "–", "–"]
    things = (make_reference(torch.zeros(1, 8, 8, 3), "cat"),)
    assert "there are no faces to compare" in face_report(photo(), things, binding(found(LEFT)), Analyser([]))


@pytest.mark.parametrize(
    ("faces", "sentence"),
    [
        (RuntimeError("no memory"), "The face analyser failed on picture 1 .RuntimeError: no memory."),
        ([seen(50, 60, 40, numbers(0, 128))], "“woman” has a face embedding of 512 numbers.*gives 128: connect"),
        ([seen(50, 60, 40, None)], "finds the face in picture 1 and does not recognise it"),
    ],
)
def test_what_is_wrong_is_said(faces, sentence) -> None:
    with pytest.raises(ValueError, match=sentence):
        likenesses([faces], found(LEFT, RIGHT))


def test_references_of_different_analysers_are_not_compared() -> None:
    with pytest.raises(ValueError, match="analysed by different models"):
        likenesses([[]], found(LEFT, RIGHT), references=(person("woman", numbers(0)), person("man", numbers(1, 128))))
