"""What a muted node cuts off from a chain and a bypassed one hands on: as the host queues it, shown and said."""

from __future__ import annotations

import pytest

from ..support import frontend
from ..support.open_workflow import (
    APPLIES,
    OPEN,
    PACK,
    QUEUED,
    REROUTED,
    RUN,
    TOAST,
    WORKFLOW,
    queued_objects,
    shown_objects,
)

# The second of three bypassed, and a reroute behind it.
REROUTED_END = """() => {
    const [, second, third] = app.graph._nodes.filter(node => node.type === "MIPReference")
    const reroute = LiteGraph.createNode("Reroute")
    app.graph.add(reroute)
    second.connect(0, reroute, 0)
    reroute.connect(0, third, "references")
    second.mode = 4
}"""


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


@pytest.mark.parametrize("mode, left", [(4, ["cat", "third"]), (2, ["third"])], ids=["bypass", "mute"])
def test_one_object_is_left_out(page, mode: int, left: list[str]) -> None:
    """As docs/how-to.md says it: bypassing hands the chain on, muting cuts off what comes before."""
    page.evaluate(THIRD, mode)
    assert [[text for text, _ in objects] for objects in queued_objects(page.evaluate(QUEUED))] == [left] * APPLIES
    assert [[text for text, _ in objects] for objects in shown_objects(page)] == [left] * APPLIES


LOST = """async () => {
    const {lostOf} = await import("/extensions/PACK/js/chain.js")
    const all = graph => graph.nodes.flatMap(node => node.subgraph ? all(node.subgraph) : [node])
    return all(app.graph).filter(node => node.comfyClass === "MIPApply").map(node => {
        const {objects, by} = lostOf(node)
        return [objects.map(each => [each.text, each.muted, Boolean(each.picture)]), by?.comfyClass ?? null]
    })
}""".replace("PACK", PACK)


LAST_GONE = "mode => { app.graph._nodes.filter(node => node.type === 'MIPReference').at(-1).mode = mode }"


IN_A_MUTED_SUBGRAPH = """() => {
    const chain = app.graph._nodes.filter(node => node.type === "MIPReference")
    const {node} = app.graph.convertToSubgraph(new Set(chain))
    for (const each of [node, ...node.subgraph.nodes]) each.mode = 2  // as Ctrl+M does
}"""


def test_what_a_muted_reference_cuts_off_is_known(page) -> None:
    assert page.evaluate(LOST) == [[[], None]] * APPLIES
    page.evaluate(THIRD, 4)
    assert page.evaluate(LOST) == [[[], None]] * APPLIES  # bypassing hands the chain on
    page.evaluate(OPEN, WORKFLOW)
    page.evaluate(THIRD, 2)
    cut = [["cat", False, True], ["cup", True, True]]
    assert page.evaluate(LOST) == [[cut, "MIPReference"]] * APPLIES
    page.evaluate(LAST_GONE, 2)
    assert [[text for text, *_ in objects] for objects, _ in page.evaluate(LOST)] == [["cat", "cup", "third"]] * APPLIES


def test_what_a_muted_subgraph_cuts_off_is_known(page) -> None:
    page.evaluate(IN_A_MUTED_SUBGRAPH)
    assert not any(queued_objects(page.evaluate(QUEUED)))
    assert [[text for text, *_ in objects] for objects, _ in page.evaluate(LOST)] == [["cat", "cup"]] * APPLIES


def test_a_run_says_what_a_muted_reference_cuts_off(page) -> None:
    page.evaluate(THIRD, 2)
    page.evaluate(RUN)
    page.wait_for_function(TOAST, arg="before it in the chain: “cat”. Bypass it instead (Ctrl+B).")
    assert page.locator(".p-toast-message", has_text="Bypass it instead").count() == 1  # four MIP Apply share the chain
    page.keyboard.press("Escape")  # the dialog about the empty model files


LISTED = """async names => (await import("/extensions/PACK/js/words.js")).listed(names)""".replace("PACK", PACK)


def test_names_are_joined_as_the_language_joins_them(page) -> None:
    for language, two, three in (("en", "“cat” and “cup”", "a, b, and c"), ("zh", "“cat”和“cup”", "a、b和c")):
        frontend.configure(page, **{"Comfy.Locale": language})
        try:
            page.evaluate(OPEN, WORKFLOW)
            page.evaluate(THIRD, 0)
            page.evaluate(LAST_GONE, 2)
            page.evaluate(RUN)
            page.wait_for_function(TOAST, arg=two)
            assert page.evaluate(LISTED, ["a", "b", "c"]) == three
            page.keyboard.press("Escape")  # the dialog about what is not connected
        finally:
            page.evaluate(frontend.SET, {"Comfy.Locale": "en"})
    frontend.configure(page)


# Three MIP Picture at the cat's more_pictures, the middle one with this mode.
MORE_PICTURES = """mode => {
    const [reference] = app.graph._nodes.filter(node => node.type === "MIPReference")
    const loader = app.graph._nodes.find(node => node.type === "LoadImage")
    const pictures = [1, 2, 3].map(() => LiteGraph.createNode("MIPPicture"))
    pictures.forEach((picture, i) => {
        app.graph.add(picture)
        loader.connect(0, picture, "image")
        pictures[i - 1]?.connect(0, picture, "pictures")
    })
    pictures[2].connect(0, reference, "more_pictures")
    pictures[1].mode = mode
    pictures[1].title = "the middle"
}"""


LOST_PICTURES = """async () => {
    const {objectsOf} = await import("/extensions/PACK/js/chain.js")
    const [cat, cup] = objectsOf(app.graph._nodes.find(node => node.type === "MIPApply"))
    return [cat, cup].map(({lostPictures: {muted, cut, by}}) => [muted, cut, by?.title ?? null])
}""".replace("PACK", PACK)


@pytest.mark.parametrize("mode, lost, queued", [(0, 0, 3), (4, 0, 2), (2, 1, 1)], ids=["plain", "bypass", "mute"])
def test_more_pictures_that_a_muted_one_cuts_off(page, mode: int, lost: int, queued: int) -> None:
    page.evaluate(MORE_PICTURES, mode)
    prompt = page.evaluate(QUEUED)
    (at,) = (each["inputs"]["more_pictures"] for each in prompt.values() if "more_pictures" in each["inputs"])
    reached = 0
    while at:
        at, reached = prompt[at[0]]["inputs"].get("pictures"), reached + 1
    assert reached == queued
    assert page.evaluate(LOST_PICTURES) == [[lost, lost, "the middle" if lost else None], [0, 0, None]]
    if lost:
        page.evaluate(RUN)
        page.wait_for_function(TOAST, arg="“the middle” is muted, and that cuts off the pictures of “cat” before it.")
        page.keyboard.press("Escape")  # the dialog about the empty model files


def test_a_bypassed_node_is_passed_by_type(page) -> None:
    """Also behind a reroute, whose own input takes anything, and at an input that takes several types."""
    page.evaluate(MORE_PICTURES, 0)
    page.evaluate(REROUTED)
    page.evaluate("""() => {
        app.graph._nodes.filter(node => node.type === "MIPPicture").at(-1).mode = 4
        app.graph._nodes.find(node => node.title === "the middle").mode = 2
    }""")
    assert page.evaluate(LOST_PICTURES) == [[1, 1, "the middle"], [0, 0, None]]
    page.evaluate(THIRD, 0)
    page.evaluate(REROUTED_END)
    queued = queued_objects(page.evaluate(QUEUED))
    assert {text for objects in queued for text, _ in objects} == {"cat", "third"}
    assert sorted(shown_objects(page)) == sorted(queued)


def test_muted_references_are_not_shown(page) -> None:
    page.evaluate("() => { app.graph._nodes.filter(node => node.type === 'MIPReference')[0].mode = 2 }")
    assert [[text for text, _ in objects] for objects in shown_objects(page)] == [["cup"]] * APPLIES
