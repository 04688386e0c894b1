"""The pack as a user meets it in the real frontend: templates, Run, help, the scripts of web/js, blueprints, Chinese.

With MIP_ARTIFACTS=FOLDER screenshots are left there (frontend.py).
"""

from __future__ import annotations

import json
from typing import Any

import httpx

from ..support import frontend
from ..support.open_workflow import (
    COUNT,
    OPEN,
    PACK,
    QUEUED,
    RUN,
    TEMPLATE,
    TOAST,
    TYPES,
    UNPLUGGED,
    WORKFLOW,
    queued_objects,
    shown_objects,
)
from ..support.paths import ROOT

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
    for name in ("two objects (base)", "quality of a picture's objects"):  # on the miniature; run, with nothing saved
        assert maker.workflow(name)
    page.close()
    sizes = {path.stem: Image.open(path).size for path in tmp_path.rglob("*.jpg")}
    assert set(sizes) == {"MIPFusionHead", "MIPMerge", "chain", "two objects (base)", "quality of a picture's objects"}
    assert sizes["two objects (base)"][0] == 960 and all(min(size) > 100 for size in sizes.values())
    card = Image.open(tmp_path / "workflows" / "quality of a picture's objects.jpg").convert("L")
    width, height = card.size
    for half in ((0, 0, width, height // 2), (0, height // 2, width, height)):  # a drawing in each of two
        assert any(card.crop(half).histogram()[:100])


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


def test_workflows_from_before_an_input_sample_as_they_did(page) -> None:
    def added(saved: list) -> set[tuple[str, float]]:
        nodes = [
            {**node, "widgets_values": saved} if node["type"] == "MIPMerge" else node for node in WORKFLOW["nodes"]
        ]
        page.evaluate(OPEN, {**WORKFLOW, "nodes": nodes})
        queued = page.evaluate(QUEUED).values()
        merges = [node["inputs"] for node in queued if node["class_type"] == "MIPMerge"]
        return {(each["measure"], each["unclaimed"]) for each in merges}

    before = ["relevance", "sum", 0.5, 2.0]
    assert added(before) == {("each site", 0)}
    assert added([*before, "pool"]) == {("pool", 0)}
    assert added([*before, "pool", 0.7]) == {("pool", 0.7)}
    assert page.evaluate("() => LiteGraph.createNode('MIPMerge').widgets.slice(4).map(each => each.value)") == [
        "pool",
        0,
    ]


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


# Whether the title bars of our nodes have a colour.
TITLE_BAR = """colour => [...document.querySelectorAll('.lg-node > [data-testid="node-inner-wrapper"]')]
    .some(bar => getComputedStyle(bar).backgroundColor === colour)"""


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
        page.wait_for_function(STYLED, arg=[f'[data-node-id="{number}"]', '"cat · "'])
        palettes = {"light": "rgb(185, 179, 214)", "dark": "rgb(55, 48, 90)"}
        for palette, bar in palettes.items() if frontend.version(page) >= (1, 40) else ():
            page.evaluate(frontend.SET, {"Comfy.ColorPalette": palette})
            page.wait_for_function(TITLE_BAR, arg=bar)
    finally:
        page.evaluate(frontend.SET, {"Comfy.VueNodes.Enabled": False, "Comfy.ColorPalette": "dark"})


WORDS = """() => [app.graph._nodes.find(node => node.type === "MarkdownNote").widgets[0].value,
    app.graph._groups[0].title]"""


# The labels over thumbnails in their lines, and the widest line's pixels.
LABELS = """async labels => {
    const {linesOf} = await import("/extensions/PACK/js/objects.js")
    const ctx = document.createElement("canvas").getContext("2d")
    ctx.font = `10px ${LiteGraph.NODE_FONT}`
    return labels.map(label => {
        const lines = linesOf(ctx, label)
        return [lines.join(""), Math.max(...lines.map(line => ctx.measureText(line).width))]
    })
}""".replace("PACK", PACK)


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
        sentences = json.loads((ROOT / "locales" / "zh" / "main.json").read_text("utf-8"))["mipAdapter"].values()
        labels = [each for each in sentences if not each.endswith("。")]
        for label, (whole, widest) in zip(labels, page.evaluate(LABELS, labels), strict=True):
            assert whole == label and widest < 64, (label, widest)  # a thumbnail's side
        page.evaluate(UNPLUGGED)
        page.evaluate(RUN)
        page.wait_for_function(TOAST, arg="“参考”没有连接任何节点。一个或多个")
        page.keyboard.press("Escape")  # the older frontend's dialog
        page.wait_for_timeout(500)
        first = (ROOT / "web" / "docs" / "MIPApply" / "zh.md").read_text("utf-8").splitlines()[0].removeprefix("# ")
        open_help(page, "MIPApply").get_by_role("heading", name=first).wait_for()
        see_pictures(page)
        frontend.screenshot(page, "Chinese")
    finally:
        page.evaluate(frontend.SET, {"Comfy.Locale": "en"})
