"""Beside the real IPAdapter_plus, where IPADAPTER_PLUS_PATH names a checkout of it; skipped elsewhere.

On a model of SD1.5's blocks: IPAdapter_plus knows SDXL's by their full size only. Its middle block has a name
that the host never looks up, so nobody's middle counts here.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

from ..support import graphs, small
from ..support.graphs import TOLERANCE, bundle, deviation, photo, references, sample

PATH = os.environ.get("IPADAPTER_PLUS_PATH", "")
pytestmark = [
    pytest.mark.usefixtures("host"),
    pytest.mark.skipif(not PATH, reason="IPADAPTER_PLUS_PATH names no checkout of IPAdapter_plus"),
]


@pytest.fixture(scope="module")
def plus(host) -> ModuleType:
    """The pack, imported as the host imports custom nodes: by path, whatever its folder is called."""
    spec = importlib.util.spec_from_file_location("ipadapter_plus", Path(PATH, "__init__.py"))
    assert spec and spec.loader
    sys.modules["ipadapter_plus"] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return sys.modules["ipadapter_plus.IPAdapterPlus"]


@pytest.fixture(scope="module")
def model(host):
    return small.sd15()


@pytest.fixture(scope="module")
def adapters(model) -> list:
    return [small.base_adapter(model, name) for name in ("one", "second", "another")]


def ours(model, adapter, picture: int = 0, **options):
    """MIPApply with one reference; without the middle."""
    patched = graphs.apply(references(("cat",), image=[photo(picture)]), model=model, adapter=adapter, **options)
    slots = patched.model_options["transformer_options"]["patches_replace"]["attn2"]
    for key in [key for key in slots if key[0] == "middle"]:
        del slots[key]
    return patched


def theirs(plus, model, adapter, picture: int = 0, **options):
    """IPAdapterAdvanced's work on the same encoder's features."""
    tensors = {
        "image_proj": dict(adapter.image_proj),
        "ip_adapter": {
            f"{n}.to_{x}_ip.weight": getattr(w, f"to_{x}").clone() for n, w in adapter.sites.items() for x in "kv"
        },
    }
    with torch.inference_mode(False):
        features = bundle().vision.encode_image(photo(picture)).image_embeds.clone()
        return plus.ipadapter_execute(model.clone(), tensors, bundle().vision, pos_embed=features, **options)[0]


def sampled(model) -> torch.Tensor:
    return sample(model, 3)


def test_one_reference_is_an_ip_adapter(plus, model, adapters) -> None:
    expected = sampled(theirs(plus, model, adapters[0], weight=0.8))
    assert deviation(sampled(ours(model, adapters[0], scale=0.8)), expected, sampled(model)) < TOLERANCE


@pytest.mark.parametrize("order", ["before", "behind", "both", "between"])
def test_chained(plus, model, adapters, order: str) -> None:
    """Where everybody stands makes no difference, and equals as many IPAdapter_plus in a row."""
    a, b, c = adapters
    if order == "before":
        got = ours(theirs(plus, model, b, 1), a)
    elif order == "behind":
        got = theirs(plus, ours(model, a), b, 1)
    elif order == "both":
        got = theirs(plus, ours(theirs(plus, model, b, 1), a), c, 2)
    else:
        got = ours(theirs(plus, ours(model, a), b, 1), c, 2)
    expected = theirs(plus, theirs(plus, model, a), b, 1)
    if order in ("both", "between"):
        expected = theirs(plus, expected, c, 2)
    assert deviation(sampled(got), sampled(expected), sampled(model)) < TOLERANCE


def test_its_range_of_steps_holds_behind_ours(plus, model, adapters) -> None:
    got = theirs(plus, ours(model, adapters[0]), adapters[1], 1, start_at=0.2, end_at=0.7)
    expected = theirs(plus, theirs(plus, model, adapters[0]), adapters[1], 1, start_at=0.2, end_at=0.7)
    always = theirs(plus, theirs(plus, model, adapters[0]), adapters[1], 1)
    assert deviation(sampled(got), sampled(expected), sampled(model)) < TOLERANCE
    assert deviation(sampled(got), sampled(always), sampled(model)) > 10 * TOLERANCE


def test_our_model_does_not_gain_what_is_added_behind_it(plus, model, adapters) -> None:
    first = ours(model, adapters[0])
    before = sampled(first)
    sampled(theirs(plus, first, adapters[1], 1))
    assert torch.equal(sampled(first), before)
