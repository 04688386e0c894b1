"""Face references in MIP Apply: the LoRA inside the file, refusals, and a chain of faces."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch

from ..support import graphs, weights_samples
from ..support.direct import Direct, DirectPatch, attention, object_relevance
from ..support.graphs import TOLERANCE, bundle, deviation, sample
from ..support.tiny_faces import Analyser, numbers, photo, seen
from ..support.weights_samples import Sample

pytestmark = pytest.mark.usefixtures("host")


@cache
def tensors(family: str = "faceid", tokens: int = 4) -> dict[str, torch.Tensor]:
    """A face adapter for the bundle's model."""
    from mip_adapter.weights.sites import unet_sites

    widths = tuple(site.width for site in unet_sites(bundle().model.model.diffusion_model))
    seeded = torch.Generator().manual_seed(0)

    def fill(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=seeded) / shape[-1] ** 0.5 if len(shape) > 1 else torch.ones(shape)

    return weights_samples.flat(
        Sample(family, 48, 40 if "plus" in family else 512, widths, heads=1, lora=2, tokens=tokens), fill
    )


@cache
def adapter(family: str = "faceid", tokens: int = 4) -> Any:
    from mip_adapter.weights.adapter import build_adapter

    return build_adapter(tensors(family, tokens), "face.safetensors")


def face(text: str = "woman", number: int = 0, references: tuple = (), width: int = 512, **inputs: Any) -> tuple:
    """A chain with a MIPFaceReference at its end."""
    from mip_adapter.nodes.faces import MIPFaceReference

    analyser = Analyser([seen(90, 100, 80, numbers(number, width))])
    given = {"weight": 1.0, "face": 0, "references": references, **inputs}
    return MIPFaceReference.execute(photo(), text, analyser, **given).args[0]


def apply(
    chain: tuple, *, model: Any = None, lora: float = 1.0, family: str = "faceid", vision: Any = None, **more: Any
):
    from mip_adapter.nodes.apply import MIPApply

    parts = bundle()
    with torch.inference_mode():
        return MIPApply.execute(
            model or parts.model, parts.clip, vision or parts.vision, more.pop("adapter", adapter(family)), chain, 1.0,
            0.0, more.pop("end", 1.0), face_lora=lora, **more,
        ).args[0]  # fmt: skip


def patched_weights(model: Any) -> dict[str, int]:
    """How many patches each weight has."""
    return {key: len(patches) for key, patches in model.patches.items()}


def test_the_lora_patches_every_attention_once() -> None:
    model = apply(face())
    attentions = [name for name, _ in bundle().model.model.diffusion_model.named_modules() if name[-6:-1] == ".attn"]
    assert len(patched_weights(model)) == 4 * len(attentions) and set(patched_weights(model).values()) == {1}
    assert not bundle().model.patches
    assert not apply(face(), lora=0).patches


def test_the_lora_is_never_applied_twice() -> None:
    once = apply(face())
    twice = apply(face("man", 1), model=once)
    assert patched_weights(twice) == patched_weights(once)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_the_separate_file_counts_as_the_lora(dtype) -> None:
    """Loaded by Load LoRA, under the names and with the alpha that such files have."""
    import comfy.lora
    import comfy.sd
    from mip_adapter.weights.sites import attention_weights

    model, file = bundle().model, {}
    names = attention_weights(model.model.diffusion_model)
    for key, tensor in adapter().lora.items():
        part, _, end = key.partition("_lora.")
        base = "lora_unet_" + names[part].removesuffix(".weight").replace(".", "_")
        direction = end.removesuffix(".weight")
        file[f"{base}.lora_{direction}.weight"] = tensor.to(dtype) * (2 if direction == "up" else 1)
        file[f"{base}.alpha"] = torch.tensor(1.0)  # half of the rank, so that the doubled matrix counts once
    # Without names for this small UNet in the host's own table, the host's loader gets them.
    targets = {
        "lora_unet_" + name.removesuffix(".weight").replace(".", "_"): f"diffusion_model.{name}"
        for name in names.values()
    }
    other = model.clone()
    other.add_patches(comfy.lora.load_lora(file, targets), 1.0)
    assert patched_weights(apply(face(), model=other)) == patched_weights(other)
    strange = model.clone()
    file = {key: tensor * 3 if "lora_up" in key else tensor for key, tensor in file.items()}
    strange.add_patches(comfy.lora.load_lora(file, targets), 1.0)
    assert set(patched_weights(apply(face(), model=strange)).values()) == {2}


def test_two_faces_stay_apart_and_the_parent_as_it_was() -> None:
    before = sample(bundle().model, 1)
    chain = face("man", 1, face("woman", 0))
    both, swapped = apply(chain), apply(face("man", 0, face("woman", 1)))
    assert not torch.equal(sample(both, 1), sample(swapped, 1))
    assert torch.equal(sample(bundle().model, 1), before)


def test_pictures_of_one_face_are_averaged_as_embeddings() -> None:
    from mip_adapter.patching.encode import image_tokens
    from mip_adapter.weights.projection import project

    third = face(number=2, weight=0.5)
    chain = face(number=0, more_pictures=face(number=1, references=third))
    tokens = image_tokens(None, chain[0], adapter())
    each = torch.nn.functional.normalize(torch.stack([torch.from_numpy(numbers(i)) for i in (0, 2, 1)]), dim=-1)
    mean = (each * torch.tensor([1, 0.5, 1])[:, None] / 2.5).sum(0, keepdim=True)
    assert torch.allclose(tokens, project(adapter(), mean)[0], atol=1e-6)


def test_structure_counts_for_plus_v2_only() -> None:
    first, second = (sample(apply(face(structure=s), family="faceid-plusv2"), 1) for s in (0.2, 1.0))
    assert not torch.equal(first, second)
    first, second = (sample(apply(face(structure=s)), 1) for s in (0.2, 1.0))
    assert torch.equal(first, second)


def test_what_does_not_belong_together_is_said() -> None:
    with pytest.raises(ValueError, match="reads face embeddings, and “cat” is a MIP Reference: use MIP Face Reference"):
        apply(graphs.references(("cat",)))
    with pytest.raises(ValueError, match=r"“woman” is a MIP Face Reference, and “.*” \(base\) reads pictures"):
        apply(face(), adapter=bundle().adapters["base"])
    with pytest.raises(ValueError, match="embeddings of 512 numbers, and the face analyser gives 128"):
        apply(face(width=128))
    with pytest.raises(ValueError, match="got “cat”, a MIP Reference: use MIP Face Reference for every photograph"):
        face(more_pictures=graphs.references(("cat",)))
    with pytest.raises(ValueError, match="analysed by different models"):
        face(more_pictures=face(width=128))


@pytest.mark.parametrize("channels", [1, 4])
def test_grey_and_transparent_photographs(channels) -> None:
    from mip_adapter.nodes.faces import MIPFaceReference

    analyser = Analyser([seen(90, 100, 80, numbers(0))])
    picture = photo()[..., :1] if channels == 1 else torch.cat([photo(), torch.ones(1, 192, 192, 1)], dim=-1)
    _, crops, about = MIPFaceReference.execute(picture, "woman", analyser, 1.0, 0).args
    assert crops.shape == (1, 224, 224, 3) and about == "“woman”: one face in each picture."
    with pytest.raises(ValueError, match="4×4 pixels"):
        MIPFaceReference.execute(torch.rand(1, 4, 4, 3), "woman", analyser, 1.0, 0)


@dataclass
class Mixed(Direct):
    """The definition for objects with adapters of their own. nulls: M × [T, X]."""

    adapters: list = field(default_factory=list)
    nulls: list = field(default_factory=list)

    def objects(self, q, to_k, number, heads, regions):
        relevance = torch.stack([object_relevance(q, text.double() @ to_k.T, heads) for text in self.texts])
        return self.each(q, self.tokens, self.shares(relevance, regions), number, heads)

    def nothing(self, q, number, heads, regions):
        flat = torch.full((len(self.tokens), len(q)), 1 / len(q), dtype=torch.float64)
        return self.each(q, self.nulls, self.shares(flat, regions), number, heads)

    def each(self, q, tokens, shares, number, heads):
        out = torch.zeros_like(q)
        for i, own in enumerate(self.adapters):
            keys, values = (
                tokens[i].double() @ getattr(own.site_weights[number], x).double().T for x in ("k_weight", "v_weight")
            )
            out += self.weights[i] * shares[i][:, None] * attention(q, keys, values, heads)
        return out


@pytest.mark.parametrize("count", [4, 3])
@pytest.mark.parametrize("family", ["base", "plus"])
@pytest.mark.parametrize("strategy", ["relevance", "sum"])
@pytest.mark.parametrize("region", [False, True])
def test_faces_and_objects_share_one_competition(family, strategy, region, count) -> None:
    """Each by its own adapter, with its own number of tokens; the shares are those of one chain.

    count: the first face's tokens; 3 leave padding beside 4 or more.
    """
    from mip_adapter.attention.options import Merge
    from mip_adapter.patching.encode import image_tokens, null_tokens
    from mip_adapter.weights.sites import cross_attentions, unet_sites

    parts = bundle()
    where = torch.zeros(16, 16)
    where[:, :9] = 1
    more: dict[str, Any] = {"region": where} if region else {}
    chain = face("woman", references=graphs.references(("cat",)), adapter=adapter(tokens=count), weight=0.8, **more)
    chain = face("man", 1, chain, adapter=adapter("faceid-plusv2"), structure=0.5)
    objects = parts.adapters[family]
    got = apply(chain, adapter=objects, lora=0, merge=Merge(strategy))
    own = [objects, adapter(tokens=count), adapter("faceid-plusv2")]
    with torch.inference_mode():
        definition = Mixed(
            tokens=[image_tokens(parts.vision, each, its) for each, its in zip(chain, own, strict=True)],
            nulls=[null_tokens(parts.vision, each, its) for each, its in zip(chain, own, strict=True)],
            texts=[graphs_text(each.text) for each in chain], weights=[1.0, 0.8, 1.0], adapters=own, head=objects.head,
            strategy=strategy, regions=[None, where, None] if region else None, null=torch.zeros(0), to_k={}, to_v={},
        )  # fmt: skip
    unet = parts.model.model.diffusion_model
    expected, modules = parts.model.clone(), cross_attentions(unet)
    for site in unet_sites(unet):
        patch = DirectPatch(definition, modules[site.key], site.number, graphs.positive_first, graphs.SIZE, (1e9, 0.0))
        expected.set_model_attn2_replace(patch, *site.key)
    assert deviation(sample(got, 1), sample(expected, 1), sample(parts.model, 1)) < TOLERANCE


@pytest.mark.parametrize("count, padding", [(4, ()), (3, (0, 1))])
def test_no_set_of_tokens_is_longer_than_the_longest(count, padding) -> None:
    """Not as long as a common multiple, which a full-face adapter's 257 and a portrait's 48 have at 12,336."""
    from mip_adapter.patching.encode import encode_references, filled

    parts, plus = bundle(), bundle().adapters["plus"]
    chain = face(references=graphs.references(("cat",)), adapter=adapter(tokens=count))
    with torch.inference_mode():
        encoded = encode_references(chain, plus, parts.clip, parts.vision)
    assert plus.spec.tokens == 16 and encoded.tokens.shape[:2] == (2, 16) == encoded.null_tokens.shape[:2]
    assert encoded.padding == encoded.null_padding == padding
    stacked, padding = filled([torch.ones(257, 2), torch.ones(48, 2)], 257)
    assert padding == (0, 17) and stacked[1].sum() == 2 * 5 * 48 and not stacked[1, 240:].any()


def graphs_text(text: str) -> torch.Tensor:
    from mip_adapter.patching.object_text import encode_object_text

    return encode_object_text(bundle().clip, text, adapter())


def test_a_face_that_acts_alone_keeps_its_own_null_tokens() -> None:
    """Ranges that never meet: at each moment the plan is that of one reference with its own adapter."""
    where = torch.zeros(16, 16)
    where[:, :9] = 1
    chain = face("woman", references=graphs.references(("cat",), end_percent=[0.4]), adapter=adapter(), weight=0.5,
                 region=where, start_percent=0.5)  # fmt: skip
    alone = face("woman", weight=0.5, region=where, start_percent=0.5)
    first = apply(graphs.references(("cat",)), adapter=bundle().adapters["base"], end=0.4, lora=0)
    expected = apply(alone, model=first, lora=0, fusion_head=head())
    got = apply(chain, adapter=bundle().adapters["base"], lora=0)
    assert deviation(sample(got, 4), sample(expected, 4), sample(bundle().model, 4)) < TOLERANCE


def head() -> Any:
    """The objects' fusion head, which gates the whole chain."""
    from mip_adapter.attention.options import FusionHead

    return FusionHead(bundle().adapters["base"].head, "image")


def test_concat_needs_one_kind_of_tokens() -> None:
    from mip_adapter.attention.options import Merge

    chain = face(references=graphs.references(("cat",)), adapter=adapter())
    assert apply(chain, adapter=bundle().adapters["base"], merge=Merge("concat"))  # 4 tokens each
    plus = bundle().adapters["plus"]
    counts = f"“cat” {plus.spec.tokens}, “woman” 4"
    assert plus.spec.tokens != 4
    with pytest.raises(ValueError, match=f"concat, one softmax over all image tokens.*{counts}"):
        apply(chain, adapter=plus, merge=Merge("concat"))


def test_the_inner_loras_of_all_adapters_act() -> None:
    chain = face(references=graphs.references(("cat",)), adapter=adapter())
    assert set(patched_weights(apply(chain, adapter=bundle().adapters["base"])).values()) == {1}


@pytest.mark.parametrize("count", [1, 2])
def test_an_adapter_that_no_face_uses_leaves_no_trace(count) -> None:
    """Every face brings its own: the plans and LoRAs are those of these alone, whatever MIP Apply has."""
    own = [adapter("faceid-plusv2"), adapter(tokens=3)][:count]
    chain = face("woman", adapter=own[0])
    for number, each in enumerate(own[1:], 1):
        chain = face("man", number, chain, adapter=each)
    unused, expected = apply(chain, adapter=adapter()), apply(chain, adapter=own[0])
    assert set(patched_weights(unused).values()) == {count}
    assert torch.equal(sample(unused, 1), sample(expected, 1))


@pytest.mark.parametrize("silent", ["weight", "blocks", "a style's weight"])
def test_the_lora_of_a_silent_reference_is_left_out(silent) -> None:
    """Like that of all references with a scale of 0, also beside a face that acts with an adapter of its own."""
    from mip_adapter.attention.block_strength import make_block_strength
    from mip_adapter.nodes.style import MIPStyleReference
    from mip_adapter.weights.sites import model_sites

    (quiet,) = face(weight=0.0 if silent == "weight" else 1.0)
    if silent == "blocks":
        sites = model_sites(bundle().model.model.diffusion_model)
        quiet = replace(quiet, blocks=make_block_strength(sites, numbers="0:0"))
    elif silent == "a style's weight":
        (quiet,) = MIPStyleReference.execute(photo(), 0.0, "all").args[0]
    assert not apply((quiet,)).patches
    beside = face("man", 1, (quiet,), adapter=adapter("faceid-plusv2"))
    assert set(patched_weights(apply(beside)).values()) == {1}


def test_a_saved_adapter_keeps_its_lora(tmp_path) -> None:
    from mip_adapter.training.save import save_adapter
    from mip_adapter.weights.adapter import load_adapter

    saved = load_adapter(save_adapter(adapter(), tmp_path, "mine", torch.float32))
    assert saved.spec == adapter().spec
    assert all(torch.equal(saved.lora[key], tensor) for key, tensor in adapter().lora.items())


@pytest.mark.parametrize("turns", [1, 2, 3])
def test_a_turned_photograph_gives_the_same_picture(turns) -> None:
    """Its crop is upright again, so a FaceID Plus adapter, which reads it, draws as with the upright photograph."""
    from mip_adapter.nodes.faces import MIPFaceReference

    upright = seen(90, 100, 80, numbers(0))
    turned = seen(90, 100, 80, numbers(0))
    for _ in range(turns):  # a quarter to the left: x, y -> y, 191 − x
        left, top, right, bottom = turned.bbox
        turned.bbox = np.array([top, 191 - right, bottom, 191 - left])
        turned.kps = np.stack([turned.kps[:, 1], 191 - turned.kps[:, 0]], axis=1)
    pictures = photo((60, 70)), torch.rot90(photo((60, 70)), turns, (1, 2))
    given = [
        MIPFaceReference.execute(picture, "woman", Analyser([each]), 1.0, 0)
        for picture, each in zip(pictures, (upright, turned), strict=True)
    ]
    assert torch.allclose(given[0].args[1], given[1].args[1], atol=1e-4)
    expected, got = (sample(apply(each.args[0], family="faceid-plusv2"), 1) for each in given)
    assert deviation(got, expected, sample(bundle().model, 1)) < TOLERANCE


def test_training_refuses_what_reads_faces_and_pictures() -> None:
    from mip_adapter.training.config import TrainConfig
    from mip_adapter.training.trainer import train
    from mip_adapter.weights.sites import unet_sites

    model: Any = type("Model", (), {"sites": unet_sites(bundle().model.model.diffusion_model)})()
    with pytest.raises(ValueError, match="reads face embeddings and pictures of faces, and training is for adapters"):
        train(model, [], adapter("faceid-plusv2"), replace(TrainConfig(), steps=1))
