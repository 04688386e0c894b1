"""docs/ and the READMEs say what is: links lead somewhere, functions exist, quoted messages are in the code."""

from __future__ import annotations

import ast
import json
import re
from pathlib import Path

import pytest
from mip_adapter.launcher import commands

from ..support.paths import ROOT

HELP = ROOT / "web" / "docs"
DOCS = ROOT / "docs"
READMES = (ROOT / "README.md", ROOT / "README_zh.md")
OURS = sorted(path.name for path in ROOT.iterdir() if path.is_dir() and path.name[0] != "." and path.name != "output")
PAGES = [*sorted(ROOT.glob("*.md")), *(page for folder in OURS for page in sorted((ROOT / folder).rglob("*.md")))]
CODE = [path for path in ROOT.rglob("*.py") if not {"tests", "benchmarks", "docs"} & set(path.relative_to(ROOT).parts)]

# What helps when objects mix: a condition first, then what was shown to help (docs/results.md).
CURES = ["prompt", "weights", "sharpness"]
# In the same order wherever several are named: those, then what one can try.
ORDER = [*CURES, "image_mask", "seed", "weight", "unclaimed", "background", "region"]
CHINESE = {"提示词": "prompt", "权重": "weights", "种子": "seed"}
CURE_LISTS = {  # page -> the heading above its numbered list
    "README.md": "When objects mix",
    "README_zh.md": "对象混淆时",
    "docs/how-to.md": "Cures, in this order",
    "web/docs/MIPApply.md": "When objects mix",
    "web/docs/MIPApply/zh.md": "对象混淆时",
}
each_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))


def anchors(page: Path) -> set[str]:
    """GitHub's anchors of a page's headings."""
    headings = re.findall(r"^#+ (.+)$", page.read_text("utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def section(page: str, heading: str) -> str:
    """What stands below a heading, up to the next one."""
    text = (ROOT / page).read_text("utf-8")
    (below,) = re.findall(rf"^#+ {re.escape(heading)}$(.*?)(?=^#|\Z)", text, re.MULTILINE | re.DOTALL)
    return below


def cure(item: str) -> str:
    """The control that an item of a list is about: its first bold word."""
    found = re.search(r"\*\*([\w%]+)", item)
    word = found[1] if found else item
    return CHINESE.get(word, word.lower())


@each_page
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\((?!https?:|/)([^()\s]+(?:\([^()]*\)[^()\s]*)*)\)", page.read_text("utf-8")):
        path, _, anchor = target.replace("%20", " ").partition("#")
        help_page = HELP in page.parents  # whose links the frontend resolves from this folder, in every language
        file = (HELP if help_page else page.parent) / path if path else page
        assert file.exists(), f"{page.name} links to {target}"
        if anchor:
            assert anchor in anchors(file), f"{page.name} links to {target}"


@each_page
def test_languages_show_the_same_pictures(page: Path) -> None:
    """A page and its Chinese twin: README_zh.md, web/docs/<NodeId>/zh.md."""
    help_page = HELP in page.parents
    twin = page.with_suffix("") / "zh.md" if help_page else page.with_name(f"{page.stem}_zh.md")
    if twin.exists():
        ours, theirs = (
            re.findall(r"!\[[^\]]*\]\(([^()]+(?:\([^()]*\)[^()]*)*)\)", each.read_text("utf-8"))
            for each in (page, twin)
        )
        assert ours == theirs and ours


@pytest.mark.parametrize("page", READMES, ids=lambda page: page.name)
def test_readmes_are_short(page: Path) -> None:
    assert len(page.read_text("utf-8").splitlines()) <= 120


def test_the_lines_of_the_readme_fit_an_editor() -> None:
    """Tables and pictures cannot be wrapped; Chinese has no spaces to wrap at."""
    lines = READMES[0].read_text("utf-8").splitlines()
    assert not [line for line in lines if len(line) > 120 and not line.startswith(("|", "!["))]


@pytest.mark.parametrize("page", CURE_LISTS)
def test_cures_stand_in_one_order(page: str) -> None:
    items = re.findall(r"^\d+\. (.+)$", section(page, CURE_LISTS[page]), re.MULTILINE)
    assert [cure(item) for item in items] == CURES


def test_the_row_on_mixing_names_the_cures_in_that_order() -> None:
    (row,) = re.findall(r"^\| objects mix \|.+$", (DOCS / "troubleshooting.md").read_text("utf-8"), re.MULTILINE)
    assert re.findall(r"\*\*(\w+)\*\*", row) == CURES


def advice() -> dict[str, str]:
    """Sentences elsewhere that name several inputs to change, by where they stand."""
    pages = {
        "web/docs/MIPBindingReport.md": "What the advice refers to",
        "web/docs/MIPBindingReport/zh.md": "建议指的是什么",
    }
    notes = {
        path.name: " ".join(node["widgets_values"][0] for node in nodes if node["type"] == "MarkdownNote")
        for path in sorted((ROOT / "workflows").glob("*.json"))
        for nodes in [json.loads(path.read_text("utf-8"))["nodes"]]
    }
    (verdict,) = re.findall("What the verdict says: .+", notes["binding report and seed picker.json"])
    return {"verdict": verdict} | {page: section(page, heading) for page, heading in pages.items()}


@pytest.mark.parametrize("place", advice())
def test_advice_in_passing_goes_by_that_order(place: str) -> None:
    named = re.findall("|".join(ORDER[2:]), advice()[place].replace("种子", "seed"))
    assert len(named) > 2 and named == [each for each in ORDER if each in named]


def test_nothing_is_left_out() -> None:
    """Every workflow stands in both READMEs, in the table of the how-to and in the changelog, every node in both
    READMEs and the changelog, every command in the changelog."""
    texts = {
        name: re.sub(r"\s+", " ", (ROOT / name).read_text("utf-8"))
        for name in ("README.md", "README_zh.md", "CHANGELOG.md")
    }
    for path in (ROOT / "workflows").glob("*.json"):
        assert f"**{path.stem}**" in texts["README.md"] and f"**{path.stem}**" in texts["README_zh.md"], path
        assert f"| {path.stem} |" in (DOCS / "how-to.md").read_text("utf-8"), path
        assert path.stem in texts["CHANGELOG.md"], path
    missing = [
        name for name in commands.COMMANDS if f"`{name}`" not in texts["CHANGELOG.md"].rpartition("**Commands**")[2]
    ]
    assert not missing, f"CHANGELOG.md: {missing}"
    for readme, language in (("README.md", "en"), ("README_zh.md", "zh"), ("CHANGELOG.md", "en")):
        names = json.loads((ROOT / "locales" / language / "nodeDefs.json").read_text("utf-8"))
        missing = [each["display_name"] for each in names.values() if each["display_name"] not in texts[readme]]
        assert not missing, f"{readme}: {missing}"


def test_the_functions_of_the_architecture_exist() -> None:
    page = (ROOT / "docs" / "architecture.md").read_text("utf-8")
    rows = re.findall(r"^\|[^|]+\|([^|]+)\|$", page, re.MULTILINE)
    named = 0
    for row in rows:
        for file, functions in re.findall(r"`((?:\w+/)+\w+\.py)`(?:: ((?:`\w+`(?:, )?)+))?", row):
            tree = ast.parse((ROOT / file).read_text("utf-8"))
            known = {node.name for node in ast.walk(tree) if isinstance(node, (ast.FunctionDef, ast.ClassDef))}
            wanted = set(re.findall(r"`(\w+)`", functions))
            assert wanted <= known, f"{file}: {wanted - known}"
            named += len(wanted)
    assert named > 10


def test_quoted_messages_are_in_the_code() -> None:
    """Every **“message”** of troubleshooting.md, piece by piece between its “…”."""
    texts = [
        node.value
        for path in CODE
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    ]
    scripts = json.loads((ROOT / "locales" / "en" / "main.json").read_text("utf-8"))["mipAdapter"]
    said = "\n".join([*texts, *scripts])
    page = re.sub(r"\s+", " ", (ROOT / "docs" / "troubleshooting.md").read_text("utf-8"))
    messages = re.findall(r"\*\*“(.+?)”\*\*", page)
    assert len(messages) > 40
    for message in messages:
        pieces = [piece.strip(" .") for piece in message.split("…")]
        unknown = [piece for piece in pieces if len(piece) > 3 and piece not in said]
        assert not unknown, f"“{message}”: {unknown}"
