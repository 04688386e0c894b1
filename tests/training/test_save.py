"""The result as a file: official layout, what it says of itself, names, full disks, heads of their own."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from ..support.training_world import small_adapter, small_recipe


def trained(head: bool = True, losses: int = 5):
    from mip_adapter.training.save import metadata
    from mip_adapter.training.trainable import TrainableAdapter

    about = metadata(small_recipe(), [float(i) for i in range(losses)], {"base_sha256": "ab" * 32})
    return TrainableAdapter(small_adapter(head=head), small_recipe(gate="image" if head else "off")).finished(
        None, about
    )


def metadata(path: Path) -> dict[str, str]:
    with safe_open(path, "pt") as file:
        return file.metadata()


def test_the_official_layout_and_how_it_was_made(tmp_path: Path) -> None:
    from mip_adapter.training.save import save_adapter
    from mip_adapter.training.trainable import flat_tensors
    from mip_adapter.weights.adapter import load_adapter
    from mip_adapter.weights.files import read_tensors

    adapter = trained(losses=1000)
    path = save_adapter(adapter, tmp_path, "first try")
    assert path == tmp_path / "first try.safetensors"
    tensors = read_tensors(path)
    with safe_open(path, "pt") as file:
        about = file.metadata()
    assert set(tensors) == set(flat_tensors(small_adapter(head=True)))
    assert {tensor.dtype for tensor in tensors.values()} == {torch.float16}
    assert about["base_sha256"] == "ab" * 32 and about["step"] == "1000" and about["family"] == "base"
    assert json.loads(about["recipe"])["learning_rate"] == 1e-2
    losses = json.loads(about["losses"])
    assert len(losses) == 200 and losses[0] == 2.0 and about["steps_per_loss"] == "5"
    loaded = load_adapter(path)
    assert loaded.spec == adapter.spec
    torch.testing.assert_close(
        loaded.site_weights[3].v_weight.float(), adapter.site_weights[3].v_weight, rtol=1e-3, atol=1e-4
    )


def test_a_head_of_its_own(tmp_path: Path) -> None:
    from mip_adapter.training.save import save_head
    from mip_adapter.weights.adapter import load_head

    path = save_head(trained(), tmp_path, "head")
    assert path.stat().st_size < 4000 and "recipe" in metadata(path)
    rows = load_head(path)
    assert {number: row.shape for number, row in rows.items()} == {1: (16,), 3: (16,)}
    with safe_open(path, "pt") as file:
        assert sorted(file.keys()) == ["1.text_to_weight.weight", "3.text_to_weight.weight"]
    with pytest.raises(ValueError, match="has no fusion head to save"):
        save_head(trained(head=False), tmp_path, "none")


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    from mip_adapter.training.save import save_adapter

    names = [save_adapter(trained(), tmp_path, "a/b.safetensors").relative_to(tmp_path).as_posix() for _ in range(3)]
    assert names == ["a/b.safetensors", "a/b_2.safetensors", "a/b_3.safetensors"]


@pytest.mark.parametrize(
    "name", ["../out", "a/../../out", "/tmp/out", "", "..", "a//b", "C:\\x", "a\\..\\b", ".hidden", "a\nb"]
)
def test_names_that_leave_the_folder(tmp_path: Path, name: str) -> None:
    from mip_adapter.training.save import free_path, save_adapter

    with pytest.raises(ValueError, match="too long for a file's name"):
        free_path(tmp_path, "猫" * 90)
    with pytest.raises(ValueError, match="is no name for a file inside"):
        save_adapter(trained(), tmp_path / "models", name)
    assert not list(tmp_path.rglob("*"))


def test_a_full_disk_leaves_nothing_half_written(tmp_path: Path, monkeypatch) -> None:
    from mip_adapter.training import save

    def full(tensors, path, metadata) -> None:
        Path(path).write_bytes(b"half")
        raise save.SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    save.save_adapter(trained(), tmp_path, "kept")
    before = (tmp_path / "kept.safetensors").read_bytes()
    monkeypatch.setattr(save, "save_file", full)
    with pytest.raises(ValueError, match="kept_2.safetensors cannot be written .*No space left"):
        save.save_adapter(trained(), tmp_path, "kept")
    assert [path.name for path in tmp_path.iterdir()] == ["kept.safetensors"]
    assert (tmp_path / "kept.safetensors").read_bytes() == before


def test_weights_that_are_no_numbers_are_not_saved(tmp_path: Path) -> None:
    from mip_adapter.training.save import save_adapter

    for value in (float("nan"), 1e6):  # the second only where it is stored as fp16
        adapter = trained()
        adapter.site_weights[1].k_weight[0, 0] = value
        with pytest.raises(ValueError, match="NaN or infinite numbers in ip_adapter.1.to_k_ip"):
            save_adapter(adapter, tmp_path, "bad")
    assert save_adapter(adapter, tmp_path, "wide", torch.float32).is_file()
