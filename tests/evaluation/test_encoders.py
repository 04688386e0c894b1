"""Encoders against transformers and torchvision called by hand; crops against the training data's; bad folders."""

from __future__ import annotations

import json
import re
import shutil
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mip_adapter.common.crops import fill_holes
from mip_adapter.evaluation.detection.crops import check_pictures, crop
from mip_adapter.evaluation.detection.detections import Detection, Detections
from mip_adapter.evaluation.encoders.encoder import load_encoder, need_words, reads_words
from PIL import Image

from ..support import small, tiny_clip, tiny_models
from ..support.sentences import told


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    base = tmp_path_factory.mktemp("encoders")
    tiny_clip.write(base / "clip")
    for name in ("dino", "dinov2", "dinov3", "siglip", "siglip2"):
        getattr(tiny_models, name)(base / name)
    return base


def photos() -> list[Image.Image]:
    """Of different sizes, coarse enough that resampling matters little where it differs by rounding."""
    random = np.random.default_rng(0)
    noise = (random.integers(0, 255, (6, 6, 3), np.uint8) for _ in range(3))
    sizes = ((90, 70), (64, 64), (50, 120))
    return [Image.fromarray(n).resize(size, Image.Resampling.BICUBIC) for n, size in zip(noise, sizes, strict=True)]


# ---- folders ----


def test_dino_is_scored_as_in_the_papers(folders: Path):
    """Resize the short side to 256 / 224 of the model's, bicubic; centre crop; ImageNet's normalisation; CLS."""
    from torchvision import transforms as T
    from transformers import ViTModel

    steps = T.Compose(
        [
            T.Resize(64, T.InterpolationMode.BICUBIC),
            T.CenterCrop(56),
            T.ToTensor(),
            T.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        ]
    )
    model: Any = ViTModel.from_pretrained(folders / "dino", add_pooling_layer=False).eval()
    with torch.no_grad():
        pixels = torch.stack([torch.as_tensor(steps(photo)) for photo in photos()])
        expected = model(pixel_values=pixels).last_hidden_state[:, 0]
    got = load_encoder(folders / "dino").images(photos())
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["dinov2", "dinov3"])
def test_later_dinos_see_what_their_folder_says(folders: Path, name: str):
    from transformers import AutoImageProcessor, AutoModel

    model, processor = (auto.from_pretrained(folders / name) for auto in (AutoModel, AutoImageProcessor))
    with torch.no_grad():
        one_by_one = [model.eval()(**processor(photo, return_tensors="pt")) for photo in photos()]
    expected = torch.cat([output.last_hidden_state[:, 0] for output in one_by_one])
    torch.testing.assert_close(load_encoder(folders / name).images(photos()), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["clip", "siglip", "siglip2"])
def test_words_and_pictures_share_a_space(folders: Path, name: str):
    """The cosines are those of the model's own forward, which knows nothing of single embeddings."""
    from transformers import AutoModel, AutoProcessor

    words = ["cat", "a red dog"]
    model, processor = (auto.from_pretrained(folders / name) for auto in (AutoModel, AutoProcessor))
    with torch.no_grad():
        inputs = processor(text=words, images=photos(), padding="max_length", max_length=16, return_tensors="pt")
        output = model.eval()(**inputs)
    encoder = need_words(load_encoder(folders / name), "The test")
    unit = torch.nn.functional.normalize
    texts, images = unit(encoder.texts(words)), unit(encoder.images(photos()))
    torch.testing.assert_close(texts, unit(output.text_embeds), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(images, unit(output.image_embeds), rtol=1e-4, atol=1e-5)
    assert texts.shape[1] == images.shape[1]


def test_many_pictures_are_seen_in_batches(folders: Path, monkeypatch: pytest.MonkeyPatch):
    from mip_adapter.evaluation.encoders import encoder as module

    monkeypatch.setattr(module, "BATCH", 2)
    for name in ("dino", "clip", "siglip2"):
        encoder = load_encoder(folders / name)
        alone = torch.cat([encoder.images([np.asarray(photo)]) for photo in photos()])
        torch.testing.assert_close(encoder.images(photos()), alone, rtol=1e-4, atol=1e-5)


def test_batches_are_halved_where_memory_runs_out(folders: Path, monkeypatch: pytest.MonkeyPatch):
    from mip_adapter.common.batching import OUT_OF_MEMORY, in_batches

    sizes, ticks = [], []

    def run(batch: list[int]) -> list[int]:
        sizes.append(len(batch))
        if len(batch) > 3:
            raise OUT_OF_MEMORY("CUDA out of memory")
        return batch

    assert [*chain(*in_batches(run, range(10), 8, ticks.append))] == [*range(10)]
    assert sizes == [8, 4, 2, 2, 2, 2, 2] and ticks == [2] * 5
    sizes.clear()

    def never(batch: list[int]) -> None:
        sizes.append(len(batch))
        raise OUT_OF_MEMORY("CUDA out of memory")

    with pytest.raises(OUT_OF_MEMORY):
        in_batches(never, range(5), 4)
    assert sizes == [4, 2, 1]
    encoder = load_encoder(folders / "clip")
    expected, forward = encoder.images(photos()), encoder.model.get_image_features  # pyright: ignore

    def small_only(pixel_values: torch.Tensor, **more: Any) -> Any:
        if len(pixel_values) > 1:
            raise OUT_OF_MEMORY("CUDA out of memory")
        return forward(pixel_values=pixel_values, **more)

    monkeypatch.setattr(encoder.model, "get_image_features", small_only)  # pyright: ignore
    torch.testing.assert_close(encoder.images(photos()), expected, rtol=1e-4, atol=1e-5)


def test_long_texts_are_cut(folders: Path):
    for name in ("clip", "siglip2"):
        encoder = need_words(load_encoder(folders / name), "The test")
        assert torch.isfinite(encoder.texts(["a very long name of one cat " * 9, "cat"])).all()


def test_who_sees_pictures_only_is_told(folders: Path):
    encoder = load_encoder(folders / "dino")
    assert not reads_words(encoder) and reads_words(load_encoder(folders / "clip"))
    told(lambda: need_words(encoder, "The object quality score"), "object quality", "dino", "CLIP or SigLIP")


def test_bad_folders(folders: Path, tmp_path: Path):
    told(lambda: load_encoder(tmp_path), "no config.json", str(tmp_path))

    def changed(name: str, **config: object) -> Path:
        folder = tmp_path / name
        shutil.copytree(folders / "clip", folder)
        file = folder / "config.json"
        file.write_text(json.dumps({**json.loads(file.read_text()), **config}))
        return folder

    pickled = changed("pickled")
    (pickled / "model.safetensors").rename(pickled / "pytorch_model.bin")
    told(lambda: load_encoder(pickled), "no .safetensors", "pickles")
    cut = changed("cut off")
    weights = (cut / "model.safetensors").read_bytes()
    (cut / "model.safetensors").write_bytes(weights[: len(weights) // 2])
    told(lambda: load_encoder(cut), "cannot be loaded")
    broken = changed("broken")
    (broken / "config.json").write_text("{")
    told(lambda: load_encoder(broken), "not readable JSON")
    told(lambda: load_encoder(changed("unknown", model_type="no such thing")), "no such thing", "cannot be loaded")
    foreign = changed("code", model_type="x", auto_map={"AutoConfig": "evil.C", "AutoModel": "evil.M"})
    (foreign / "evil.py").write_text("raise SystemExit('code of the folder was run')")
    told(lambda: load_encoder(foreign), "auto_map", "names code to run")
    # Where the package `kernels` is installed, transformers would fetch this one and run it.
    kernel = changed("kernel", vision_config={"_attn_implementation": "someone/kernel"})
    told(lambda: load_encoder(kernel), "_attn_implementation", "eager or sdpa")
    told(lambda: load_encoder(changed("kernels", attn_implementation={"": "a/b"})), "attn_implementation", "eager")
    told(lambda: load_encoder(changed("quantised", quantization_config={"quant_method": "x"})), "quantization_config")
    told(lambda: load_encoder(changed("deep", num_hidden_layers=10**5)), "num_hidden_layers", "1000 layers")
    (broken / "config.json").write_text("[" * 100_000)
    told(lambda: load_encoder(broken), "not readable JSON")
    (broken / "config.json").write_text('{"a":' * 900 + "1" + "}" * 900)
    told(lambda: load_encoder(broken), "nested too deeply")
    assert load_encoder(changed("chosen", _attn_implementation="eager"))
    told(lambda: load_encoder(tiny_models.grounding_dino(tmp_path / "detector")), "grounding-dino", "CLIP or SigLIP")
    other = changed("other")
    (file,) = [file for file in other.glob("*processor_config.json") if "crop_size" in file.read_text()]
    file.write_text(re.sub(r'"(shortest_edge|height|width)": 32', r'"\1": 64', file.read_text()))
    told(lambda: load_encoder(other), "cannot encode a picture", "CLIP or SigLIP")
    smaller = changed("lacking")
    from safetensors.torch import load_file, save_file

    tensors = load_file(smaller / "model.safetensors")
    save_file({k: v for k, v in tensors.items() if k != "text_projection.weight"}, smaller / "model.safetensors")
    told(lambda: load_encoder(smaller), "lack text_projection.weight", "random numbers")


# ---- the host's ----


def test_clip_vision_and_clip_of_the_host(host):
    """The miniature's classes with random weights, and transformers with the same."""
    from mip_adapter.evaluation.encoders.comfy_encoder import host_encoder
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    vision, clip = small.vision(projection_dim=32), small.clip()
    alone, both = host_encoder(vision), need_words(host_encoder(vision, clip), "The test")
    assert not reads_words(alone)
    settings: dict[str, Any] = {key: value for key, value in small.VISION.items() if key != "model_type"} | {
        "projection_dim": 32
    }
    model = CLIPVisionModelWithProjection(CLIPVisionConfig(**settings)).eval()
    model.load_state_dict({k: v.float() for k, v in vision.model.state_dict().items()}, strict=False)
    square = photos()[1].resize((28, 28))
    mean = torch.tensor([0.48145466, 0.4578275, 0.40821073])[:, None, None]
    std = torch.tensor([0.26862954, 0.26130258, 0.27577711])[:, None, None]
    pixels = (torch.tensor(np.asarray(square)).permute(2, 0, 1) / 255 - mean) / std
    with torch.no_grad():
        expected = model(pixel_values=pixels[None]).image_embeds
    for encoder in (alone, both):
        torch.testing.assert_close(encoder.images([square]), expected, rtol=2e-2, atol=2e-2)  # the host's in float16
    assert both.images(photos()).shape == (3, 32) and both.texts(["cat", "dog"]).shape == (2, 32)
    again = [photo for photo in photos() for _ in range(2)]  # of three sizes
    for encoder in (alone, both):
        one_by_one = torch.cat([encoder.images([photo]) for photo in again])
        torch.testing.assert_close(encoder.images(again), one_by_one, rtol=2e-2, atol=2e-2)
    calls, encode = [], vision.encode_image
    vision.encode_image = lambda image, *args, **more: calls.append(len(image)) or encode(image, *args, **more)
    alone.images(again)
    assert calls == [2, 2, 2]
    pooled = clip.encode_from_tokens(clip.tokenize("dog"), return_pooled=True)[1]
    torch.testing.assert_close(both.texts(["cat", "dog"])[1:], pooled.float())


def test_halves_of_different_models_are_refused(host):
    from mip_adapter.evaluation.encoders.comfy_encoder import host_encoder

    told(lambda: host_encoder(small.vision(), small.clip()), "32 numbers for words", "40 for pictures")
    told(lambda: host_encoder(None), "The CLIP vision is missing")
    clip = small.clip()
    projection = clip.cond_stage_model.clip_g.transformer.text_projection
    projection.weight = torch.nn.Parameter(torch.eye(32).to(projection.weight))  # what the host makes of none
    told(lambda: host_encoder(small.vision(projection_dim=32), clip), "without its text projection")


def test_the_host_is_told_how_much_memory_a_batch_needs(host, folders: Path, monkeypatch: pytest.MonkeyPatch):
    import comfy.model_management as management
    from mip_adapter.evaluation.comfy_models import ACTIVATIONS, managed

    encoder, asked, load = load_encoder(folders / "clip", managed), [], management.load_models_gpu

    def counting(models: Any, memory_required: float = 0, **more: Any) -> None:
        asked.append(memory_required)
        load(models, memory_required=memory_required, **more)

    monkeypatch.setattr(management, "load_models_gpu", counting)
    encoder.images(photos())
    assert asked == [3 * 3 * 32 * 32 * 4 * ACTIVATIONS]  # three pictures in float32


def test_folders_in_the_hosts_care(host, folders: Path):
    """Same vectors, and the host can take the model away and bring it back."""
    import comfy.model_management as management
    from mip_adapter.nodes.encoders import MIPEncoderLoader
    from mip_adapter.weights.comfy_files import register_folders

    register_folders()
    place = host.base / "models" / "mip_encoders"
    shutil.copytree(folders / "dino", place / "facebook" / "dino")
    shutil.copytree(folders / "clip", place / "clip")
    (place / ".cache").mkdir()
    (place / ".cache" / "config.json").write_text("{}")
    options = MIPEncoderLoader.define_schema().inputs[0].options
    assert options == ["clip", "facebook/dino"]
    for name in options:
        encoder = MIPEncoderLoader.execute(name).args[0]
        torch.testing.assert_close(encoder.images(photos()), load_encoder(place / name).images(photos()))
        assert management.loaded_models()
        management.unload_all_models()
        assert not [model for model in management.loaded_models() if model is not None]  # None: of another test, gone
        torch.testing.assert_close(encoder.images(photos()), load_encoder(place / name).images(photos()))
        assert MIPEncoderLoader.validate_inputs(name) is True
    assert "leads out" in str(MIPEncoderLoader.validate_inputs("../ipadapter"))
    told(lambda: MIPEncoderLoader.execute(""), "No model is chosen", "mip_encoders")
    told(lambda: MIPEncoderLoader.execute("nothing"), "nothing", "was not found")
    before = MIPEncoderLoader.fingerprint_inputs("clip")
    (place / "clip" / "model.safetensors").touch()
    assert MIPEncoderLoader.fingerprint_inputs("clip") != before


# ---- crops ----


def test_crops_are_those_of_training():
    """The same object, from a picture on disk with a mask of numbers and from an IMAGE with a mask of its own."""
    from mip_adapter.training.crops import cut_reference

    picture = np.asarray(photos()[0])
    values = np.zeros(picture.shape[:2], np.uint8)
    values[10:40, 20:70], values[20:25, 40:50], values[30:60, 60:80] = 1, 0, 2  # with a hole, and overlapped
    box = (20.0, 10.0, 70.0, 40.0)
    expected = cut_reference(picture, values, box, False)
    mask = torch.tensor(values == 1).float() * 0.9
    got = crop(torch.tensor(picture) / 255, Detection(box, mask=mask))
    assert expected is not None and got.size == (224, 224)
    torch.testing.assert_close(torch.tensor(np.asarray(got)).permute(2, 0, 1) / 255, expected)


def test_crops_by_hand():
    image = torch.zeros(8, 12, 3)
    image[2:6, 3:5] = torch.tensor([1.0, 0.0, 0.0])
    box = (3, 2, 5, 6)
    whole = cells(crop(image, Detection(box)))  # 2 × 4 pixels in the middle of a white square
    assert (whole[:, 1:3] == (255, 0, 0)).all() and (whole[:, [0, 3]] == 255).all()
    mask = torch.zeros(8, 12)
    mask[2:4] = 1
    half = cells(crop(image, Detection(box, mask=mask)))
    assert (half[:2, 1:3] == (255, 0, 0)).all() and (half[2:] == 255).all()
    everything = crop(image, Detection((-3, -2, 40, 40)))
    assert np.array_equal(np.asarray(everything), np.asarray(crop(image, Detection((0, 0, 12, 8)))))


def cells(square: Image.Image) -> np.ndarray:
    """[4, 4, 3]: the middles of the sixteen parts of an enlarged square; their neighbours show a little."""
    middles = np.asarray(square)[28::56, 28::56].astype(int)
    return np.where(middles > 250, 255, np.where(middles < 5, 0, middles))


def test_holes():
    ring = np.array([[0, 1, 1, 0], [1, 0, 0, 1], [0, 1, 1, 0], [1, 0, 0, 0]], bool)
    assert (fill_holes(ring) == [[0, 1, 1, 0], [1, 1, 1, 1], [0, 1, 1, 0], [1, 0, 0, 0]]).all()


def test_crops_that_cannot_be():
    image = torch.rand(8, 12, 3)
    told(lambda: crop(image, Detection((20, 2, 30, 6))), "(20, 2)–(30, 6)", "lies outside")
    told(lambda: crop(image, Detection((0, 0, 4, 4), mask=torch.zeros(8, 12))), "mask is empty")
    told(lambda: crop(image, Detection((0, 0, 4, 4), mask=torch.ones(4, 4))), "12×8", "4×4")
    found = Detections(("cat",), 8, 12, (((Detection((0, 0, 4, 4)),),),))
    told(lambda: check_pictures(torch.rand(2, 8, 12, 3), found), "2 of 12×8", "1 of 12×8")
    told(lambda: check_pictures(torch.rand(1, 16, 24, 3), found), "1 of 24×16")
    told(lambda: check_pictures(torch.rand(8, 12, 3), found), "[8, 12, 3]")
