"""What encodes for FLUX.1's adapters: texts whose words the prompt holds, SigLIP, encoders that lack something."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from mip_adapter.attention.joint import NAMED, naming_tokens

from ..support import tiny_flux
from ..support.golden import relative_error
from ..support.sentences import told
from ..support.tiny_flux import adapter, applied, references


def t5(flux):
    from mip_adapter.patching.object_text import t5_tokens

    def prompt(text):
        return flux.clip.encode_from_tokens(flux.clip.tokenize(text))

    return prompt, lambda text: t5_tokens(flux.clip, text)


def language_model(flux):
    from mip_adapter.patching.object_text import edit_words

    from ..support import tiny_edit

    clip = tiny_edit.clip()
    return lambda text: clip.encode_from_tokens(clip.tokenize(text)), lambda text: edit_words(clip, [text])[0]


def trained(flux):
    """The miniature's CLIP, the only trained text encoder here."""
    from mip_adapter.miniature.comfy_bundle import load
    from mip_adapter.patching.object_text import content_tokens

    _, clip, _, _ = load()
    return lambda text: clip.encode_from_tokens(clip.tokenize(text)), lambda text: content_tokens(clip, text)


@pytest.mark.parametrize("encoder", [t5, language_model, trained])
def test_likeness_tells_named_words_from_others(flux, encoder):
    """`NAMED` lies below all words that a prompt holds, in every encoder that can be had here."""
    prompt, alone = encoder(flux)
    kinds = ("star", "ring", "heart", "cross", "moon", "square", "fish", "leaf")
    named, others = [], []
    for first, second in ((0, 1), (3, 6), (4, 2), (7, 5)):
        cond = prompt(f"a {kinds[first]} beside a {kinds[second]}")
        for i, kind in enumerate(kinds):
            (named if i in (first, second) else others).append(float(naming_tokens(cond, alone(kind))[1]))
    print(
        f"{encoder.__name__}: named {min(named):.2f} to {max(named):.2f}, others {min(others):.2f} to {max(others):.2f}"
    )
    assert min(named) > NAMED and min(named) > max(others)


def test_a_clip_without_t5(flux):
    from ..support import small

    without = SimpleNamespace(**{**vars(flux), "clip": small.clip()})
    told(lambda: applied(without, tiny_flux.xlabs(), references("cat")), "this CLIP has no T5", "DualCLIPLoader")


def changed(clip: Any, change: Callable) -> Any:
    """A CLIP as another pack leaves it."""
    clip = clip.clone()
    encode = clip.encode_from_tokens
    clip.encode_from_tokens = lambda *args, **more: change(encode(*args, **more))
    return clip


def alone_by_t5(flux) -> tuple[Any, Callable]:
    from mip_adapter.patching.object_text import t5_tokens

    return flux.clip, lambda clip: t5_tokens(clip, "red jacket")


def for_kontext(flux) -> tuple[Any, Callable]:
    from mip_adapter.patching.object_text import edit_words

    return flux.clip, lambda clip: edit_words(clip, ["red jacket"])[0]


def in_a_prompt_for_kontext(flux) -> tuple[Any, Callable]:
    from mip_adapter.patching.object_text import edit_words

    return flux.clip, lambda clip: edit_words(clip, ["red jacket"], tiny_flux.PROMPT)[0]


def by_a_language_model(flux) -> tuple[Any, Callable]:
    from mip_adapter.patching.object_text import edit_words

    from ..support import tiny_edit

    return tiny_edit.clip(), lambda clip: edit_words(clip, ["red jacket"])[0]


ENCODERS = [alone_by_t5, for_kontext, in_a_prompt_for_kontext, by_a_language_model]


@pytest.mark.parametrize("encoder", ENCODERS)
def test_an_encoder_of_keys_and_values(flux, encoder):
    """A row for the key and one for the value of each token: the words are those of the encoder itself."""
    clip, words = encoder(flux)
    pairs = changed(clip, lambda rows: rows.repeat_interleave(2, 1))
    assert torch.equal(words(pairs), words(clip))


@pytest.mark.parametrize("encoder", ENCODERS)
@pytest.mark.parametrize("change", [
    lambda rows: torch.stack([rows, -rows], 2).flatten(1, 2), lambda rows: rows.repeat(1, 3, 1),
    lambda rows: rows[:, :1],
], ids=["unequal pairs", "three times", "one row"])  # fmt: skip
def test_an_encoder_of_unknown_rows_is_refused(flux, encoder, change):
    clip, words = encoder(flux)
    told(lambda: words(changed(clip, change)), "of an object text, so nobody can say", "this node the CLIP from before")


def test_siglip_pools_as_transformers(host):
    from mip_adapter.patching.siglip import HEAD, siglip
    from transformers import SiglipVisionConfig, SiglipVisionModel

    torch.manual_seed(0)
    config = SiglipVisionConfig(
        hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, image_size=28, patch_size=14
    )
    theirs = SiglipVisionModel(config).eval()
    inner: Any = getattr(theirs, "vision_model", theirs)  # transformers 4 has one more level than 5
    torch.nn.init.normal_(inner.head.attention.in_proj_bias)
    seen = theirs(torch.randn(3, 3, 28, 28))
    vision = SimpleNamespace(encode_image=lambda image: {"last_hidden_state": seen.last_hidden_state})
    tensors = {f"vision_model.{key}": tensor for key, tensor in inner.state_dict().items()}
    made = siglip(vision, tensors, 4, "siglip").encode_image(None)
    assert relative_error(made["pooled"], seen.pooler_output) < 1e-5
    told(lambda: siglip(vision, {}, 4, "other"), "“other” is no SigLIP", HEAD)


def test_an_encoder_without_the_pooled_embedding(flux):
    from mip_adapter.patching.encode import encode_pictures

    from ..support import small

    picture = torch.rand(1, 28, 28, 3)
    told(lambda: encode_pictures(small.vision(), picture, adapter(tiny_flux.instantx())), "Load SigLIP (MIP)")


def test_every_prompt_is_looked_up_where_nobody_says_which_it_is(host):
    """A run whose calls carry no uuids: the second prompt is not taken for the first."""

    from mip_adapter.patching.joint_patch import ObjectTexts

    class Run: ...

    words = torch.eye(8)
    texts, run = ObjectTexts(("cat",), [words[2:3]]), Run()
    named, other = words[None, [0, 1, 2, 3]], words[None, [4, 5, 6, 7]]
    for prompt in (named, named):
        assert texts.token_indices(prompt, [0], run, None)[0].tolist() == [[2]]
    with pytest.raises(ValueError, match="does not name “cat”"):
        texts.token_indices(other, [0], run, None)
    moved = named.roll(1, 1)
    assert texts.token_indices(moved, [0], run, None)[0].tolist() == [[3]]
