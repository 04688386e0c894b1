"""A style beside the objects: what it adds, what it leaves alone, where it acts."""

from __future__ import annotations

import pytest
import torch
from mip_adapter.attention.ease import EASES, Ease
from mip_adapter.attention.reference import MAX_OBJECTS

from ..support import graphs, small
from ..support.direct import attention
from ..support.graphs import TOLERANCE, bundle, deviation, photo, references, sample
from ..support.paths import ROOT
from ..support.plain_ip_adapter import plain_ip_adapter
from ..support.random_sites import Case
from ..support.sentences import told

pytestmark = pytest.mark.usefixtures("host")


def style(chain=(), number: int = 5, preset: str = "all", weight: float = 1.0, **more) -> tuple:
    """A chain with one more MIPStyleReference."""
    from mip_adapter.nodes.style import MIPStyleReference

    return MIPStyleReference.execute(photo(number), weight, preset, chain, **more).args[0]


def plain(number: int, scale: float, model=None):
    """Plain IP-Adapter with one picture, or behind another MODEL."""
    return plain_ip_adapter(style(number=number), scale, model or bundle().model, bundle().adapters["base"])


@pytest.mark.parametrize("conditional", [True, False])
def test_at_a_site_it_is_one_to_rounding(conditional: bool) -> None:
    """In float64; the projection of the tokens runs in float32."""
    from mip_adapter.attention.options import Merge

    case = Case(objects=1, merge=Merge("sum"), gate="off", weights=(0.8,), dtype=torch.float64)
    got, data = case.fused((conditional,)), case.numbers()
    tokens = data["tokens"][0] if conditional else data["null"]
    keys, values = (tokens.double() @ data[name].double().T for name in ("to_k_ip", "to_v_ip"))
    added = case.scale * 0.8 * attention(data["q"][0].double(), keys, values, case.heads)
    error = (got[0] - (data["text"][0].double() + added)).norm() / added.norm()
    assert error < 1e-6


def test_beside_objects_it_adds_its_own() -> None:
    """Objects with a gate and a style without one, against the objects of the pack and a plain IP-Adapter behind."""
    expected, objects = sample(plain(5, 0.6, graphs.apply())), sample(graphs.apply())
    got = sample(graphs.apply(style(references(), weight=0.6)))
    assert deviation(got, expected, objects) < TOLERANCE
    assert torch.equal(sample(graphs.apply(style(references(), weight=0.0))), objects)


def test_where_it_stands_in_the_chain_changes_no_bit() -> None:
    objects = references()
    (one,) = style()
    first, last = sample(graphs.apply((one, *objects))), sample(graphs.apply((*objects, one)))
    assert torch.equal(first, last) and not torch.equal(first, sample(graphs.apply(objects)))


def test_several_mix_by_weight() -> None:
    """Two halves of one picture are the whole; a second style adds to the first."""
    without = sample(bundle().model)
    halves = sample(graphs.apply(style(style(weight=0.5), weight=0.5)))
    assert deviation(halves, sample(graphs.apply(style())), without) < TOLERANCE
    both = sample(graphs.apply(style(style(weight=0.5), number=6, weight=0.3)))
    assert deviation(both, sample(plain(6, 0.3, plain(5, 0.5))), without) < TOLERANCE


def test_reports_name_styles_and_leave_them_out() -> None:
    from mip_adapter.nodes.apply import MIPApply
    from mip_adapter.nodes.relevance import MIPRelevanceMaps

    parts = bundle()

    def report(chain) -> tuple:
        with torch.inference_mode():
            model, record = MIPApply.execute(
                parts.model, parts.clip, parts.vision, parts.adapters["base"], chain, 1.0, 0.0, 1.0
            ).args
            sample(model, 1)
            return MIPRelevanceMaps.execute(record, torch.rand(1, 64, 64, 3), 0.5).args

    *_, masks, _, said = report(style(style(references(), name="watercolour")))
    assert "without a share: watercolour, style 2" in said and len(masks) == 2
    overlays, masks, *_, said = report(style(name="watercolour"))
    assert "only styles (watercolour)" in said and len(overlays) == len(masks) == 1 and not masks.any()


def test_a_region_and_a_range_confine_it() -> None:
    """Left of the region nothing changes at the sites themselves; outside the range nothing at all."""
    left = torch.zeros(1, 8, 8)
    left[..., :4] = 1
    inside, without = sample(graphs.apply(style(region=left)), 1), sample(bundle().model, 1)
    everywhere = sample(graphs.apply(style(region=torch.ones(1, 8, 8))), 1)
    assert torch.equal(everywhere, sample(graphs.apply(style(region=torch.ones(1, 8, 8))), 1))
    assert not torch.equal(inside, everywhere) and not torch.equal(inside, without)
    never = style(start_percent=0.4, end_percent=0.5)
    assert torch.equal(sample(graphs.apply(never), 2), sample(bundle().model, 2))


@pytest.mark.parametrize("kind", ["style", "object"])
def test_grey_masks_are_weights_by_picture(kind: str) -> None:
    """One mask a picture: each is drawn as with that weight, where nobody competes."""
    weights = torch.tensor([0.25, 0.75])
    masks = weights.view(-1, 1, 1).expand(-1, 8, 8)

    def drawn(**more) -> torch.Tensor:
        return sample(graphs.apply(style(**more) if kind == "style" else references(("cat",), **more)), batch=2)

    got, without = drawn(region=masks if kind == "style" else [masks]), sample(bundle().model, batch=2)
    for i, weight in enumerate(weights.tolist()):
        expected = drawn(weight=weight if kind == "style" else [weight])
        assert deviation(got[i], expected[i], without[i]) < TOLERANCE
        assert deviation(got[1 - i], expected[1 - i], without[1 - i]) > 0.1


def test_the_unconditional_branch_with_a_region_follows_the_definition() -> None:
    left = torch.linspace(1, 0, 8).expand(1, 8, 8)
    chain = style(region=left)
    got = sample(graphs.apply(chain))
    expected = sample(graphs.apply_directly(chain, merge={"strategy": "sum"}, head={"gate": "off"}))
    assert deviation(got, expected, sample(bundle().model)) < TOLERANCE


def test_sixteen_objects_and_a_style() -> None:
    from mip_adapter.nodes.reference import MIPReference

    objects = references([f"thing {i}" for i in range(MAX_OBJECTS)])
    assert sample(graphs.apply(style(objects)), 1).isfinite().all()
    full = ()
    for _ in range(MAX_OBJECTS):
        full = style(full)
    told(lambda: style(full), "17 styles", "16")
    told(lambda: MIPReference.execute(photo(0), "one more", 1.0, references=style(objects)), "17 objects", "16")


def test_a_preset_on_a_model_without_such_blocks() -> None:
    from mip_adapter.miniature import comfy_bundle
    from mip_adapter.weights.adapter import load_adapter

    miniature = comfy_bundle.load()[0]
    adapter = load_adapter(ROOT / "miniature" / "adapters" / "miniature_stock.safetensors")
    told(
        lambda: graphs.apply(style(preset="style"), model=miniature, adapter=adapter),
        "“style”", "SDXL and SD1.5", "“all”",
    )  # fmt: skip
    sd15 = small.sd15()
    adapter = small.base_adapter(sd15, "one")
    assert sample(graphs.apply(style(preset="style"), model=sd15, adapter=adapter), 1).isfinite().all()


def test_bad_input() -> None:
    told(lambda: style(weight=4.0), "“style 1”", "4.0", "between 0 and 3")
    told(lambda: style(name="ink", region=torch.zeros(1, 8, 8)), "“ink”", "empty")
    told(lambda: style(preset="mood"), "mood", "composition")
    told(lambda: style(start_percent=0.8, end_percent=0.2), "0.8", "0.2")
    told(lambda: graphs.apply(()), "no references", "MIP Reference")


def test_nodes_that_read_texts_pass_styles_over() -> None:
    from mip_adapter.nodes.detect import _wanted

    assert _wanted("", style(references(), name="watercolour")) == graphs.OBJECTS


# ---- strength over time ----


def test_steady_changes_no_bit_and_the_others_do() -> None:
    plainly = sample(graphs.apply(style(references())), 4)
    assert torch.equal(sample(graphs.apply(style(references(), over_time="steady")), 4), plainly)
    eased = [sample(graphs.apply(style(references(), over_time=kind)), 4) for kind in EASES[1:]]
    assert all(not torch.equal(one, plainly) for one in eased) and not torch.equal(eased[0], eased[1])


@pytest.mark.parametrize("kind", EASES[1:])
def test_strength_follows_the_fraction_of_the_sampling(kind: str, monkeypatch) -> None:
    """The factor at every step against the host's own inverse: its timestep of a noise level. None: the style rests."""
    from mip_adapter.patching.clock import Clock

    steps, start, end = 6, 0.1, 0.9
    sampling = bundle().model.get_model_object("model_sampling")
    factors: dict[float, float] = {}

    def watched(clock, plan, device, made=Clock.ease_factors):
        factors[clock.sigma] = float(made(clock, plan, device)[0][0])
        return made(clock, plan, device)

    monkeypatch.setattr(Clock, "ease_factors", watched)
    sigmas: list[float] = []
    model = graphs.apply(style(over_time=kind, start_percent=start, end_percent=end))
    model.set_model_unet_function_wrapper(lambda run, call: noted(run, call, sigmas))
    sample(model, steps)
    assert len(set(sigmas)) == steps
    for sigma in sigmas:
        fraction = 1 - float(sampling.timestep(torch.tensor(sigma))) / 999
        if start < fraction < end:
            expected = float(Ease(kind, start, end).at(torch.tensor(fraction)))
            assert factors[sigma] == pytest.approx(expected, abs=0.01)
        else:
            assert sigma not in factors
    assert 3 <= len(factors) < steps


def noted(run, call: dict, sigmas: list[float]):
    """Runs the UNet and keeps the noise level."""
    sigmas.append(float(call["timestep"][0]))
    return run(call["input"], call["timestep"], **call["c"])


def test_a_moment_of_a_sampling_never_waits_for_the_device() -> None:
    """The factor is found by tensors alone: on the meta device, where nothing has a value, it has its shape."""
    from mip_adapter.patching.clock import fraction_at

    now, levels = torch.empty(1, device="meta"), torch.empty(129, device="meta")
    assert fraction_at(now, levels).shape == (1,)
    assert all(Ease(kind).at(now).shape == (1,) for kind in EASES)


# ---- negatives ----


def test_a_negative_is_the_picture_of_the_unconditional_branch() -> None:
    """Of a style alone: its tokens stand where the zero embedding's stood."""
    from mip_adapter.patching.encode import encode_styles

    with torch.inference_mode():
        encoded = [
            encode_styles(chain, bundle().adapters["base"], bundle().vision)
            for chain in (style(negative=photo(9)), style(number=9), style())
        ]
    assert torch.equal(encoded[0].null_tokens, encoded[1].tokens[0])
    assert torch.equal(encoded[0].tokens, encoded[2].tokens)
    assert not torch.equal(sample(graphs.apply(style(negative=photo(9)))), sample(graphs.apply(style())))


@pytest.mark.parametrize("family", ["base", "plus"])
def test_negatives_of_some_objects(family: str) -> None:
    """The same null tokens for every object are one set for all, up to rounding; another object's are another."""
    from mip_adapter.patching.encode import encode_references

    chain = references(negative=[photo(9), None])
    with torch.inference_mode():
        encoded = encode_references(chain, bundle().adapters[family], bundle().clip, bundle().vision)
        shared = encode_references(references(), bundle().adapters[family], bundle().clip, bundle().vision)
    assert encoded.null_tokens.ndim == 3 and torch.equal(encoded.null_tokens[1], shared.null_tokens)
    got, without = sample(graphs.apply(chain, family=family)), sample(graphs.apply(family=family))
    assert got.isfinite().all() and not torch.equal(got, without)


def test_bad_negatives_and_eases() -> None:
    told(lambda: style(negative=torch.rand(1, 4, 4, 3)), "not style 1", "4×4 pixels")
    told(lambda: references(negative=[torch.rand(1, 9, 9, 2), None]), "not cat", "[1, 9, 9, 2]")
    told(lambda: style(over_time="slowly"), "slowly", "ease in and out")
