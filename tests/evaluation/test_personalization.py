"""Personalisation scores against transformers' own pipeline on small random models, and on drawn scenes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mip_adapter.attention.reference import make_reference
from mip_adapter.evaluation.detection.detections import Detections
from mip_adapter.evaluation.encoders.embeddings import embed_words
from mip_adapter.evaluation.encoders.encoder import load_encoder
from mip_adapter.evaluation.personalization import (
    image_score,
    personalization,
    personalization_report,
    pictures_to_encode,
    text_score,
)
from PIL import Image

from ..support import tiny_clip, tiny_models
from ..support.drawn import Colours, draw, thing
from ..support.sentences import told


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    base = tmp_path_factory.mktemp("encoders")
    return tiny_clip.write(base / "tiny-clip"), tiny_models.dino(base / "tiny-dino")


def test_words_are_read_without_the_prompts_syntax(folders: tuple[Path, Path]):
    encoder: Any = load_encoder(folders[0])
    assert torch.equal(embed_words(encoder, ["a (red cat:1.3)"]), embed_words(encoder, ["a red cat"]))


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    a, b = a.astype(np.float64).ravel(), b.astype(np.float64).ravel()
    return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))


def pil(image: torch.Tensor) -> Image.Image:
    return Image.fromarray((image * 255).round().to(torch.uint8).numpy())


def array(features: Any) -> np.ndarray:
    """transformers 5 returns the whole output, 4 the embeddings."""
    return getattr(features, "pooler_output", features).numpy()


class Clip:
    """transformers alone: the processor, the model, one picture or text at a time."""

    def __init__(self, folder: Path) -> None:
        from transformers import CLIPModel, CLIPProcessor

        self.model: Any = CLIPModel.from_pretrained(folder)
        self.processor: Any = CLIPProcessor.from_pretrained(folder)

    @torch.no_grad()
    def picture(self, picture: Image.Image) -> np.ndarray:
        return array(self.model.get_image_features(**self.processor(images=picture, return_tensors="pt")))

    @torch.no_grad()
    def words(self, words: str) -> np.ndarray:
        return array(self.model.get_text_features(**self.processor(text=[words], truncation=True, return_tensors="pt")))


class Dino:
    """The first token, after the paper's preprocessing by torchvision."""

    def __init__(self, folder: Path) -> None:
        from torchvision import transforms
        from transformers import ViTModel

        self.model = ViTModel.from_pretrained(folder, add_pooling_layer=False)
        self.prepare: Any = transforms.Compose(
            [
                transforms.Resize(64, transforms.InterpolationMode.BICUBIC),  # 256 : 224 = 64 : 56
                transforms.CenterCrop(56),
                transforms.ToTensor(),
                transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
            ]
        )

    @torch.no_grad()
    def picture(self, picture: Image.Image) -> np.ndarray:
        return self.model(pixel_values=self.prepare(picture).unsqueeze(0)).last_hidden_state[:, 0].numpy()


def test_whole_pictures_score_as_by_transformers(folders):
    scene = draw(3, objects=2, pictures=2)
    several = make_reference(torch.rand(3, 40, 56, 3), scene.references[1].text)
    references, prompt = (scene.references[0], several), "a heart and a moon"
    clip, dino = Clip(folders[0]), Dino(folders[1])
    scores = personalization(scene.images, references, prompt, *(load_encoder(folder) for folder in folders))
    words = clip.words(prompt)
    for b, image in enumerate(scene.images):
        expected = 2.5 * max(cosine(clip.picture(pil(image)), words), 0)
        assert scores.whole.clip_t[b].tolist() == pytest.approx([expected] * 2, abs=1e-5)
        for m, reference in enumerate(references):
            for name, by in (("clip_i", clip), ("dino", dino)):
                cosines = [cosine(by.picture(pil(image)), by.picture(pil(each))) for each in reference.images]
                assert float(getattr(scores.whole, name)[b, m]) == pytest.approx(np.mean(cosines), abs=1e-5)
    assert scores.whole.mean("clip_i") == pytest.approx(float(scores.whole.clip_i.mean()))
    assert scores.crops is None


def test_crops_score_as_by_transformers(folders):
    """The object alone on white, its own text, its own reference; boxes without masks."""
    scene = draw(4, objects=2, pictures=2)
    boxed = tuple(tuple((replace(each[0], mask=None),) for each in found) for found in scene.detections.found)
    boxed = (boxed[0], (boxed[1][0], ()))  # the second object is missing in the second picture
    detections = replace(scene.detections, found=boxed)
    clip, dino = Clip(folders[0]), Dino(folders[1])
    encoders = [load_encoder(folder) for folder in folders]
    scores = personalization(scene.images, scene.references, "a prompt", *encoders, detections)
    assert scores.crops is not None and scores.crops.measured.tolist() == [[True, True], [True, False]]
    for b, m in ((0, 0), (0, 1), (1, 0)):
        x0, y0, x1, y1 = (int(edge) for edge in scene.detections.found[b][m][0].box)
        cut, side = pil(scene.images[b]).crop((x0, y0, x1, y1)), max(x1 - x0, y1 - y0)
        square = Image.new("RGB", (side, side), "white")
        square.paste(cut, ((side - cut.width) // 2, (side - cut.height) // 2))
        square = square.resize((224, 224), Image.Resampling.BILINEAR)
        reference = scene.references[m]
        expected = 2.5 * max(cosine(clip.picture(square), clip.words(reference.text)), 0)
        assert float(scores.crops.clip_t[b, m]) == pytest.approx(expected, abs=1e-5)
        for name, by in (("clip_i", clip), ("dino", dino)):
            own = cosine(by.picture(square), by.picture(pil(reference.images[0])))
            assert float(getattr(scores.crops, name)[b, m]) == pytest.approx(own, abs=1e-5)
    assert float(scores.crops.clip_t[1, 1]) == 0
    assert scores.crops.mean("clip_t") == pytest.approx(float(scores.crops.clip_t.sum()) / 3)
    said, text = personalization_report(scores), scene.references[1].text
    assert f"- No “{text}” is marked in picture 2; found there: {scene.references[0].text} 0.90." in said


def test_clip_t_never_falls_below_nothing():
    assert text_score(torch.tensor([[1.0, 0.0], [-1.0, 0.0]]), torch.tensor([[1.0, 0.0]])).tolist() == [2.5, 0.0]
    assert image_score(torch.tensor([[1.0, 0.0]]), [torch.tensor([[-1.0, 0.0], [0.0, 1.0]])]).tolist() == [[-0.5]]


class Painter(Colours):
    """Reads every word as the same grey."""

    def texts(self, words):
        return torch.full((len(words), 64), 1.0)


def test_exchanged_looks_please_whole_pictures_but_not_crops():
    """What the crops are for. Half of each picture's pixels are background, which is not white."""
    scene = draw(0, objects=2, pictures=2, looks=[(0, 1), (1, 0)])
    scores = personalization(scene.images, scene.references, "two", Painter(), None, scene.detections)
    assert scores.crops is not None and scores.whole.dino is None and scores.crops.dino is None
    whole, crops = scores.whole.clip_i.mean(1), scores.crops.clip_i.mean(1)
    assert float(crops[0] - crops[1]) > 0.3 > 4 * abs(float(whole[0] - whole[1]))


def test_objects_of_one_text_are_told_apart_by_their_look():
    """As in the binding report: two dogs get their own crops, whichever the detector is surer of."""
    scene = draw(0, objects=2)
    (first,), (second,) = scene.detections.found[0]
    by_name = personalization(scene.images, scene.references, "two", Painter(), Colours(), scene.detections)
    chain = tuple(replace(each, text=text) for each, text in zip(scene.references, ("dog", " Dog"), strict=True))
    for scores in ((0.9, 0.8), (0.8, 0.9)):
        found = (replace(first, score=scores[0]), replace(second, score=scores[1]))
        found = Detections(("dog",), *scene.images.shape[1:3], ((tuple(sorted(found, key=lambda d: -d.score)),),))
        alike = personalization(scene.images, chain, "two", Painter(), Colours(), found)
        assert by_name.crops is not None and alike.crops is not None
        for name in ("clip_i", "dino"):
            torch.testing.assert_close(getattr(alike.crops, name), getattr(by_name.crops, name))


def test_what_was_not_found_is_explained():
    scene = draw(0, objects=2, pictures=9)
    detections = replace(scene.detections, found=tuple((each[0], ()) for each in scene.detections.found))
    detections = replace(detections, threshold=0.3, best_rejected=((0.0, 0.12),) * 9)
    said = personalization_report(personalization(scene.images, scene.references, "two", Painter(), None, detections))
    first, second = (each.text for each in scene.references)
    expected = (
        f"No “{second}” was found at threshold 0.3 (the best candidate has 0.12) in picture 1; found there: {first} "
    )
    assert expected in said and "in picture 6;" in said and "in picture 7;" not in said and "- and 3 more" in said


def test_crops_of_boxes_of_all_kinds():
    """Of the whole picture, of one pixel, outside by the most part: finite scores."""
    scene = draw(0, objects=3)
    boxes = ((0, 0, 128, 128), (40, 40, 41, 41), (127, 0, 128, 128))
    found = replace(scene.detections, found=(tuple((thing(box),) for box in boxes),))
    scores = personalization(scene.images, scene.references, "three", Painter(), Colours(), found)
    assert scores.crops is not None and scores.crops.measured.all()
    assert all(torch.isfinite(each).all() for each in (scores.crops.clip_t, scores.crops.clip_i))


def test_the_report_says_what_was_measured(folders):
    scene = draw(0, objects=2)
    encoder = load_encoder(folders[0])
    ticks = []
    said = personalization_report(
        personalization(scene.images, scene.references, "p", encoder, None, scene.detections, ticks.append)
    )
    assert sum(ticks) == pictures_to_encode(scene.images, scene.references, scene.detections, 1) == 5
    assert "CLIP-T and CLIP-I by tiny-clip. DINO was not measured: connect an image_encoder." in said
    assert "Crops: the mean of all 2 objects; every one was found." in said
    header = [cell.strip() for cell in said.splitlines()[4].split("|")[1:-1]]
    assert header == ["", "object", "CLIP-T", "CLIP-I", "crop CLIP-T", "crop CLIP-I"]
    assert said.splitlines()[6].startswith("| mean") and len(said.splitlines()) == 9
    nobody = replace(scene.detections, found=(((), ()),))
    scores = personalization(scene.images, scene.references, "p", encoder, None, nobody)
    assert scores.crops is not None and scores.crops.mean("clip_t") is None
    assert "–" in personalization_report(scores) and "nan" not in personalization_report(scores).lower()


def test_bad_input_gets_a_sentence(folders):
    scene = draw(0, objects=2)
    images, chain, found = scene.images, scene.references, scene.detections
    clip, dino = (load_encoder(folder) for folder in folders)
    told(lambda: personalization(images, chain, "p", dino), "CLIP-T", "tiny-dino", "pictures only")
    told(lambda: personalization(images, chain, "  ", clip), "prompt is empty")
    told(lambda: personalization(images, (), "p", clip), "no references")
    told(lambda: personalization(images[0], chain, "p", clip), "shape")
    told(lambda: personalization(images[..., :1], chain, "p", clip), "[1, 128, 128, 1]")
    told(lambda: personalization(images[:, :50], chain, "p", clip, None, found), "128×50", "128×128")
    other = replace(found, texts=("cat", "dog"))
    told(lambda: personalization(images, chain, "p", clip, None, other), "“cat”", "same object texts")
