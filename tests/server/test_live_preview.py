"""The sampler's preview with the relevance drawn over it: what a frontend receives from a real server."""

from __future__ import annotations

import io
import json
import struct
import uuid

import aiohttp
import httpx
import numpy as np
import pytest
import torch
from mip_adapter.commands import demo
from PIL import Image

from ..support.loops import complete

SETTING = "MIP-Adapter.LivePreview"
WITH_METADATA = 4  # the host's number for a preview that says which node it belongs to
STEPS = 3


@pytest.fixture(scope="module")
def prepared(server):
    demo.prepare(server.base)
    return server


def prompt(seed: int, strategy: str = "relevance", model: str = "apply") -> dict:
    nodes = {
        "bundle": ("MIPMiniatureLoader", {}),
        "adapter": ("MIPAdapterLoader", {"adapter_name": "miniature_mip.safetensors"}),
        "picture": ("LoadImage", {"image": "cat.png"}),
        "one": ("MIPReference", {"image": ["picture", 0], "text": "cat", "weight": 1.0}),
        "two": ("MIPReference", {"image": ["picture", 0], "text": "cup", "weight": 1.0, "references": ["one", 0]}),
        "merge": (
            "MIPMerge",
            {"strategy": strategy, "normalization": "sum", "background": 0.0, "sharpness": 1.0},
        ),
        "apply": ("MIPApply", {
            "model": ["bundle", 0], "clip": ["bundle", 1], "clip_vision": ["bundle", 3], "adapter": ["adapter", 0],
            "references": ["two", 0], "merge": ["merge", 0], "scale": 0.75, "start_percent": 0.0, "end_percent": 1.0,
        }),
        "prompt": ("CLIPTextEncode", {"clip": ["bundle", 1], "text": "a cat and a cup"}),
        "latent": ("EmptyLatentImage", {"width": 128, "height": 64, "batch_size": 1}),
        "sampler": ("KSampler", {
            "model": [model, 0], "positive": ["prompt", 0], "negative": ["prompt", 0], "latent_image": ["latent", 0],
            "seed": seed, "steps": STEPS, "cfg": 3.0, "sampler_name": "euler", "scheduler": "normal", "denoise": 1.0,
        }),
        "decode": ("VAEDecode", {"samples": ["sampler", 0], "vae": ["bundle", 2]}),
        "save": ("SaveImage", {"images": ["decode", 0], "filename_prefix": uuid.uuid4().hex}),
    }  # fmt: skip
    return {name: {"class_type": kind, "inputs": inputs} for name, (kind, inputs) in nodes.items()}


def run(server, graph: dict, preview: bool) -> tuple[list[tuple[dict, Image.Image]], list[float], np.ndarray]:
    """Previews with their metadata and the progress of the sampler, as a frontend receives them; the picture."""
    httpx.post(f"{server.url}/settings", json={SETTING: preview}, trust_env=False).raise_for_status()
    return complete(_run(server, graph))


async def _run(server, graph: dict):
    client, previews, progress = uuid.uuid4().hex, [], []
    async with aiohttp.ClientSession(server.url) as session:
        async with session.ws_connect(f"/ws?clientId={client}", max_msg_size=0) as ws:
            await ws.send_json({"type": "feature_flags", "data": {"supports_preview_metadata": True}})
            async with session.post("/prompt", json={"prompt": graph, "client_id": client}) as answer:
                number = (await answer.json())["prompt_id"]
            while True:
                message = await ws.receive(timeout=120)
                if message.type is aiohttp.WSMsgType.BINARY:
                    kind, length = struct.unpack(">II", message.data[:8])
                    assert kind == WITH_METADATA
                    told = json.loads(message.data[8 : 8 + length])
                    previews.append((told, Image.open(io.BytesIO(message.data[8 + length :])).convert("RGB")))
                    continue
                event = json.loads(message.data)
                if event["type"] == "progress_state" and "sampler" in event["data"]["nodes"]:
                    progress.append(event["data"]["nodes"]["sampler"]["value"])
                assert event["type"] != "execution_error", event
                if event["type"] == "execution_success" and event["data"]["prompt_id"] == number:
                    break
        saved = (await demo._outputs(session, number))["save"]["images"][0]
        async with session.get("/view", params=saved) as answer:
            picture = np.asarray(Image.open(io.BytesIO(await answer.read())))
    return previews, progress, picture


def swatches(image: Image.Image) -> list[int]:
    """How many pixels of the legend have the first two objects' colours."""
    from mip_adapter.common.drawing import colour

    legend = np.asarray(image.crop((0, image.width // 2, image.width, image.height))).astype(int)
    return [int((np.abs(legend - colour(i)).max(-1) < 30).sum()) for i in range(2)]


def test_off_and_on(prepared) -> None:
    """The tests' host makes no previews of its own: what comes is ours. The picture is the same, bit by bit."""
    nothing, _, off = run(prepared, prompt(seed=1), preview=False)
    _, _, other = run(prepared, prompt(seed=2), preview=False)  # so that the first is not taken from the cache
    previews, progress, on = run(prepared, prompt(seed=1), preview=True)
    # Hosts since 2026 report no step between the first and the last that comes within a tenth of a second.
    assert not nothing and 2 <= len(previews) <= STEPS and progress[-1] == STEPS
    assert np.array_equal(on, off) and not np.array_equal(on, other)
    for told, image in previews:
        assert told["node_id"] == told["display_node_id"] == "sampler"
        assert image.width == 512 and image.height > 256 and min(swatches(image)) > 50
    assert previews[0][1].tobytes() != previews[-1][1].tobytes()


def test_what_has_no_relevance_is_previewed_as_the_host_would(prepared) -> None:
    for graph in (prompt(3, strategy="uniform"), prompt(3, model="bundle")):
        previews, progress, _ = run(prepared, graph, preview=True)
        assert not previews and progress[-1] == STEPS


def test_the_host_s_own_preview_is_what_is_drawn_over(host, monkeypatch, tmp_path) -> None:
    """With a previewer of the host's: its picture under the colours, sent once a step, as it is where none are."""
    from types import SimpleNamespace

    from comfy.latent_formats import SDXL
    from comfy.utils import ProgressBar, set_progress_bar_global_hook
    from comfy_execution.progress import ProgressHandler, get_progress_state
    from mip_adapter.patching import preview
    from mip_adapter.relevance.observation import Observation, RunId
    from mip_adapter.relevance.record import RelevanceRecord

    sent = []

    class Frontend(ProgressHandler):
        def update_handler(self, node_id, value, max_value, state, prompt_id, image=None):
            sent.append((node_id, value, image))

    registry = get_progress_state()
    registry.register_handler(Frontend("webui"))
    set_progress_bar_global_hook(lambda value, total, image, **_: registry.update_progress("7", value, total, image))
    try:
        bar = ProgressBar(2)

        def callback(step, x0, x, total):
            bar.update_absolute(step + 1, total, ("PNG", Image.new("RGB", (20, 10), "red"), 300))

        record = RelevanceRecord(("cat", "dog"))
        records: list = []
        drawn = preview.with_relevance(callback, records, SDXL())
        drawn(0, torch.zeros(1, 4, 1, 2), None, 2)
        shares = torch.tensor([[[[1.0, 0.0]]], [[[0.0, 1.0]]]])  # the left half is the cat's
        seen = Observation(shares, None, (1, 2), (0, 0), 2)
        record.add(RunId(record, 1), 0, torch.zeros(1, dtype=torch.long), 2, [seen])
        records.append(record)
        drawn(1, torch.zeros(1, 4, 1, 2), None, 2)
    finally:
        set_progress_bar_global_hook(None)
        registry.unregister_handler("webui")
    assert [(node, value) for node, value, _ in sent] == [("7", 1), ("7", 2)] and list(registry.handlers) == []
    assert sent[0][2][1].size == (20, 10)
    kind, image, limit = sent[1][2]
    assert (kind, limit, image.width) == ("PNG", 300, 300)
    left, right = (np.asarray(image)[75, x].astype(int) for x in (20, 280))
    assert left[2] > left[1] > 60 and right[0] > right[1] > 60 and right[2] < 40  # blue and orange over red

    monkeypatch.setattr(preview.folder_paths, "get_public_user_directory", lambda _: str(tmp_path))
    assert not preview.wanted()
    for text, on in (("{", 0), ("[]", 0), (json.dumps({SETTING: False}), 0), (json.dumps({SETTING: True}), 1)):
        (tmp_path / "comfy.settings.json").write_text(text)
        assert preview.wanted() == bool(on)
    monkeypatch.setattr(preview, "args", SimpleNamespace(multi_user=True))
    assert not preview.wanted()


def test_the_frontend_has_the_setting(server, browser) -> None:
    from ..support.frontend import open_frontend

    httpx.post(f"{server.url}/settings", json={SETTING: False}, trust_env=False)
    page = open_frontend(browser, server.url)
    assert page.evaluate("id => app.extensionManager.setting.get(id)", SETTING) is False
    page.evaluate("id => app.extensionManager.setting.set(id, true)", SETTING)
    assert httpx.get(f"{server.url}/settings/{SETTING}", trust_env=False).json() is True
    page.evaluate("id => app.extensionManager.setting.set(id, false)", SETTING)
    page.close()
