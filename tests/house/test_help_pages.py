"""Every node has a help page that the frontend finds, in every language: named as the node, with a picture of it, and
speaking of every input and output."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from ..support.loops import complete
from ..support.newer import absent
from ..support.paths import ROOT

DOCS = ROOT / "web" / "docs"
LANGUAGES = sorted(path.name for path in (ROOT / "locales").iterdir())
PICTURE = re.compile(r"!\[[^\]]+\]\((images/[^)]+)\)")


@pytest.fixture(scope="module")
def schemas(host) -> list:
    from mip_adapter.nodes import extension

    return [node.define_schema() for node in complete(extension().get_node_list())]


def pages(language: str) -> dict[str, Path]:
    """By node."""
    if language == "en":
        return {path.stem: path for path in DOCS.glob("*.md")}
    return {path.parent.name: path for path in DOCS.glob(f"*/{language}.md")}


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_node_has_a_page_that_explains_it(schemas, language) -> None:
    names = json.loads((ROOT / "locales" / language / "nodeDefs.json").read_text("utf-8"))
    found = pages(language)
    assert set(found) == {schema.node_id for schema in schemas} | absent()
    wrong = []
    for schema in schemas:
        text = found[schema.node_id].read_text("utf-8")
        title = names[schema.node_id]["display_name"]
        if text.splitlines()[0] != f"# {title}":
            wrong.append(f"{schema.node_id}: its title must be “{title}”")
        sockets = [
            *(each.id for each in schema.inputs),
            *(each.display_name or each.io_type for each in schema.outputs),
        ]
        bold = "\n".join(re.findall(r"\*\*(.+?)\*\*", text))
        if missing := [name for name in sockets if not re.search(rf"\b{re.escape(name)}\b", bold)]:
            wrong.append(f"{schema.node_id}: it does not mention {missing}")
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_page_shows_its_node(language) -> None:
    """Pictures: python mip.py pictures."""
    for node, path in pages(language).items():
        assert f"images/{node}.jpg" in PICTURE.findall(path.read_text("utf-8")), path


def test_the_pictures_are_small_and_used() -> None:
    shown = {
        name
        for language in LANGUAGES
        for path in pages(language).values()
        for name in PICTURE.findall(path.read_text("utf-8"))
    }
    files = {path.relative_to(DOCS).as_posix(): path.stat().st_size for path in (DOCS / "images").iterdir()}
    assert set(files) == shown
    assert not {name: size for name, size in files.items() if size > 60_000}
