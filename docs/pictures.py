"""`python mip.py pictures`: the pictures of the workflows and of the help pages, made anew in the real frontend.

Starts ComfyUI with this pack and a headless Chromium (CHROME_PATH, or one on the PATH). A workflow's picture shows what
went in and what came out (cards.py): with the miniature in place of files that this command does not have, or what went
in alone where the miniature cannot stand in.

    python mip.py pictures                                  all: workflows/*.jpg and web/docs/images/*.jpg
    python mip.py pictures --nodes                          the help pages' alone; --workflows: the workflows' alone
    python mip.py pictures --nodes MIPApply MIPReference    some of them, by name
"""

from __future__ import annotations

import argparse
import io
import json
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from PIL import Image

from ..launcher import comfyui
from ..launcher.server import Server, device_arguments
from . import browser, cards

ROOT = Path(__file__).resolve().parents[1]
MARGIN = 12  # canvas pixels around what is shown
NODE_ZOOM = 1.5
QUALITIES = (85, 75, 65)  # JPEG qualities; the first that stays below the limit is taken, or the last
LIMIT = {"workflows": 200_000, "images": 40_000}  # bytes
PATIENCE_S = 1800  # for one run of a workflow; sampling may have one core of a busy machine
# Help pages that show several nodes: name, workflow, the types of the nodes.
SCENES = {"chain": ("two objects (base)", ("LoadImage", "MIPReference"))}
ENCODER = "clip-vit-base-patch32"  # so that the list of Load MIP Encoder is not empty

# The canvas uses a font of the system; the frontend's own font is the same everywhere.
FONT = """async () => {
    await document.fonts.load("14px Inter")
    LiteGraph.NODE_FONT = LiteGraph.GROUP_FONT = "Inter"
}"""

PLACE = """([boxes, zoom, margin]) => {
    const left = Math.min(...boxes.map(b => b[0])), top = Math.min(...boxes.map(b => b[1]))
    const right = Math.max(...boxes.map(b => b[0] + b[2])), bottom = Math.max(...boxes.map(b => b[1] + b[3]))
    const {ds} = app.canvas
    ds.scale = zoom
    ds.offset = [margin - left, margin - top]
    app.canvas.deselectAll?.()
    app.canvas.setDirty(true, true)
}"""
# Areas of nodes with their title bars, and of groups. Notes are for readers of a workflow and are left out.
BOXES = """types => {
    const {graph} = app.canvas
    const nodes = graph._nodes.filter(n => types ? types.includes(n.type) : n.type !== "MarkdownNote")
    return [
        ...nodes.map(n => { n.updateArea?.(app.canvas.ctx); return [...n.getBounding()] }),
        ...(types ? [] : graph._groups.map(g => [...g._bounding])),
    ]
}"""
ALONE = """type => {
    app.graph.clear()
    const node = LiteGraph.createNode(type)
    if (!node) return false
    node.pos = [0, 0]
    node.setSize([Math.max(node.size[0], 320), node.size[1]])
    app.graph.add(node)
    return true
}"""
# The pictures that these nodes have made, of each that made some.
MADE = """ids => ids.map(id => app.nodeOutputs[id]?.images).filter(Boolean)"""
DRAWS = ("MIPMiniatureObject", "SaveImage", "PreviewImage")
STOOD_IN = "drawn by the miniature"
# A help page shows its node under the node's own title.
NAME = """type => {
    const node = app.graph._nodes.find(node => node.type === type)
    node.title = node.constructor.title
}"""
# What the open workflow queues.
QUEUED = "async () => (await app.graphToPrompt()).output"
# Queues these nodes and waits for the end of their run. Returns null, or why the run failed.
RUN = """([output, patience]) => new Promise(done => {
    const {api} = app
    setTimeout(() => done("it took too long"), patience)
    api.addEventListener("execution_success", () => done(null), {once: true})
    api.addEventListener("execution_interrupted", () => done("it was interrupted"), {once: true})
    api.addEventListener("execution_error", ({detail}) => done(`${detail.node_type}: ${detail.exception_message}`),
        {once: true})
    app.graphToPrompt().then(({workflow}) => api.queuePrompt(0, {output, workflow})).catch(error => done(error.message))
})"""


def main(argv: list[str]) -> int:
    first, *rest = (__doc__ or "").splitlines()
    parser = argparse.ArgumentParser(
        prog="mip.py pictures",
        description=first,
        epilog="\n".join(rest),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--workflows", nargs="*", metavar="NAME", help="of these workflows, or of all")
    parser.add_argument("--nodes", nargs="*", metavar="ID", help="of these nodes, or of all")
    parser.add_argument("--output", type=Path, default=ROOT, help="folder in place of this repository")
    given = parser.parse_args(argv)
    both = given.workflows is None and given.nodes is None
    pages = sorted(path.stem for path in (ROOT / "web" / "docs").glob("*.md"))
    try:
        workflows = chosen(given.workflows, [path.stem for path in browser.WORKFLOWS], both)
        nodes = chosen(given.nodes, [*pages, *SCENES], both)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    chrome = browser.find_chrome()
    if chrome is None:
        print(browser.NO_CHROME, file=sys.stderr)
        return 1
    with serving() as url, browser.launched(chrome) as running:
        page = browser.open_frontend(running, url, **{"Comfy.NodeBadge.NodeSourceBadgeMode": "None"})
        maker = Maker(page, given.output)
        for name in nodes:
            maker.node(name)
        failed = [name for name in workflows if not maker.workflow(name)]
    return int(bool(failed))


def chosen(wanted: list[str] | None, known: list[str], both: bool) -> list[str]:
    """The wanted names. An option without names stands for all; an option that is not given stands for none.

    wanted: names after the option, None if it was not given.
    known: all names.
    both: whether neither option was given, which stands for all of both kinds.

    Raises ValueError for unknown names.
    """
    if unknown := set(wanted or ()) - set(known):
        raise ValueError(f"There is no {', '.join(sorted(unknown))}; choose from: {', '.join(known)}.")
    return wanted or (known if both or wanted is not None else [])


@contextmanager
def serving() -> Iterator[str]:
    """A running ComfyUI with this pack and the files that the workflows name; yields its address."""
    host = comfyui.given_host() or comfyui.unpacked_host_folder()
    with tempfile.TemporaryDirectory(prefix="mip-pictures-", ignore_cleanup_errors=True) as folder:
        base = Path(folder)
        browser.stock(base)
        encoder = base / "models" / "mip_encoders" / ENCODER / "config.json"
        encoder.parent.mkdir(parents=True)
        encoder.write_text("{}", "utf-8")
        with Server(sys.executable, host, base, device_arguments(sys.executable)) as server:
            yield server.url


class Maker:
    """Opens and runs workflows on one page of the frontend, and saves pictures of them. output: the folder."""

    def __init__(self, page: Any, output: Path) -> None:
        self.page, self.output = page, output
        self.opened = {path.stem: json.loads(path.read_text("utf-8")) for path in browser.WORKFLOWS}
        page.evaluate(browser.FOCUS)
        page.evaluate(FONT)

    def workflow(self, name: str) -> bool:
        """Makes a workflow's picture. Returns False if it could not be run; its picture then stays as it was."""
        begin = time.monotonic()
        self.page.evaluate(browser.OPEN, self.opened[name])
        nodes = self.page.evaluate(QUEUED)
        stand_in = cards.STAND_INS.get(name)
        if stand_in is not None:
            nodes = cards.on_miniature(nodes, stand_in)
        if all(node["class_type"] != "MIPMiniatureLoader" for node in nodes.values()):
            card = self.ingredients(nodes)
        elif problem := self.page.evaluate(RUN, [nodes, PATIENCE_S * 1000]):
            print(f"{name}: no picture, because {problem}", file=sys.stderr, flush=True)
            self.page.keyboard.press("Escape")  # closes the frontend's error dialog
            return False
        else:
            card = self.results(nodes, STOOD_IN if stand_in else "")
        self.save(card, Path("workflows", f"{name}.jpg"), time.monotonic() - begin)
        return True

    def ingredients(self, nodes: cards.Prompt) -> Image.Image:
        """What goes into a workflow: its pictures, each once, and its prompt."""
        names = dict.fromkeys(n["inputs"]["image"] for n in nodes.values() if n["class_type"] == "LoadImage")
        pictures = [self.fetched({"filename": each, "type": "input"}) for each in names]
        return cards.ingredients(pictures, cards.prompt_of(nodes))

    def results(self, nodes: cards.Prompt, remark: str) -> Image.Image:
        """What these nodes have made: the drawn references, and what was saved beside them.

        Of several nodes that save, the first; one picture of each where there are four to compare. Where none saves,
        the last preview.
        """
        kinds = [[id for id, node in nodes.items() if node["class_type"] == kind] for kind in DRAWS]
        drawn, saved, previewed = (self.page.evaluate(MADE, ids) for ids in kinds)
        if not saved:
            return cards.stacked([self.fetched(each) for each in previewed[-1][:2]])
        compared = len(saved) >= 4
        chosen = [its[0] for its in saved] if compared else saved[0]
        names = [cards.name_of(nodes[id]) for id in kinds[1]] if compared else []
        return cards.results(
            [self.fetched(picture) for picture, *_ in drawn], [self.fetched(each) for each in chosen], names, remark
        )

    def fetched(self, picture: dict[str, str]) -> Image.Image:
        """A picture that the server keeps, by what /view needs for it."""
        answer = self.page.request.get(f"{self.page.evaluate('location.origin')}/view", params=picture)
        return Image.open(io.BytesIO(answer.body())).convert("RGB")

    def node(self, name: str) -> None:
        """Makes the picture of a help page: a scene, or a node in the smallest workflow that has it, else alone. A node
        that this host does not have keeps its picture."""
        begin = time.monotonic()
        if name in SCENES:
            workflow, kinds = SCENES[name]
            self.page.evaluate(browser.OPEN, self.opened[workflow])
            boxes = self.page.evaluate(BOXES, list(kinds))
        else:
            having = [each for each in self.opened.values() if any(n["type"] == name for n in each["nodes"])]
            if having:
                self.page.evaluate(browser.OPEN, min(having, key=lambda each: len(each["nodes"])))
            elif not self.page.evaluate(ALONE, name):
                print(f"{name}: no picture, because this ComfyUI does not have it", file=sys.stderr, flush=True)
                return
            self.page.evaluate(NAME, name)
            boxes = self.page.evaluate(BOXES, [name])[:1]
        picture = self.photograph(boxes, 1 if name in SCENES else NODE_ZOOM)
        self.save(picture, Path("web", "docs", "images", f"{name}.jpg"), time.monotonic() - begin)

    def photograph(self, boxes: list[list[float]], zoom: float) -> Image.Image:
        """The part of the canvas that boxes [x, y, w, h] cover, once it has stopped changing."""
        width = max(x + w for x, _, w, _ in boxes) - min(x for x, *_ in boxes) + 2 * MARGIN
        height = max(y + h for _, y, _, h in boxes) - min(y for _, y, *_ in boxes) + 2 * MARGIN
        clip = {"width": round(width * zoom), "height": round(height * zoom)}
        # The window is larger, because a menu is in its corner.
        larger = {side: max(size + 100, browser.SIZE[side]) for side, size in clip.items()}
        self.page.set_viewport_size(larger)
        self.page.evaluate(PLACE, [boxes, zoom, MARGIN])
        self.page.wait_for_load_state("networkidle")
        before, now = b"", b" "
        for _ in range(40):
            self.page.evaluate("() => app.canvas.setDirty(true, true)")  # draws what has been loaded meanwhile
            self.page.wait_for_timeout(250)
            before, now = now, self.page.screenshot(clip={"x": 0, "y": 0, **clip})
            if before == now:
                break
        return Image.open(io.BytesIO(now)).convert("RGB")

    def save(self, picture: Image.Image, path: Path, seconds: float) -> None:
        file = self.output / path
        file.parent.mkdir(parents=True, exist_ok=True)
        for quality in QUALITIES:
            picture.save(file, quality=quality, optimize=True)
            if file.stat().st_size < LIMIT[file.parent.name]:
                break
        size = file.stat().st_size / 1000
        print(f"{path.as_posix()}  {picture.width} × {picture.height}, {size:.0f} kB, {seconds:.1f} s", flush=True)
