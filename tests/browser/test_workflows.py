"""The shipped workflows: sound files, and each one opened in the real frontend in a headless browser.

With MIP_ARTIFACTS=FOLDER a screenshot of every workflow is left there (frontend.py).
"""

import io
import json
import re
from pathlib import Path

import pytest

from ..support import frontend
from ..support.paths import API, ROOT
from ..support.queueing import get, history, post, queue, run, wait_for, wait_until_idle

WORKFLOWS = frontend.WORKFLOWS
MINIATURE = ROOT / "workflows" / "start here - miniature.json"
NOTES = ("MarkdownNote", "Note")  # the frontend's own; the server does not know them
WITHOUT_MAPS = {"merge strategies side by side", "merging or training", "binding report and seed picker"}
FIRST = {"start here - miniature", "two objects (base)", "three objects (plus)"}  # which say one thing
TITLE = 30  # a node's title bar stands above its position
# The height to which a node grows as it shows a picture, in the renderer that needs more (`test_room_for_pictures`).
SHOWS_PICTURES = {"KSampler": 510, "SaveImage": 302, "PreviewImage": 266, "MaskPreview": 266}

each_workflow = pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)


def load(path: Path) -> dict:
    return json.loads(path.read_text(encoding="utf-8"))


def converted(path: Path) -> Path:
    """The API form that belongs to a workflow."""
    return API / path.name


def of_the_miniature(path: Path) -> bool:
    """Those need no files but the pack's own."""
    return any(node["type"] == "MIPMiniatureLoader" for node in load(path)["nodes"])


# ---- the files alone ----


def test_there_is_one_for_every_job():
    assert {path.stem for path in WORKFLOWS} >= {
        "two objects (base)",
        "three objects (plus)",
        "regions",
        "objects in a style",
        "two people",
        "two objects (FLUX)",
        "two references (Kontext)",
        "merge strategies side by side",
        "start here - miniature",
        "merging or training",
        "binding report and seed picker",
        "object relevance score",
        "quality of a picture's objects",
    }


@each_workflow
def test_links_join_what_the_nodes_say(path):
    workflow = load(path)
    nodes = {node["id"]: node for node in workflow["nodes"]}
    assert len(nodes) == len(workflow["nodes"]) and max(nodes) == workflow["last_node_id"]
    ends = set()
    for number, source, out, target, into, kind in workflow["links"]:
        output, entry = nodes[source]["outputs"][out], nodes[target]["inputs"][into]
        assert number in output["links"] and entry["link"] == number
        assert output["type"] == kind and entry["type"] in (kind, "*")  # * takes anything
        ends.add(number)
    used = {entry["link"] for node in nodes.values() for entry in node.get("inputs", [])} - {None}
    assert used == ends and max(ends) == workflow["last_link_id"]


@each_workflow
def test_every_node_says_which_pack_it_comes_from(path):
    for node in load(path)["nodes"]:
        if node["type"] not in NOTES:
            pack = "mip-adapter" if node["type"].startswith("MIP") else "comfy-core"
            assert node["properties"]["cnr_id"] == pack
            assert re.fullmatch(r"\d+\.\d+\.\d+", node["properties"]["ver"])


@each_workflow
def test_model_files_say_where_they_are_found(path):
    loaders = {"CheckpointLoaderSimple", "CLIPVisionLoader", "MIPAdapterLoader", "UNETLoader", "VAELoader"}
    folders = {"checkpoints", "clip_vision", "ipadapter", "diffusion_models", "vae"}
    for node in load(path)["nodes"]:
        if node["type"] in loaders and not of_the_miniature(path):
            (model,) = node["properties"]["models"]
            assert model["name"] == node["widgets_values"][0] and model["name"].endswith(".safetensors")
            assert model["url"].startswith("https://huggingface.co/")
            arrives, asked_for = Path(model["url"]).name, Path(model["name"])
            names = {asked_for.name}
            if node["type"] == "MIPAdapterLoader":  # which takes the .bin of that name
                names.add(asked_for.with_suffix(".bin").name)
            assert arrives in names
            assert model["directory"] in folders


@each_workflow
def test_nothing_overlaps(path):
    workflow = load(path)
    folded = [n for n in workflow["nodes"] if n["flags"].get("collapsed")]
    whole = [n for n in workflow["nodes"] if n not in folded]
    nodes = [(n["pos"][0], n["pos"][1] - TITLE, n["size"][0], n["size"][1] + TITLE) for n in whole]
    titles = [(n["pos"][0], n["pos"][1] - TITLE, TITLE, TITLE) for n in folded]
    assert not overlaps([*nodes, *titles])
    assert not overlaps([group["bounding"] for group in workflow["groups"]])


@each_workflow
def test_there_is_room_for_pictures(path):
    """The sampler's live preview, too: a node that grows covers no other, and stays in its group."""
    workflow = load(path)
    boxes = []
    for node in workflow["nodes"]:
        if not node["flags"].get("collapsed"):
            (x, y), (width, height) = node["pos"], node["size"]
            boxes.append((x, y - TITLE, width, max(height, SHOWS_PICTURES.get(node["type"], 0)) + TITLE))
    assert not overlaps(boxes)
    assert not [box for box in boxes for group in workflow["groups"] if sticks_out(box, group["bounding"])]


def overlaps(boxes) -> list:
    """Pairs of [x, y, w, h] that share more than an edge."""
    return [
        (a, b)
        for i, a in enumerate(boxes)
        for b in boxes[i + 1 :]
        if a[0] < b[0] + b[2] and b[0] < a[0] + a[2] and a[1] < b[1] + b[3] and b[1] < a[1] + a[3]
    ]


def sticks_out(box, frame) -> bool:
    """Whether [x, y, w, h] lies across the border of a frame."""
    inside = all(frame[i] <= box[i] and box[i] + box[i + 2] <= frame[i] + frame[i + 2] for i in (0, 1))
    return bool(overlaps([box, frame])) and not inside


@each_workflow
def test_it_explains_itself_and_has_a_thumbnail(path):
    from PIL import Image

    workflow = load(path)
    notes = [node["widgets_values"][0] for node in workflow["nodes"] if node["type"] in NOTES]
    assert any("What to change" in note for note in notes)
    assert "`" not in "".join(notes), "the frontend draws code in blue, on a note's brown"
    assert workflow["groups"]
    with Image.open(path.with_suffix(".jpg")) as thumbnail:
        assert thumbnail.format == "JPEG" and thumbnail.width >= 400
    assert path.with_suffix(".jpg").stat().st_size < 200_000


@each_workflow
def test_its_words_are_shown_at_first_sight(path):
    """A new frontend fits a template's nodes, and 10 pixels around them, into three quarters of the window, here of a
    laptop's. It hides words that would be smaller than 8 pixels; nodes and notes have 14. Nodes 2.0 take a folded node
    to be as large as its file says."""
    nodes = load(path)["nodes"]
    width = max(n["pos"][0] + n["size"][0] for n in nodes) - min(n["pos"][0] for n in nodes) + 20
    height = max(n["pos"][1] + n["size"][1] for n in nodes) - min(n["pos"][1] for n in nodes) + TITLE + 20
    assert 0.75 * min(1366 / width, 768 / height) * 14 >= 8, (width, height)
    assert {n["size"][1] for n in nodes if n["flags"].get("collapsed")} <= {TITLE}


def test_apps_offer_what_is_there():
    """App mode of newer frontends: pictures, their words, prompt and seed go in, saved pictures come out."""
    apps = {path.stem: load(path) for path in WORKFLOWS if "linearData" in load(path)["extra"]}
    assert set(apps) == {"start here - miniature", "two objects (base)"}
    for name, workflow in apps.items():
        nodes, app = {node["id"]: node for node in workflow["nodes"]}, workflow["extra"]["linearData"]
        labels = []
        for number, widget, about in app["inputs"]:
            (entry,) = (each for each in nodes[number]["inputs"] if "widget" in each and each["name"] == widget)
            labels.append(entry.get("label", widget))
            assert about["description"]
        assert len(set(labels)) == len(labels), name
        offered = [(nodes[number]["type"], widget) for number, widget, _ in app["inputs"]]
        assert offered.count(("MIPReference", "text")) == 2 and offered[-1] == ("KSampler", "seed")
        assert ("CLIPTextEncode", "text") in offered
        assert {nodes[number]["type"] for number in app["outputs"]} == {"SaveImage"}


def test_what_applies_references_shows_who_listened_to_what():
    """Maps, in every template but those that compare or judge; masks too, but in the first ones and beside a style."""
    without_masks = {*FIRST, "objects in a style", "two objects (FLUX)"}
    for path in WORKFLOWS:
        nodes = load(path)["nodes"]
        if any(node["type"] == "MIPApply" for node in nodes) and path.stem not in WITHOUT_MAPS:
            (maps,) = (node for node in nodes if node["type"] == "MIPRelevanceMaps")
            shown = {output["name"] for output in maps["outputs"] if output["links"]}
            assert shown >= ({"overlays"} if path.stem in without_masks else {"overlays", "masks"}), path


# ---- in the browser ----


OPEN = """async workflow => {
    await app.loadGraphData(workflow)
    const {output} = await app.graphToPrompt()
    const nodes = app.graph._nodes
    return {
        output,
        widgets: Object.fromEntries(nodes.map(node => [node.id, node.serialize().widgets_values ?? []])),
        missing: nodes.filter(node => !LiteGraph.registered_node_types[node.type]).map(node => node.type),
        boxes: nodes.map(node => { node.updateArea?.(app.canvas.ctx); return [...node.getBounding()] }),
    }
}"""


SHOWN_NOTES = """app.graph._nodes.filter(node => node.type === "MarkdownNote")
    .map(node => node.widgets[0].element.firstElementChild)"""
NOTES_SHOWN = f"() => {SHOWN_NOTES}.every(note => note.clientHeight > 0)"
NOTES_LACK = f"() => {SHOWN_NOTES}.map(note => note.scrollHeight - note.clientHeight)"


@pytest.fixture(scope="module")
def page(stocked, browser):
    page = frontend.open_frontend(browser, stocked.url)
    page.evaluate(frontend.FOCUS)
    yield page
    page.close()


@each_workflow
def test_the_frontend_opens_it(page, stocked, path):
    workflow = load(path)
    opened = page.evaluate(OPEN, workflow)
    frontend.screenshot(page, path.stem)
    assert not opened["missing"]
    assert not page.locator(".p-dialog").all_inner_texts()  # missing nodes, missing models, no workflow at all
    assert not overlaps(opened["boxes"]), "the frontend made a node larger than the file says"
    assert not [box for box in opened["boxes"] for group in workflow["groups"] if sticks_out(box, group["bounding"])]
    page.evaluate(frontend.FIT)
    page.wait_for_function(NOTES_SHOWN)
    assert not [lack for lack in page.evaluate(NOTES_LACK) if lack > 0], "a note needs more pixels of height"
    for node in workflow["nodes"]:
        shown, written = opened["widgets"][str(node["id"])], node.get("widgets_values", [])
        # A newer host's own nodes may have more widgets, behind those that were saved.
        assert (shown if node["type"].startswith("MIP") else shown[: len(written)]) == written, node["type"]
    saved = load(converted(path))
    assert classes_and_inputs(opened["output"], saved) == classes_and_inputs(saved, opened["output"])


def classes_and_inputs(prompt: dict, other: dict) -> dict:
    """Of every node; its title is translated. Widgets of the host's own nodes differ from host to host: of those, only
    what the other prompt has too."""
    found = {}
    for number, node in prompt.items():
        ours, known = node["class_type"].startswith("MIP"), other.get(number, node)["inputs"]
        kept = {name: x for name, x in node["inputs"].items() if ours or isinstance(x, list) or name in known}
        found[number] = node["class_type"], kept
    return found


@each_workflow
def test_sockets_are_the_servers(stocked, path):
    known = get(stocked, "object_info").json()
    for node in load(path)["nodes"]:
        if node["type"] in NOTES:
            continue
        about = known[node["type"]]
        accepted = [name for part in ("required", "optional") for name in about["input_order"].get(part, [])]
        assert {entry["name"] for entry in node["inputs"]} <= set(accepted)
        # A newer host's own nodes may have more outputs, behind those that were saved.
        count = len(about["output"]) if node["type"].startswith("MIP") else len(node["outputs"])
        assert [output["type"] for output in node["outputs"]] == about["output"][:count]
        assert [output["name"] for output in node["outputs"]] == about["output_name"][:count]


@each_workflow
def test_the_server_accepts_it(stocked, path):
    queue(stocked, load(converted(path)))
    post(stocked, "queue", {"clear": True})
    post(stocked, "interrupt")
    wait_until_idle(stocked)


def test_the_miniature_runs_in_the_browser(page, stocked):
    wait_until_idle(stocked)
    page.evaluate(OPEN, load(MINIATURE))
    before = set(history(stocked))
    page.evaluate("async () => { await app.queuePrompt(0, 1) }")
    (new,) = wait_for(lambda: set(history(stocked)) - before)
    entry = history(stocked)[new]
    assert entry["status"]["status_str"] == "success", entry["status"]["messages"]
    pictures = [picture for node in entry["outputs"].values() for picture in node.get("images", ())]
    assert len(pictures) == 2 + 4 + 12  # what was drawn, the pictures, the maps
    for picture in pictures:
        assert get(stocked, "view", **picture).content.startswith(b"\x89PNG")
    frontend.screenshot(page, f"{MINIATURE.stem} - after")


# The `extra` that a prompt is queued with while a workflow with this linearData is shown in a mode.
QUEUED_IN_MODE = """async ([mode, linearData]) => {
    const {api, extensionManager: {workflow: {activeWorkflow: open}}} = app
    if (!("activeMode" in open)) return null
    const [{fetchApi}, before] = [api, open.activeMode]
    let extra
    api.fetchApi = function (route, options) {
        if (route !== "/prompt") return fetchApi.call(this, route, options)
        extra = JSON.parse(options.body).extra_data.extra_pnginfo.workflow.extra
        return Promise.resolve(new Response("{}"))
    }
    app.graph.extra.linearData = linearData
    open.activeMode = mode
    try {
        await api.queuePrompt(0, await app.graphToPrompt())
    } finally {
        open.activeMode = before
        api.fetchApi = fetchApi
    }
    return extra
}"""


def test_a_picture_made_in_app_mode_opens_as_the_app(page):
    """And one that is made with the graph in sight opens as the graph."""
    page.evaluate(OPEN, load(MINIATURE))
    app = load(MINIATURE)["extra"]["linearData"]
    if page.evaluate(QUEUED_IN_MODE, ["graph", app]) is None:
        pytest.skip("this frontend has no app mode")
    for mode, as_app in (("app", True), ("builder:arrange", True), ("graph", False), ("app", True)):
        extra = page.evaluate(QUEUED_IN_MODE, [mode, app])
        assert extra["linearMode"] is as_app and extra["linearData"] == app
    assert page.evaluate("() => app.graph.extra.linearMode") is False  # the open workflow itself stays as it was
    nothing = {"inputs": [], "outputs": []}
    assert page.evaluate(QUEUED_IN_MODE, ["app", nothing])["linearMode"] is False  # it is no app


def test_two_passes_run_and_their_maps_change_the_picture(stocked):
    wait_until_idle(stocked)
    prompt = load(API / "two passes.json")
    for node in prompt.values():
        node["inputs"] |= {key: 2 for key in ("steps", "batch_size") if isinstance(node["inputs"].get(key), int)}
    outputs = run(stocked, prompt)["outputs"]
    made = {node["_meta"]["title"]: outputs.get(key, {}).get("images", ()) for key, node in prompt.items()}
    assert len(made["Maps after the first pass"]) == 2 * 3 and len(made["Masks after the first pass"]) == 2 * 2
    two, one = (get(stocked, "view", **made[f"Picture: {name}"][0]).content for name in ("two passes", "one pass"))
    assert two.startswith(b"\x89PNG") and pixels(two) != pixels(one)


def pixels(png: bytes) -> bytes:
    from PIL import Image

    return Image.open(io.BytesIO(png)).tobytes()
