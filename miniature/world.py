"""The miniature's world: drawn scenes of one to four objects, about which everything is known.

`sample` draws the numbers that describe scenes, on the CPU and by seed, so that they are the same everywhere. `render`
turns them into pictures on any device. A reference is a scene too: one object on white.
"""

import random
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from . import world_split as split
from . import world_words as words
from .world_looks import COLOURS, JITTER, PATTERNS, PLAIN, fields, palette
from .world_shapes import EXTENT, KINDS, distances

SIZE = 128  # pixels of a picture's side
OBJECTS = 4  # the most in a scene
RADII = ((0.42, 0.70), (0.38, 0.52), (0.34, 0.45), (0.32, 0.42))  # limits by number of objects; 1 = half the picture
TURN = 0.45  # radians, the largest turn either way
GAP = 0.04  # between objects, and to the edge
PUSHES = 20  # rounds in which objects push each other apart
TEXTURE = 0.035  # standard deviation of the textured half of the backgrounds


@dataclass(frozen=True)
class Scenes:
    """B scenes of up to M objects. Coordinates run from -1 to 1 across the picture, y downwards."""

    kinds: Tensor  # [B, M] numbers in KINDS; -1 for no object, after the objects
    looks: Tensor  # [B, M, 3] pattern, first colour, second colour
    colours: Tensor  # [B, M, 2, 3] the colours as drawn
    centres: Tensor  # [B, M, 2]
    radii: Tensor  # [B, M]
    turns: Tensor  # [B, M] radians
    ground: Tensor  # [B, 3] background colour
    texture: Tensor  # [B, 3, g, g] coarse changes of the background colour, enlarged smoothly

    def __len__(self) -> int:
        return len(self.kinds)

    @property
    def counts(self) -> Tensor:
        return (self.kinds >= 0).sum(1)

    def rows(self, which: Tensor | slice) -> "Scenes":
        """The scenes that an index, mask or slice selects."""
        return Scenes(**{name: value[which] for name, value in vars(self).items()})

    def present(self, scene: int) -> list[int]:
        """The kinds of one scene."""
        return [kind for kind in self.kinds[scene].tolist() if kind >= 0]

    def captions(self, rng: random.Random, with_looks: bool = False) -> list[str]:
        """A caption for each scene. with_looks: name the looks too."""
        if not with_looks:
            return [words.caption(self.present(i), rng) for i in range(len(self))]
        looks = [[tuple(look) for look in scene] for scene in self.looks.tolist()]
        kinds = [self.present(i) for i in range(len(self))]
        return [words.described(k, look[: len(k)], rng) for k, look in zip(kinds, looks, strict=True)]


class Picture(NamedTuple):
    """B rendered scenes."""

    images: Tensor  # [B, 3, S, S] 0…1
    masks: Tensor  # [B, M, S, S] 0…1, the visible part of each object


def sample(count: int, seed: int, objects: tuple[int, ...] = (1, 2, 3, 4), held_out: bool = False) -> Scenes:
    """Scenes by seed. All kinds in a scene are different.

    count: how many scenes.
    objects: the numbers of objects that a scene may have.
    held_out: False gives scenes for training, without reserved pairs and looks (world_split). True gives scenes for
        tests: with several objects each holds a reserved pair of kinds, and all two-coloured looks are reserved.
    """
    g = torch.Generator().manual_seed(seed)
    numbers = torch.tensor(objects)[torch.randint(len(objects), (count,), generator=g)]
    kinds = _kinds(numbers, held_out, g)
    looks = _looks(kinds.shape, held_out, g)
    centres, radii = _places(numbers, g)
    return Scenes(
        kinds=kinds,
        looks=looks,
        colours=_colours(looks, g),
        centres=centres,
        radii=radii,
        turns=(torch.rand(kinds.shape, generator=g) * 2 - 1) * TURN,
        ground=_ground(count, g),
        texture=torch.randn(count, 3, 4, 4, generator=g) * TEXTURE * torch.rand(count, 1, 1, 1, generator=g).round(),
    )


def _kinds(numbers: Tensor, held_out: bool, g: torch.Generator) -> Tensor:
    """Different kinds for each scene, [B, OBJECTS], -1 for no object. They are drawn again until the split agrees.

    numbers [B]: how many objects each scene has.
    """
    kinds = torch.empty(len(numbers), OBJECTS, dtype=torch.long)
    wrong = torch.ones(len(numbers), dtype=torch.bool)
    while wrong.any():
        drawn = torch.rand(int(wrong.sum()), len(KINDS), generator=g).argsort(1)[:, :OBJECTS]
        kinds[wrong] = drawn.masked_fill(torch.arange(OBJECTS) >= numbers[wrong, None], -1)
        wrong = split.has_reserved_pair(kinds) != (held_out & (numbers > 1))
    return kinds


def _looks(shape: torch.Size, held_out: bool, g: torch.Generator) -> Tensor:
    """Pattern and two colours for each object, [B, M, 3], drawn again until the split agrees.

    The colours differ, except in plain looks.

    shape: (B, M).
    """
    looks = torch.empty(*shape, 3, dtype=torch.long)
    wrong = torch.ones(shape, dtype=torch.bool)
    while wrong.any():
        n = (int(wrong.sum()),)
        pattern = torch.randint(len(PATTERNS), n, generator=g)
        first = torch.randint(len(COLOURS), n, generator=g)
        second = (first + torch.randint(1, len(COLOURS), n, generator=g)) % len(COLOURS)
        looks[wrong] = torch.stack([pattern, first, torch.where(pattern == PLAIN, first, second)], -1)
        reserved = split.reserved_look(*looks.unbind(-1))
        wrong = (reserved != held_out) & (looks[..., 0] != PLAIN)
    return looks


def _places(numbers: Tensor, g: torch.Generator) -> tuple[Tensor, Tensor]:
    """Centres [B, M, 2] and radii [B, M]. Objects push each other away, then shrink, so that they do not touch."""
    count, present = len(numbers), torch.arange(OBJECTS) < numbers[:, None]
    low, high = torch.tensor(RADII)[numbers - 1].unbind(-1)
    radii = low[:, None] + (high - low)[:, None] * torch.rand(count, OBJECTS, generator=g)
    reach = (1 - GAP - radii)[..., None]
    centres = (torch.rand(count, OBJECTS, 2, generator=g) * 2 - 1) * reach
    pairs = present[:, :, None] & present[:, None, :] & ~torch.eye(OBJECTS, dtype=torch.bool)
    wanted = radii[:, :, None] + radii[:, None, :] + GAP  # [B, M, M]
    for _ in range(PUSHES):
        away = centres[:, :, None] - centres[:, None]  # [B, M, M, 2]
        gap = away.norm(dim=-1)
        push = (wanted - gap).clamp(min=0) * pairs / gap.clamp(min=1e-6) / 2
        centres = (centres + (push[..., None] * away).sum(2)).clamp(-reach, reach)
    gap = (centres[:, :, None] - centres[:, None]).norm(dim=-1)
    fit = (gap / wanted).masked_fill(~pairs, 1.0).flatten(1).amin(1)  # [B] 1 = no need to shrink
    return centres, radii * fit.clamp(0.6, 1.0)[:, None]


def _colours(looks: Tensor, g: torch.Generator) -> Tensor:
    drawn = palette()[looks[..., 1:]]
    return (drawn + torch.randn(drawn.shape, generator=g) * JITTER).clamp(0, 1)


def _ground(count: int, g: torch.Generator) -> Tensor:
    """Background colours [B, 3], light and pale, so that every object's colour stands out."""
    value = 0.62 + 0.38 * torch.rand(count, 1, generator=g)
    return (value - 0.12 * torch.rand(count, 3, generator=g) * value).clamp(0, 1)


def references(scenes: Scenes, seed: int) -> Scenes:
    """A reference for each object: [B·M] scenes of one object on white, of the same kind and look in another pose.

    Row b·M + m belongs to object m of scene b. Rows of absent objects are empty white pictures.
    """
    g = torch.Generator().manual_seed(seed)
    rows = scenes.kinds.numel()
    radii = 0.5 + 0.35 * torch.rand(rows, 1, generator=g)
    centres = (torch.rand(rows, 1, 2, generator=g) * 2 - 1) * (0.95 - radii[..., None])
    return Scenes(
        kinds=scenes.kinds.reshape(rows, 1),
        looks=scenes.looks.reshape(rows, 1, 3),
        colours=scenes.colours.reshape(rows, 1, 2, 3),
        centres=centres,
        radii=radii,
        turns=(torch.rand(rows, 1, generator=g) * 2 - 1) * TURN,
        ground=torch.ones(rows, 3),
        texture=torch.zeros(rows, 3, 1, 1),
    )


def render(scenes: Scenes, size: int = SIZE, device: torch.device | str = "cpu") -> Picture:
    """Draws the scenes with soft edges. Where objects overlap, later ones cover earlier ones.

    size: of a picture's side, in pixels.
    """
    s = replace(scenes, **{name: value.to(device) for name, value in vars(scenes).items()})
    shape, second = _coverage(s, size)
    images = s.ground[:, :, None, None] + _smooth(s.texture, size)
    masks = torch.zeros_like(shape)
    for m in range(shape.shape[1]):
        alpha = shape[:, m, None]
        a, b = s.colours[:, m, :, :, None, None].unbind(1)  # [B, 3, 1, 1]
        images = images + alpha * (torch.lerp(a, b, second[:, m, None]) - images)
        masks[:, :m] *= 1 - alpha
        masks[:, m] = alpha[:, 0]
    return Picture(images.clamp(0, 1), masks)


def _coverage(s: Scenes, size: int) -> tuple[Tensor, Tensor]:
    """How much of each pixel an object covers, and how much its second colour covers: [B, M, S, S] each, in 0…1."""
    there = s.kinds >= 0
    local = _local_coordinates(s.centres[there], s.radii[there], s.turns[there], size)
    pixels = s.radii[there][:, None, None] * (size / 2)  # pixels in one unit of an object's own coordinates
    covers = []
    for tables, which in ((distances(), s.kinds), (fields(), s.looks[..., 0])):
        cover = local.new_zeros(*there.shape, size, size)
        cover[there] = (0.5 - _look_up(tables, which[there], local) * pixels).clamp(0, 1)
        covers.append(cover)
    return covers[0], covers[1]


def _local_coordinates(centres: Tensor, radii: Tensor, turns: Tensor, size: int) -> Tensor:
    """The pixel centres in the own coordinates of each of N objects: [N, S, S, 2]."""
    axis = (torch.arange(size, device=radii.device) + 0.5) * (2 / size) - 1
    x = axis[None, None, :] - centres[:, 0, None, None]  # [N, 1, S]
    y = axis[None, :, None] - centres[:, 1, None, None]  # [N, S, 1]
    cos, sin = ((f(turns) / radii)[:, None, None] for f in (torch.cos, torch.sin))
    return torch.stack([cos * x + sin * y, cos * y - sin * x], -1)


def _look_up(tables: Tensor, which: Tensor, local: Tensor) -> Tensor:
    """Reads tables at local coordinates: [N, S, S]. Beyond a table's edge, its edge counts.

    tables [K, R, R]: all tables.
    which [N]: the table of each object.
    local [N, S, S, 2]: from `_local_coordinates`.

    The tables are stacked into one tall picture, so that one grid_sample reads them all.
    """
    count, side = tables.shape[0], tables.shape[1]
    inside = 1 - 1 / side  # half a cell from the border, so that neighbouring tables do not mix in
    at = (local / EXTENT * inside).clamp(-inside, inside)
    row = (which[:, None, None] * 2 + 1 + at[..., 1]) / count - 1
    stack = tables.to(local).reshape(1, 1, count * side, side)
    grid = torch.stack([at[..., 0], row], -1).flatten(0, 1)[None]  # [1, N·S, S, 2]
    return F.grid_sample(stack, grid, align_corners=False).reshape(local.shape[:-1])


def _smooth(texture: Tensor, size: int) -> Tensor:
    return F.interpolate(texture, size=(size, size), mode="bilinear", align_corners=True)


def boxes(masks: Tensor) -> Tensor:
    """Boxes x0, y0, x1, y1 of masks [B, M, S, S]: [B, M, 4] in pixels, ends excluded, zeros for empty masks."""
    size, seen = masks.shape[-1], masks > 0.5
    at = torch.arange(size, device=masks.device)
    edges = []
    for axis in (-2, -1):  # columns that hold anything, then rows
        line = seen.any(axis)
        edges += [torch.where(line, at, size).amin(-1), torch.where(line, at + 1, 0).amax(-1)]
    x0, x1, y0, y1 = edges
    return torch.stack([x0, y0, x1, y1], -1) * seen.flatten(2).any(-1)[..., None]
