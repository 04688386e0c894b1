"""ComfyUI's frontend in a headless browser: opening it as a user finds it, and asking it what it shows.

With MIP_ARTIFACTS=FOLDER screenshots are left there.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from mip_adapter.miniature import demo

WORKFLOWS = sorted((Path(__file__).resolve().parents[1] / "workflows").glob("*.json"))

READY = "() => !!(window.app?.graph && window.LiteGraph?.registered_node_types?.MIPApply)"
SETTINGS = {  # nothing over the graph
    "Comfy.TutorialCompleted": True,
    "Comfy.Minimap.Visible": False,
    "Comfy.Graph.CanvasMenu": False,
    "Comfy.Graph.CanvasInfo": False,
    "LiteGraph.Canvas.MinFontSizeForLOD": 0,
}
SET = """async settings => {
    for (const [key, value] of Object.entries(settings)) await app.extensionManager.setting.set(key, value)
}"""
FOCUS = """() => app.extensionManager.command.execute("Workspace.ToggleFocusMode")"""
FIT = """async () => {
    const {graph} = app.canvas
    const boxes = [...graph._nodes.map(n => [...n.getBounding()]), ...graph._groups.map(g => [...g._bounding])]
    const left = Math.min(...boxes.map(b => b[0])), top = Math.min(...boxes.map(b => b[1]))
    const right = Math.max(...boxes.map(b => b[0] + b[2])), bottom = Math.max(...boxes.map(b => b[1] + b[3]))
    const {ds, canvas} = app.canvas
    const edge = document.querySelector(".side-tool-bar-container") ? [110, 130] : [40, 40]  // below the menus
    const [width, height] = [canvas.clientWidth - 40 - edge[0], canvas.clientHeight - 40 - edge[1]]
    ds.scale = Math.min(width / (right - left), height / (bottom - top))
    ds.offset = [edge[0] / ds.scale - left, edge[1] / ds.scale - top]
    app.canvas.setDirty(true, true)
}"""


def stock(server: Any) -> Any:
    """The server with a file, be it empty, for every name in the workflows, so that its validation finds them."""
    demo.prepare(server.base)
    for path in WORKFLOWS:
        for node in json.loads(path.read_text("utf-8"))["nodes"]:
            for model in node.get("properties", {}).get("models", ()):
                file = server.base / "models" / model["directory"] / model["name"]
                file.parent.mkdir(parents=True, exist_ok=True)
                file.touch()
    return server


def open_frontend(browser: Any, url: str, **settings: object) -> Any:
    """A page with the frontend loaded, as on a user's second visit (the first welcomes with a dialog)."""
    page = browser.new_page(viewport={"width": 1900, "height": 1000})
    page.set_default_timeout(120_000)  # a busy machine is not a failure
    page.goto(url)
    page.wait_for_function(READY)
    configure(page, **SETTINGS, **settings)
    return page


def configure(page: Any, **settings: object) -> None:
    """Change settings of the frontend and load it anew."""
    page.evaluate(SET, settings)
    page.reload()
    page.wait_for_function(READY)


def screenshot(page: Any, name: str, *, fit: bool = True) -> None:
    if folder := os.environ.get("MIP_ARTIFACTS"):
        if fit:
            page.evaluate(FIT)
        page.wait_for_timeout(2000)  # pictures load, the canvas draws
        Path(folder).mkdir(parents=True, exist_ok=True)
        page.screenshot(path=str(Path(folder) / f"{name}.png"))
