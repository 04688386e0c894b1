"""Packs that evaluate some of the guider's conds in lists of their own: each cond stays what its list is."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from typing import Any

import pytest
import torch
from torch import Tensor

from ..support.graphs import compare, guide, prompt, sample
from .test_regions import AREAS, ORDER
from .test_steering import applied

pytestmark = pytest.mark.usefixtures("host")
Evaluate = Callable[..., list[Tensor]]  # the host's, of lists of conds


def in_lists_of_its_own(model: Any, evaluate_lists: Callable[[Evaluate, list], list[Tensor]]) -> Any:
    """A clone of the MODEL with another pack's function in place of the host's evaluation."""
    import comfy.samplers

    def function(args):
        def evaluate(*lists):
            return comfy.samplers.calc_cond_batch(
                args["model"], [*lists], args["input"], args["sigma"], args["model_options"]
            )

        return evaluate_lists(evaluate, args["conds"])

    model = model.clone()
    model.model_options["sampler_calc_cond_batch_function"] = function
    return model


def one_by_one(evaluate: Evaluate, lists: list) -> list[Tensor]:
    """Each cond alone, at the place of its list."""
    before = [[None] * i for i in range(len(lists))]
    each = [[evaluate(*before[i], [cond])[i] for cond in conds] for i, conds in enumerate(lists)]
    return [torch.stack(outs).mean(0) for outs in each]


def one_list_each(evaluate: Evaluate, lists: list) -> list[Tensor]:
    """All conds of a list together, each in a list of its own."""
    return [torch.stack(evaluate(*([cond] for cond in conds))).mean(0) for conds in lists]


def without_the_first(evaluate: Evaluate, lists: list) -> list[Tensor]:
    return evaluate(*(conds[1:] for conds in lists))


def copied(evaluate: Evaluate, lists: list) -> list[Tensor]:
    """With embeddings that are no longer the guider's tensors."""
    return one_by_one(evaluate, [[deepcopy(cond) for cond in conds] for conds in lists])


WAYS = [one_by_one, one_list_each, without_the_first, copied]


def both() -> tuple[list, list]:
    return prompt("a cat") + prompt("a cup"), prompt("blurry") + prompt("a photograph")


@pytest.mark.parametrize("way", WAYS)
def test_conds_in_lists_of_their_own(way: Callable) -> None:
    compare(lambda model: guide(in_lists_of_its_own(model, way), *both()))


def test_copies_that_cover_areas() -> None:
    """The host appends them to the other list, with the uuids of those that they copy."""
    lengths = []

    def way(evaluate: Evaluate, lists: list) -> list[Tensor]:
        lengths.append([len(conds) for conds in lists])
        return [2 * out for out in one_by_one(evaluate, [conds[-2:] for conds in lists])]  # the two halves

    compare(lambda model: guide(in_lists_of_its_own(model, way), AREAS["halves"]()), order=ORDER)
    assert lengths[0] == [2, 3]


@pytest.mark.parametrize("way", WAYS[:2])
def test_maps_of_conds_in_lists_of_their_own(way: Callable) -> None:
    """They hear each once, whatever another pack evaluates again."""

    def twice(evaluate: Evaluate, lists: list) -> list[Tensor]:
        outs = way(evaluate, lists)
        way(evaluate, lists)
        return outs

    plain, record = applied()
    sample(guide(plain, *both()))
    model, other = applied()
    sample(guide(in_lists_of_its_own(model, twice), *both()))
    torch.testing.assert_close(other.shares(), record.shares(), atol=1e-4, rtol=0)
    third, whole = applied()

    def afterwards(evaluate: Evaluate, lists: list) -> list[Tensor]:
        outs = evaluate(*lists)
        way(evaluate, lists)
        return outs

    sample(guide(in_lists_of_its_own(third, afterwards), *both()))
    torch.testing.assert_close(whole.shares(), record.shares(), atol=1e-5, rtol=0)
