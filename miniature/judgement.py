"""What the judge says of one picture: is every object there, and whose looks does it wear?

Everything is read from pixels (judge.py, judge_looks.py); nothing here is trained.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .judge import Found, judge
from .judge_looks import colour_error, layout_error, look
from .world_looks import PLAIN

# Mean absolute distance, per channel, of an object's pixels from the nearer of two colours, below which it clearly
# wears them. On drawn scenes 99 % of the objects are within 0.04 of their own, and 99 % further than 0.12 from others'.
CLEAR = 0.08


def score(image: Tensor, kinds: Sequence[int], looks: Tensor, colours: Tensor) -> dict[str, Any]:
    """Measures of a picture [3, S, S] of which every object i should be of kinds[i], with looks[i] [3] and its two
    colours[i] [2, 3] as in its reference.

    Lists have an entry for each object: `present`; `own`, whether its colours are nearer to its own reference's than to
    any other's (None where it is absent); `clear`, whether they are clearly its own; `confused`, another's; `margin`,
    how much nearer; `error`, mean absolute distance from its own look laid out in its pattern; `pattern`, whether its
    pattern is read as its own's; `plain`, whether its look is of one colour. `count` is the number of objects in the
    picture, whatever they are.
    """
    plain = looks[:, 0] == PLAIN
    colours = torch.where(plain[:, None, None], colours[:, :1], colours)  # a plain look's second is drawn nowhere
    found = judge(image[None])[0]
    measures: dict[str, Any] = {"count": len(found), "plain": plain.tolist()}
    rows = [_object(image, _best(found, kind), i, looks, colours) for i, kind in enumerate(kinds)]
    return measures | {name: [row[name] for row in rows] for name in rows[0]}


def _best(found: Sequence[Found], kind: int) -> Found | None:
    """The object that fits a kind's outline best, among those that fit no other better."""
    return max((each for each in found if each.kind == kind), key=lambda each: each.fit, default=None)


def _object(image: Tensor, found: Found | None, own: int, looks: Tensor, colours: Tensor) -> dict[str, Any]:
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
