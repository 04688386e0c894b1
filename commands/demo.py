"""The demo: a shipped workflow, posted to a running server and followed to its pictures.

prepare --base-directory DIR      photographs for a server's other workflows
run --server URL --output DIR     post, follow, download
"""

import argparse
import asyncio
import importlib.util
import json
import shutil
import sys
import time
import uuid
from pathlib import Path
from typing import Any

import aiohttp
from PIL import Image

from ..common.atomic_io import atomic_file
from ..common.console import complain, legible, say
from ..common.text_files import parse_json, read_text
from . import demo_sheet

WORKFLOW = Path(__file__).with_name("demo_api.json")
SHEET = "demo.png"
ROWS = (
    ("uniform", "every place listens to both references alike"),
    ("relevance", "every place listens to the object that its word points at: the method"),
)
PHOTOGRAPHS = {
    "cat.png": "chelsea.png",
    "coffee.png": "coffee.png",
    "rocket.jpg": "rocket.jpg",
    "astronaut.png": "astronaut.png",
}
QUIET_S = 300  # seconds without a message after which the server counts as stuck


class DemoError(Exception):
    """There is no picture. The message is a sentence for the user."""


def prepare(base: Path) -> None:
    """Copies photographs from scikit-image's wheel to the input folder of a server's base folder."""
    spec = importlib.util.find_spec("skimage")
    if spec is None or spec.origin is None:
        raise DemoError("The demo's photographs come with scikit-image: pip install scikit-image.")
    inputs = base / "input"
    inputs.mkdir(parents=True, exist_ok=True)
    for name, source in PHOTOGRAPHS.items():
        shutil.copyfile(Path(spec.origin).parent / "data" / source, inputs / name)


def read_workflow(file: Path) -> dict[str, Any]:
    """A workflow in API format. Raises DemoError for any other file."""
    try:
        workflow = parse_json(read_text(file))
    except (OSError, ValueError) as error:
        raise DemoError(f"The workflow {file} cannot be read ({error}).") from error
    nodes: list[Any] = list(workflow.values()) if isinstance(workflow, dict) else [None]
    if not all(isinstance(node, dict) and isinstance(node.get("class_type"), str) for node in nodes) or not all(
        isinstance(node.get("_meta", {}), dict) for node in nodes
    ):
        raise DemoError(f"{file} is no workflow in API format: in ComfyUI's menu choose “Export (API)”.")
    return workflow


async def run(server: str, output: Path, workflow: dict[str, Any]) -> list[Path]:
    """Posts a workflow, follows its run and downloads its pictures; returns their paths, sorted.

    server: its address.
    output: the folder for the pictures.
    workflow: in API format.

    Raises DemoError with the server's reason.
    """
    client = uuid.uuid4().hex
    try:
        async with aiohttp.ClientSession(server) as session:
            # Listen before posting, so that no message is missed.
            async with session.ws_connect(f"/ws?clientId={client}", max_msg_size=0) as messages:
                prompt_id = await _post(session, workflow, client)
                await _follow(messages, prompt_id, workflow)
            return await _download(session, prompt_id, output)
    except aiohttp.ClientError as error:
        raise DemoError(f"No conversation with the server at {server}: {error}") from error


async def _post(session: aiohttp.ClientSession, workflow: dict[str, Any], client: str) -> str:
    async with session.post("/prompt", json={"prompt": workflow, "client_id": client}) as answer:
        body = await answer.json(content_type=None)
    if answer.status == 200 and not body.get("node_errors"):
        return body["prompt_id"]
    reasons = [
        f"{_title(workflow, node)}: {error['message']}: {error['details']}"
        for node, found in (body.get("node_errors") or {}).items()
        for error in found["errors"]
    ]
    error = body.get("error") or {}
    reasons = reasons or [f"{error.get('message', answer.reason)} {error.get('details', '')}"]
    raise DemoError("The server refused the workflow. " + "; ".join(reasons))


async def _follow(messages: aiohttp.ClientWebSocketResponse, prompt_id: str, workflow: dict[str, Any]) -> None:
    line = ProgressLine()
    try:
        while True:
            message = await messages.receive(timeout=QUIET_S)
            if message.type is aiohttp.WSMsgType.BINARY:  # previews
                continue
            if message.type is not aiohttp.WSMsgType.TEXT:
                raise DemoError("The server closed the connection before the pictures were done; see its log.")
            event = json.loads(message.data)
            data = event.get("data") or {}
            if data.get("prompt_id") != prompt_id:
                continue
            if _finished(event["type"], data, line, workflow):
                return
    except asyncio.TimeoutError as error:
        raise DemoError(f"The server said nothing for {QUIET_S} seconds.") from error
    finally:
        line.end()


def _finished(kind: str, data: dict[str, Any], line: "ProgressLine", workflow: dict[str, Any]) -> bool:
    if kind == "execution_error":
        raise DemoError(
            f"{_title(workflow, data.get('node_id'))} failed: "
            f"{data.get('exception_type')}: {data.get('exception_message', '').strip()}"
        )
    if kind == "execution_interrupted":
        raise DemoError(f"The run was interrupted at {_title(workflow, data.get('node_id'))}.")
    if kind == "executing" and data.get("node") is not None:
        line.show(_title(workflow, data["node"]))
    elif kind == "progress":
        line.show(_title(workflow, data.get("node")), data["value"], data["max"])
    return kind == "execution_success"


async def _download(session: aiohttp.ClientSession, prompt_id: str, output: Path) -> list[Path]:
    pictures = [
        picture
        for node in (await _outputs(session, prompt_id)).values()
        for picture in node.get("images", ())
        if picture["type"] == "output"
    ]
    if not pictures:
        raise DemoError("The workflow ended without a picture.")
    output.mkdir(parents=True, exist_ok=True)
    paths = []
    for picture in pictures:
        async with session.get("/view", params=picture) as answer:
            answer.raise_for_status()
            paths.append(output / Path(picture["filename"]).name)
            paths[-1].write_bytes(await answer.read())
    return sorted(paths)


async def _outputs(session: aiohttp.ClientSession, prompt_id: str, patience_s: float = 20) -> dict[str, Any]:
    """The outputs of a run, by node.

    The server announces success a moment before its history holds the run, so this asks for up to patience_s seconds.
    """
    deadline = time.monotonic() + patience_s
    while time.monotonic() < deadline:
        async with session.get(f"/history/{prompt_id}") as answer:
            history = await answer.json()
        if prompt_id in history:
            return history[prompt_id]["outputs"]
        await asyncio.sleep(0.1)
    raise DemoError("The server's history does not know the run that it has just finished; see its log.")


def _title(workflow: dict[str, Any], node: object) -> str:
    entry = workflow.get(str(node))
    if entry is None:
        return f"node {node}"
    return entry.get("_meta", {}).get("title") or entry["class_type"]


class ProgressLine:
    """Progress on standard output: one line that is rewritten in a terminal, one line for each node elsewhere."""

    def __init__(self) -> None:
        self.terminal = sys.stdout.isatty()
        self.node = ""

    def show(self, node: str, value: int = 0, total: int = 0) -> None:
        if self.terminal:
            bar = f"  {'█' * (20 * value // total):░<20} {value}/{total}" if total else ""
            print(f"\r\033[K  {legible(node)}{bar}", end="", flush=True)
        elif node != self.node:
            say(f"  {node}")
        self.node = node

    def end(self) -> None:
        if self.terminal:
            print("\r\033[K", end="", flush=True)


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="mip.py demo", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    steps = parser.add_subparsers(dest="step", required=True)
    step = steps.add_parser("prepare", help="photographs into a server's folders")
    step.add_argument("--base-directory", type=Path, required=True)
    step = steps.add_parser("run", help="post the workflow to a running server and fetch its pictures")
    step.add_argument("--server", required=True, help="for example http://127.0.0.1:8188")
    step.add_argument("--output", type=Path, required=True)
    step.add_argument("--workflow", type=Path, default=WORKFLOW, help="another workflow, in API format")
    options = parser.parse_args(arguments)
    try:
        if options.step == "prepare":
            prepare(options.base_directory)
            return 0
        workflow = read_workflow(options.workflow)
        paths = asyncio.run(run(options.server, options.output, workflow))
    except DemoError as error:
        complain(f"error: {error}")
        return 1
    for path in paths:
        say(path.resolve())
    if options.workflow != WORKFLOW:
        return 0
    counts = explain(workflow, paths, options.output / SHEET)
    for name, (own, of) in counts.items():
        say(f"{name}: {own} of {of} objects wear their own reference's colours")
    say(f"The picture to look at: {(options.output / SHEET).resolve()}")
    return 0


def explain(workflow: dict[str, Any], paths: list[Path], file: Path) -> dict[str, tuple[int, int]]:
    """Writes the demo's pictures as one sheet, as PNG.

    Returns for each row how many objects wear their own looks, and how many objects there are.
    """
    pictures = {name: _pictures(paths, f"miniature {name}") for name in ("uniform", "relevance", "maps")}
    objects = demo_sheet.objects_of(workflow)
    # For every picture there is one map of all objects, then one for each object.
    maps = pictures["maps"][:: len(objects) + 1]
    prompt = next(node["inputs"]["text"] for node in workflow.values() if node["_meta"]["title"] == "Prompt")
    sheet, counts = demo_sheet.draw_sheet(prompt, objects, [(name, what, pictures[name]) for name, what in ROWS], maps)
    with atomic_file(file) as temporary:
        sheet.save(temporary, "PNG")
    return counts


def _pictures(paths: list[Path], prefix: str) -> list[Image.Image]:
    return [Image.open(path).convert("RGB") for path in paths if path.name.startswith(prefix)]
