"""The numbers of docs/pool.md are those of the two pages of arms, rounded."""

from __future__ import annotations

from ..support.paths import ROOT
from ..support.tables import table
from .test_results_page import agree, arms, effects, section

PAGE = (ROOT / "docs" / "pool.md").read_text("utf-8")
MERGES = {  # rows of its first table -> how the pages of arms call the merge
    "uniform shares": "uniform",
    "each site: the paper's merge": "relevance",
    "the pool": "pool",
    "the pool, sharpness 3: the default": "pool, sharpness 3",
}
CHANGES = {  # rows of its second table -> how the pages of arms call the change
    "the default instead of uniform shares": "MIP Merge's default instead of uniform shares",
    "the default instead of the paper's merge": "MIP Merge's default instead of the paper's merge",
    "the pool instead of each site": "the pool instead of each site",
    "sharpness 3 instead of 1, the pool": "sharpness 3, the pool",
}
MEASURED = (ROOT / "docs" / "pool-measurements.md").read_text("utf-8")
PAGES = {"not taught": "ablation-unaided.md", "taught": "ablation.md"}
WEIGHTS = {"stock": "stock weights", "mip": "weights trained with relevance"}


def columns(heading: str, text: str = PAGE) -> list[tuple[str, str, str, str]]:
    """(row, column, cell, section of the page of arms) of a table.

    Its columns are “base, weights, number of objects”.
    """
    found = []
    for row in table(text, heading):
        name, *cells = row.items()
        for column, cell in cells:
            base, _, objects = column.split(", ")
            page = (ROOT / "docs" / PAGES[base]).read_text("utf-8")
            found.append((name[1], column, cell, section(page, int(objects))))
    return found


def test_what_each_merge_binds() -> None:
    cells = columns("| bound %")
    assert {row for row, *_ in cells} == set(MERGES)
    for row, column, cell, measured in cells:
        assert "[" in cell, "an interval is missing"
        agree(cell, arms(measured)[f"{column.split(', ')[1]} + {MERGES[row]}"]["bound %"])


def test_what_each_change_adds() -> None:
    cells = columns("| points of bound")
    assert {row for row, *_ in cells} == set(CHANGES)
    for row, column, cell, measured in cells:
        change = effects(measured)[f"{CHANGES[row]}, on {WEIGHTS[column.split(', ')[1]]}"]
        agree(cell.removesuffix(" ✓"), change["bound"])
        assert cell.endswith(" ✓") == (change["sure"] == "yes")


def test_what_unclaimed_adds() -> None:
    cells = columns("| unclaimed 1 adds", MEASURED)
    assert {row for row, *_ in cells} == {"bound", "present", "clear"}
    for row, column, cell, measured in cells:
        weights = WEIGHTS[column.split(", ")[1]]
        agree(cell, effects(measured)[f"unclaimed 1 beside MIP Merge's default, on {weights}"][row])


def test_how_often_all_four_are_there() -> None:
    every = arms(section((ROOT / "docs" / PAGES["taught"]).read_text("utf-8"), 4))
    default, unclaimed = (every[f"mip + pool, sharpness 3{more}"]["all present %"] for more in ("", ", unclaimed 1"))
    assert f"in {unclaimed} instead of 37.0 %" in MEASURED and f"without it in {default} %" in MEASURED
    how_to = (ROOT / "docs" / "how-to.md").read_text("utf-8")
    assert f"{float(unclaimed):.0f} instead of {float(default):.0f} % of the pictures" in how_to
