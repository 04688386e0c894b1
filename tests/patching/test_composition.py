"""Beside every way in which the host evaluates a model: batches, guiders, regional prompts, other people's patches.

Each graph is sampled twice by the host's own code, with MIPApply and with the definition (direct.py) told by the test
which chunk of the batch is what. Both must agree.
"""

from __future__ import annotations

import importlib
import random
from collections.abc import Callable
from typing import Any

import pytest
import torch

from ..support import graphs
from ..support.graphs import compare, guide, output, prompt, watch_calls
from .test_once_a_sampling import noisy

pytestmark = [pytest.mark.usefixtures("host"), pytest.mark.slow]


def test_the_comparison_tells_right_from_wrong() -> None:
    without, expected = graphs.sample(graphs.bundle().model), graphs.sample(graphs.apply_directly())
    wrongs: list[dict[str, Any]] = [
        {"merge": {"strategy": "uniform"}},
        {"head": {"gate": "off"}},
        {"scale": 0.9},
        {"start": 0.5},
    ]
    for wrong in wrongs:
        assert graphs.deviation(graphs.sample(graphs.apply(**wrong)), expected, without) > 10 * graphs.TOLERANCE
    swapped = graphs.apply_directly(branch=lambda index, uuid: (index == 1, None))
    assert graphs.deviation(graphs.sample(swapped), expected, without) > 10 * graphs.TOLERANCE


@pytest.mark.parametrize("family", ["base", "plus"])
@pytest.mark.parametrize("strategy", ["relevance", "uniform", "sum", "concat"])
def test_strategies(family: str, strategy: str) -> None:
    compare(guide, family=family, merge={"strategy": strategy})


@pytest.mark.parametrize(
    "options",
    [
        {"merge": {"normalization": "mean"}},
        {"merge": {"background": 1.0, "sharpness": 3.0}},
        {"merge": {"unclaimed": 0.8, "sharpness": 2.0}},
        {"head": {"gate": "text"}},
        {"head": {"gate": "image", "strength": 0.4}},
        {"head": {"gate": "text", "strength": 1.7}},
        {"head": {"gate": "off"}},
        {"scale": 1.4, "start": 0.3, "end": 0.8},
    ],
    ids=str,
)
def test_choices(options: dict) -> None:
    compare(guide, sampling={"steps": 4}, **options)


@pytest.mark.parametrize("batch", range(1, 9))
def test_batch_sizes(batch: int) -> None:
    compare(guide, sampling={"batch": batch, "steps": 1})


def test_without_cfg() -> None:
    compare(lambda model: guide(model, cfg=1.0))


@pytest.mark.parametrize("size", [(13, 9), (7, 31), (32, 4), (5, 5), (1, 4)], ids=str)
def test_any_aspect_ratio(size: tuple[int, int]) -> None:
    compare(guide, sampling={"size": size})


@pytest.mark.parametrize("sampler", ["dpmpp_2m_sde", "heun", "euler_ancestral_cfg_pp", "uni_pc", "lcm", "ddim"])
def test_samplers(sampler: str) -> None:
    compare(guide, sampling={"sampler": sampler, "steps": 3})


def test_separate_calls(monkeypatch) -> None:
    """Under low memory the host evaluates every cond in a call of its own."""
    calls: list[list[int]] = []

    def watched(model):
        return guide(watch_calls(model, calls))

    together = graphs.sample(watched(graphs.apply()))
    assert {tuple(sorted(call)) for call in calls} == {(0, 1)}
    calls.clear()
    graphs.little_memory(monkeypatch)
    compare(watched)
    assert {tuple(call) for call in calls} == {(0,), (1,)}
    apart = graphs.sample(watched(graphs.apply()))
    assert graphs.deviation(apart, together, graphs.sample(graphs.bundle().model)) < graphs.TOLERANCE


@pytest.mark.parametrize("node", ["KSampler", "KSamplerAdvanced"])
def test_the_samplers_that_everybody_uses(node: str) -> None:
    """The nodes themselves; KSamplerAdvanced for the middle steps only, as in two-stage workflows."""
    import nodes

    conds = prompt("a cat beside a red coffee cup"), prompt("blurry")
    latent = {"samples": torch.zeros(2, 4, *graphs.SIZE)}

    def sampled(model) -> torch.Tensor:
        with torch.inference_mode():
            if node == "KSampler":
                return nodes.KSampler().sample(model, 5, 3, 4.0, "dpmpp_2m", "karras", *conds, latent)[0]["samples"]
            steps = "enable", 5, 6, 4.0, "euler", "normal", *conds, latent, 1, 4, "enable"
            return nodes.KSamplerAdvanced().sample(model, *steps)[0]["samples"]

    results = [sampled(model) for model in (graphs.apply(), graphs.apply_directly(), graphs.bundle().model)]
    assert graphs.deviation(*results) < graphs.TOLERANCE


def test_prompts_of_different_lengths() -> None:
    """The host repeats the shorter one up to the common multiple."""
    long = prompt("a cat beside a red coffee cup, " * 20)
    assert long[0][0].shape[1] > 77
    compare(lambda model: guide(model, positive=long))


@pytest.mark.parametrize("style", ["regular", "nested"])
@pytest.mark.parametrize("cfg_negative", [1.0, 3.0])
def test_dual_cfg(style: str, cfg_negative: float) -> None:
    """Evaluates [negative, middle, positive]: 0 is the negative here."""
    from comfy_extras.nodes_custom_sampler import DualCFGGuider

    conds = prompt("a cat beside a cup"), prompt("a photograph"), prompt("blurry")
    compare(lambda model: DualCFGGuider.execute(model, *conds, 4.0, cfg_negative, style).args[0])


@pytest.mark.parametrize("cfg, negative_scale", [(4.0, 1.0), (4.0, 0.0), (1.0, 0.0)])
def test_perp_neg(cfg: float, negative_scale: float) -> None:
    from comfy_extras.nodes_perpneg import PerpNegGuider

    conds = prompt("a cat beside a cup"), prompt("blurry"), prompt("")
    compare(lambda model: PerpNegGuider.execute(model, *conds, cfg, negative_scale).args[0])


def test_the_old_perp_neg() -> None:
    """A patch of the model that evaluates [empty prompt] alone: index 0, none of the guider's, and unconditional."""
    positives: set = set()

    def guider(model):
        return guide(_run("perpneg", "PerpNeg", model, prompt(""), 1.0))

    direct = guider(graphs.apply_directly(branch=lambda _, uuid: (uuid in positives, None)))
    positives |= {cond["uuid"] for cond in direct.original_conds["positive"]}
    expected, without = graphs.sample(direct), graphs.sample(guider(graphs.bundle().model))
    assert graphs.deviation(graphs.sample(guider(graphs.apply())), expected, without) < graphs.TOLERANCE


def test_basic_guider() -> None:
    from comfy_extras.nodes_custom_sampler import BasicGuider

    compare(lambda model: BasicGuider.execute(model, prompt("a cat beside a cup")).args[0])


@pytest.mark.parametrize("cfg", [1.0, 4.0])
def test_perturbed_attention(cfg: float) -> None:
    """PAG evaluates [positive] alone after the guidance."""
    from comfy_extras.nodes_pag import PerturbedAttentionGuidance

    compare(lambda model: guide(PerturbedAttentionGuidance.execute(model, 3.0).args[0], cfg=cfg))


@pytest.mark.parametrize("cfg", [1.0, 4.0])
def test_self_attention_guidance(cfg: float) -> None:
    """SAG evaluates [negative] alone: index 0, and yet unconditional."""
    from comfy_extras.nodes_sag import SelfAttentionGuidance

    compare(lambda model: guide(SelfAttentionGuidance.execute(model, 0.5, 2.0).args[0], cfg=cfg))


def _run(module: str, node: str, *inputs) -> Any:
    """A node from the host's extras, of either API."""
    kind = getattr(importlib.import_module(f"comfy_extras.nodes_{module}"), node)
    return output(kind.execute(*inputs) if hasattr(kind, "execute") else getattr(kind(), kind.FUNCTION)(*inputs))


OTHERS: dict[str, Callable] = {
    "FreeU": lambda model: _run("freelunch", "FreeU", model, 1.1, 1.2, 0.9, 0.2),
    "FreeU_V2": lambda model: _run("freelunch", "FreeU_V2", model, 1.3, 1.4, 0.9, 0.2),
    "HyperTile": lambda model: _run("hypertile", "HyperTile", model, 32, 2, 0, True),
    "RescaleCFG": lambda model: _run("model_advanced", "RescaleCFG", model, 0.7),
    "v-prediction": lambda model: _run("model_advanced", "ModelSamplingDiscrete", model, "v_prediction", False),
    "TCFG": lambda model: _run("tcfg", "TCFG", model),
    "attention multiply": lambda model: _run("attention_multiply", "UNetCrossAttentionMultiply", model, 1.1, 0.9, 1, 1),
    "deep shrink": lambda model: _run(
        "model_downscale", "PatchModelAddDownscale", model, 3, 2.0, 0.0, 0.6, True, "bicubic", "bicubic"
    ),
    "ToMe": lambda model: _run("tomesd", "TomePatchModel", model, 0.3),
}


@pytest.mark.parametrize("before", [True, False], ids=["before", "after"])
@pytest.mark.parametrize("name", OTHERS)
def test_beside_other_patches(name: str, before: bool) -> None:
    torch.manual_seed(0)
    random.seed(0)  # HyperTile and ToMe draw
    if before:
        compare(guide, model=OTHERS[name](graphs.bundle().model))
    else:
        compare(lambda model: guide(OTHERS[name](model)))


@pytest.mark.parametrize("name, inputs", [
    ("ModelSamplingContinuousEDM", ("v_prediction", 120.0, 0.002)), ("ModelSamplingDiscrete", ("lcm", False))
])  # fmt: skip
def test_percentages_are_of_the_sampling_that_runs(name: str, inputs: tuple) -> None:
    """A node that changes the noise levels may stand before or behind MIP Apply."""

    def changed(model: Any) -> Any:
        return _run("model_advanced", name, model, *inputs)

    bare = graphs.bundle().model
    times = {"start_percent": [0.0, 0.35], "end_percent": [0.65, 1.0], "region": [torch.ones(1, 8, 8).triu(), None]}
    chain = graphs.references(**times, region_until=[0.35, 1.0])
    without, before, behind = (
        graphs.sample(guide(model), steps=8)
        for model in (
            changed(bare),
            graphs.apply(chain, model=changed(bare), start=0.1, end=0.9),
            changed(graphs.apply(chain, start=0.1, end=0.9)),
        )
    )
    assert graphs.deviation(behind, before, without) == 0
    always = graphs.sample(guide(changed(graphs.apply(chain))), steps=8)
    assert graphs.deviation(always, before, without) > 10 * graphs.TOLERANCE


def test_context_windows() -> None:
    """The host slices a batch into windows of its own."""
    compare(lambda model: guide(graphs.in_windows(model, 4)), sampling={"batch": 6, "steps": 5, "size": (8, 8)})


def couple(model: Any, regions: int) -> Any:
    """As packs with prompts for regions do it: at every site the conditional rows stand there once for the prompt and
    once for each region. Here all say the same, so nothing may change."""

    def repeated(n, context, value, options):
        def each(rows):
            chunks = zip(options["cond_or_uncond"], rows.chunk(len(options["cond_or_uncond"])), strict=True)
            return torch.cat([chunk.repeat(1 if place == 1 else 1 + regions, 1, 1) for place, chunk in chunks])

        return each(n), each(context), each(value)

    def joined(n, options):
        counts = [1 if place == 1 else 1 + regions for place in options["cond_or_uncond"]]
        of_one = len(n) // sum(counts)
        chunks = n.split([count * of_one for count in counts])
        return torch.cat([each.unflatten(0, (-1, of_one)).mean(0) for each in chunks])

    model = model.clone()
    model.set_model_attn2_patch(repeated)
    model.set_model_attn2_output_patch(joined)
    return model


@pytest.mark.parametrize("make", [graphs.apply, noisy])
@pytest.mark.parametrize("regions", [1, 2])
def test_attention_couple(make: Callable, regions: int) -> None:
    without, expected = (graphs.sample(model, batch=2) for model in (graphs.bundle().model, make()))
    got = graphs.sample(couple(make(), regions), batch=2)
    assert graphs.deviation(got, expected, without) < graphs.TOLERANCE


@pytest.mark.parametrize("guider", ["PerpNegGuider", "DualCFGGuider", "PerpNeg", "SelfAttentionGuidance"])
def test_attention_couple_under_other_guidance(guider: str) -> None:
    """Three conds, or one alone: every one but that in place 1 is repeated, whatever it is."""
    three = prompt("a cat beside a cup"), prompt("a photograph"), prompt("blurry")

    def guided(model: Any) -> Any:
        if guider == "PerpNegGuider":
            return _run("perpneg", guider, model, *three, 4.0, 1.0)
        if guider == "DualCFGGuider":
            return _run("custom_sampler", guider, model, *three, 4.0, 3.0, "regular")
        inputs = (prompt(""), 1.0) if guider == "PerpNeg" else (0.5, 2.0)
        return guide(_run("perpneg" if guider == "PerpNeg" else "sag", guider, model, *inputs))

    without, expected = (graphs.sample(guided(model)) for model in (graphs.bundle().model, graphs.apply()))
    got = graphs.sample(guided(couple(graphs.apply(), 1)))
    assert graphs.deviation(got, expected, without) < graphs.TOLERANCE


@pytest.mark.parametrize("make", [graphs.apply, noisy])
def test_tiles(make: Callable) -> None:
    """Stacked or one by one."""
    sampling: dict[str, Any] = {"size": (8, 32), "batch": 2}
    without, expected = (
        graphs.sample(graphs.in_tiles(model, 1), **sampling) for model in (graphs.bundle().model, make())
    )
    got = graphs.sample(graphs.in_tiles(make(), 2), **sampling)
    assert graphs.deviation(got, expected, without) < graphs.TOLERANCE


@pytest.mark.parametrize("at_once", [1, 2])
def test_regions_in_tiles_are_refused(at_once: int) -> None:
    left = torch.linspace(1, 0, 8).expand(1, 8, 8)
    model = graphs.apply(graphs.references(region=[left, None]))
    with pytest.raises(ValueError, match="Regions cannot be placed.* tiles"):
        graphs.sample(graphs.in_tiles(model, at_once), size=(8, 32))
    graphs.sample(model)


@pytest.mark.parametrize("kind", ["predict_noise", "calc_cond_batch", "apply_model", "diffusion_model"])
@pytest.mark.parametrize("before", [True, False], ids=["before", "after"])
def test_beside_other_wrappers(kind: str, before: bool) -> None:
    """Other packs' wrappers may pass what they got by name."""
    names = {
        "predict_noise": ("x", "timestep", "model_options", "seed"),
        "calc_cond_batch": ("model", "conds", "x_in", "timestep", "model_options"),
        "apply_model": ("x", "t", "c_concat", "c_crossattn", "control", "transformer_options"),
        "diffusion_model": ("x", "timesteps", "context", "y", "control", "transformer_options"),
    }[kind]

    def wrapper(executor, *args, **kwargs):
        positional = 3 if kind == "calc_cond_batch" else 2
        named = dict(zip(names[positional:], args[positional:], strict=False))
        return executor(*args[:positional], **named, **kwargs)

    def wrapped(model):
        model = model.clone()
        comfy_wrap = importlib.import_module("comfy.patcher_extension").add_wrapper_with_key
        comfy_wrap(kind, "another pack", wrapper, model.model_options, is_model_options=True)
        return model

    if before:
        compare(guide, model=wrapped(graphs.bundle().model), sampling={"steps": 1})
    else:
        compare(lambda model: guide(wrapped(model)), sampling={"steps": 1})
