"""The binding report through a real server: drawn pictures with right and with exchanged looks."""

from __future__ import annotations

from ..support.queueing import run

LOOKS = {"star": ("striped", "yellow", "green"), "fish": ("plain", "blue", "blue")}


def graph(exchanged: bool) -> dict:
    """References, a picture of both objects side by side, and what the report says of it."""
    prompt: dict = {
        "model": {"class_type": "MIPMiniatureLoader", "inputs": {}},
        "detector": {"class_type": "MIPDetectorLoader", "inputs": {"detector_name": "miniature world (pixels)"}},
        "encoder": {"class_type": "MIPEncoderFromModels", "inputs": {"clip_vision": ["model", 3]}},
    }
    for kind, look in LOOKS.items():
        other = LOOKS["fish" if kind == "star" else "star"] if exchanged else look
        for name, (pattern, colour, second), pose in ((kind, look, 4), (f"new {kind}", other, 7)):
            inputs = {"kind": kind, "pattern": pattern, "colour": colour, "second_colour": second, "pose": pose}
            prompt[name] = {"class_type": "MIPMiniatureObject", "inputs": inputs}
        reference = {"image": [kind, 0], "text": kind, "weight": 1.0}
        if kind == "fish":
            reference["references"] = ["reference star", 0]
        prompt[f"reference {kind}"] = {"class_type": "MIPReference", "inputs": reference}
    stitch = {"direction": "right", "match_image_size": True, "spacing_width": 0, "spacing_color": "white"}
    references = ["reference fish", 0]
    prompt |= {
        "picture": {
            "class_type": "ImageStitch",
            "inputs": {"image1": ["new star", 0], "image2": ["new fish", 0], **stitch},
        },
        "found": {
            "class_type": "MIPDetectObjects",
            "inputs": {
                "images": ["picture", 0],
                "detector": ["detector", 0],
                "texts": "",
                "threshold": 0.3,
                "references": references,
            },
        },
        "report": {
            "class_type": "MIPBindingReport",
            "inputs": {
                "images": ["picture", 0],
                "references": references,
                "detections": ["found", 0],
                "encoder": ["encoder", 0],
            },
        },
        "best": {"class_type": "MIPSeedPicker", "inputs": {"images": ["picture", 0], "binding": ["report", 5]}},
        "said": {"class_type": "PreviewAny", "inputs": {"source": ["report", 3]}},
        "ranking": {"class_type": "PreviewAny", "inputs": {"source": ["best", 3]}},
        "matrix": {"class_type": "PreviewImage", "inputs": {"images": ["report", 4]}},
    }
    return prompt


def test_right_and_exchanged_looks_are_told_apart(server):
    right, exchanged = (run(server, graph(exchanged))["outputs"] for exchanged in (False, True))
    assert "wear each other's looks" in exchanged["said"]["text"][0], exchanged["said"]["text"][0]
    assert "All is well: both objects were found" in right["said"]["text"][0], right["said"]["text"][0]
    assert "2 of 2" in right["ranking"]["text"][0] and len(right["matrix"]["images"]) == 1
