"""A reference: pictures of one object and the words that name it. A style: pictures without a place."""

from __future__ import annotations

import re
import zlib
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..common.crops import bounds, window
from ..common.drawing import colour_numbers
from ..common.text import brief, check_texts
from ..common.weak_cache import WeakCache
from ..weights.adapter import Adapter
from .block_strength import PRESETS, STYLE, BlockStrength
from .ease import EASES, STEADY
from .face import Face
from .options import one_of

MAX_OBJECTS = 16
MAX_WEIGHT = 3.0
# CLIP sees 224 pixels; a picture of a few pixels is a mistake in the graph, not a reference.
LEAST_SIDE = 8
# Larger values of an image mask are part of the object's bounding box.
LEAST_MASK = 0.05
# Relative tolerance between the aspect ratios of mask and picture: the sides of a smaller mask are rounded.
SAME_SHAPE = 0.02
# The same input gives the same tensor object, so that patching/encode.py recognises it.
_picture_cache = WeakCache()
CENTRE, PAD, START, END = FITS = ("centre crop", "pad to square", "top or left", "bottom or right")


@dataclass(frozen=True, eq=False)
class Reference:
    """One object.

    images: [B, H, W, 3] in 0..1, one or more pictures of the object, ready for the image encoder.
    text: the words that name the object.
    weight: multiplies its image features.
    region: [K, H', W'] in 0..1, where the object may act; it is stretched to any canvas. One mask is for all pictures
        that are made, several are one for each. None: everywhere.
    start_percent, end_percent: the fractions of the sampling between which the object acts.
    region_until: the fraction of the sampling up to which the region holds.
    more: further batches of other sizes, each with the weight of its pictures in the mean. The pictures of `images`
        have weight 1.
    map_color: number of the colour in which the object is drawn (`common/drawing.py`: `colour`). None: by its place in
        the chain.
    blocks: multiplies its image features by block of the UNet. None: 1 everywhere.
    over_time: how they vary over the object's range of the sampling, one of `EASES`.
    negative: [B, H, W, 3], what the object must not look like: the image of the unconditional branch. None: no image.
    face: for the reference of a face, whose pictures are aligned crops.
    """

    images: Tensor
    text: str
    weight: float = 1.0
    region: Tensor | None = None
    start_percent: float = 0.0
    end_percent: float = 1.0
    region_until: float = 1.0
    more: tuple[tuple[Tensor, float], ...] = ()
    map_color: int | None = None
    blocks: BlockStrength | None = None
    over_time: str = STEADY
    negative: Tensor | None = None
    face: Face | None = None

    @property
    def batches(self) -> tuple[tuple[Tensor, float], ...]:
        """All pictures of the object: batches [B, H, W, 3], each with the weight of its pictures in the mean."""
        return ((self.images, 1.0), *self.more)

    @property
    def count(self) -> int:
        """How many pictures it has."""
        return sum(len(images) for images, _ in self.batches)


def colours_of(references: Iterable[Reference]) -> tuple[int, ...]:
    """The number of each object's colour in maps, boxes and tables."""
    return colour_numbers(each.map_color for each in references)


def object_text(text: str) -> str:
    """The text in one line, for legends, reports and detectors. Raises ValueError if it is empty or too long."""
    if not (line := " ".join(text.split())):
        raise ValueError("The object text is empty: name the object of this picture in a word or two, such as “cat”.")
    check_texts([line])
    return line


@dataclass(frozen=True, eq=False)
class Style(Reference):
    """A reference without a place: it acts beside the objects and takes no part in their shares.

    text: its name in reports and messages; no text encoder sees it.
    preset: the blocks in which it speaks where `blocks` is None, one of `PRESETS`.
    """

    preset: str = STYLE


Chain = Sequence[Reference] | None  # objects and styles in any order


def objects_of(chain: Chain) -> tuple[Reference, ...]:
    """The objects of a chain."""
    return tuple(each for each in chain or () if not isinstance(each, Style))


def styles_of(chain: Chain) -> tuple[Style, ...]:
    """The styles of a chain."""
    return tuple(each for each in chain or () if isinstance(each, Style))


def check_chain(chain: Chain) -> None:
    """Raises ValueError if there are more objects or styles than are supported."""
    for what, count in ("objects", len(objects_of(chain))), ("styles", len(styles_of(chain))):
        if count > MAX_OBJECTS:
            raise ValueError(f"This chain has {count} {what}; at most {MAX_OBJECTS} {what} are supported.")


def make_reference(
    image: Tensor,
    text: str,
    weight: float = 1.0,
    image_mask: Tensor | None = None,
    region: Tensor | None = None,
    start_percent: float = 0.0,
    end_percent: float = 1.0,
    region_until: float = 1.0,
    more_pictures: Sequence[Reference] = (),
    fit: str = CENTRE,
    map_color: int | None = None,
    blocks: BlockStrength | None = None,
    over_time: str = STEADY,
    negative: Tensor | None = None,
) -> Reference:
    """Check and prepare one reference.

    image: [B, H, W, C], C 1, 3 or 4; a picture with alpha is composited onto white.
    text, weight, start_percent, end_percent, region_until, map_color, blocks: see `Reference`.
    image_mask: [H, W] or [1 or B, H, W], 1 on the object. The object is cut out onto white and cropped to a square, as
        in the paper's training data.
    region: [H, W], or [K, H, W] with a mask for each of K pictures.
    more_pictures: their pictures join this object's; their weights become the pictures' weights in the mean.
    fit: which square of a picture without a mask is used, one of `FITS`.
    negative: [B, H, W, C], C 1, 3 or 4; its middle square is used.
    over_time: see `Reference`; where it is steady, that of `blocks` counts.

    Raises ValueError with a sentence for the artist.
    """
    text = object_text(text)
    if not 0 <= weight <= MAX_WEIGHT:
        raise ValueError(f"The weight of “{text}” is {weight}; it must lie between 0 and {MAX_WEIGHT:g}.")
    if not 0 <= start_percent <= end_percent <= 1:
        raise ValueError(
            f"“{text}” acts from {start_percent} to {end_percent} of the sampling; both must lie in 0 to 1, start "
            "before end."
        )
    if not 0 <= region_until <= 1:
        raise ValueError(f"The region of “{text}” holds until {region_until}; it must lie in 0 to 1 (1: to the end).")
    if fit not in FITS:
        raise ValueError(f"The fit of “{text}” is “{brief(fit, 60)}”; it must be one of {', '.join(FITS)}.")
    one_of(f"The strength over time of “{text}”", over_time, EASES)
    over_time = blocks.over_time if over_time == STEADY and blocks is not None else over_time
    if negative is not None:
        negative = _picture_cache(
            partial(_rgb_on_white, negative, f"not {text}"), negative, name=("negative", _checksum(negative))
        )
    if image_mask is None:
        images = _picture_cache(lambda: _fitted(_rgb_on_white(image, text), fit), image, name=(fit, _checksum(image)))
    else:

        def cut_out() -> Tensor:
            return _cut_out(_rgb_on_white(image, text), _as_masks(image_mask, f"image_mask of “{text}”"), text)

        images = _picture_cache(cut_out, image, image_mask, name=(_checksum(image), _checksum(image_mask)))
    region = None if region is None else _check_region(region, text)
    more = tuple((images, each.weight * each_weight) for each in more_pictures for images, each_weight in each.batches)
    times = start_percent, end_percent, region_until
    return Reference(images, text, float(weight), region, *times, more, map_color, blocks, over_time, negative)


def paired(names: str, pictures: Collection[int]) -> dict[int, str]:
    """Object texts by the number of their picture, from 1.

    names: the texts, one a line or separated by commas.
    pictures: the numbers of the pictures.

    Raises ValueError if there is no name, or if names and pictures do not go in pairs.
    """
    texts = {number: object_text(each) for number, each in enumerate(filter(str.strip, re.split(r"[\n,;]", names)), 1)}
    if not texts:
        raise ValueError("No object is named: write each picture's name, one a line, in the pictures' order.")
    if nameless := set(pictures) - texts.keys():
        raise ValueError(
            f"“picture {min(nameless)}” has no name; names written: {len(texts)}. Write one a line, in the pictures' "
            "order."
        )
    if lacking := texts.keys() - set(pictures):
        raise ValueError(
            f"“{brief(texts[min(lacking)], 60)}”, name {min(lacking)}, has no picture: connect one to “picture "
            f"{min(lacking)}”, or delete the name."
        )
    return texts


def make_references(names: str, pictures: Mapping[int, Tensor]) -> tuple[Reference, ...]:
    """References with a name and a picture each, and nothing else.

    names: see `paired`.
    pictures: by number, from 1; [B, H, W, C], C 1, 3 or 4.

    Raises ValueError with a sentence for the artist.
    """
    return tuple(make_reference(pictures[number], text) for number, text in paired(names, pictures).items())


def make_style(
    image: Tensor,
    name: str,
    weight: float = 1.0,
    region: Tensor | None = None,
    start_percent: float = 0.0,
    end_percent: float = 1.0,
    fit: str = CENTRE,
    preset: str = STYLE,
    blocks: BlockStrength | None = None,
    over_time: str = STEADY,
    negative: Tensor | None = None,
) -> Style:
    """Check and prepare one style. name: its `Style.text`. The others: as in `make_reference` and `Style`.

    Raises ValueError with a sentence for the artist.
    """
    one_of("The preset", preset, PRESETS)
    times = start_percent, end_percent
    made = make_reference(
        image, name, weight, None, region, *times, fit=fit, blocks=blocks, over_time=over_time, negative=negative
    )
    return Style(**vars(made), preset=preset)


def of_a_face(
    reference: Reference,
    embeddings: Tensor,
    crops: Tensor,
    structure: float = 1.0,
    more_pictures: Sequence[Reference] = (),
    adapter: Adapter | None = None,
    clip_vision: Any = None,
) -> Reference:
    """The reference of a face, from the reference of the photographs.

    embeddings, crops, structure, adapter, clip_vision: see `Face`.
    more_pictures: further faces of the person; their weights become the pictures' weights in the mean.

    Raises ValueError with a sentence for the artist.
    """
    embedded = [embeddings]
    for each in more_pictures:
        if each.face is None:
            raise ValueError(
                f"“more_pictures” of “{reference.text}” got “{each.text}”, a MIP Reference: use MIP Face Reference for "
                "every photograph."
            )
        embedded.append(each.face.embeddings)
    if len({each.shape[-1] for each in embedded}) > 1:
        raise ValueError(f"The photographs of “{reference.text}” were analysed by different models: use one for all.")
    more = tuple((images, each.weight * each_weight) for each in more_pictures for images, each_weight in each.batches)
    return replace(reference, images=crops, more=more, face=Face(torch.cat(embedded), structure, adapter, clip_vision))


def _checksum(tensor: Tensor) -> int:
    """CRC of the content: it shows whether another pack has written into the tensor."""
    return zlib.crc32(tensor.float().contiguous().numpy(force=True).data)


def _rgb_on_white(image: Tensor, text: str) -> Tensor:
    if image.ndim != 4 or image.shape[-1] not in (1, 3, 4) or image.shape[0] == 0:
        raise ValueError(
            f"The picture of “{text}” has the shape {list(image.shape)}; expected [pictures, height, width, 3 or 4 "
            "channels]."
        )
    height, width = image.shape[1:3]
    if min(height, width) < LEAST_SIDE:
        raise ValueError(
            f"The picture of “{text}” is {width}×{height} pixels; use one of at least {LEAST_SIDE}×{LEAST_SIDE} "
            "(224×224 or more is sensible)."
        )
    image = image.float().cpu()  # pictures and masks may come from different devices
    if not torch.isfinite(image).all():
        raise ValueError(f"The picture of “{text}” contains NaN or infinite values; check the node that makes it.")
    if image.shape[-1] == 4:
        alpha = image[..., 3:]
        image = image[..., :3] * alpha + (1 - alpha)
    return image.clamp(0, 1).expand(-1, -1, -1, 3)


def _as_masks(mask: Tensor, what: str) -> Tensor:
    """[H, W] or [B, H, W] -> [B, H, W] float in 0..1."""
    if mask.ndim == 4 and 1 in (mask.shape[1], mask.shape[-1]):
        mask = mask.squeeze(1) if mask.shape[1] == 1 else mask.squeeze(-1)
    mask = mask.unsqueeze(0) if mask.ndim == 2 else mask
    if mask.ndim != 3 or 0 in mask.shape:
        raise ValueError(
            f"The {what} has the shape {list(mask.shape)}; expected [height, width] or [masks, height, width]."
        )
    return mask.float().cpu().nan_to_num(0).clamp(0, 1)


def _check_region(region: Tensor, text: str) -> Tensor:
    masks = _as_masks(region, f"region of “{text}”")
    if not masks.any():
        raise ValueError(
            f"The region of “{text}” is empty, so it could act nowhere: paint where it may appear (white), invert the "
            "mask, or disconnect the region."
        )
    return masks


def _cut_out(images: Tensor, masks: Tensor, text: str) -> Tensor:
    """The object on white, cropped to its bounding box and padded to a square. Returns [B, S, S, 3].

    All squares of a batch are resized to the largest of them.
    """
    count, height, width = images.shape[:3]
    if masks.shape[0] not in (1, count):
        raise ValueError(
            f"“{text}” has {count} pictures and {masks.shape[0]} image masks; give one mask for all or one for each "
            "picture."
        )
    masks_height, masks_width = masks.shape[1:]
    ratio = masks_width * height / (masks_height * width)
    if masks.any() and not 1 - SAME_SHAPE <= ratio <= 1 + SAME_SHAPE:  # Load Image's empty mask is 64×64
        raise ValueError(
            f"The image_mask of “{text}” is {masks_width}×{masks_height} pixels and its picture {width}×{height}: of "
            "another shape it would not lie on the object. Connect picture and mask of the same node; pictures of "
            "different shapes need a MIP Picture each, at more_pictures, instead of Batch Images."
        )
    if (masks_height, masks_width) != (height, width):
        masks = F.interpolate(masks.unsqueeze(1), size=(height, width), mode="bilinear", align_corners=False).squeeze(1)
    squares = []
    for picture, mask in zip(images, masks.expand(count, -1, -1), strict=True):
        inside = mask > LEAST_MASK
        if not inside.any():
            raise ValueError(
                f"The image_mask of “{text}” is empty: it must be white on the object (invert it if it came from a "
                "picture's transparency)."
            )
        rows, columns = (int(inside.any(axis).sum()) for axis in (1, 0))  # not of the box: dots far apart are dots
        if max(rows, columns) < LEAST_SIDE:
            raise ValueError(
                f"The image_mask of “{text}” leaves {columns}×{rows} pixels of its picture: paint the whole object "
                "white, not a dot on it."
            )
        box = window(bounds(inside))
        alpha = mask[box].unsqueeze(-1)
        squares.append(_square(picture[box] * alpha + (1 - alpha)))
    side = max(square.shape[0] for square in squares)
    return torch.stack([_resize(square, side) for square in squares])


def _fitted(images: Tensor, fit: str) -> Tensor:
    """The square to use of pictures [B, H, W, 3]. CENTRE changes nothing: the image encoder takes the middle itself."""
    side = min(images.shape[1:3])
    if fit == START:
        return images[:, :side, :side]
    if fit == END:
        return images[:, -side:, -side:]
    return _square(images) if fit == PAD else images


def _square(picture: Tensor) -> Tensor:
    """The picture [..., H, W, 3] centred on a white square."""
    height, width = picture.shape[-3:-1]
    side = max(height, width)
    top, left = (side - height) // 2, (side - width) // 2
    pad = (0, 0, left, side - width - left, top, side - height - top)
    return F.pad(picture, pad, value=1.0)


def _resize(square: Tensor, side: int) -> Tensor:
    if square.shape[0] == side:
        return square
    bigger = F.interpolate(square.movedim(-1, 0).unsqueeze(0), size=(side, side), mode="bicubic", antialias=True)
    return bigger.squeeze(0).movedim(0, -1).clamp(0, 1)
