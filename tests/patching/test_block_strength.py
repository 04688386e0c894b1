"""Strength by block while ComfyUI samples: what is silent does nothing, what is 1 changes nothing."""

from __future__ import annotations

import pytest
import torch

from ..support import graphs
from ..support.graphs import TOLERANCE, bundle, deviation, references, sample
from ..support.operators import operators_of
from ..support.sentences import told

pytestmark = pytest.mark.usefixtures("host")


def strength(preset: str = "all", numbers: str = "", model=None):
    from mip_adapter.nodes.block_strength import MIPBlockStrength

    return MIPBlockStrength.execute(model or bundle().model, preset, numbers).args[0]


def line(*silent: int) -> str:
    """A number for each block of the small UNet: 0 at these places, else 1."""
    blocks = len(strength().strengths)
    return " ".join("0" if place in silent or place - blocks in silent else "1" for place in range(blocks))


def chain(*each):
    return references(block_strength=list(each))


@pytest.mark.parametrize("head", [None, {"gate": "text"}])
@pytest.mark.parametrize("end", [1.0, 0.6])
def test_silent_sites_run_no_operator_of_ours(head, end: float) -> None:
    """Block 1 is silent for both objects. In block 2 the second alone speaks; where it stops, nothing is done there."""
    first, second = strength(numbers=line(1, 2)), strength(numbers=line(1))
    model = graphs.apply(references(block_strength=[first, second], end_percent=[1.0, end]), head=head)
    plain, ours = operators_of(bundle().model), operators_of(model)
    added = {(step, key): ours[step, key] - plain[step, key] for step, key in plain}
    blocks = [*strength().strengths]
    for (step, key), more in added.items():
        silent = key[:2] == blocks[1] or (key[:2] == blocks[2] and step == 1 and end < 1)
        assert (more == 0) if silent else (more > 0), (step, key, more)
    slots = {key[:2] for key in model.model_options["transformer_options"]["patches_replace"]["attn2"]}
    assert blocks[1] not in slots and blocks[2] in slots


def test_a_style_runs_operators_only_where_it_speaks() -> None:
    """It speaks in block 2 alone. There the objects are silent, and in block 1 everybody is."""
    from mip_adapter.nodes.style import MIPStyleReference

    objects = chain(*[strength(numbers=line(1, 2))] * 2)
    (both,) = MIPStyleReference.execute(
        graphs.photo(5), 1.0, "all", objects, block_strength=strength(numbers="2:1")
    ).args
    plain, alone, beside = map(operators_of, (bundle().model, graphs.apply(objects), graphs.apply(both)))
    blocks = [*strength().strengths]
    for step, key in plain:
        more = beside[step, key] - alone[step, key]
        assert (more > 0) if key[:2] == blocks[2] else (more == 0), (step, key, more)
        if key[:2] == blocks[1]:
            assert beside[step, key] == plain[step, key]
    assert {key[:2] for _, key in plain} == set(blocks)


def test_silent_everywhere_is_the_model() -> None:
    nothing = strength(numbers=line(*range(len(strength().strengths))))
    assert torch.equal(sample(graphs.apply(chain(nothing, nothing))), sample(bundle().model))


@pytest.mark.parametrize("regions", [False, True])
def test_one_everywhere_changes_no_bit(regions: bool) -> None:
    left = torch.linspace(1, 0, 8).expand(1, 8, 8)
    more = {"region": [left, None]} if regions else {}
    got = references(block_strength=[strength(), strength(numbers=line())], **more)
    assert torch.equal(sample(graphs.apply(got)), sample(graphs.apply(references(**more))))


def test_a_strength_for_all_blocks_is_a_weight() -> None:
    half = strength(numbers=" ".join(["0.5"] * len(strength().strengths)))
    without = sample(bundle().model)
    expected = sample(graphs.apply(references(weight=[0.5, 1.0])))
    assert deviation(sample(graphs.apply(chain(half, None))), expected, without) < TOLERANCE
    assert deviation(sample(graphs.apply(chain(None, None))), expected, without) > 100 * TOLERANCE


def test_what_is_recorded_where_sites_are_silent() -> None:
    from mip_adapter.nodes.apply import MIPApply

    parts = bundle()

    def record_of(each):
        with torch.inference_mode():
            model, record = MIPApply.execute(
                parts.model, parts.clip, parts.vision, parts.adapters["base"], chain(each, each), 1.0, 0.0, 1.0
            ).args
        sample(model)
        return record

    blocks = len(strength().strengths)
    some, all_of_them = record_of(strength(numbers=f"{blocks - 1}:1")), record_of(None)
    assert 0 < len(some.resolutions) < len(all_of_them.resolutions)
    nothing = record_of(strength(numbers="0:0"))
    assert "MIP Block Strength" in nothing.absent()


def test_what_is_said_of_silent_objects_beside_a_style_that_acts() -> None:
    """Not that all references are off: the style changes the picture."""
    from mip_adapter.nodes.apply import MIPApply
    from mip_adapter.nodes.style import MIPStyleReference

    parts, nothing = bundle(), strength(numbers="0:0")
    (both,) = MIPStyleReference.execute(graphs.photo(5), 1.0, "all", chain(nothing, nothing)).args
    with torch.inference_mode():
        model, record = MIPApply.execute(
            parts.model, parts.clip, parts.vision, parts.adapters["base"], both, 1.0, 0.0, 1.0
        ).args
    assert not torch.equal(sample(model), sample(parts.model))
    assert "MIP Block Strength in every block, so the objects' references are switched off" in record.absent()


def test_a_model_of_other_blocks() -> None:
    from ..support import small

    other = strength(model=small.sd15())
    told(lambda: graphs.apply(chain(None, other)), "red coffee cup", "16 blocks", "MIP Block Strength")
