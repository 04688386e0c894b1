"""Lines of measured pictures to numbers with their intervals, and to a page that says what they mean.

Intervals are 95 % bootstrap intervals over prompts (scipy.stats.bootstrap): prompts are drawn with all their pictures
and objects, because those are alike. Training seeds are too few to draw from: they are averaged, and each one's value
stands beside the mean.
"""

from __future__ import annotations

import warnings
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy.stats import bootstrap

from .arms import ARMS, EFFECTS, METHOD

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


Cells = dict[int, dict[int, Row]]  # by training seed, by prompt


def summarise(rows: Iterable[Row], scale: float) -> dict[str, Any]:
    """All tables as plain values, by number of objects: "equal" and "best" scale, "effects", "real"."""
    found: dict[tuple, Cells] = defaultdict(lambda: defaultdict(dict))
    for row in rows:
        measure, arm, seed, objects, at, trial = row["key"]
        found[measure, arm, objects, at][seed][trial] = row
    tuned = [row for row in rows if row["key"][0] == "tune"]
    results: dict[str, Any] = {}
    for objects in sorted({key[2] for key in found}):
        equal = {arm.name: scale for arm in ARMS}
        best = {arm.name: best_scale(tuned, arm.name, objects) or scale for arm in ARMS}
        real = [
            {"arm": arm.name, **_measures(cells, REAL)}
            for arm in ARMS
            if (cells := found.get(("real", arm.name, objects, scale)))
        ]
        results[f"{objects} objects"] = {
            "equal": _arms(found, objects, equal),
            "best": _arms(found, objects, best) if tuned else [],
            "effects": _effects(found, objects, equal),
            "effects at best scales": _effects(found, objects, best) if tuned else [],
            "real": real,
        }
    return results


def best_scale(rows: Iterable[Row], arm: str, objects: int, needed: int = 1) -> float | None:
    """The scale at which most objects are there and bound, on the prompts for choosing; None before all are made."""
    scores: dict[float, list[float]] = defaultdict(list)
    for row in rows:
        measure, name, _, count, scale, _ = row["key"]
        if (measure, name, count) == ("tune", arm, objects):
            bound, of = MEASURES["bound"](row)
            scores[scale].append(bound / of)
    if sum(map(len, scores.values())) < needed:
        return None
    return max(scores, key=lambda scale: float(np.mean(scores[scale])))


def _arms(found: Mapping[tuple, Cells], objects: int, scales: Mapping[str, float]) -> list[dict[str, Any]]:
    """A row for each arm that has pictures at its scale."""
    rows = []
    for arm in ARMS:
        if cells := found.get(("picture", arm.name, objects, scales[arm.name])):
            rows.append({"arm": arm.name, "scale": scales[arm.name], **_measures(cells, MEASURES)})
    return rows


def _measures(cells: Cells, measures: Mapping[str, Callable[[Row], Parts]]) -> dict[str, Any]:
    prompts = sorted(set.union(*(set(trials) for trials in cells.values())))
    out: dict[str, Any] = {"prompts": len(prompts), "pictures": sum(map(len, cells.values()))}
    for name, parts in measures.items():
        estimate = _ratio(_sums(cells, prompts, parts))
        seeds = {seed: _value(_sums({seed: trials}, prompts, parts)) for seed, trials in sorted(cells.items())}
        out[name] = None if estimate is None else {**estimate._asdict(), "seeds": seeds}
    return out


def _effects(found: Mapping[tuple, Cells], objects: int, scales: Mapping[str, float]) -> list[dict[str, Any]]:
    """Differences between arms on the prompts and training seeds that both have."""
    rows = []
    for what, one, other in EFFECTS:
        pair = [found.get(("picture", arm, objects, scales[arm]), {}) for arm in (one, other)]
        seeds = sorted(pair[0].keys() & pair[1].keys())
        prompts = sorted(set.intersection(*(set(each[seed]) for each in pair for seed in seeds))) if seeds else []
        if not prompts:
            continue
        row: dict[str, Any] = {"effect": what, "from": other, "to": one, "prompts": len(prompts)}
        for name in ("binding", "bound", "confused", "present"):
            sums = [_sums({s: each[s] for s in seeds}, prompts, MEASURES[name]) for each in pair]
            each_seed = {}
            for seed in seeds:
                values = [_value(_sums({seed: cells[seed]}, prompts, MEASURES[name])) for cells in pair]
                each_seed[seed] = None if None in values else values[0] - values[1]  # pyright: ignore[reportOperatorIssue]
            estimate = _ratio(sums[0], sums[1])
            row[name] = None if estimate is None else {**estimate._asdict(), "seeds": each_seed}
        rows.append(row)
    return rows


def _sums(cells: Mapping[int, Mapping[int, Row]], prompts: Sequence[int], parts: Callable[[Row], Parts]) -> np.ndarray:
    """[2, prompts] sums over seeds of what is counted, and of what it is divided by."""
    sums = np.zeros((2, len(prompts)))
    for trials in cells.values():
        for i, prompt in enumerate(prompts):
            if prompt in trials:
                sums[:, i] += parts(trials[prompt])
    return sums


def _value(sums: np.ndarray) -> float | None:
    return float(sums[0].sum() / sums[1].sum()) if sums[1].sum() else None


def _ratio(sums: np.ndarray, minus: np.ndarray | None = None) -> Estimate | None:
    """A ratio of sums over prompts, or the difference of two, with its interval; None where nothing was counted."""
    data = [*sums] if minus is None else [*sums, *minus]

    def statistic(*given: np.ndarray, axis: int = -1) -> np.ndarray:
        total = [each.sum(axis) for each in given]
        with np.errstate(invalid="ignore", divide="ignore"):
            ratios = [a / b for a, b in zip(total[::2], total[1::2], strict=True)]
        return ratios[0] if len(ratios) == 1 else ratios[0] - ratios[1]

    value = float(statistic(*data))
    if not np.isfinite(value):
        return None
    if len(data[0]) < 2:
        return Estimate(value, value, value)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # where all prompts agree, the interval is a point
        drawn = bootstrap(
            data, statistic, paired=True, vectorized=True, n_resamples=RESAMPLES, method="percentile",
            rng=np.random.default_rng(0),
        )  # fmt: skip
    # A resample of few prompts may hold no object at all; it says nothing.
    low, high = np.nanpercentile(drawn.bootstrap_distribution, (2.5, 97.5))
    return Estimate(value, float(low), float(high))


# ---- the page ----

LIMITS = (
    "What the miniature cannot tell about SDXL: its objects are flat shapes whose looks are two colours and a pattern, "
    "its words are twelve, its references are clean, its UNet is 350 times smaller and was trained by us on the same "
    "world that it is measured in. It can tell which part of the method moves binding where everything else is equal; "
    "how far that carries to photographs has to be measured there, by the same arms."
)


def markdown(results: Mapping[str, Any], settings: Mapping[str, Any]) -> str:
    lines = [
        "# Arms: merging or training?",
        "",
        f"{settings['prompts']} prompts for each number of objects, with pairs of kinds and looks never seen in "
        f"training; {settings['steps']} steps, guidance {settings['guidance']:g}; every arm has the same prompts, "
        "references and noise. Judged from pixels. In brackets: 95 % bootstrap intervals over prompts; training seeds "
        "are averaged, and each one's value stands beside.",
        "",
        "*Binding*: of the objects that are there, how many wear colours nearer to their own reference than to any "
        "other (chance is 1 / objects). *Bound*: of all objects asked for, how many are there and bound. *Confused*: "
        "clearly wear another's colours. *Margin*: how much nearer, in mean absolute RGB difference. *Look error*: "
        "distance from the own look laid out in its pattern.",
    ]
    for objects, tables in results.items():
        lines += ["", f"## {objects.capitalize()}", "", *_verdict(objects, tables)]
        for title, name in (("At equal scale", "equal"), ("Each at its own best scale", "best")):
            if tables[name]:
                lines += ["", f"### {title}", "", *_arm_table(tables[name])]
        for title, name in (
            ("What one change does", "effects"), ("The same, each arm at its own best scale", "effects at best scales")
        ):  # fmt: skip
            if tables[name]:
                lines += ["", f"### {title}", "", *_effect_table(tables[name])]
        if tables["real"]:
            lines += ["", "### Real scenes: whose looks does the model expect where, and do the maps know the places?"]
            lines += ["", *_real_table(tables["real"])]
    return "\n".join([*lines, "", LIMITS, ""])


def _verdict(objects: str, tables: Mapping[str, Any]) -> list[str]:
    effects = {row["effect"]: row["binding"] for row in tables["effects"] if row["binding"] is not None}

    def said(effect: str) -> str:
        each = effects[effect]
        sure = "" if each["low"] > 0 or each["high"] < 0 else ", which cannot be told from nothing"
        return f"{_points(each)} points{sure}"

    wanted = ("merging alone, on stock weights", "training alone, uniform merge", EFFECTS[-1][0])
    if not all(effect in effects for effect in wanted):
        return []
    return [
        f"**Merging or training?** With {objects}, relevance in place of uniform shares changes the binding of stock "
        f"weights by {said(wanted[0])}; training on two objects without relevance changes it by {said(wanted[1])}; "
        f"both together, from plain IP-Adapter to the paper's method, by {said(wanted[2])}."
    ]


def _arm_table(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    percent = ("binding", "bound", "confused", "present", "all present", "count right", "pattern")
    plain = ("margin", "look error", "CLIP-T", "CLIP-I")
    head = ["arm", "scale", "binding %", "by seed", *(f"{name} %" for name in percent[1:]), *plain]
    lines = _head(head)
    for row in rows:
        name = f"**{row['arm']}**" if row["arm"] == METHOD else row["arm"]
        first = [name, f"{row['scale']:g}", _percent(row["binding"], True), _seeds(row["binding"])]
        others = [_percent(row[each], each == "bound") for each in percent[1:]]
        lines.append(_line([*first, *others, *(_plain(row[each]) for each in plain)]))
    return lines


def _effect_table(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    lines = _head(["what changes", "from", "to", "binding, points", "by seed", "bound, points", "confused, points"])
    for row in rows:
        cells = [row["effect"], row["from"], row["to"], _points(row["binding"]), _seeds(row["binding"], True)]
        lines.append(_line([*cells, _points(row["bound"]), _points(row["confused"])]))
    return lines


def _real_table(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    lines = _head(
        ["arm", "error, right references", "error, swapped", "swapped − right", "own map wins %", "own share %"]
    )
    for row in rows:
        errors = [_plain(row["right"]), _plain(row["swapped"]), _plain(row["swapped − right"], True)]
        lines.append(_line([row["arm"], *errors, _percent(row["map"], True), _percent(row["share"], False)]))
    return lines


def _head(names: Sequence[str]) -> list[str]:
    return [_line(names), _line(["---"] * len(names))]


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _percent(each: Mapping[str, Any] | None, interval: bool) -> str:
    if each is None:
        return "–"
    return f"{each['value']:.1%}".rstrip("%") + (f" [{100 * each['low']:.1f}, {100 * each['high']:.1f}]" * interval)


def _plain(each: Mapping[str, Any] | None, interval: bool = False) -> str:
    if each is None:
        return "–"
    return f"{each['value']:.3f}" + (f" [{each['low']:.3f}, {each['high']:.3f}]" * interval)


def _points(each: Mapping[str, Any] | None) -> str:
    if each is None:
        return "–"
    return f"{100 * each['value']:+.1f} [{100 * each['low']:+.1f}, {100 * each['high']:+.1f}]"


def _seeds(each: Mapping[str, Any] | None, signed: bool = False) -> str:
    if each is None:
        return "–"
    values = each["seeds"].values()
    return ", ".join("–" if v is None else f"{100 * v:+.1f}" if signed else f"{100 * v:.1f}" for v in values)
