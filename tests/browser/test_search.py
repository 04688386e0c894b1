"""The search for nodes: what people type who do not know the names of ours."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import pytest

from ..support import frontend

WORDS = (
    *("multi", "reference", "subject", "character", "face", "style", "image prompt", "ip adapter", "multiple objects"),
    *("多对象", "多主体", "参考图"),
)
TOGGLE = """() => app.extensionManager.command.execute("Workspace.SearchBox.Toggle")"""
INPUT = ".p-dialog input[role=combobox]"
FOUND = """names => {
    const found = [...document.querySelectorAll(".p-dialog [role=option]")].map(each => each.innerText.trim())
    return names.every(name => found.some(each => each.startsWith(name)))
}"""
NONE_OF_OURS = """() =>
    ![...document.querySelectorAll(".p-dialog [role=option]")].some(each => each.innerText.includes("MIP"))
"""


@pytest.fixture(scope="module", params=["default", "v1 (legacy)"])
def search_box(whole_page, stocked, request) -> Iterator:
    """The page with the search box open."""
    if "search_aliases" not in httpx.get(f"{stocked.url}/object_info/MIPApply").json()["MIPApply"]:
        pytest.skip("this host searches names alone")
    whole_page.evaluate(frontend.SET, {"Comfy.NodeSearchBoxImpl": request.param})
    whole_page.evaluate(TOGGLE)
    whole_page.wait_for_selector(INPUT)
    yield whole_page
    whole_page.evaluate(TOGGLE)
    whole_page.wait_for_selector(INPUT, state="detached")
    whole_page.evaluate(frontend.SET, {"Comfy.NodeSearchBoxImpl": "default"})


@pytest.mark.parametrize("word", WORDS)
def test_a_search_finds_where_to_begin(search_box, word) -> None:
    search_box.locator(INPUT).fill("KSampler")
    search_box.wait_for_function(NONE_OF_OURS)
    search_box.locator(INPUT).fill(word)
    search_box.wait_for_function(FOUND, arg=["MIP Reference", "MIP Apply"])
