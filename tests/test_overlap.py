"""Maps against true silhouettes: the numbers by hand, and the command on a seeded miniature."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from mip_adapter.miniature import overlap, seeded

from .conftest import ROOT, host_folder


def test_by_hand() -> None:
    """One row of six pixels: two objects of two pixels, two of background."""
    masks = torch.tensor([[1, 1, 0, 0, 0, 0], [0, 0, 1, 1, 0, 0]]).float().view(2, 1, 6)
    maps = torch.tensor([[0.9, 0.8, 0.6, 0.1, 0.3, 0.2], [0.1, 0.2, 0.4, 0.9, 0.2, 0.4]]).view(2, 1, 6)
    found = overlap.overlaps(maps, masks)
    # owner: 0 has pixels 0, 1, 2, 4; 1 has 3 and 5
    assert float(found["owner"]) == pytest.approx((2 / 4 + 1 / 3) / 2)
    assert float(found["owner on objects"]) == pytest.approx((2 / 3 + 1 / 2) / 2)
    curve = {least: float(value) for least, value in zip(overlap.LEAST, found["above"], strict=True)}
    assert curve[0.0] == pytest.approx(float(found["owner"]))
    assert curve[0.7] == pytest.approx((2 / 2 + 1 / 2) / 2)  # 0.6 and 0.3 of 0.9, 0.4 of 0.9 fall away
    result = overlap.summary([found, {name: value * 0 for name, value in found.items()}])
    assert result["scenes"] == 2 and result["owner"][0] == pytest.approx(float(found["owner"]) / 2)
    assert result["owner above the best threshold"][0] == pytest.approx(max(curve.values()) / 2)
    assert result["owner"][1] == pytest.approx(np.std([float(found["owner"]), 0], ddof=1) / 2**0.5)


def test_true_silhouettes_win(tmp_path) -> None:
    (adapter, _) = seeded.write_adapters(tmp_path)
    line = [sys.executable, ROOT / "mip.py", "overlap", "--scenes", "2", "--adapter", adapter, "--output", tmp_path]
    variables = {**os.environ, "MIP_ADAPTER_PYTHON": sys.executable, "COMFYUI_PATH": str(host_folder())}
    done = subprocess.run([str(part) for part in line], capture_output=True, text=True, env=variables, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    results = json.loads((tmp_path / "overlap.json").read_text("utf-8"))["results"]
    assert list(results) == ["20 %", "40 %", "60 %", "80 %"]
    for methods in results.values():
        truth = methods.pop("the silhouettes at that resolution")
        assert truth["owner on objects"][0] > 0.9 and truth["owner above the best threshold"][0] > 0.7
        assert {"relevance, all sites", "relevance, 16×16", "text attention, all sites", "chance"} <= set(methods)
        assert all(0 <= m[name][0] <= truth[name][0] for m in methods.values() for name in overlap.MEASURES)
    assert (tmp_path / "overlap.md").read_text("utf-8").count("\n") == 2 + 4 * 10
