"""Maps against true silhouettes: the numbers by hand, and the command on a seeded miniature."""

from __future__ import annotations

import json
import os
import sys

import numpy as np
import pytest
import torch
from mip_adapter.research.miniature import seeded
from mip_adapter.research.studies import overlap

from ..conftest import ROOT, host_folder
from ..support.subprocesses import finished


def test_by_hand() -> None:
    """One row of six pixels: two objects of two pixels, two of background."""
    silhouettes = torch.tensor([[1, 1, 0, 0, 0, 0], [0, 0, 1, 1, 0, 0]]).float().view(2, 1, 6)
    shares = torch.tensor([[0.9, 0.8, 0.4, 0.1, 0.3, 0.2], [0.1, 0.2, 0.3, 0.7, 0.2, 0.6]]).view(2, 1, 6)
    found = overlap.overlaps(shares, silhouettes)
    # Of 0 are the pixels 0, 1, 2, of 1 are 3 and 5; 4 is nobody's.
    assert float(found["owner"]) == pytest.approx((2 / 3 + 1 / 3) / 2)
    assert float(found["owner on objects"]) == pytest.approx((2 / 3 + 1 / 2) / 2)
    curve = dict(zip(overlap.THRESHOLDS, found["threshold"].tolist(), strict=True))
    assert curve[0.0] == pytest.approx((2 / 6 + 2 / 6) / 2)
    assert curve[0.5] == pytest.approx((2 / 2 + 1 / 3) / 2)
    assert curve[0.65] == max(curve.values()) == pytest.approx((2 / 2 + 1 / 2) / 2)


def test_masks_are_those_of_the_node(host) -> None:
    """MIP Relevance Maps, given the same shares, cuts the same masks."""
    from mip_adapter.nodes.relevance import MIPRelevanceMaps
    from mip_adapter.relevance.observation import Observation, RunId
    from mip_adapter.relevance.record import RelevanceRecord

    record, shares = RelevanceRecord(("a", "b")), torch.rand(3, 5, 5).softmax(0)[:2]
    seen = Observation(shares.unsqueeze(1), None, (5, 5), (0, 0), 2)
    record.add(RunId(record, 1), 0, torch.zeros(1, dtype=torch.long), 1, [seen])

    def cut(kind: str, threshold: float = 0.5) -> torch.Tensor:
        return MIPRelevanceMaps.execute(record, torch.zeros(1, 64, 64, 3), 0.6, mask=kind, threshold=threshold).args[1]

    assert float(overlap.overlaps(shares, cut("owner"))["owner"]) == 1
    for i in (8, 12, 16):
        threshold = overlap.THRESHOLDS[i]
        assert float(overlap.overlaps(shares, cut("threshold", threshold))["threshold"][i]) == 1


def test_thresholds_are_chosen_on_other_scenes() -> None:
    few, many = (torch.zeros(len(overlap.THRESHOLDS)).index_fill(0, torch.tensor(i), 0.8) for i in (4, 9))
    scenes = [{"owner": torch.tensor(x), "owner on objects": torch.tensor(1.0), "threshold": few} for x in (0.2, 0.6)]
    result = overlap.summary(scenes, [{**scenes[0], "threshold": many}])
    assert result["scenes"] == 2 and result["chosen on"] == 1 and result["above"] == overlap.THRESHOLDS[9]
    assert result["threshold"] == (0, 0) and result["owner on objects"] == (1, 0)
    assert result["owner"] == pytest.approx((0.4, np.std([0.2, 0.6], ddof=1) / 2**0.5))
    assert overlap.table({"20 %": {"ours": result}}).endswith(
        "| 20 % | ours | 0.400 ± 0.200 | 1.000 ± 0.000 | 0.000 ± 0.000 above 0.225 |"
    )


def test_true_silhouettes_win(tmp_path, host) -> None:
    (adapter, _) = seeded.write_adapters(tmp_path)
    line = [sys.executable, ROOT / "mip.py", "overlap", "--scenes", "2", "--adapter", adapter, "--output", tmp_path]
    variables = {**os.environ, "MIP_ADAPTER_PYTHON": sys.executable, "COMFYUI_PATH": str(host_folder())}
    done = finished(line, env=variables, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    results = json.loads((tmp_path / "overlap.json").read_text("utf-8"))["results"]
    assert list(results) == ["20 %", "40 %", "60 %", "80 %"]
    for methods in results.values():
        truth = methods.pop("the silhouettes at that resolution")
        assert truth["owner on objects"][0] > 0.9 and truth["threshold"][0] > 0.7
        assert {"relevance, all sites", "relevance, 16×16", "text attention, all sites", "chance"} <= set(methods)
        assert all(0 <= m[name][0] <= truth[name][0] for m in methods.values() for name in overlap.MEASURES)
    assert (tmp_path / "overlap.md").read_text("utf-8").count("\n") == 2 + 4 * 10
