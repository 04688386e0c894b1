"""Detection, boxes and quality through a real server, as the shipped workflow has them."""

from __future__ import annotations

import json
import time

import httpx

from ..support.paths import API

WORKFLOW = API / "quality of a picture's objects.json"


def run(server, prompt: dict) -> dict:
    """The outputs by node."""
    answer = httpx.post(f"{server.url}/prompt", json={"prompt": prompt}, timeout=60)
    assert answer.status_code == 200, answer.text
    number = answer.json()["prompt_id"]
    deadline = time.monotonic() + 180
    while time.monotonic() < deadline:
        history = httpx.get(f"{server.url}/history/{number}", timeout=60).json()
        if number in history and history[number]["status"]["completed"]:
            return history[number]["outputs"]
        if number in history:
            raise AssertionError(history[number]["status"]["messages"][-1])
        time.sleep(0.2)
    raise AssertionError("the server did not finish in time")


def test_the_workflow_runs_and_boxes_come_back(server):
    """Boxes of MIPDetectObjects through a link of another type into MIPBoxes: the same scores but for the masks."""
    prompt = json.loads(WORKFLOW.read_text("utf-8"))
    known = {node["class_type"]: number for number, node in prompt.items()}
    found, score = known["MIPDetectObjects"], known["MIPObjectQualityScore"]
    images = prompt[found]["inputs"]["images"]
    masks, boxes = ({"images": images, "boxes": [found, slot], "texts": "star, heart",
                     "bbox_format": "x, y, width, height"} for slot in (2, 1))  # fmt: skip
    for name, inputs in (("masks", masks), ("boxes", boxes)):
        prompt[name] = {"class_type": "MIPBoxes", "inputs": inputs}
        scored = {**prompt[score]["inputs"], "detections": [name, 0]}
        prompt[f"score of {name}"] = {"class_type": "MIPObjectQualityScore", "inputs": scored}
        prompt[f"said of {name}"] = {"class_type": "PreviewAny", "inputs": {"source": [f"score of {name}", 3]}}
    outputs = run(server, prompt)
    reports = [outputs[node]["text"][0] for node in (known["PreviewAny"], "said of masks", "said of boxes")]
    assert all("| mean " in report and "nan" not in report for report in reports)
    assert reports[0] == reports[1] != reports[2]
    pictures = [picture for node in outputs.values() for picture in node.get("images", ())]
    assert len(pictures) == 4 + 4  # what was drawn, and what was found and scored
