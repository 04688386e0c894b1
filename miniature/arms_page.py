"""The arms' numbers as a page that says what they mean."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from .arms import METHOD, QUESTION
from .arms_table import is_sure
from .trained import SEEDS

LIMITS = (
    "What the miniature cannot tell about SDXL: its objects are flat shapes whose looks are two colours and a pattern, "
    "its words are twelve, its references are clean, its UNet is 350 times smaller and was trained by us on the same "
    "world that it is measured in. That training told the base where its captions' words belong (stage `places` of "
    "TRAINING.md), because words alone find their places late in so small a model; SDXL was told nothing of the kind, "
    "and how much of the relevance's use rests on it is not measured here: an unaided base is the ablation that is "
    "owed. The miniature can tell which part of the method moves binding where everything else is equal; how far that "
    "carries to photographs has to be measured there, by the same arms."
)


def markdown(results: Mapping[str, Any], settings: Mapping[str, Any]) -> str:
    share = "all prompts on every training seed" if settings["every_seed"] else "a third of them on each training seed"
    lines = [
        "# Arms: merging or training?",
        "",
        f"{settings['prompts']} prompts for each number of objects, {share}. Every prompt holds a pair of kinds that "
        "captions of the training never held together, and two-coloured looks that it never showed; one-coloured "
        f"ones, more than half, it did. {settings['steps']} steps of {settings['sampler']}, guidance "
        f"{settings['guidance']:g}; every arm has the same prompts, references and noise. Judged from pixels. In "
        "brackets: 95 % bootstrap intervals over prompts and training seeds.",
        "",
        "*Binding*: of the objects that are there, how many wear colours nearer to their own reference than to any "
        "other (chance is 1 / objects). *Bound*: of all objects asked for, how many are there and bound. *Clear*: of "
        "all, how many clearly wear their own colours; *confused*: of those that are there, another's. *Margin*: how "
        "much nearer, in mean absolute RGB difference. *Look error*: distance from the own look laid out in its "
        "pattern. *Sum* at scale s / objects is *uniform* at s, to the last digit: it has no best scale of its own.",
        *_missing(results, settings),
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


def _missing(results: Mapping[str, Any], settings: Mapping[str, Any]) -> list[str]:
    """What a reader must know before he believes the tables."""
    rows = [row for tables in results.values() for row in tables["equal"] + tables["best"]]
    few = sorted({row["arm"] for row in rows if row["seeds"] < len(SEEDS)})
    share = 1 if settings["every_seed"] else 1 / len(SEEDS)
    wanted = {row["arm"]: settings["prompts"] * row["seeds"] * share for row in rows}
    short = sorted({row["arm"] for row in rows if row["pictures"] < int(wanted[row["arm"]])})
    lines = [f"**Fewer than three training seeds**: {', '.join(few)}."] * bool(few)
    lines += [f"**Not finished**, tables hold what is there: {', '.join(short)}."] * bool(short)
    return ["", " ".join(lines)] if lines else []


def _verdict(objects: str, tables: Mapping[str, Any]) -> list[str]:
    """The open question, at both scales, in what is bound of all objects and of those that are there."""
    lines = []
    for scale, name in (
        ("At equal scale", "effects"),
        ("With each arm at its own best scale", "effects at best scales"),
    ):
        effects = {row["effect"]: row for row in tables[name]}
        if all(effect in effects and effects[effect]["bound"] and effects[effect]["binding"] for effect in QUESTION):
            merging, training, both = (_said(effects[effect]) for effect in QUESTION)
            lines.append(
                f"{scale} relevance in place of uniform shares changes stock weights by {merging}; training on two "
                f"objects, with a head but without relevance, by {training}; both together, from plain IP-Adapter to "
                f"the paper's method, by {both}."
            )
    return [f"**Merging or training?** With {objects}: {' '.join(lines)}"] if lines else []


def _said(effect: Mapping[str, Any]) -> str:
    def points(name: str) -> str:
        return _points(effect[name]) + ("" if is_sure(effect[name]) else ", not to be told from nothing")

    return f"{points('bound')} points of all objects bound ({points('binding')} of those that are there)"


def _arm_table(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    percent = ("binding", "bound", "clear", "confused", "present", "all present", "count right", "pattern")
    plain = ("margin", "look error", "CLIP-T", "CLIP-I")
    head = ["arm", "scale", "pictures", "binding %", "by seed", *(f"{name} %" for name in percent[1:]), *plain]
    lines = _head(head)
    for row in rows:
        name = f"**{row['arm']}**" if row["arm"] == METHOD else row["arm"]
        first = [
            name,
            f"{row['edge']}{row['scale']:g}",
            str(row["pictures"]),
            _percent(row["binding"], True),
            _seeds(row["binding"]),
        ]
        others = [_percent(row[each], each in ("bound", "clear")) for each in percent[1:]]
        lines.append(_line([*first, *others, *(_plain(row[each]) for each in plain)]))
    return lines


def _effect_table(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    more = ("bound", "clear", "confused")
    lines = _head(["what changes", "from", "to", "binding, points", "by seed", *(f"{name}, points" for name in more)])
    for row in rows:
        cells = [row["effect"], row["from"], row["to"], _points(row["binding"]), _seeds(row["binding"], True)]
        lines.append(_line([*cells, *(_points(row[name]) for name in more)]))
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
    values = each["by seed"].values()
    return ", ".join("–" if v is None else f"{100 * v:+.1f}" if signed else f"{100 * v:.1f}" for v in values)
