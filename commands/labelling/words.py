"""The objects that a caption names, by a simple rule.

The caption is cut at punctuation, articles, prepositions, conjunctions and common verbs. The last word of each piece
names an object: “a small brown cat beside a cup of coffee” names *cat* and *cup*.

- A piece after “of” names what it is made of, so it does not count: no *coffee*. It does after words such as “photo” or
  “pair”, which name nothing themselves: “a photo of two dogs” names *dogs*.
- Words in -ing at the end of a piece are verbs: “a man riding a horse” names *man* and *horse*. Some are things.

Whoever knows better gives the objects of each picture in the table of captions.
"""

from __future__ import annotations

import re


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_CUTS = _words(
    "a an the this that these those his her its their my your our some one two three four five six several many "
    "and or but while as with without on in at by to from into onto over under above below beside besides behind "
    "between near next inside outside through across along around against before after for up down off out of "
    "is are was were be has have had wears holds sits stands lies looks rides eats plays who which it they he she "
    "there very dressed covered filled parked seated located surrounded"
)
_NAME_NOTHING = _words(
    "photo photograph picture image drawing painting sketch illustration rendering scene view shot portrait close-up "
    "closeup group pair couple piece bunch set lot kind type background foreground front back top bottom side left "
    "right middle center centre"
)
_THINGS_IN_ING = _words(
    "ring king wing string swing spring thing building ceiling clothing earring pudding duckling railing awning "
    "icing stocking frosting"
)


def named_objects(caption: str) -> tuple[str, ...]:
    """The words of a caption that name objects, each once, in its order and as it writes them."""
    found: dict[str, str] = {}
    piece: list[str] = []
    counts = allowed = True  # whether this piece names an object; whether one after “of” would
    for token in [*re.findall(r"[^\W\d_][\w'’-]*|[^\w\s]", caption), "."]:
        word = token.lower()
        if word not in _CUTS and word[0].isalpha():
            piece.append(token)
            continue
        if piece:
            while len(piece) > 1 and _is_verb(piece[-1]):
                piece.pop()
            head = piece[-1].lower()
            allowed = head in _NAME_NOTHING
            if counts and not allowed and not _is_verb(head):
                found.setdefault(head, piece[-1])
            piece, counts = [], True
        if word == "of":
            counts = allowed
        elif not word[0].isalpha():
            counts = True
    return tuple(found.values())


def _is_verb(word: str) -> bool:
    word = word.lower()
    return word.endswith("ing") and word not in _THINGS_IN_ING
