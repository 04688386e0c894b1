"""Encode pictures and words with the encoders that the host has loaded."""

from __future__ import annotations

import math
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
from ..attention.regions import SIDE
from ..common.weak_cache import WeakCache
from ..weights.adapter import Adapter
from ..weights.projection import project

END_OF_TEXT = 49407  # CLIP's end token
CLIPS = {"l", "g", "h"}  # the host's names for the tokens of CLIP text encoders
T5, END_OF_T5 = "t5xxl", 1  # the host's name for FLUX.1's second text encoder, and that encoder's end token
CLIP_WORDS = 75  # 77 positions without start and end

# A new scale, range, merge, weight or region encodes nothing again, so the encoders need not displace the UNet on the
# GPU. Caching by identity is safe: the host applies changes to a CLIP, such as a LoRA, to a clone.
_token_cache, _null_cache, _text_cache, _word_cache = WeakCache(), WeakCache(), WeakCache(), WeakCache()


def encode_references(
    references: tuple[Reference, ...], adapter: Adapter, clip: Any, clip_vision: Any, joint: bool = False
) -> EncodedReferences:
    """Encode all references, faces that have an adapter of their own for that, the others for `adapter`.

    joint: whether one softmax will run over the image tokens of all references, which must then have as many.

    Raises ValueError for missing or wrong encoders and unusable texts.
    """
    check_clip(clip)
    texts = tuple(
        _text_cache(partial(encode_object_text, clip, each.text, adapter), adapter, clip, name=each.text)
        for each in references
    )
    return _encoded(references, texts, adapter, clip_vision, joint)


def encode_styles(styles: tuple[Style, ...], adapter: Adapter, clip_vision: Any) -> EncodedReferences:
    """Encode all styles for `adapter`. They have no texts. Raises ValueError for a missing or wrong image encoder."""
    return _encoded(styles, (torch.zeros(0, adapter.spec.context_dim),) * len(styles), adapter, clip_vision)


def _encoded(
    references: tuple[Reference, ...],
    texts: tuple[Tensor, ...],
    adapter: Adapter,
    clip_vision: Any,
    joint: bool = False,
) -> EncodedReferences:
    """texts: M × [L_i, X], content tokens."""
    own = [own_models(each, adapter, clip_vision) for each in references]
    for each, (its_adapter, vision) in zip(references, own, strict=True):
        check_face(each, its_adapter)
        check_vision(vision, its_adapter)
    eases = [Ease(each.over_time, each.start_percent, each.end_percent) for each in references]
    progress = ProgressBar(len(references))
    tokens = []
    for each, (its_adapter, vision) in zip(references, own, strict=True):
        tokens.append(image_tokens(vision, each, its_adapter))
        progress.update(1)  # also lets the artist interrupt
    nulls = [
        null_tokens(vision, each, its_adapter) for each, (its_adapter, vision) in zip(references, own, strict=True)
    ]
    if joint and len({len(each) for each in tokens}) > 1:
        counts = ", ".join(f"“{each.text}” {len(its)}" for each, its in zip(references, tokens, strict=True))
        raise ValueError(
            f"The merge strategy is concat, one softmax over all image tokens, and these references have different "
            f"numbers of them ({counts}): choose another strategy, or references of one kind."
        )
    adapters = adapters_of(references, adapter)
    nulls_differ = any(null is not nulls[0] for null in nulls)  # the cache gives the same tokens for the same models
    longest = math.lcm(*(len(each) for each in (*tokens, *nulls)))
    nulls = [repeated(each, longest) for each in nulls]
    return EncodedReferences(
        names=tuple(reference.text for reference in references),
        tokens=torch.stack([repeated(each, longest) for each in tokens]),
        null_tokens=torch.stack(nulls) if nulls_differ else nulls[0],
        text_tokens=texts,
        weights=tuple(reference.weight for reference in references),
        regions=_regions(references),
        blocks=tuple(each.blocks for each in references) if any(each.blocks for each in references) else (),
        eases=tuple(eases) if any(each.kind != STEADY for each in eases) else (),
        adapters=tuple(adapters.index(its_adapter) for its_adapter, _ in own) if len(adapters) > 1 else (),
    )


def own_models(reference: Reference, adapter: Adapter, clip_vision: Any) -> tuple[Adapter, Any]:
    """The adapter and the image encoder of a reference: a face's own, or those of the objects."""
    face = reference.face
    if face is None:
        return adapter, clip_vision
    return face.adapter or adapter, clip_vision if face.clip_vision is None else face.clip_vision


def adapters_of(references: Sequence[Reference], adapter: Adapter) -> list[Adapter]:
    """The adapters of a chain, each once; that of the objects is the first."""
    return list(dict.fromkeys([adapter, *(own_models(each, adapter, None)[0] for each in references)]))


def repeated(tokens: Tensor, count: int) -> Tensor:
    """Image tokens [T, X] over and over again, as [count, X].

    A softmax gives each of r equal tokens 1/r of what it gave the one. So the attention to the tokens is the same, and
    objects with different numbers of tokens can stand in one tensor.
    """
    return tokens.repeat(count // len(tokens), 1) if count > len(tokens) else tokens


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


def check_clip(clip: Any) -> None:
    """Raises ValueError if the checkpoint contained no CLIP."""
    if clip is None:
        raise ValueError("The CLIP is missing: this checkpoint holds none. Load the CLIP on its own and connect that.")


def encode_object_text(clip: Any, text: str, adapter: Adapter) -> Tensor:
    """The content tokens [L, X] of an object text. Raises ValueError if X is not the adapter's context width."""
    encoded = t5_tokens(clip, text) if adapter.spec.is_joint else content_tokens(clip, text)
    if encoded.shape[-1] != adapter.spec.context_dim:
        raise ValueError(
            f"The text encoder gives {encoded.shape[-1]} values a token, but “{adapter.name}” was trained with "
            f"{adapter.spec.context_dim}: connect the CLIP of the checkpoint that is being sampled."
        )
    return encoded


def content_tokens(clip: Any, text: str) -> Tensor:
    """The content tokens [L, X] of an object text, encoded on its own: positions 1…L of the text encoder's output.

    Raises ValueError for a text without words or of more than 75 tokens, and for a text encoder that is no CLIP.
    """
    tokens = clip.tokenize(text)
    chunks = tokens.get("l", next(iter(tokens.values()))) if isinstance(tokens, dict) else tokens
    # Textual inversion puts vectors between the token numbers; they are content, too.
    ends = (i for i, (token, *_) in enumerate(chunks[0]) if isinstance(token, int) and token == END_OF_TEXT)
    count = next(ends, CLIP_WORDS + 2) - 1
    if count > CLIP_WORDS and isinstance(tokens, dict) and not tokens.keys() & CLIPS:
        raise ValueError(
            f"This text encoder ({', '.join(tokens)}) is no CLIP: connect the CLIP of the checkpoint that is being "
            "sampled."
        )
    if len(chunks) > 1 or count > CLIP_WORDS:
        raise ValueError(
            f"The object text “{text[:40]}…” is longer than {CLIP_WORDS} tokens: name the object in a few words "
            "and leave the description to the prompt."
        )
    if count < 1:
        raise ValueError(f"The object text “{text}” contains no words for the text encoder; name the object.")
    return _row_per_token(clip.encode_from_tokens(tokens)[0], len(chunks[0]))[1 : 1 + count].float()


def _row_per_token(rows: Tensor, tokens: int) -> Tensor:
    """The rows of an encoded text [rows, X] that belong to its tokens, one for each.

    Negative weights of words (NegPip) need a key and a value for each token. Such an encoder gives them in turn. An
    object text has no negative weights: keys and values are equal, which tells this encoder from others.

    Raises ValueError if there is no row for each token.
    """
    if len(rows) == tokens:
        return rows
    if len(rows) == 2 * tokens and torch.equal(rows[0::2], rows[1::2]):
        return rows[0::2]
    raise ValueError(
        f"The text encoder gives {len(rows)} rows for the {tokens} tokens of an object text, so nobody can say which "
        "row is which word: connect to MIP Apply the CLIP from before the pack that changes what it gives."
    )


def t5_tokens(clip: Any, text: str) -> Tensor:
    """The tokens [L, X] of an object text, encoded on its own by FLUX.1's T5.

    Raises ValueError for a text without words and for a text encoder that has no T5.
    """
    tokens = clip.tokenize(text)
    if not isinstance(tokens, dict) or T5 not in tokens:
        raise ValueError(
            "An adapter for FLUX.1 finds objects by T5's words, and this CLIP has no T5: load clip_l and t5xxl with "
            "DualCLIPLoader, type flux."
        )
    words = (i for i, (token, *_) in enumerate(tokens[T5][0]) if isinstance(token, int) and token == END_OF_T5)
    count = next(words, len(tokens[T5][0]))
    if count < 1:
        raise ValueError(f"The object text “{text}” contains no words for the text encoder; name the object.")
    return clip.encode_from_tokens(tokens)[0, :count].float()


def edit_words(clip: Any, names: Sequence[str], prompt: str = "") -> tuple[Tensor, ...]:
    """The tokens [L_i, X] of the objects' words, for any text encoder: encoded alone, or in the prompt if it is given.

    Raises ValueError for a text without words, and for one that the prompt does not hold.
    """
    check_clip(clip)
    if not prompt:
        # Within a prompt most words follow a space, which some tokenizers count to the word.
        return tuple(_word_cache(lambda name=name: _content(clip, f" {name}")[1], clip, name=name) for name in names)
    ids, rows = _content(clip, prompt)
    return tuple(rows[_words_in(clip, name, ids)] for name in names)


def _words_in(clip: Any, name: str, prompt: list[int]) -> slice:
    """Where the prompt's tokens are those of a name, with or without a space before it."""
    for words in (f" {name}", name):
        wanted = _content_ids(clip, words)[0]
        for start in range(len(prompt) - len(wanted) + 1):
            if prompt[start : start + len(wanted)] == wanted:
                return slice(start, start + len(wanted))
    raise ValueError(
        f"The prompt does not name “{name}”: this model finds an object by the prompt's own words. Write the object "
        "text into the prompt as it is."
    )


def _content(clip: Any, text: str) -> tuple[list[int], Tensor]:
    """The ids and the embeddings [L, X] of a text's own tokens. Raises ValueError for a text without words."""
    ids, behind, tokens = _content_ids(clip, text)
    if not ids:
        raise ValueError(f"The object text “{text.strip()}” contains no words for the text encoder; name the object.")
    rows = clip.encode_from_tokens(tokens)[0].float()
    # From the end: some encoders cut their system prompt off.
    stop = len(rows) - behind
    if stop < len(ids):
        raise ValueError(
            f"The text encoder gives {len(rows)} rows for an object text of {len(ids)} tokens, so nobody can say which "
            "row is which word: connect the CLIP that encodes the prompt, from before packs that change what it gives."
        )
    return ids, rows[stop - len(ids) : stop]


def _content_ids(clip: Any, text: str) -> tuple[list[int], int, Any]:
    """The ids of a text's own tokens, how many tokens stand behind them, and the tokens.

    What an empty text has, too, is the encoder's: start, end, system prompt, padding.
    """
    tokens = clip.tokenize(text)
    ids, empty = _ids(tokens), _ids(clip.tokenize(""))
    padding = len(ids) - len(_unpadded(ids))
    ids, empty = _unpadded(ids), _unpadded(empty)
    before = _common(ids, empty)
    behind = _common(ids[before:][::-1], empty[before:][::-1])
    return ids[before : len(ids) - behind], behind + padding, tokens


def _ids(tokens: Any) -> list[int]:
    """The token numbers of the encoder that makes the embeddings. Textual inversions count as -1."""
    row = tokens.get(T5, next(iter(tokens.values()))) if isinstance(tokens, dict) else tokens
    return [int(token) if isinstance(token, int) else -1 for chunk in row for token, *_ in chunk]


def _unpadded(ids: list[int]) -> list[int]:
    """Without the same token several times at the end."""
    count = _common(ids[::-1], [ids[-1]] * len(ids)) if ids else 0
    return ids[: len(ids) - count] if count > 1 else ids


def _common(one: Sequence[int], other: Sequence[int]) -> int:
    """How many elements two sequences share at their beginnings."""
    return next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))


def image_tokens(clip_vision: Any, reference: Reference, adapter: Adapter) -> Tensor:
    """[T, X], the image tokens of one object: the weighted mean over its pictures' projected tokens."""
    if reference.face is not None:
        return face_tokens(clip_vision, reference, reference.face, adapter)
    all_tokens = torch.cat([projected(clip_vision, images, adapter) for images, _ in reference.batches])  # [B, T, X]
    weights = all_tokens.new_tensor([weight for images, weight in reference.batches for _ in images])
    return torch.einsum("b,btx->tx", weights / weights.sum(), all_tokens)


def face_tokens(clip_vision: Any, reference: Reference, face: Face, adapter: Adapter) -> Tensor:
    """[T, X], the image tokens of a face.

    The face embeddings of several pictures, and what the image encoder gives for the crops, are averaged before they
    are projected. A portrait adapter takes one face after the other: T is then 16 for each.
    """
    family = adapter.spec.family
    faces = face.embeddings if family == "portrait-unnorm" else F.normalize(face.embeddings, dim=-1)
    if family == "portrait":
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
    """Features of pictures [B, H, W, 3]: [B, E] or [B, P, E], as the adapter's family needs them."""
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
    pictures = max(map(len, given))
    height, width = max((region.shape[-2:] for region in given), key=lambda shape: shape[0] * shape[1])
    if pictures > 1:  # masks of an animation would take gigabytes
        smaller = min(1.0, SIDE / max(height, width))
        height, width = max(1, round(height * smaller)), max(1, round(width * smaller))

    def stretched(region: Tensor | None) -> Tensor:
        if region is None:
            return torch.ones(pictures, height, width)
        resized = F.interpolate(region.unsqueeze(0), size=(height, width), mode="bilinear", align_corners=False)
        return resized.squeeze(0).expand(pictures, -1, -1)

    return torch.stack([stretched(reference.region) for reference in references])
