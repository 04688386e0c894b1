"""The ablation's results as a Markdown page that explains them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from ...miniature.judgement import CLEAR
from ...miniature.world_shapes import KINDS
from ...miniature.world_split import all_pairs
from ..miniature.trained import ALL, SEEDS
from .arms import BOTH, METHOD, NO_REFERENCES, QUESTION, TUNED_ON
from .table import COMPARED, LOOKS, SPLIT, Best, is_sure

RECIPE = (
    f"Muon at {ALL.matrix_rate:g} for matrices, a loss that counts {ALL.background:g} outside the objects, "
    f"{ALL.timesteps} noise levels, an average over the steps, {ALL.steps} steps, references in another pose and never "
    "mirrored"
)
_TAUGHT = (
    "What the miniature cannot tell about SDXL: its objects are flat shapes whose looks are one or two colours and "
    "a pattern, its words are twelve, its references are clean, its UNet is 350 times smaller and was trained by us "
    "on the same world that it is measured in. The last stage of that training told the base where its captions' "
    "words belong (`places` of miniature-training.md), by the relevance that the method merges with, read from other "
    "vectors. SDXL was told nothing of the kind. **And it matters**: on bases that were not told, the paper's merge "
    "adds less ([the pool](pool-measurements.md#pictures-of-the-unaided-base); [their arms](ablation-unaided.md)). "
    "There the words know their places at one resolution only, and the shares are nearly even. So the numbers say what "
    "merge and training do where the words know their places. Whether SDXL's words know theirs, *MIP Relevance "
    "Maps* and the object relevance score show on SDXL itself, and how far all this "
    "carries to photographs, only the same arms on photographs."
)
_UNAIDED = (
    "The unaided base is the shipped one whose cross-attentions were drawn anew and learnt again from the base's loss "
    "alone ([the pool](pool.md#which-sites-see)): nobody taught its words their places, as nobody taught SDXL's. It "
    "draws fewer objects than the shipped one. What the miniature cannot tell about SDXL besides: "
    "[the same page of the shipped base](ablation.md)."
)


class BasePage(NamedTuple):
    """What the pages of the two bases say otherwise.

    folder: where the lines and their plan.json lie in the repository.
    limits: what the base's numbers cannot tell.
    """

    title: str
    folder: str
    limits: str


PAGES = {
    "taught": BasePage("Arms: merging or training?", "research/ablation", _TAUGHT),
    "unaided": BasePage("Arms on a base that nobody taught", "research/ablation/unaided", _UNAIDED),
}


def markdown(results: Mapping[str, Any], settings: Mapping[str, Any]) -> str:
    """The page.

    results: by number of objects, from `table.summarise`.
    settings: of the lines: prompts by number of objects, every_seed, steps, sampler, guidance, precision, and base, one
        of `PAGES`.
    """
    lines = _introduction(results, settings)
    for objects, tables in results.items():
        lines += _section(objects, tables)
    return "\n".join([*lines, "", PAGES[settings["base"]].limits, ""])


def _introduction(results: Mapping[str, Any], settings: Mapping[str, Any]) -> list[str]:
    """How the numbers were made, and what each of them is."""
    share = "all of them on every training seed" if settings["every_seed"] else "a third of them on each training seed"
    pairs = len(all_pairs(len(KINDS), reserved=True))
    its = PAGES[settings["base"]]
    return [
        f"# {its.title}",
        "",
        f"Made by `python mip.py arms`. Every measured picture is a line of `{its.folder}/lines.jsonl.xz`; "
        f"unpacked as `output/arms/rows-0.jsonl`, with `{its.folder}/plan.json` beside as `plan.json`, they give "
        "this page by `python mip.py arms --report`, and the command goes on "
        f"from them. {_prompts(settings['prompts'])}, {share}; {settings['steps']} steps of "
        f"{settings['sampler']}, guidance {settings['guidance']:g}, {settings['precision']}. Every arm has the same "
        "prompts, references and noise. Training seeds are the adapters': they share one base, one set of encoders "
        "and one set of drawn scenes. Every prompt holds a pair of kinds that captions of the training never held "
        f"together, of which there are {pairs}, and two-coloured looks that it never showed; one-coloured ones, more "
        "than half, it did. The adapters *mip*, *uniform-trained*, *one-object-trained* and *head-only* go on from a "
        "finished *stock*, which has seen one object a picture only: what the training of *mip* adds is further steps "
        "as well as a second object; *one-object-trained* has the steps alone, but it started from a corrected *stock* "
        "and was trained in float32, the others in bf16. Their training is the paper's method by other numbers: "
        f"{RECIPE} ([training-recipe.md](training-recipe.md#the-miniature)).",
        "",
        "Judged from pixels. *Bound*: of all objects asked for, how many are there and wear colours nearer to their "
        "own reference than to any other: the measure of the question. *Binding*: the same of those that are there "
        "alone (chance is 1 / objects); arms that draw fewer objects draw the easier ones, so it flatters them. What "
        "*no references* binds is chance, times what is present: *bound* rewards an arm that ignores its references "
        "and draws all objects, so read it beside *no references*, and beside *clear*, which rewards no chance. *In "
        "all*: binding of the objects that every compared arm drew. *Clear*: of all, how many clearly wear their "
        f"own colours (mean absolute difference below {CLEAR:g}); *confused*: of those that are there, another's. "
        "*Present*: of all, how many are there; *all present*: pictures with all of them; *count right*: with as "
        "many objects as were asked for. *Margin*: how much nearer the own colours are than the nearest other's, in "
        "mean absolute RGB difference. *Look error*: difference from the own look laid out in its pattern. "
        "*Pattern*: of those that are there, whose pattern is read as their own. *CLIP-T, CLIP-I*: the formulas of "
        "the field with the miniature's own encoders, whole picture against prompt, and against the references; not "
        "to be compared with other models' numbers. *Sum* at scale s / objects is *uniform* at s, to the last "
        "digit: it has no best scale of its own.",
        "",
        "In brackets: 95 % bootstrap intervals over training seeds and over prompts within them: too wide where seeds "
        "are alike, too narrow where they differ much. *By kind pair*: over training seeds and pairs of kinds, each "
        f"with all its prompts; there are only {pairs}. A prompt that holds several counts with the first. "
        f"{len(QUESTION)} comparisons were the question, measured in *bound*; all others explore, and among so many "
        "some leave out zero by chance. A difference counts as sure if both intervals leave out zero and every "
        "training seed agrees.",
        "",
        "*Bound* is *present* times *binding*. *Through presence* and *through binding* are the two parts of an "
        "effect on *bound*: what each factor adds, in the mean of the two orders in which they can change (Shapley "
        "value). They add up to the effect.",
        "",
        f"Each arm's own best scale is the one that binds most of {TUNED_ON} objects of other prompts, with "
        f"training seed 0; intervals take it as given, though neighbouring scales differ little. {_zero(results)}"
        "≤ and ≥ mark the ends of the scales above 0. Arms that are not in those tables were not tuned. Effects "
        "between own best scales start from different scales, so they do not add up unless they share an arm.",
        *_missing(results, settings),
    ]


def _prompts(prompts: Mapping[str, int]) -> str:
    """How many there are, by number of objects."""
    if len(set(prompts.values())) == 1:
        return f"{next(iter(prompts.values()))} prompts for each number of objects"
    return ", ".join(f"{count} prompts of {objects}" for objects, count in prompts.items())


def _section(objects: str, tables: Mapping[str, Any]) -> list[str]:
    """All tables of one number of objects."""
    lines = ["", f"## {objects.capitalize()}", "", *_verdict(objects, tables)]
    for title, name in (("At equal scale", "equal"), ("Each at its own best scale", "best")):
        if tables[name]:
            lines += ["", f"### {title}", "", *_arm_table(tables[name])]
    for title, name in (
        ("What each arm adds to no references, in points", "gains"),
        ("The same, each arm at its own best scale", "gains at best scales"),
    ):
        if tables[name]:
            lines += ["", f"### {title}", "", *_gain_table(tables[name])]
    if tables["equal"]:
        lines += ["", "### By look, at equal scale, in %", "", BY_LOOK, "", *_look_table(tables["equal"])]
    for title, name in (
        ("What one change does, in points", "effects"),
        ("What one change does, each arm at its own best scale", "effects at best scales"),
    ):
        if tables[name]:
            lines += ["", f"### {title}", "", *_effect_table(tables[name], "best" in name)]
    if tables["scales"]:
        lines += [
            "",
            f"### Bound %, by scale, on other prompts ({TUNED_ON} objects), from which the best was chosen",
        ]
        lines += ["", *_scale_table(tables["scales"])]
        noise = "So few prompts choose with noise: an arm may bind more at the equal scale than at its best."
        lines += ["", noise + _nothing_gained(tables["best"])]
    if tables["real"]:
        lines += ["", "### Real scenes: whose looks does the model expect where, and do the maps know the places?"]
        lines += ["", REAL_SCENES, "", *_real_table(tables["real"])]
    return lines


BY_LOOK = (
    "Of a two-coloured reference the nearer colour counts, so by chance it is matched more often than a plain one: "
    "compare each arm with *no references* in the same column."
)
REAL_SCENES = (
    "Drawn scenes at noise levels 200, 400 and 600 of 1000, without guidance; positions that an object covers by more "
    "than half. *Swapped*: each object has the next one's reference. Merges that do not know who is where cannot tell "
    "one from the other, by symmetry. *Own map wins*: the own share is the largest; *own share*: its mean."
)


def _zero(results: Mapping[str, Any]) -> str:
    """That scale 0 is among the scales, if it was tried."""
    if not any(row["arm"] == NO_REFERENCES for tables in results.values() for row in tables["best"]):
        return ""
    return (
        "Scale 0 is among the choices: it is *no references*, and an arm that binds less at every scale above it has "
        "the pictures of *no references* there; *head on text* acts at every scale and has no 0. "
    )


def _missing(results: Mapping[str, Any], settings: Mapping[str, Any]) -> list[str]:
    """A warning if seeds or pictures are missing, else nothing."""
    every = [row for tables in results.values() for row in tables["equal"] + tables["best"]]
    few = sorted({row["arm"] for row in every if row["seeds"] < len(SEEDS)})
    share = 1 if settings["every_seed"] else 1 / len(SEEDS)
    short = []
    for objects, tables in results.items():
        rows = tables["equal"] + tables["best"] + tables["real"]
        wanted = {row["seeds"]: int(settings["prompts"].get(objects, 0) * row["seeds"] * share) for row in rows}
        if missing := sorted({row["arm"] for row in rows if row["pictures"] < wanted[row["seeds"]]}):
            all_of_them = len(missing) == len({row["arm"] for row in rows})
            short.append(f"{objects} ({'all arms' if all_of_them else _names(missing)})")
    lines = [f"**Fewer than {len(SEEDS)} training seeds**: {_names(few)}."] * bool(few)
    lines += [f"**Fewer pictures than prompts** so far, see there: {'; '.join(short)}."] * bool(short)
    return ["", " ".join(lines)] if lines else []


def _verdict(objects: str, tables: Mapping[str, Any]) -> list[str]:
    """The answer to the open question, at the equal scale and at the best scales, and what limits it."""
    lines = []
    for scale, name in (
        ("At equal scale", "effects"),
        ("With each arm at its own best scale", "effects at best scales"),
    ):
        effects = {row["effect"]: row for row in tables[name]}
        if all(effect.name in effects for effect in QUESTION):
            merging, training, both = (_said(effects[effect.name]) for effect in QUESTION)
            lines.append(
                f"{scale}, of all objects asked for, relevance in place of uniform shares adds {merging} on stock "
                f"weights; further training on two objects adds {training}; both together add {both} to plain "
                "IP-Adapter."
            )
    if not lines:
        return []
    return [f"**Merging or training?** With {objects}: {' '.join(lines)}", *_limits(tables)]


def _said(effect: Mapping[str, Any]) -> str:
    unsure = "" if is_sure(effect["bound"]) else " (not sure)"
    presence, binding = (f"{100 * effect[part]['value']:+.1f}" for part in SPLIT)
    return f"{_points(effect['bound'])} points{unsure} ({presence} through presence, {binding} through binding)"


def _limits(tables: Mapping[str, Any]) -> list[str]:
    """How the arms stand to drawing without references, which *bound* does not punish and *stock* suffers from."""
    gains = {row["to"][0]: row for row in tables["gains"]}
    arms = {row["arm"]: row for row in tables["equal"]}
    (plain,), (stock,) = BOTH.before, QUESTION[1].before
    if not {plain, stock} <= gains.keys() or NO_REFERENCES not in arms:
        return []
    drawn, alone = (_percent(arms[name]["present"], False) for name in (stock, NO_REFERENCES))
    return [
        "",
        f"What limits it, at equal scale: *{plain}* binds {_points(gains[plain]['bound'])} points against no "
        f"references at all. *{stock}* draws {drawn} % of the objects, the base alone {alone} %: a part of what the "
        "training adds is what *stock* had lost. Merging alone starts from *stock + uniform* and both together from "
        "*stock + concat*; *merging alone, against plain IP-Adapter* below is the one that adds up with the training.",
    ]


def _nothing_gained(rows: Sequence[Mapping[str, Any]]) -> str:
    """Which arms bind no more at any scale than without references."""
    names = [row["arm"] for row in rows if not row["scale"] and row["arm"] != NO_REFERENCES]
    return f" At no scale above 0 more than without references: {_names(names)}." if names else ""


def _arm_table(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    percent = ("bound", "binding", "clear", "confused", "present", "all present", "count right", "pattern")
    plain = ("margin", "look error", "CLIP-T", "CLIP-I")
    head = ["arm", "scale", "pictures", "bound %", "by seed", "by kind pair", *(f"{name} %" for name in percent[1:])]
    head += plain
    lines = _head(head)
    for row in rows:
        name = f"**{row['arm']}**" if row["arm"] == METHOD else row["arm"]
        first = [
            name,
            _scale(Best(row["scale"], row["edge"])),
            str(row["pictures"]),
            _percent(row["bound"], True),
            _seeds(row["bound"]),
            _pairs(row["bound"]),
        ]
        others = [_percent(row[each], each in ("binding", "clear", "present")) for each in percent[1:]]
        lines.append(_line([*first, *others, *(_plain(row[each]) for each in plain)]))
    return lines


def _look_table(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    lines = _head(["arm", *LOOKS])
    return lines + [_line([row["arm"], *(_percent(row[name], False) for name in LOOKS)]) for row in rows]


def _effect_table(rows: Sequence[Mapping[str, Any]], own_scales: bool) -> list[str]:
    lines = _head(["what changes", "from", "to", "bound", "by seed", "by kind pair", *SPLIT, *COMPARED[1:], "sure"])
    for row in rows:
        sides = [_names(row[side], row[f"scales {side}"] if own_scales else None) for side in ("from", "to")]
        others = (_points(row[name]) for name in COMPARED[1:])
        lines.append(_line([row["effect"], *sides, *_added(row), *others, _sure(row)]))
    return lines


def _gain_table(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    lines = _head(["arm", "scale", "bound", "by seed", "by kind pair", *SPLIT, "clear", "sure"])
    for row in rows:
        (scale,) = row["scales to"]
        lines.append(_line([row["to"][0], _scale(scale), *_added(row), _points(row["clear"]), _sure(row)]))
    return lines


def _added(row: Mapping[str, Any]) -> list[str]:
    """What an effect adds to *bound*, and its parts."""
    bound = row["bound"]
    return [_points(bound), _seeds(bound, True), _pairs(bound, True), *(_points(row[part]) for part in SPLIT)]


def _sure(row: Mapping[str, Any]) -> str:
    return "yes" if is_sure(row["bound"]) else "no"


def _scale_table(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    scales = sorted({scale for row in rows for scale in row["bound"]})
    lines = _head(["arm", *(f"{scale:g}" for scale in scales)])
    for row in rows:
        bound = (row["bound"].get(scale) for scale in scales)
        lines.append(_line([row["arm"], *("–" if each is None else f"{100 * each:.0f}" for each in bound)]))
    return lines


def _real_table(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    lines = _head(
        ["arm", "scenes", "error, right", "error, swapped", "swapped − right", "own map wins %", "own share %"]
    )
    for row in rows:
        # Only a merge by relevance knows where each object is. For the others swapping changes nothing.
        difference = _plain(row["swapped − right"], True) if row["map"] else "0, by symmetry"
        errors = [_plain(row["right"]), _plain(row["swapped"]), difference]
        maps = [_percent(row["map"], True), _percent(row["share"], False)]
        lines.append(_line([row["arm"], str(row["pictures"]), *errors, *maps]))
    return lines


def _names(arms: Sequence[str], scales: Sequence[Best] | None = None) -> str:
    """Names in italics, because some contain a comma; with the scales they are at."""
    if scales is None:
        return ", ".join(f"*{arm}*" for arm in arms)
    return ", ".join(f"*{arm}* at {_scale(own)}" for arm, own in zip(arms, scales, strict=True))


def _scale(own: Best) -> str:
    return f"{own.edge}{own.scale:g}"


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


def _pairs(each: Mapping[str, Any] | None, signed: bool = False) -> str:
    if each is None:
        return "–"
    low, high = 100 * each["low by pair"], 100 * each["high by pair"]
    return f"[{low:+.1f}, {high:+.1f}]" if signed else f"[{low:.1f}, {high:.1f}]"
