"""docs/ and the READMEs say what is: links lead somewhere, functions exist, quoted messages are in the code."""

from __future__ import annotations

import ast
import json
import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").glob("*.md")), *sorted((ROOT / "web").rglob("*.md"))]
HELP = ROOT / "web" / "docs"
CODE = [path for path in ROOT.rglob("*.py") if not {"tests", "benchmarks", "docs"} & set(path.relative_to(ROOT).parts)]

each_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))


def anchors(page: Path) -> set[str]:
    """GitHub's anchors of a page's headings."""
    headings = re.findall(r"^#+ (.+)$", page.read_text("utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


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


def test_nothing_is_left_out() -> None:
    """Every workflow stands in both READMEs' tables and in the changelog, every command and node in the changelog."""
    texts = {
        name: re.sub(r"\s+", " ", (ROOT / name).read_text("utf-8"))
        for name in ("README.md", "README_zh.md", "CHANGELOG.md")
    }
    for path in (ROOT / "workflows").glob("*.json"):
        assert f"| {path.stem} |" in texts["README.md"] and f"| {path.stem} |" in texts["README_zh.md"], path
        assert path.stem in texts["CHANGELOG.md"], path
    missing = [
        name
        for name in sys.modules["mip"].COMMANDS
        if f"`{name}`" not in texts["CHANGELOG.md"].rpartition("**Commands**")[2]
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
        for file, functions in re.findall(r"`(\w+/\w+\.py)`(?:: ((?:`\w+`(?:, )?)+))?", row):
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
    said = "\n".join(texts)
    page = re.sub(r"\s+", " ", (ROOT / "docs" / "troubleshooting.md").read_text("utf-8"))
    messages = re.findall(r"\*\*“(.+?)”\*\*", page)
    assert len(messages) > 40
    for message in messages:
        pieces = [piece.strip(" .") for piece in message.split("…")]
        unknown = [piece for piece in pieces if len(piece) > 3 and piece not in said]
        assert not unknown, f"“{message}”: {unknown}"
