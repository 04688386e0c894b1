"""The before and after of each way of steering: what the settings mean, and the picture that shows them."""

from __future__ import annotations

import numpy as np
import torch
from mip_adapter.attention.reference import make_reference
from mip_adapter.common.drawing import colour
from mip_adapter.research.ablation import arms
from mip_adapter.research.studies import steering


def test_every_means_changes_one_thing() -> None:
    for name, means in steering.MEANS.items():
        assert means.before != means.after, name
        for setting in means[:2]:
            for more in setting.references:
                made = make_reference(torch.rand(1, 16, 16, 3), "cat", **more)
                assert (made.region is None) == ("region" not in more)
    left, right = (more["region"] for more in steering.MEANS["boxes"].after.references)
    assert float(left[0, :, :110].min()) == 1 and float(right[0, :, :110].max()) == 0


def test_the_picture_shows_both() -> None:
    trials = arms.make_trials(2, 2, 7)
    halves = torch.zeros(2, 2, 4, 4)
    halves[:, 0, :, :2] = halves[:, 1, :, 2:] = 1
    even = torch.full((2, 2, 4, 4), 0.5)
    before = steering.Shown(torch.full((2, 3, 128, 128), 0.2), even, 1, 4)
    after = steering.Shown(torch.full((2, 3, 128, 128), 0.8), halves, 3, 4)
    drawn = np.asarray(steering.draw_pair("boxes", trials, before, after)).astype(int)
    third = drawn.shape[0] - steering.SIDE // 2 - 2 * steering.GAP  # through the maps of the second row

    def like(number: int, row: int) -> int:
        return int((np.abs(drawn[row] - np.array(colour(number)) * 0.7 - 0.3 * 0.8 * 255).max(-1) < 40).sum())

    for number in range(2):
        assert like(number, third) > 60  # half of each map, in two columns
        assert like(number, third - steering.SIDE - steering.GAP - steering.LINE) == 0
