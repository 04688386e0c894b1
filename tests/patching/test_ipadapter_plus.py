"""Beside the real IPAdapter_plus, where IPADAPTER_PLUS_PATH names a checkout of it; skipped elsewhere.

Its middle block has a name that the host never looks up, so nobody's middle counts here.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch

from ..support import graphs, small, weights_samples
from ..support.graphs import TOLERANCE, bundle, deviation, photo, references, sample
from ..support.tiny_faces import Analyser, numbers, seen
from ..support.tiny_faces import photo as tiny_photo

PATH = os.environ.get("IPADAPTER_PLUS_PATH", "")
pytestmark = [
    pytest.mark.usefixtures("host"),
    pytest.mark.skipif(not PATH, reason="IPADAPTER_PLUS_PATH names no checkout of IPAdapter_plus"),
]


@pytest.fixture(scope="module")
def plus(host) -> ModuleType:
    """The pack, imported as the host imports custom nodes: by path, whatever its folder is called."""
    spec = importlib.util.spec_from_file_location("ipadapter_plus", Path(PATH, "__init__.py"))
    assert spec and spec.loader
    sys.modules["ipadapter_plus"] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return sys.modules["ipadapter_plus.IPAdapterPlus"]


@pytest.fixture(scope="module")
def model(host):
    return small.sd15()


@pytest.fixture(scope="module")
def adapters(model) -> list:
    return [small.base_adapter(model, name) for name in ("one", "second", "another")]


def ours(model, adapter, picture: int = 0, chain=None, **options):
    """MIPApply with one reference, or a chain; without the middle."""
    chain = chain or references(("cat",), image=[photo(picture)])
    patched = graphs.apply(chain, model=model, adapter=adapter, **options)
    slots = patched.model_options["transformer_options"]["patches_replace"]["attn2"]
    for key in [key for key in slots if key[0] == "middle"]:
        del slots[key]
    return patched


def theirs(plus, model, adapter, picture: int = 0, **options):
    """IPAdapterAdvanced's work on the same encoder's features."""
    tensors = {
        "image_proj": dict(adapter.image_proj),
        "ip_adapter": {
            f"{n}.to_{x}_ip.weight": getattr(w, f"{x}_weight").clone()
            for n, w in adapter.site_weights.items()
            for x in "kv"
        },
    }
    with torch.inference_mode(False):
        features = bundle().vision.encode_image(photo(picture)).image_embeds.clone()
        return plus.ipadapter_execute(model.clone(), tensors, bundle().vision, pos_embed=features, **options)[0]


def sampled(model) -> torch.Tensor:
    return sample(model, 3)


def test_one_reference_is_an_ip_adapter(plus, model, adapters) -> None:
    expected = sampled(theirs(plus, model, adapters[0], weight=0.8))
    assert deviation(sampled(ours(model, adapters[0], scale=0.8)), expected, sampled(model)) < TOLERANCE


@pytest.mark.parametrize("order", ["before", "behind", "both", "between"])
def test_chained(plus, model, adapters, order: str) -> None:
    """Where everybody stands makes no difference, and equals as many IPAdapter_plus in a row."""
    a, b, c = adapters
    if order == "before":
        got = ours(theirs(plus, model, b, 1), a)
    elif order == "behind":
        got = theirs(plus, ours(model, a), b, 1)
    elif order == "both":
        got = theirs(plus, ours(theirs(plus, model, b, 1), a), c, 2)
    else:
        got = ours(theirs(plus, ours(model, a), b, 1), c, 2)
    expected = theirs(plus, theirs(plus, model, a), b, 1)
    if order in ("both", "between"):
        expected = theirs(plus, expected, c, 2)
    assert deviation(sampled(got), sampled(expected), sampled(model)) < TOLERANCE


def test_its_range_of_steps_holds_behind_ours(plus, model, adapters) -> None:
    got = theirs(plus, ours(model, adapters[0]), adapters[1], 1, start_at=0.2, end_at=0.7)
    expected = theirs(plus, theirs(plus, model, adapters[0]), adapters[1], 1, start_at=0.2, end_at=0.7)
    always = theirs(plus, theirs(plus, model, adapters[0]), adapters[1], 1)
    assert deviation(sampled(got), sampled(expected), sampled(model)) < TOLERANCE
    assert deviation(sampled(got), sampled(always), sampled(model)) > 10 * TOLERANCE


def test_our_model_does_not_gain_what_is_added_behind_it(plus, model, adapters) -> None:
    first = ours(model, adapters[0])
    before = sampled(first)
    sampled(theirs(plus, first, adapters[1], 1))
    assert torch.equal(sampled(first), before)


# ---- weight types ----

TYPES = {
    "all": "linear", "style": "style transfer", "strong style": "strong style transfer", "composition": "composition",
    "style and composition": "style and composition",
}  # fmt: skip


@pytest.fixture(scope="module", params=["SD1.5", "SDXL"])
def full(request, model):
    """(MODEL, adapter, prompts) with all blocks of a kind of UNet."""
    if request.param == "SD1.5":
        return model, small.base_adapter(model, "one"), {}
    xl, seeded = small.sdxl(), torch.Generator().manual_seed(3)

    def conds():
        return [[torch.randn(1, 77, 2048, generator=seeded), {"pooled_output": torch.randn(1, 1280, generator=seeded)}]]

    return xl, small.base_adapter(xl, "one"), {"positive": conds(), "negative": conds()}


def picture_of(model, prompts) -> torch.Tensor:
    return sample(graphs.guide(model, **prompts), 2, size=(16, 16))


def style(preset: str = "all", **more):
    from mip_adapter.nodes.style import MIPStyleReference

    return MIPStyleReference.execute(photo(0), 0.8, preset, **more).args[0]


def close_to(plus, full, chain, **options) -> None:
    model, adapter, prompts = full
    options = {"weight": 0.8, "weight_composition": 0.8, **options}
    expected = picture_of(theirs(plus, model, adapter, **options), prompts)
    got = picture_of(ours(model, adapter, chain=chain), prompts)
    assert deviation(got, expected, picture_of(model, prompts)) < TOLERANCE


@pytest.mark.parametrize("preset", TYPES)
def test_a_preset_is_a_weight_type(plus, full, preset: str) -> None:
    close_to(plus, full, style(preset), weight_type=TYPES[preset])


def test_pairs_are_its_layer_weights(plus, full) -> None:
    from mip_adapter.nodes.block_strength import MIPBlockStrength

    pairs = "1:0.5, 3:1.0, 6:0.25, 9:2"
    strength = MIPBlockStrength.execute(full[0], "all", pairs).args[0]
    close_to(plus, full, style(block_strength=strength), layer_weights=pairs)


def test_a_negative_is_its_image_negative(plus, full) -> None:
    """Its own preprocessing of the picture differs from the host's, so both get the host's features."""
    with torch.inference_mode(False):
        features = bundle().vision.encode_image(photo(9)).image_embeds.clone()
    close_to(plus, full, style(negative=photo(9)), neg_embed=features)


class Fixed(Analyser):
    """An analyser with InsightFace's detection size, which IPAdapter_plus sets."""

    det_model = SimpleNamespace(input_size=(640, 640))


@pytest.fixture
def face_align(monkeypatch) -> None:
    """What its FaceID path imports of InsightFace, where that is not installed: a crop, which FaceID does not read."""
    if importlib.util.find_spec("insightface") is not None:
        return
    names = ("insightface", "insightface.utils", "insightface.utils.face_align")
    package, utils, align = (ModuleType(name) for name in names)
    align.norm_crop = lambda picture, landmark, image_size: picture[:image_size, :image_size]  # pyright: ignore[reportAttributeAccessIssue]
    utils.face_align = align  # pyright: ignore[reportAttributeAccessIssue]
    for name, module in zip(names, (package, utils, align), strict=True):
        monkeypatch.setitem(sys.modules, name, module)


@pytest.mark.usefixtures("face_align")
@pytest.mark.parametrize("order", ["alone", "before", "behind"])
def test_faceid(plus, model, order: str) -> None:
    """Its FaceID path and ours give the same faces, and stand beside each other in either order."""
    from mip_adapter.nodes.faces import MIPFaceReference
    from mip_adapter.weights.adapter import build_adapter
    from mip_adapter.weights.sites import unet_sites

    widths = tuple(site.width for site in unet_sites(model.model.diffusion_model))
    seeded = torch.Generator().manual_seed(0)

    def fill(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=seeded) / shape[-1] ** 0.5 if len(shape) > 1 else torch.ones(shape)

    tensors = weights_samples.flat(weights_samples.Sample("faceid", 48, 512, widths, lora=2), fill)
    face, vision = build_adapter(tensors, "face"), small.vision(image_size=224, patch_size=112)
    analysers = [Fixed([seen(90, 100, 80, numbers(i))]) for i in range(2)]

    def our_face(before, number: int):
        chain = MIPFaceReference.execute(tiny_photo(), "cat", analysers[number], 1.0, 0).args[0]
        patched = graphs.apply(chain, model=before, adapter=face, scale=0.8)
        patched.patches = dict(before.patches)  # IPAdapter_plus leaves the LoRA to another loader
        slots = patched.model_options["transformer_options"]["patches_replace"]["attn2"]
        for key in [key for key in slots if key[0] == "middle"]:
            del slots[key]
        return patched

    def their_face(before, number: int):
        with torch.inference_mode(False):
            return plus.ipadapter_execute(
                before.clone(), weights_samples.nested({k: t.clone() for k, t in tensors.items()}), vision,
                insightface=analysers[number], image=tiny_photo(), weight=0.8,
            )[0]  # fmt: skip

    if order == "alone":
        got, expected = our_face(model, 0), their_face(model, 0)
    else:
        got = our_face(their_face(model, 1), 0) if order == "before" else their_face(our_face(model, 0), 1)
        expected = their_face(their_face(model, 0), 1)
    before = sampled(model)
    assert deviation(sampled(got), sampled(expected), before) < TOLERANCE
    assert torch.equal(sampled(model), before) and not model.patches
