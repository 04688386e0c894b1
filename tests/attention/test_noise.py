"""Noise on the text attention: its numbers, its weights, and what the host makes of it in every way it samples."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from mip_adapter.attention.noise import NoisePlan, NoiseSite, add_noise, normal, random_bits
from mip_adapter.attention.plan import SharedText
from mip_adapter.attention.site import RowGroup
from mip_adapter.weights.sites import cross_attentions, unet_sites

from ..patching.test_chaining import joined, summed
from ..support import graphs
from ..support.direct import attention, object_relevance
from ..support.graphs import OBJECTS, TOLERANCE, bundle, deviation, guide, prompt, references, sample
from ..support.sentences import told

BITS = 2**64 - 1


# ---- the definition, in numpy and Python's whole numbers ----


def splitmix(seed: int, count: int) -> list[int]:
    """The generator as its authors describe it: a state that steps, and a mixing function."""
    out, state = [], seed & BITS
    for _ in range(count):
        state = (state + 0x9E3779B97F4A7C15) & BITS
        z = state
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & BITS
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & BITS
        out.append(z ^ (z >> 31))
    return out


def epsilon(seed: int, number: int, step: int, row: int, count: int) -> np.ndarray:
    """Output `row` of output `step` of output `number` of the seed is the seed of this row's numbers."""
    key = seed
    for index in (number, step, row):
        key = splitmix(key, index + 1)[-1]
    with np.errstate(over="ignore"):  # the same, all at once
        state = np.uint64(key) + np.arange(1, (count + 1) // 2 + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        bits = state ^ (state >> np.uint64(31))
    radius = np.sqrt(-2 * np.log(((bits >> np.uint64(32)).astype(float) + 1) / 2**32))
    angle = 2 * np.pi * (bits & np.uint64(2**32 - 1)).astype(float) / 2**32
    return np.concatenate([radius * np.cos(angle), radius * np.sin(angle)])[:count]


def noisy(q, text, keys, number, heads, *, strength, seed, step, row, target) -> torch.Tensor:
    """One row [N, C] of one site; keys M × [L, C], target None: uniform."""
    weight = np.ones(len(q))
    if target is not None:
        maps = torch.stack([object_relevance(q, k, heads) for k in keys]).numpy()
        share = maps[target] / maps.sum(0)
        weight = share / np.sqrt((share**2).mean())
    numbers = epsilon(seed, number, step, row, q.numel()).reshape(q.shape)
    clean = text.double().numpy()
    return torch.from_numpy(clean + strength * clean.std() * weight[:, None] * numbers)


# ---- the numbers alone ----


@pytest.mark.parametrize("seed", [0, 1, 2**63, BITS, 0x9E3779B97F4A7C15])
def test_the_bits_are_splitmix64(seed: int) -> None:
    signed = seed - 2**64 if seed >= 2**63 else seed
    got = [number & BITS for number in random_bits(torch.tensor(signed), torch.arange(50)).tolist()]
    assert got == splitmix(seed, 50)
    if seed == 0:
        assert got[0] == 0xE220A8397B1DCDAF  # the published test vector


def test_the_numbers_are_normal_and_the_streams_independent() -> None:
    from scipy import stats

    numbers = normal(torch.tensor([3, 4, -5]), 100_001).double().numpy()
    assert numbers.shape == (3, 100_001) and np.isfinite(numbers).all()
    for stream in numbers:
        assert stats.kstest(stream, "norm").pvalue > 1e-3
        for lag in (1, 2, 50_000, 50_001):  # the second half is made of the first half's bits
            assert abs(np.corrcoef(stream[:-lag], stream[lag:])[0, 1]) < 5 / math.sqrt(50_000)
    assert np.abs(np.corrcoef(numbers) - np.eye(3)).max() < 5 / math.sqrt(100_000)
    even, odd = (normal(torch.tensor([7]), count) for count in (10, 9))
    assert even.shape == (1, 10) and odd.shape == (1, 9)


# ---- one site ----

HEADS, WIDTH, CONTEXT, POSITIONS = 3, 24, 10, 35


def one_site(target: int | None, dtype=torch.float32, **choices: Any):
    """Inputs of `add_noise` for two pictures, conditional rows behind unconditional ones."""
    draw = torch.Generator().manual_seed(1)
    q, text = torch.randn(2, 4, POSITIONS, WIDTH, generator=draw)
    texts = [torch.randn(length, CONTEXT, generator=draw) for length in (2, 1, 3)]
    to_k = torch.randn(WIDTH, CONTEXT, generator=draw)
    keyed: tuple = (None, None)
    if target is not None:
        keyed = SharedText(texts, torch.device("cpu"), dtype).for_site(HEADS, WIDTH // HEADS)
    site = NoiseSite(int(random_bits(torch.tensor(11), torch.tensor(5))), HEADS, *keyed)
    plan = NoisePlan(choices.pop("strength", 0.5), target or 0, {})
    parts = choices.pop("parts", [RowGroup(0, 2, False), RowGroup(2, 4, True)])

    def add(rows=slice(None), shown=slice(2), step: int = 3, parts=parts):
        q_, text_ = q[rows].to(dtype), text[rows].to(dtype)
        keys = lambda: keyed[0] @ to_k.T.to(dtype)  # noqa: E731
        pictures = torch.arange(4)[shown]
        return add_noise(text_.clone(), text_, q_, plan, site, parts, pictures, torch.tensor([step]), keys)

    return add, q, text, [each.double() @ to_k.double().T for each in texts]


@pytest.mark.parametrize("target", [None, 0, 2])
def test_a_site_is_the_definition(target: int | None) -> None:
    add, q, text, keys = one_site(target)
    got = add()
    assert torch.equal(got[:2], text[:2])  # unconditional rows stay
    for row in (2, 3):
        expected = noisy(
            q[row].double(), text[row], keys, 5, HEADS, strength=0.5, seed=11, step=3, row=row - 2, target=target
        )
        torch.testing.assert_close(got[row].double(), expected, rtol=1e-5, atol=1e-5)


def test_both_modes_add_the_same_numbers_at_the_same_energy() -> None:
    (uniform, _, text, _), (weighted, *_) = one_site(None), one_site(1)
    a, b = (add()[2:] - text[2:] for add in (uniform, weighted))
    weight = (b / a).median(-1, keepdim=True).values
    torch.testing.assert_close(b, weight * a, rtol=1e-3, atol=1e-5)
    assert (weight > 0).all() and weight.std() > 0.1
    torch.testing.assert_close(weight.square().mean((1, 2)), torch.ones(2), rtol=1e-4, atol=0)
    # The energy itself, over many steps: 0.25 of the variance of Z_text.
    for add in (uniform, weighted):
        energy = torch.stack([(add(step=step)[2:] - text[2:]).square().mean((1, 2)) for step in range(200)]).mean(0)
        torch.testing.assert_close(energy, 0.25 * text[2:].var((1, 2), correction=0), rtol=0.03, atol=0)


def test_noise_belongs_to_the_picture_not_to_the_batch() -> None:
    add, _, text, _ = one_site(1)
    together = add(parts=[RowGroup(0, 4, True)], shown=slice(4))
    for row in range(4):
        one = {"rows": slice(row, row + 1), "parts": [RowGroup(0, 1, True)]}
        alone, known = add(**one, shown=slice(1)), add(**one, shown=slice(row, row + 1))
        same = torch.allclose(alone[0], together[row], atol=1e-6)
        assert same == (row == 0)  # a lone picture is the first of its batch
        torch.testing.assert_close(known[0], together[row])  # in a context window it keeps its number
    # Two conds of the same two pictures in one call, or in two.
    both = add(parts=[RowGroup(0, 4, True)])
    halves = torch.cat([add(rows, parts=[RowGroup(0, 2, True)]) for rows in (slice(0, 2), slice(2, 4))])
    torch.testing.assert_close(both, halves)
    numbers = (both - text) / text.std((1, 2), correction=0, keepdim=True)
    (uniform, *_) = one_site(None)
    plain = (uniform(parts=[RowGroup(0, 4, True)]) - text) / text.std((1, 2), correction=0, keepdim=True)
    torch.testing.assert_close(plain[:2], plain[2:], rtol=1e-4, atol=1e-5)
    assert not torch.allclose(numbers[0], numbers[1], atol=0.1)


def test_step_and_seed_decide() -> None:
    add, *_ = one_site(None)
    assert torch.equal(add(), add())
    assert not torch.allclose(add(step=3), add(step=4), atol=0.1)


@pytest.mark.parametrize("target", [None, 1])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_rounds_and_no_more(target: int | None, dtype: torch.dtype) -> None:
    exact, rounded = (one_site(target, kind)[0]() for kind in (torch.float32, dtype))
    assert rounded.dtype == dtype and rounded.isfinite().all()
    assert (rounded.float() - exact).norm() < 10 * torch.finfo(dtype).eps * exact.norm()


def test_far_from_every_text_the_weights_are_still_numbers() -> None:
    """Relevance so sharp that all of it underflows somewhere."""
    from mip_adapter.attention.noise import relevance_weights

    relevance = torch.full((2, 1, 8), 1e-30)
    relevance[0, 0, 0] = relevance[1, 0, 1] = 1.0
    weights = relevance_weights(relevance, 0)
    assert weights.isfinite().all() and float(weights.square().mean()) == pytest.approx(1)
    assert int(weights.argmax()) == 0 and 0 <= float(weights[0, 1]) < 1e-20


@pytest.mark.parametrize("target", [None, 1])
def test_nothing_waits_for_the_device(target: int | None) -> None:
    """Tensors without data: whoever reads a value on the host fails."""
    from torch._subclasses import FakeTensorMode

    add, *_ = one_site(target)
    with FakeTensorMode(allow_non_fake_inputs=True):
        assert add().shape == (4, POSITIONS, WIDTH)


# ---- in the host ----


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
