"""Edit models through the host's real sampler, against the definition with dense masks in float64."""

from __future__ import annotations

import inspect
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from mip_adapter.attention.options import Merge
from mip_adapter.relevance.record import RelevanceRecord

from ..support import graphs, tiny_edit, tiny_flux
from ..support.direct_edit import DirectEdit
from ..support.golden import relative_error
from ..support.sentences import told

SIZE = (8, 12)
PROMPT = "put a cat beside a red jacket"
TEXTS = "cat\nred jacket"
EACH = Merge()


def latents(*sizes: tuple[int, ...], channels: int = tiny_flux.CHANNELS) -> list:
    made = torch.Generator().manual_seed(9)
    return [torch.randn(1, channels, *size, generator=made) for size in sizes]


def with_references(cond: list, references: list, method: str | None = None) -> list:
    import node_helpers

    for each in references:
        cond = node_helpers.conditioning_set_values(cond, {"reference_latents": [each]}, append=True)
    return node_helpers.conditioning_set_values(cond, {"reference_latents_method": method}) if method else cond


def words(clip: Any, text: str, prompt: str = PROMPT) -> list[int]:
    """Where the prompt's T5 tokens are the text's."""

    def ids(what: str) -> list[int]:
        return [token for token, *_ in clip.tokenize(what)["t5xxl"][0]]

    own = ids(text)
    own, prompt_ids = own[: own.index(1)], ids(prompt)
    (start,) = (i for i in range(len(prompt_ids)) if prompt_ids[i : i + len(own)] == own)
    return list(range(start, start + len(own)))


@pytest.fixture(scope="module")
def kontext(host):
    clip = tiny_flux.clip()
    positive = clip.encode_from_tokens_scheduled(clip.tokenize(PROMPT))
    negative = clip.encode_from_tokens_scheduled(clip.tokenize("blurry"))
    where = [words(clip, "cat"), words(clip, "red jacket")]
    return SimpleNamespace(model=tiny_flux.model(), clip=clip, positive=positive, negative=negative, words=where)


def bound(parts, texts=TEXTS, **options):
    from mip_adapter.patching.edit_patch import edit_references

    given = {"strength": 1.5, "apart": True, "merge": EACH, **options}
    return edit_references(given.pop("model", parts.model), parts.clip, texts, **given)


def calls(parts, model, references, *, method=None, cfg=1.0, steps=2, batch=1, size=SIZE, negative=True):
    """(arguments, output) of every call of the model's forward."""
    from comfy.patcher_extension import WrappersMP, add_wrapper_with_key

    seen = []

    def watch(executor, *args, **kwargs):
        out = executor(*args, **kwargs)
        given = dict(inspect.signature(executor.original).bind(*args, **kwargs).arguments)
        given.update(given.pop("kwargs", {}))
        if "timesteps" in given:
            given["timestep"] = given.pop("timesteps")
        seen.append((given, out.clone()))
        return out

    model = model.clone()
    add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, "test", watch, model.model_options, is_model_options=True)
    positive = with_references(parts.positive, references, method)
    negative = with_references(parts.negative, references, method) if negative else parts.negative
    guider = graphs.guide(model, positive, negative, cfg)
    channels = getattr(parts, "channels", (tiny_flux.CHANNELS,))
    graphs.sample(guider, steps, size=size, batch=batch, channels=channels)
    return seen


def tokens(latent, patch: int = 2) -> int:
    return -(-latent.shape[-2] // patch) * -(-latent.shape[-1] // patch)


def check_definition(parts, seen, direct, references, *, size=SIZE, patch: int = 2, tolerance: float = 1e-5):
    picture = -(-size[0] // patch) * -(-size[1] // patch)
    for given, out in seen:
        marks = given["transformer_options"]["cond_or_uncond"]
        each = len(given["x"]) // len(marks)
        conditional = [mark == 0 for mark in marks for _ in range(each)]
        counts = [tokens(one, patch) for one in references]
        expected = direct(given, conditional, picture, counts)
        assert relative_error(out, expected) < tolerance


SIZES = {1: [(8, 8)], 2: [(6, 10), (9, 7)], 3: [(6, 10), (4, 4), (12, 6)], 4: [(6, 10), (4, 4), (12, 6), (7, 9)]}


@pytest.mark.parametrize("method", ["offset", "index", "uxo"])
@pytest.mark.parametrize("count", SIZES)
def test_kontext_is_the_definition(kontext, method, count):
    """1 to 4 references of different sizes, both branches of guidance, two pictures at once."""
    references = latents(*SIZES[count])
    texts, owners = {
        1: ("cat", [0]), 2: (TEXTS, [0, 1]), 3: ("red jacket\n-\ncat", [1, None, 0]),
        4: ("cat\nred jacket\ncat\n-", [0, 1, 0, None]),
    }[count]  # fmt: skip
    named = [kontext.words[i] for i in ([0] if count == 1 else [0, 1])]
    if count == 3:
        named, owners = named[::-1], [0, None, 1]
    seen = calls(kontext, bound(kontext, texts), references, method=method, cfg=3.0, batch=2, steps=1)
    direct = DirectEdit(kontext.model.model.diffusion_model, named, owners, 1.5, apart=True)
    check_definition(kontext, seen, direct, references)
    if count > 1:
        plain = calls(kontext, kontext.model, references, method=method, cfg=3.0, batch=2, steps=1)
        assert all(relative_error(a[1], b[1]) > 1e-3 for a, b in zip(seen, plain, strict=True))


@pytest.fixture(scope="module")
def language(host):
    """Prompts of a language model."""
    clip = tiny_edit.clip()
    positive = clip.encode_from_tokens_scheduled(clip.tokenize(PROMPT))
    negative = clip.encode_from_tokens_scheduled(clip.tokenize("blurry"))
    ids = [token for token, *_ in clip.tokenize(PROMPT)["qwen25_7b"][0]]

    def where(text: str) -> list[int]:
        """From the end, since the system prompt is cut off."""
        own = clip.tokenizer.qwen25_7b.tokenizer(f" {text}")["input_ids"]
        (start,) = (i for i in range(len(ids)) if ids[i : i + len(own)] == own)
        return list(range(start - len(ids), start - len(ids) + len(own)))

    words = [where("cat"), where("red jacket")]
    return SimpleNamespace(clip=clip, positive=positive, negative=negative, words=words)


@pytest.mark.parametrize("method", ["offset", "index"])
@pytest.mark.parametrize("kind", ["qwen", "flux2"])
def test_other_edit_models_are_the_definition(language, kind, method):
    """Qwen-Image-Edit, with the host's tokenizer and system prompt; FLUX.2, whose prompts are filled up with zeros."""
    model = {"qwen": tiny_edit.qwen, "flux2": tiny_edit.flux2}[kind]()
    parts = SimpleNamespace(**vars(language), model=model, channels=(16, 1) if kind == "qwen" else (128,))
    if kind == "qwen":
        sizes, patch, size = [(1, 6, 10), (1, 9, 7), (1, 4, 4)], 2, SIZE
    else:
        sizes, patch, size = [(3, 5), (5, 4), (2, 2)], 1, (4, 6)
    references = latents(*sizes, channels=16 if kind == "qwen" else 128)
    texts, owners = "cat\nred jacket\n-", [0, 1, None]
    # Among FLUX.2's 512 tokens of text the references of a small random model weigh little.
    tolerance, effect = (1e-5, 1e-3) if kind == "qwen" else (3e-6, 5e-5)
    for batch, cfg in ((2, 3.0), (1, 1.0)):
        seen = calls(parts, bound(parts, texts), references, method=method, cfg=cfg, steps=1, size=size, batch=batch)
        words = [[i + _prompt_length(seen) for i in each] for each in language.words]
        direct = DirectEdit(model.model.diffusion_model, words, owners, 1.5, apart=True)
        check_definition(parts, seen, direct, references, size=size, patch=patch, tolerance=tolerance)
        (_, plain), *_ = calls(parts, model, references, method=method, cfg=cfg, steps=1, size=size, batch=batch)
        assert relative_error(seen[0][1], plain) > effect
    record = RelevanceRecord(("cat", "red jacket"))
    calls(parts, bound(parts, texts, record=record, merge=None), references, cfg=3.0, steps=2, size=size)
    assert record.shares().shape == (2, 1, size[0] // patch, size[1] // patch)


def _prompt_length(seen) -> int:
    """Of the prompt; the negative one may be evaluated apart, and be shorter."""
    return next(given["context"].shape[1] for given, _ in seen if 0 in given["transformer_options"]["cond_or_uncond"])


def test_references_that_see_each_other(kontext):
    references = latents(*SIZES[2])
    seen = calls(kontext, bound(kontext, apart=False, merge=Merge(sharpness=3.0)), references, steps=1)
    direct = DirectEdit(kontext.model.model.diffusion_model, kontext.words, [0, 1], 1.5, apart=False, sharpness=3.0)
    check_definition(kontext, seen, direct, references)


def test_strength_0_and_the_parent_are_untouched(kontext):
    references = latents(*SIZES[2])
    before = calls(kontext, kontext.model, references, cfg=3.0)
    with_bias = bound(kontext)
    for model in (kontext.model, bound(kontext, strength=0.0)):
        for (_, old), (_, new) in zip(before, calls(kontext, model, references, cfg=3.0), strict=True):
            assert torch.equal(old, new)
    assert not torch.equal(before[0][1], calls(kontext, with_bias, references, cfg=3.0)[0][1])


def test_it_acts_in_its_part_of_the_sampling(kontext):
    references = latents(*SIZES[2])
    before = calls(kontext, kontext.model, references, steps=4)
    late = calls(kontext, bound(kontext, start_percent=0.5), references, steps=4)
    assert torch.equal(before[0][1], late[0][1]) and not torch.equal(before[-1][1], late[-1][1])


def test_a_negative_without_references(kontext):
    """The host then evaluates the two prompts one after the other."""
    references = latents(*SIZES[2])
    seen = calls(kontext, bound(kontext), references, cfg=3.0, steps=1, negative=False)
    assert len(seen) == 2
    plain = calls(kontext, kontext.model, references, cfg=3.0, steps=1, negative=False)
    by_branch = {given["transformer_options"]["cond_or_uncond"][0]: out for given, out in seen}
    for given, out in plain:
        branch = given["transformer_options"]["cond_or_uncond"][0]
        assert torch.equal(by_branch[branch], out) == (branch == 1)


def test_the_prompt_itself_finds_the_words(kontext):
    references = latents(*SIZES[2])
    found = calls(kontext, bound(kontext, prompt=PROMPT), references, steps=1)
    alone = calls(kontext, bound(kontext), references, steps=1)
    assert torch.equal(found[0][1], alone[0][1])  # the same words, however they were found
    told(lambda: bound(kontext, "dog\nred jacket", prompt=PROMPT), "The prompt does not name “dog”", "Write the object")


def test_maps_are_recorded_and_frozen(kontext):
    references = latents(*SIZES[2])
    record = RelevanceRecord(("cat", "red jacket"))
    positive = with_references(kontext.positive, references)
    guider = graphs.guide(bound(kontext, record=record), positive, kontext.negative, 3.0)
    latent = graphs.sample(guider, 2, size=SIZE, batch=2)
    shares = record.shares()
    assert shares.shape == (2, 2, SIZE[0] // 2, SIZE[1] // 2) and not record.patches_lost
    assert torch.allclose(shares.sum(0), torch.ones_like(shares[0]), atol=1e-5) and float(shares.std()) > 1e-3
    maps = record.for_latent(latent)
    again, plain = (
        calls(kontext, model, references, cfg=3.0, batch=2)
        for model in (bound(kontext, frozen=maps), bound(kontext, apart=False, strength=0.0))
    )
    assert not torch.equal(again[0][1], plain[0][1])
    told(lambda: bound(kontext, "cat\ndog", frozen=maps), "The frozen maps are of cat, red jacket")


def test_the_pool_is_one_relevance_for_all_blocks(kontext):
    by_turn = []

    class Record(RelevanceRecord):
        def add(self, run, turn, step, steps, observations):
            by_turn.append([each.shares for each in observations])

    references = latents(*SIZES[2])
    record = Record(("cat", "red jacket"))
    calls(kontext, bound(kontext, merge=None, record=record), references, steps=3)
    assert [len(turn) for turn in by_turn] == [tiny_flux.DOUBLE + tiny_flux.SINGLE] * 3
    first, *later = by_turn
    assert not all(torch.equal(first[0], each) for each in first)
    assert all(torch.equal(turn[0], each) for turn in later for each in turn)


def test_words_are_looked_up_once_in_a_run(kontext, monkeypatch):
    from mip_adapter.patching import joint_patch

    looked = []
    own = joint_patch.naming_tokens
    monkeypatch.setattr(joint_patch, "naming_tokens", lambda *given: looked.append(1) or own(*given))
    calls(kontext, bound(kontext), latents(*SIZES[2]), cfg=3.0, steps=4)
    assert len(looked) == 2  # for each object


def test_another_packs_attention(kontext, caplog):
    """One that knows any width acts; one that refuses ours is left out, and said so."""
    widths = []

    def any_width(function, q, *args, **more):
        widths.append(q.shape[-1])
        return function(q, *args, **more)

    def narrow(function, q, *args, **more):
        if q.shape[-1] > tiny_flux.WIDTH // tiny_flux.HEADS:
            raise ValueError(f"Unsupported head_dim: {q.shape[-1]}")
        return function(q, *args, **more)

    references = latents(*SIZES[2])
    expected = calls(kontext, bound(kontext), references, steps=1)
    for attention in (any_width, narrow):
        model = kontext.model.clone()
        model.model_options["transformer_options"]["optimized_attention_override"] = attention
        got = calls(kontext, bound(kontext, model=model), references, steps=1)
        assert torch.equal(got[0][1], expected[0][1])
    assert set(widths) == {tiny_flux.WIDTH // tiny_flux.HEADS + 8}
    assert "refused heads of 24 channels" in caplog.text


def test_another_pack_took_the_slot_after_it(kontext, caplog):
    """A block replacement that runs its own attention: the record says that nothing acted there."""
    import comfy.ldm.modules.attention

    def own_attention(args, extra):
        def attention(function, *given, **more):
            return function(*given, **more)

        options = {**args["transformer_options"], "optimized_attention_override": attention}
        return extra["original_block"]({**args, "transformer_options": options})

    assert comfy.ldm.modules.attention.optimized_attention is not None
    model = bound(kontext, record=(record := RelevanceRecord(("cat", "red jacket"))))
    for kind, count in (("double_block", tiny_flux.DOUBLE), ("single_block", tiny_flux.SINGLE)):
        for index in range(count):
            model.set_model_patch_replace(own_attention, "dit", kind, index)
    calls(kontext, model, latents(*SIZES[2]), steps=1)
    assert "Another pack replaced the patches of MIP Edit References, so" in record.patches_lost
    assert f"cat, red jacket: {record.patches_lost}" in caplog.text


def test_nothing_is_said_of_patches_that_rest(kontext, caplog):
    record = RelevanceRecord(("cat", "red jacket"))
    model = bound(kontext, record=record, start_percent=1.0, end_percent=1.0)
    calls(kontext, model, latents(*SIZES[2]), steps=1)
    assert not record.patches_lost and "replaced" not in caplog.text
    assert "no reference acted in this sampling" in record.absent()


def test_strength_0_is_said_of_this_node(kontext):
    bound(kontext, record=(record := RelevanceRecord(("cat", "red jacket"))), strength=0.0)
    assert "strength is 0 in MIP Edit References, so the objects' references are switched off" in record.absent()


def test_bad_input(kontext):
    from ..support import small

    two = latents(*SIZES[2])
    told(lambda: calls(kontext, bound(kontext), []), "no reference latents", "ReferenceLatent")
    told(lambda: calls(kontext, bound(kontext), two[:1]), "texts for 2 references", "has 1 reference latent")
    told(lambda: bound(kontext, "-\n\n"), "No object is named", "one line for each")
    told(lambda: bound(kontext, "\n".join(f"cat {i}" for i in range(17))), "17 objects", "at most 64 references of 16")
    told(lambda: bound(kontext, "cat\n" * 65), "65 texts for 1 objects")
    told(lambda: bound(kontext, strength=float("nan")), "strength is nan")
    told(lambda: bound(kontext, merge=Merge("concat")), "strategy is concat")
    told(lambda: bound(kontext, model=bound(kontext)), "another MIP Edit References")
    told(lambda: bound(kontext, model=small.model()), "no edit model", "Kontext")
    told(lambda: bound(SimpleNamespace(model=kontext.model, clip=None)), "CLIP is missing")
    prompt, more = kontext.positive[0]
    strange = torch.randn(1, 20, tiny_flux.TEXT, generator=torch.Generator().manual_seed(1))
    lost = SimpleNamespace(**{**vars(kontext), "positive": [[strange, more]]})
    told(lambda: calls(lost, bound(kontext), two), "The prompt does not name “", "or connect the prompt to MIP Edit")


def test_a_quantised_model_that_another_pack_wraps(kontext):
    class NunchakuFlux(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.model = torch.nn.Linear(1, 1)

    model = kontext.model.clone()
    model.model = SimpleNamespace(diffusion_model=NunchakuFlux())
    told(lambda: bound(kontext, model=model), "NunchakuFlux", "attention of their own")


def test_an_adapter_beside_it(kontext):
    """MIP Apply before and after: both act, in either order alike."""
    flux = SimpleNamespace(**vars(kontext), source=None)
    two, chain = latents(*SIZES[2]), tiny_flux.references("cat", "red jacket")
    before = bound(kontext, model=tiny_flux.applied(flux, tiny_flux.instantx(), chain))
    after = tiny_flux.applied(flux, tiny_flux.instantx(), chain, model=bound(kontext))
    (_, both), *_ = calls(kontext, before, two, steps=1)
    assert relative_error(calls(kontext, after, two, steps=1)[0][1], both) < 1e-6
    for alone in (bound(kontext), tiny_flux.applied(flux, tiny_flux.instantx(), chain)):
        assert relative_error(calls(kontext, alone, two, steps=1)[0][1], both) > 1e-3


def test_a_cache_of_the_references_keys(language):
    """Later steps have no queries of the references. Newer hosts have such a cache."""
    import comfy_extras.nodes_flux as host

    if not hasattr(host, "FluxKVCache"):
        pytest.skip("this host has no cache of the references' keys")
    model = tiny_edit.flux2()
    parts = SimpleNamespace(**vars(language), model=model, channels=(128,))
    references, size = latents((3, 5), (5, 4), channels=128), (4, 6)
    cached, other = (host.FluxKVCache.execute(model).args[0] for _ in range(2))
    seen = calls(parts, bound(parts, model=cached), references, method="index_timestep_zero", steps=3, size=size)
    words = [[i + _prompt_length(seen) for i in each] for each in language.words]
    direct = DirectEdit(model.model.diffusion_model, words, [0, 1], 1.5, apart=True)
    for given, _ in seen:
        patches = other.model_options["transformer_options"]["patches"]
        given["transformer_options"] = {**given["transformer_options"], "patches": patches}
    check_definition(parts, seen, direct, references, size=size, patch=1)


def test_a_prompt_that_is_filled_up(language):
    """A mask says which of Qwen's tokens only fill the prompt up. Newer hosts heed it; the bias stands beside it."""
    import comfy.ldm.qwen_image.model as host

    if "attn_mask" not in inspect.getsource(host.Attention.forward):
        pytest.skip("this host does not heed the mask")
    model, references = tiny_edit.qwen(), latents((1, 6, 10), (1, 9, 7), channels=16)
    (cond, more), *_ = language.positive
    words = [[i + cond.shape[1] for i in each] for each in language.words]
    direct = DirectEdit(model.model.diffusion_model, words, [0, 1], 1.5, apart=True)
    outputs = []
    for seed in (1, 2):
        filling = torch.randn(1, 5, tiny_edit.TEXT, generator=torch.Generator().manual_seed(seed))
        mask = torch.tensor([[1] * cond.shape[1] + [0] * 5])
        filled = [[torch.cat([cond, filling], 1), {**more, "attention_mask": mask}]]
        parts = SimpleNamespace(**{**vars(language), "positive": filled}, model=model, channels=(16, 1))
        seen = calls(parts, bound(parts), references, steps=1)
        check_definition(parts, seen, direct, references)
        outputs.append(seen[0][1])
    assert relative_error(*outputs) < 1e-6
