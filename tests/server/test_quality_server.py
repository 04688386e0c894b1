"""Detection, boxes and quality through a real server, as the shipped workflow has them."""

from __future__ import annotations

import json

from ..support.paths import API
from ..support.queueing import run

WORKFLOW = API / "quality of a picture's objects.json"


def test_the_workflow_runs_and_boxes_come_back(server):
    """Boxes of MIPDetectObjects through a link of another type into MIPBoxes: the same scores but for the masks."""
    prompt = json.loads(WORKFLOW.read_text("utf-8"))
    known = {node["class_type"]: number for number, node in prompt.items()}
    for node in prompt.values():  # poses of its own: what another test has drawn would come from the cache
        if "pose" in node["inputs"]:
            node["inputs"]["pose"] += 40
    found, score = known["MIPDetectObjects"], known["MIPObjectQualityScore"]
    images = prompt[found]["inputs"]["images"]
    masks, boxes = ({"images": images, "boxes": [found, slot], "texts": "star, heart",
                     "bbox_format": "x, y, width, height"} for slot in (2, 1))  # fmt: skip
    for name, inputs in (("masks", masks), ("boxes", boxes)):
        prompt[name] = {"class_type": "MIPBoxes", "inputs": inputs}
        scored = {**prompt[score]["inputs"], "detections": [name, 0]}
        prompt[f"score of {name}"] = {"class_type": "MIPObjectQualityScore", "inputs": scored}
        prompt[f"said of {name}"] = {"class_type": "PreviewAny", "inputs": {"source": [f"score of {name}", 3]}}
    outputs = run(server, prompt)["outputs"]
    reports = [outputs[node]["text"][0] for node in (known["PreviewAny"], "said of masks", "said of boxes")]
    assert all("| mean " in report and "nan" not in report for report in reports)
    assert reports[0] == reports[1] != reports[2]
    pictures = [picture for node in outputs.values() for picture in node.get("images", ())]
    assert len(pictures) == 4 + 4  # what was drawn, and what was found and scored
