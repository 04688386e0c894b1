"""The numbers of the READMEs and of docs/results.md are those of the ablation's own page, ablation.md, rounded."""

from __future__ import annotations

import re

import pytest

from ..support.paths import ROOT

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
    "background 1": "a background competitor, on stock weights",
    "the same, both at their own best scale": "a background competitor, on stock weights",
}
SUMMARY = (
    "merging alone, on stock weights",
    "further training, on two objects, under relevance",
    "both: the paper's method against plain IP-Adapter",
)


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.replace("*", "").strip().strip("|").split("|")]


def table(text: str, heading: str) -> list[dict[str, str]]:
    """The rows below the first line that begins with `heading`, by the names of their columns."""
    lines = text.splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith(heading))
    names, rows = cells(lines[start]), []
    for line in lines[start + 2 :]:
        if not line.startswith("|"):
            break
        rows.append(dict(zip(names, cells(line), strict=True)))
    return rows


@pytest.fixture(scope="module")
def measured() -> dict[int, str]:
    """ablation.md, where docs/results.md links to it: number of objects -> its section."""
    link = re.search(r"\(([^()]*ablation\.md)\)", RESULTS.read_text("utf-8"))
    assert link
    text = (RESULTS.parent / link[1]).read_text("utf-8")
    return {count: text.partition(f"\n## {count} objects\n")[2].partition("\n## ")[0] for count in OBJECTS}


def arms(section: str) -> dict[str, dict[str, str]]:
    """Measures by arm, at equal scale."""
    return {row["arm"]: row for row in table(section.partition("### At equal scale")[2], "| arm |")}


def changes(section: str, own_best: bool = False) -> dict[str, str]:
    """What a change adds to `bound`."""
    heading = "### The same, each arm at its own best scale" if own_best else "### What one change does, in points"
    return {row["what changes"]: row["bound"] for row in table(section.partition(heading)[2], "| what changes |")}


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


def test_what_merging_and_training_add(measured) -> None:
    rows = table(RESULTS.read_text("utf-8"), "| objects | scale |")
    assert [(row["objects"], row["scale"]) for row in rows] == [
        (str(n), s) for n in OBJECTS for s in ("same", "own best")
    ]
    for row in rows:
        exact = changes(measured[int(row["objects"])], row["scale"] == "own best")
        for cell, change in zip(list(row.values())[2:], SUMMARY, strict=True):
            agree(cell, exact[change])


def test_what_other_changes_add(measured) -> None:
    rows = table(RESULTS.read_text("utf-8"), "| change |")
    for begin, row in zip(CHANGES, rows, strict=True):
        assert row["change"].startswith(begin)
        for count in OBJECTS:
            agree(row[f"{count} objects"], changes(measured[count], "own best" in row["change"])[CHANGES[begin]])
