"""What a stranger's workflow may hand to the nodes: texts, names, boxes, sizes. Each is refused, within bounds."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest
import torch

from ..support.bounded import needs_fork, refused

pytestmark = needs_fork


@pytest.fixture(scope="module", autouse=True)
def imported(host) -> None:
    """Here, not in each of the limited processes."""
    import mip_adapter.nodes  # noqa: F401
    from mip_adapter.weights.comfy_files import register_folders

    register_folders()


THING = object()  # what another node gives
HALF = "\ud800"  # of a surrogate pair: nothing can encode it
PICTURE = torch.rand(1, 64, 64, 3)


def node(name: str) -> Any:
    from mip_adapter import nodes

    return getattr(nodes, name)


def reference(**given: Any) -> Any:
    return node("MIPReference").execute(**{"image": PICTURE, "text": "cat", "weight": 1.0, **given})


def many_boxes(count: int) -> list[dict[str, float]]:
    return [{"x": 1.0, "y": 1.0, "width": 20.0, "height": 20.0}] * count


def boxes(given: Any, texts: str = "cat") -> Any:
    return node("MIPBoxes").execute(images=PICTURE, boxes=given, texts=texts, bbox_format="x, y, width, height")


def region(given: Any) -> Any:
    sides = {"left": 0.0, "top": 0.0, "width": 1.0, "height": 1.0, "feather": 0.0}
    return node("MIPBoxRegion").execute(**sides, boxes=given, images=PICTURE)


def detect(texts: str, **given: Any) -> Any:
    from mip_adapter.miniature.pixel_detector import NAME

    detector = node("MIPDetectorLoader").execute(detector_name=NAME).result[0]
    return node("MIPDetectObjects").execute(**{"images": PICTURE, "detector": detector, "texts": texts,
                                               "threshold": 0.25, **given})  # fmt: skip


REFUSED: dict[str, tuple[Callable[[], Any], str]] = {
    "long text": (lambda: reference(text="a" * 100_000), "100,000 letters"),
    "long object text": (lambda: reference(text="a" * 1000), "at most 300"),
    "digits": (lambda: reference(text=":" + "1" * 20_000), "letters"),
    "narrow": (lambda: reference(image=torch.zeros(1, 8, 100_000, 3), fit="pad to square"), "too narrow"),
    "high": (lambda: detect("cat", images=torch.zeros(1, 100_000, 8, 3)), "too narrow"),
    "narrow mask": (lambda: boxes(torch.zeros(1, 100_000, 8)), "too narrow"),
    "a million boxes": (lambda: boxes(many_boxes(10**6)), "at most 1,000"),
    "a million boxes in an array": (lambda: boxes(torch.rand(10**6, 4)), "at most 1,000"),
    "a million pictures": (lambda: boxes([many_boxes(1)] * 10**6), "at most 1,000"),
    "boxes as a region": (lambda: region(many_boxes(10**5)), "at most 1,000"),
    "1,500 texts": (lambda: detect("\n".join(f"cat {i}" for i in range(1500))), "at most 64"),
    "half a letter of a name": (lambda: node("MIPAdapterLoader").execute(adapter_name=HALF), "not found"),
    "half a letter of a head": (
        lambda: node("MIPFusionHead").execute(adapter=THING, gate="image", strength=1.0, head_name=f"{HALF}.bin"),
        "not found",
    ),
    "nobody's home": (
        lambda: node("MIPTrainAdapter").execute(
            model=THING, clip=THING, vae=THING, clip_vision=THING, adapter=THING, dataset_folder="~nosuchuser/x",
            steps=1, learning_rate=1e-4, batch_size=1, train="head only", seed=0),
        "whom this machine does not know",
    ),
    "a batch beyond the memory": (
        lambda: reference(image=torch.rand(1, 8, 8, 3).repeat(1, 32, 32, 1).expand(4000, 256, 256, 3)),
        "memory does not suffice",
    ),
    "another machine": (
        lambda: node("MIPTrainAdapter").execute(
            model=THING, clip=THING, vae=THING, clip_vision=THING, adapter=THING, dataset_folder="\\\\somewhere\\x",
            steps=1, learning_rate=1e-4, batch_size=1, train="head only", seed=0),
        "is on another machine",
    ),
    "no threshold": (lambda: detect("cat", threshold=float("nan")), "threshold is nan"),
    "no colour": (
        lambda: node("MIPMiniatureObject").execute(
            kind="star", pattern="striped", colour={"a": 1}, second_colour="green", pose=0),
        "colour is",
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", REFUSED)
def test_refused(what: str) -> None:
    act, words = REFUSED[what]
    refused(act, words)


@pytest.mark.parametrize("what", ["opacity", "threshold"])
def test_maps_take_numbers_only(what: str) -> None:
    from mip_adapter.relevance.record import RelevanceRecord

    given = {"opacity": 0.5, "threshold": 0.5, what: float("nan")}
    maps = node("MIPRelevanceMaps")
    refused(lambda: maps.execute(relevance=RelevanceRecord(("cat",)), images=PICTURE, **given), f"{what} is nan")


def test_checks_before_a_run_never_raise() -> None:
    adapter, head, train, drawn = (
        node(name) for name in ("MIPAdapterLoader", "MIPFusionHead", "MIPTrainAdapter", "MIPMiniatureObject")
    )
    for given in (HALF, "~nosuchuser", "x" * 10**6, ["a", "b"], {"a": 1}, 7, "a\0b", "../../etc/passwd", "x" * 4096):
        said = [
            adapter.validate_inputs(adapter_name=given),
            head.validate_inputs(head_name=given),
            train.validate_inputs(dataset_folder=given),
            node("MIPEncoderLoader").validate_inputs(encoder_name=given),
            node("MIPDetectorLoader").validate_inputs(detector_name=given),
            node("MIPFaceAnalyserLoader").validate_inputs(analyser_name=given),
            drawn.validate_inputs(kind="star", pattern="striped", colour=given, second_colour=None),
        ]
        assert all(isinstance(each, str) and each.isprintable() and len(each) < 2500 for each in said), said
        adapter.fingerprint_inputs(adapter_name=given)
        head.fingerprint_inputs(gate="image", strength=1.0, head_name=given)
        node("MIPEncoderLoader").fingerprint_inputs(encoder_name=given)
        node("MIPDetectorLoader").fingerprint_inputs(detector_name=given)
        node("MIPFaceAnalyserLoader").fingerprint_inputs(analyser_name=given)


def test_checks_before_a_run_take_a_workflow_that_lacks_inputs() -> None:
    from mip_adapter.nodes import NODES

    checks = [each.validate_inputs for each in NODES if "validate_inputs" in vars(each)]
    assert len(checks) > 6 and all(check() is True for check in checks)


def test_half_a_letter_reaches_no_report_picture_or_tokenizer() -> None:
    (reference_,) = reference(text=f"cat{HALF}").result[0]
    assert reference_.text == "cat?"
    found, *_, report = detect(f"star{HALF}\nring").result
    assert found.texts == ("star?", "ring") and report.encode()


@pytest.mark.parametrize("text", [":" + "1" * 20_000, ":" * 20_000, "(" * 20_000, "embedding:" * 2000, ": " * 10_000,
                                  "\\" * 20_000, ")" * 20_000, "1." * 10_000, ":1e" * 7000])  # fmt: skip
def test_words_are_read_in_linear_time(text: str) -> None:
    """Ten times as many letters take ten times as long, not a hundred times."""
    from mip_adapter.common.text import plain

    def seconds(words: str) -> float:
        begin = time.process_time()
        plain(words)
        return time.process_time() - begin

    assert seconds(text * 10) < 40 * seconds(text) + 0.5


@pytest.mark.parametrize("digits", ["1" * 5000, "٣" * 5000])
def test_a_number_of_5000_digits_is_none(digits: str) -> None:
    """Python itself refuses to read it, with advice to lift its limit."""
    from mip_adapter.attention.block_strength import make_block_strength
    from mip_adapter.common.text import object_number, whole_number
    from mip_adapter.evaluation.relevance_score.target import masked
    from mip_adapter.weights.sites import Site

    assert whole_number(digits) is None and whole_number("12") == 12 and whole_number("-1") is None
    site = Site(("input", 4, 0), 0, 64, 1, 64)
    for act, words in (
        (lambda: object_number(digits, ["cat"]), "is none of the objects"),
        (lambda: masked(torch.ones(4, 8, 8), digits, 2), "masks have no names"),
        (lambda: make_block_strength([site], numbers=f"{digits}:1"), "There is no block"),
    ):
        refused(act, words)


def test_long_words_are_drawn_soon() -> None:
    from mip_adapter.common.drawing import fitted

    words, _ = fitted("w" * 100_000, 20, 100)
    assert words.endswith("…") and len(words) < 20
