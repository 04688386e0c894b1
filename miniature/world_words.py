"""Captions: the kinds of a scene's objects in varied wording. Captions for diffusion never name looks."""

import random
from collections.abc import Sequence

from .world_looks import phrase
from .world_shapes import KINDS

OPENINGS = ("", "", "", "", "a picture of ", "a drawing of ", "a scene with ")
LINKS = (" and ", " and ", " beside ", " with ", " next to ", " near ")


def object_text(kind: int) -> str:
    """The words that name one object on its own."""
    return KINDS[kind]


def caption(kinds: Sequence[int], rng: random.Random) -> str:
    """A caption that names every kind once, in random order: "a ring, a star and a fish"."""
    return _sentence([KINDS[kind] for kind in kinds], rng)


def described(kinds: Sequence[int], looks: Sequence[tuple[int, int, int]], rng: random.Random) -> str:
    """A caption that names the looks too, for text-image training only: "a red and blue striped star"."""
    nouns = [f"{phrase(*look)} {KINDS[kind]}" for kind, look in zip(kinds, looks, strict=True)]
    return _sentence(nouns, rng)


def _sentence(nouns: list[str], rng: random.Random) -> str:
    nouns = rng.sample(nouns, len(nouns))
    bare = rng.random()
    if bare < 0.1:
        return rng.choice((" ", ", ")).join(nouns)
    if bare > 0.2:
        nouns = [f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}" for noun in nouns]
    *most, last = nouns
    listed = rng.choice(LINKS).join((", ".join(most), last)) if most else last
    return rng.choice(OPENINGS) + listed
