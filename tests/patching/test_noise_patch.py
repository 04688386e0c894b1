"""Text noise in every way the host samples, against its definition."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from mip_adapter.weights.sites import cross_attentions, unet_sites

from ..support import graphs
from ..support.direct import attention
from ..support.direct_noise import noisy
from ..support.graphs import OBJECTS, TOLERANCE, bundle, deviation, guide, prompt, references, sample
from ..support.sentences import told
from .test_chaining import joined, summed


def noise(model: Any = None, *, target: str | None = "", strength: float = 0.5, seed: int = 5, start: float = 0.0,
          end: float = 1.0, clip: Any = None, **objects: Any) -> Any:  # fmt: skip
    """MIPTextNoise; target None: uniform."""
    from mip_adapter.nodes.noise import MIPTextNoise

    mode = "uniform" if target is None else "relevance"
    objects = objects or {"references": references()}
    parts = bundle()
    with torch.inference_mode():
        return MIPTextNoise.execute(
            model or parts.model, clip or parts.clip, mode, target or "", strength, seed, start, end, **objects
        ).args[0]  # fmt: skip


class Direct:
    """A replacement for one cross-attention that does what the definition says; branch as in `DirectPatch`."""

    def __init__(self, attention2: Any, number: int, texts: list, branch: Any, choices: dict) -> None:
        self.attention2, self.number, self.texts, self.branch = attention2, number, texts, branch
        self.choices = choices

    def __deepcopy__(self, memo: dict) -> Direct:
        return self

    def __call__(self, q, k, v, options):
        heads, chunks = options["n_heads"], options["cond_or_uncond"]
        rows = len(q) // len(chunks)
        sigma, schedule = float(options["sigmas"][0]), options["sample_sigmas"].tolist()
        step = sum(each > sigma * 1.0001 for each in schedule[:-1])
        keys = [text.double() @ self.attention2.to_k.weight.double().T for text in self.texts]
        out = []
        for row in range(len(q)):
            text = attention(q[row].double(), k[row].double(), v[row].double(), heads)
            if self.branch(chunks[row // rows], options["uuids"][row // rows]):
                place = {"step": step, "row": row % rows}
                text = noisy(q[row].double(), text, keys, self.number, heads, **place, **self.choices)
            out.append(text)
        return torch.stack(out).to(q.dtype)


def noise_directly(target: int | None = 0, *, branch=lambda index, uuid: index == 0, model: Any = None,
                   clip: Any = None, strength: float = 0.5, seed: int = 5) -> Any:  # fmt: skip
    from mip_adapter.patching.object_text import content_tokens

    model = model or bundle().model
    with torch.inference_mode():
        texts = [content_tokens(clip or bundle().clip, text) for text in OBJECTS]
    patched, unet = model.clone(), model.model.diffusion_model
    modules, choices = cross_attentions(unet), {"target": target, "strength": strength, "seed": seed}
    for site in unet_sites(unet):
        patched.set_model_attn2_replace(Direct(modules[site.key], site.number, texts, branch, choices), *site.key)
    return patched


host = pytest.mark.usefixtures("host")


def check(got, expected, **sampling) -> None:
    results = (sample(each, **sampling) for each in (got, expected, bundle().model))
    assert deviation(*results) < TOLERANCE


@host
@pytest.mark.parametrize("target", [None, "", "red coffee cup", "2"])
def test_sampling_is_the_definition(target: str | None) -> None:
    number = {None: None, "": 0}.get(target, 1)
    check(noise(target=target), noise_directly(number), steps=3, batch=2)


@host
@pytest.mark.parametrize("sampler, cfg", [("euler", 1.0), ("dpmpp_2m_sde", 4.0), ("heun", 4.0)])
def test_samplers_and_no_guidance(sampler: str, cfg: float) -> None:
    results = [guide(model, cfg=cfg) for model in (noise(), noise_directly())]
    check(*results, steps=3, sampler=sampler)


@host
@pytest.mark.parametrize("apart", [False, True], ids=["together", "apart"])
def test_areas_and_split_calls(apart: bool, monkeypatch) -> None:
    """Two positives with areas of their own: both get a picture's noise, the negative gets none."""
    import nodes

    halves = (nodes.ConditioningSetArea().append(prompt(text), 64, 128, x, 0, 1.0)[0]
              for x, text in ((0, "a cat"), (64, "a red coffee cup")))  # fmt: skip
    positive = [*halves][0] + prompt("a table")
    if apart:
        graphs.little_memory(monkeypatch)
    check(*(guide(model, positive) for model in (noise(), noise_directly())), batch=2)


@host
@pytest.mark.parametrize("schedule", ["standard_static", "looped_uniform"])
def test_every_picture_keeps_its_noise_in_context_windows(schedule: str) -> None:
    sampled = [noise(), graphs.in_windows(noise(), 4, schedule), bundle().model]
    whole, sliced, without = (sample(model, 5, batch=6, size=(8, 8)) for model in sampled)
    assert deviation(sliced, whole, without) < TOLERANCE


@host
def test_the_negative_of_another_guider_gets_none() -> None:
    """DualCFG evaluates [negative, middle, positive]."""
    from comfy_extras.nodes_custom_sampler import DualCFGGuider

    conds = prompt("a cat beside a cup"), prompt("a photograph"), prompt("blurry")
    models = noise(), noise_directly(branch=lambda index, uuid: index != 0)
    check(*(DualCFGGuider.execute(model, *conds, 4.0, 2.0, "regular").args[0] for model in models))


@host
@pytest.mark.parametrize("head", ["image", "text"])
@pytest.mark.parametrize("order", ["noise first", "noise last"])
def test_beside_apply_in_both_orders(order: str, head: str) -> None:
    """Each adds what it adds alone to the same text attention."""
    choice: dict[str, Any] = {"head": {"gate": head}}
    both = graphs.apply(model=noise(), **choice) if order == "noise first" else noise(graphs.apply(**choice))
    check(both, summed(graphs.apply_directly(**choice), noise_directly()))


@host
@pytest.mark.parametrize("names", ["full", "block"])
def test_beside_another_pack(names: str) -> None:
    around = joined(noise(joined(bundle().model, names, strength=0.5)), names, strength=0.25)
    check(around, summed(noise_directly(), names=names, strength=0.75))


@host
def test_with_a_lora_on_to_k() -> None:
    from ..support import small

    model = small.model()
    weights = {key: value for key, value in model.model.named_parameters() if "attn2.to_k" in key}
    draw = torch.Generator().manual_seed(0)
    change = {key: torch.randn(value.shape, generator=draw) * 0.3 for key, value in weights.items()}
    patched = model.clone()
    patched.add_patches({key: ("diff", (each,)) for key, each in change.items()})
    other = bundle().model.clone()
    other.add_patches({key: ("diff", (each,)) for key, each in change.items()})
    got, expected = (sample(make(model=m)) for make, m in ((noise, patched), (noise_directly, other)))
    assert deviation(got, expected, sample(patched)) < TOLERANCE
    assert deviation(sample(noise()), expected, sample(patched)) > 0.1


@host
def test_in_half_precision() -> None:
    from ..support import small

    half = small.stored_as(torch.float16, None)
    got, without = sample(noise(half)), sample(half)
    assert got.isfinite().all()
    assert deviation(got, sample(noise()), without) < 0.1


@host
def test_strength_zero_and_steps_outside_change_no_bit() -> None:
    plain = sample(bundle().model, 1)
    assert torch.equal(sample(noise(strength=0.0), 1), plain)
    assert torch.equal(sample(noise(start=0.4, end=0.6), 1), plain)
    assert not torch.equal(sample(noise(start=0.0, end=0.6), 1), plain)


@host
def test_the_same_again_and_the_input_untouched() -> None:
    before = sample(bundle().model)
    first = sample(noise())
    assert torch.equal(sample(noise()), first) and torch.equal(sample(noise().clone()), first)
    assert not torch.equal(sample(noise(seed=6)), first) and not torch.equal(sample(noise(target="2")), first)
    assert torch.equal(sample(bundle().model), before)


@host
def test_texts_are_references_without_pictures() -> None:
    written = noise(texts=" cat,\n red coffee cup \n")
    assert torch.equal(sample(written, 1), sample(noise(), 1))
    assert torch.equal(sample(noise(target=None), 1), sample(noise(target=None, texts=""), 1))


@host
def test_bad_input() -> None:
    told(lambda: noise(target="dog"), "dog", "1 “cat”", "2 “red coffee cup”")
    told(lambda: noise(target="3"), "“3”", "2 “red coffee cup”")
    told(lambda: noise(texts="cat"), "only “cat”", "uniform")
    told(lambda: noise(texts=""), "no object", "uniform")
    told(lambda: noise(texts="cat, Cat"), "only “cat”", "uniform")
    told(lambda: noise(texts="", references=references(["cat", "Cat"]), target="cat"), "several", "number")
    told(lambda: noise(texts=",".join("abcdefghijklmnopq")), "17", "16")
    told(lambda: noise(texts="cat, dog", references=references()), "twice")
    told(lambda: noise(strength=-1.0), "strength", "-1.0")
    told(lambda: noise(strength=math.nan), "strength", "nan")
    told(lambda: noise(start=0.8, end=0.2), "start_percent", "0.8")


@host
def test_a_clip_of_another_family() -> None:
    """The small CLIP is 48 wide, the refiner's context is not."""
    from types import SimpleNamespace

    clip = SimpleNamespace(
        tokenize=bundle().clip.tokenize,
        encode_from_tokens=lambda tokens: bundle().clip.encode_from_tokens(tokens)[..., :20],
    )
    told(lambda: noise(clip=clip), "20 values", "48", "CLIP")


@host
def test_a_text_encoder_that_is_no_clip() -> None:
    from types import SimpleNamespace

    told(
        lambda: noise(clip=SimpleNamespace(tokenize=lambda text: {"t5xxl": [[(5, 1.0), (1, 1.0)]]})), "t5xxl", "no CLIP"
    )


@host
def test_a_checkpoint_without_clip() -> None:
    from mip_adapter.patching.noise_patch import apply_text_noise

    told(lambda: apply_text_noise(bundle().model, None, ("cat", "dog")), "The CLIP is missing")
