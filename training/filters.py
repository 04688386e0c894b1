"""Which objects of a training picture count: the paper's filters with all their thresholds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

import numpy as np
import torch
from torch import Tensor

from ..common.crops import Box, box_area, overlap, window
from ..common.text import brief

CroppedAspect = Literal["h/w", "w/h"]


@dataclass(frozen=True)
class Filters:
    """Thresholds. The defaults are the official training script's.

    area_min, area_max: a box's share of the picture.
    aspect_min, aspect_max: its width / height.
    logit_min: the detector's confidence.
    contained: a box is dropped when more than this share of the smaller box overlaps with one already chosen.
    fill: share of its box that the most frequent mask value must cover; that value may be the background's.
    values: how many mask values a box may hold, the background's among them.
    cropped_area: share of the training crop that must remain of a box.
    cropped_aspect: of what remains, the aspect limits "h/w", height / width (official), or "w/h", as before the crop.
    one_word: labels of one word only.
    in_caption: a label's letters must stand in the caption, as officially: “cat” also stands in “education”.
    names_differ: a picture whose chosen objects share a name is left out.
    """

    area_min: float = 0.08
    area_max: float = 0.7
    aspect_min: float = 0.3
    aspect_max: float = 3.0
    logit_min: float = 0.3
    contained: float = 0.8
    fill: float = 0.6
    values: int = 5
    cropped_area: float = 200 / 512**2
    cropped_aspect: CroppedAspect = "h/w"
    one_word: bool = True
    in_caption: bool = True
    names_differ: bool = True

    def __post_init__(self) -> None:
        for low, high in (("area_min", "area_max"), ("aspect_min", "aspect_max")):
            if not 0 <= getattr(self, low) < getattr(self, high):
                raise ValueError(f"The filter {low} is {getattr(self, low)}; it must be 0 or more and below {high}.")
        if self.cropped_aspect not in (allowed := get_args(CroppedAspect)):
            raise ValueError(
                f"The filter cropped_aspect is {self.cropped_aspect!r}; choose one of {', '.join(allowed)}."
            )


MOST_BOXES = 500  # of a picture: whether some of them fit together is asked for all pairs


class LabelledBox(NamedTuple):
    """One object of a picture: its label, and its box in the picture's pixels."""

    label: str
    box: Box


NO_OBJECTS, TOO_FEW, NOT_IN_CAPTION, SAME_NAMES, BAD_MASKS, NO_FACES = (
    "no object has a usable box (area, aspect, confidence, one-word label)",
    "too few objects remain",
    "labels do not stand in the caption",
    "two objects have the same name",
    "the masks inside the boxes are too small or too mixed",
    "no object has a face embedding (mip.py dataset --faces writes them)",
)


def candidates(
    entries: Sequence[dict], caption: str, size: tuple[int, int], filters: Filters, least: int
) -> tuple[list[LabelledBox], str | None]:
    """The candidates, most confident first, and None; or an empty list and the reason to leave the picture out.

    Their masks are not read yet. A picture stays if it could be used with some
    of its masks being sound; `with_masks` then decides which boxes lie inside others.

    entries: the json's `final_masks`. An entry without a box is the background.
    size: (width, height).
    least: how many objects the picture must have.

    Raises ValueError for entries that cannot be read, or for too many of them.
    """
    if len(entries) > MOST_BOXES:
        raise ValueError(f"it has {len(entries):,} boxes; at most {MOST_BOXES:,} are read")
    boxes = [
        _labelled_box(entry)
        for entry in sorted(entries, key=_logit, reverse=True)
        if _is_candidate(entry, size, filters)
    ]
    if not boxes:
        return [], NO_OBJECTS
    named = [each for each in boxes if not filters.in_caption or each.label in caption]
    if len(named) < min(least, len(boxes)):  # with fewer boxes than that, too few remain, whatever their labels
        return [], NOT_IN_CAPTION
    if not _together(named, least, lambda a, b: _apart(a, b, filters)):
        return [], TOO_FEW
    if not _together(named, least, lambda a, b: _apart(a, b, filters) and not refuse_names((a, b), filters)):
        return [], SAME_NAMES
    return named, None


def faces_of(entries: Sequence[dict], width: int) -> tuple[list[dict], dict[Box, Tensor]]:
    """The objects that have a face embedding, and the embedding [F] of each by its box.

    entries: the json's `final_masks`.
    width: F. Raises ValueError for an embedding that is not so many finite numbers.
    """
    having = [entry for entry in entries if isinstance(entry, dict) and entry.get("face") is not None]
    faces = {}
    for entry in having:
        try:
            face = torch.tensor(entry["face"], dtype=torch.float32)
        except (TypeError, ValueError, RuntimeError, OverflowError) as error:
            raise ValueError(f"the face of “{brief(entry.get('label'))}” is no list of numbers") from error
        if face.shape != (width,) or not bool(face.isfinite().all()):
            raise ValueError(
                f"the face embedding of “{brief(entry.get('label'))}” has the shape {list(face.shape)}, expected "
                f"{width} finite numbers"
            )
        faces[_labelled_box(entry).box] = face
    return having, faces


def with_masks(
    found: Sequence[LabelledBox], values: np.ndarray, filters: Filters, least: int
) -> tuple[list[LabelledBox], str | None]:
    """Those of the candidates that have a sound mask and do not lie inside another such object; or the reason for none.

    found: the candidates, most confident first.
    values: the picture's mask [H, W].
    """
    sound: list[LabelledBox] = []
    mixed = False
    for each in found:
        if all(_apart(each, other, filters) for other in sound):
            if mask_is_sound(values, each.box, filters):
                sound.append(each)
            else:
                mixed = True
    return (sound, None) if len(sound) >= least else ([], BAD_MASKS if mixed else TOO_FEW)


def refuse_names(chosen: Sequence[LabelledBox], filters: Filters) -> str | None:
    """The reason to leave out a picture whose chosen objects have the same name, else None."""
    names = [found.label for found in chosen]
    return SAME_NAMES if filters.names_differ and len(set(names)) < len(names) else None


def _together(found: Sequence[LabelledBox], least: int, fit: Callable[[LabelledBox, LabelledBox], bool]) -> bool:
    """Whether there are `least` objects that fit in pairs."""
    if least <= 1:
        return len(found) >= least
    rest = ([other for other in found[i + 1 :] if fit(each, other)] for i, each in enumerate(found))
    return any(_together(others, least - 1, fit) for others in rest)


def _apart(a: LabelledBox, b: LabelledBox, filters: Filters) -> bool:
    return containment(a.box, b.box) <= filters.contained


def containment(a: Box, b: Box) -> float:
    """Intersection area over the area of the smaller box."""
    return overlap(a, b) / max(1e-6, min(box_area(a), box_area(b)))


def mask_is_sound(values: np.ndarray, box: Box, filters: Filters) -> bool:
    """Whether the mask inside the box has few values, one of which fills most of it; the background's counts too.

    values: [H, W], 0 is the background.
    """
    inside = values[window(box)]
    found, counts = np.unique(inside, return_counts=True)
    if not 2 <= len(found) <= filters.values or counts.max() < filters.fill * box_area(box):
        return False
    value = object_value(inside)
    return value is not None and int((values == value).sum()) <= box_area(box)


def object_value(inside: np.ndarray) -> int | None:
    """The most frequent mask value other than the background; None if there is only background."""
    found, counts = np.unique(inside[inside > 0], return_counts=True)
    return int(found[counts.argmax()]) if len(found) else None


def aspect_fits(box: Box, filters: Filters) -> bool:
    width, height = box[2] - box[0], box[3] - box[1]
    return height > 0 and filters.aspect_min < width / height < filters.aspect_max


def fits_after_crop(box: Box, side: int, filters: Filters) -> bool:
    """Whether enough is left of a box in a square crop; the box in the crop's own pixels."""
    if box_area(box) / side**2 <= filters.cropped_area:
        return False
    if filters.cropped_aspect == "h/w":
        x0, y0, x1, y1 = box
        box = y0, x0, y1, x1
    return aspect_fits(box, filters)


def _is_candidate(entry: dict, size: tuple[int, int], filters: Filters) -> bool:
    if "box" not in entry:
        return False
    found = _labelled_box(entry)
    return (
        filters.area_min < box_area(found.box) / (size[0] * size[1]) < filters.area_max
        and aspect_fits(found.box, filters)
        and _logit(entry) > filters.logit_min
        and not (filters.one_word and " " in found.label)
    )


def _labelled_box(entry: dict) -> LabelledBox:
    try:
        x0, y0, x1, y1 = (float(edge) for edge in entry["box"])
        label = entry["label"]
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise ValueError(f"an object of its json has no label, or no box of four numbers: {brief(entry)}") from error
    return LabelledBox(str(label).strip(), (x0, y0, x1, y1))


def _logit(entry: dict) -> float:
    try:
        return float(entry.get("logit", 1.0))
    except (AttributeError, TypeError, ValueError, OverflowError) as error:
        raise ValueError(f"an object of its json has no number as logit: {brief(entry)}") from error
