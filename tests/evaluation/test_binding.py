"""The binding report: its numbers from their definitions, its truth on drawn scenes, its picture."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from mip_adapter.attention.reference import make_reference
from mip_adapter.common.bundled import MINIATURE
from mip_adapter.common.drawing import Canvas
from mip_adapter.evaluation.binding.binding import FAINT, Binding, looks
from mip_adapter.evaluation.binding.findings import BLENDED
from mip_adapter.evaluation.binding.matrix_picture import MOST_ROWS, draw_matrices, draw_matrix
from mip_adapter.evaluation.binding.report import binding_report, measure_binding, to_encode
from mip_adapter.evaluation.binding.verdict import verdict
from mip_adapter.evaluation.detection.detect import detect
from mip_adapter.evaluation.detection.detections import Detections
from mip_adapter.miniature import config
from mip_adapter.miniature.pixel_detector import PixelDetector
from mip_adapter.research.miniature import clip
from PIL import Image
from safetensors.torch import load_file

from ..support.bindings import batch, made, measure_one
from ..support.drawn import Colours, draw, thing
from ..support.sentences import told

SEEDS = (0, 1, 4, 8, 9, 11)  # whose three objects share no colour


# ---- the numbers ----


@given(seed=st.integers(0, 2**31), objects=st.integers(2, 4), several=st.booleans())
def test_numbers_equal_their_definitions(seed, objects, several):
    """Everything of a picture from its embeddings, in numpy."""
    random = np.random.default_rng(seed)
    refs = [random.normal(size=(1 + several * m, 6)) + 1 for m in range(objects)]
    crops = random.normal(size=(objects, 6)) + 1
    binding = measured(refs, crops)
    (picture,) = binding.pictures

    def cos(a, b):
        return a @ b / np.linalg.norm(a) / np.linalg.norm(b)

    s = np.array([[np.mean([cos(crop, r) for r in ref]) for ref in refs] for crop in crops])
    np.testing.assert_allclose(picture.similarity.numpy(), s, atol=1e-6)
    margins = [s[m, m] - max(s[m, j] for j in range(objects) if j != m) for m in range(objects)]
    assert list(picture.margin_by_object().values()) == pytest.approx(margins, abs=1e-6)
    assert binding.margin == pytest.approx(np.mean(margins), abs=1e-6)
    assert binding.confusion_rate == np.mean([margin < 0 for margin in margins]) and binding.presence == 1
    assert picture.worst_margin == pytest.approx(min(margins), abs=1e-6)
    assert picture.most_like == tuple(s.argmax(1))


def measured(refs, crops) -> Binding:
    """A Binding of one picture whose encoder gives these vectors: each object's square has a grey of its own."""
    grey = torch.arange(1, 40) * 6 / 255
    images = torch.zeros(1, 8, 8 * len(crops), 3)
    for m in range(len(crops)):
        images[:, :, 8 * m : 8 * m + 8] = grey[m]
    vectors = {m: crop for m, crop in enumerate(crops)}
    chain = []
    for ref in refs:
        first = max(vectors) + 1
        vectors |= {first + i: vector for i, vector in enumerate(ref)}
        pictures = torch.stack([torch.full((8, 8, 3), float(grey[first + i])) for i in range(len(ref))])
        chain.append(make_reference(pictures, f"object {len(chain)}"))
    found = tuple((thing((8 * m, 0, 8 * m + 8, 8)),) for m in range(len(crops)))
    detections = Detections(tuple(each.text for each in chain), 8, 8 * len(crops), (found,))

    class Known:
        name = "known"

        def images(self, pictures):
            numbers = [round(float(np.asarray(picture).mean()) / 6) - 1 for picture in pictures]
            return torch.tensor(np.stack([vectors[n] for n in numbers]), dtype=torch.float32)

    return measure_binding(images, chain, detections, Known())


@given(seed=st.integers(0, 2**31), objects=st.integers(2, 4), own=st.integers(0, 3))
def test_the_look_equals_its_definition(seed, objects, own):
    random, own = np.random.default_rng(seed), own % objects
    refs, v = random.normal(size=(objects, 5)) + 0.7, random.normal(size=5) + 0.7

    def angle(a, b):
        return np.arccos(a @ b / np.linalg.norm(a) / np.linalg.norm(b))

    others = [(j, r) for j, r in enumerate(refs) if j != own]
    way = np.zeros(objects)
    for j, r in others:
        way[j] = max(1 - angle(v, r) / angle(refs[own], r), 0)
    way[own] = np.mean([max(1 - angle(v, refs[own]) / angle(r, refs[own]), 0) for _, r in others])
    expected = way / way.sum() if way.sum() >= FAINT else np.zeros(objects)
    np.testing.assert_allclose(look(v, refs, own), expected, atol=1e-5)


def look(v, refs, own: int = 0) -> list[float]:
    v, refs = (torch.as_tensor(np.array(each)) for each in (v, refs))
    return looks(torch.nn.functional.normalize(v, dim=-1)[None], refs, [own])[0].tolist()


@pytest.mark.parametrize("alike", [0.1, 0.75])
@pytest.mark.parametrize("share", [0.0, 0.31, 0.5, 0.8, 1.0])
def test_the_look_of_a_blend_is_the_blend(alike, share):
    """31 % means 31 %, also where the references have much in common, and however much else is in the crop."""
    dog, cat = np.array([1.0, 0.0, 0.0]), np.array([alike, np.sqrt(1 - alike**2), 0.0])
    blend = (1 - share) * dog + share * cat
    assert look(blend, [dog, cat]) == pytest.approx([1 - share, share], abs=0.05)
    assert look(blend, [cat, dog]) == pytest.approx([share, 1 - share], abs=0.05)
    if share == 0.5:
        assert look(blend, [dog, cat]) == pytest.approx([0.5, 0.5])
        foreign = blend / np.linalg.norm(blend) + np.array([0, 0, 0.3])
        assert look(foreign, [dog, cat]) == pytest.approx([0.5, 0.5])
    thirds = np.eye(3) + 1
    assert look(thirds.sum(0), thirds) == pytest.approx([1 / 3] * 3)


def test_what_all_references_have_in_common_is_nobodys_look():
    """A dog with a quarter of its reference's own detail on what dog and cat share, and nothing of the cat's own."""
    common, own, others = np.sqrt(0.75), np.sqrt(0.25), 0.5
    dog, cat = np.array([common, own, 0, 0]), np.array([common, 0, own, 0])
    for detail in (0.15, 0.3, 0.6):
        crop = np.array([common, detail * own, 0, 0])
        crop[3] = np.sqrt(1 - crop @ crop)  # and whatever else
        assert crop @ cat == pytest.approx(0.75)
        assert look(crop, [dog, cat])[1] < 0.01 < BLENDED
    crop = np.array([common, 0.3 * own, 0.3 * own, others])
    assert look(crop / np.linalg.norm(crop), [dog, cat]) in ([0.0, 0.0], pytest.approx([0.5, 0.5]))


def test_several_pictures_of_a_reference_weigh_no_more():
    """Their mean is shorter the more they differ; its direction counts."""
    refs = np.array([[1.0, 0.2, 0.1], [0.3, 1.0, 0.2]])
    shorter = refs * np.array([[1.0], [0.5]])
    assert look([0.8, 0.6, 0.3], refs) == pytest.approx(look([0.8, 0.6, 0.3], shorter))


def test_nothing_in_common_is_no_share_of_anything():
    assert look([-1.0, -0.2, 0.0], np.eye(3)[:2]) == [0.0, 0.0]
    assert look([1.0, 0.0], [[1.0, 0.0]]) == [1.0]
    same = look([1.0, 0.1, 0.0], [[1.0, 0.0, 0.0], [1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
    assert np.isfinite(same).all() and same[2] < BLENDED


# ---- the drawn world's truth ----


@pytest.mark.parametrize("seed", SEEDS)
def test_right_looks_are_found_right_and_exchanged_ones_exchanged(seed):
    scene = draw(seed, pictures=2, looks=[(0, 1, 2), (1, 0, 2)])
    right, wrong = (measure_one(scene, b) for b in range(2))
    assert right.confusion_rate == 0 and right.margin is not None and right.margin > 0.05
    assert right.pictures[0].most_like == (0, 1, 2)
    assert wrong.pictures[0].most_like == (1, 0, 2) and wrong.confusion_rate == pytest.approx(2 / 3)
    assert wrong.margin is not None and wrong.margin < right.margin
    for m, j in ((0, 1), (1, 0)):
        assert wrong.pictures[0].look[m].argmax() == j
    names = [f"“{reference.text}”" for reference in scene.references]
    assert verdict(wrong)[1].startswith(
        f"Exchanged: {names[0]} and {names[1]} wear each other's looks. Take another seed"
    )


class Vision:
    """The miniature's image encoder in plain torch."""

    name = "miniature"

    def __init__(self) -> None:
        self.model = clip.Vision(config.CLIP_VISION)
        self.model.load_state_dict(load_file(MINIATURE / "clip_vision.safetensors"))

    @torch.no_grad()
    def images(self, pictures):
        side = config.CLIP_VISION["image_size"]
        pixels = [
            np.array(Image.fromarray(np.asarray(p)).resize((side, side), Image.Resampling.BICUBIC)) for p in pictures
        ]
        return self.model(clip.normalised(torch.from_numpy(np.stack(pixels)).movedim(-1, 1).float() / 255))[1]


@pytest.mark.parametrize("encoder, right_at_most, wrong_at_least", [(Colours, 0.0, 1.0), (Vision, 0.15, 0.6)])
def test_what_a_detector_finds_agrees_with_the_world(encoder, right_at_most, wrong_at_least):
    """The pixels detector finds the objects, an encoder looks at them: two, so that both change their looks, without a
    colour in common."""
    confused, encoder = ([], []), encoder()
    for seed in (1, 4, 8, 9, 11, 13, 28, 31):
        scene = draw(seed, objects=2, pictures=2, looks=[(0, 1), (1, 0)])
        found = detect(PixelDetector(), scene.images, [reference.text for reference in scene.references], 0.25)
        binding = measure_binding(scene.images, scene.references, found, encoder)
        for rows, picture in zip(confused, binding.pictures, strict=True):
            rows += [margin < 0 for margin in picture.margin_by_object().values()]
    assert len(confused[0]) + len(confused[1]) > 28  # of 32
    assert np.mean(confused[0]) <= right_at_most and np.mean(confused[1]) >= wrong_at_least


def test_a_batch_is_its_pictures_one_by_one():
    scene = draw(3, pictures=3, looks=[(0, 1, 2), (1, 0, 2), (2, 2, 2)])
    ticks = []
    whole = measure_binding(scene.images, scene.references, scene.detections, Colours(), ticks.append)
    assert sum(ticks) == to_encode(scene.references, scene.detections) == 3 + 9
    for b in range(3):
        alone = measure_one(scene, b).pictures[0]
        torch.testing.assert_close(alone.similarity, whole.pictures[b].similarity)
        torch.testing.assert_close(alone.look, whole.pictures[b].look)
        assert alone.most_like == whole.pictures[b].most_like
    assert whole.ranking()[0] == 0 and whole.only(1).margin == whole.pictures[1].margin


# ---- the picture ----


def test_the_matrix_shows_numbers_and_marks():
    scene = draw(3)
    binding = measure_one(scene, 0)
    sheet = np.asarray(draw_matrix(binding, 0, verdict(binding)))
    bare = np.asarray(draw_matrix(binding, 0))
    assert sheet.shape[0] > bare.shape[0] and sheet.shape[1] == bare.shape[1]
    own = binding.pictures[0].similarity.argmax()  # the brightest cell is drawn in the scale's last colour
    assert own in (0, 4, 8) and (sheet == (254, 232, 56)).all(-1).sum() > 2000


def test_what_is_too_much_to_draw_is_counted(monkeypatch: pytest.MonkeyPatch):
    words = []
    monkeypatch.setattr(Canvas, "words", lambda _, at, said, *args, **more: words.append(said))
    draw_matrix(batch(made([0.1, 0.2], counts=(9, 9))), 0)
    assert "and 6 things more" in words and sum("again" in said for said in words) == MOST_ROWS - 2
    words.clear()
    draw_matrix(batch(made([0.1, 0.2], counts=(6, 6))), 0)
    assert not [said for said in words if "more" in said] and sum("again" in said for said in words) == 10


def test_all_kinds_of_batches_can_be_drawn():
    cases = [
        batch(made([None, None]), made([0.1, 0.2], counts=(9, 9))),
        batch(made([0.2], objects=1), names=("a very long name of an object that nobody would write",)),
        batch(made([0.1] * 16, objects=16), names=tuple(f"object {m}" for m in range(16))),
    ]
    for binding in cases:
        sentences = [verdict(binding.only(b)) for b in range(len(binding.pictures))]
        pages = draw_matrices(binding, sentences)
        assert pages.dtype == np.uint8 and pages.ndim == 4 and len(pages) == len(binding.pictures)


# ---- bad input ----


def test_boxes_of_all_kinds():
    """Of the whole picture, of one pixel, outside by the most part: finite numbers."""
    scene = draw(3)
    boxes = ((0, 0, 128, 128), (40, 40, 41, 41), (127, 0, 128, 128))
    found = replace(scene.detections, found=(tuple((thing(box),) for box in boxes),))
    binding = measure_binding(scene.images, scene.references, found, Colours())
    assert binding.presence == 1 and torch.isfinite(binding.pictures[0].similarity).all()
    assert "nan" not in binding_report(binding).lower() and draw_matrix(binding, 0, verdict(binding)).width


def test_bad_input_gets_a_sentence():
    scene = draw(3)
    images, chain, found = scene.images, scene.references, scene.detections
    told(lambda: measure_binding(images, (), found, Colours()), "no references", "MIP Reference")
    told(lambda: measure_binding(images[:, :64], chain, found, Colours()), "64", "128×128", "same pictures")
    told(lambda: measure_binding(images.expand(2, -1, -1, -1), chain, found, Colours()), "2 of", "1 of")
    told(lambda: measure_binding(images[..., :1], chain, found, Colours()), "[1, 128, 128, 1]")
    other = replace(found, texts=("cat", *found.texts[1:]))
    told(lambda: measure_binding(images, chain, other, Colours()), "“cat”", chain[0].text, "same object texts")

    class Broken(Colours):
        def images(self, pictures):
            return super().images(pictures) * torch.nan

    told(lambda: measure_binding(images, chain, found, Broken()), "colour counter", "NaN", "--force-fp32")
