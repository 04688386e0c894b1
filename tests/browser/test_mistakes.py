"""Mistakes, as the browser says them: before anything runs, and of a run."""

from __future__ import annotations

import json

from mip_adapter.miniature.world_shapes import KINDS
from mip_adapter.research.miniature import seeded
from safetensors.torch import save_file

from ..support.open_workflow import OPEN, PACK, RUN, TEMPLATE, TOAST, UNPLUGGED, overlap
from ..support.paths import ROOT

TOASTS = "() => [...document.querySelectorAll('.p-toast-message')].map(toast => toast.innerText)"


# [x, y, w, h] of the newer frontend's own box about errors, or null, and of the toasts.
BOXES = """() => {
    const boxOf = element => {
        const box = element?.getBoundingClientRect()
        return box ? [box.x, box.y, box.width, box.height] : null
    }
    const own = document.querySelector('[data-testid="error-overlay"]')
    return [boxOf(own), ...[...document.querySelectorAll(".p-toast-message")].map(boxOf)]
}"""


MARKED = """type => app.graph._nodes.filter(node => node.type === type && app.lastNodeErrors?.[node.id])
    .map(node => app.lastNodeErrors[node.id].errors.map(error => error.extra_info?.input_name))"""


EMPTY_TEXT = """() => {
    const [first] = app.graph._nodes.filter(node => node.type === "MIPReference")
    first.widgets.find(widget => widget.name === "text").value = " "
}"""


MUTED = """() => {
    const apply = app.graph._nodes.find(node => node.type === "MIPApply")
    apply.getInputNode(apply.inputs.findIndex(input => input.name === "references")).mode = 2
}"""


BYPASSED = "() => { app.graph._nodes.find(node => node.type === 'MIPApply').mode = 4 }"


GONE = "() => { app.graph._nodes.find(node => node.type === 'MIPAdapterLoader').widgets[0].value = 'gone.safetensors' }"


def test_mistakes_speak_before_anything_runs(page) -> None:
    """Also where the host queues another part of the graph and says nothing: nodes that draw a picture are outputs."""
    page.evaluate(OPEN, json.loads((ROOT / "workflows" / f"{TEMPLATE}.json").read_text("utf-8")))
    for mistake, kind, name, words in (
        (EMPTY_TEXT, "MIPReference", "text", "The object text is empty"),
        (MUTED, "MIPApply", "references", "What is connected to “references” is muted. One or more"),
        (UNPLUGGED, "MIPApply", "references", "Nothing is connected to “references”. One or more MIP Reference nodes"),
        (GONE, "MIPAdapterLoader", "adapter_name", "gone.safetensors"),
        (
            BYPASSED,
            "MIPRelevanceMaps",
            "relevance",
            "What is connected to “relevance” is bypassed, and hands nothing on",
        ),
    ):
        page.evaluate(mistake)
        page.evaluate(RUN)
        page.wait_for_function(TOAST, arg=words)
        box, *toasts = page.evaluate(BOXES)
        assert not [each for each in toasts if box and overlap(box, each)]
        page.keyboard.press("Escape")  # the older frontend's dialog, if the host queued nothing
        page.wait_for_function(f"kind => ({MARKED})(kind).length", arg=kind)
        assert page.evaluate(MARKED, kind) == [[name]]


NARROW = """() => {
  const loader = app.graph._nodes.find(node => node.type === 'MIPAdapterLoader');
  loader.widgets[0].value = 'for another encoder.safetensors';
}"""


def test_an_adapter_for_another_encoder_speaks_in_the_browser(page, stocked) -> None:
    """And names the encoder that fits. The host offers no such pair to a check before the run."""
    tensors = seeded.base_adapter()
    tensors["image_proj.proj.weight"] = tensors["image_proj.proj.weight"][:, :-8].contiguous()
    save_file(tensors, stocked.base / "models" / "ipadapter" / "for another encoder.safetensors")
    page.evaluate(OPEN, json.loads((ROOT / "workflows" / f"{TEMPLATE}.json").read_text("utf-8")))
    page.evaluate(NARROW)
    page.evaluate(RUN)
    page.wait_for_function(TOAST, arg="got an image encoder")
    page.keyboard.press("Escape")  # the dialog


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


UNUSED = """() => {
    const [loader, sampler] = ["MIPMiniatureLoader", "KSampler"]
        .map(type => app.graph._nodes.find(node => node.type === type))
    loader.connect(0, sampler, "model")
}"""


# A second MIP Apply between the first and the sampler, with all that the first has but for `apart`.
TWICE = """apart => {
    const [first, sampler] = ["MIPApply", "KSampler"].map(type => app.graph._nodes.find(node => node.type === type))
    const second = LiteGraph.createNode("MIPApply")
    app.graph.add(second)
    for (const name of ["clip", "clip_vision", "adapter", "references"]) {
        const slot = first.inputs.findIndex(input => input.name === name)
        first.getInputNode(slot).connect(app.graph.getLink(first.inputs[slot].link).origin_slot, second, name)
    }
    second.title = "the second"
    if (apart) {
        first.widgets.find(widget => widget.name === "end_percent").value = 0.5
        second.widgets.find(widget => widget.name === "start_percent").value = 0.5
    }
    first.connect(0, second, "model")
    second.connect(0, sampler, "model")
}"""


WARNED = """async () => {
    const {warningsOf} = await import("/extensions/PACK/js/warnings.js")
    return [...warningsOf((await app.graphToPrompt()).output).keys()]
}""".replace("PACK", PACK)


def test_references_that_act_nowhere_or_twice_are_told(page) -> None:
    template = json.loads((ROOT / "workflows" / f"{TEMPLATE}.json").read_text("utf-8"))
    page.evaluate(OPEN, template)
    assert page.evaluate(WARNED) == []
    page.evaluate(UNUSED)
    (said,) = page.evaluate(WARNED)
    assert said.startswith("The model of “MIP Apply” goes to no sampler: its references do not act, and its maps")
    page.evaluate(OPEN, template)
    page.evaluate(TWICE, False)
    assert page.evaluate(WARNED) == [
        "“the second” applies the same references as “MIP Apply” before it: they act twice."
    ]
    page.evaluate(OPEN, template)
    page.evaluate(TWICE, True)
    assert page.evaluate(WARNED) == []


ANOTHER_WORD = """folded => {
    const [first, apply] = ["MIPReference", "MIPApply"].map(type => app.graph._nodes.find(node => node.type === type))
    first.widgets.find(widget => widget.name === "text").value = "dragon"
    apply.flags.collapsed = folded
}"""
AS_APP = """() => {
    const open = app.extensionManager.workflow.activeWorkflow
    if (!("activeMode" in open)) return false
    open.activeMode = "app"
    return true
}"""


def test_what_no_thumbnail_shows_is_told_at_run(page) -> None:
    """A label is seen over the thumbnails of MIP Apply: not while it is folded, nor while the workflow is an app."""
    template = json.loads((ROOT / "workflows" / f"{TEMPLATE}.json").read_text("utf-8"))
    told = ["Likely wrong with “dragon”: unknown to the miniature."]
    for folded in (False, True):
        page.evaluate(OPEN, template)
        page.evaluate(ANOTHER_WORD, folded)
        assert page.evaluate(WARNED) == (told if folded else [])
    page.evaluate(OPEN, template)
    page.evaluate(ANOTHER_WORD, False)
    if page.evaluate(AS_APP):
        assert page.evaluate(WARNED) == told
        page.evaluate("() => { app.extensionManager.workflow.activeWorkflow.activeMode = 'graph' }")


KNOWN = """async () => {
    const {wordsKnownTo} = await import("/extensions/PACK/js/chain.js")
    return wordsKnownTo(app.graph._nodes.find(node => node.type === "MIPApply"))
}""".replace("PACK", PACK)


def test_the_miniature_knows_the_kinds_of_its_world(page) -> None:
    """It was taught no other words; a checkpoint's encoder knows all sorts."""
    assert page.evaluate(KNOWN) is None
    page.evaluate(OPEN, json.loads((ROOT / "workflows" / f"{TEMPLATE}.json").read_text("utf-8")))
    assert page.evaluate(KNOWN) == list(KINDS)


BEHIND = """() => {
    const [apply, sampler] = ["MIPApply", "KSampler"].map(type => app.graph._nodes.find(node => node.type === type))
    sampler.widgets.find(widget => widget.name === "steps").value = 2
    const theirs = LiteGraph.createNode("ReplaceCrossAttention")
    app.graph.add(theirs)
    apply.connect(0, theirs, 0)
    theirs.connect(0, sampler, "model")
}"""


def test_patches_that_another_pack_replaced_are_a_toast(page) -> None:
    """While the picture is made without the references and nothing fails."""
    page.evaluate(OPEN, json.loads((ROOT / "workflows" / f"{TEMPLATE}.json").read_text("utf-8")))
    page.evaluate(BEHIND)
    page.evaluate(RUN)
    page.wait_for_function(
        TOAST, arg="heart, fish: Another pack replaced the patches of MIP Apply, so the references did not"
    )
    assert sum("Another pack" in each for each in page.evaluate(TOASTS)) == 1
