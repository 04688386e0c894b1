"""Load MIP Detector and MIP Detect Objects, called as the host calls them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from mip_adapter.evaluation.detection.detect import detect
from mip_adapter.evaluation.detection.folder_detector import load_detector
from mip_adapter.miniature.pixel_detector import NAME, PixelDetector
from mip_adapter.miniature.world_shapes import KINDS

from ..evaluation.test_detection import pictures, scenes
from ..support import tiny_models
from ..support.graphs import references
from ..support.sentences import told


@pytest.fixture
def nodes(host):
    from mip_adapter.nodes import detect as nodes
    from mip_adapter.weights.comfy_files import register_folders

    register_folders()
    return nodes


def test_the_loader(nodes, host):
    place = host.base / "models" / "grounding-dino"
    tiny_models.grounding_dino(place / "tiny")
    (place / "groundingdino_swint_ogc.pth").touch()  # another pack's, beside ours
    loader = nodes.MIPDetectorLoader
    assert loader.define_schema().inputs[0].options == [NAME, "tiny"]
    assert loader.validate_inputs(NAME) is True and loader.validate_inputs("tiny") is True
    assert "was not found" in str(loader.validate_inputs("nothing"))
    assert "leads out" in str(loader.validate_inputs("../loras"))
    images, texts = pictures(2), ("star",)
    detector = loader.execute("tiny").args[0]
    got, expected = (detect(each, images, texts, 0.5) for each in (detector, load_detector(place / "tiny")))
    for b in range(2):
        boxes = [[each.box for each in found.found[b][0]] for found in (got, expected)]
        assert np.allclose(*boxes, atol=1e-3)
    assert loader.fingerprint_inputs(NAME) == NAME != loader.fingerprint_inputs("tiny")


def test_detect_objects(nodes):
    drawn, picture = scenes(2)
    images, wanted = picture.images.movedim(1, -1), [KINDS[drawn.present(0)[0]], KINDS[drawn.present(1)[0]]]
    found, boxes, masks, shown, said = nodes.MIPDetectObjects.execute(
        images, PixelDetector(), f"{wanted[0]}, {wanted[1]}", 0.25
    ).args
    assert found.texts == tuple(wanted) and len(boxes) == 2 and masks.shape == (4, 128, 128)
    assert shown.shape[0] == 2 and said.count("\n") == 1 and wanted[0] in said
    best = found.found[0][0][0]
    assert torch.equal(masks[0], best.mask)
    x0, y0, x1, y1 = best.box
    first = next(box for box in boxes[0] if box["label"] == wanted[0])
    assert (first["x"], first["y"], first["width"], first["height"]) == (x0, y0, x1 - x0, y1 - y0)
    missing = [m for m in range(2) if not found.found[0][m]]
    assert all(not masks[m].any() for m in missing)
    for number, name in enumerate((wanted[0].upper(), "2")):
        one = nodes.MIPDetectObjects.execute(images, PixelDetector(), ", ".join(wanted), 0.25, object=name).args[2]
        assert torch.equal(one, masks[number::2])
    with pytest.raises(ValueError, match="“unicorn” is none of the objects"):
        nodes.MIPDetectObjects.execute(images, PixelDetector(), ", ".join(wanted), 0.25, object="unicorn")


def test_texts_of_the_references(nodes):
    chain = references(["star", "ring", "star"])
    found = nodes.MIPDetectObjects.execute(scenes(1)[1].images.movedim(1, -1), PixelDetector(), " ", 0.25, chain).args
    assert found[0].texts == ("star", "ring")
    told(lambda: nodes.MIPDetectObjects.execute(pictures(1), PixelDetector(), "", 0.25), "no object texts")
