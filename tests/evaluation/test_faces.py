"""Faces: aligned as scikit-image aligns them, chosen, averaged; bad pictures and analysers in a sentence."""

from __future__ import annotations

import os
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from mip_adapter.evaluation.faces import analyser as analyser_module
from mip_adapter.evaluation.faces import onnx_model
from mip_adapter.evaluation.faces.align import PLACES, aligned, similarity
from mip_adapter.evaluation.faces.analyser import INSTALL, load_analyser
from mip_adapter.evaluation.faces.find import find_faces
from skimage import transform

from ..support.bounded import refused
from ..support.tiny_faces import FEATURES, Analyser, numbers, photo, seen, write_models, write_program


def picture(height: int = 96, width: int = 128) -> torch.Tensor:
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    waves = [(rows / 7).sin(), (columns / 9).cos(), ((rows + columns) / 11).sin()]
    return torch.stack(waves, dim=-1) / 2 + 0.5


def scattered(seed: int) -> np.ndarray:
    """Five points of a turned and slightly crooked face inside the picture."""
    random = np.random.default_rng(seed)
    angle, size = random.uniform(-2, 2), random.uniform(0.3, 0.6)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    return (np.array(PLACES) - 56) @ turn.T * size + (64, 48) + random.normal(size=(5, 2))


@pytest.mark.parametrize("seed", range(5))
def test_the_crop_is_that_of_scikit_image(seed):
    points = scattered(seed)
    expected: Any = transform.SimilarityTransform.from_estimate(points, np.array(PLACES) * 2)
    assert np.allclose(similarity(points, np.array(PLACES) * 2), expected.params[:2], atol=1e-9)
    crop = transform.warp(picture().numpy(), expected.inverse, output_shape=(224, 224), order=1)
    assert np.abs(aligned(picture(), points).numpy() - crop).max() < 1e-4


def test_points_in_their_places_are_the_picture_itself():
    square = picture(112, 112)
    assert torch.allclose(aligned(square, np.array(PLACES), 112), square, atol=1e-5)


def test_a_mirrored_face_is_turned_and_not_mirrored():
    matrix = similarity(np.array(PLACES) * (-1, 1), np.array(PLACES))
    assert np.linalg.det(matrix[:, :2]) > 0


def test_the_largest_or_a_counted_face():
    faces = [seen(150, 60, 40, numbers(1)), seen(40, 60, 60, numbers(2)), seen(95, 60, 30, numbers(3))]
    for which, embedding in ((0, 2), (1, 2), (2, 3), (3, 1)):
        found = find_faces(Analyser(faces), photo(), "woman", which)
        assert torch.equal(found.embeddings[0], torch.from_numpy(numbers(embedding)))
        assert bool(found.remarks) == (which == 0)
    assert "3 faces were found in the picture of “woman”; the largest is used, number 1 from left" in " ".join(
        find_faces(Analyser(faces), photo(), "woman").remarks
    )
    with pytest.raises(ValueError, match="no face 4 from the left in the picture of “woman”: the analyser finds 3"):
        find_faces(Analyser(faces), photo(), "woman", 4)


def test_the_analyser_gets_blue_green_red_bytes():
    analyser = Analyser([seen(90, 90, 60, numbers(0))])
    find_faces(analyser, photo((0, 0)), "man")
    (given,) = analyser.pictures
    assert given.dtype == np.uint8 and given.shape == (192, 192, 3) and given.flags["C_CONTIGUOUS"]
    assert tuple(given[10, 10]) == (0, 0, 255)


def test_pictures_without_a_face_are_left_out():
    found = find_faces(Analyser([seen(90, 90, 60, numbers(0))], []), photo().expand(2, -1, -1, -1), "man")
    assert len(found.embeddings) == len(found.crops) == 1
    assert found.remarks == ("No face was found in picture 2 of “man”; it is left out.",)


def test_a_face_at_the_border_is_remarked():
    found = find_faces(Analyser([seen(10, 90, 60, numbers(0))]), photo(), "man")
    assert "cut off by the picture's border" in found.remarks[0]
    assert found.crops.shape == (1, 224, 224, 3) and not found.crops[0, 112, 0].any()


@pytest.mark.parametrize(
    ("faces", "sentence"),
    [
        ([], "No face was found in the picture of “man”: use a photograph.*MIP Reference"),
        (RuntimeError("out of memory"), "analyser failed on the picture of “man” .RuntimeError: out of memory."),
        ([seen(90, 90, 60, None)], "does not recognise it: it gives no embedding.*w600k_r50"),
        ([seen(90, 90, 60, np.full(512, np.nan))], "no usable embedding for the picture of “man”"),
        ([seen(90, 90, 60, np.zeros(512))], "no usable embedding for the picture of “man”"),
    ],
)
def test_what_is_wrong_is_said(faces, sentence):
    with pytest.raises(ValueError, match=sentence):
        find_faces(Analyser(faces), photo(), "man")


def test_something_else_is_no_analyser():
    with pytest.raises(ValueError, match="The face analyser is list, which finds no faces: connect Load Face Analyser"):
        find_faces([], photo(), "man")  # pyright: ignore[reportArgumentType]


class Shrinking(Analyser):
    """Finds its faces only where it searches in a small picture, as InsightFace does with a face that fills it."""

    def __init__(self, *faces) -> None:
        super().__init__(faces)
        self.det_model = SimpleNamespace(input_size=(512, 512))

    def get(self, img):
        return super().get(img) if self.det_model.input_size == (320, 320) else []


def test_a_face_that_fills_the_picture_is_found_smaller():
    analyser = Shrinking(seen(90, 90, 60, numbers(0)))
    assert len(find_faces(analyser, photo(), "man").crops) == 1
    assert analyser.det_model.input_size == (512, 512)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    return write_models(tmp_path_factory.mktemp("insightface") / "models" / "tiny")


def test_onnx_models(models):
    """Two red squares are two faces, with points, boxes and embeddings of their own."""
    analyser = load_analyser(models)
    found = analyser.get((photo((0, 0), (128, 64))[0].numpy()[..., ::-1] * 255).round().astype(np.uint8))
    middles = sorted(tuple((each.bbox[:2] + each.bbox[2:]) / 2) for each in found)
    assert np.allclose(middles, [(32, 32), (160, 96)], atol=10)  # places are 32 · 192 / 640 pixels apart
    assert np.allclose([each.bbox[2:] - each.bbox[:2] for each in found], 7 * 9.6)
    assert all(each.det_score > 0.5 and each.kps.shape == (5, 2) for each in found)
    assert all(np.isclose(np.linalg.norm(each.normed_embedding), 1, atol=1e-6) for each in found)


def test_onnx_models_beside_insightface(models):
    """The same faces, boxes, points and embeddings as the package that these models come from."""
    app = pytest.importorskip("insightface.app")
    theirs = app.FaceAnalysis(name="tiny", root=str(models.parents[1]), providers=["CPUExecutionProvider"])
    theirs.prepare(ctx_id=-1, det_size=(640, 640))
    bgr = (photo((0, 0), (128, 64))[0].numpy()[..., ::-1] * 255).round().astype(np.uint8)
    ours, expected = load_analyser(models).get(bgr), theirs.get(bgr)
    assert len(ours) == len(expected) == 2
    for got, want in zip(ours, expected, strict=True):
        assert np.allclose(got.bbox, want.bbox, atol=0.05) and np.allclose(got.kps, want.kps, atol=0.05)
        assert np.dot(got.normed_embedding, want.normed_embedding) > 0.999


def test_no_face_in_a_grey_picture(models):
    with pytest.raises(ValueError, match="No face was found"):
        find_faces(load_analyser(models), photo(), "man")


def test_an_analyser_needs_both_models(models, tmp_path):
    for kept, sentence in (("detect", "recognises them"), ("recognise", "detects faces")):
        folder = tmp_path / kept
        folder.mkdir()
        (folder / f"{kept}.onnx").write_bytes((models / f"{kept}.onnx").read_bytes())
        with pytest.raises(ValueError, match=f"has no model that {sentence}"):
            load_analyser(folder)
    (tmp_path / "detect" / "broken.onnx").write_bytes(b"no model")
    with pytest.raises(ValueError, match="“broken.onnx” cannot be opened as an ONNX model"):
        load_analyser(tmp_path / "detect")


@pytest.mark.parametrize("kind", ["elsewhere", "link", "no input"])
def test_a_model_that_is_no_function_of_a_picture_is_not_opened(models, tmp_path, kind):
    folder = tmp_path / "folder"
    folder.mkdir()
    write_program(folder / "bad.onnx", kind)
    refused(lambda: load_analyser(folder), "“bad.onnx” cannot be opened as an ONNX model")


def test_a_pipe_is_no_model(models, tmp_path):
    os.mkfifo(tmp_path / "pipe.onnx")
    refused(lambda: load_analyser(tmp_path), "“pipe.onnx” is no file")


@pytest.mark.parametrize(("kind", "words"), [("memory", "needs more than 2 GB"), ("loop", "needs more than 0.2 s")])
def test_a_model_takes_so_much_memory_and_time(models, tmp_path, monkeypatch, kind, words):
    monkeypatch.setattr(onnx_model, "SECONDS", 0.2)
    write_program(tmp_path / "bad.onnx", kind)
    with pytest.raises(ValueError, match=f"“bad.onnx” .*{words}"):  # no other limit than its own
        onnx_model.OnnxModel(tmp_path / "bad.onnx")(np.zeros((1, 3, 112, 112), np.float32))


def test_models_run_on_processors_only(models):
    asked = load_analyser(models).recogniser._session.get_providers()
    assert set(asked) <= set(onnx_model.PROVIDERS) and "AzureExecutionProvider" not in asked


def test_of_many_faces_the_surest_are_recognised(models, monkeypatch):
    """Each of 16,800 anchors may claim a face."""
    analyser = load_analyser(models)
    boxes = np.arange(16_800, dtype=np.float32)[:, None] * 20 + np.array([0, 0, 10, 10], np.float32)
    found = boxes, np.tile(FEATURES, (16_800, 1, 1)), np.linspace(1, 0.6, 16_800)
    monkeypatch.setattr(analyser_module, "_decode", lambda *_: found)
    assert len(analyser.get(np.zeros((64, 64, 3), np.uint8))) == 50


@pytest.mark.parametrize("points", [np.full((5, 2), np.nan), np.zeros((5, 2)), np.ones((4, 2)), "x", None])
def test_a_face_without_a_place_is_none(points):
    face = seen(90, 90, 60, numbers(0))
    face.kps = points
    with pytest.raises(ValueError, match="No face was found"):
        find_faces(Analyser([face]), photo(), "man")
    face = seen(90, 90, 60, numbers(0))
    face.bbox = np.array([0, np.inf, 1, 1])
    assert len(find_faces(Analyser([face, seen(40, 40, 20, numbers(1))]), photo(), "man").crops) == 1


def test_without_onnxruntime_the_command_is_told(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "onnxruntime", None)
    with pytest.raises(ValueError, match=INSTALL):
        load_analyser(tmp_path)
