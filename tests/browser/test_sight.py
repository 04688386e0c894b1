"""What an artist sees of the shipped workflows: as the template list opens them on a laptop, and in Nodes 2.0."""

import json

import pytest

from ..support import frontend
from ..support.open_workflow import PACK, PRESS
from .test_workflows import MINIATURE, SHOWS_PICTURES, each_workflow, load, overlaps, sticks_out


def outside(boxes, frames) -> list:
    """Those of the boxes that lie in no frame, or across its border."""
    return [box for box in boxes if not any(overlaps([box, each]) and not sticks_out(box, each) for each in frames)]


# A template as its card opens it, and what is then drawn: all words, and the note's place in the window.
FIRST_SIGHT = """async ([pack, name]) => {
    const answer = await app.api.fetchApi(`/workflow_templates/${pack}/${encodeURIComponent(name)}.json`)
    await app.loadGraphData(await answer.json(), true, true, name, {openSource: "template"})
    for (let i = 0; i < 5; i++) await new Promise(requestAnimationFrame)
    const texts = [], {fillText} = CanvasRenderingContext2D.prototype
    CanvasRenderingContext2D.prototype.fillText = function (text, ...given) {
        texts.push(text)
        return fillText.call(this, text, ...given)
    }
    try {
        app.canvas.draw(true, true)
    } finally {
        CanvasRenderingContext2D.prototype.fillText = fillText
    }
    await new Promise(requestAnimationFrame)
    const {ds} = app.canvas
    return {
        texts,
        small: app.canvas.low_quality,
        words: ds.scale * LiteGraph.NODE_TEXT_SIZE,
        seen: app.graph._groups
            .map(({_bounding: [x, y, width]}) => [ds.convertOffsetToCanvas([x, y]), width * ds.scale]),
        threshold: app.ui.settings.settingsLookup[DETAIL].defaultValue,
        notes: app.graph._nodes.filter(node => node.type === "MarkdownNote").map(node => {
            const element = node.widgets[0].element
            const {left, top, right, bottom, height} = element.getBoundingClientRect()
            return {height, inside: left >= 0 && top >= 0 && right <= innerWidth && bottom <= innerHeight,
                shown: element.checkVisibility({visibilityProperty: true})}
        }),
    }
}""".replace("DETAIL", json.dumps(frontend.DETAIL))
LAPTOP = {"width": 1366, "height": 768}
OWN_DETAIL = 8  # the frontend's own threshold for words


@pytest.fixture(scope="module")
def laptop(stocked, browser):
    """A page as a laptop shows it, which draws words as every frontend does that nobody has set otherwise."""
    page = frontend.open_frontend(browser, stocked.url, **{frontend.DETAIL: OWN_DETAIL})
    page.set_viewport_size(LAPTOP)
    yield page
    page.evaluate(frontend.SET, {frontend.DETAIL: 0})
    page.close()


@each_workflow
def test_its_note_and_groups_are_readable_as_the_template_list_opens_it(laptop, path):
    sight = laptop.evaluate(FIRST_SIGHT, [PACK, path.stem])
    assert OWN_DETAIL == sight["threshold"] <= sight["words"] and not sight["small"]
    workflow = load(path)
    for group in workflow["groups"]:
        assert group["title"] in sight["texts"]
    assert "Read me" in sight["texts"]
    for (x, y), width in sight["seen"]:
        assert x >= 0 and y >= 0 and x + width <= LAPTOP["width"]
    assert sight["notes"] and all(note["shown"] and note["inside"] and note["height"] > 0 for note in sight["notes"])


# What Nodes 2.0 draw, by node; and where the groups then are.
DRAWN = """() => [...document.querySelectorAll(".lg-node[data-node-id]")].map(element => {
    const {x, y, width, height} = element.getBoundingClientRect()
    return [x, y, width - 2, height - 2]  // an edge may be shared
})"""
NOTES_LEFT_OUT = DRAWN.replace(
    ".map(", ".filter(each => app.graph.getNodeById(each.dataset.nodeId)?.type !== 'MarkdownNote').map("
)
FRAMES = """() => {
    const {ds, canvas} = app.canvas, {left, top} = canvas.getBoundingClientRect()
    return app.graph._groups.map(({_bounding: [x, y, width, height]}) => {
        const [atX, atY] = ds.convertOffsetToCanvas([x, y])
        return [left + atX, top + atY, width * ds.scale, height * ds.scale]
    })
}"""
UNTIL_STILL = f"""async () => {{
    for (let before = "", now = null; now !== before; ) {{
        before = now
        for (let i = 0; i < 10; i++) await new Promise(requestAnimationFrame)
        now = JSON.stringify(({DRAWN})())
    }}
}}"""
SETTLED = (1, 40)  # frontends whose Nodes 2.0 hide rarely used inputs; earlier ones drew every node with them


@pytest.fixture(scope="module")
def nodes_2_0(stocked, browser):
    page = frontend.open_frontend(browser, stocked.url)
    if frontend.version(page) < SETTLED:
        page.close()
        pytest.skip("this frontend's Nodes 2.0 are a first version")
    frontend.configure(page, **{"Comfy.VueNodes.Enabled": True})
    yield page
    page.evaluate(frontend.SET, {"Comfy.VueNodes.Enabled": False})
    page.close()


@each_workflow
def test_nothing_overlaps_in_nodes_2_0(nodes_2_0, path):
    workflow = load(path)
    nodes_2_0.evaluate(frontend.OPEN, workflow)
    nodes_2_0.evaluate(frontend.FIT)
    nodes_2_0.wait_for_function(f"count => ({DRAWN})().length === count", arg=len(workflow["nodes"]))
    frontend.screenshot(nodes_2_0, f"nodes 2.0 {path.stem}")
    assert not overlaps(nodes_2_0.evaluate(DRAWN))
    assert not outside(nodes_2_0.evaluate(NOTES_LEFT_OUT), nodes_2_0.evaluate(FRAMES))


def test_another_object_lies_in_the_group_in_nodes_2_0(nodes_2_0):
    nodes_2_0.evaluate(frontend.OPEN, load(MINIATURE))
    count = len(load(MINIATURE)["nodes"])
    nodes_2_0.wait_for_function(f"count => ({DRAWN})().length === count", arg=count)
    nodes_2_0.evaluate(PRESS, "MIPReference")
    nodes_2_0.evaluate(frontend.FIT)
    nodes_2_0.wait_for_function(f"count => ({DRAWN})().length === count", arg=count + 2)
    nodes_2_0.evaluate(UNTIL_STILL)  # a new node is drawn before it has its height
    frontend.screenshot(nodes_2_0, "nodes 2.0 one more object")
    assert not overlaps(nodes_2_0.evaluate(DRAWN))
    assert not outside(nodes_2_0.evaluate(NOTES_LEFT_OUT), nodes_2_0.evaluate(FRAMES))


# What the host sends while it samples, and when pictures are made; then the heights, and whether pictures are shown.
PICTURES = """async kinds => {
    const pen = new OffscreenCanvas(512, 512).getContext("2d")
    pen.fillRect(0, 0, 512, 512)
    const blob = await pen.canvas.convertToBlob({type: "image/png"})
    const body = new FormData()
    body.append("image", blob, "room for pictures.png")
    const file = await (await app.api.fetchApi("/upload/image", {method: "POST", body})).json()
    const shown = app.graph._nodes.filter(node => kinds.includes(node.type) && !node.flags.collapsed)
    for (const {id, type} of shown) {
        const run = {promptId: "p", jobId: "p", prompt_id: "p"}
        if (type === "KSampler") {
            const names = ["nodeId", "displayNodeId", "parentNodeId", "realNodeId"]
            const node = Object.fromEntries(names.map(name => [name, String(id)]))
            app.api.dispatchCustomEvent("b_preview_with_metadata", {blob, ...node, ...run})
        } else {
            const images = [{filename: file.name, subfolder: file.subfolder, type: file.type}]
            const [node, output] = [String(id), {images}]
            app.api.dispatchCustomEvent("executed", {node, display_node: node, output, ...run})
        }
    }
}"""
SEEN = """kinds => {
    app.canvas.setDirty(true, true)
    const shown = app.graph._nodes.filter(node => kinds.includes(node.type) && !node.flags.collapsed)
    return shown.every(node => LiteGraph.vueNodesMode
        ? document.querySelector(`.lg-node[data-node-id="${node.id}"] img`)?.complete
        : node.imgs?.length && node.imgs.every(image => image.complete))
}"""
HEIGHTS = """async kinds => {
    for (let i = 0; i < 20; i++) {
        app.canvas.setDirty(true, true)
        await new Promise(requestAnimationFrame)
    }
    return app.graph._nodes.filter(node => kinds.includes(node.type)).map(node => [node.type, node.size[1]])
}"""


@pytest.mark.parametrize("renderer", ["laptop", "nodes_2_0"])
def test_room_for_pictures(renderer, request):
    """No node of this workflow grows as pictures come, and none would if it were lower."""
    page, kinds = request.getfixturevalue(renderer), list(SHOWS_PICTURES)
    workflow = load(MINIATURE.with_name("regions.json"))
    for node in workflow["nodes"]:
        node["size"][1] = SHOWS_PICTURES.get(node["type"], node["size"][1])
    page.evaluate(frontend.OPEN, workflow)
    page.evaluate(frontend.FIT)
    page.evaluate(PICTURES, kinds)
    page.wait_for_function(SEEN, arg=kinds)
    frontend.screenshot(page, f"pictures in {renderer}")
    heights = page.evaluate(HEIGHTS, kinds)
    assert {kind for kind, _ in heights} == set(kinds)
    assert all(height <= SHOWS_PICTURES[kind] for kind, height in heights), heights
