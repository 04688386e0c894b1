"""A workflow of four MIP Apply over one chain, open in the frontend: what is asked of its page."""

from __future__ import annotations

import json
from typing import Any

import httpx

from . import frontend
from .paths import ROOT

PACK = "ComfyUI-MIP-Adapter"
TEMPLATE = "start here - miniature"
APPLIES = 4  # MIP Apply in the workflow that most tests here open; all of them share one chain, a cat and a cup
WORKFLOW = json.loads((ROOT / "workflows" / "merge strategies side by side.json").read_text("utf-8"))
# The template folds most nodes; here they stand unfolded below the others, so that their widgets are drawn.
for _i, _node in enumerate(node for node in WORKFLOW["nodes"] if node["flags"]):
    _node.update(flags={}, pos=[400 * (_i % 6), 1200 + 700 * (_i // 6)])

OPEN = frontend.OPEN
TYPES = "() => app.graph._nodes.map(node => node.type)"
COUNT = "type => app.graph._nodes.filter(node => node.type === type).length"
# What objectsOf of web/js/chain.js says of every MIPApply, also inside subgraphs.
SHOWN = """async () => {
    const {objectsOf} = await import("/extensions/PACK/js/chain.js")
    const all = graph => graph.nodes.flatMap(node => node.subgraph ? all(node.subgraph) : [node])
    return all(app.graph).filter(node => node.comfyClass === "MIPApply").map(node => objectsOf(node))
}""".replace("PACK", PACK)
# A reroute between the first reference and the second.
REROUTED = """() => {
    const [first, second] = app.graph._nodes.filter(node => node.type === "MIPReference")
    const reroute = LiteGraph.createNode("Reroute")
    app.graph.add(reroute)
    first.connect(0, reroute, 0)
    reroute.connect(0, second, "references")
}"""
QUEUED = "async () => (await app.graphToPrompt()).output"
PRESS = """type => {
    const node = app.canvas.graph._nodes.filter(node => node.type === type).at(-1)
    node.widgets.find(widget => widget.type === "button").callback()
}"""
RUN = "() => { app.queuePrompt(0, 1) }"
TOAST = "words => [...document.querySelectorAll('.p-toast-message')].some(toast => toast.innerText.includes(words))"
UNPLUGGED = """() => {
    const apply = app.graph._nodes.find(node => node.type === "MIPApply")
    apply.disconnectInput(apply.inputs.findIndex(input => input.name === "references"))
}"""


def queued_objects(prompt: dict[str, Any]) -> list[list[tuple[str, str]]]:
    """For every MIPApply that the host would queue: text and file of its objects, first one first."""
    found = []
    for node in prompt.values():
        if node["class_type"] == "MIPApply":
            objects, at = [], node["inputs"].get("references")
            while at:
                reference = prompt[at[0]]["inputs"]
                objects.insert(0, (reference["text"], prompt[reference["image"][0]]["inputs"]["image"]))
                at = reference.get("references")
            found.append(objects)
    return found


def shown_objects(page) -> list[list[tuple[str, str]]]:
    """The same as the thumbnails show it."""
    return [
        [(each["text"], httpx.QueryParams(each["picture"])["filename"]) for each in objects]
        for objects in page.evaluate(SHOWN)
    ]


def overlap(a: list[float], b: list[float]) -> bool:
    """Of two boxes (x, y, width, height)."""
    return a[0] < b[0] + b[2] and b[0] < a[0] + a[2] and a[1] < b[1] + b[3] and b[1] < a[1] + a[3]
