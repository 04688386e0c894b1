"""Styles and strength by block on UNets with all blocks of SD1.5 and of SDXL, and narrow layers, in float64."""

from __future__ import annotations

from typing import Any, NamedTuple

import pytest
import torch
from mip_adapter.attention.block_strength import BlockStrength
from mip_adapter.weights.sites import unet_sites
from torch import Tensor

from ..support import graphs, small
from ..support.graphs import bundle, deviation, photo, references, sample
from ..support.operators import operators_of
from ..support.plain_ip_adapter import plain_ip_adapter
from .test_styles import style

pytestmark = pytest.mark.usefixtures("host")
SIZE = (8, 8)
STYLE_BLOCKS = {
    "SD1.5": {*(("input", number) for number in (1, 2, 4, 5)), *(("output", number) for number in range(5, 12))},
    "SDXL": {("output", 1)},
}


class Full(NamedTuple):
    """A MODEL, an adapter for it, and what it draws without one."""

    name: str
    model: Any
    adapter: Any
    plain: Tensor

    def applied(self, chain: tuple, **more) -> Any:
        return graphs.apply(chain, model=self.model, adapter=self.adapter, **more)

    def drawn(self, chain: tuple, **more) -> Tensor:
        return drawn(self.applied(chain, **more))

    def silent(self) -> BlockStrength:
        return BlockStrength("numbers", {site.key[:2]: 0.0 for site in unet_sites(self.model.model.diffusion_model)})


def drawn(model: Any) -> Tensor:
    return sample(model, 1, size=SIZE)


@pytest.fixture(scope="module", params=STYLE_BLOCKS)
def full(host, request) -> Full:
    name, dtype = request.param, torch.float64
    model = small.sd15(dtype) if name == "SD1.5" else small.sdxl(48, 32, dtype)
    return Full(name, model, small.base_adapter(model, "one"), drawn(model))


@pytest.mark.parametrize("negative", [False, True])
def test_one_style_alone_is_a_plain_ip_adapter(full: Full, negative: bool) -> None:
    """With a negative, its tokens are those of the unconditional branch. The projections run in float32."""
    chain = style(weight=0.8, negative=photo(9) if negative else None)
    expected = drawn(plain_ip_adapter(chain, 0.4, full.model, full.adapter))
    assert deviation(full.drawn(chain, scale=0.5), expected, full.plain) < 1e-6


def test_a_negative_reaches_the_unconditional_branch_alone(full: Full) -> None:
    """Without guidance only the conditional branch is drawn, and no bit changes."""
    chains = style(), style(negative=photo(9))
    without, guided = ([drawn(graphs.guide(full.applied(chain), cfg=cfg)) for chain in chains] for cfg in (1.0, 4.0))
    assert torch.equal(*without) and not torch.equal(*guided)


@pytest.mark.parametrize("silent", ["weight", "blocks"])
def test_a_silent_style_changes_no_bit(full: Full, silent: str) -> None:
    weight, blocks = (0.0, None) if silent == "weight" else (1.0, full.silent())
    objects = references()
    assert torch.equal(full.drawn(style(objects, weight=weight, block_strength=blocks)), full.drawn(objects))
    assert torch.equal(full.drawn(style(weight=weight, block_strength=blocks)), full.plain)


def test_strength_0_everywhere_is_the_model(full: Full) -> None:
    nobody = style(references(block_strength=[full.silent()] * 2), block_strength=full.silent())
    assert torch.equal(full.drawn(nobody), full.plain)
    assert torch.equal(full.drawn(style(references()), scale=0.0), full.plain)


def test_the_objects_shares_are_what_they_were(full: Full) -> None:
    """At the first site that a call reaches, no style has changed the queries yet."""
    from mip_adapter.nodes.apply import MIPApply

    recorded = []
    for chain in (references(), style(references())):
        with torch.inference_mode():
            model, record = MIPApply.execute(
                full.model, bundle().clip, bundle().vision, full.adapter, chain, 1.0, 0.0, 1.0
            ).args
        first = unet_sites(full.model.model.diffusion_model)[0].key
        slots = model.model_options["transformer_options"]["patches_replace"]["attn2"]
        for key in [key for key in slots if key != first]:
            del slots[key]
        drawn(model)
        recorded.append((record.shares(), record.styles))
    assert torch.equal(recorded[0][0], recorded[1][0])
    assert [styles for _, styles in recorded] == [(), ("style 1",)]


def test_a_preset_adds_operators_only_in_its_blocks(full: Full) -> None:
    objects = references()
    chains = (), style(preset="style"), objects, style(objects, preset="style")
    plain, alone, before, beside = (
        operators_of(full.applied(chain) if chain else full.model, 1, SIZE) for chain in chains
    )
    for step, key in plain:
        speaks = key[:2] in STYLE_BLOCKS[full.name]
        assert (alone[step, key] > plain[step, key]) == speaks == (beside[step, key] > before[step, key]), key
        assert speaks or (alone[step, key] == plain[step, key] and beside[step, key] == before[step, key]), key
