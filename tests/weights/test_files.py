"""Reading: every layout in which adapters are published, and a sentence for every file that is none."""

from __future__ import annotations

import copy
import io
import os
import pickle
import struct
import zipfile

import pytest
import torch
from mip_adapter.weights.adapter import build_adapter, load_adapter, load_head
from mip_adapter.weights.files import read_tensors
from safetensors.torch import save_file

from ..support import weights_samples as samples
from ..support.weights_samples import SMALL


def small(family: str = "base") -> dict[str, torch.Tensor]:
    return samples.flat(SMALL[family])


def sentence(path, load=load_adapter) -> str:
    with pytest.raises(ValueError) as error:
        load(path)
    assert path.name in str(error.value)
    return str(error.value)


# ---- layouts ----


@pytest.mark.parametrize("family", SMALL)
def test_every_layout_gives_the_same_adapter(tmp_path, family):
    tensors = small(family)
    save_file(tensors, tmp_path / "flat.safetensors", metadata={"made_by": "test"})
    save_file(samples.training(tensors), tmp_path / "training.safetensors")
    torch.save(samples.nested(tensors), tmp_path / "nested.bin")
    torch.save(tensors, tmp_path / "flat.pt")
    torch.save(samples.training(tensors), tmp_path / "pytorch_model.bin")
    torch.save(samples.nested(tensors), tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    torch.save(
        {"image_proj": {}, "ip_adapter": {}}
        | {k: {a: torch.nn.Parameter(b) for a, b in v.items()} for k, v in samples.nested(tensors).items()},
        tmp_path / "parameters.bin",
    )
    wanted = build_adapter(tensors, "wanted")
    for path in sorted(tmp_path.iterdir()):
        got = read_tensors(path)
        assert got.keys() == tensors.keys(), path.name
        assert all(torch.equal(got[key], tensors[key]) for key in tensors), path.name
        assert not any(t.requires_grad for t in got.values())
        assert load_adapter(path).spec == wanted.spec


def test_the_content_counts_not_the_ending(tmp_path):
    torch.save(samples.nested(small()), tmp_path / "renamed.safetensors")
    save_file(small(), tmp_path / "renamed.bin")
    assert load_adapter(tmp_path / "renamed.safetensors").spec == load_adapter(tmp_path / "renamed.bin").spec


def test_a_recompressed_archive_is_read_and_not_mapped(tmp_path):
    tensors = small()
    torch.save(samples.nested(tensors), tmp_path / "stored.bin")
    with (
        zipfile.ZipFile(tmp_path / "stored.bin") as stored,
        zipfile.ZipFile(tmp_path / "deflated.bin", "w", zipfile.ZIP_DEFLATED) as deflated,
    ):
        for record in stored.infolist():
            deflated.writestr(record.filename, stored.read(record))
    try:
        got = read_tensors(tmp_path / "deflated.bin")
    except ValueError as error:
        assert "deflated.bin" in str(error)
    else:
        assert all(torch.equal(got[key], tensors[key]) for key in tensors)


def test_dtypes_stay_and_nothing_is_copied(tmp_path):
    tensors = {key: tensor.to(torch.bfloat16) for key, tensor in small().items()}
    torch.save(samples.nested(tensors), tmp_path / "a.bin")
    adapter = load_adapter(tmp_path / "a.bin", name="shown name")
    assert adapter.name == "shown name"
    assert {t.dtype for t in adapter.image_proj.values()} == {torch.bfloat16}
    assert copy.deepcopy({"plan": adapter})["plan"] is adapter
    with pytest.raises(TypeError):
        adapter.site_weights[1] = adapter.site_weights[3]  # pyright: ignore


def test_sites_work_on_the_meta_device():
    adapter = build_adapter(samples.flat(SMALL["base"], samples.meta), "meta")
    head = adapter.site_weights[1].head
    assert head is not None and head.is_meta and head.shape == (8,)


# ---- heads ----


@pytest.mark.parametrize("prefix", ["", "ip_adapter.", "adapter_modules."])
def test_a_head_from_a_file_of_its_own(tmp_path, prefix):
    rows = {f"{prefix}{n}.text_to_weight.weight": torch.randn(1, 8) for n in (1, 3, 5)}
    save_file(rows, tmp_path / "head.safetensors")
    head = load_head(tmp_path / "head.safetensors")
    assert list(head) == [1, 3, 5]
    assert torch.equal(head[3], rows[f"{prefix}3.text_to_weight.weight"][0])


def test_a_head_from_an_adapter(tmp_path):
    save_file(small(), tmp_path / "a.safetensors")
    head, adapter = load_head(tmp_path / "a.safetensors"), load_adapter(tmp_path / "a.safetensors")
    assert all(torch.equal(head[n], adapter.site_weights[n].head) for n in adapter.site_weights)


def test_bad_heads(tmp_path):
    def head(**rows: torch.Tensor) -> str:
        save_file({f"{k[1:]}.text_to_weight.weight": v for k, v in rows.items()}, tmp_path / "h.safetensors")
        return sentence(tmp_path / "h.safetensors", load_head)

    assert "3.text_to_weight.weight missing" in head(n1=torch.ones(1, 8), n5=torch.ones(1, 8))
    assert "expected [1, C]" in head(n1=torch.ones(2, 8))
    assert "NaN or infinite" in head(n1=torch.full((1, 8), float("nan")))
    save_file(small("full-face"), tmp_path / "stock.safetensors")
    assert "has no fusion head" in sentence(tmp_path / "stock.safetensors", load_head)
    save_file({"lora_unet_x.lora_up.weight": torch.ones(1)}, tmp_path / "l.safetensors")
    assert "LoRA" in sentence(tmp_path / "l.safetensors", load_head)


# ---- files that are no adapters ----


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("a.safetensors", b"", "is empty"),
        ("a.bin", b"", "is empty"),
        ("._a.safetensors", b"\x00\x05\x16\x07\x00\x02\x00\x00Mac OS X", "AppleDouble"),
        ("a.safetensors", b"\x00\x05\x16\x07\x00\x02\x00\x00Mac OS X", "AppleDouble"),
        ("._b.bin", b"anything", "without '._'"),
        ("a.bin", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 702\n", "git lfs pull"),
        ("a.safetensors", b"<!DOCTYPE html><html>", "web page"),
        ("a.bin", b"\n  <html lang=en>", "web page"),
        ("a.safetensors", b'{"error": "Repository not found"}', "JSON"),
        ("a.safetensors", b"\xff" * 64, "HeaderTooLarge"),
        ("a.safetensors", b"hello, I am a text of some length", "HeaderTooLarge"),
        ("a.safetensors", struct.pack("<Q", 900) + b'{"a":', "cut off"),
        ("a.safetensors", struct.pack("<Q", 2) + b"{}", "holds no tensors"),
        ("a.safetensors", struct.pack("<Q", 2) + b"{]", "damaged"),
        ("a.bin", b"x", "neither a .safetensors nor a torch file"),
        ("a.bin", b"PK\x03\x04 and nothing more", "damaged"),
        ("a.bin", b"\x80\x02", "damaged"),
        ("a.bin", b"GGUF\x03\x00\x00\x00", "GGUF"),
        ("a.pt", b"\x89PNG\r\n\x1a\n", "picture"),
    ],
)  # fmt: skip
def test_what_is_not_weights(tmp_path, name, content, expected):
    (tmp_path / name).write_bytes(content)
    assert expected in sentence(tmp_path / name)


def test_no_file_a_folder_a_pipe(tmp_path):
    assert "There is no file" in sentence(tmp_path / "gone.bin")
    assert "is a folder" in sentence(tmp_path)
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "pipe.bin")
        assert "cannot be opened" in sentence(tmp_path / "pipe.bin")


@pytest.mark.parametrize(
    ("loaded", "expected"),
    [
        ([torch.ones(2)], "holds a list"),
        (torch.ones(2), "holds a Tensor"),
        ({}, "holds no tensors"),
        ({"image_proj": {}, "ip_adapter": {}}, "holds no tensors"),
        ({"image_proj": torch.ones(2), "ip_adapter": torch.ones(2)}, "not an adapter"),
        ({"image_proj": {"proj.weight": "text"}, "ip_adapter": {}}, "'image_proj.proj.weight' is not a tensor"),
        ({"image_proj": {"proj": {"weight": [1, 2]}}}, "'image_proj.proj.weight' is not a tensor"),
        ({"ip_adapter": {"image_proj": {"proj.weight": torch.ones(2, 2)}}}, "half an adapter"),
        ({7: torch.ones(2)}, "not an adapter: it holds 7"),
        ({"model": {"image_proj": {"proj.weight": torch.ones(2)}}}, "not an adapter"),
        ({"image_proj": {"proj.weight": torch.ones(2).to_sparse()}}, "pickle that wants to run"),
    ],
)
def test_wrong_nesting_and_values(tmp_path, loaded, expected):
    torch.save(loaded, tmp_path / "a.bin")
    assert expected in sentence(tmp_path / "a.bin")


def test_a_mapping_that_contains_itself(tmp_path):
    loop: dict = {"image_proj": {}}
    loop["image_proj"]["again"] = loop
    torch.save(loop, tmp_path / "a.bin")
    assert "is not a tensor" in sentence(tmp_path / "a.bin")


def test_both_layouts_at_once(tmp_path):
    tensors = small()
    save_file(tensors | {"image_proj_model.proj.bias": torch.ones(48)}, tmp_path / "a.safetensors")
    assert "twice" in sentence(tmp_path / "a.safetensors")


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_numbers_that_are_none_are_named(tmp_path, bad, dtype):
    tensors = {key: tensor.to(dtype) for key, tensor in small().items()}
    tensors["ip_adapter.3.to_v_ip.weight"][5, 7] = bad
    save_file(tensors, tmp_path / "a.safetensors")
    assert "NaN or infinite numbers in ip_adapter.3.to_v_ip.weight:" in sentence(tmp_path / "a.safetensors")


def test_fp8_weights_load_and_are_checked(tmp_path):
    tensors = {key: tensor.to(torch.float8_e4m3fn) for key, tensor in small().items()}
    save_file(tensors, tmp_path / "a.safetensors")
    assert load_adapter(tmp_path / "a.safetensors").site_weights[1].k_weight.dtype == torch.float8_e4m3fn
    tensors["ip_adapter.1.to_k_ip.weight"] = torch.full((8, 12), float("nan")).to(torch.float8_e4m3fn)
    save_file(tensors, tmp_path / "a.safetensors")
    assert "NaN" in sentence(tmp_path / "a.safetensors")


# ---- pickles are never executed ----


class Bomb:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"echo boom > '{self.path}'",)


def _zip_with(pickled: bytes) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr("archive/data.pkl", pickled)
        archive.writestr("archive/version", "3\n")
    return out.getvalue()


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("zipped", [True, False])
def test_a_malicious_pickle_is_refused(tmp_path, protocol, zipped):
    mark = tmp_path / "boom"
    pickled = pickle.dumps({"image_proj": {"proj.weight": Bomb(mark)}}, protocol=protocol)
    path = tmp_path / "evil.bin"
    path.write_bytes(_zip_with(pickled) if zipped else pickled)
    text = sentence(path)
    assert "system'" in text
    assert "not opened" in text and not mark.exists()


@pytest.mark.parametrize("legacy", [True, False])
def test_a_malicious_object_among_tensors_is_refused(tmp_path, legacy):
    mark = tmp_path / "boom"
    content = samples.nested(small()) | {"note": Bomb(mark)}
    torch.save(content, tmp_path / "evil.bin", _use_new_zipfile_serialization=not legacy)
    assert "posix.system" in sentence(tmp_path / "evil.bin") or os.name == "nt"
    assert not mark.exists()


def test_a_replaced_torch_load_changes_nothing(tmp_path, monkeypatch):
    """Other packs replace torch.load, and an environment variable turns its safety off."""
    mark = tmp_path / "boom"
    torch.save({"image_proj": Bomb(mark)}, tmp_path / "evil.bin")
    original = torch.load
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    monkeypatch.setattr(torch, "load", lambda *a, **k: original(*a, **(k | {"weights_only": False})))
    assert "not opened" in sentence(tmp_path / "evil.bin")
    assert not mark.exists()


def test_code_in_a_second_pickle_of_an_old_file(tmp_path):
    """The format before zip archives is several pickles in a row."""
    mark = tmp_path / "boom"
    torch.save(samples.nested(small()), tmp_path / "a.bin", _use_new_zipfile_serialization=False)
    whole = (tmp_path / "a.bin").read_bytes()
    stream = io.BytesIO(whole)
    pickle.load(stream)  # the magic number
    at = stream.tell()
    (tmp_path / "evil.bin").write_bytes(whole[:at] + pickle.dumps(Bomb(mark), protocol=2) + whole[at:])
    assert "system" in sentence(tmp_path / "evil.bin")
    assert not mark.exists()
