"""Adapters are recognised by keys and shapes alone; what is missing, too much or foreign is named."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from mip_adapter.weights.adapter import build_adapter, load_adapter
from mip_adapter.weights.spec import read_spec

from ..support import weights_samples as samples
from ..support.weights_samples import FAMILIES, SMALL

EXPECTED = {  # family, architecture, tokens, encoder, its output, head
    "MIP-Adapter model_sdxl": ("base", "SDXL", 4, "CLIP ViT-bigG/14", "image_embeds", True),
    "MIP-Adapter model_sdxl_plus": ("plus", "SDXL", 16, "CLIP ViT-H/14", "penultimate_hidden_states", True),
    "ip-adapter_sdxl": ("base", "SDXL", 4, "CLIP ViT-bigG/14", "image_embeds", False),
    "ip-adapter_sdxl_vit-h": ("base", "SDXL", 4, "CLIP ViT-H/14", "image_embeds", False),
    "ip-adapter-plus_sdxl_vit-h": ("plus", "SDXL", 16, "CLIP ViT-H/14", "penultimate_hidden_states", False),
    "ip-adapter-plus-face_sdxl_vit-h": ("plus", "SDXL", 16, "CLIP ViT-H/14", "penultimate_hidden_states", False),
    "ip-adapter_sd15": ("base", "SD1.5", 4, "CLIP ViT-H/14", "image_embeds", False),
    "ip-adapter_sd15_light": ("base", "SD1.5", 4, "CLIP ViT-H/14", "image_embeds", False),
    "ip-adapter-plus_sd15": ("plus", "SD1.5", 16, "CLIP ViT-H/14", "penultimate_hidden_states", False),
    "ip-adapter-plus-face_sd15": ("plus", "SD1.5", 16, "CLIP ViT-H/14", "penultimate_hidden_states", False),
    "ip-adapter-full-face_sd15": ("full-face", "SD1.5", None, "CLIP ViT-H/14", "penultimate_hidden_states", False),
    "ip-adapter-faceid_sd15": ("faceid", "SD1.5", 4, "a face analyser", "face_embeds", False),
    "ip-adapter-faceid_sdxl": ("faceid", "SDXL", 4, "a face analyser", "face_embeds", False),
    "ip-adapter-faceid-plus_sd15": ("faceid-plus", "SD1.5", 4, "CLIP ViT-H/14", "penultimate_hidden_states", False),
    "ip-adapter-faceid-plusv2_sd15": ("faceid-plusv2", "SD1.5", 4, "CLIP ViT-H/14", "penultimate_hidden_states", False),
    "ip-adapter-faceid-plusv2_sdxl": ("faceid-plusv2", "SDXL", 4, "CLIP ViT-H/14", "penultimate_hidden_states", False),
    "ip-adapter-faceid-portrait-v11_sd15": ("portrait", "SD1.5", 16, "a face analyser", "face_embeds", False),
    "ip-adapter-faceid-portrait_sdxl": ("portrait", "SDXL", 16, "a face analyser", "face_embeds", False),
    "ip-adapter-faceid-portrait_sdxl_unnorm": ("portrait-unnorm", "SDXL", 16, "a face analyser", "face_embeds", False),
}


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_by_its_real_shapes(name):
    spec = read_spec(samples.flat(FAMILIES[name], samples.meta), f"{name}.bin")
    got = (spec.family, spec.architecture, spec.tokens, spec.encoder.name, spec.encoder.output, spec.has_head)
    assert got == EXPECTED[name]
    assert spec.context_dim == FAMILIES[name].context
    assert spec.encoder.width == FAMILIES[name].encoder
    assert spec.site_widths == tuple((2 * i + 1, width) for i, width in enumerate(FAMILIES[name].widths))
    assert spec.architecture in str(spec) and spec.encoder.name in str(spec)
    assert spec.face == (512 if "faceid" in name else None)
    assert spec.lora_rank == FAMILIES[name].lora


FACE_FILES = {  # name: the version that it is taken for
    "ip-adapter-faceid-plus_sd15.bin": "faceid-plus",
    "IP-Adapter FaceID Plus.safetensors": "faceid-plus",
    "sub/ip-adapter-faceid-plusv2_sd15.bin": "faceid-plusv2",
    "ip_adapter_faceid_plus_v2.safetensors": "faceid-plusv2",
    "my face.safetensors": "faceid-plusv2",
}


@pytest.mark.parametrize("name", FACE_FILES)
def test_the_two_versions_of_faceid_plus(name):
    """SD1.5's have the same tensors: the choice decides, and without one the name. SDXL has version 2 only."""
    tensors = samples.flat(FAMILIES["ip-adapter-faceid-plus_sd15"], samples.meta)
    assert read_spec(tensors, name).family == FACE_FILES[name]
    assert read_spec(tensors, name, "plus").family == "faceid-plus"
    assert read_spec(tensors, name, "plus v2").family == "faceid-plusv2"
    sdxl = samples.flat(FAMILIES["ip-adapter-faceid-plusv2_sdxl"], samples.meta)
    assert read_spec(sdxl, name).family == "faceid-plusv2"


def test_the_lora_covers_every_attention():
    adapter = build_adapter(samples.flat(SMALL["faceid"]), "a")
    assert len(adapter.lora) == 3 * 2 * 4 * 2  # sites, attentions of a block, parts, up and down
    assert "rank 2" in str(adapter.spec)
    for lost in ("0.to_q_lora.down", "5.to_out_lora.up"):
        tensors = samples.flat(SMALL["faceid"])
        del tensors[f"ip_adapter.{lost}.weight"]
        with pytest.raises(ValueError, match=rf"missing ip_adapter\.{lost}\.weight"):
            build_adapter(tensors, "a")


@pytest.mark.parametrize(
    "name",
    ["MIP-Adapter model_sdxl", "ip-adapter-plus_sd15", "ip-adapter-full-face_sd15", "ip-adapter-faceid-plusv2_sd15"],
)
def test_a_file_of_real_shapes_loads(tmp_path, name):
    path = tmp_path / "model.bin"
    with torch.serialization.skip_data():  # a file with a hole for every tensor: it reads as zeros
        torch.save(samples.nested(samples.flat(FAMILIES[name], samples.unwritten)), path)
    adapter = load_adapter(path)
    assert adapter.name == "model.bin"
    assert [n for n, _ in adapter.spec.site_widths] == list(adapter.site_weights)
    for number, width in adapter.spec.site_widths:
        site = adapter.site_weights[number]
        assert site.k_weight.shape == site.v_weight.shape == (width, adapter.spec.context_dim)
        assert (site.head is not None) == adapter.spec.has_head
        assert site.head is None or site.head.shape == (width,)
    assert {t.dtype for t in adapter.image_proj.values()} == {torch.float16}


@pytest.mark.parametrize(("family", "width"), [("base", 768), ("base", 640), ("plus", 1664), ("plus", 1024)])
def test_other_encoders_are_named_by_their_width(family, width):
    need = read_spec(samples.flat(replace(SMALL[family], encoder=width), samples.meta)).encoder
    known = {("base", 768): "CLIP ViT-L/14", ("plus", 1664): "CLIP ViT-bigG/14", ("plus", 1024): "CLIP ViT-L/14"}
    assert need.name == known.get((family, width), "an image encoder with 640-wide image embeddings")


@given(family=st.sampled_from(sorted(SMALL)), data=st.data())
def test_a_missing_key_is_named(family, data):
    tensors = samples.flat(SMALL[family], samples.meta)
    key = data.draw(st.sampled_from(sorted(tensors)))
    del tensors[key]
    with pytest.raises(ValueError) as error:
        read_spec(tensors, "mine.bin")
    assert "mine.bin" in str(error.value)
    leading = [f"image_proj.{key}.weight" for key in ("proj", "proj.2", "proj.3")] + ["image_proj.latents"]  # say it
    assert key in str(error.value) or key in leading


@given(family=st.sampled_from(sorted(SMALL)), data=st.data())
def test_an_unexpected_key_is_named(family, data):
    tensors = samples.flat(SMALL[family], samples.meta)
    key = data.draw(st.sampled_from(["image_proj.extra.weight", "ip_adapter.1.to_q.weight", "ip_adapter.0.bias", "x"]))
    tensors[key] = samples.meta(2)
    with pytest.raises(ValueError, match=key.replace(".", r"\.")):
        read_spec(tensors)


@given(family=st.sampled_from(sorted(SMALL)), data=st.data())
def test_a_wrong_shape_is_named_or_changes_the_spec(family, data):
    tensors = samples.flat(SMALL[family], samples.meta)
    key = data.draw(st.sampled_from(sorted(tensors)))
    shape = data.draw(st.lists(st.sampled_from([0, 1, 3, 7, 64]), min_size=0, max_size=4))
    tensors[key] = samples.meta(*shape)
    before = read_spec(samples.flat(SMALL[family], samples.meta))
    try:
        assert read_spec(tensors) != before  # e.g. another number of queries
    except ValueError as error:
        assert "expected" in str(error)


@pytest.mark.parametrize("lost", ["1.to_k_ip", "3.to_v_ip", "5.text_to_weight"])
def test_a_site_lacks_a_part(lost):
    tensors = samples.flat(SMALL["base"], samples.meta)
    del tensors[f"ip_adapter.{lost}.weight"]
    with pytest.raises(ValueError, match=rf"missing ip_adapter\.{lost}\.weight"):
        read_spec(tensors)


def test_a_whole_site_is_missing():
    tensors = {k: t for k, t in samples.flat(SMALL["base"], samples.meta).items() if not k.startswith("ip_adapter.3.")}
    with pytest.raises(ValueError, match=r"missing ip_adapter\.3\.to_k_ip\.weight"):
        read_spec(tensors)


def test_keys_and_values_disagree():
    tensors = samples.flat(SMALL["base"], samples.meta)
    tensors["ip_adapter.1.to_v_ip.weight"] = samples.meta(8, 11)
    with pytest.raises(ValueError, match=r"ip_adapter\.1\.to_v_ip\.weight is \[8, 11\], expected \[8, 12\]"):
        read_spec(tensors)


def test_projection_and_sites_disagree():
    tensors = samples.flat(SMALL["plus"], samples.meta)
    tensors |= {k: samples.meta(t.shape[0], 20) for k, t in tensors.items() if "_ip.weight" in k}
    with pytest.raises(ValueError, match=r"is \[8, 20\], expected \[8, 12\]"):
        read_spec(tensors)


def test_whole_numbers_are_no_weights():
    tensors = samples.flat(SMALL["base"])
    tensors["ip_adapter.1.to_k_ip.weight"] = tensors["ip_adapter.1.to_k_ip.weight"].to(torch.int32)
    with pytest.raises(ValueError, match="int32"):
        read_spec(tensors)


def test_half_an_adapter():
    tensors = samples.flat(SMALL["base"], samples.meta)
    for part in ("image_proj", "ip_adapter"):
        with pytest.raises(ValueError, match="half an adapter"):
            read_spec({k: t for k, t in tensors.items() if k.startswith(part)})


def test_a_head_alone_is_no_adapter():
    tensors = {k: t for k, t in samples.flat(SMALL["base"], samples.meta).items() if "text_to_weight" in k}
    with pytest.raises(ValueError, match="only a fusion head.*head_name"):
        read_spec(tensors)
