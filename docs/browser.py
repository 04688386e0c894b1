"""Finds and starts a headless browser and opens ComfyUI's frontend in it, for docs/pictures.py and for the tests."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..commands import demo

WORKFLOWS = sorted((Path(__file__).resolve().parents[1] / "workflows").glob("*.json"))

CHROME_FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
CHROME_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome", "msedge")
CHROME_PLACES = (
    "/Applications/Google Chrome.app/Contents/MacOS/Google Chrome",
    r"C:\Program Files\Google\Chrome\Application\chrome.exe",
    r"C:\Program Files (x86)\Microsoft\Edge\Application\msedge.exe",
)
NO_CHROME = "No Chromium or Chrome on this machine: install one, or set CHROME_PATH."

SIZE = {"width": 1900, "height": 1000}
READY = "() => !!(window.app?.graph && window.LiteGraph?.registered_node_types?.MIPApply)"
DETAIL = "LiteGraph.Canvas.MinFontSizeForLOD"  # pixels; words that would be smaller are not drawn, 0: all are
SETTINGS = {  # so that nothing covers the graph
    "Comfy.TutorialCompleted": True,
    "Comfy.Minimap.Visible": False,
    "Comfy.Graph.CanvasMenu": False,
    "Comfy.Graph.CanvasInfo": False,
    DETAIL: 0,
}
SET = """async settings => {
    for (const [key, value] of Object.entries(settings)) await app.extensionManager.setting.set(key, value)
}"""
FOCUS = """() => app.extensionManager.command.execute("Workspace.ToggleFocusMode")"""
OPEN = "async workflow => { await app.loadGraphData(workflow) }"


def find_chrome() -> str | None:
    if given := os.environ.get("CHROME_PATH"):
        return given
    on_path = (shutil.which(name) for name in CHROME_NAMES)
    return next((path for path in (*on_path, *CHROME_PLACES) if path and Path(path).exists()), None)


@contextmanager
def launched(chrome: str) -> Iterator[Any]:
    """Playwright's Browser, running the Chromium at this path."""
    from playwright.sync_api import sync_playwright

    with (
        sync_playwright() as playwright,
        playwright.chromium.launch(executable_path=chrome, args=CHROME_FLAGS) as running,
    ):
        yield running


def stock(base: Path) -> None:
    """Puts a file for every name in the workflows into a server's base folder, so that validation finds them.

    Models are empty files.
    """
    demo.prepare(base)
    for path in WORKFLOWS:
        for node in json.loads(path.read_text("utf-8"))["nodes"]:
            for model in node.get("properties", {}).get("models", ()):
                file = base / "models" / model["directory"] / model["name"]
                file.parent.mkdir(parents=True, exist_ok=True)
                file.touch()
            if node["type"] == "MIPFaceAnalyserLoader":
                folder = base / "models" / "insightface" / "models" / node["widgets_values"][0]
                folder.mkdir(parents=True, exist_ok=True)
                (folder / "det_10g.onnx").touch()


def open_frontend(browser: Any, url: str, **settings: object) -> Any:
    """A page with the frontend loaded as on a user's second visit; the first one shows a welcome dialog."""
    page = browser.new_page(viewport=SIZE)
    page.set_default_timeout(120_000)  # long enough for a busy machine
    page.goto(url)
    page.wait_for_function(READY)
    configure(page, **{**SETTINGS, **settings})
    return page


def configure(page: Any, **settings: object) -> None:
    """Changes settings of the frontend and reloads it."""
    page.evaluate(SET, settings)
    page.reload()
    page.wait_for_function(READY)
