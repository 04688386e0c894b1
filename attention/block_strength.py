"""Strength by block: in which blocks of the UNet a reference speaks, and how strongly.

The blocks of a UNet carry different things. The presets follow public findings; a block that a preset does not name is
silent.

SDXL: InstantStyle (arXiv 2404.02733) finds the style in output block 1 and the layout in input block 8, which diffusers
calls up_blocks.0.attentions.1 and down_blocks.2.attentions.1. B-LoRA (arXiv 2403.14572) finds the content in output
block 0 and confirms the style. SD1.5: the weight types of IPAdapter_plus. "subject" is not among them: it is what
style and composition leave there.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ..common.text import brief, whole_number
from ..weights.sites import Site, SiteKey
from .ease import EASES, STEADY
from .options import one_of

Block = tuple[str, int]  # the first two parts of a site's key
PRESETS = ALL, STYLE, STRONG_STYLE, COMPOSITION, STYLE_AND_COMPOSITION, SUBJECT = (
    "all",
    "style",
    "strong style",
    "composition",
    "style and composition",
    "subject",
)
MAX_STRENGTH = 3.0


@dataclass(frozen=True)
class Topology:
    """A kind of UNet by its blocks with cross-attention, and the blocks that carry each role.

    blocks: all of them without the middle, which some derivatives leave out.
    style, composition, subject: strengths by block.
    """

    name: str
    blocks: frozenset[Block]
    style: Mapping[Block, float]
    composition: Mapping[Block, float]
    subject: Mapping[Block, float]

    def preset(self, name: str, blocks: Sequence[Block]) -> dict[Block, float]:
        """The strengths of a preset but “all”."""
        if name == STRONG_STYLE:
            return {block: float(block not in self.composition) for block in blocks}
        if name == STYLE_AND_COMPOSITION:
            return {**self.style, **self.composition}
        return dict({STYLE: self.style, COMPOSITION: self.composition, SUBJECT: self.subject}[name])


def _evenly(*blocks: Block) -> dict[Block, float]:
    return dict.fromkeys(blocks, 1.0)


def _outputs(*numbers: int) -> list[Block]:
    return [("output", number) for number in numbers]


def _inputs(*numbers: int) -> list[Block]:
    return [("input", number) for number in numbers]


TOPOLOGIES = (
    Topology(
        "SDXL",
        frozenset([*_inputs(4, 5, 7, 8), *_outputs(*range(6))]),
        style=_evenly(("output", 1)),
        composition=_evenly(("input", 8)),
        subject=_evenly(("output", 0)),
    ),
    Topology(
        "SD1.5",
        frozenset([*_inputs(1, 2, 4, 5, 7, 8), *_outputs(*range(3, 12))]),
        style=_evenly(*_inputs(1, 2, 4, 5), *_outputs(*range(5, 12))),
        composition={("input", 7): 0.25, ("input", 8): 1.0},
        subject=_evenly(("middle", 0), *_outputs(3, 4)),
    ),
)


@dataclass(frozen=True)
class BlockStrength:
    """A factor of the image features for every block of one UNet.

    name: the preset, or “numbers”.
    strengths: by block, in the order in which the blocks run, see `blocks_of`.
    over_time: how all of them vary over the reference's range of the sampling, one of `EASES`.
    """

    name: str
    strengths: Mapping[Block, float]
    over_time: str = STEADY

    def at(self, key: SiteKey) -> float:
        """The strength at a site."""
        return self.strengths[key[:2]]

    def check(self, sites: Sequence[Site], whose: str) -> None:
        """Raises ValueError if it was made for another UNet than the one with these sites."""
        blocks = blocks_of(sites)
        if set(blocks) != set(self.strengths):
            raise ValueError(
                f"The block strength of “{whose}” is for a model of {len(self.strengths)} blocks, and this model has "
                f"{len(blocks)}: {named(blocks)}. Connect the same model to MIP Block Strength and to MIP Apply."
            )


def make_block_strength(
    sites: Sequence[Site], preset: str = ALL, numbers: str = "", over_time: str = STEADY
) -> BlockStrength:
    """The strength of every block of the model with these sites.

    preset: one of `PRESETS`.
    numbers: in place of the preset, if it is not empty. Either a number for each block, in the order in which the
        blocks run, or pairs such as “3:1, 6:0.5” of a block's place in this order, from 0, and its strength; the other
        blocks are then silent.
    over_time: see `BlockStrength`.

    Raises ValueError if the numbers or the preset do not fit the UNet.
    """
    one_of("The preset", preset, PRESETS)
    one_of("The strength over time", over_time, EASES)
    blocks = blocks_of(sites)
    if numbers.strip():
        return BlockStrength("numbers", dict(zip(blocks, _read(numbers, blocks), strict=True)), over_time)
    if preset == ALL:
        return BlockStrength(ALL, _evenly(*blocks), over_time)
    topology = next((each for each in TOPOLOGIES if each.blocks == set(blocks) - {("middle", 0)}), None)
    if topology is None:
        raise ValueError(
            f"The preset “{preset}” is known for the blocks of SDXL and SD1.5, and this model has others: "
            f"{named(blocks)}. Choose the preset “all”, or write a number for each of its {len(blocks)} blocks."
        )
    chosen = topology.preset(preset, blocks)
    return BlockStrength(preset, {block: chosen.get(block, 0.0) for block in blocks}, over_time)


def blocks_of(sites: Sequence[Site]) -> tuple[Block, ...]:
    """The blocks with attention to text as they run: input, middle, output; of FLUX.1 double, single."""
    order = ("input", "middle", "output", "double_block", "single_block")
    return tuple(sorted({site.key[:2] for site in sites}, key=lambda block: (order.index(block[0]), block[1])))


def named(blocks: Sequence[Block]) -> str:
    """“input 4 5 7 8, middle, output 0 1 2 3 4 5”; “double 0–18, single 0–37”."""
    places = {place: [number for at, number in blocks if at == place] for place, _ in blocks}
    return ", ".join(_place(place, numbers) for place, numbers in places.items())


def _place(place: str, numbers: list[int]) -> str:
    if place == "middle":
        return place
    many = place.endswith("_block") and len(numbers) > 1
    return f"{place.removesuffix('_block')} " + (f"{numbers[0]}–{numbers[-1]}" if many else " ".join(map(str, numbers)))


def _read(numbers: str, blocks: Sequence[Block]) -> list[float]:
    words = numbers.replace(",", " ").replace(";", " ").split()
    if all(":" in word for word in words):
        return _read_pairs(words, blocks)
    strengths = [_number(word) for word in words]
    if len(strengths) != len(blocks):
        few = "few" if len(strengths) < len(blocks) else "many"
        raise ValueError(
            f"There are too {few} block strengths: {len(strengths)} for the {len(blocks)} blocks of this model, "
            f"{named(blocks)}. Write one for each, in this order."
        )
    return strengths


def _read_pairs(words: Sequence[str], blocks: Sequence[Block]) -> list[float]:
    strengths = [0.0] * len(blocks)
    for word in words:
        place, _, strength = word.partition(":")
        number = whole_number(place)
        if number is None or number >= len(blocks):
            raise ValueError(
                f"There is no block “{brief(place, 40)}” in this model: its {len(blocks)} blocks are {named(blocks)}, "
                f"counted from 0 to {len(blocks) - 1}. Write pairs such as “0:1, 3:0.5”."
            )
        strengths[number] = _number(strength)
    return strengths


def _number(word: str) -> float:
    try:
        strength = float(word)
    except ValueError:
        strength = math.nan
    if not 0 <= strength <= MAX_STRENGTH:
        raise ValueError(
            f"“{brief(word, 40)}” is no block strength: write numbers from 0 to {MAX_STRENGTH:g} with spaces or commas "
            "between them, such as “1 1 0.5 0”."
        )
    return strength
