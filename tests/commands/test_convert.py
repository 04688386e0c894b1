"""`mip.py convert`: .bin to .safetensors, whole or not at all."""

from __future__ import annotations

import hashlib
import os

import pytest
import torch
from mip_adapter.commands.convert import convert, main
from mip_adapter.common.atomic_io import atomic_file
from mip_adapter.weights.adapter import load_adapter
from mip_adapter.weights.files import read_tensors
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file

from ..support import weights_samples as samples
from ..support.weights_samples import GOLDEN, SMALL


@pytest.fixture
def source(tmp_path):
    path = tmp_path / "model.bin"
    torch.save(samples.nested({k: t.half() for k, t in samples.flat(SMALL["plus"]).items()}), path)
    return path


def about_of(path) -> dict[str, str]:
    with safe_open(path, "pt") as file:
        return file.metadata()


@pytest.mark.parametrize("name", ["base_ip_adapter.bin", "plus_ip_adapter.bin"])
def test_the_official_layout(tmp_path, name):
    target = convert(GOLDEN / name, tmp_path / "new" / "out.safetensors")
    before = read_tensors(GOLDEN / name)
    after = read_tensors(target)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[k], after[k]) and before[k].dtype == after[k].dtype for k in before)
    assert load_adapter(target).spec == load_adapter(GOLDEN / name).spec
    assert about_of(target)["source_sha256"] == hashlib.sha256((GOLDEN / name).read_bytes()).hexdigest()


def test_metadata_and_no_traces(source):
    target = convert(source)
    assert sorted(os.listdir(source.parent)) == ["model.bin", "model.safetensors"]
    assert target == source.with_suffix(".safetensors")
    about = about_of(target)
    assert {k: v for k, v in about.items() if k != "source_sha256"} == {
        "format": "pt",
        "family": "plus",
        "architecture": "custom",
        "tokens": "3",
        "encoder": "an image encoder with 10-wide hidden states, penultimate_hidden_states",
        "head": "text_to_weight",
        "source": "model.bin",
    }
    assert target.stat().st_mode == source.stat().st_mode


def test_training_layout_and_shared_storage(tmp_path):
    tensors = samples.flat(SMALL["base"])
    both = torch.randn(16, 12)  # keys and values as halves of one tensor, values of a second site the same
    tensors |= {"ip_adapter.1.to_k_ip.weight": both[:8], "ip_adapter.1.to_v_ip.weight": both[8:]}
    tensors["ip_adapter.3.to_v_ip.weight"] = tensors["ip_adapter.3.to_k_ip.weight"]
    tensors["ip_adapter.5.to_k_ip.weight"] = torch.randn(12, 16).T
    torch.save(samples.training(tensors), tmp_path / "pytorch_model.bin")
    converted = load_file(convert(tmp_path / "pytorch_model.bin"))
    assert converted.keys() == tensors.keys()
    assert all(torch.equal(converted[key], tensors[key]) for key in tensors)


def test_nothing_is_overwritten_without_force(source, capsys):
    target = source.with_suffix(".safetensors")
    target.write_bytes(b"precious")
    assert main([str(source)]) == 1
    assert target.read_bytes() == b"precious" and "--force" in capsys.readouterr().err
    assert main([str(source), "--force"]) == 0
    assert load_adapter(target).spec.family == "plus"


def test_several_files_and_one_bad(source, tmp_path, capsys):
    torch.save(samples.nested(samples.flat(SMALL["base"])), tmp_path / "other.pt")
    (tmp_path / "bad.bin").write_bytes(b"<html>")
    (tmp_path / "out").mkdir()
    files = [str(tmp_path / name) for name in ("model.bin", "bad.bin", "other.pt")]
    assert main([*files, "--output", str(tmp_path / "out")]) == 1
    said = capsys.readouterr()
    assert "web page" in said.err and "IP-Adapter plus" in said.out
    assert sorted(os.listdir(tmp_path / "out")) == ["model.safetensors", "other.safetensors"]


def test_refusals(source, tmp_path):
    target = convert(source)
    with pytest.raises(ValueError, match="named .safetensors already"):
        convert(target)
    with pytest.raises(ValueError, match="onto itself"):
        convert(target, target, force=True)
    with pytest.raises(ValueError, match="must end in .safetensors"):
        convert(source, tmp_path / "out.bin")
    with pytest.raises(ValueError, match="no file"):
        convert(tmp_path / "gone.bin")
    with pytest.raises(SystemExit):
        main([str(source), str(source), "--output", str(tmp_path / "one.safetensors")])


@pytest.mark.parametrize("where, error", [("os.fsync", OSError), ("save_file", SafetensorError)])
def test_a_failed_write_leaves_nothing(source, monkeypatch, where, error):
    def full(*_, **__):
        raise error("No space left on device")

    monkeypatch.setattr(f"mip_adapter.commands.convert.{where}", full)
    with pytest.raises(ValueError, match="cannot be written .*No space left"):
        convert(source)
    assert os.listdir(source.parent) == ["model.bin"]


def test_who_writes_the_same_file_at_the_same_time_writes_apart(tmp_path):
    """On machines with the same process ids, too: the last one's file stays, whole."""
    path = tmp_path / "new folder" / "file"
    with atomic_file(path) as first, atomic_file(path) as second:
        first.write_text("first")
        second.write_text("second")
    assert path.read_text() == "first" and os.listdir(path.parent) == ["file"]
