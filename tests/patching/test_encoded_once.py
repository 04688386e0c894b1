"""MIPApply encodes a reference once for an adapter and its encoders, and keeps nothing that its user let go of."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import pytest
import torch

from ..support import graphs
from ..support.graphs import bundle, references

pytestmark = pytest.mark.usefixtures("host")


class Counted:
    """An encoder of the host that counts what it is asked for."""

    ASKED = ("encode_image", "model", "encode_from_tokens")

    def __init__(self, encoder: Any) -> None:
        self.encoder, self.asked = encoder, 0

    def __getattr__(self, name: str) -> Any:
        self.asked += name in self.ASKED
        return getattr(self.encoder, name)


def apply(chain: tuple, clip: Any, vision: Any, family: str = "plus", **inputs: Any) -> Any:
    from mip_adapter.nodes.apply import MIPApply

    parts = bundle()
    inputs = {"scale": 1.0, "start_percent": 0.0, "end_percent": 1.0, **inputs}
    with torch.inference_mode():
        return MIPApply.execute(parts.model, clip, vision, parts.adapters[family], chain, **inputs).args[0]


def test_another_scale_range_or_merge_encodes_nothing() -> None:
    from mip_adapter.attention.options import Merge

    chain, clip, vision = references(), Counted(bundle().clip), Counted(bundle().vision)
    first = apply(chain, clip, vision)
    assert (clip.asked, vision.asked) == (2, 3)  # two texts; two pictures and the unconditional branch's none
    apply(chain, clip, vision, scale=0.5)
    apply(chain, clip, vision, start_percent=0.2, end_percent=0.9, merge=Merge("uniform"))
    again = apply(chain, clip, vision)
    assert (clip.asked, vision.asked) == (2, 3)
    assert torch.equal(graphs.sample(first, 1), graphs.sample(again, 1))


def test_an_interrupt_between_the_pictures_and_the_unconditional_branch(monkeypatch) -> None:
    """The pictures are remembered, and meanwhile the host offloads the encoder: it is loaded again."""
    import comfy.model_management as management
    from mip_adapter.patching import encode

    def interrupted(*_):
        raise management.InterruptProcessingException

    chain, clip, vision = references(), bundle().clip, Counted(bundle().vision)
    with monkeypatch.context() as patch, pytest.raises(management.InterruptProcessingException):
        patch.setattr(encode, "null_features", interrupted)
        apply(chain, clip, vision)
    management.unload_all_models()
    loaded = []
    handle = bundle().vision.model.register_forward_pre_hook(
        lambda *_: loaded.append(bundle().vision.patcher in management.loaded_models())
    )
    apply(chain, clip, vision)
    handle.remove()
    assert loaded == [True]


def test_scale_0_encodes_nothing() -> None:
    clip, vision = Counted(bundle().clip), Counted(bundle().vision)
    apply(references(), clip, vision, scale=0.0)
    assert clip.asked == vision.asked == 0


def test_other_parts_encode() -> None:
    """Another adapter, encoder, CLIP or reference is never taken for the one before."""
    chain, clip, vision = references(), Counted(bundle().clip), Counted(bundle().vision)
    apply(chain, clip, vision)
    asked = vision.asked
    apply(chain, clip, vision, "base")
    assert vision.asked == asked + 2  # its unconditional branch needs no encoder
    others = Counted(bundle().clip), Counted(bundle().vision)
    apply(chain, *others)
    assert (others[0].asked, others[1].asked) == (2, 3)
    apply(references(), *others)  # other pictures, the same words
    assert (others[0].asked, others[1].asked) == (2, 5)
    apply(references(("cat", "dog")), *others)
    assert (others[0].asked, others[1].asked) == (3, 7)


def test_another_weight_region_or_range_of_a_reference_encodes_nothing() -> None:
    """The nodes behind the one that was changed run again, too."""
    image, more, mask = [graphs.photo(0), graphs.photo(1)], graphs.photo(2), torch.zeros(24, 32)
    mask[4:20, 4:20] = 1
    clip, vision = Counted(bundle().clip), Counted(bundle().vision)

    def chain(weight: float = 1.0, counts: float = 1.0, fit: str = "centre crop", **each: Any) -> tuple:
        others = references(("cat",), image=[more], weight=[counts])
        each = {"image": image, "weight": [weight, 1.0], "image_mask": [None, mask], "fit": [fit, fit], **each}
        return references(**each, more_pictures=[others, ()])

    apply(chain(), clip, vision)
    assert (clip.asked, vision.asked) == (2, 4)  # three pictures and the unconditional branch's none
    apply(chain(2.0), clip, vision)
    apply(chain(region=[None, mask], region_until=[1.0, 0.3], end_percent=[0.5, 1.0]), clip, vision)
    models = [apply(chain(counts=counts), clip, vision) for counts in (1.0, 0.2)]
    assert (clip.asked, vision.asked) == (2, 4)
    assert not torch.equal(*(graphs.sample(model, 1) for model in models))
    apply(chain(fit="pad to square"), clip, vision)
    assert vision.asked == 5  # the first picture alone; the other has a mask, and more_pictures a fit of its own
    image[1] = image[1].clone()
    apply(chain(), clip, vision)
    assert (clip.asked, vision.asked) == (2, 6)
    image[0].mul_(0.5)  # as a pack that gives on what it got, changed
    apply(chain(), clip, vision)
    assert (clip.asked, vision.asked) == (2, 7)


def test_a_lora_on_the_clip_is_seen() -> None:
    """The host patches a clone."""
    from mip_adapter.patching.encode import encode_references

    chain, parts, clip = references(), bundle(), bundle().clip.clone()
    key, weight = next((k, w) for k, w in clip.cond_stage_model.state_dict().items() if k.endswith("q_proj.weight"))
    clip.add_patches({key: (torch.ones_like(weight),)})
    with torch.inference_mode():
        plain, patched = (encode_references(chain, parts.adapters["base"], c, parts.vision) for c in (parts.clip, clip))
        parts.clip.load_model()
    assert not torch.equal(plain.content_tokens[0], patched.content_tokens[0])
    assert torch.equal(plain.tokens, patched.tokens)


def test_nothing_is_kept_alive() -> None:
    chain, clip, vision = references(), Counted(bundle().clip), Counted(bundle().vision)
    patched = apply(chain, clip, vision)
    alive = [weakref.ref(each) for each in (*chain, clip, vision)]
    del chain, clip, vision
    gc.collect()
    assert patched and not any(each() for each in alive)


def test_of_the_names_the_last_few_are_kept() -> None:
    from mip_adapter.common.weak_cache import MAX_NAMES, WeakCache

    memo, thing = WeakCache(), Counted(None)
    first = memo(lambda: torch.zeros(1), thing, name=0)
    assert memo(lambda: torch.ones(1), thing, name=0) is first
    for name in range(1, MAX_NAMES + 1):
        memo(lambda: torch.zeros(1), thing, name=name)
    assert memo(lambda: torch.ones(1), thing, name=0) == 1


@pytest.mark.parametrize("gone", range(3))
def test_a_value_goes_with_the_first_of_what_it_was_made_from(gone: int) -> None:
    from mip_adapter.common.weak_cache import WeakCache

    memo, made_from = WeakCache(), [Counted(None) for _ in range(3)]
    value = memo(lambda: torch.ones(2), *made_from)
    assert memo(lambda: torch.zeros(2), *made_from) is value
    value = weakref.ref(value)
    del made_from[gone]
    gc.collect()
    assert value() is None


def test_what_two_were_made_into_is_apart_from_what_one_was() -> None:
    from mip_adapter.common.weak_cache import WeakCache

    memo, thing, other = WeakCache(), Counted(None), Counted(None)
    alone = memo(lambda: torch.zeros(1), thing)
    both = weakref.ref(memo(lambda: torch.ones(1), thing, other))
    assert memo(lambda: torch.ones(1), thing) is alone and both() == 1
    del other
    gc.collect()
    assert both() is None and memo(lambda: torch.ones(1), thing) is alone
