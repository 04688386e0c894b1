"""Each key of a file is used exactly once; a key that is not is named (test_spec.py)."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest
import torch
from mip_adapter.weights.adapter import Adapter, build_adapter
from mip_adapter.weights.projection import project
from torch import Tensor

from ..support import weights_samples
from ..support.weights_samples import FAMILIES, SMALL, Sample

EVERY = SMALL | {"faceid-plus": replace(SMALL["faceid-plusv2"], family="faceid-plus")}


def held(adapter: Adapter) -> list[int]:
    """The identities of the tensors that an adapter holds. The head's rows are views."""
    sites = [
        [site.k_weight, site.v_weight, *([] if site.head is None else [site.head._base])]
        for site in adapter.site_weights.values()
    ]
    return [id(each) for each in [*adapter.image_proj.values(), *adapter.lora.values(), *sum(sites, [])]]


@pytest.mark.parametrize("name", FAMILIES)
def test_an_adapter_holds_every_tensor_of_its_file_once(name: str) -> None:
    tensors = weights_samples.flat(FAMILIES[name], weights_samples.meta)
    assert Counter(held(build_adapter(tensors, f"{name}.bin"))) == Counter(map(id, tensors.values()))


def outcome(sample: Sample, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """What an adapter gives, by what of its file should decide it."""
    adapter = build_adapter(tensors, "a", "plus" if sample.family == "faceid-plus" else "plus v2")
    random = weights_samples.random(7)
    states = adapter.spec.encoder.output == "penultimate_hidden_states"
    embeds = random(2, 5, sample.encoder) if states else random(2, sample.encoder)
    width = adapter.spec.face or 1
    tokens = project(adapter, embeds, random(2, width))
    given = {"image_proj": tokens}
    for number, site in adapter.site_weights.items():
        k, v = site.keys_values(random(3, sample.context), 2)
        given |= {f"ip_adapter.{number}.to_k_ip.weight": k, f"ip_adapter.{number}.to_v_ip.weight": v}
        if site.head is not None:
            given[f"ip_adapter.{number}.text_to_weight.weight"] = site.head
    return given | {f"ip_adapter.{key}": tensor for key, tensor in adapter.lora.items()}


@pytest.mark.parametrize("family", EVERY)
def test_every_tensor_counts_where_it_belongs_and_nowhere_else(family: str) -> None:
    sample = EVERY[family]
    tensors = weights_samples.flat(sample)
    before = outcome(sample, tensors)
    for key, tensor in tensors.items():
        noise = torch.randn(tensor.shape, generator=torch.Generator().manual_seed(1))
        after = outcome(sample, {**tensors, key: tensor + noise})
        changed = {name for name in before if not torch.equal(before[name], after[name])}
        assert changed == {"image_proj" if key.startswith("image_proj") else key}, key
