"""The object quality score from pictures to report, against the definition and against `mip.py curate`."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
import torch
from mip_adapter.evaluation.detection.boxes import read_boxes
from mip_adapter.evaluation.detection.crops import crop
from mip_adapter.evaluation.detection.detections import Detection, Detections
from mip_adapter.evaluation.encoders.encoder import TextImageEncoder, load_encoder, need_words
from mip_adapter.evaluation.quality.report import draw_quality, measure_quality, quality_report
from PIL import Image

from ..support import tiny_clip, tiny_models
from ..support.sentences import told


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> TextImageEncoder:
    return need_words(load_encoder(tiny_clip.write(tmp_path_factory.mktemp("quality") / "clip")), "The test")


def found(*pictures: tuple[tuple[Detection, ...], ...], texts: tuple[str, ...] = ("cat", "dog")) -> Detections:
    return Detections(texts, 40, 60, pictures)


CAT, DOG = Detection((2, 3, 22, 33), 0.9), Detection((30, 10, 55, 38), 0.8)


def test_equals_the_definition(encoder: TextImageEncoder):
    images = torch.rand(2, 40, 60, 3)
    mask = torch.zeros(40, 60)
    mask[5:20, 4:18] = 1
    masked = Detection(CAT.box, 0.9, mask)
    detections = found(((CAT,), (DOG,)), ((masked, DOG), (DOG,)))
    measured = measure_quality(images, detections, encoder)
    texts = encoder.texts(["cat", "dog"]).double().numpy()
    texts /= np.linalg.norm(texts, axis=1, keepdims=True)
    for b, cat in enumerate((CAT, masked)):
        crops = encoder.images([crop(images[b], each) for each in (cat, DOG)]).double().numpy()
        crops /= np.linalg.norm(crops, axis=1, keepdims=True)
        single, pair = (texts * crops).sum(1).mean(), -crops[0] @ crops[1]
        got = [float(values[b]) for values in measured.quality]
        assert got == pytest.approx([single, pair, single + pair], abs=1e-5)
        assert measured.to_text[b].tolist() == pytest.approx((texts * crops).sum(1), abs=1e-5)
    means = [float(values.mean()) for values in measured.quality]
    assert list(measured.means) == pytest.approx(means) and means[2] == pytest.approx(means[0] + means[1], abs=1e-6)


def test_equals_the_score_of_training_data(encoder: TextImageEncoder, tmp_path: Path):
    """Masks of a training folder, as MIPBoxes reads them: the crops, and so the scores, are those of `curate`."""
    from mip_adapter.commands.curation.read import Folder
    from mip_adapter.commands.curation.score import LabelledCrops
    from mip_adapter.evaluation.quality.score import object_quality
    from mip_adapter.miniature import world
    from mip_adapter.research.miniature import world_files
    from mip_adapter.training.filters import Filters

    world_files.write(world.sample(3, seed=1, objects=(2,)), tmp_path, random.Random(0))
    folder = Folder(tmp_path, filters=Filters(area_min=0.01, fill=0.3, in_caption=False))
    for name in folder.ids():
        objects = folder.objects(name)
        assert isinstance(objects, LabelledCrops)
        values = torch.tensor(np.asarray(Image.open(tmp_path / "masks" / f"{name}.png")))
        entries = {entry["label"]: entry["value"] for entry in folder.data(name)["final_masks"]}
        masks = torch.stack([values == entries[label] for label in objects.labels]).float()
        image = torch.tensor(np.asarray(Image.open(folder.picture(name)))) / 255
        detections = read_boxes(masks, objects.labels, 1, *values.shape)
        measured = measure_quality(image[None], detections, encoder)
        for ours, theirs in zip(measured.crops[0], objects.crops, strict=True):
            assert np.array_equal(np.asarray(ours), theirs)
        text, crops = encoder.texts(objects.labels), encoder.images(objects.crops)
        assert measured.means == pytest.approx([float(v) for v in object_quality(text[None], crops[None])], abs=1e-5)


def test_pictures_without_an_object_are_left_out_and_named(encoder: TextImageEncoder):
    images = torch.rand(3, 40, 60, 3)
    detections = found(((CAT,), (DOG,)), ((CAT,), ()), ((CAT,), (CAT,)))
    measured = measure_quality(images, detections, encoder)
    assert measured.scored == (0,) and set(measured.left_out) == {1, 2}
    alone = measure_quality(images[:1], found(((CAT,), (DOG,))), encoder)
    assert measured.means == pytest.approx(alone.means)
    said = quality_report(measured)
    assert measured.objects == 2
    assert "mean: of 1 of 3 pictures, 2 objects.\nA picture that lacks an object has no score" in said
    assert "picture 2 left out: No “dog”" in said and "picture 3 left out: In picture 3 “dog”" in said
    drawn = draw_quality(images, detections, measured)
    assert drawn.shape[0] == 3 and torch.isfinite(drawn).all()
    told(lambda: measure_quality(images[1:2], found(((CAT,), ())), encoder), "dog", "picture 1", "cat 0.90")
    same = found(((CAT,), (CAT,)))
    told(lambda: measure_quality(images[:1], same, encoder), "dog", "only where another object")


def test_one_object_has_no_pairs(encoder: TextImageEncoder):
    measured = measure_quality(torch.rand(1, 40, 60, 3), found(((CAT,),), texts=("cat",)), encoder)
    assert measured.means[1] == 0 and measured.means[0] == measured.means[2]
    assert "One object has no pairs" in quality_report(measured)


def test_the_report_has_the_numbers(encoder: TextImageEncoder):
    measured = measure_quality(torch.rand(2, 40, 60, 3), found(*[((CAT,), (DOG,))] * 2), encoder)
    said = quality_report(measured).replace("−", "-")
    for values in (*measured.quality, *measured.to_text.T):
        assert all(f"{float(value):.3f}" in said for value in values)
    assert all(f"{mean:.3f}" in said for mean in measured.means)


def test_boxes_of_all_kinds(encoder: TextImageEncoder):
    """Overlapping, of one pixel, of the whole picture: finite numbers."""
    edges = (Detection((0, 0, 60, 40), 0.5), Detection((3, 3, 4, 4), 0.9), Detection((0, 0, 31, 30), 0.7))
    detections = found(tuple((each,) for each in edges), texts=("cat", "dog", "star"))
    measured = measure_quality(torch.rand(1, 40, 60, 3), detections, encoder)
    assert all(np.isfinite(measured.means)) and draw_quality(torch.rand(1, 40, 60, 3), detections, measured).shape[0]


def test_wrong_company(encoder: TextImageEncoder, tmp_path: Path):
    images, detections = torch.rand(1, 40, 60, 3), found(((CAT,), (DOG,)))
    told(lambda: measure_quality(torch.rand(2, 40, 60, 3), detections, encoder), "2 of 60×40", "1 of 60×40")
    told(lambda: measure_quality(torch.rand(1, 80, 60, 3), detections, encoder), "60×80", "60×40")
    dino = load_encoder(tiny_models.dino(tmp_path / "dino"))
    told(lambda: measure_quality(images, detections, dino), "object quality score", "dino", "pictures only")


def test_the_node(host, encoder: TextImageEncoder):
    from mip_adapter.nodes.quality import MIPObjectQualityScore

    images, detections = torch.rand(2, 40, 60, 3), found(*[((CAT,), (DOG,))] * 2)
    single, pair, total, said, picture, objects = MIPObjectQualityScore.execute(images, detections, encoder).args
    assert isinstance(total, float) and total == pytest.approx(single + pair, abs=1e-6)
    assert f"{single:.3f}" in said.replace("−", "-") and picture.shape[0] == 2 and picture.shape[-1] == 3
    assert objects == 4 and "mean: of 2 of 2 pictures, 4 objects." in said
