"""FLUX.1 through the host's real sampler: against diffusers' own path, and against the definition in float64."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from mip_adapter.attention.options import Merge
from mip_adapter.attention.reference import make_style
from mip_adapter.relevance.record import RelevanceRecord
from mip_adapter.weights.layout import flat_keys

from ..support import graphs, tiny_flux
from ..support.direct_flux import DirectFlux
from ..support.golden import relative_error
from ..support.sentences import told
from ..support.tiny_flux import PROMPT, Vision, applied, references

SIZE = (8, 12)  # of the latent: 4 × 6 positions


def predictions(flux, model, cfg: float = 1.0, steps: int = 2, batch: int = 1, positive=None, size=SIZE):
    """(x, sigma, velocity) of every call of the model, as the host's sampler makes them."""
    seen = []

    def watch(apply_model, args):
        denoised = apply_model(args["input"], args["timestep"], **args["c"])
        sigma = args["timestep"].view(-1, 1, 1, 1)
        seen.append((args["input"], args["timestep"], (args["input"] - denoised) / sigma, args["cond_or_uncond"]))
        return denoised

    model = model.clone()
    model.set_model_unet_function_wrapper(watch)
    guider = graphs.guide(model, positive or flux.positive, flux.negative, cfg)
    graphs.sample(guider, steps, size=size, batch=batch)
    return seen


def packed(flux, x, sigma, cond) -> dict:
    """The arguments of diffusers' transformer for a latent [B, C, h, w]."""
    rows, _, height, width = x.shape
    flat = x.unflatten(2, (-1, 2)).unflatten(4, (-1, 2)).permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)
    ids = torch.zeros(height // 2, width // 2, 3)
    ids[..., 1], ids[..., 2] = torch.arange(height // 2)[:, None], torch.arange(width // 2)[None]
    text, pooled = cond[0][0], cond[0][1]["pooled_output"]
    return {
        "hidden_states": flat, "encoder_hidden_states": text.expand(rows, -1, -1), "timestep": sigma,
        "pooled_projections": pooled.expand(rows, -1), "img_ids": ids.flatten(0, 1),
        "txt_ids": torch.zeros(text.shape[1], 3), "guidance": torch.full((rows,), 3.5),
    }  # fmt: skip


def unpacked(out, height: int = SIZE[0], width: int = SIZE[1]):
    grid = out.unflatten(1, (height // 2, width // 2)).unflatten(3, (-1, 2, 2))
    return grid.permute(0, 3, 1, 4, 2, 5).flatten(4).flatten(2, 3)


def diffusers_prediction(flux, x, sigma, cond=None, embeds=None):
    """The velocity by diffusers' transformer, with its IP-Adapter if there are image embeddings [1, E]."""
    more = {} if embeds is None else {"joint_attention_kwargs": {"ip_adapter_image_embeds": [embeds.unsqueeze(1)]}}
    with torch.inference_mode():
        return unpacked(flux.source(**packed(flux, x, sigma, cond or flux.positive), return_dict=False, **more)[0])


def test_the_tiny_model_is_diffusers(flux):
    for x, sigma, velocity, _ in predictions(flux, flux.model):
        assert relative_error(velocity, diffusers_prediction(flux, x, sigma)) < 1e-4


def test_one_reference_is_diffusers_ip_adapter(flux):
    tensors = tiny_flux.xlabs()
    got = predictions(flux, applied(flux, tensors, references("cat")))
    source = flux.source
    before = dict(source.attn_processors)
    try:
        nested = {"image_proj": {}, "ip_adapter": {}}
        for key, tensor in flat_keys(tensors, "a").items():
            part, rest = key.split(".", 1)
            nested[part][rest] = tensor
        from diffusers.loaders.transformer_flux import FluxTransformer2DLoadersMixin as Loader

        Loader._load_ip_adapter_weights(source, [nested], low_cpu_mem_usage=False)
        for processor in source.attn_processors.values():
            if hasattr(processor, "scale"):
                processor.scale = [0.8]
        embeds = Vision().encode_image(references("cat")[0].batches[0][0])["image_embeds"]
        for x, sigma, velocity, _ in got:
            assert relative_error(velocity, diffusers_prediction(flux, x, sigma, embeds=embeds)) < 1e-4
            plain = diffusers_prediction(flux, x, sigma, embeds=torch.zeros_like(embeds))
            assert relative_error(velocity, plain) > 1e-3
    finally:
        source.set_attn_processor(before)
        source.encoder_hid_proj = None


def words(flux, text: str) -> list[int]:
    """Where the prompt's T5 tokens are the text's."""

    def ids(what: str) -> list[int]:
        return [token for token, *_ in flux.clip.tokenize(what)["t5xxl"][0]]

    own = ids(text)
    own, prompt = own[: own.index(1)], ids(PROMPT)
    (start,) = (i for i in range(len(prompt)) if prompt[i : i + len(own)] == own)
    return list(range(start, start + len(own)))


def embeds(chain):
    return [Vision().encode_image(each.batches[0][0])["image_embeds"] for each in chain]


KINDS = {"xlabs": tiny_flux.xlabs, "instantx": tiny_flux.instantx}


@pytest.mark.parametrize("merge", ["relevance", "uniform", "sum", "concat"])
@pytest.mark.parametrize("kind", KINDS)
def test_several_references_are_the_definition(flux, kind, merge):
    """Both branches of guidance, two pictures at once."""
    tensors = KINDS[kind]()
    chain = references("cat", "red jacket")
    model = applied(flux, tensors, chain, merge=Merge(merge))
    flat = flat_keys(tensors, "a")
    where = [words(flux, "cat"), words(flux, "red jacket")]
    length = flux.positive[0][0].shape[1]
    by_branch = {}
    for branch, given in ((0, embeds(chain)), (1, None)):
        by_branch[branch] = DirectFlux(flux.source, flat, given, where, kind, merge=merge)
        by_branch[branch].transformer.text_length = length
    for x, sigma, velocity, branches in predictions(flux, model, cfg=3.0, batch=2):
        for i, branch in enumerate(branches):
            rows = slice(2 * i, 2 * i + 2)
            cond = flux.positive if branch == 0 else flux.negative
            expected = by_branch[branch](**packed(flux, x[rows], sigma[rows], cond))
            assert relative_error(velocity[rows], unpacked(expected)) < 1e-4
            assert relative_error(diffusers_prediction(flux, x[rows], sigma[rows], cond), unpacked(expected)) > 1e-3


def test_the_parent_and_scale_0_are_untouched(flux):
    tensors, chain = tiny_flux.xlabs(), references("cat", "red jacket")
    before = predictions(flux, flux.model)
    with_references = applied(flux, tensors, chain)
    for model in (flux.model, applied(flux, tensors, chain, scale=0.0)):
        for old, new in zip(before, predictions(flux, model), strict=True):
            assert torch.equal(old[2], new[2])
    assert not torch.equal(before[0][2], predictions(flux, with_references)[0][2])


def test_maps_are_recorded_at_the_pictures_positions(flux):
    record = RelevanceRecord(("cat", "red jacket"))
    model = applied(flux, tiny_flux.instantx(), references("cat", "red jacket"), record=record)
    predictions(flux, model, cfg=3.0, batch=2)
    shares = record.shares()
    assert shares.shape == (2, 2, SIZE[0] // 2, SIZE[1] // 2)
    assert torch.allclose(shares.sum(0), torch.ones_like(shares[0]), atol=1e-5)
    assert float(shares.std()) > 1e-3


def test_odd_sizes_are_padded_by_the_host(flux):
    record = RelevanceRecord(("cat", "red jacket"))
    model = applied(flux, tiny_flux.xlabs(), references("cat", "red jacket"), record=record)
    predictions(flux, model, size=(7, 9))
    assert record.shares().shape == (2, 1, 4, 5)


def test_a_region_confines_an_object(flux):
    left = torch.zeros(1, 4, 6)
    left[..., :3] = 1
    chain = references("cat", "red jacket", region=left)
    record = RelevanceRecord(("cat", "red jacket"))
    predictions(flux, applied(flux, tiny_flux.xlabs(), chain, record=record))
    shares = record.shares()[:, 0]
    assert float(shares[..., 3:].abs().max()) == 0 and float(shares[..., :3].sum(0).min()) > 0.99


def test_other_patches_in_the_same_slots_still_act(flux):
    """A block replacement and an attention of another pack, put there before."""
    seen = []

    def around(args, extra):
        seen.append("block")
        return extra["original_block"](args)

    def attention(function, *args, **more):
        seen.append("attention")
        return function(*args, **more)

    other = flux.model.clone()
    other.set_model_patch_replace(around, "dit", "double_block", 0)
    other.model_options["transformer_options"]["optimized_attention_override"] = attention
    tensors, chain = tiny_flux.xlabs(), references("cat", "red jacket")
    got = predictions(flux, applied(flux, tensors, chain, model=other), steps=1)
    blocks = tiny_flux.DOUBLE + tiny_flux.SINGLE
    assert seen.count("block") == 1 and seen.count("attention") == blocks
    expected = predictions(flux, applied(flux, tensors, chain), steps=1)
    assert torch.equal(got[0][2], expected[0][2])


def test_two_adapters_in_a_row_both_act(flux):
    first, second = references("cat", "red jacket"), references("cat", "red jacket")[::-1]
    twice = applied(flux, tiny_flux.instantx(), second, applied(flux, tiny_flux.xlabs(), first), scale=0.3)
    alone = [applied(flux, tiny_flux.xlabs(), first), applied(flux, tiny_flux.instantx(), second, scale=0.3)]
    both = predictions(flux, twice, steps=1)[0][2]
    assert all(relative_error(predictions(flux, each, steps=1)[0][2], both) > 1e-3 for each in alone)


def test_a_prompt_without_the_words(flux):
    """A prompt whose tokens are like none of the object's."""
    model = applied(flux, tiny_flux.xlabs(), references("cat", "zeppelin"))
    cond, more = flux.positive[0]
    length = len(words(flux, "cat")) + 6
    like_cat = torch.cat([cond[:, :length], torch.randn(1, 20, tiny_flux.TEXT)], 1)
    told(
        lambda: predictions(flux, model, positive=[[like_cat, more]]),
        "The prompt does not name “zeppelin”", "Write the object text",
    )  # fmt: skip


def test_an_adapter_of_another_kind_of_model(flux):
    from ..support import small

    base = small.base_adapter(small.model(), "base")
    told(lambda: graphs.apply(references("cat"), model=flux.model, clip=flux.clip, adapter=base), "is an adapter for")
    told(lambda: applied(flux, tiny_flux.xlabs(), references("cat"), model=small.model()), "is an adapter for")


def test_a_quantised_model_that_another_pack_wraps(flux):
    class NunchakuFlux(torch.nn.Module):
        pass

    model = flux.model.clone()
    model.model = SimpleNamespace(diffusion_model=NunchakuFlux())
    told(
        lambda: applied(flux, tiny_flux.xlabs(), references("cat"), model=model),
        "NunchakuFlux", "attention of their own",
    )  # fmt: skip


def test_the_pool_is_one_relevance_for_all_blocks(flux):
    """After the first turn all blocks read the same shares. The order of the references makes no difference."""
    by_turn: list[list[torch.Tensor]] = []

    class Record(RelevanceRecord):
        def add(self, run, turn, step, steps, observations):
            by_turn.append([each.shares for each in observations])

    merge = Merge(measure="pool", sharpness=2.0)
    tensors, names = tiny_flux.instantx(), ("cat", "red jacket")
    chain = references(*names)
    got = predictions(flux, applied(flux, tensors, chain, merge=merge, record=Record(names)), steps=3)
    assert [len(turn) for turn in by_turn] == [tiny_flux.DOUBLE + tiny_flux.SINGLE] * 3
    first, *later = by_turn
    assert not all(torch.equal(first[0], each) for each in first)
    assert all(torch.equal(turn[0], each) for turn in later for each in turn)
    turned = applied(flux, tensors, chain[::-1], merge=merge)
    for one, other in zip(got, predictions(flux, turned, steps=3), strict=True):
        # Weights magnify the rounding of the agreement, at most 1/√MIN_WEIGHT ≈ 300 times, where it is that root.
        assert relative_error(other[2], one[2]) < 1e-4


def only_at(direct: DirectFlux, number: int) -> DirectFlux:
    """The definition at one block; the others are as without an adapter."""
    from diffusers.models.transformers.transformer_flux import FluxAttnProcessor

    blocks = [*direct.transformer.transformer_blocks, *direct.transformer.single_transformer_blocks]
    for i, block in enumerate(blocks):
        if i != number:
            block.attn.processor = FluxAttnProcessor()
    return direct


def test_strength_by_block(flux):
    from mip_adapter.attention.block_strength import make_block_strength
    from mip_adapter.weights.sites import model_sites

    sites = model_sites(flux.model.model.diffusion_model)
    assert make_block_strength(sites).strengths == dict.fromkeys([each.key for each in sites], 1.0)
    blocks = make_block_strength(sites, numbers="2:0.5")  # the first single block
    tensors = tiny_flux.instantx()
    chain = references("cat", "red jacket", blocks=blocks)
    given = [words(flux, "cat"), words(flux, "red jacket")]
    direct = DirectFlux(flux.source, flat_keys(tensors, "a"), embeds(chain), given, "instantx", scale=0.4)
    direct.transformer.text_length = flux.positive[0][0].shape[1]
    only_at(direct, tiny_flux.DOUBLE)
    for x, sigma, velocity, _ in predictions(flux, applied(flux, tensors, chain)):
        expected = unpacked(direct(**packed(flux, x, sigma, flux.positive)))
        assert relative_error(velocity, expected) < 1e-4
        assert relative_error(diffusers_prediction(flux, x, sigma), expected) > 1e-3
    told(lambda: make_block_strength(sites, "style"), "others: double 0–1, single 0–1", "Choose the preset “all”")
    told(lambda: make_block_strength(sites, numbers="1 1 1"), "too few block strengths", "double 0–1, single 0–1")


def test_a_style_beside_an_object(flux):
    """Outside the shares: both at full strength. A preset by role is known for no block of FLUX."""
    tensors, picture = tiny_flux.xlabs(), torch.eye(3)[1].expand(1, 8, 8, 3).clone()
    chain = (*references("cat"), make_style(picture, "ink", preset="all"))
    alike = references("cat", "red jacket")  # of the same pictures
    given = [words(flux, "cat"), words(flux, "red jacket")]
    direct = DirectFlux(flux.source, flat_keys(tensors, "a"), embeds(alike), given, "xlabs", merge="sum")
    direct.transformer.text_length = flux.positive[0][0].shape[1]
    for x, sigma, velocity, _ in predictions(flux, applied(flux, tensors, chain)):
        expected = unpacked(direct(**packed(flux, x, sigma, flux.positive)))
        assert relative_error(velocity, expected) < 1e-4
    role = (*references("cat"), make_style(picture, "ink"))
    told(lambda: applied(flux, tensors, role), "The preset “style” is known for the blocks of SDXL and SD1.5", "“all”")
