"""The words that name an object, as the text encoder's tokens: encoded alone, or found in the prompt."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..common.weak_cache import WeakCache
from ..weights.adapter import Adapter

END_OF_TEXT = 49407  # CLIP's end token
CLIPS = {"l", "g", "h"}  # the host's names for the tokens of CLIP text encoders
T5, END_OF_T5 = "t5xxl", 1  # the host's name for FLUX.1's second text encoder, and that encoder's end token
CLIP_WORDS = 75  # 77 positions without start and end

_word_cache = WeakCache()


def check_clip(clip: Any) -> None:
    """Raises ValueError if the checkpoint contained no CLIP."""
    if clip is None:
        raise ValueError("The CLIP is missing: this checkpoint holds none. Load the CLIP on its own and connect that.")


def encode_object_text(clip: Any, text: str, adapter: Adapter) -> Tensor:
    """The content tokens [L, X] of an object text.

    Raises ValueError if X is not the adapter's context width, and as `content_tokens` and `t5_tokens` do.
    """
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
    tokenized = clip.tokenize(text)
    chunks = tokenized.get("l", next(iter(tokenized.values()))) if isinstance(tokenized, dict) else tokenized
    # Textual inversion puts vectors between the token numbers; they are content, too.
    ends = (i for i, (token, *_) in enumerate(chunks[0]) if isinstance(token, int) and token == END_OF_TEXT)
    count = next(ends, CLIP_WORDS + 2) - 1
    if count > CLIP_WORDS and isinstance(tokenized, dict) and not tokenized.keys() & CLIPS:
        raise ValueError(
            f"This text encoder ({', '.join(tokenized)}) is no CLIP: connect the CLIP of the checkpoint that is being "
            "sampled."
        )
    if len(chunks) > 1 or count > CLIP_WORDS:
        raise ValueError(
            f"The object text “{text[:40]}…” is longer than {CLIP_WORDS} tokens: name the object in a few words "
            "and leave the description to the prompt."
        )
    if count < 1:
        raise ValueError(f"The object text “{text}” contains no words for the text encoder; name the object.")
    return _row_per_token(clip.encode_from_tokens(tokenized)[0], len(chunks[0]))[1 : 1 + count].float()


def _row_per_token(rows: Tensor, token_count: int) -> Tensor:
    """The rows of an encoded text [rows, X] that belong to its tokens, one for each.

    Negative weights of words (NegPip) need a key and a value for each token. Such an encoder gives them in turn. An
    object text has no negative weights: keys and values are equal, which tells this encoder from others.

    Raises ValueError if there is no row for each token.
    """
    for each in (rows, _single(rows)):
        if len(each) == token_count:
            return each
    raise ValueError(
        f"The text encoder gives {len(rows)} rows for the {token_count} tokens of an object text, so nobody can say "
        "which row is which word: connect to this node the CLIP from before the pack that changes what it gives."
    )


def _single(rows: Tensor) -> Tensor:
    """Each row once, if all rows come in equal pairs."""
    in_pairs = len(rows) % 2 == 0 and torch.equal(rows[0::2], rows[1::2])
    return rows[0::2] if in_pairs else rows


def t5_tokens(clip: Any, text: str) -> Tensor:
    """The tokens [L, X] of an object text, encoded on its own by FLUX.1's T5.

    Raises ValueError for a text without words, for a text encoder that has no T5, and as `_row_per_token` does.
    """
    tokenized = clip.tokenize(text)
    if not isinstance(tokenized, dict) or T5 not in tokenized:
        raise ValueError(
            "An adapter for FLUX.1 finds objects by T5's words, and this CLIP has no T5: load clip_l and t5xxl with "
            "DualCLIPLoader, type flux."
        )
    words = (i for i, (token, *_) in enumerate(tokenized[T5][0]) if isinstance(token, int) and token == END_OF_T5)
    count = next(words, len(tokenized[T5][0]))
    if count < 1:
        raise ValueError(f"The object text “{text}” contains no words for the text encoder; name the object.")
    return _row_per_token(clip.encode_from_tokens(tokenized)[0], len(_ids(tokenized)))[:count].float()


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
    """The ids and the embeddings [L, X] of a text's own tokens.

    Raises ValueError for a text without words, and as `_row_per_token` does.
    """
    ids, behind, tokenized = _content_ids(clip, text)
    if not ids:
        raise ValueError(f"The object text “{text.strip()}” contains no words for the text encoder; name the object.")
    # Some encoders cut their system prompt off.
    cut = int(_word_cache(lambda: torch.tensor(_cut_tokens(clip)), clip))
    rows = _row_per_token(clip.encode_from_tokens(tokenized)[0].float(), len(_ids(tokenized)) - cut)
    stop = max(0, len(rows) - behind)
    return ids, _row_per_token(rows[max(0, stop - len(ids)) : stop], len(ids))


def _cut_tokens(clip: Any) -> int:
    """How many tokens get no row, as an empty text tells."""
    tokenized = clip.tokenize("")
    return max(0, len(_ids(tokenized)) - len(_single(clip.encode_from_tokens(tokenized)[0])))


def _content_ids(clip: Any, text: str) -> tuple[list[int], int, Any]:
    """The ids of a text's own tokens, how many tokens stand behind them, and the text as the host tokenizes it.

    What an empty text has, too, is the encoder's: start, end, system prompt, padding.
    """
    tokenized = clip.tokenize(text)
    ids, empty = _ids(tokenized), _ids(clip.tokenize(""))
    padding = len(ids) - len(_unpadded(ids))
    ids, empty = _unpadded(ids), _unpadded(empty)
    before = _common(ids, empty)
    behind = _common(ids[before:][::-1], empty[before:][::-1])
    return ids[before : len(ids) - behind], behind + padding, tokenized


def _ids(tokenized: Any) -> list[int]:
    """The token numbers of the encoder that makes the embeddings. Textual inversions count as -1."""
    row = tokenized.get(T5, next(iter(tokenized.values()))) if isinstance(tokenized, dict) else tokenized
    return [int(token) if isinstance(token, int) else -1 for chunk in row for token, *_ in chunk]


def _unpadded(ids: list[int]) -> list[int]:
    """Without the same token several times at the end."""
    count = _common(ids[::-1], [ids[-1]] * len(ids)) if ids else 0
    return ids[: len(ids) - count] if count > 1 else ids


def _common(one: Sequence[int], other: Sequence[int]) -> int:
    """How many elements two sequences share at their beginnings."""
    return next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))
