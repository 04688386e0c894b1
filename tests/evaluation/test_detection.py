"""Detectors: Grounding DINO and OWLv2 against their outputs read by hand, the pixels' against the world's truth."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mip_adapter.evaluation.detection.annotate import annotated
from mip_adapter.evaluation.detection.detect import Seen, detect, detection_report, object_texts
from mip_adapter.evaluation.detection.detections import Detection, Detections
from mip_adapter.evaluation.detection.folder_detector import load_detector
from mip_adapter.miniature import world
from mip_adapter.miniature.pixel_detector import NAME, PixelDetector
from mip_adapter.miniature.world_shapes import KINDS
from PIL import Image

from ..support import tiny_models
from ..support.sentences import says, told


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    base = tmp_path_factory.mktemp("detectors")
    tiny_models.grounding_dino(base / "grounding_dino")
    tiny_models.grounding_dino(base / "mm_grounding_dino", "MMGroundingDino")
    tiny_models.owlv2(base / "owlv2")
    return base


def pictures(count: int, height: int = 60, width: int = 90) -> torch.Tensor:
    """[B, H, W, 3] in whole 255ths, so that nothing is rounded on the way to a model."""
    return torch.randint(0, 256, (count, height, width, 3)).float() / 255


# ---- folders ----


def answer(folder: Path, image: torch.Tensor, text: str) -> tuple[Any, dict]:
    """The model's output for one picture and one text, and what it was given."""
    from transformers import AutoModelForZeroShotObjectDetection, AutoProcessor

    picture = Image.fromarray((image * 255).round().to(torch.uint8).numpy())
    processor: Any = AutoProcessor.from_pretrained(folder)
    model: Any = AutoModelForZeroShotObjectDetection.from_pretrained(folder).eval()
    query = f"{text}." if "grounding" in folder.name else [[text]]
    inputs = processor(images=picture, text=query, return_tensors="pt")
    with torch.no_grad():
        return model(**inputs), inputs


def by_hand(folder: Path, image: torch.Tensor, text: str, threshold: float) -> tuple[np.ndarray, np.ndarray]:
    """Boxes [n, 4] and scores, best first, of one picture and one text: from the logits, by the definition."""
    from torchvision.ops import nms

    height, width = image.shape[:2]
    output, inputs = answer(folder, image, text)
    if "grounding" in folder.name:
        size = np.array([width, height] * 2)
        words = slice(1, inputs["input_ids"].shape[1] - 2)  # neither [CLS] nor the full stop and [SEP]
    else:
        size, words = np.array([max(width, height)] * 4), slice(None)  # it sees a square
    probability = 1 / (1 + np.exp(-output.logits[0].double().numpy()))
    scores = probability.max(-1)
    x, y, w, h = (output.pred_boxes[0].double().numpy() * size).T
    boxes = np.stack([x - w / 2, y - h / 2, x + w / 2, y + h / 2], 1)
    counts = (scores > threshold) & (probability[:, words].max(-1) > threshold)
    boxes = np.clip(boxes[counts], 0, [width, height, width, height])
    seen = (boxes[:, 2:] - boxes[:, :2] >= 1).all(1)
    boxes, scores = boxes[seen], scores[counts][seen]
    kept = nms(torch.tensor(boxes), torch.tensor(scores), 0.7).numpy()
    return boxes[kept], scores[kept]


@pytest.mark.parametrize("name", ["grounding_dino", "mm_grounding_dino", "owlv2"])
def test_folders_find_what_their_logits_say(folders: Path, name: str):
    images, texts = pictures(5), ("star", "red ring")
    threshold = 0.25
    found = detect(load_detector(folders / name), images, texts, threshold, threshold)
    assert len(found) == 5 and found.texts == texts and found.threshold == threshold
    some = 0
    for b, m in ((0, 0), (3, 1), (4, 0)):  # the last is in a batch of its own
        boxes, scores = by_hand(folders / name, images[b], texts[m], threshold)
        got = found.found[b][m]
        assert [each.score for each in got] == pytest.approx(scores.tolist(), abs=1e-4)
        assert np.array([each.box for each in got]).reshape(-1, 4) == pytest.approx(boxes, abs=2e-2)
        some += len(got)
    assert some > 3, "the random model finds too little to tell right from wrong"


def test_a_threshold_that_nothing_reaches(folders: Path):
    detector = load_detector(folders / "owlv2")
    images = pictures(2)
    found = detect(detector, images, ("cat",), 1.0)
    assert found.found == (((),), ((),))
    best = [by_hand(folders / "owlv2", image, "cat", 0.0)[1].max() for image in images]
    assert [near[0] for near in found.best_rejected] == pytest.approx(best, abs=1e-4)
    says(found.why_missing(1, 0), "cat", "picture 2", "threshold 1", f"{found.best_rejected[1][0]:.2f}", "nothing")


@pytest.mark.parametrize("name", ["grounding_dino", "owlv2"])
@pytest.mark.parametrize("text_threshold", [0.05, 1.0])
def test_what_nearly_counted_counts_at_a_lower_threshold(folders: Path, name: str, text_threshold: float):
    """A box that answers to the full stop alone is no candidate, however certain it is."""
    detector, images = load_detector(folders / name), pictures(3)
    missed = detect(detector, images, ("star", "red ring"), 0.9999, text_threshold)
    seen = 0
    for b in range(3):
        for m, text in enumerate(missed.texts):
            if near := missed.best_rejected[b][m]:
                assert not missed.found[b][m]
                above, below = (
                    detect(detector, images[b : b + 1], (text,), min(near + step, 1.0), text_threshold).found[0][0]
                    for step in (1e-3, -1e-3)
                )
                assert not above and below
                seen += 1
    assert seen > 2


def test_a_box_that_answers_to_the_full_stop_alone_is_no_candidate(folders: Path):
    detector = load_detector(folders / "grounding_dino")

    def nothing_but_the_stop(_model: Any, _given: Any, output: Any) -> None:
        output.logits[..., :5] = torch.tensor([9.0, -1.5, -2.0, 9.0, 9.0])  # [CLS] red ring . [SEP]

    detector.model.register_forward_hook(nothing_but_the_stop)
    images, word = pictures(1), float(torch.tensor(-1.5).sigmoid())
    missed = detect(detector, images, ("red ring",), 0.5)
    assert missed.best_rejected == ((pytest.approx(word),),)
    says(missed.why_missing(0, 0), "the best candidate has 0.18", "Lower the threshold")
    assert detect(detector, images, ("red ring",), word - 0.01).found[0][0]


def test_a_detector_that_answers_nothing_but_nan(folders: Path, tmp_path: Path):
    from safetensors.torch import load_file, save_file

    broken = shutil.copytree(folders / "owlv2", tmp_path / "broken")
    weights = load_file(broken / "model.safetensors")
    weights["owlv2.visual_projection.weight"] *= torch.nan
    weights["class_head.dense0.weight"] *= torch.nan
    save_file(weights, broken / "model.safetensors", metadata={"format": "pt"})
    told(lambda: detect(load_detector(broken), pictures(1), ("cat",)), "“broken”", "NaN", "--force-fp32")


def test_pictures_are_prepared_once(folders: Path):
    detector, count = load_detector(folders / "grounding_dino"), []
    kind = type(detector.processor.image_processor)

    class Counting(kind):
        def __call__(self, *args, **more):
            count.append(1)
            return super().__call__(*args, **more)

    detector.processor.image_processor.__class__ = Counting
    detect(detector, pictures(2), ("star", "ring", "cat"))
    assert len(count) == 1


def test_texts_are_asked_for_one_by_one(folders: Path):
    """A text's boxes do not depend on the other texts; case, full stops and room do not matter."""
    detector, images = load_detector(folders / "grounding_dino"), pictures(1)
    alone = detect(detector, images, ("ring",), 0.5).found[0][0]
    among = detect(detector, images, ("star", "  RING. ", "cat"), 0.5).found[0][1]
    assert alone and [each.score for each in alone] == pytest.approx([each.score for each in among], abs=1e-5)
    told(lambda: detect(detector, images, ("...",)), "...", "no words")


def test_folders_that_are_no_detectors(folders: Path, tmp_path: Path):
    told(lambda: load_detector(tmp_path), "no detector in", "config.json")
    told(lambda: load_detector(tiny_models.dino(tmp_path / "dino")), "vit", "cannot be loaded")
    shutil.copytree(folders / "owlv2", tmp_path / "pickled")
    (tmp_path / "pickled" / "model.safetensors").rename(tmp_path / "pickled" / "pytorch_model.bin")
    told(lambda: load_detector(tmp_path / "pickled"), "no .safetensors")


@pytest.mark.parametrize(("name", "value", "words"), [
    ("image_mean", [0.5, 0.5], "The detector “changed” fails ("),
    ("size", {"height": 20_000, "width": 20_000}, "no model sees more than 4096 pixels"),
])  # fmt: skip
def test_settings_that_fit_no_picture(folders: Path, tmp_path: Path, name: str, value: Any, words: str):
    changed = shutil.copytree(folders / "owlv2", tmp_path / "changed")
    (file,) = [each for each in changed.glob("*processor_config.json") if "image_mean" in each.read_text()]
    settings = json.loads(file.read_text())
    settings.get("image_processor", settings)[name] = value
    file.write_text(json.dumps(settings))
    told(lambda: detect(load_detector(changed), pictures(1), ("cat",)), words)


# ---- pixels ----


def scenes(count: int, size: int = world.SIZE) -> tuple[world.Scenes, world.Picture]:
    drawn = world.sample(count, seed=3, objects=(2, 3))
    return drawn, world.render(drawn, size)


@pytest.mark.parametrize("size", [128, 320])
def test_pixels_find_the_worlds_objects(size: int):
    drawn, picture = scenes(24, size)
    found = detect(PixelDetector(), picture.images.movedim(1, -1), KINDS)
    truth, right = world.boxes(picture.masks).tolist(), 0
    for b in range(24):
        kinds = drawn.present(b)
        assert {text for text, _ in found.every(b)} <= set(range(len(KINDS)))
        for m, kind in enumerate(kinds):
            for best in found.found[b][kind][:1]:
                assert best.mask is not None and best.mask.shape == (size, size)
                right += max(abs(x - y) for x, y in zip(best.box, truth[b][m], strict=True)) <= 0.03 * size
    assert right >= 0.85 * sum(len(drawn.present(b)) for b in range(24))


def test_pixels_of_a_picture_that_is_not_square():
    drawn, picture = scenes(1)
    x0, y0, x1, y1 = world.boxes(picture.masks)[0, 0].tolist()
    wide = torch.cat([torch.ones(1, 128, 40, 3), picture.images.movedim(1, -1)], 2)
    best = detect(PixelDetector(), wide, (f"a {KINDS[drawn.present(0)[0]]}",)).found[0][0][0]
    assert best.box == pytest.approx((x0 + 40, y0, x1 + 40, y1), abs=2)
    assert best.mask is not None and best.mask.shape == (128, 168)


def test_pixels_know_their_world_only():
    told(lambda: detect(PixelDetector(), pictures(1), ("cat",)), "cat", NAME, "star, ring")
    told(lambda: detect(PixelDetector(), pictures(1), ("star or ring",)), "star or ring")
    empty = detect(PixelDetector(), torch.ones(1, 64, 64, 3), ("star",))
    says(empty.why_missing(0, 0), "star", "0.25", "found there: nothing")


# ---- around them ----


class Fixed:
    """Says what it was told."""

    name = "fixed"

    def __init__(self, *found: Detection):
        self.found = found

    def find(self, images, texts, threshold, text_threshold):
        return [[Seen(self.found) for _ in texts] for _ in images]


def test_boxes_are_tidied():
    same = Detection((1, 1, 21, 20), 0.5)
    found = [same, Detection((0, 0, 20, 20), 0.9), Detection((30, 30, 400, 50), 0.7), Detection((90, 0, 95, 9), 1.0)]
    found.append(Detection((10, 10, 10.5, 40), 0.8))
    (got,) = detect(Fixed(*found), pictures(1), ("cat",)).found[0]
    assert [each.box for each in got] == [(0, 0, 20, 20), (30, 30, 90, 50)]  # best first, clipped, each place once
    (one,) = detect(Fixed(*found), pictures(1), ("cat",), most=1).found[0]
    assert len(one) == 1 and one[0].score == 0.9


def test_progress_is_told_and_may_stop():
    told_of: list[int] = []
    detect(Fixed(), pictures(9), ("cat",), tick=told_of.append)
    assert told_of == [4, 4, 1]

    def stop(_: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        detect(Fixed(), pictures(9), ("cat",), tick=stop)


def test_object_texts():
    assert object_texts("Cat\n red  dog ,cat;\n\nRed dog") == ("Cat", "red dog")
    assert object_texts(" \n,") == ()


def test_detectors_hear_words_and_no_prompts_syntax():
    class Listening(Fixed):
        def find(self, images, texts, threshold, text_threshold):
            self.heard = texts
            return super().find(images, texts, threshold, text_threshold)

    texts = (
        "(red jacket:1.2)",
        "embedding:mine ((cat:.5)) hat",
        r"a cat \(black\)",
        "embedding:mine(cat)",
        "3 o'clock: 1",
        "(a:1e0)(b), c",
    )
    found = detect(listening := Listening(), pictures(1), texts)
    assert listening.heard == ["red jacket", "cat hat", "a cat (black)", "cat", "3 o'clock: 1", "a b, c"]
    assert found.texts == texts  # in reports and legends as they were written
    assert object_texts("cat\n(Cat:1.3)\n()") == ("cat",)


def test_bad_pictures_and_texts():
    told(lambda: detect(Fixed(), pictures(1), ()), "no object texts")
    told(lambda: detect(Fixed(), pictures(1)[0], ("cat",)), "[60, 90, 3]")
    told(lambda: detect(Fixed(), pictures(0), ("cat",)), "[0, 60, 90, 3]")


def two_found() -> Detections:
    cat, dog = Detection((2, 3, 20, 30), 0.834), Detection((40, 10, 88, 50), 0.5)
    return Detections(("cat", "dog"), 60, 90, (((cat,), (dog,)), ((cat,), ())), 0.3, ((0.0, 0.0), (0.0, 0.18)))


def test_the_report_says_what_was_not_found():
    assert detection_report(two_found()).splitlines() == [
        "picture 1: cat 0.83 at (2, 3)–(20, 30); dog 0.50 at (40, 10)–(88, 50)",
        "picture 2: cat 0.83 at (2, 3)–(20, 30); dog not found (best 0.18)",
    ]
    said = says(two_found().why_missing(1, 1), "dog", "picture 2", "threshold 0.3", "0.18", "cat 0.83")
    assert "marked" not in said


def test_annotated_pictures():
    """Frames in the texts' colours where the boxes are, and nothing else changed far from them."""
    from mip_adapter.common.drawing import colour

    images = torch.full((2, 60, 90, 3), 0.5)
    drawn = annotated(images, two_found())
    assert drawn.shape == (2, 540, 810, 3)
    pixels = (drawn * 255).round().long()
    for text, (x, y) in enumerate(((2, 3 + 14), (40, 10 + 20))):
        strip = pixels[0, y * 9, x * 9 : x * 9 + 6]
        assert (strip == torch.tensor(colour(text))).all(-1).any()
    assert (drawn[1, 400:, 400:] - 0.5).abs().max() < 1e-2  # no dog in the second
    told(lambda: annotated(images[:1], two_found()), "1 of 90×60", "2 of 90×60")
    whole = Detections(("cat",), 60, 90, (((Detection((0, 0, 90, 60), mask=torch.ones(60, 90)),),),))
    assert torch.isfinite(annotated(torch.full((1, 60, 90, 4), 1.0), whole)).all()
    crowd = tuple(Detection((0, 0, 1, 1)) for _ in range(40))
    assert annotated(images[:1], Detections(("a name that is very long indeed " * 9,), 60, 90, ((crowd,),))).shape[0]


def test_objects_have_the_colours_of_their_references():
    from mip_adapter.attention.reference import make_reference
    from mip_adapter.common.drawing import colour

    dog, cat = (
        make_reference(torch.rand(1, 16, 16, 3), text, map_color=number) for text, number in (("Dog", None), ("cat", 4))
    )
    found = two_found().in_colours_of((dog, cat))
    assert [found.colour(text) for text in (0, 1)] == [colour(4), colour(0)]
    assert [two_found().colour(text) for text in (0, 1)] == [colour(0), colour(1)]
