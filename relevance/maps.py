"""Relevance made visible: masks for other nodes, coloured overlays for people."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw
from torch import Tensor

from ..attention.options import between, one_of
from ..attention.regions import same_shape
from ..common.drawing import colour, drawable, letters
from ..common.text import object_number
from .means import nobody
from .observation import PHASES
from .record import RecordedMaps

MASKS = ("owner", "soft", "threshold")
ALL, COARSEST, FINEST = "all", "coarsest", "finest"
RESOLUTIONS = (ALL, COARSEST, FINEST)
MIXED = 0.7  # mixing; above it looks mix visibly
REMEDY = (
    "connect the decoded images of the last sampling with this MIP Apply's model, or put MIP Freeze Relevance behind "
    "their sampler and use its maps"
)
UNMEASURED = "no relevance measured"  # in the legend; the report gives the reason


class Drawn(NamedTuple):
    """The maps of B pictures and M objects, drawn.

    overlays: [B·(M + 1), H', W, 3], each picture with all objects, then with each object alone.
    masks: [B·M, H, W], or [B, H, W] for one object.
    gates: [B, H, W, 3], the fusion head's map.
    shares: [M, B, h, w], at the chosen resolution and steps.
    """

    overlays: Tensor
    masks: Tensor
    gates: Tensor
    shares: Tensor


def draw_maps(
    maps: RecordedMaps,
    images: Tensor,
    opacity: float,
    resolution: str,
    steps: str,
    mask: str,
    threshold: float,
    wanted: str = "",
) -> Drawn:
    """Draw the maps of a sampling on its decoded pictures.

    images: [B, H, W, 3].
    opacity: of the colours, 0..1.
    resolution: one of `RESOLUTIONS`.
    steps: `ALL` or one of `PHASES`.
    mask, threshold: see `masks`.
    wanted: whose masks, see `objects_named`.

    If the sampling measured nothing, the overlays are the captioned pictures [B, H', W, 3] and the masks are black, one
    a picture if there are no objects.
    Raises ValueError for pictures of another sampling and for unknown choices.
    """
    images = images[..., :3].expand(-1, -1, -1, 3)  # alpha is left out, grey pictures become coloured ones
    between("opacity", opacity, 0, 1)
    between("threshold", threshold, 0, 1)
    one_of("resolution", resolution, RESOLUTIONS)
    one_of("steps", steps, (ALL, *PHASES))
    ends = {COARSEST: 0, FINEST: -1}
    size = maps.resolutions[ends[resolution]] if resolution in ends and maps.resolutions else None
    phase = None if steps == ALL else steps
    kept = objects_named(wanted, maps.names) if maps.names else [0]
    count, height, width = images.shape[:3]
    measured, gate = maps.absent() is None, maps.gate(size, phase)
    chosen = maps.shares(size, phase) if measured else torch.zeros(max(1, len(maps.names)), count, 1, 1)
    _check_belonging(maps, chosen, images)
    shares = upscale(chosen, (height, width)).clamp(0, 1)  # [M, B, H, W]
    overlays: list[Tensor] = []
    for i, image in enumerate(images.cpu()):
        if measured:
            note = mixed(mixing(chosen[:, i]))
            overlays += draw_overlays(image, shares[:, i], maps.names, maps.colours, opacity, note)
        else:
            overlays.append(captioned(image, [(UNMEASURED, None)]))
    # A long legend takes more lines. All pictures are padded to the tallest.
    tallest = max(each.shape[0] for each in overlays)
    return Drawn(
        torch.stack([F.pad(each, (0, 0, 0, 0, 0, tallest - each.shape[0]), value=1.0) for each in overlays]),
        masks(shares, mask, threshold)[kept].transpose(0, 1).flatten(0, 1),
        heat(upscale(gate, (height, width))) if gate is not None else torch.full_like(images, 0.5),
        chosen,
    )


def objects_named(wanted: str, names: Sequence[str]) -> list[int]:
    """Indices: of the object named by its text or number (`object_number`), or of all if `wanted` is empty."""
    return [object_number(wanted, names)] if wanted.strip() else list(range(len(names)))


def _check_belonging(maps: RecordedMaps, shares: Tensor, images: Tensor) -> None:
    """Raises ValueError if maps [M, B, h, w] and pictures [B, H, W, 3] cannot be of one sampling."""
    (count, height, width), (pictures, h, w) = images.shape[:3], shares.shape[1:]
    if pictures != count:
        raise ValueError(f"There are {count} images and maps of {pictures}: {REMEDY}.")
    if not same_shape((h, w), (height, width)):
        raise ValueError(
            f"The images are {width}×{height} pixels and the maps {w}×{h} positions, another shape: the last sampling "
            f"with this model made another picture (a tile, a detailer's?). So {REMEDY}."
        )
    check_same_run(maps, images)


def check_same_run(maps: RecordedMaps, images: Tensor) -> None:
    """Raises ValueError if pictures [B, H, W, 3] clearly come from another run than the maps."""
    if maps.of_another_run(images):
        raise ValueError(
            "The images are of another sampling than the maps, which are of the last one with this model (a tile, a "
            f"detailer's crop?). So {REMEDY}."
        )


def upscale(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """[..., h, w] -> [..., H, W], bicubic; values may leave 0..1."""
    flat = F.interpolate(maps.reshape(1, -1, *maps.shape[-2:]), size=size, mode="bicubic", align_corners=False)
    return flat.reshape(*maps.shape[:-2], *size)


def masks(shares: Tensor, kind: str, threshold: float) -> Tensor:
    """One mask per object from shares [M, ..., H, W]: same shape, 0..1.

    kind: "owner" (see `owners`), "soft" (the share itself) or "threshold" (1 where the share exceeds `threshold`).
    """
    one_of("mask", kind, MASKS)
    if kind == "soft":
        return shares.clamp(0, 1)
    if kind == "threshold":
        return (shares > threshold).float()
    return owners(shares)[:-1]


def owners(shares: Tensor) -> Tensor:
    """Who has the largest share, from shares [M, ...]: [M + 1, ...] of 0 and 1. The last entry stands for no object."""
    return F.one_hot(torch.cat([shares, nobody(shares)]).argmax(0), len(shares) + 1).movedim(-1, 0).float()


def dominance(shares: Tensor) -> Tensor:
    """How far each object's share exceeds an equal part of what the objects claim at a position.

    0 at the equal part or below, 1 where the object has everything. A lone object's share is compared with its minimum
    over the positions; a constant share gives 0.

    shares: [M, ..., H, W]. Returns the same shape, 0..1.
    """
    if len(shares) == 1:
        return (shares - shares.amin((-2, -1), keepdim=True)).clamp(0, 1)
    equal = shares.mean(0, keepdim=True)  # 1/M of what the objects claim
    return ((shares - equal) / (1 - equal).clamp_min(1e-6)).clamp(0, 1)


def cores(shares: Tensor) -> Tensor:
    """Where the objects are, from shares [M, ..., H, W]: the same shape of 0 and 1.

    An object's core is where its `dominance` is at least half of its largest one. Outside of all cores the objects
    claim the picture about alike, which is how a background looks.
    """
    strength = dominance(shares)
    return ((strength > 0) & (strength >= strength.amax((-2, -1), keepdim=True) / 2)).float()


def mixing(shares: Tensor) -> float | None:
    """How much of the objects' cores the other objects claim, from shares [M, H, W]; None for one object.

    0: every object has its core to itself. 1: the others claim as much of it as with equal shares, or there is no core.
    It is the mean over the objects. A background that all claim alike does not count, unlike in `evenness`.
    """
    count = len(shares)
    if count < 2:
        return None
    core = cores(shares)
    others = 1 - shares / shares.sum(0).clamp_min(torch.finfo(shares.dtype).tiny)
    each = (others * core).sum((-2, -1)) / core.sum((-2, -1)).clamp_min(1) * count / (count - 1)
    return float(torch.where(core.any(-1).any(-1), each.clamp(max=1), torch.ones(count)).mean())


def overlay(image: Tensor, strengths: Tensor, numbers: Sequence[int], opacity: float) -> Tensor:
    """Lay the objects' colours over a picture.

    image: [H, W, 3].
    strengths: [K, H, W] in 0..1.
    numbers: the numbers of the K objects' colours.
    """
    grey = image.mean(-1, keepdim=True).expand(-1, -1, 3)  # a greyer picture makes the colours stand out
    out = torch.lerp(image, grey, 0.5 * opacity)
    total = strengths.sum(0).clamp_min(1)
    for strength, number in zip(strengths / total, numbers, strict=True):
        ink = torch.tensor(colour(number), dtype=image.dtype) / 255
        out = out + (ink - out) * (opacity * strength).unsqueeze(-1)
    return out.clamp(0, 1)


def legend(entries: list[tuple[str, int | None]], width: int) -> Image.Image:
    """A strip `width` pixels wide with words. Each entry has the number of a colour, for its swatch, or None."""
    size = max(10, min(22, width // 24), width // 40)
    x, y, line = size // 2, size // 2, round(size * 1.5)
    placed = []
    for words, number in entries:
        length = letters(words, size).getlength(words) + (size * 1.4 if number is not None else 0)
        if x > size // 2 and x + length > width - size // 2:
            x, y = size // 2, y + line
        placed.append((x, y, words, number))
        x += round(length + size)
    strip = Image.new("RGB", (width, y + line + size // 4), "white")
    pen = ImageDraw.Draw(strip)
    for x, y, words, number in placed:
        if number is not None:
            pen.rectangle((x, y + size // 8, x + size, y + size // 8 + size), fill=colour(number))
            x += round(size * 1.4)
        pen.text((x, y), words, font=letters(words, size), fill="black")
    return strip


def captioned(image: Tensor, entries: list[tuple[str, int | None]]) -> Tensor:
    """The picture [H, W, 3] with a legend below it: [H + strip, W, 3]."""
    strip = legend(entries, image.shape[1])
    below = torch.frombuffer(bytearray(strip.tobytes()), dtype=torch.uint8).view(strip.height, strip.width, 3)
    return torch.cat([image, below.to(image.dtype) / 255])


def draw_overlays(
    image: Tensor, shares: Tensor, names: tuple[str, ...], colours: Sequence[int], opacity: float, note: str
) -> list[Tensor]:
    """One picture with all objects, then with each alone: [H', W, 3] each.

    shares: [M, H, W].
    colours: the numbers of the objects' colours.
    note: for the legend.
    """
    strengths = dominance(shares)
    entries = [*zip(drawable(names), colours, strict=True)]
    pictures = [captioned(overlay(image, strengths, colours, opacity), [*entries, (note, None)])]
    for i, number in enumerate(colours):
        pictures.append(captioned(overlay(image, strengths[i : i + 1], [number], opacity), [entries[i]]))
    return pictures


def preview(
    picture: Image.Image, shares: Tensor, names: tuple[str, ...], colours: Sequence[int], side: int
) -> Image.Image:
    """A picture with all objects' colours and their legend below it.

    shares: [M, h, w].
    colours: the numbers of the objects' colours.
    side: the longer side of the result without the legend, in pixels.
    """
    scale = side / max(picture.size)
    size = max(1, round(picture.width * scale)), max(1, round(picture.height * scale))
    if scale < 1:
        picture = picture.resize(size, Image.Resampling.BILINEAR)
    # The colours are smooth. They are laid on before the picture is enlarged, which costs far less.
    image = torch.frombuffer(bytearray(picture.tobytes()), dtype=torch.uint8).view(picture.height, picture.width, 3)
    strengths = dominance(upscale(shares, (picture.height, picture.width)).clamp(0, 1))
    covered = overlay(image / 255, strengths, colours, 0.6)
    enlarged = Image.fromarray((covered * 255).round().byte().numpy()).resize(size, Image.Resampling.BILINEAR)
    entries = [*zip(drawable(names), colours, strict=True), (mixed(mixing(shares)), None)]
    under = legend(entries, enlarged.width)
    sheet = Image.new("RGB", (enlarged.width, enlarged.height + under.height))
    sheet.paste(enlarged, (0, 0))
    sheet.paste(under, (0, enlarged.height))
    return sheet


def mixed(value: float | None) -> str:
    """The `mixing` as a note for the legend; empty if there is none."""
    return "" if value is None else f"mixed {value:.0%}"


def heat(gate: Tensor) -> Tensor:
    """The fusion head's map g̃ [B, H, W] as grey pictures [B, H, W, 3]: mid-grey is 1, white is 2 or more."""
    return (gate / 2).clamp(0, 1).unsqueeze(-1).expand(-1, -1, -1, 3)
