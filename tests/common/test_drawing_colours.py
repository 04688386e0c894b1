"""Colours of objects: as many as there are objects, all different."""

from __future__ import annotations

import numpy as np
import torch
from mip_adapter.attention.reference import MAX_OBJECTS
from mip_adapter.common.drawing import FIRST, MAP_COLOURS, chosen_colour, colour, colour_numbers
from mip_adapter.relevance.maps import draw_overlays

from ..support.sentences import told


def lab(colours: list) -> np.ndarray:
    """CIELAB of sRGB, D65."""
    share = np.array(colours) / 255
    linear = np.where(share <= 0.04045, share / 12.92, ((share + 0.055) / 1.055) ** 2.4)
    to_xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
    xyz = linear @ to_xyz.T / [0.9505, 1, 1.089]
    x, y, z = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116).T
    return np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], 1)


def nearest(colours: list) -> float:
    """How far the two most alike are apart; 2 is what eyes can just tell."""
    points = lab(colours)
    apart = np.linalg.norm(points[:, None] - points, axis=-1)
    return apart[~np.eye(len(points), dtype=bool)].min()


def test_colours_are_told_apart() -> None:
    assert [colour(i) for i in range(len(FIRST))] == list(FIRST)
    assert nearest([*FIRST, *FIRST]) == 0  # as when they came again
    assert nearest([colour(i) for i in range(MAX_OBJECTS)]) > 0.9 * nearest(list(FIRST)) > 20
    assert len({colour(i) for i in range(100)}) == 100


def test_every_object_has_a_colour_of_its_own_on_the_picture() -> None:
    """Each owns a column of a white picture, and a swatch below it."""
    shares = torch.eye(MAX_OBJECTS).repeat_interleave(20, 1).unsqueeze(1).expand(-1, 40, -1)
    names = tuple(f"thing {i}" for i in range(MAX_OBJECTS))
    whole = (draw_overlays(torch.ones(40, 320, 3), shares, names, range(len(names)), 1.0, "")[0] * 255).round().int()
    picture, legend = whole[:40], whole[40:].flatten(0, 1)
    assert [tuple(each) for each in picture[20, 10::20].tolist()] == [colour(i) for i in range(MAX_OBJECTS)]
    assert {colour(i) for i in range(MAX_OBJECTS)} <= {tuple(each) for each in legend.tolist()}


def test_an_object_gets_the_colour_that_was_chosen_for_it() -> None:
    assert len(MAP_COLOURS) == 1 + len(FIRST)
    chosen = [chosen_colour(each) for each in ("automatic", "blue", "automatic", "green")]
    assert chosen == [None, 0, None, 2] and colour_numbers(chosen) == (1, 0, 3, 2)
    assert colour_numbers([None] * 9) == tuple(range(9))
    told(lambda: chosen_colour("mauve"), "mauve", "automatic, blue")
    shares = torch.eye(2).repeat_interleave(20, 1).unsqueeze(1).expand(-1, 40, -1)
    drawn = draw_overlays(torch.ones(40, 40, 3), shares, ("heart", "fish"), (1, 0), 1.0, "")[0]
    for column, number in ((10, 1), (30, 0)):
        assert tuple((drawn[20, column] * 255).round().int().tolist()) == FIRST[number]
