"""ComfyUI's frontend in a headless browser: opened as a user finds it, and asked what it shows.

If MIP_ARTIFACTS names a folder, screenshots are saved there.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from mip_adapter.docs import browser

DETAIL, FOCUS, OPEN, SET, WORKFLOWS = browser.DETAIL, browser.FOCUS, browser.OPEN, browser.SET, browser.WORKFLOWS
configure, open_frontend = browser.configure, browser.open_frontend

# The button that queues the workflow: inside the marked element, and on newer frontends that element itself.
RUN = 'button[data-testid="queue-button"], [data-testid="queue-button"] button'

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
CLOSE_SIDEBAR = """async () => {
    app.extensionManager.sidebarTab.activeSidebarTabId = null
    await new Promise(drawn => requestAnimationFrame(() => requestAnimationFrame(drawn)))
}"""


def stock(server: Any) -> Any:
    """The server, with a file for every name in the workflows."""
    browser.stock(server.base)
    return server


def screenshot(page: Any, name: str, *, fit: bool = True) -> None:
    if folder := os.environ.get("MIP_ARTIFACTS"):
        if fit:
            page.evaluate(FIT)
        page.wait_for_timeout(2000)  # for pictures to load and the canvas to draw
        Path(folder).mkdir(parents=True, exist_ok=True)
        page.screenshot(path=str(Path(folder) / f"{name}.png"))


def version(page: Any) -> tuple[int, ...]:
    """The frontend's, as (major, minor)."""
    return tuple(int(part) for part in page.evaluate("window.__COMFYUI_FRONTEND_VERSION__").split(".")[:2])
