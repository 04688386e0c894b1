"""Judges one picture: is every object there, and whose look does it wear?

Everything is read from pixels (judge.py, judge_looks.py), without a trained model.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .judge import Outlined, judge
from .judge_looks import colour_error, layout_error, look
from .world_looks import PLAIN

# An object clearly wears two colours if the mean absolute distance per channel, of its pixels to the nearer one, is
# below this. On drawn scenes, 99 % of the objects are within 0.04 of their own colours, and 99 % are further than 0.12
# from others'.
CLEAR = 0.08


def score(image: Tensor, kinds: Sequence[int], looks: Tensor, colours: Tensor) -> dict[str, Any]:
    """Measures of one picture.

    image [3, S, S]: in 0…1.
    kinds [M]: the kind of each object, as a number in KINDS.
    looks [M, 3]: pattern, first and second colour of each object's reference, as numbers.
    colours [M, 2, 3]: the two colours of each reference.

    Returns `count`, the number of objects in the picture, whatever they are, and lists with an entry for each object.
    Where an object is absent, all but present and plain are None.

    present: whether it is there.
    own: whether its colours are nearer to its own reference's than to any other's.
    clear, confused: whether its colours are clearly its own, or clearly another's.
    margin: how much nearer its own colours are; None for a single object.
    error: mean absolute distance from its own look, laid out in its pattern.
    pattern: whether the pattern that is read from it is its own.
    plain: whether its look has one colour.
    """
    plain = looks[:, 0] == PLAIN
    colours = torch.where(plain[:, None, None], colours[:, :1], colours)  # a plain look never shows its second colour
    found = judge(image[None])[0]
    measures: dict[str, Any] = {"count": len(found), "plain": plain.tolist()}
    rows = [_object(image, _best(found, kind), i, looks, colours) for i, kind in enumerate(kinds)]
    return measures | {name: [row[name] for row in rows] for name in rows[0]}


def _best(found: Sequence[Outlined], kind: int) -> Outlined | None:
    """The object named as this kind that fits its outline best, None without one."""
    return max((each for each in found if each.kind == kind), key=lambda each: each.fit, default=None)


def _object(image: Tensor, found: Outlined | None, own: int, looks: Tensor, colours: Tensor) -> dict[str, Any]:
    if found is None:
        return dict.fromkeys(("own", "clear", "confused", "margin", "error", "pattern")) | {"present": False}
    errors = torch.tensor([colour_error(image, found, pair) for pair in colours])
    others = errors.clone()
    others[own] = torch.inf
    nearest, mine = float(others.min()), float(errors[own])
    return {
        "present": True,
        "own": mine < nearest,
        "clear": mine < min(nearest, CLEAR),
        "confused": nearest < min(mine, CLEAR),
        "margin": round(nearest - mine, 4) if len(colours) > 1 else None,
        "error": round(layout_error(image, found, int(looks[own, 0]), colours[own]), 4),
        "pattern": look(image, found)[0] == int(looks[own, 0]),
    }
