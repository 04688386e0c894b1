"""Encode references: their pictures with the image encoder that the host has loaded, their words by object_text.py."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import comfy.model_management
import torch
import torch.nn.functional as F
from comfy.utils import ProgressBar
from torch import Tensor

from ..attention.ease import STEADY, Ease
from ..attention.face import Face
from ..attention.plan import EncodedReferences
from ..attention.reference import Reference, Style
from ..attention.regions import REGION_SIDE
from ..common.weak_cache import WeakCache
from ..weights.adapter import Adapter
from ..weights.projection import project
from .object_text import check_clip, encode_object_text

# A new scale, range, merge, weight or region encodes nothing again, so the encoders need not displace the UNet on the
# GPU. Caching by identity is safe: the host applies changes to a CLIP, such as a LoRA, to a clone.
_token_cache, _null_cache, _text_cache = WeakCache(), WeakCache(), WeakCache()


def encode_references(
    references: tuple[Reference, ...], adapter: Adapter, clip: Any, clip_vision: Any, one_softmax: bool = False
) -> EncodedReferences:
    """Encode all references, faces that have an adapter of their own for that, the others for `adapter`.

    one_softmax: whether one will run over the image tokens of all references, which must then have as many.

    Raises ValueError for missing or wrong encoders and unusable texts.
    """
    check_clip(clip)
    texts = tuple(
        _text_cache(partial(encode_object_text, clip, each.text, adapter), adapter, clip, name=each.text)
        for each in references
    )
    return _encoded(references, texts, adapter, clip_vision, one_softmax)


def encode_styles(styles: tuple[Style, ...], adapter: Adapter, clip_vision: Any) -> EncodedReferences:
    """Encode all styles for `adapter`. They have no texts. Raises ValueError for a missing or wrong image encoder."""
    return _encoded(styles, (torch.zeros(0, adapter.spec.context_dim),) * len(styles), adapter, clip_vision)


def _encoded(
    references: tuple[Reference, ...],
    texts: tuple[Tensor, ...],
    adapter: Adapter,
    clip_vision: Any,
    one_softmax: bool = False,
) -> EncodedReferences:
    """texts: M × [L_i, X], content tokens."""
    models = [own_models(each, adapter, clip_vision) for each in references]
    for each, (its_adapter, vision) in zip(references, models, strict=True):
        check_face(each, its_adapter)
        check_vision(vision, its_adapter)
    eases = [Ease.over(each.over_time, each.start_percent, each.end_percent) for each in references]
    progress = ProgressBar(len(references))
    tokens = []
    for each, (its_adapter, vision) in zip(references, models, strict=True):
        tokens.append(image_tokens(vision, each, its_adapter))
        progress.update(1)  # also lets the artist interrupt
    nulls = [
        null_tokens(vision, each, its_adapter) for each, (its_adapter, vision) in zip(references, models, strict=True)
    ]
    if one_softmax and len({len(each) for each in tokens}) > 1:
        counts = ", ".join(f"“{each.text}” {len(its)}" for each, its in zip(references, tokens, strict=True))
        raise ValueError(
            f"The merge strategy is concat, one softmax over all image tokens, and these references have different "
            f"numbers of them ({counts}): choose another strategy, or references of one kind."
        )
    adapters = adapters_of(references, adapter)
    own_nulls = any(null is not nulls[0] for null in nulls)  # the cache gives the same tokens for the same models
    longest = max(len(each) for each in (*tokens, *nulls))
    stacked, padding = filled(tokens, longest)
    stacked_nulls, null_padding = filled(nulls if own_nulls else nulls[:1], longest)
    return EncodedReferences(
        names=tuple(reference.text for reference in references),
        tokens=stacked,
        null_tokens=stacked_nulls if own_nulls else stacked_nulls[0],
        content_tokens=texts,
        weights=tuple(reference.weight for reference in references),
        regions=_regions(references),
        blocks=tuple(each.blocks for each in references) if any(each.blocks for each in references) else (),
        eases=tuple(eases) if any(each.kind != STEADY for each in eases) else (),
        adapters=tuple(adapters),
        adapter_numbers=tuple(adapters.index(its_adapter) for its_adapter, _ in models) if len(adapters) > 1 else (),
        padding=padding,
        null_padding=null_padding,
    )


def own_models(reference: Reference, adapter: Adapter, clip_vision: Any) -> tuple[Adapter, Any]:
    """The adapter and the image encoder of a reference: a face's own, or those of the objects."""
    face = reference.face
    if face is None:
        return adapter, clip_vision
    return face.adapter or adapter, clip_vision if face.clip_vision is None else face.clip_vision


def adapters_of(references: Sequence[Reference], adapter: Adapter) -> list[Adapter]:
    """The adapters that references use, each once. adapter: of those without one of their own."""
    return list(dict.fromkeys(own_models(each, adapter, None)[0] for each in references))


def filled(sets: Sequence[Tensor], count: int) -> tuple[Tensor, tuple[int, ...]]:
    """Sets of image tokens [T, X], each over and over as often as it fits, then zeros: [sets, count, X].

    Returns also how many of each set are such padding; () where none is.

    So objects with different numbers of tokens can stand in one tensor. A softmax gives each of r equal tokens 1/r of
    what it gave the one, so repeating changes no attention; and 4 tokens fill 16 without padding.
    """
    times, padding = zip(*(divmod(count, len(each)) for each in sets), strict=True)
    repeated = [F.pad(each.repeat(n, 1), (0, 0, 0, rest)) for each, n, rest in zip(sets, times, padding, strict=True)]
    return torch.stack(repeated), padding if any(padding) else ()


def check_encoders(clip: Any, clip_vision: Any, adapter: Adapter) -> None:
    """Raises ValueError if an encoder is missing."""
    check_clip(clip)
    check_vision(clip_vision, adapter)


def check_face(reference: Reference, adapter: Adapter) -> None:
    """Raises ValueError if one of reference and adapter is about faces and the other is not, or their widths differ."""
    face, wanted = reference.face, adapter.spec.face
    if face is None and wanted is not None:
        raise ValueError(
            f"“{adapter.name}” reads face embeddings, and “{reference.text}” is a MIP Reference: use MIP Face "
            "Reference for faces. To have objects beside them, give MIP Apply an adapter for objects, and this one to "
            "“adapter” of MIP Face Reference."
        )
    if face is not None and wanted is None:
        raise ValueError(
            f"“{reference.text}” is a MIP Face Reference, and “{adapter.name}” ({adapter.spec.family}) reads pictures: "
            "connect a FaceID or portrait adapter to its “adapter”, or use MIP Reference with a plus-face adapter."
        )
    if face is not None and face.embeddings.shape[-1] != wanted:
        raise ValueError(
            f"“{adapter.name}” reads face embeddings of {wanted} numbers, and the face analyser gives "
            f"{face.embeddings.shape[-1]}: use InsightFace's buffalo_l, with which it was trained."
        )


def check_vision(clip_vision: Any, adapter: Adapter) -> None:
    """Raises ValueError if the image encoder is missing."""
    if clip_vision is None and adapter.spec.reads_pictures:
        need = adapter.spec.encoder
        raise ValueError(f"The image encoder is missing: load {need.name} with {need.loader} and connect it.")


def image_tokens(clip_vision: Any, reference: Reference, adapter: Adapter) -> Tensor:
    """[T, X], the image tokens of one object: the weighted mean over its pictures' projected tokens."""
    if reference.face is not None:
        return face_tokens(clip_vision, reference, reference.face, adapter)
    all_tokens = torch.cat([projected(clip_vision, images, adapter) for images, _ in reference.batches])  # [B, T, X]
    return _mean(reference, all_tokens)[0]


def face_tokens(clip_vision: Any, reference: Reference, face: Face, adapter: Adapter) -> Tensor:
    """[T, X], the image tokens of a face.

    The face embeddings of several pictures, and what the image encoder gives for the crops, are averaged before they
    are projected. A portrait adapter takes one face after the other: T is then 16 for each.
    """
    faces = face_features(face.embeddings, adapter)
    if adapter.spec.family == "portrait":
        return project(adapter, faces).flatten(0, 1)
    faces = _mean(reference, faces)
    if not adapter.spec.reads_pictures:
        return project(adapter, faces)[0]
    states = [
        _token_cache(
            partial(encode_pictures, clip_vision, images, adapter), images, adapter, clip_vision, name="states"
        )
        for images, _ in reference.batches
    ]
    return project(adapter, _mean(reference, torch.cat(states)), faces, face.structure)[0]


def face_features(embeddings: Tensor, adapter: Adapter) -> Tensor:
    """What a face adapter's projection reads of embeddings [B, F]: unit vectors, but portrait-unnorm as they are."""
    return embeddings if adapter.spec.family == "portrait-unnorm" else F.normalize(embeddings, dim=-1)


def null_tokens(clip_vision: Any, reference: Reference, adapter: Adapter) -> Tensor:
    """[T, X], the image tokens of an object in the unconditional branch: its negative's, if it has one.

    A face there is the zero vector.
    """
    if reference.negative is not None:
        return projected(clip_vision, reference.negative, adapter).mean(0)
    face = reference.face if adapter.spec.family == "faceid-plusv2" else None
    structure = 1.0 if face is None else face.structure
    no_face = torch.zeros(1, adapter.spec.face or 0)

    def tokens() -> Tensor:
        return project(adapter, null_features(clip_vision, adapter), no_face, structure)[0]

    return _null_cache(tokens, adapter, *([clip_vision] * adapter.spec.reads_pictures), name=structure)


def _mean(reference: Reference, each: Tensor) -> Tensor:
    """The weighted mean [1, …] of something over a reference's pictures [B, …]."""
    weights = each.new_tensor([weight for images, weight in reference.batches for _ in images])
    return torch.einsum("b,b...->...", weights / weights.sum(), each).unsqueeze(0)


def projected(clip_vision: Any, images: Tensor, adapter: Adapter) -> Tensor:
    """[B, T, X], the projected tokens of pictures [B, H, W, 3]."""
    return _token_cache(
        lambda: project(adapter, encode_pictures(clip_vision, images, adapter)), images, adapter, clip_vision
    )


def encode_pictures(clip_vision: Any, images: Tensor, adapter: Adapter) -> Tensor:
    """Features of pictures [B, H, W, 3]: [B, E] or [B, P, E], as the adapter's family needs them.

    Raises ValueError if the image encoder does not give what the family needs.
    """
    outputs, need = clip_vision.encode_image(images), adapter.spec.encoder
    try:
        return outputs[need.output].float()
    except (AttributeError, KeyError):
        raise ValueError(
            f"“{adapter.name}” reads the pooled embedding of {need.name}, and this image encoder gives none: load that "
            f"encoder with {need.loader}."
        ) from None


def null_features(clip_vision: Any, adapter: Adapter) -> Tensor:
    """The image features of the unconditional branch, [1, E] or [1, P, E].

    For families that read one embedding, of a picture or a face, it is zero. Those that read hidden states get the
    encoding of an all-zero pixel tensor, zero *after* normalisation, as in the official code.
    """
    need = adapter.spec.encoder
    if need.output != "penultimate_hidden_states":
        return torch.zeros(1, need.width)
    side = getattr(clip_vision, "image_size", 224)
    device = getattr(clip_vision, "load_device", torch.device("cpu"))
    if (patcher := getattr(clip_vision, "patcher", None)) is not None:
        # `encode_image` loads the model, but its result may come from the cache and the model may be offloaded since.
        comfy.model_management.load_model_gpu(patcher)
    black = torch.zeros(1, 3, side, side, device=device)
    return clip_vision.model(pixel_values=black, intermediate_output=-2)[1].float().cpu()


def _regions(references: tuple[Reference, ...]) -> Tensor | None:
    """[M, P, H, W] at the size of the largest region, 1 for an object without one. None if no object has a region.

    P is 1, or the number of pictures where an object has a mask for each. Raises ValueError if two objects have masks
    for another number of pictures.
    """
    given = [reference.region for reference in references if reference.region is not None]
    if not given:
        return None
    counts = {len(each.region): each.text for each in references if each.region is not None and len(each.region) > 1}
    if len(counts) > 1:
        said = " and ".join(f"{count} for “{text}”" for count, text in counts.items())
        raise ValueError(
            f"There are region masks for several pictures, but not as many for each object: {said}. Give every object "
            "one mask, or one for each picture of the batch."
        )
    picture_count = max(map(len, given))
    height, width = max((region.shape[-2:] for region in given), key=lambda shape: shape[0] * shape[1])
    if picture_count > 1:  # masks of an animation would take gigabytes
        smaller = min(1.0, REGION_SIDE / max(height, width))
        height, width = max(1, round(height * smaller)), max(1, round(width * smaller))

    def stretched(region: Tensor | None) -> Tensor:
        if region is None:
            return torch.ones(picture_count, height, width)
        resized = F.interpolate(region.unsqueeze(0), size=(height, width), mode="bilinear", align_corners=False)
        return resized.squeeze(0).expand(picture_count, -1, -1)

    return torch.stack([stretched(reference.region) for reference in references])
