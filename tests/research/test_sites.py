"""Placement of relevance on objects: the numbers by hand, and the command on a seeded miniature."""

from __future__ import annotations

import json
import math
import os
import sys

import pytest
import torch
from mip_adapter.research.studies import sites

from ..conftest import ROOT, host_folder
from ..support.subprocesses import finished

# Two objects of one position each, and a position of ground, half of which the first object covers.
MASKS = torch.tensor([[1.0, 0, 0.5], [0, 1, 0]]).view(2, 1, 3)


def test_by_hand() -> None:
    relevance = torch.tensor([[0.6, 0.3, 0.1], [0.2, 0.1, 0.7]]).view(2, 1, 3)
    found = sites.placement(relevance, MASKS)
    # Shares: 3/4 and 1/4 at the first position, 3/4 and 1/4 at the second, 1/8 and 7/8 at the third.
    assert found.own == pytest.approx((3 / 4 + 1 / 4 + 0.5 / 8) / 2.5)
    assert found.first == pytest.approx(1 / 2.5)
    assert math.isnan(found.part)
    even = sites.placement(torch.full((2, 1, 3), 1 / 3), MASKS)
    assert even.own == pytest.approx(1 / 2)


def test_the_pool_follows_the_sites_that_agree() -> None:
    right = torch.tensor([[0.8, 0.1, 0.1], [0.1, 0.8, 0.1]]).view(2, 1, 3)
    wrong = torch.tensor([[0.1, 0.1, 0.8], [0.1, 0.8, 0.1]]).view(2, 1, 3).flip(0)
    even = torch.full((2, 1, 3), 1 / 3)
    each = {"right": right, "even": even, "wrong": wrong, "right too": right}
    found, order = sites.placements(each, MASKS)
    assert set(order[:2]) == {"right", "right too"}
    chosen, _ = sites.placements(each, MASKS, ["wrong", *order])
    assert chosen[sites.FEWER[1]].own == pytest.approx(found["wrong"].own)
    assert found["right"].part == pytest.approx(0.5, abs=1e-3)
    assert found["even"].part < 1e-3 and found["wrong"].part < 1e-3
    assert found[sites.POOL].own == pytest.approx(found["right"].own, abs=1e-3)
    assert found[sites.FEWER[2]].own == pytest.approx(found["right"].own)
    assert found[sites.EVEN].own < found[sites.POOL].own and found[sites.SURE].own < found[sites.POOL].own


def test_the_summary_and_its_table() -> None:
    scenes = [{"a": sites.Placement(own, 0.5, 2.0)} for own in (0.4, 0.8)]
    results = {"20 %": sites.summary(scenes)}
    assert results["20 %"]["a"]["own"] == pytest.approx((0.6, 0.2))
    assert sites.table(results).endswith("| a | 60 ± 20.0 | 50 ± 0.0 |")


def test_the_command(tmp_path, host) -> None:
    line = [sys.executable, ROOT / "mip.py", "sites", "--scenes", "2", "--output", tmp_path]
    variables = {**os.environ, "MIP_ADAPTER_PYTHON": sys.executable, "COMFYUI_PATH": str(host_folder())}
    done = finished(line, env=variables, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    results = json.loads((tmp_path / "sites.json").read_text("utf-8"))["results"]
    assert list(results) == ["20 %", "40 %", "60 %", "80 %", "95 %"]
    clear = results["20 %"]  # little noise hides nothing: the shipped base's words find their objects
    assert len(clear) == 10 + len(sites.POOLS) and clear[sites.POOL]["own"][0] > 0.7
    assert sum(clear[site]["part"][0] for site in list(clear)[:10]) == pytest.approx(1)
    assert (tmp_path / "sites.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "sites.md").read_text("utf-8").count("\n") == 2 + len(clear)
