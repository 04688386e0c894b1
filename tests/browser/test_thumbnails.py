"""The thumbnails and labels of MIP Apply and MIP Reference, read from the graph as the host queues it."""

from __future__ import annotations

import shutil
from typing import Any

import pytest

from ..support import frontend
from ..support.open_workflow import (
    APPLIES,
    OPEN,
    PACK,
    QUEUED,
    REROUTED,
    RUN,
    SHOWN,
    TOAST,
    WORKFLOW,
    queued_objects,
    shown_objects,
)
from ..support.queueing import run

BYPASSED = """() => { app.graph._nodes.filter(node => node.type === "MIPReference")[1].mode = 4 }"""


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


SAID = """async ([objects, prompt, words]) => {
    const {mistakesIn} = await import("/extensions/PACK/js/mistakes.js")
    return mistakesIn(objects.map(([text, connected, texts]) => ({text, connected, texts})), prompt, words)
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
    said = page.evaluate(
        SAID, [[["red cat", True], ["cup", True], ["cats", True]], "a red cat, a cup, cats", ["cat", "fish"]]
    )
    assert said == ["", "unknown to the miniature", "unknown to the miniature"]
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


# Some nodes of the sampling that the first MIPApply is for, put into subgraphs: each a list of types.
WRAPPED = """subgraphs => {
    const apply = app.graph._nodes.find(node => node.type === "MIPApply")
    const behind = app.graph.getNodeById(app.graph.getLink(apply.outputs[0].links[0]).target_id)
    let shell = null
    for (const kinds of subgraphs) {
        const nodes = [apply, behind].filter(node => kinds.includes(node.type))
        const around = kinds.includes("around") ? [shell] : []
        shell = app.graph.convertToSubgraph(new Set([...nodes, ...around])).node
    }
}"""
PROMPT_ANYWHERE = """async () => {
    const {promptOf} = await import("/extensions/PACK/js/chain.js")
    const all = graph => graph.nodes.flatMap(node => node.subgraph ? all(node.subgraph) : [node])
    return all(app.graph).filter(node => node.type === "MIPApply").map(promptOf)
}""".replace("PACK", PACK)


@pytest.mark.parametrize("subgraphs", [
    [["MIPApply"]], [["KSampler"]], [["MIPApply", "KSampler"]], [["KSampler"], ["MIPApply"]],
    [["MIPApply"], ["around"]], [["MIPApply"], ["around", "KSampler"]],
], ids=str)  # fmt: skip
def test_the_prompt_is_found_across_subgraphs(page, subgraphs: list[list[str]]) -> None:
    page.evaluate("() => app.graph._nodes.find(node => node.title === 'Prompt').widgets[0].value = 'a cup and a dog'")
    page.evaluate(WRAPPED, subgraphs)
    assert page.evaluate(PROMPT_ANYWHERE) == ["a cup and a dog"] * APPLIES


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


# The thumbnails of the first MIP Apply, as Vue drew them: without the canvas below, whose height the host sets.
DRAWN_BY_VUE = """() => {
    const {id} = app.graph._nodes.find(node => node.type === "MIPApply")
    const canvas = document.querySelector(`.lg-node[data-node-id="${id}"] canvas`)
    return canvas?.getContext("2d").getImageData(0, 0, canvas.width, 160).data.join()
}"""
# The cat in the left half and the cup in the right one: photographs, which arrive after the first drawing.
BOTH_DRAWN = """() => {
    const {id} = app.graph._nodes.find(node => node.type === "MIPApply")
    const canvas = document.querySelector(`.lg-node[data-node-id="${id}"] canvas`)
    const half = canvas?.width / 2
    const values = x => new Set(canvas.getContext("2d").getImageData(x, 0, half, 160).data).size
    return canvas && values(0) > 200 && values(half) > 200
}"""
REMOVE_CUP = """() => {
    app.canvas.emitBeforeChange()
    app.graph.remove(app.graph._nodes.filter(node => node.type === "MIPReference")[1])
    app.canvas.emitAfterChange()
}"""


def test_nodes_2_0_draw_what_undo_brings_back(page) -> None:
    if frontend.version(page) < (1, 40):
        pytest.skip("this frontend's Nodes 2.0 are a first version")
    frontend.configure(page, **{"Comfy.VueNodes.Enabled": True})
    try:
        page.evaluate(OPEN, WORKFLOW)
        page.evaluate(frontend.FIT)
        page.wait_for_function(BOTH_DRAWN)
        both = page.evaluate(DRAWN_BY_VUE)
        page.evaluate(REMOVE_CUP)
        page.wait_for_function(f"both => ({DRAWN_BY_VUE})() !== both", arg=both)
        page.keyboard.press("Control+z")
        page.wait_for_function(f"both => ({DRAWN_BY_VUE})() === both", arg=both)
    finally:
        page.evaluate(frontend.SET, {"Comfy.VueNodes.Enabled": False})
