"""What the ablation compares: arms (an adapter, a merge, a gate) over trials (a prompt, its references, a noise
seed).

A reader of the paper asks whether its gain comes from the merging or from the training. So the arms cross the two.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from ...attention.options import Gated, Merge
from ...miniature import world, world_shapes, world_split, world_words
from ..miniature.trained import SEEDS

SEED_TEST, SEED_TUNE = 5_000_000_000, 6_000_000_000  # of trials: for the comparison, and for choosing scales
REFERENCE_SIDE = 224  # pixels
STEPS, SAMPLER, GUIDANCE = 12, "dpmpp_2m", 3.0  # as many objects as with 20 steps of euler, at half the cost
SCALES = (0.5, 0.7, 1.0, 1.4, 2.0, 2.8)  # each arm's best scale is one of these
TUNED_ON = 96  # objects that choose a scale, for each number of objects in a picture


class Arm(NamedTuple):
    """One column of the ablation.

    adapter: a kind of `trained.KINDS`; "" for the base alone.
    gate: where the fusion head acts; "off" for an adapter without one.
    """

    name: str
    adapter: str
    merge: Merge
    gate: Gated = "off"

    @property
    def scales(self) -> tuple[float, ...]:
        """The scales to draw and choose from. None for "sum": at scale s / M it equals "uniform" at s, to the last
        digit. The base alone stands for every adapter's scale 0.
        """
        if not self.adapter:
            return (0.0,)
        return SCALES if self.merge.strategy != "sum" else ()


RELEVANCE, UNIFORM = Merge("relevance"), Merge("uniform")
UNCLAIMED = Merge("relevance", sharpness=3.0, measure="pool", unclaimed=1.0)
NO_REFERENCES = "no references"
ARMS = (
    Arm(NO_REFERENCES, "", UNIFORM),  # what the base draws by itself
    Arm("stock + concat", "stock", Merge("concat")),  # plain IP-Adapter with several references
    Arm("stock + sum", "stock", Merge("sum")),
    Arm("stock + uniform", "stock", UNIFORM),
    Arm("stock + relevance", "stock", RELEVANCE),
    Arm("stock + relevance + background", "stock", Merge("relevance", background=1.0)),
    Arm("head-only + relevance", "head-only", RELEVANCE, "image"),
    Arm("one-object-trained + relevance", "one-object-trained", RELEVANCE, "image"),
    Arm("uniform-trained + uniform", "uniform-trained", UNIFORM, "image"),
    Arm("uniform-trained + relevance", "uniform-trained", RELEVANCE, "image"),
    Arm("mip + uniform", "mip", UNIFORM, "image"),
    Arm("mip + relevance, no head", "mip", RELEVANCE),
    Arm("mip + relevance, head on text", "mip", RELEVANCE, "text"),
    Arm("mip + relevance", "mip", RELEVANCE, "image"),  # the paper's method
    Arm("mip + relevance, sharpness 3", "mip", Merge("relevance", sharpness=3.0), "image"),  # not the paper's
    Arm("stock + pool", "stock", Merge("relevance", measure="pool")),
    Arm("mip + pool", "mip", Merge("relevance", measure="pool"), "image"),
    Arm("stock + pool, sharpness 3", "stock", Merge("relevance", sharpness=3.0, measure="pool")),
    Arm("mip + pool, sharpness 3", "mip", Merge("relevance", sharpness=3.0, measure="pool"), "image"),
    Arm("stock + relevance, sharpness 6", "stock", Merge("relevance", sharpness=6.0)),
    Arm("mip + relevance, sharpness 6", "mip", Merge("relevance", sharpness=6.0), "image"),
    Arm("stock + pool, sharpness 6", "stock", Merge("relevance", sharpness=6.0, measure="pool")),
    Arm("mip + pool, sharpness 6", "mip", Merge("relevance", sharpness=6.0, measure="pool"), "image"),
    Arm("stock + pool, sharpness 3, unclaimed 1", "stock", UNCLAIMED),
    Arm("mip + pool, sharpness 3, unclaimed 1", "mip", UNCLAIMED, "image"),
    Arm("stock-plus + uniform", "stock-plus", UNIFORM),
    Arm("stock-plus + relevance", "stock-plus", RELEVANCE),
    Arm("mip-plus + relevance", "mip-plus", RELEVANCE, "image"),
)
METHOD = "mip + relevance"


class Effect(NamedTuple):
    """What changes from the arms `before` to the arms `after`, and nothing else.

    With two arms each, the first of `after` is compared with the first of `before`, the second with the second, and
    the effect is the sum of both differences: how much more the one change does than the other.
    """

    name: str
    after: tuple[str, ...]
    before: tuple[str, ...]

    def minus(self, other: Effect, name: str) -> Effect:
        """How much more this change does than another one: minus the other is the other way round."""
        return Effect(name, self.after + other.before, self.before + other.after)


MERGING = Effect("merging alone, on stock weights", ("stock + relevance",), ("stock + uniform",))
TRAINING = Effect("further training, on two objects, under relevance", ("mip + relevance",), ("stock + relevance",))
BOTH = Effect("both: the paper's method against plain IP-Adapter", ("mip + relevance",), ("stock + concat",))
UNIFORM_TRAINED = ("uniform-trained + uniform",)
QUESTION = (MERGING, TRAINING, BOTH)  # the open question; all others explore
EFFECTS = (
    *QUESTION,
    Effect("merging alone, against plain IP-Adapter", MERGING.after, BOTH.before),
    MERGING.minus(TRAINING, "merging more than training"),
    Effect("uniform shares instead of plain IP-Adapter, on stock weights", ("stock + uniform",), BOTH.before),
    Effect("uniform shares, on weights trained without relevance, against plain", UNIFORM_TRAINED, BOTH.before),
    Effect("uniform shares, on weights trained with relevance, against plain", ("mip + uniform",), BOTH.before),
    Effect("a background competitor, on stock weights", ("stock + relevance + background",), ("stock + relevance",)),
    Effect("merging, on weights trained without it", ("uniform-trained + relevance",), UNIFORM_TRAINED),
    Effect("merging, on weights trained with it", ("mip + relevance",), ("mip + uniform",)),
    Effect("further training, uniform merge", UNIFORM_TRAINED, ("stock + uniform",)),
    Effect("further training with relevance, seen under uniform", ("mip + uniform",), ("stock + uniform",)),
    Effect("relevance instead of uniform in training", ("mip + relevance",), ("uniform-trained + relevance",)),
    Effect("further training, on one object, under relevance", ("one-object-trained + relevance",), TRAINING.before),
    Effect("a second object in that training", TRAINING.after, ("one-object-trained + relevance",)),
    Effect("the fusion head, trained alone", ("head-only + relevance",), ("stock + relevance",)),
    Effect("the head, on weights trained with it", ("mip + relevance",), ("mip + relevance, no head",)),
    Effect("sharper shares: sharpness 3", ("mip + relevance, sharpness 3",), ("mip + relevance",)),
    Effect("the pool instead of each site, on stock weights", ("stock + pool",), ("stock + relevance",)),
    Effect("the pool instead of each site, on weights trained with relevance", ("mip + pool",), ("mip + relevance",)),
    Effect("the pool instead of uniform, on stock weights", ("stock + pool",), ("stock + uniform",)),
    Effect("the pool instead of uniform, on weights trained with relevance", ("mip + pool",), ("mip + uniform",)),
    Effect("sharpness 6, each site, on stock weights", ("stock + relevance, sharpness 6",), ("stock + relevance",)),
    Effect("sharpness 6, each site, on weights trained with relevance", ("mip + relevance, sharpness 6",), (METHOD,)),
    Effect("sharpness 3, the pool, on stock weights", ("stock + pool, sharpness 3",), ("stock + pool",)),
    Effect("sharpness 3, the pool, on weights trained with relevance", ("mip + pool, sharpness 3",), ("mip + pool",)),
    Effect("sharpness 6, the pool, on stock weights", ("stock + pool, sharpness 6",), ("stock + pool",)),
    Effect("sharpness 6, the pool, on weights trained with relevance", ("mip + pool, sharpness 6",), ("mip + pool",)),
    Effect(
        "the pool instead of each site, both at sharpness 6, on stock weights",
        ("stock + pool, sharpness 6",),
        ("stock + relevance, sharpness 6",),
    ),
    Effect(
        "the pool instead of each site, both at sharpness 6, on weights trained with relevance",
        ("mip + pool, sharpness 6",),
        ("mip + relevance, sharpness 6",),
    ),
    Effect(
        "the pool at sharpness 6 instead of uniform, on stock weights",
        ("stock + pool, sharpness 6",),
        ("stock + uniform",),
    ),
    Effect(
        "the pool at sharpness 6 instead of uniform, on weights trained with relevance",
        ("mip + pool, sharpness 6",),
        ("mip + uniform",),
    ),
    *(
        Effect(
            f"MIP Merge's default instead of {before}, on {of}", (f"{kind} + pool, sharpness 3",), (f"{kind} + {arm}",)
        )
        for kind, of in (("stock", "stock weights"), ("mip", "weights trained with relevance"))
        for arm, before in (("uniform", "uniform shares"), ("relevance", "the paper's merge"))
    ),
    *(
        Effect(
            f"unclaimed 1 beside MIP Merge's default, on {of}",
            (f"{kind} + pool, sharpness 3, unclaimed 1",),
            (f"{kind} + pool, sharpness 3",),
        )
        for kind, of in (("stock", "stock weights"), ("mip", "weights trained with relevance"))
    ),
    Effect("Resampler family: merging alone", ("stock-plus + relevance",), ("stock-plus + uniform",)),
    Effect("Resampler family: further training", ("mip-plus + relevance",), ("stock-plus + relevance",)),
)
GAINS = tuple(
    Effect(f"{arm.name}, against no references", (arm.name,), (NO_REFERENCES,)) for arm in ARMS if arm.adapter
)


@dataclass(frozen=True, eq=False)
class Trials:
    """Prompts with their references.

    No two references of a prompt share a colour, so it can be told whose colours an object wears. Every prompt has a
    pair of kinds that training never shows together, and every two-coloured look is one that training never shows.

    objects: M, how many each prompt names.
    scenes: drawn scenes of these objects.
    references: [N, M, 3, S, S] in 0..1.
    prompts, seeds: one per trial.
    """

    objects: int
    scenes: world.Scenes
    references: Tensor
    prompts: tuple[str, ...]
    seeds: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.prompts)

    def texts(self, trial: int) -> tuple[str, ...]:
        return tuple(world_words.object_text(kind) for kind in self.scenes.present(trial))


def make_trials(count: int, objects: int, seed: int) -> Trials:
    """The first `count` trials of an endless sequence that depends on `objects` and `seed` alone."""
    scenes, shown = _scenes(count, objects, seed)
    pictures = world.render(shown, REFERENCE_SIDE).images
    rng = random.Random(seed + objects)
    return Trials(
        objects,
        scenes,
        pictures.unflatten(0, (count, objects)),
        tuple(scenes.captions(rng)),
        tuple(seed % 2**31 + 100_000 * objects + i for i in range(count)),
    )


@lru_cache(16)
def kind_pairs(count: int, objects: int) -> tuple[int, ...]:
    """Which of the reserved pairs of kinds each of the first `count` prompts of the comparison holds.

    Of several, the first in the order of `all_pairs`.
    """
    scenes, _ = _scenes(count, objects, SEED_TEST)
    pairs = world_split.all_pairs(len(world_shapes.KINDS), reserved=True)
    held = [set(scenes.present(trial)) for trial in range(count)]
    return tuple(next(number for number, pair in enumerate(pairs) if kinds >= set(pair)) for kinds in held)


def _scenes(count: int, objects: int, seed: int) -> tuple[world.Scenes, world.Scenes]:
    """The scenes of the first `count` trials, and scenes that show one reference each, of all objects in turn."""
    parts: list[world.Scenes] = []
    shown: list[world.Scenes] = []
    while sum(map(len, parts)) < count:
        number = seed + 1000 * objects + len(parts)
        drawn = world.sample(1024, number, (objects,), held_out=True)
        rows = _distinct(drawn.looks[:, :objects])
        parts.append(drawn.rows(rows))
        slots = rows[:, None] * world.OBJECTS + torch.arange(objects)
        shown.append(world.references(drawn, number).rows(slots.flatten()))
    return _joined(parts).rows(slice(count)), _joined(shown).rows(slice(count * objects))


def prompts_to_choose(objects: int) -> int:
    """How many prompts with so many objects choose an arm's scale."""
    return TUNED_ON // objects


def _distinct(looks: Tensor) -> Tensor:
    """[K] indices of those scenes in which no two objects share a colour. looks: [B, M, 3]."""
    _, objects, _ = looks.shape
    colours = looks[..., 1:]
    same = (colours[:, :, None, :, None] == colours[:, None, :, None, :]).flatten(3).any(-1)  # [B, M, M]
    return (~(same & ~torch.eye(objects, dtype=torch.bool)).flatten(1).any(1)).nonzero().flatten()


def _joined(parts: Sequence[world.Scenes]) -> world.Scenes:
    return world.Scenes(**{name: torch.cat([getattr(part, name) for part in parts]) for name in vars(parts[0])})


def shared_out(count: int, seeds: Sequence[int], every_seed: bool = False) -> dict[int, tuple[int, ...]]:
    """Which of `count` trials the adapter of each training seed gets: a share of its own, or all of them.

    Shares cost a third, and more prompts tell more than the same prompt again. A seed's trials do not depend on which
    adapters exist, so all arms have the same trials on the same seed.
    """
    return {seed: tuple(range(count) if every_seed else range(seed, count, len(SEEDS))) for seed in seeds}


def chosen(names: Sequence[str] | None, kinds: Sequence[str]) -> list[Arm]:
    """The arms with these names (all if None) whose adapters are there. Raises ValueError for an unknown name."""
    known = {arm.name: arm for arm in ARMS}
    if wrong := [name for name in names or () if name not in known]:
        raise ValueError(f"There is no arm “{wrong[0]}”; choose from: {'; '.join(known)}.")
    return [arm for arm in ARMS if arm.adapter in ("", *kinds) and (not names or arm.name in names)]
