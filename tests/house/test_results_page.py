"""The numbers of the READMEs and of docs/results.md are those of the ablation's own page, ablation.md, rounded."""

from __future__ import annotations

import re

import pytest

from ..support.paths import ROOT
from ..support.tables import table

RESULTS = ROOT / "docs" / "results.md"
OBJECTS = (2, 3, 4)
NUMBER = re.compile(r"[-+]?\d+(?:\.\d+)?")
# How the pages call an arm's weights, by how the cell begins -> how ablation.md calls them.
WEIGHTS = {
    "no references": "no references",
    "没有参考": "no references",
    "IP-Adapter": "stock",
    "stock": "stock",
    "MIP-Adapter": "mip",
    "mip": "mip",
    "one-object-trained": "one-object-trained",
    "uniform-trained": "uniform-trained",
}
CHANGES = {  # rows of docs/results.md -> how ablation.md calls the change, at equal scale unless it says otherwise
    "relevance in place of uniform shares, on uniform-trained": "merging, on weights trained without it",
    "relevance in place of uniform shares, on mip": "merging, on weights trained with it",
    "uniform-trained in place of stock": "further training, uniform merge",
    "700 further steps on one object": "further training, on one object, under relevance",
    "a second object in those steps": "a second object in that training",
    "the fusion head, trained alone": "the fusion head, trained alone",
    "sharpness 3": "sharper shares: sharpness 3",
    "sharpness 6": "sharpness 6, each site, on weights trained with relevance",
    "the pool in place of each site": "the pool instead of each site, on weights trained with relevance",
    "the pool with sharpness 6": "sharpness 6, the pool, on weights trained with relevance",
    "MIP Merge's default": "MIP Merge's default instead of the paper's merge, on weights trained with relevance",
    "background 1": "a background competitor, on stock weights",
    "the same, both at their own best scale": "a background competitor, on stock weights",
}
SUMMARY = {  # rows of docs/results.md's two tables of effects -> how ablation.md calls them
    "merging alone": "merging alone, on stock weights",
    "against plain": "merging alone, against plain IP-Adapter",
    "further training": "further training, on two objects, under relevance",
    "both": "both: the paper's method against plain IP-Adapter",
}
GUESS = {  # rows of the table on the paper's ablation
    "stock weights": "uniform shares instead of plain IP-Adapter, on stock weights",
    "uniform-trained weights": "uniform shares, on weights trained without relevance, against plain",
    "mip weights": "uniform shares, on weights trained with relevance, against plain",
}


@pytest.fixture(scope="module")
def measured() -> dict[int, str]:
    """ablation.md, where docs/results.md links to it: number of objects -> its section."""
    link = re.search(r"\(([^()]*ablation\.md)\)", RESULTS.read_text("utf-8"))
    assert link
    text = (RESULTS.parent / link[1]).read_text("utf-8")
    return {count: section(text, count) for count in OBJECTS}


def section(page: str, objects: int) -> str:
    """What a page of arms says of one number of objects."""
    return page.partition(f"\n## {objects} objects\n")[2].partition("\n## ")[0]


def arms(section: str) -> dict[str, dict[str, str]]:
    """Measures by arm, at equal scale."""
    return {row["arm"]: row for row in table(section.partition("### At equal scale")[2], "| arm |")}


def effects(section: str, own_best: bool = False) -> dict[str, dict[str, str]]:
    """What each change adds to each measure."""
    scale = "each arm at its own best scale" if own_best else "in points"
    rows = table(section.partition(f"### What one change does, {scale}")[2], "| what changes |")
    return {row["what changes"]: row for row in rows}


def changes(section: str, own_best: bool = False) -> dict[str, str]:
    """What a change adds to `bound`."""
    return {name: row["bound"] for name, row in effects(section, own_best).items()}


def gains(section: str) -> dict[str, str]:
    """What each arm adds to the `bound` of no references, at the same scale."""
    rows = table(section.partition("### What each arm adds to no references")[2], "| arm | scale |")
    return {row["arm"]: row["bound"] for row in rows}


def arm(weights: str, merge: str) -> str:
    known = max((begin for begin in WEIGHTS if weights.startswith(begin)), key=len)
    kind = re.match(r"[a-z]+", merge)
    sharp = ", sharpness 3" if merge.endswith("3") else ""
    return WEIGHTS[known] + (f" + {kind[0]}{sharp}" if kind else "")


def agree(shown: str, exact: str) -> None:
    """Every number shown is the exact one, rounded; an interval may be left out."""
    ours, theirs = NUMBER.findall(shown.replace("−", "-")), NUMBER.findall(exact.replace("−", "-"))
    assert len(ours) in (1, len(theirs)), f"{shown} is {exact}"
    for one, other in zip(ours, theirs, strict=False):
        step = 10.0 ** -len(one.partition(".")[2])
        assert abs(float(one) - float(other)) <= step / 2 + 1e-9, f"{shown} is {exact}"


@pytest.mark.parametrize(
    ("page", "heading"), [("README.md", "| weights | merge |"), ("README_zh.md", "| 权重 | 合并 |")]
)
def test_the_table_of_the_readme(measured, page: str, heading: str) -> None:
    rows = table((ROOT / page).read_text("utf-8"), heading)
    assert 3 < len(rows) <= 8
    for weights, merge, *shown in (list(row.values()) for row in rows):
        for count, cell in zip(OBJECTS, shown, strict=True):
            assert "[" in cell, "an interval is missing"
            agree(cell, arms(measured[count])[arm(weights, merge)]["bound %"])


def test_two_objects(measured) -> None:
    rows = table(RESULTS.read_text("utf-8"), "| weights | merge | bound % |")
    assert len(rows) == 10
    names = {"bound %": "bound %", "of those present %": "binding %", "clear %": "clear %", "present %": "present %"}
    for row in rows:
        for ours, theirs in names.items():
            agree(row[ours], arms(measured[2])[arm(row["weights"], row["merge"])][theirs])


def test_three_and_four_objects(measured) -> None:
    rows = table(RESULTS.read_text("utf-8"), "| weights | merge | bound %, 3 objects |")
    assert len(rows) == 10
    for row in rows:
        for count in (3, 4):
            agree(row[f"bound %, {count} objects"], arms(measured[count])[arm(row["weights"], row["merge"])]["bound %"])


@pytest.mark.parametrize(
    ("heading", "own_best"), [("| objects | change | bound |", False), ("| objects | change | from scale |", True)]
)
def test_what_merging_and_training_add(measured, heading: str, own_best: bool) -> None:
    rows = table(RESULTS.read_text("utf-8"), heading)
    assert [(row["objects"], row["change"]) for row in rows] == [
        (str(n), change) for n in OBJECTS for change in SUMMARY
    ]
    for row in rows:
        exact = effects(measured[int(row.pop("objects"))], own_best)[SUMMARY[row.pop("change")]]
        for side in ("from", "to") if own_best else ():
            assert exact[side].endswith(f" at {row.pop(f'{side} scale')}")
        assert row.keys() <= exact.keys() and len(row) >= 3
        for name, shown in row.items():
            agree(shown, exact[name])


def test_what_the_papers_ablation_may_have_compared(measured) -> None:
    rows = table(RESULTS.read_text("utf-8"), "| uniform shares on |")
    assert [row["uniform shares on"] for row in rows] == list(GUESS)
    for row in rows:
        for count in OBJECTS:
            agree(row[f"{count} objects"], changes(measured[count])[GUESS[row["uniform shares on"]]])


def test_what_each_setting_adds_to_no_references(measured) -> None:
    text = RESULTS.read_text("utf-8").partition("### What each setting adds to no references")[2]
    rows = table(text, "| weights | merge |")
    assert len(rows) == 9
    for row in rows:
        for count in OBJECTS:
            agree(row[f"{count} objects"], gains(measured[count])[arm(row["weights"], row["merge"])])


def test_numbers_in_sentences(measured) -> None:
    """Those of docs/results.md that stand outside of its tables."""
    text = " ".join(RESULTS.read_text("utf-8").replace("−", "-").split())
    listed = {
        "with 2, 3 and 4 objects (gain of": [gains(measured[count])["stock + concat"] for count in OBJECTS],
        "with 2, 3 and 4 objects. - **the pool**": [
            effects(measured[count])["sharper shares: sharpness 3"]["by kind pair"] for count in OBJECTS
        ],
    }
    for end, cells in listed.items():
        assert f"{', '.join(cells)} {end}" in text
    present, stock = ({n: arms(measured[n])[name] for n in OBJECTS} for name in ("no references", "stock + relevance"))
    stock_three, base_three = re.findall(r"with three, (\d+) % against (\d+) %", text)[0]
    agree(stock_three, stock[3]["present %"])
    agree(base_three, present[3]["present %"])
    bound, clear = re.findall(r"(\d+) % \*bound\*, (\d+) % \*clear\*", text)[0]
    method = arms(measured[2])["mip + relevance"]
    agree(bound, method["bound %"])
    agree(clear, method["clear %"])
    (brought_back,) = re.findall(r"lost objects at equal scale: present ([^(]+) \(", text)
    agree(brought_back, effects(measured[2])["a background competitor, on stock weights"]["present"])


def test_whose_best_scale_is_none_at_all(measured) -> None:
    """And what *clear* says of it: docs/results.md, below the table of own best scales."""
    ignoring = {n: set() for n in OBJECTS}
    for n in OBJECTS:
        rows = table(measured[n].partition("### Each at its own best scale")[2], "| arm | scale |")
        ignoring[n] = {row["arm"] for row in rows if row["scale"] == "0"} - {"no references"}
    assert ignoring == {
        2: {"stock + concat", "stock + uniform", "mip + uniform"},
        3: {"stock + uniform"},
        4: {"stock + concat", "stock + uniform"},
    }
    text = " ".join(RESULTS.read_text("utf-8").split())
    with_them, without = re.findall(r"two objects, (\d+) % against (\d+) %", text)[0]
    agree(with_them, arms(measured[2])["stock + concat"]["clear %"])
    agree(without, arms(measured[2])["no references"]["clear %"])


def test_what_the_pages_call_sure_is_sure(measured) -> None:
    """And what they call unsure is not. The words are those of docs/results.md; “sure” is the page's own column."""
    sure = {n: {name: row["sure"] for name, row in effects(measured[n]).items()} for n in OBJECTS}
    assert [sure[n]["sharper shares: sharpness 3"] for n in OBJECTS] == ["no", "no", "yes"]
    assert {sure[n]["a background competitor, on stock weights"] for n in OBJECTS} == {"no"}
    assert {sure[n][name] for n in OBJECTS for name in SUMMARY.values()} == {"yes"}
    for n, larger in ((2, "through presence"), (4, "through binding")):
        row = effects(measured[n])[SUMMARY["further training"]]
        parts = {part: float(NUMBER.findall(row[part])[0]) for part in ("through presence", "through binding")}
        assert max(parts, key=lambda part: parts[part]) == larger
    low, high = (
        float(each) for each in NUMBER.findall(effects(measured[2])[SUMMARY["further training"]]["through binding"])[1:]
    )
    assert low < 0 < high


def test_what_other_changes_add(measured) -> None:
    rows = table(RESULTS.read_text("utf-8"), "| change |")
    for begin, row in zip(CHANGES, rows, strict=True):
        assert row["change"].startswith(begin)
        for count in OBJECTS:
            agree(row[f"{count} objects"], changes(measured[count], "own best" in row["change"])[CHANGES[begin]])
