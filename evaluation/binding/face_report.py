"""Whose face does each person wear? The faces in pictures, compared with those of the face references.

With the unit embedding v of a person's face in a picture, and r_m, the mean of the unit embeddings of reference m's
photographs, as a unit vector:

    S[m] = v · r_m
    margin of person m = S[m] − max_{j ≠ m} S[j]        own minus best other, as for objects; below 0: another's face
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ...attention.reference import Reference
from ...common.tables import NOTHING, number, table
from ..faces.find import FaceAnalyser, faces_in, seen_faces
from .binding import Binding


@dataclass(frozen=True)
class FaceLikeness:
    """One person in one picture.

    picture, person: their numbers, the latter among the references of faces.
    similarity [M]: S, or None where no face was found in the person's box.
    """

    picture: int
    person: int
    similarity: tuple[float, ...] | None

    @property
    def best_other(self) -> int | None:
        """The other reference whose face is most alike; None without one."""
        alike = self.similarity or ()
        others = [j for j in range(len(alike)) if j != self.person]
        return max(others, key=lambda j: alike[j], default=None)

    @property
    def margin(self) -> float | None:
        """Own minus best other; None without a face or with a single person."""
        if self.similarity is None or self.best_other is None:
            return None
        return self.similarity[self.person] - self.similarity[self.best_other]


def face_likenesses(
    images: Tensor, references: Sequence[Reference], binding: Binding, analyser: FaceAnalyser
) -> list[FaceLikeness]:
    """Every person in every picture, as far as the person was found.

    images [B, H, W, 3]: in 0..1, those of `binding`.
    references: those of `binding`, in its order.

    Raises ValueError with a sentence for the artist where the analyser fails or is not that of the references.
    """
    persons = [m for m, each in enumerate(references) if each.face is not None]
    if not persons:
        return []
    means = [_mean(references[m]) for m in persons]
    if len({len(each) for each in means}) > 1:
        raise ValueError("The face references were analysed by different models: use one analyser for all.")
    known = F.normalize(torch.stack(means), dim=-1)  # [M, F]
    found = []
    for b, picture in enumerate(binding.pictures):
        faces = seen_faces(analyser, images[b], f"picture {b + 1}")
        crop_numbers = [picture.crop_of[m] for m in persons]
        boxes = [None if crop is None else picture.boxes[crop] for crop in crop_numbers]
        for person, face in enumerate(faces_in(boxes, faces)):
            text = references[persons[person]].text
            alike = None if face is None else _alike(face.embedding(f"picture {b + 1}"), known, text)
            found.append(FaceLikeness(b, person, alike))
    return found


def face_report(images: Tensor, references: Sequence[Reference], binding: Binding, analyser: FaceAnalyser) -> str:
    """The likenesses as text: their mean margin, how many are right, a line for every person in every picture."""
    names = [each.text for each in references if each.face is not None]
    if not names:
        return "No reference is a MIP Face Reference: there are no faces to compare."
    found = face_likenesses(images, references, binding, analyser)
    margins = [each.margin for each in found if each.margin is not None]
    seen = sum(each.similarity is not None for each in found)
    said = [f"faces: {seen} of {len(found)} found"]
    if margins:
        right = sum(margin >= 0 for margin in margins)
        said += [
            f"margin {number(sum(margins) / len(margins), sign=True)}",
            f"{right} of {len(margins)} most like their own",
        ]
    rows = []
    for each in found:
        other, alike = each.best_other, each.similarity
        rows.append(
            [
                f"picture {each.picture + 1}",
                names[each.person],
                NOTHING if alike is None else number(alike[each.person]),
                NOTHING if alike is None or other is None else number(alike[other]),
                NOTHING if other is None else names[other],
                number(each.margin, sign=True),
            ]
        )
    return f"{', '.join(said)}\n\n{table(['', 'face of', 'own', 'best other', 'which', 'margin'], rows, words=2)}"


def _mean(reference: Reference) -> Tensor:
    assert reference.face is not None
    return F.normalize(reference.face.embeddings.float(), dim=-1).mean(0)


def _alike(embedding: Tensor, known: Tensor, text: str) -> tuple[float, ...]:
    """S of a face. embedding: [F]; known: [M, F], r_m; text: the person's, for messages."""
    if len(embedding) != known.shape[1]:
        raise ValueError(
            f"“{text}” has a face embedding of {known.shape[1]} numbers, and this face analyser "
            f"gives {len(embedding)}: connect the analyser of the face references."
        )
    return tuple((known @ F.normalize(embedding, dim=0)).tolist())
