"""Samples from a folder of training data in the layout of subject_dataset_10k (see data_folder.py).

The constructor reads every json and every picture's header, so it knows which pictures are usable. Pixels are read on
demand. A sample depends on (seed, index) alone.
"""

from __future__ import annotations

import logging
import random
from collections import Counter, deque
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..common.crops import Box
from ..common.pictures import open_picture
from ..common.rng import generator, seed_of
from .config import TrainConfig
from .crops import choose_crop, cropped, cut_reference, latent_mask, training_picture, whole_box
from .data_folder import mask_path, picture_ids, picture_path, read_json, read_mask
from .filters import NO_FACES, LabelledBox, candidates, faces_of, fits_after_crop, refuse_names, with_masks

log = logging.getLogger(__name__)

MOST_BROKEN = 0.05  # of the pictures; more means that something is wrong with the folder, not with a few files


@dataclass(frozen=True, eq=False)
class Sample:
    """One training picture with M objects.

    index: its number in the endless sequence of samples.
    image: [3, S, S] in 0..1.
    names: the object texts.
    references: [M, 3, 224, 224] in 0..1.
    mask: [S/8, S/8] in 0..1, the share of each latent position that objects cover.
    original_size: (height, width) and corner: (top, left) of the crop, SDXL's size conditioning.
    drop_text, drop_image: drop the caption, drop the references.
    broken: (id, reason) of the pictures that were skipped before this one.
    faces: [M, F], the objects' face embeddings; None where they are not asked for.
    """

    id: str
    index: int
    image: Tensor
    caption: str
    names: tuple[str, ...]
    references: Tensor
    mask: Tensor
    original_size: tuple[int, int]
    corner: tuple[int, int]
    drop_text: bool = False
    drop_image: bool = False
    broken: tuple[tuple[str, str], ...] = ()
    faces: Tensor | None = None


class _Picture(NamedTuple):
    """What the json of one usable picture says.

    file: with its pixels.
    candidates: the objects that count unless their masks are bad, most confident first.
    boxes: of all objects of the picture, also of those that the filters leave out, in whole pixels.
    original: (height, width) by the json, which has [w, h], else by the file.
    faces: the face embeddings by the boxes in `candidates`.
    """

    id: str
    file: Path
    caption: str
    candidates: tuple[LabelledBox, ...]
    boxes: tuple[Box, ...]
    original: tuple[int, int]
    faces: Mapping[Box, Tensor]


class _LeftOut(Exception):
    """A picture that the filters leave out, by its json or by its pixels. The file itself is not at fault."""


class SubjectFolder(torch.utils.data.Dataset[Sample]):
    """`folder[index]` for any index from 0 on. Every epoch is a new permutation of the usable pictures.

    A picture that cannot be read is replaced by the next one of its epoch and reported in `Sample.broken`.

    folder: a folder of training data, or a list of kept pictures (data_folder.py).
    face: F, the width of the face embedding that every object must have, for adapters that read one.

    Raises ValueError for a folder that is empty, has no usable picture, or is more than 5 % broken.
    """

    def __init__(self, folder: str | Path, recipe: TrainConfig, face: int | None = None) -> None:
        self.recipe, self.face = recipe, face
        self.folder, ids = picture_ids(Path(folder))
        self.total, self.pictures = len(ids), list[_Picture]()
        self.broken, self.left_out = dict[str, str](), Counter[str]()
        with ThreadPoolExecutor(8) as pool:
            reads = deque((each, pool.submit(self._read, each)) for each in ids)
            while reads:
                # Dropping the future also frees its error and all that it references.
                picture_id, read = reads.popleft()
                try:
                    self.pictures.append(read.result())
                except _LeftOut as error:
                    self.left_out[str(error)] += 1
                except Exception as error:  # whatever a damaged file makes its decoder raise
                    self.broken[picture_id] = f"{type(error).__name__}: {error}"
        check_broken(self.broken, self.total)
        for picture_id, why in self.broken.items():
            log.warning("Training sample %s is broken and left out: %s", picture_id, why)
        if not self.pictures:
            raise ValueError(self._nothing())

    def __len__(self) -> int:
        return len(self.pictures)

    @property
    def ids(self) -> list[str]:
        """The ids of the usable pictures, which identify this dataset."""
        return [each.id for each in self.pictures]

    def __str__(self) -> str:
        why = "".join(f"; {count} left out: {reason}" for reason, count in self.left_out.most_common())
        return f"{len(self.pictures)} of {self.total} pictures are usable{why}; {len(self.broken)} broken"

    def __getitem__(self, index: int) -> Sample:
        epoch, slot = divmod(index, len(self.pictures))
        order = _permutation(self.recipe.seed, epoch, len(self.pictures))
        broken: list[tuple[str, str]] = []
        last = ""
        for step in range(len(self.pictures)):
            picture = self.pictures[order[(slot + step) % len(order)]]
            try:
                return replace(self._load(picture, index), broken=tuple(broken))
            except _LeftOut as error:
                last = str(error)
            except Exception as error:  # whatever a damaged file makes its decoder raise
                broken.append((picture.id, f"{type(error).__name__}: {error}"))
                check_broken({**self.broken, **dict(broken)}, self.total)
        raise ValueError(f"No picture of {self.folder} is usable once its pixels are read: {last or 'all broken'}.")

    def _read(self, picture_id: str) -> _Picture:
        """Json and picture header of one id. Raises _LeftOut if the filters leave it out, anything else if it is
        broken.
        """
        data, file = read_json(self.folder, picture_id), picture_path(self.folder, picture_id)
        with open_picture(file) as image:
            size = image.size
        if not mask_path(self.folder, picture_id).is_file():
            raise FileNotFoundError(f"masks/{picture_id}.png is missing")
        caption, least = str(data["text"]), self.recipe.min_objects
        entries, faces = data["final_masks"], dict[Box, Tensor]()
        if self.face is not None:
            entries, faces = faces_of(entries, self.face)
            if not faces:
                raise _LeftOut(NO_FACES)
        found, why = candidates(entries, caption, size, self.recipe.filters, least)
        if why:
            raise _LeftOut(why)
        width, height = data.get("original_size", size)
        boxes = tuple(whole_box(entry["box"]) for entry in data["final_masks"] if "box" in entry)
        return _Picture(picture_id, file, caption, tuple(found), boxes, (int(height), int(width)), faces)

    def _load(self, picture: _Picture, index: int) -> Sample:
        recipe, rng = self.recipe, random.Random(seed_of(self.recipe.seed, "sample", index))
        with open_picture(picture.file) as opened:
            image = opened.convert("RGB")
        values, pixels = read_mask(self.folder, picture.id, image.size), np.array(image)
        sound, why = with_masks(picture.candidates, values, recipe.filters, recipe.min_objects)
        if why:
            raise _LeftOut(why)
        # With crop_holds = "used" the crop holds the first of them. One of these may still be too small in it, and a
        # later one takes its place.
        first = [each.box for each in sound[: recipe.max_objects]]
        crop = choose_crop(image.size, picture.boxes if recipe.crop_holds == "all" else first, rng)
        window = (slice(crop.top, crop.top + crop.side), slice(crop.left, crop.left + crop.side))
        objects, references, boxes = [], [], []
        for each in sound:
            box = cropped(each.box, crop)
            if not fits_after_crop(box, crop.side, recipe.filters):
                continue
            cut = cut_reference(pixels[window], values[window], box, rng.random() < recipe.flip)
            if cut is not None:
                objects.append(each)
                references.append(cut)
                boxes.append(box)
            if len(objects) == recipe.max_objects:
                break
        if len(objects) < recipe.min_objects:
            raise _LeftOut("too few objects are left in the crop")
        if why := refuse_names(objects, recipe.filters):
            raise _LeftOut(why)
        drop_text, drop_image = _drops(rng, recipe)
        return Sample(
            id=picture.id,
            index=index,
            image=training_picture(image, crop, recipe.resolution),
            caption=picture.caption,
            names=tuple(each.label for each in objects),
            references=torch.stack(references),
            mask=latent_mask(values[window], boxes, recipe.resolution),
            original_size=picture.original,
            corner=(crop.top, crop.left),
            drop_text=drop_text,
            drop_image=drop_image,
            faces=None if self.face is None else torch.stack([picture.faces[each.box] for each in objects]),
        )

    def _nothing(self) -> str:
        reason, count = self.left_out.most_common(1)[0]
        return (
            f"None of the {self.total} pictures in {self.folder} can be used; for {count} of them: {reason}. "
            f"A picture needs {self.recipe.min_objects} or more objects of different names, each named by one word "
            "that stands in its caption; thresholds are in the recipe's filters."
        )


def _drops(rng: random.Random, recipe: TrainConfig) -> tuple[bool, bool]:
    """Whether to drop the caption, and whether to drop the references.

    One number decides: 0 … drop_image … + drop_text … + drop_both … 1.
    """
    number = rng.random()
    image_alone = number < recipe.drop_image
    text_alone = not image_alone and number < recipe.drop_image + recipe.drop_text
    both = not (image_alone or text_alone) and number < recipe.drop_image + recipe.drop_text + recipe.drop_both
    return text_alone or both, image_alone or both


@lru_cache(2)
def _permutation(seed: int, epoch: int, count: int) -> list[int]:
    return torch.randperm(count, generator=generator(seed, "epoch", epoch)).tolist()


def check_broken(broken: Mapping[str, str], total: int) -> None:
    """Raises ValueError with a list of the broken samples if they are more than 5 % of the data."""
    if len(broken) > MOST_BROKEN * total:
        listed = "\n".join(f"  {picture_id}: {why}" for picture_id, why in list(broken.items())[:50])
        more = f"\n  … and {len(broken) - 50} more" if len(broken) > 50 else ""
        raise ValueError(
            f"{len(broken)} of {total} training samples cannot be read, more than {MOST_BROKEN:.0%}. Mend or remove "
            f"them:\n{listed}{more}"
        )
