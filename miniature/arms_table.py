"""Lines of measured pictures to numbers with their intervals.

Intervals are 95 % bootstrap intervals over prompts and over training seeds at once, each drawn with all its pictures
and objects, because those are alike (the pigeonhole bootstrap of Owen, Annals of Applied Statistics 2007, doi
10.1214/07-AOAS122; scipy's draws along one axis). Three seeds are few to draw from: an effect counts as sure only if
its interval leaves out zero and every seed agrees.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from .arms import ARMS, EFFECTS, TUNED_ON, Arm

RESAMPLES = 2000
Row = Mapping[str, Any]
Parts = tuple[float, float]  # of one picture: a sum and what it is divided by


def _of_found(name: str) -> Callable[[Row], Parts]:
    """A mean over the objects that are there."""

    def parts(row: Row) -> Parts:
        values = [float(value) for value in row[name] if value is not None]
        return sum(values), len(values)

    return parts


MEASURES: dict[str, Callable[[Row], Parts]] = {
    "binding": _of_found("own"),
    "bound": lambda row: (sum(bool(own) for own in row["own"]), len(row["own"])),
    "clear": lambda row: (sum(bool(clear) for clear in row["clear"]), len(row["clear"])),
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
    """The best scale of those tried; edge: "≤" or "≥" if it is the smallest or the largest and a better one may lie
    beyond, else ""."""

    scale: float
    edge: str


Cells = dict[int, dict[int, Row]]  # by training seed, by prompt


def summarise(rows: Iterable[Row], scale: float) -> dict[str, Any]:
    """All tables as plain values, by number of objects: "equal" and "best" scale, "effects", "real"."""
    rows = list(rows)
    found: dict[tuple, Cells] = defaultdict(lambda: defaultdict(dict))
    for row in rows:
        measure, arm, seed, objects, at, trial = row["key"]
        found[measure, arm, objects, at][seed][trial] = row
    tuned = [row for row in rows if row["key"][0] == "tune"]
    results: dict[str, Any] = {}
    for objects in sorted({key[2] for key in found}):
        equal = {arm.name: Best(scale, "") for arm in ARMS}
        best = {arm.name: own for arm in ARMS if (own := best_scale(tuned, arm, objects))}
        real = [
            {"arm": arm.name, **_measures(cells, REAL)}
            for arm in ARMS
            if (cells := found.get(("real", arm.name, objects, scale)))
        ]
        results[f"{objects} objects"] = {
            "equal": _arms(found, objects, equal),
            "best": _arms(found, objects, best),
            "effects": _effects(found, objects, equal),
            "effects at best scales": _effects(found, objects, best),
            "real": real,
        }
    return results


def best_scale(rows: Iterable[Row], arm: Arm, objects: int) -> Best | None:
    """The scale at which most objects are there and bound, on the prompts for choosing; None before all are made."""
    scores: dict[float, list[float]] = {scale: [] for scale in arm.scales}
    for row in rows:
        measure, name, _, count, scale, _ = row["key"]
        if (measure, name, count) == ("tune", arm.name, objects) and scale in scores:
            bound, of = MEASURES["bound"](row)
            scores[scale].append(bound / of)
    if not scores or any(len(each) < TUNED_ON for each in scores.values()):
        return None
    best = max(scores, key=lambda scale: float(np.mean(scores[scale])))
    return Best(best, {arm.scales[0]: "≤", arm.scales[-1]: "≥"}.get(best, ""))


def _arms(found: Mapping[tuple, Cells], objects: int, scales: Mapping[str, Best]) -> list[dict[str, Any]]:
    """A row for each arm that has pictures at its scale."""
    rows = []
    for name, own in scales.items():
        if cells := found.get(("picture", name, objects, own.scale)):
            rows.append({"arm": name, **own._asdict(), **_measures(cells, MEASURES)})
    return rows


def _measures(cells: Cells, measures: Mapping[str, Callable[[Row], Parts]]) -> dict[str, Any]:
    prompts = sorted(set.union(*(set(trials) for trials in cells.values())))
    out: dict[str, Any] = {"prompts": len(prompts), "pictures": sum(map(len, cells.values())), "seeds": len(cells)}
    for name, parts in measures.items():
        sums = _sums(cells, prompts, parts)
        out[name] = _estimated(_ratio(sums), _by_seed(cells, sums), _drawn(sums))
    return out


def _effects(found: Mapping[tuple, Cells], objects: int, scales: Mapping[str, Best]) -> list[dict[str, Any]]:
    """Differences between arms on the prompts and training seeds that both have."""
    rows = []
    for what, *names in EFFECTS:
        pair = [found.get(("picture", arm, objects, scales[arm].scale), {}) for arm in names if arm in scales]
        if len(pair) < 2:
            continue
        shared = {seed: pair[0][seed].keys() & pair[1][seed].keys() for seed in sorted(pair[0].keys() & pair[1].keys())}
        prompts = sorted(set().union(*shared.values()))
        if not prompts:
            continue
        pair = [{seed: {p: each[seed][p] for p in some} for seed, some in shared.items()} for each in pair]
        row: dict[str, Any] = {"effect": what, "from": names[1], "to": names[0], "prompts": len(prompts)}
        row["pictures"], row["seeds"] = sum(map(len, shared.values())), len(shared)
        for name in ("binding", "bound", "clear", "confused", "present"):
            one, other = (_sums(cells, prompts, MEASURES[name]) for cells in pair)
            by_seed = [_by_seed(cells, sums) for cells, sums in zip(pair, (one, other), strict=True)]
            each_seed = {seed: _minus(by_seed[0][seed], by_seed[1][seed]) for seed in shared}
            row[name] = _estimated(_minus(_ratio(one), _ratio(other)), each_seed, _drawn(one) - _drawn(other))
        rows.append(row)
    return rows


def _sums(cells: Cells, prompts: Sequence[int], parts: Callable[[Row], Parts]) -> np.ndarray:
    """[2, seeds, prompts] of what is counted, and of what it is divided by; zero where there is no picture."""
    sums = np.zeros((2, len(cells), len(prompts)))
    places = {prompt: i for i, prompt in enumerate(prompts)}
    for s, seed in enumerate(sorted(cells)):
        for prompt, row in cells[seed].items():
            sums[:, s, places[prompt]] = parts(row)
    return sums


def _ratio(sums: np.ndarray) -> float | None:
    counted, of = sums.reshape(2, -1).sum(1)
    return float(counted / of) if of else None


def _by_seed(cells: Cells, sums: np.ndarray) -> dict[int, float | None]:
    return {seed: _ratio(sums[:, s]) for s, seed in enumerate(sorted(cells))}


def _minus(one: float | None, other: float | None) -> float | None:
    return None if one is None or other is None else one - other


def _drawn(sums: np.ndarray) -> np.ndarray:
    """[RESAMPLES] ratios of prompts and seeds drawn with replacement, the same ones for arms of the same size."""
    rng = np.random.default_rng(0)
    seeds, prompts = (
        rng.multinomial(count, np.full(count, 1 / count), RESAMPLES) for count in sums.shape[1:]
    )  # [RESAMPLES, count] how often each was drawn
    counted, of = np.einsum("rs,rp,csp->cr", seeds, prompts, sums, optimize=True)
    return np.divide(counted, of, out=np.full(RESAMPLES, np.nan), where=of > 0)  # nothing drawn: says nothing


def _estimated(value: float | None, by_seed: Mapping[int, float | None], drawn: np.ndarray) -> dict[str, Any] | None:
    """None where nothing was counted."""
    if value is None:
        return None
    low, high = np.nanpercentile(drawn, (2.5, 97.5))
    return {**Estimate(value, float(low), float(high))._asdict(), "by seed": dict(by_seed)}


def is_sure(difference: Mapping[str, Any]) -> bool:
    """Whether a difference can be told from nothing: the interval leaves out zero, and so does every training seed."""
    signs = {
        np.sign(value)
        for value in (difference["low"], difference["high"], *difference["by seed"].values())
        if value is not None
    }
    return signs in ({1.0}, {-1.0})
