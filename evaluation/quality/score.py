"""Object quality score: do a picture's objects look like their texts, and unlike each other?

MIP-Adapter's authors choose training pictures by this score (arXiv 2409.17920). With text and image embeddings t_o, v_o
of the M objects of a picture:

    S = 1/M Σ_o cos(t_o, v_o)  −  1/(M (M−1)) Σ_{o' ≠ o''} cos(v_o', v_o'')
        single                    pair, over ordered pairs
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


class ObjectQuality(NamedTuple):
    """Scores of B pictures, float32 [B] each.

    single: in −1…1; higher means that objects look like their texts.
    pair: in −1…1, with the minus sign of the equation; higher means that objects look unlike each other. A picture of
        one object has no pairs: its pair is exactly 0, and its total does not compare with those of several objects.
    total: single + pair.
    """

    single: Tensor
    pair: Tensor
    total: Tensor


def object_quality(text: Tensor, image: Tensor, counts: Sequence[int] | Tensor | None = None) -> ObjectQuality:
    """The score of B pictures with up to M objects.

    text, image [B, M, E]: embeddings of the object texts and of the object crops. They need not be normalised.
    counts [B]: how many of a picture's M rows are objects, by default all; later rows are ignored.

    Raises ValueError for shapes that do not fit, a picture without objects, and embeddings that are not finite.
    """
    if text.ndim != 3 or text.shape != image.shape:
        raise ValueError(
            f"The object quality score got texts {list(text.shape)} and images {list(image.shape)}; expected "
            "[pictures, objects, width] for both, from the same text-image encoder."
        )
    number = _numbers(counts, text)  # [B]
    present = torch.arange(text.shape[1], device=text.device) < number[:, None]  # [B, M]
    t, v = (_unit(each, present) for each in (text, image))
    own = (t * v).sum(-1)  # [B, M]; rows of absent objects are 0
    between = v @ v.mT - torch.diag_embed((v * v).sum(-1))  # [B, M, M], cos(v_o', v_o'') with o' ≠ o''
    single = own.sum(-1) / number
    pairs = (number * (number - 1)).clamp_min(1)  # one object has no pairs; 1 avoids a division by 0
    pair = torch.where(number > 1, -between.sum((-2, -1)) / pairs, 0.0)
    return ObjectQuality(single, pair, single + pair)


def _numbers(counts: Sequence[int] | Tensor | None, text: Tensor) -> Tensor:
    pictures, most = text.shape[:2]
    if counts is None:
        counts = [most] * pictures
    number = torch.as_tensor(counts, device=text.device, dtype=torch.long)
    if number.shape != (pictures,):
        raise ValueError(f"There are {pictures} pictures and object counts {list(number.shape)}; give one a picture.")
    if ((number < 1) | (number > most)).any():
        wrong = int(((number < 1) | (number > most)).nonzero()[0])
        raise ValueError(
            f"Picture {wrong} has {int(number[wrong])} objects; the object quality score needs 1 to {most}, the number "
            "of embeddings given for it."
        )
    return number


def _unit(x: Tensor, present: Tensor) -> Tensor:
    """Rows of x [B, M, E] scaled to length 1, in float32; rows of absent objects become 0, whatever they held."""
    x = torch.where(present[..., None], x.float(), 0.0)
    if not torch.isfinite(x).all():
        raise ValueError(
            "The embeddings hold NaN or infinite numbers: start ComfyUI with --force-fp32 (mip.py curate: --device "
            "cpu), or load weights that are whole."
        )
    return F.normalize(x, dim=-1)
