"""The pack as a user meets it in the real frontend: templates, Run, help, the scripts of web/js, blueprints, Chinese.

With MIP_ARTIFACTS=FOLDER screenshots are left there (frontend.py).
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from ..support import frontend
from ..support.paths import ROOT
from ..support.queueing import run

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
QUEUED = "async () => (await app.graphToPrompt()).output"
PRESS = """type => {
    const node = app.canvas.graph._nodes.filter(node => node.type === type).at(-1)
    node.widgets.find(widget => widget.type === "button").callback()
}"""


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


# ---- first steps ----


def test_a_template_runs_and_its_picture_brings_the_workflow_back(page, stocked) -> None:
    page.evaluate("() => app.graph.clear()")
    page.evaluate("""() => app.extensionManager.command.execute("Comfy.BrowseTemplates")""")
    page.get_by_text(PACK, exact=True).first.dispatch_event("click")
    card = page.get_by_test_id(f"template-workflow-{TEMPLATE}")
    card.wait_for(state="attached")
    cards = page.locator('[data-testid^="template-workflow-"]').evaluate_all("all => all.map(e => e.dataset.testid)")
    ours = {path.stem for path in (ROOT / "workflows").glob("*.json")}
    listed = [name for each in cards if (name := each.removeprefix("template-workflow-")) in ours]
    assert set(listed) == ours and listed[0] == TEMPLATE and listed.index("regions") == 3
    card.dispatch_event("click")
    page.wait_for_function("() => app.graph._nodes.some(node => node.type === 'MIPApply')")

    page.locator(frontend.RUN).first.dispatch_event("click")
    page.wait_for_function(DONE, timeout=240_000)
    pictures = page.evaluate(ARRIVED)
    assert len(pictures) == 2 + 4 + 4 * 3  # drawn, made, and the maps of two objects
    for picture in pictures:
        content = httpx.get(f"{stocked.url}/view", params=picture, timeout=60).content
        assert content.startswith((b"\x89PNG", b"\xff\xd8"))
    frontend.screenshot(page, "template after Run")

    before = page.evaluate(TYPES)
    saved = next(picture for picture in pictures if picture["type"] == "output")
    page.evaluate("() => app.graph.clear()")
    page.evaluate(DROP, saved)
    page.wait_for_function("() => app.graph._nodes.length > 0")
    assert sorted(page.evaluate(TYPES)) == sorted(before)


DONE = """() => {
    const nodes = app.graph._nodes.filter(node => ["SaveImage", "MIPMiniatureObject"].includes(node.type))
    return nodes.length === 4 && nodes.every(node => app.nodeOutputs[node.id]?.images?.length)
}"""
ARRIVED = "() => Object.values(app.nodeOutputs).flatMap(output => output.images ?? [])"
DROP = """async picture => {
    const file = await (await fetch("/api/view?" + new URLSearchParams(picture))).blob()
    const dataTransfer = new DataTransfer()
    dataTransfer.items.add(new File([file], "picture.png", {type: "image/png"}))
    app.canvas.canvas.dispatchEvent(new DragEvent("drop", {dataTransfer, bubbles: true, cancelable: true}))
}"""


def open_help(page, kind: str) -> Any:
    page.evaluate("kind => app.canvas.selectNode(app.graph._nodes.find(node => node.type === kind))", kind)
    page.get_by_test_id("info-button").first.dispatch_event("click")
    return page.locator(".node-help-content")


def test_the_help_page_opens(page) -> None:
    text = open_help(page, "MIPApply")
    text.get_by_text("Gives a model its references.").wait_for()
    see_pictures(page)
    frontend.screenshot(page, "help", fit=False)
    open_help(page, "MIPReference").get_by_text("One object: its pictures").wait_for()
    assert see_pictures(page) == 2


def see_pictures(page) -> int:
    """Wait for the help page's pictures; how many they are."""
    page.wait_for_function("""() => {
        const all = [...document.querySelectorAll(".node-help-content img")]
        return all.length && all.every(e => e.complete && e.naturalWidth)
    }""")
    return page.locator(".node-help-content img").count()


def test_every_picture_of_the_help_is_served(stocked) -> None:
    for path in (ROOT / "web" / "docs" / "images").iterdir():
        answer = httpx.get(f"{stocked.url}/extensions/{PACK}/docs/images/{path.name}", timeout=60)
        assert answer.content == path.read_bytes(), path


def test_pictures_are_made_by_a_command(stocked, browser, tmp_path) -> None:
    from mip_adapter.docs.pictures import Maker
    from PIL import Image

    page = frontend.open_frontend(browser, stocked.url)
    maker = Maker(page, tmp_path)
    for name in ("MIPFusionHead", "MIPMerge", "chain"):  # alone, in a workflow, several nodes
        maker.node(name)
    assert maker.workflow("two objects (base)")  # of the others this one needs no run
    page.close()
    sizes = {path.stem: Image.open(path).size for path in tmp_path.rglob("*.jpg")}
    assert set(sizes) == {"MIPFusionHead", "MIPMerge", "chain", "two objects (base)"}
    assert sizes["two objects (base)"][0] == 960 and all(min(size) > 100 for size in sizes.values())


# ---- add another object ----


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


def overlap(a: list[float], b: list[float]) -> bool:
    return a[0] < b[0] + b[2] and b[0] < a[0] + a[2] and a[1] < b[1] + b[3] and b[1] < a[1] + a[3]


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


# ---- thumbnails ----

REROUTED = """() => {
    const [first, second] = app.graph._nodes.filter(node => node.type === "MIPReference")
    const reroute = LiteGraph.createNode("Reroute")
    app.graph.add(reroute)
    first.connect(0, reroute, 0)
    reroute.connect(0, second, "references")
}"""
BYPASSED = """() => { app.graph._nodes.filter(node => node.type === "MIPReference")[1].mode = 4 }"""
THIRD = """mode => {
    const [, second] = app.graph._nodes.filter(node => node.type === "MIPReference")
    const third = LiteGraph.createNode("MIPReference")
    app.graph.add(third)
    third.widgets.find(widget => widget.name === "text").value = "third"
    app.graph._nodes.find(node => node.type === "LoadImage").connect(0, third, "image")
    for (const apply of app.graph._nodes.filter(node => node.type === "MIPApply")) third.connect(0, apply, "references")
    second.connect(0, third, "references")
    second.mode = mode
}"""
SCALED = """() => {
    const loader = app.graph._nodes.find(node => node.type === "LoadImage")
    const reference = app.graph._nodes.find(node => node.type === "MIPReference")
    const smaller = LiteGraph.createNode("ImageScaleBy")
    app.graph.add(smaller)
    loader.connect(0, smaller, "image")
    smaller.connect(0, reference, "image")
}"""
NESTED = """() => {
    const chain = app.graph._nodes.filter(node => ["MIPReference", "LoadImage"].includes(node.type))
    const {node} = app.graph.convertToSubgraph(new Set(chain))
    const apply = app.graph._nodes.filter(node => node.type === "MIPApply")
    app.graph.convertToSubgraph(new Set([node, apply[0]]))
}"""


@pytest.mark.parametrize(
    "change", ["() => {}", REROUTED, BYPASSED, NESTED], ids=["plain", "reroute", "bypass", "nested"]
)
def test_thumbnails_show_what_the_host_queues(page, change) -> None:
    page.evaluate(change)
    queued = queued_objects(page.evaluate(QUEUED))
    assert queued and all(queued)
    assert sorted(shown_objects(page)) == sorted(queued)


@pytest.mark.parametrize("mode, left", [(4, ["cat", "third"]), (2, ["third"])], ids=["bypass", "mute"])
def test_one_object_is_left_out(page, mode: int, left: list[str]) -> None:
    """As docs/how-to.md says it: bypassing hands the chain on, muting cuts off what comes before."""
    page.evaluate(THIRD, mode)
    assert [[text for text, _ in objects] for objects in queued_objects(page.evaluate(QUEUED))] == [left] * APPLIES
    assert [[text for text, _ in objects] for objects in shown_objects(page)] == [left] * APPLIES


def test_thumbnails_look_through_other_image_nodes(page) -> None:
    before = shown_objects(page)
    page.evaluate(SCALED)
    assert shown_objects(page) == before


SOCKETS = """() => app.graph._nodes.find(node => node.type === "MIPSeveralReferences").inputs
    .map(input => input.name).filter(name => name.startsWith("pictures."))"""
ADD_SEVERAL = """() => {
    const several = LiteGraph.createNode("MIPSeveralReferences")
    app.graph.add(several)
    several.widgets.find(widget => widget.name === "names").value = "cat\\ncup"
    const applies = app.graph._nodes.filter(node => node.type === "MIPApply")
    for (const apply of applies) several.connect(0, apply, "references")
}"""
CONNECT_PICTURE = """number => {
    const several = app.graph._nodes.find(node => node.type === "MIPSeveralReferences")
    const loader = app.graph._nodes.filter(node => node.type === "LoadImage")[number - 1]
    loader.connect(0, several, several.inputs.findIndex(input => input.name === `pictures.picture ${number}`))
}"""


@pytest.fixture
def several(page) -> Any:
    """The page with both objects in one MIP Several References, on hosts whose inputs grow."""
    if not page.evaluate("() => 'MIPSeveralReferences' in LiteGraph.registered_node_types"):
        pytest.skip("the inputs of this host do not grow")
    page.evaluate(ADD_SEVERAL)
    for number in (1, 2):
        page.wait_for_function(f"number => ({SOCKETS})().includes(`pictures.picture ${{number}}`)", arg=number)
        page.evaluate(CONNECT_PICTURE, number)
    page.wait_for_function(f"() => ({SOCKETS})().length === 3")  # and room for the next one
    return page


def test_several_objects_in_one_node(several, stocked) -> None:
    (node,) = (n for n in several.evaluate(QUEUED).values() if n["class_type"] == "MIPSeveralReferences")
    assert set(node["inputs"]) == {"names", "pictures.picture 1", "pictures.picture 2"}
    chained = [[("cat", "cat.png"), ("cup", "coffee.png")]] * APPLIES
    assert shown_objects(several) == chained
    several.evaluate("() => { app.graph._nodes.filter(n => n.type === 'LoadImage')[1].mode = 2 }")
    shown = [[(each["text"], each["connected"]) for each in objects] for objects in several.evaluate(SHOWN)]
    assert shown == [[("cat", True), ("cup", False)]] * APPLIES
    several.evaluate(RUN)
    several.wait_for_function(TOAST, arg="“cup”, name 2, has no picture")
    several.keyboard.press("Escape")

    pictures = {f"pictures.picture {number}": [str(number), 0] for number in (1, 2)}
    white = {"class_type": "EmptyImage", "inputs": {"width": 64, "height": 64, "batch_size": 1, "color": 255}}
    made = {"class_type": "MIPSeveralReferences", "inputs": {"names": "cat\ncup", **pictures}}
    end = {"class_type": "PreviewAny", "inputs": {"source": ["3", 0]}}
    said = run(stocked, {"1": white, "2": white, "3": made, "4": end})["outputs"]["4"]["text"][0]
    assert said.count("Reference(") == 2 and "text='cup'" in said


def test_several_objects_stay_when_they_are_saved(several) -> None:
    """Names, pictures and the input for the next one."""
    several.evaluate("async () => { await app.loadGraphData(app.graph.serialize()) }")
    assert several.evaluate(SOCKETS) == [f"pictures.picture {number}" for number in (1, 2, 3)]
    assert shown_objects(several) == [[("cat", "cat.png"), ("cup", "coffee.png")]] * APPLIES


def test_muted_references_are_not_shown(page) -> None:
    page.evaluate("() => { app.graph._nodes.filter(node => node.type === 'MIPReference')[0].mode = 2 }")
    assert [[text for text, _ in objects] for objects in shown_objects(page)] == [["cup"]] * APPLIES


def test_thumbnails_are_drawn_and_nothing_of_them_is_saved(page) -> None:
    page.evaluate(frontend.FIT)
    page.wait_for_function(COLOURFUL)
    saved = page.evaluate("() => JSON.parse(JSON.stringify(app.graph.serialize()))")
    for node in saved["nodes"]:
        known = next((each for each in WORKFLOW["nodes"] if each["id"] == node["id"]), None)
        if known and node["type"].startswith("MIP"):
            assert node.get("widgets_values", [])[: len(known["widgets_values"])] == known["widgets_values"]
            assert not {"add another object", None} & set(node.get("widgets_values", []))
    shown = shown_objects(page)
    page.evaluate(OPEN, saved)
    assert shown_objects(page) == shown


def test_a_thumbnail_that_was_not_there_is_asked_for_again(page, stocked) -> None:
    page.evaluate(frontend.FIT)
    with page.expect_response(lambda answer: "later" in answer.url) as first:
        # In one go: the page also draws by itself, and its answer may come before anybody waits for it.
        page.evaluate("""() => {
            const [loader] = app.graph._nodes.filter(node => node.type === "LoadImage")
            loader.widgets[0].value = "uploaded later.png"
            app.canvas.draw(true, true)
        }""")
    assert first.value.status == 404
    shutil.copyfile(stocked.base / "input" / "cat.png", stocked.base / "input" / "uploaded later.png")
    with page.expect_response(lambda answer: "later" in answer.url and answer.ok):
        page.evaluate("""() => {
            window.again = setInterval(() => {  // the picture hears of the first answer a moment after us
                app.api.dispatchCustomEvent("graphChanged", app.graph.serialize())
                app.canvas.draw(true, true)
            }, 100)
        }""")
    page.evaluate("() => clearInterval(window.again)")


# Some pixel of the first thumbnail is much redder than blue: the cat, not the widget's grey.
COLOURFUL = """() => {
    const node = app.graph._nodes.find(node => node.type === "MIPApply")
    const widget = node.widgets.find(widget => widget.name === "mip_objects")
    app.canvas.draw(true, true)
    const [x, y] = app.canvas.convertOffsetToCanvas([node.pos[0], node.pos[1] + widget.last_y])
    const {scale} = app.canvas.ds
    const {data} = app.canvas.canvas.getContext("2d").getImageData(x, y, node.size[0] * scale, 80 * scale)
    for (let i = 0; i < data.length; i += 4) if (data[i] > 120 && data[i] > data[i + 2] + 60) return true
    return false
}"""


SAID = """async ([objects, prompt]) => {
    const {mistakesIn} = await import("/extensions/PACK/js/mistakes.js")
    return mistakesIn(objects.map(([text, connected, texts]) => ({text, connected, texts})), prompt)
}""".replace("PACK", PACK)


def test_likely_mistakes_are_named(page) -> None:
    chain = [
        ["cat", True],
        ["dragon", True],
        ["Cup", False],
        ["", True],
        ["cat", True],
        ["my very old red coffee cup", True],
    ]
    said = page.evaluate(SAID, [chain, "a cat and a cup, dragonflies"])
    assert said == [
        "same text twice",
        "not in the prompt",
        "no picture",
        "no text",
        "same text twice",
        "too many words",
    ]
    assert page.evaluate(SAID, [chain[1:2], None]) == [""]
    more = [["cat", True, each] for each in (["cat", "side view"], ["Cup"], ["dragon"])]
    said = [page.evaluate(SAID, [[each], "a cat and a cup"]) for each in more]
    assert said == [[""], ["more_pictures: other objects"], [""]]
    texts = ["red coffee cup", "猫", "c++", "(cat:1.3)"]
    right = [[each, True] for each in texts]
    assert page.evaluate(SAID, [right, "a (red  coffee:1.2) cup, 一只猫, C++ and a cat"]) == [""] * 4


PROMPT_OF = """async () => {
    const {promptOf} = await import("/extensions/PACK/js/chain.js")
    return promptOf(app.graph._nodes.find(node => node.type === "MIPApply"))
}""".replace("PACK", PACK)
WIRED = """() => {
    const given = LiteGraph.createNode("PrimitiveString")
    app.graph.add(given)
    given.widgets[0].value = "a cup alone"
    const apply = app.graph._nodes.find(node => node.type === "MIPApply")
    given.connect(0, apply, "prompt")
}"""


def test_the_prompt_is_found_behind_the_sampler_and_at_the_input(page) -> None:
    positive = next(node for node in WORKFLOW["nodes"] if node.get("title") == "Prompt")["widgets_values"][0]
    assert page.evaluate(PROMPT_OF) == positive
    page.evaluate("() => app.graph._nodes.find(node => node.title === 'Prompt').widgets[0].value = '(cat:1.2)'")
    assert page.evaluate(PROMPT_OF) == "(cat:1.2)"
    page.evaluate(WIRED)
    assert page.evaluate(PROMPT_OF) == "a cup alone"


STRANGE = """async () => {
    const {objectsOf, promptOf} = await import("/extensions/PACK/js/chain.js")
    const {mistakesIn} = await import("/extensions/PACK/js/mistakes.js")
    const graphOf = (nodes, links = []) => {
        const graph = {nodes, getNodeById: id => nodes[id], getLink: id => links[id]}
        nodes.forEach(node => node.graph = graph)
        return graph
    }
    const apply = name => ({comfyClass: "MIPApply", inputs: [{name, link: 0}], outputs: [], widgets: []})
    // From each node to the next there are two ways: 2^60 to the last one.
    const doubled = (type, more) => {
        const nodes = Array.from({length: 60}, (_, i) => ({
            inputs: ["a", "b"].map(name => ({name, type, link: i + 1})), outputs: [], ...more,
        }))
        return graphOf([...nodes, apply("prompt")], nodes.map((_, i) => ({origin_id: i, origin_slot: 0})))
    }
    const texts = doubled("STRING", {widgets: ["a", "b"].map(name => ({name, value: "cat"}))})
    const conditionings = doubled("CONDITIONING", {widgets: []})
    const sampler = {inputs: [{name: "positive", type: "CONDITIONING", link: 0}], outputs: [], widgets: []}
    const sampled = {...apply("references"), outputs: [{type: "MODEL", links: [61]}]}
    conditionings.nodes.push(sampler, sampled)
    sampler.graph = sampled.graph = conditionings
    const getLink = conditionings.getLink
    conditionings.getLink = id => id === 61 ? {target_id: 61} : getLink(id)
    // Every graph holds the next one twice, and the one that is looked for is the last of the first.
    const wanted = graphOf([apply("references")])
    let inner = graphOf([])
    for (let i = 0; i < 60; i++) inner = graphOf([{subgraph: inner}, {subgraph: inner}])
    wanted.rootGraph = graphOf([{subgraph: inner}, {subgraph: wanted}])
    const several = {comfyClass: "MIPSeveralReferences", outputs: [],
        widgets: [{name: "names", value: "a\\n".repeat(1e6)}],
        inputs: [{name: "references", link: 0}, {name: "pictures.picture 1000000000", link: 1}]}
    const chain = graphOf([several, {outputs: []}, apply("references")], [
        {origin_id: 0, origin_slot: 0}, {origin_id: 1, origin_slot: 0}])
    return [
        promptOf(texts.nodes.at(-1)), promptOf(sampled), promptOf(wanted.nodes[0]), objectsOf(chain.nodes[2]).length,
        mistakesIn([{connected: true, text: ":" + "1".repeat(1e5), texts: []}], null),
    ]
}""".replace("PACK", PACK)


def test_a_strangers_graph_is_read_soon(page) -> None:
    """Its links lead along more ways than can be followed, its texts are endless, and a socket has a huge number."""
    assert page.evaluate(STRANGE) == [None, None, None, 32, [""]]


STRANGE_ID = """() => {
    const node = app.graph._nodes.find(node => node.type === "MIPReference")
    const [id, widget] = [node.id, node.widgets.find(widget => widget.name === "text")]
    node.id = `1"] { } body { background: url(http://nowhere.invalid/) } [x="`
    node.flags.collapsed = true
    node.title = node.constructor.title
    widget.value = `" } body { color: red } ` + "x".repeat(1e6)
    app.api.dispatchCustomEvent("graphChanged", {})
    node.id = id
    node.flags.collapsed = false
    const ours = [...document.styleSheets]
        .find(sheet => sheet.cssRules[0]?.selectorText?.startsWith(".lg-node[data-node"))
    return [...ours.cssRules].map(rule => rule.cssText)
}"""


def test_an_id_or_a_text_becomes_no_rule_of_the_style_sheet(page) -> None:
    rules = page.evaluate(STRANGE_ID)
    assert len(rules) > 4 and all(each.startswith(".lg-node[") and len(each) < 1000 for each in rules)
    assert any("nowhere.invalid" in each for each in rules) and any("color: red" in each for each in rules)


# ---- errors ----

TOAST = "words => [...document.querySelectorAll('.p-toast-message')].some(toast => toast.innerText.includes(words))"
TOASTS = "() => [...document.querySelectorAll('.p-toast-message')].map(toast => toast.innerText)"
RUN = "() => { app.queuePrompt(0, 1) }"
MARKED = """type => app.graph._nodes.filter(node => node.type === type && app.lastNodeErrors?.[node.id])
    .map(node => app.lastNodeErrors[node.id].errors.map(error => error.extra_info?.input_name))"""
EMPTY_TEXT = """() => {
    const [first] = app.graph._nodes.filter(node => node.type === "MIPReference")
    first.widgets.find(widget => widget.name === "text").value = " "
}"""
UNPLUGGED = """() => {
    const apply = app.graph._nodes.find(node => node.type === "MIPApply")
    apply.disconnectInput(apply.inputs.findIndex(input => input.name === "references"))
}"""
MUTED = """() => {
    const apply = app.graph._nodes.find(node => node.type === "MIPApply")
    apply.getInputNode(apply.inputs.findIndex(input => input.name === "references")).mode = 2
}"""
GONE = "() => { app.graph._nodes.find(node => node.type === 'MIPAdapterLoader').widgets[0].value = 'gone.safetensors' }"


def test_mistakes_speak_before_anything_runs(page) -> None:
    """Also where the host queues another part of the graph and says nothing: nodes that draw a picture are outputs."""
    page.evaluate(OPEN, json.loads((ROOT / "workflows" / f"{TEMPLATE}.json").read_text("utf-8")))
    for mistake, kind, name, words in (
        (EMPTY_TEXT, "MIPReference", "text", "The object text is empty"),
        (MUTED, "MIPApply", "references", "What is connected to “references” is muted. One or more"),
        (UNPLUGGED, "MIPApply", "references", "Nothing is connected to “references”. One or more MIP Reference nodes"),
        (GONE, "MIPAdapterLoader", "adapter_name", "gone.safetensors"),
    ):
        page.evaluate(mistake)
        page.evaluate(RUN)
        page.wait_for_function(TOAST, arg=words)
        page.keyboard.press("Escape")  # the older frontend's dialog, if the host queued nothing
        page.wait_for_function(f"kind => ({MARKED})(kind).length", arg=kind)
        assert page.evaluate(MARKED, kind) == [[name]]


def test_errors_of_a_run_are_toasts(page) -> None:
    """Of our nodes, and of the sampler where our code raised them; other nodes' are the host's affair."""
    tell = """detail => app.api.dispatchCustomEvent("execution_error", {prompt_id: "p", executed: [], ...detail})"""
    sampler = {"node_id": "1", "node_type": "KSampler", "exception_type": "ValueError"}
    page.evaluate(
        tell, sampler | {"exception_message": "Theirs.", "traceback": ['  File "/host/nodes.py", line 1, in x']}
    )
    ours = f'  File "/x/custom_nodes/{PACK}/patching/apply.py", line 1, in x'
    page.evaluate(tell, sampler | {"exception_message": "Ours in the sampler.", "traceback": [ours]})
    node = sampler | {"node_id": "2", "node_type": "MIPReference"}
    page.evaluate(tell, node | {"exception_message": "Ours in the node.", "traceback": []})
    for words in ("Ours in the sampler.", "Ours in the node."):
        page.wait_for_function(TOAST, arg=words)
    assert "Theirs." not in "\n".join(page.evaluate(TOASTS))
    page.keyboard.press("Escape")  # the dialog


# ---- colours ----


def test_the_colours_are_those_of_the_maps(page) -> None:
    from mip_adapter.common.drawing import MAP_COLOURS, chosen_colour, colour, colour_numbers

    chosen = [*MAP_COLOURS, "automatic", "green", "automatic"]
    numbers = page.evaluate(
        f"""async chosen => (await import("/extensions/{PACK}/js/objects.js")).colourNumbers(chosen)""", chosen
    )
    assert numbers == list(colour_numbers(map(chosen_colour, chosen)))

    drawn = page.evaluate(f"""async () => {{
        const {{colour}} = await import("/extensions/{PACK}/js/objects.js")
        const ctx = document.createElement("canvas").getContext("2d")
        return [...Array(20).keys()].map(number => {{
            ctx.fillStyle = colour(number)
            return ctx.fillStyle
        }})
    }}""")
    for number, said in enumerate(drawn):
        assert max(abs(a - b) for a, b in zip(bytes.fromhex(said[1:]), colour(number), strict=True)) <= 1


def test_a_folded_node_says_which_it_is(page) -> None:
    titles = page.evaluate("""() => {
        const add = (type, name, value) => {
            const node = LiteGraph.createNode(type)
            node.widgets.find(widget => widget.name === name).value = value
            node.flags.collapsed = true
            return node
        }
        const named = add("MIPReference", "text", "cat")
        named.title = "Our cat"
        const unnamed = [add("MIPReference", "text", "cat"), add("MIPMerge", "strategy", "uniform")]
        return [...unnamed, named].map(node => node.getTitle())
    }""")
    assert titles == ["cat · MIP Reference", "uniform · MIP Merge", "Our cat"]


# ---- blueprints ----


def test_workflows_from_before_there_was_a_pool_sample_as_they_did(page) -> None:
    def measures(saved: list) -> set[str]:
        nodes = [
            {**node, "widgets_values": saved} if node["type"] == "MIPMerge" else node for node in WORKFLOW["nodes"]
        ]
        page.evaluate(OPEN, {**WORKFLOW, "nodes": nodes})
        queued = page.evaluate(QUEUED).values()
        return {node["inputs"]["measure"] for node in queued if node["class_type"] == "MIPMerge"}

    assert measures(["relevance", "sum", 0.5, 2.0]) == {"each site"}
    assert measures(["relevance", "sum", 0.5, 2.0, "pool"]) == {"pool"}
    new = "() => LiteGraph.createNode('MIPMerge').widgets.find(widget => widget.name === 'measure').value"
    assert page.evaluate(new) == "pool"


# On newer frontends a node from the search follows the cursor until the next click.
PLACE_AT_ONCE = """async id => {
    const {setting} = app.extensionManager
    if (setting.get(id) !== undefined) await setting.set(id, false)
}"""


def test_a_blueprint_is_found_by_search_and_queues(page, stocked) -> None:
    names = {each["name"] for each in httpx.get(f"{stocked.url}/global_subgraphs", timeout=60).json().values()}
    assert names >= {path.stem for path in (ROOT / "subgraphs").glob("*.json")}
    page.evaluate("() => app.graph.clear()")
    box = page.evaluate("() => { const b = app.canvas.canvas.getBoundingClientRect(); return [b.width, b.height] }")
    page.evaluate(PLACE_AT_ONCE, "Comfy.NodeSearchBoxImpl.FollowCursor")
    page.mouse.dblclick(box[0] * 0.6, box[1] * 0.6)
    page.locator("input:focus").fill("Personalise with 3")
    page.get_by_role("option", name="Personalise with 3 objects").first.click()
    page.wait_for_function("() => app.graph._nodes.length === 1")
    page.evaluate("""() => {
        const [node] = app.graph._nodes
        for (let i = 1; i <= 3; i++) {
            const loader = LiteGraph.createNode("LoadImage")
            loader.pos = [node.pos[0] - 340, node.pos[1] + 380 * (i - 2)]
            app.graph.add(loader)
            loader.connect(0, node, `picture ${i}`)
            loader.connect(1, node, `image_mask ${i}`)
            loader.connect(1, node, `region ${i}`)
            node.widgets.find(widget => widget.name === `text ${i}`).value = `object ${i}`
            node.widgets.find(widget => widget.name === `weight ${i}`).value = i / 2
        }
        node.widgets.find(widget => widget.name === "end_percent").value = 0.8
    }""")
    queued = page.evaluate(QUEUED)
    (objects,) = queued_objects(queued)
    assert [text for text, _ in objects] == ["object 1", "object 2", "object 3"]
    assert shown_objects(page) == [objects]
    inner = [node["inputs"] for node in queued.values() if node["class_type"] == "MIPReference"]
    assert sorted(each["weight"] for each in inner) == [0.5, 1.0, 1.5]
    for each in inner:  # all of one Load Image
        assert each["image"][0] == each["image_mask"][0] == each["region"][0]
    (apply,) = (node["inputs"] for node in queued.values() if node["class_type"] == "MIPApply")
    assert (apply["scale"], apply["start_percent"], apply["end_percent"]) == (0.75, 0, 0.8)
    frontend.screenshot(page, "blueprint")


# Our style sheet, with all of the words.
STYLED = """words => [...document.querySelectorAll("style")]
    .some(sheet => words.every(each => sheet.textContent.includes(each)))"""

# ---- other renderer, other language: they load the page anew ----


def test_nodes_2_0_show_the_button_and_run_the_scripts(page) -> None:
    frontend.configure(page, **{"Comfy.VueNodes.Enabled": True})
    try:
        page.evaluate(OPEN, WORKFLOW)
        page.evaluate(frontend.FIT)
        before = page.evaluate(COUNT, "MIPReference")
        page.get_by_placeholder("cat").first.wait_for()
        page.get_by_role("button", name="add another object").first.dispatch_event("click")
        page.wait_for_function(f"() => ({COUNT})('MIPReference') === {before + 1}")
        frontend.screenshot(page, "nodes 2.0")
        number = page.evaluate("""() => {
            const node = app.graph._nodes.find(node => node.type === "MIPReference")
            node.title = node.constructor.title
            node.collapse()
            app.api.dispatchCustomEvent("graphChanged", app.graph.serialize())
            return node.id
        }""")
        page.wait_for_function(STYLED, arg=[f'[data-node-id="{number}"]', "#37305a", '"cat · "'])
    finally:
        page.evaluate(frontend.SET, {"Comfy.VueNodes.Enabled": False})


WORDS = """() => [app.graph._nodes.find(node => node.type === "MarkdownNote").widgets[0].value,
    app.graph._groups[0].title]"""


def test_everything_is_chinese_in_chinese(page, stocked) -> None:
    frontend.configure(page, **{"Comfy.Locale": "zh"})
    try:
        chinese = json.loads((ROOT / "locales" / "zh" / "nodeDefs.json").read_text("utf-8"))
        template = json.loads((ROOT / "workflows" / f"{TEMPLATE}.json").read_text("utf-8"))
        note = next(node for node in template["nodes"] if node["type"] == "MarkdownNote")
        edited = {**template, "nodes": [note | {"widgets_values": ["my own"]}], "links": []}
        page.wait_for_function("() => app.graph._nodes.length")  # the frontend opens what was open before
        page.evaluate(OPEN, edited)
        assert page.evaluate(WORDS) == ["my own", template["groups"][0]["title"]]
        page.evaluate(OPEN, template)
        words = json.loads((ROOT / "web" / "templates" / "zh.json").read_text("utf-8"))
        told = [words[note["widgets_values"][0]], words[template["groups"][0]["title"]]]
        assert page.evaluate(WORDS) == told
        nodes = page.evaluate("""() => ["MIPApply", "MIPReference"].map(type => {
            const node = LiteGraph.createNode(type)
            const slots = [...node.inputs, ...node.widgets.filter(widget => widget.type !== "button")]
            return [type, node.title, Object.fromEntries(slots.map(e => [e.name, e.label ?? e.localized_name])),
                    node.widgets.filter(widget => widget.type === "button").map(widget => widget.name)]
        })""")
        for kind, title, inputs, buttons in nodes:
            assert title == chinese[kind]["display_name"]
            for name, told in chinese[kind]["inputs"].items():
                assert inputs[name] == told["name"], (kind, name)
            assert buttons == (["再添加一个对象"] if kind == "MIPReference" else [])
        page.wait_for_timeout(500)
        first = (ROOT / "web" / "docs" / "MIPApply" / "zh.md").read_text("utf-8").splitlines()[0].removeprefix("# ")
        open_help(page, "MIPApply").get_by_role("heading", name=first).wait_for()
        see_pictures(page)
        frontend.screenshot(page, "Chinese")
    finally:
        page.evaluate(frontend.SET, {"Comfy.Locale": "en"})
