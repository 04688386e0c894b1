"""The button *add another object* of MIP Reference: chain, pictures and places."""

from __future__ import annotations

import json

from ..support import frontend
from ..support.open_workflow import (
    APPLIES,
    COUNT,
    OPEN,
    PRESS,
    QUEUED,
    SHOWN,
    TEMPLATE,
    WORKFLOW,
    overlap,
    queued_objects,
)
from ..support.paths import ROOT


def test_add_another_object_by_mouse_and_undo(page) -> None:
    before = page.evaluate(COUNT, "MIPReference")
    page.evaluate(frontend.FIT)
    x, y = page.evaluate("""() => {
        app.canvas.draw(true, true)  // which is when it learns what lies where
        const node = app.graph._nodes.find(node => node.type === "MIPReference")
        const button = node.widgets.find(widget => widget.type === "button")
        const [left, top] = node.pos
        const [x, y] = app.canvas.convertOffsetToCanvas([left + node.size[0] / 2, top + button.last_y + 10])
        const frame = app.canvas.canvas.getBoundingClientRect()
        return [frame.left + x, frame.top + y]
    }""")
    assert page.evaluate("at => document.elementFromPoint(...at).tagName", [x, y]) == "CANVAS"
    page.mouse.click(x, y)
    page.wait_for_function(f"() => ({COUNT})('MIPReference') === {before + 1}")
    prompt = page.evaluate(QUEUED)
    for objects in queued_objects(prompt):  # every MIP Apply takes the chain from the new last node
        assert [text for text, _ in objects] == ["cat", "cup", ""]
    boxes = page.evaluate("() => app.graph._nodes.map(node => [...node.getBounding()])")
    assert not [1 for i, a in enumerate(boxes) for b in boxes[i + 1 :] if overlap(a, b)]
    frontend.screenshot(page, "one more object")

    # When a prompt is queued the host looks for changes to undo: there must be none beside ours.
    page.evaluate("() => app.api.dispatchCustomEvent('promptQueued')")
    page.keyboard.press("Control+z")
    page.wait_for_function(f"() => ({COUNT})('MIPReference') === {before}")
    assert [len(objects) for objects in queued_objects(page.evaluate(QUEUED))] == [before] * APPLIES


def test_add_another_object_inside_a_subgraph_and_through_a_reroute(page) -> None:
    page.evaluate("""() => {
        const references = app.graph._nodes.filter(node => node.type === "MIPReference")
        const {node} = app.graph.convertToSubgraph(new Set(references))
        const link = app.graph.getLink(node.outputs[0].links[0])
        app.graph.createReroute([1150, 300], link)
        app.canvas.openSubgraph(node.subgraph, node)
    }""")
    page.evaluate(PRESS, "MIPReference")
    inside = page.evaluate("() => app.canvas.graph._nodes.map(node => node.type)")
    assert inside.count("MIPReference") == 3
    page.evaluate("() => app.canvas.setGraph(app.graph)")
    reference = next(node for node in page.evaluate(QUEUED).values() if node["class_type"] == "MIPReference")
    assert reference["inputs"]["text"] == "cat"
    applied = [node for node in page.evaluate(QUEUED).values() if node["class_type"] == "MIPApply"]
    assert len({node["inputs"]["references"][0] for node in applied}) == 1
    assert [[each["text"] for each in objects] for objects in page.evaluate(SHOWN)] == [["cat", "cup", ""]] * APPLIES


def test_add_another_object_draws_its_picture_where_the_others_do(page) -> None:
    """With pictures that no file holds, and nothing where the picture's node hangs on others."""
    page.evaluate(OPEN, json.loads((ROOT / "workflows" / f"{TEMPLATE}.json").read_text("utf-8")))
    page.evaluate(PRESS, "MIPReference")
    assert page.evaluate(COUNT, "MIPMiniatureObject") == 3
    prompt = page.evaluate(QUEUED)
    (apply,) = {each["inputs"]["references"][0] for each in prompt.values() if each["class_type"] == "MIPApply"}
    picture = prompt[prompt[apply]["inputs"]["image"][0]]
    assert picture["class_type"] == "MIPMiniatureObject" and picture["_meta"]["title"] == "Draw Miniature Object (MIP)"
    assert prompt[apply]["inputs"]["text"] == ""
    boxes = page.evaluate("() => app.graph._nodes.map(node => [...node.getBounding()])")
    assert not [1 for i, a in enumerate(boxes) for b in boxes[i + 1 :] if overlap(a, b)]
    _, y, _, height = page.evaluate("() => [...app.graph._groups.find(g => g.title.includes('References'))._bounding]")
    below = page.evaluate(
        "() => app.graph._nodes.filter(n => n.type === 'MIPReference').map(n => n.pos[1] + n.size[1])"
    )
    assert len(below) == 3 and all(y < each <= y + height for each in below)

    page.evaluate(OPEN, WORKFLOW)
    page.evaluate(SCALED_LAST)
    page.evaluate(PRESS, "MIPReference")
    assert page.evaluate(COUNT, "LoadImage") == 2 and page.evaluate(COUNT, "MIPReference") == 3


SCALED_LAST = """() => {
    const reference = app.graph._nodes.filter(node => node.type === "MIPReference").at(-1)
    const smaller = LiteGraph.createNode("ImageScaleBy")
    app.graph.add(smaller)
    app.graph._nodes.filter(node => node.type === "LoadImage").at(-1).connect(0, smaller, "image")
    smaller.connect(0, reference, "image")
}"""
