"""Tables of estimates with intervals, from the lines of measured pictures.

Intervals are 95 % bootstrap intervals over training seeds and over prompts; a prompt is drawn with all its objects. If
every seed has prompts of its own, prompts are drawn within each drawn seed. If all seeds have the same prompts, seeds
and prompts are drawn independently and crossed (Owen's pigeonhole bootstrap, Annals of Applied Statistics 2007, doi
10.1214/07-AOAS122; scipy's bootstrap draws along one axis only). Three seeds are few, so an effect counts as sure only
if its interval excludes zero and every seed agrees.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from ..miniature.trained import SEEDS
from .variants import EFFECTS, VARIANTS, Effect, Variant, prompts_to_choose, shared_out

RESAMPLES = 2000
Row = Mapping[str, Any]
Parts = tuple[float, float]  # of one picture: the numerator and the denominator of a measure


def _of_found(name: str, plain: bool | None = None) -> Callable[[Row], Parts]:
    """A mean over the objects that are present. plain: only those with one-coloured looks (True) or two-coloured
    (False).
    """

    def parts(row: Row) -> Parts:
        values = [float(value) for value in _chosen(row, name, plain) if value is not None]
        return sum(values), len(values)

    return parts


def _of_all(name: str, plain: bool | None = None) -> Callable[[Row], Parts]:
    """The share of all objects in the prompt. plain: as in `_of_found`."""

    def parts(row: Row) -> Parts:
        values = _chosen(row, name, plain)
        return sum(map(bool, values)), len(values)

    return parts


def _chosen(row: Row, name: str, plain: bool | None) -> list[Any]:
    return [value for value, is_plain in zip(row[name], row["plain"], strict=True) if plain in (None, is_plain)]


MEASURES: dict[str, Callable[[Row], Parts]] = {
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
LOOKS: dict[str, Callable[[Row], Parts]] = {
    f"{measure}, {look}": of(name, plain)
    for measure, name, of in (("bound", "own", _of_all), ("clear", "clear", _of_all), ("pattern", "pattern", _of_found))
    for look, plain in (("plain", True), ("two-coloured", False))
}
COMPARED = ("bound", "binding", "binding in all", "clear", "confused", "present")  # measures of the effects
REAL: dict[str, Callable[[Row], Parts]] = {
    "right": lambda row: (row["right"], 1),
    "swapped": lambda row: (row["swapped"], 1),
    "swapped − right": lambda row: (row["swapped"] - row["right"], 1),
    "map": lambda row: (row["map"] or 0.0, float(row["map"] is not None)),
    "share": lambda row: (row["share"] or 0.0, float(row["share"] is not None)),
}


class Estimate(NamedTuple):
    value: float
    low: float
    high: float


class Best(NamedTuple):
    """The best of the scales that were tried.

    edge: "≤" or "≥" if it is the smallest or the largest, so that a better one may lie beyond; else "".
    """

    scale: float
    edge: str


Cells = dict[int, dict[int, Row]]  # by training seed, by prompt


def summarise(rows: Iterable[Row], scale: float) -> dict[str, Any]:
    """All tables as plain values, by number of objects.

    "equal", "best": the variants at the equal scale, and each at its best scale.
    "effects", "effects at best scales": the differences that one change makes.
    "scales": the share of bound objects at each scale that was tried.
    "real": the real scenes.
    """
    rows = list(rows)
    found: dict[tuple, Cells] = defaultdict(lambda: defaultdict(dict))
    for row in rows:
        measure, variant, seed, objects, at, trial = row["key"]
        found[measure, variant, objects, at][seed][trial] = row
    tuned = [row for row in rows if row["key"][0] == "tune"]
    results: dict[str, Any] = {}
    for objects in sorted({key[2] for key in found}):
        equal = {variant.name: Best(scale, "") for variant in VARIANTS}
        best = {variant.name: own for variant in VARIANTS if (own := best_scale(tuned, variant, objects))}
        real = [
            {"arm": variant.name, **_measures(cells, REAL)}
            for variant in VARIANTS
            if (cells := found.get(("real", variant.name, objects, scale)))
        ]
        results[f"{objects} objects"] = {
            "equal": _variant_rows(found, objects, equal),
            "best": _variant_rows(found, objects, best),
            "effects": _effects(found, objects, equal),
            "effects at best scales": _effects(found, objects, best),
            "scales": [
                {"arm": variant.name, "bound": tried}
                for variant in VARIANTS
                if (tried := _tried(tuned, variant, objects))
            ],
            "real": real,
        }
    return results


def prompts_of(rows: Iterable[Row]) -> dict[str, Any]:
    """How many prompts the pictures cover, and whether every training seed has all of them."""
    seen = {(seed, trial) for measure, _, seed, _, _, trial in (row["key"] for row in rows) if measure == "picture"}
    prompts = 1 + max((trial for _, trial in seen), default=-1)
    shares = shared_out(prompts, SEEDS)
    return {"prompts": prompts, "every_seed": any(trial not in shares[seed] for seed, trial in seen)}


def best_scale(rows: Iterable[Row], variant: Variant, objects: int) -> Best | None:
    """The scale at which most objects are present and bound, on the prompts for choosing; None until all are tried."""
    tried = _tried(rows, variant, objects)
    if not tried:
        return None
    best = max(tried, key=lambda scale: tried[scale])
    return Best(best, {variant.scales[0]: "≤", variant.scales[-1]: "≥"}.get(best, ""))


def _tried(rows: Iterable[Row], variant: Variant, objects: int) -> dict[float, float]:
    """The share of bound objects at each scale, on the prompts for choosing; empty until all are measured."""
    scores: dict[float, list[float]] = {scale: [] for scale in variant.scales}
    for row in rows:
        measure, name, _, count, scale, _ = row["key"]
        if (measure, name, count) == ("tune", variant.name, objects) and scale in scores:
            bound, of = MEASURES["bound"](row)
            scores[scale].append(bound / of)
    if any(len(each) < prompts_to_choose(objects) for each in scores.values()):
        return {}
    return {scale: float(np.mean(each)) for scale, each in scores.items()}


def _variant_rows(found: Mapping[tuple, Cells], objects: int, scales: Mapping[str, Best]) -> list[dict[str, Any]]:
    """A row for each variant that has pictures at its scale."""
    rows = []
    for name, own in scales.items():
        if cells := found.get(("picture", name, objects, own.scale)):
            rows.append({"arm": name, **own._asdict(), **_measures(cells, {**MEASURES, **LOOKS})})
    return rows


def _measures(cells: Cells, measures: Mapping[str, Callable[[Row], Parts]]) -> dict[str, Any]:
    prompts = sorted(set.union(*(set(trials) for trials in cells.values())))
    out: dict[str, Any] = {"prompts": len(prompts), "pictures": sum(map(len, cells.values())), "seeds": len(cells)}
    for name, parts in measures.items():
        sums = _sums(cells, prompts, parts)
        out[name] = _estimated(_ratio(sums), _by_seed(cells, sums), _drawn(sums, _there(cells, prompts)))
    return out


def _effects(found: Mapping[tuple, Cells], objects: int, scales: Mapping[str, Best]) -> list[dict[str, Any]]:
    rows = []
    for effect in EFFECTS:
        there = {
            variant: found.get(("picture", variant, objects, scales[variant].scale), {})
            for variant in effect.after + effect.before
            if variant in scales
        }
        if there.keys() >= {*effect.after, *effect.before} and (shared := _shared(there)):
            rows.append(_effect(effect, shared))
    return rows


def _shared(variants: Mapping[str, Cells]) -> dict[str, Cells]:
    """The rows of the prompts and training seeds that all these variants have.

    "own in all" is added to each row: "own" for the objects that every variant drew, None for the others.
    """
    every: dict[int, set[int]] = {}
    for seed in sorted(set.intersection(*(set(cells) for cells in variants.values()))):
        if prompts := set.intersection(*(set(cells[seed]) for cells in variants.values())):
            every[seed] = prompts
    shared: dict[str, Cells] = {variant: {seed: {} for seed in every} for variant in variants} if every else {}
    for seed, prompts in every.items():
        for prompt in prompts:
            drawn = [
                all(one) for one in zip(*(cells[seed][prompt]["present"] for cells in variants.values()), strict=True)
            ]
            for variant, cells in variants.items():
                row = cells[seed][prompt]
                own = [value if all_drew else None for value, all_drew in zip(row["own"], drawn, strict=True)]
                shared[variant][seed][prompt] = {**row, "own in all": own}
    return shared


def _effect(effect: Effect, variants: Mapping[str, Cells]) -> dict[str, Any]:
    cells = variants[effect.after[0]]
    prompts = sorted(set().union(*cells.values()))
    there = _there(cells, prompts)
    row: dict[str, Any] = {"effect": effect.name, "from": effect.before, "to": effect.after, "prompts": len(prompts)}
    row["pictures"], row["seeds"] = sum(map(len, cells.values())), len(cells)
    signed = [(variant, 1) for variant in effect.after] + [(variant, -1) for variant in effect.before]
    for name in COMPARED:
        parts = _of_found("own in all") if name == "binding in all" else MEASURES[name]
        sums = [(sign, _sums(variants[variant], prompts, parts)) for variant, sign in signed]
        by_seed = {seed: _added((sign, _ratio(of[:, s])) for sign, of in sums) for s, seed in enumerate(sorted(cells))}
        value = _added((sign, _ratio(of)) for sign, of in sums)
        row[name] = _estimated(value, by_seed, np.sum([sign * _drawn(of, there) for sign, of in sums], 0))
    return row


def _sums(cells: Cells, prompts: Sequence[int], parts: Callable[[Row], Parts]) -> np.ndarray:
    """[2, seeds, prompts] numerators and denominators of a measure; zero where there is no picture."""
    sums = np.zeros((2, len(cells), len(prompts)))
    places = {prompt: i for i, prompt in enumerate(prompts)}
    for s, seed in enumerate(sorted(cells)):
        for prompt, row in cells[seed].items():
            sums[:, s, places[prompt]] = parts(row)
    return sums


def _ratio(sums: np.ndarray) -> float | None:
    """The ratio of the total numerator to the total denominator; None if that is zero."""
    counted, of = sums.reshape(2, -1).sum(1)
    return float(counted / of) if of else None


def _by_seed(cells: Cells, sums: np.ndarray) -> dict[int, float | None]:
    return {seed: _ratio(sums[:, s]) for s, seed in enumerate(sorted(cells))}


def _added(signed: Iterable[tuple[int, float | None]]) -> float | None:
    total = 0.0
    for sign, value in signed:
        if value is None:
            return None
        total += sign * value
    return total


def _there(cells: Cells, prompts: Sequence[int]) -> np.ndarray:
    """[seeds, prompts] whether there is a picture."""
    return np.array([[prompt in cells[seed] for prompt in prompts] for seed in sorted(cells)])


def _drawn(sums: np.ndarray, there: np.ndarray) -> np.ndarray:
    """[RESAMPLES] ratios over seeds and prompts drawn with replacement.

    Variants with the same pictures get the same draws, so that their differences are paired.
    """
    counted, of = (_often(there.tobytes(), there.shape) @ sums[:, there].T).T
    return np.divide(counted, of, out=np.full(RESAMPLES, np.nan), where=of > 0)  # NaN: nothing was drawn


@lru_cache(16)
def _often(there: bytes, shape: tuple[int, int]) -> np.ndarray:
    """[RESAMPLES, pictures] how often each picture is drawn. there: bytes of bool [seeds, prompts]."""
    cells, rng = np.frombuffer(there, bool).reshape(shape), np.random.default_rng(0)
    seeds, prompts = shape
    times = rng.multinomial(seeds, np.full(seeds, 1 / seeds), RESAMPLES)
    if cells.sum() == prompts:  # every seed has prompts of its own: draw them anew each time a seed is drawn
        counts = cells.sum(1)
        each = [rng.multinomial(times[:, s] * n, np.full(n, 1 / n)) for s, n in enumerate(counts)]
        return np.concatenate(each, 1).astype(float)
    often = rng.multinomial(prompts, np.full(prompts, 1 / prompts), RESAMPLES)
    return (times[:, :, None] * often[:, None])[:, cells].astype(float)


def _estimated(value: float | None, by_seed: Mapping[int, float | None], drawn: np.ndarray) -> dict[str, Any] | None:
    """The estimate with its interval and its value by seed; None where nothing was counted."""
    if value is None:
        return None
    low, high = np.nanpercentile(drawn, (2.5, 97.5))
    return {**Estimate(value, float(low), float(high))._asdict(), "by seed": dict(by_seed)}


def is_sure(difference: Mapping[str, Any]) -> bool:
    """Whether the interval excludes zero and every training seed agrees."""
    signs = {
        np.sign(value)
        for value in (difference["low"], difference["high"], *difference["by seed"].values())
        if value is not None
    }
    return signs in ({1.0}, {-1.0})
