"""Faces without any photograph: an analyser whose faces a test sets, and one of a few kilobytes as ONNX models.

In the ONNX models' world a face is a red square of 64 pixels in a picture of 192: it is found where most of a window of
that size is red.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor

# Eyes, nose and corners of the mouth of an upright face, in units of its width from its middle.
FEATURES = np.array([(-0.16, -0.08), (0.16, -0.08), (0.0, 0.1), (-0.13, 0.29), (0.13, 0.29)])


def seen(x: float, y: float, width: float, embedding: np.ndarray | None) -> Any:
    """A face as analysers describe it, with its middle at x, y."""
    half = width / 2
    numbers = None if embedding is None else np.asarray(embedding, dtype=np.float32)
    return SimpleNamespace(
        bbox=np.array([x - half, y - half, x + half, y + half]),
        kps=FEATURES * width + (x, y),
        det_score=0.9,
        embedding=numbers,
        normed_embedding=None if numbers is None or not numbers.any() else numbers / np.linalg.norm(numbers),
    )


class Analyser:
    """Finds the given faces in every picture. An exception among them is raised."""

    def __init__(self, *by_picture: Sequence[Any] | Exception) -> None:
        self.by_picture, self.pictures = by_picture, []

    def get(self, img: np.ndarray) -> list[Any]:
        faces = self.by_picture[len(self.pictures) % len(self.by_picture)]
        self.pictures.append(img)
        if isinstance(faces, Exception):
            raise faces
        return list(faces)


def numbers(seed: int, width: int = 512) -> np.ndarray:
    """An embedding."""
    return np.random.default_rng(seed).normal(size=width).astype(np.float32) * 20


def photo(*faces: tuple[int, int], side: int = 192, red: float = 1.0) -> Tensor:
    """A grey picture [1, H, W, 3] with red squares of 64 pixels, which the ONNX models find; the rest is random."""
    picture = torch.rand(1, side, side, 3, generator=torch.Generator().manual_seed(len(faces))) * 0.2 + 0.4
    for x, y in faces:
        picture[:, y : y + 64, x : x + 64] = torch.tensor([red, 0.0, 0.0])
    return picture


def write_models(folder: Path) -> Path:
    """A detection and a recognition model. Needs the package onnx."""
    import onnx

    folder.mkdir(parents=True, exist_ok=True)
    onnx.save(_detector(), folder / "detect.onnx")
    onnx.save(_recogniser(), folder / "recognise.onnx")
    return folder


def _detector() -> Any:
    """SCRFD's outputs: scores, boxes and points for the strides 8, 16 and 32, two anchors a place.

    Only the largest stride has scores above zero: the redder a window of 7 strides, the higher. Boxes and points are
    the same at all places: those of a face that fills the window.
    """
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    nodes, constants, outputs = [], [], []

    def constant(name: str, values: np.ndarray) -> str:
        constants.append(numpy_helper.from_array(values, name))
        return name

    for kind, width in (("score", 1), ("box", 4), ("points", 10)):
        for stride in (8, 16, 32):
            name = f"{kind}{stride}"
            weight, bias = np.zeros((2 * width, 3, 1, 1), np.float32), np.zeros(2 * width, np.float32)
            if kind == "score":
                weight[0, :, 0, 0] = (8.0, -8.0, -8.0) if stride == 32 else 0.0
                bias[:] = (-16.0, -30.0) if stride == 32 else -30.0
            elif kind == "box":
                bias[:] = 3.5
            else:
                bias[:] = np.tile((FEATURES * 7).reshape(-1), 2)
            nodes += [
                helper.make_node("AveragePool", ["image"], [f"{name}_pool"], kernel_shape=[7 * stride] * 2,
                                 pads=[3 * stride] * 4, strides=[stride] * 2, count_include_pad=1),
                helper.make_node("Conv", [f"{name}_pool", constant(f"{name}_w", weight), constant(f"{name}_b", bias)],
                                 [f"{name}_conv"]),
                helper.make_node("Transpose", [f"{name}_conv"], [f"{name}_last"], perm=[0, 2, 3, 1]),
                helper.make_node("Reshape", [f"{name}_last", constant(f"{name}_s", np.array([-1, width]))],
                                 [f"{name}_flat" if kind == "score" else name]),
            ]  # fmt: skip
            if kind == "score":
                nodes.append(helper.make_node("Sigmoid", [f"{name}_flat"], [name]))
            outputs.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, [None, width]))
    image = helper.make_tensor_value_info("image", TensorProto.FLOAT, [1, 3, None, None])
    graph = helper.make_graph(nodes, "detector", [image], outputs, constants)
    return onnx.helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def _recogniser() -> Any:
    """A random projection of the crop, shrunk to 8 × 8."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    weight = np.random.default_rng(0).normal(size=(192, 512)).astype(np.float32)
    nodes = [
        helper.make_node("AveragePool", ["crop"], ["small"], kernel_shape=[14, 14], strides=[14, 14]),
        helper.make_node("Flatten", ["small"], ["flat"]),
        helper.make_node("MatMul", ["flat", "weight"], ["embedding"]),
    ]
    crop = helper.make_tensor_value_info("crop", TensorProto.FLOAT, [None, 3, 112, 112])
    embedding = helper.make_tensor_value_info("embedding", TensorProto.FLOAT, [None, 512])
    graph = helper.make_graph(nodes, "recogniser", [crop], [embedding], [numpy_helper.from_array(weight, "weight")])
    return onnx.helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def write_program(file: Path, kind: str) -> None:
    """A recognition model that does harm when it is opened or called. Needs the package onnx.

    kind: “memory”, 6 GB of it; “loop”, which ends after hours; “elsewhere”, whose numbers lie in a file outside of the
    folder; “link”, the same through a link; “no input”.
    """
    from onnx import TensorProto, helper, numpy_helper

    def constant(name: str, values: Any) -> Any:
        return numpy_helper.from_array(np.array(values), name)

    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, 112, 112])]
    constants, nodes = [], [helper.make_node("Identity", ["numbers"], ["y"])]
    if kind == "memory":
        nodes = [helper.make_node("Resize", ["x", "", "scales"], ["y"], mode="nearest")]
        constants = [constant("scales", np.array([1, 1, 200, 200], np.float32))]
    elif kind == "loop":
        number, truth = (helper.make_tensor_value_info(name, kind, []) for name, kind in (("i", 7), ("go", 9)))
        steps = [helper.make_node("Identity", ["go"], ["goes"]), helper.make_node("Add", ["v", "v"], ["w"])]
        value, same = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in "vw")
        body = helper.make_graph(steps, "body", [number, truth, value], [
            helper.make_tensor_value_info("goes", TensorProto.BOOL, []), same])  # fmt: skip
        nodes = [helper.make_node("Loop", ["many", "yes", "one"], ["y"], body=body)]
        constants = [constant("many", 2**62), constant("yes", True), constant("one", np.ones(1, np.float32))]
    elif kind == "no input":
        inputs, constants = [], [constant("numbers", np.ones(3, np.float32))]
    else:
        outside = file.parents[1] / "outside.bin"
        outside.write_bytes(bytes(64))
        if kind == "link":
            (file.parent / "inside.bin").symlink_to(outside)
        away = TensorProto(name="numbers", data_type=TensorProto.FLOAT, dims=[16], data_location=TensorProto.EXTERNAL)
        away.external_data.add(key="location", value="inside.bin" if kind == "link" else "../outside.bin")
        constants = [away]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)]
    graph = helper.make_graph(nodes, kind, inputs, outputs, constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    file.write_bytes(model.SerializeToString())
