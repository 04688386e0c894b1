"""What an artist does between two pictures: interrupts, runs again, copies, reloads the page."""

import json

from ..support import frontend
from ..support.open_workflow import COUNT, OPEN, PACK, RUN, SHOWN, TEMPLATE
from ..support.paths import ROOT
from ..support.queueing import history, post, wait_for, wait_until_idle
from .test_mistakes import TOASTS

START_HERE = json.loads((ROOT / "workflows" / f"{TEMPLATE}.json").read_text("utf-8"))
STEPS = """count => {
    const sampler = app.graph._nodes.find(node => node.type === "KSampler")
    sampler.widgets.find(widget => widget.name === "steps").value = count
}"""
# Counts the steps that the server tells of.
LISTEN = """() => {
    window.stepsSeen = 0
    app.api.addEventListener("progress", () => window.stepsSeen++)
}"""
VALUES = """() => app.graph._nodes.filter(node => node.type.startsWith("MIP")).map(({type, title, color, widgets}) =>
    [type, title, color, ...widgets.filter(each => each.type !== "button").map(each => each.value)])"""


def test_an_interrupted_run_leaves_nothing_behind(page, stocked) -> None:
    wait_until_idle(stocked)
    page.evaluate(OPEN, START_HERE)
    page.evaluate(STEPS, 5000)
    page.evaluate(LISTEN)
    before, told = set(history(stocked)), page.evaluate(TOASTS)
    page.evaluate(RUN)
    page.wait_for_function("() => window.stepsSeen > 1")
    post(stocked, "interrupt")
    (interrupted,) = wait_for(lambda: set(history(stocked)) - before)
    wait_until_idle(stocked)
    messages = [kind for kind, _ in history(stocked)[interrupted]["status"]["messages"]]
    assert "execution_interrupted" in messages and "execution_error" not in messages

    page.evaluate(STEPS, 3)
    page.evaluate(RUN)
    (again,) = wait_for(lambda: set(history(stocked)) - before - {interrupted})
    wait_until_idle(stocked)
    entry = history(stocked)[again]
    assert entry["status"]["status_str"] == "success", entry["status"]["messages"]
    maps = next(str(node["id"]) for node in START_HERE["nodes"] if str(node.get("title")).startswith("Maps"))
    assert len(entry["outputs"][maps]["images"]) == 12
    assert not [each for each in page.evaluate(TOASTS) if each not in told and "MIP" in each]


COPIED = """() => {
    const [first, last] = app.graph._nodes.filter(node => node.type === "MIPReference")
    const picture = first.getInputNode(first.inputs.findIndex(input => input.name === "image"))
    const before = new Set(app.graph._nodes)
    app.canvas.copyToClipboard(new Set([picture, first]))
    app.canvas.pasteFromClipboard({position: [2000, 0]})
    const pasted = app.graph._nodes.filter(node => !before.has(node))
    const copy = pasted.find(node => node.type === "MIPReference")
    const apply = app.graph._nodes.find(node => node.type === "MIPApply")
    last.connect(0, copy, "references")
    copy.connect(0, apply, "references")
    const about = ({title, color, widgets}) =>
        [title, color, ...widgets.map(({name, type, value}) => [name, type, value])]
    return [pasted.map(node => node.type).sort(), about(first), about(copy)]
}"""
MISTAKES = """async () => {
    const {objectsOf, promptOf} = await import("/extensions/PACK/js/chain.js")
    const {mistakesIn} = await import("/extensions/PACK/js/mistakes.js")
    const apply = app.graph._nodes.find(node => node.type === "MIPApply")
    return mistakesIn(objectsOf(apply), promptOf(apply))
}""".replace("PACK", PACK)


def test_a_copied_reference_is_one_of_its_own(page) -> None:
    """With its picture; its text, which is there twice now, is told until it is another."""
    page.evaluate(OPEN, START_HERE)
    kinds, original, copy = page.evaluate(COPIED)
    assert kinds == ["MIPMiniatureObject", "MIPReference"] and copy == original
    objects = page.evaluate(SHOWN)[0]
    assert [each["text"] for each in objects] == ["heart", "fish", "heart"]
    assert page.evaluate(MISTAKES) == ["same text twice", "", "same text twice"]
    page.evaluate("""() => {
        const copy = app.graph._nodes.filter(node => node.type === "MIPReference").at(-1)
        copy.widgets.find(widget => widget.name === "text").value = "star"
    }""")
    assert [each["text"] for each in page.evaluate(SHOWN)[0]] == ["heart", "fish", "star"]
    assert page.evaluate(MISTAKES) == ["", "", "not in the prompt"]


CHANGED = """() => {
    const [first] = app.graph._nodes.filter(node => node.type === "MIPReference")
    const set = (name, value) => { first.widgets.find(widget => widget.name === name).value = value }
    set("text", "an artist's own words")
    set("weight", 0.65)
    set("map_color", "green")
    app.extensionManager.workflow.activeWorkflow.changeTracker.checkState()
}"""
KEPT = """() => [localStorage, sessionStorage]
    .some(storage => Object.values(storage).some(value => String(value).includes("an artist's own words")))"""


def test_a_reload_brings_the_workflow_back_as_it_was(page) -> None:
    page.evaluate(OPEN, START_HERE)
    page.evaluate(CHANGED)
    values, count = page.evaluate(VALUES), page.evaluate(COUNT, "MIPReference")
    shown = page.evaluate(SHOWN)
    page.wait_for_function(KEPT)
    page.reload()
    page.wait_for_function(frontend.browser.READY)
    page.wait_for_function(f"count => ({COUNT})('MIPReference') === count", arg=count)
    assert page.evaluate(VALUES) == values
    assert page.evaluate(SHOWN) == shown
