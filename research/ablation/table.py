"""Tables of estimates with intervals, from the lines of measured pictures.

Intervals are 95 % bootstrap intervals over training seeds and over prompts; a prompt is drawn with all its objects. If
every seed has prompts of its own, prompts are drawn within each drawn seed. If all seeds have the same prompts, seeds
and prompts are drawn independently and crossed (Owen's pigeonhole bootstrap, Annals of Applied Statistics 2007, doi
10.1214/07-AOAS122; scipy's bootstrap draws along one axis only).

Prompts with the same pair of kinds may succeed or fail together. So there is a second interval: seeds and pairs of
kinds are drawn independently and crossed, a pair with all its prompts (cluster bootstrap). Seeds and pairs are few: an
effect counts as sure only if both intervals exclude zero and every seed agrees.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from ..miniature.trained import SEEDS
from .arms import (
    ARMS,
    EFFECTS,
    GAINS,
    NO_REFERENCES,
    Arm,
    Effect,
    kind_pairs,
    prompts_to_choose,
    shared_out,
)

RESAMPLES = 2000
Row = Mapping[str, Any]
Ratio = tuple[float, float]  # of one picture: what a measure counts, and of how many


def _of_found(name: str, plain: bool | None = None) -> Callable[[Row], Ratio]:
    """A mean over the objects that are present. plain: only those with one-coloured looks (True) or two-coloured
    (False).
    """

    def ratio(row: Row) -> Ratio:
        values = [float(value) for value in _chosen(row, name, plain) if value is not None]
        return sum(values), len(values)

    return ratio


def _of_all(name: str, plain: bool | None = None) -> Callable[[Row], Ratio]:
    """The share of all objects in the prompt. plain: as in `_of_found`."""

    def ratio(row: Row) -> Ratio:
        values = _chosen(row, name, plain)
        return sum(map(bool, values)), len(values)

    return ratio


def _chosen(row: Row, name: str, plain: bool | None) -> list[Any]:
    return [value for value, is_plain in zip(row[name], row["plain"], strict=True) if plain in (None, is_plain)]


MEASURES: dict[str, Callable[[Row], Ratio]] = {
    "bound": _of_all("own"),
    "binding": _of_found("own"),
    "clear": _of_all("clear"),
    "confused": _of_found("confused"),
    "margin": _of_found("margin"),
    "present": _of_found("present"),
    "all present": lambda row: (float(all(row["present"])), 1),
    "count right": lambda row: (float(row["count"] == len(row["present"])), 1),
    "look error": _of_found("error"),
    "pattern": _of_found("pattern"),
    "CLIP-T": lambda row: (row["clip_t"], 1),
    "CLIP-I": lambda row: (row["clip_i"], 1),
}
LOOKS: dict[str, Callable[[Row], Ratio]] = {
    f"{measure}, {look}": of(name, plain)
    for measure, name, of in (("bound", "own", _of_all), ("clear", "clear", _of_all), ("pattern", "pattern", _of_found))
    for look, plain in (("plain", True), ("two-coloured", False))
}
COMPARED = ("bound", "binding", "binding in all", "clear", "confused", "present")  # measures of the effects
SPLIT = ("through presence", "through binding")  # the two parts of an effect on `bound`
REAL: dict[str, Callable[[Row], Ratio]] = {
    "right": lambda row: (row["right"], 1),
    "swapped": lambda row: (row["swapped"], 1),
    "swapped − right": lambda row: (row["swapped"] - row["right"], 1),
    "map": lambda row: (row["map"] or 0.0, float(row["map"] is not None)),
    "share": lambda row: (row["share"] or 0.0, float(row["share"] is not None)),
}


class Best(NamedTuple):
    """The best of the scales that were tried.

    scale: 0 is the picture without references, where that bound more than every scale above it.
    edge: "≤" or "≥" at the smallest or the largest scale above 0, since a better one may lie beyond; else "".
    """

    scale: float
    edge: str


Cells = dict[int, dict[int, Row]]  # by training seed, by prompt


class PicturesByArm(NamedTuple):
    """The measured pictures of one number of objects.

    cells: by measure, arm and scale.
    equal: the scale at which all arms are compared; pictures without references stand there too.
    pairs: for each prompt, which pair of kinds it holds.
    """

    cells: Mapping[tuple[str, str, float], Cells]
    equal: float
    pairs: Sequence[int]

    def at(self, arm: str, scale: float) -> Cells:
        """The pictures of an arm at a scale; at 0 those without references. Empty where there are none."""
        return self.cells.get(("picture", arm, scale) if scale else ("picture", NO_REFERENCES, self.equal), {})


def summarise(rows: Iterable[Row], scale: float) -> dict[str, Any]:
    """All tables as plain values, by number of objects.

    "equal", "best": the arms at the equal scale, and each at its best scale.
    "effects", "effects at best scales": the differences that one change makes.
    "gains", "gains at best scales": what each arm adds to no references.
    "scales": the share of bound objects at each scale that was tried.
    "real": the real scenes.
    """
    rows = list(rows)
    cells: dict[int, dict[tuple, Cells]] = defaultdict(lambda: defaultdict(lambda: defaultdict(dict)))
    for row in rows:
        measure, arm, seed, objects, at, trial = row["key"]
        cells[objects][measure, arm, at][seed][trial] = row
    tuned = [row for row in rows if row["key"][0] == "tune"]
    results: dict[str, Any] = {}
    for objects in sorted(cells):
        found = PicturesByArm(cells[objects], scale, kind_pairs(1 + max(row["key"][-1] for row in rows), objects))
        equal = {arm.name: Best(scale if arm.adapter else 0.0, "") for arm in ARMS}
        best = {arm.name: own for arm in ARMS if (own := best_scale(tuned, arm, objects))}
        real = [
            {"arm": arm.name, **_measures(there, REAL, found.pairs)}
            for arm in ARMS
            if (there := found.cells.get(("real", arm.name, scale)))
        ]
        results[f"{objects} objects"] = {
            "equal": _arm_rows(found, equal),
            "best": _arm_rows(found, best),
            "effects": _effects(found, equal, EFFECTS),
            "effects at best scales": _effects(found, best, EFFECTS),
            "gains": _effects(found, equal, GAINS),
            "gains at best scales": _effects(found, best, GAINS),
            "scales": [
                {"arm": arm.name, "bound": tried}
                for arm in ARMS
                if arm.adapter and (tried := _tried(tuned, arm, objects))
            ],
            "real": real,
        }
    return results


def prompts_of(rows: Iterable[Row]) -> dict[str, Any]:
    """How many prompts the pictures cover, by number of objects, and whether every training seed has all of them."""
    seen: dict[int, set[tuple[int, int]]] = defaultdict(set)
    for measure, _, seed, objects, _, trial in (row["key"] for row in rows):
        if measure == "picture":
            seen[objects].add((seed, trial))
    prompts = {f"{objects} objects": 1 + max(trial for _, trial in each) for objects, each in sorted(seen.items())}
    shares = shared_out(max(prompts.values(), default=0), SEEDS)
    every_seed = any(trial not in shares[seed] for each in seen.values() for seed, trial in each)
    return {"prompts": prompts, "every_seed": every_seed}


def best_scale(rows: Iterable[Row], arm: Arm, objects: int) -> Best | None:
    """The scale at which most objects are present and bound, on the prompts for choosing; None until all are tried.

    Of two that bind alike it is the smaller one.
    """
    tried = _tried(rows, arm, objects)
    if not tried:
        return None
    best = max(tried, key=lambda scale: tried[scale])
    return Best(best, {arm.scales[0]: "≤", arm.scales[-1]: "≥"}.get(best, "") if best else "")


def _tried(rows: Iterable[Row], arm: Arm, objects: int) -> dict[float, float]:
    """The share of bound objects at each scale, on the prompts for choosing; empty until all are measured.

    0 is among them as soon as pictures without references are measured there. It is not for a gate on the text
    features, which acts at every scale.
    """
    scores: dict[float, list[float]] = {scale: [] for scale in (0.0, *arm.scales)}
    for row in rows:
        measure, name, _, count, scale, _ = row["key"]
        drawn = arm.name if scale else NO_REFERENCES
        if (measure, name, count) == ("tune", drawn, objects) and scale in scores:
            bound, of = MEASURES["bound"](row)
            scores[scale].append(bound / of)
    enough = {scale for scale, each in scores.items() if len(each) >= prompts_to_choose(objects)}
    if not arm.scales or not enough >= set(arm.scales):
        return {}
    if arm.gate == "text":
        enough -= {0.0}
    return {scale: float(np.mean(each)) for scale, each in scores.items() if scale in enough}


def _arm_rows(found: PicturesByArm, scales: Mapping[str, Best]) -> list[dict[str, Any]]:
    """A row for each arm that has pictures at its scale."""
    return [
        {"arm": name, **own._asdict(), **_measures(cells, {**MEASURES, **LOOKS}, found.pairs)}
        for name, own in scales.items()
        if (cells := found.at(name, own.scale))
    ]


def _measures(cells: Cells, measures: Mapping[str, Callable[[Row], Ratio]], pairs: Sequence[int]) -> dict[str, Any]:
    prompts = sorted(set.union(*(set(trials) for trials in cells.values())))
    out: dict[str, Any] = {"prompts": len(prompts), "pictures": sum(map(len, cells.values())), "seeds": len(cells)}
    return out | {name: _estimated(each, cells) for name, each in _ratios(cells, measures, pairs).items()}


def _effects(found: PicturesByArm, scales: Mapping[str, Best], effects: Iterable[Effect]) -> list[dict[str, Any]]:
    rows = []
    for effect in effects:
        named = {*effect.after, *effect.before}
        there = {arm: found.at(arm, scales[arm].scale) for arm in named if arm in scales}
        if there.keys() == named and (shared := _shared(there)):
            at = {side: [scales[name] for name in getattr(effect, side)] for side in ("before", "after")}
            row = {"effect": effect.name, "from": effect.before, "to": effect.after}
            row |= {"scales from": at["before"], "scales to": at["after"]}
            rows.append(row | _effect(effect, shared, found.pairs))
    return rows


def _shared(arms: Mapping[str, Cells]) -> dict[str, Cells]:
    """The rows of the prompts and training seeds that all these arms have.

    "own in all" is added to each row: "own" for the objects that every arm drew, None for the others.
    """
    every: dict[int, set[int]] = {}
    for seed in sorted(set.intersection(*(set(cells) for cells in arms.values()))):
        if prompts := set.intersection(*(set(cells[seed]) for cells in arms.values())):
            every[seed] = prompts
    shared: dict[str, Cells] = {arm: {seed: {} for seed in every} for arm in arms} if every else {}
    for seed, prompts in every.items():
        for prompt in prompts:
            drawn = [all(one) for one in zip(*(cells[seed][prompt]["present"] for cells in arms.values()), strict=True)]
            for arm, cells in arms.items():
                row = cells[seed][prompt]
                own = [value if all_drew else None for value, all_drew in zip(row["own"], drawn, strict=True)]
                shared[arm][seed][prompt] = {**row, "own in all": own}
    return shared


def _effect(effect: Effect, arms: Mapping[str, Cells], pairs: Sequence[int]) -> dict[str, Any]:
    """What the change adds to every measure, and the two parts of what it adds to `bound`.

    bound = present · binding. From (p₀, b₀) to (p₁, b₁) the change adds (p₁ - p₀)(b₀ + b₁)/2 through presence and
    (b₁ - b₀)(p₀ + p₁)/2 through binding: the mean of the two orders in which one factor can change after the other
    (Shapley value), so that the parts add up to the effect.
    """
    cells = arms[effect.after[0]]
    row: dict[str, Any] = {"prompts": len(set().union(*cells.values())), "pictures": sum(map(len, cells.values()))}
    row["seeds"] = len(cells)
    measures = {name: MEASURES.get(name, _of_found("own in all")) for name in COMPARED}
    of = {arm: _ratios(each, measures, pairs) for arm, each in arms.items()}
    changes = [(of[after], of[before]) for after, before in zip(effect.after, effect.before, strict=True)]
    added = {name: sum(after[name] - before[name] for after, before in changes) for name in COMPARED}
    presence = binding = 0.0
    for after, before in changes:
        p1, p0, b1, b0 = after["present"], before["present"], after["binding"], before["binding"]
        presence, binding = presence + (p1 - p0) * (b0 + b1) / 2, binding + (b1 - b0) * (p0 + p1) / 2
    added |= dict(zip(SPLIT, (presence, binding), strict=True))
    return row | {name: _estimated(np.asarray(each), cells) for name, each in added.items()}


def _ratios(
    cells: Cells, measures: Mapping[str, Callable[[Row], Ratio]], pairs: Sequence[int]
) -> dict[str, np.ndarray]:
    """[1 + seeds + 2 · RESAMPLES] of each measure, over the pictures as `_weights` counts them; NaN where none has it.

    Arms with the same pictures get the same draws, so that their differences are paired.
    """
    seeds = sorted(cells)
    prompts = sorted(set().union(*cells.values()))
    there = np.array([[prompt in cells[seed] for prompt in prompts] for seed in seeds])
    rows = [cells[seed][prompt] for seed in seeds for prompt in prompts if prompt in cells[seed]]
    sums = np.array([[ratio(row) for ratio in measures.values()] for row in rows])  # [pictures, measures, 2]
    weights = _weights(there.tobytes(), there.shape, tuple(pairs[prompt] for prompt in prompts))
    counted, of = np.moveaxis((weights @ sums.reshape(len(rows), -1)).reshape(-1, len(measures), 2), 2, 0)
    ratios = np.divide(counted, of, out=np.full(of.shape, np.nan), where=of > 0)
    return dict(zip(measures, ratios.T, strict=True))


@lru_cache(8)
def _weights(there: bytes, shape: tuple[int, int], pairs: tuple[int, ...]) -> np.ndarray:
    """[1 + seeds + 2 · RESAMPLES, pictures] how often each picture counts.

    First every picture once, then each training seed's alone, then draws of seeds and prompts, then of seeds and pairs.

    there: bytes of bool [seeds, prompts], whether there is a picture.
    pairs: for each prompt, its pair of kinds.
    """
    cells, rng = np.frombuffer(there, bool).reshape(shape), np.random.default_rng(0)
    seeds, prompts = shape
    seed_of, prompt_of = cells.nonzero()
    times = rng.multinomial(seeds, np.full(seeds, 1 / seeds), RESAMPLES)
    if cells.sum() == prompts:  # every seed has prompts of its own: draw them anew each time a seed is drawn
        counts = cells.sum(1)
        drawn = np.concatenate([rng.multinomial(times[:, s] * n, np.full(n, 1 / n)) for s, n in enumerate(counts)], 1)
    else:
        often = rng.multinomial(prompts, np.full(prompts, 1 / prompts), RESAMPLES)
        drawn = times[:, seed_of] * often[:, prompt_of]
    known, pair_of = np.unique(pairs, return_inverse=True)
    often = rng.multinomial(len(known), np.full(len(known), 1 / len(known)), RESAMPLES)
    by_pair = times[:, seed_of] * often[:, pair_of[prompt_of]]
    alone = np.arange(seeds)[:, None] == seed_of
    return np.concatenate([np.ones((1, len(seed_of))), alone, drawn, by_pair])


class Draws(NamedTuple):
    """A measure, or a difference of two, by the ways in which `_weights` counts the pictures.

    value: every picture once.
    by_seed: each training seed's alone, in their order.
    by_prompt, by_pair: [RESAMPLES], draws of seeds and prompts, and of seeds and pairs of kinds.
    """

    value: float
    by_seed: np.ndarray
    by_prompt: np.ndarray
    by_pair: np.ndarray

    @classmethod
    def of(cls, ratios: np.ndarray, seeds: int) -> Draws:
        """ratios: [1 + seeds + 2 · RESAMPLES], see `_ratios`."""
        by_seed, by_prompt, by_pair = np.split(ratios[1:], (seeds, seeds + RESAMPLES))
        return cls(float(ratios[0]), by_seed, by_prompt, by_pair)


def _estimated(ratios: np.ndarray, cells: Cells) -> dict[str, Any] | None:
    """The estimate with both intervals and its value by seed; None where nothing was counted."""
    draws = Draws.of(ratios, len(cells))
    if np.isnan(draws.value):
        return None
    low, high = np.nanpercentile(draws.by_prompt, (2.5, 97.5))
    pair_low, pair_high = np.nanpercentile(draws.by_pair, (2.5, 97.5))
    bounds = {"low": low, "high": high, "low by pair": pair_low, "high by pair": pair_high}
    seeds = {
        seed: None if np.isnan(value) else float(value)
        for seed, value in zip(sorted(cells), draws.by_seed, strict=True)
    }
    return {"value": draws.value, **{name: float(bound) for name, bound in bounds.items()}, "by seed": seeds}


def is_sure(difference: Mapping[str, Any]) -> bool:
    """Whether both intervals exclude zero and every training seed agrees."""
    bounds = (difference[name] for name in ("low", "high", "low by pair", "high by pair"))
    signs = {np.sign(value) for value in (*bounds, *difference["by seed"].values()) if value is not None}
    return signs in ({1.0}, {-1.0})
