"""The frontend with a workflow open."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from ..support import frontend
from ..support.open_workflow import OPEN, PACK, WORKFLOW


@pytest.fixture(scope="module")
def stocked(server):
    return frontend.stock(server)


@pytest.fixture(scope="module")
def whole_page(stocked, browser) -> Iterator:
    page = frontend.open_frontend(browser, stocked.url)
    yield page
    page.close()


@pytest.fixture
def page(whole_page) -> Iterator:
    """The frontend with WORKFLOW open; what our scripts complain of fails the test."""
    complaints: list[str] = []
    whole_page.on("pageerror", lambda error: complaints.append(f"{error}\n{error.stack}"))
    whole_page.on("console", lambda said: complaints.append(said.text) if said.type == "error" else None)
    whole_page.evaluate(frontend.CLOSE_SIDEBAR)  # a help page that an earlier test opened lies over the canvas
    whole_page.evaluate(OPEN, WORKFLOW)
    yield whole_page
    assert not [each for each in complaints if PACK in each or "MIP-Adapter" in each]
