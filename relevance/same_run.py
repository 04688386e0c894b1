"""Which run a latent or a picture came from: by what is where in it."""

from __future__ import annotations

from collections import deque

import torch
import torch.nn.functional as F
from torch import Tensor

SAME_LAYOUT = 0.7  # correlation; an upscaled picture stays above, a crop below
GOOD_FIT, POOR_FIT = 0.6, 0.35  # see `explained`; a picture of another scene gives about 0.1
CELLS = 8  # a crop is compared by as many local means along each side
SHIFTS = 2  # places within a cell at which a crop is looked for, along each side
SMALLER = 2 ** -(1 / 6)  # from one size at which a crop is looked for to the next
SMALLEST = 1 / 8  # of the picture's sides; a smaller part is not found
CROP_FIT = 0.55  # see `crop_fit`; drawn scenes reach 0.51 of each other, and their crops of 3/5 about 0.75 of their own
KEPT_RESULTS = 8  # of one queued graph
KEPT_SIDE = 64  # latent pixels; larger results are kept smaller
SAME = 5e-4  # tolerance relative to a fingerprint's largest value: rounding stays below, another sampling above


def fingerprint(latent: Tensor) -> Tensor:
    """Local means of a latent [..., h, w], on the CPU. They identify it on whatever device the host keeps it."""
    return F.adaptive_avg_pool2d(latent.flatten(0, -3).float(), 8).cpu()


def explained(mark: Tensor, images: Tensor) -> float:
    """How much of what is where in pictures [B, H, W, 3] their latent explains linearly: 0 nothing, 1 all.

    A latent's channels are nearly linear in the colours, whatever VAE made it. mark: the latent's `fingerprint`.
    """
    brightness = images[..., :3].float().cpu().mean(-1)
    seen = F.adaptive_avg_pool2d(brightness, 8).flatten(1).unsqueeze(-1)  # [B, 64, 1]
    channels = mark.unflatten(0, (len(images), -1)).flatten(2).transpose(1, 2)  # [B, 64, C]
    seen, channels = (each - each.mean(1, keepdim=True) for each in (seen, channels))
    left = seen - channels @ torch.linalg.lstsq(channels, seen).solution
    return float(1 - left.square().sum() / seen.square().sum().clamp_min(torch.finfo(torch.float32).tiny))


def layout(latent: Tensor) -> Tensor:
    """What is where in the pictures of a latent [B, C, h, w]: [B, n], normalised, so that products are correlations."""
    means = fingerprint(latent).unflatten(0, (len(latent), -1))
    return F.normalize((means - means.mean((-2, -1), keepdim=True)).flatten(1), dim=1)


def same_latent(one: Tensor, other: Tensor) -> bool:
    """Whether two fingerprints are of the same latent, up to rounding."""
    rounding = SAME * float(one.nan_to_num(0, 0, 0).abs().max())
    return one.shape == other.shape and torch.allclose(one, other, rtol=0, atol=rounding, equal_nan=True)


def same_picture(start: Tensor, result: Tensor) -> bool:
    """Whether each picture of a latent [B, C, h, w] shows what one of the results does; result: see `layout`."""
    begun = layout(start)
    return begun.shape[1] == result.shape[1] and bool(((begun @ result.T).amax(1) > SAME_LAYOUT).all())


def crop_fit(start: Tensor, result: Tensor) -> float:
    """How well the best part of any picture of a latent [B, C, H, W] explains a latent [1, C, h, w]: 1 wholly.

    Each part has the aspect of `start`. It is resized to its size, and R² = 1 − Σ (start − part)² / Σ (start − mean)²
    is taken of local means. 0 or below: no better than a single colour.
    """
    (h, w), (height, width) = start.shape[-2:], result.shape[-2:]
    cells = F.adaptive_avg_pool2d(start, CELLS)
    spread = (cells - cells.mean((-2, -1), keepdim=True)).square().sum()
    largest, part, best = min(height / h, width / w), SMALLER, -torch.inf
    while part >= SMALLEST:
        sides = zip((height, width), (h, w), strict=True)
        size = [max(CELLS * SHIFTS, round(CELLS * SHIFTS * whole / (side * largest * part))) for whole, side in sides]
        resized = F.interpolate(result, size=size, mode="bilinear", antialias=True)
        means = F.avg_pool2d(resized, SHIFTS, stride=1)
        squares = F.conv2d(means.square(), torch.ones_like(cells), dilation=SHIFTS)
        missed = squares - 2 * F.conv2d(means, cells, dilation=SHIFTS) + cells.square().sum()
        best = max(best, float(1 - missed.min() / spread.clamp_min(torch.finfo(torch.float32).tiny)))
        part *= SMALLER
    return best


def _planes(latent: Tensor) -> Tensor:
    """A latent [B, C, …, h, w] as [B, C · …, h, w] on the CPU."""
    return latent.flatten(1, -3).float().cpu()


class Results:
    """What the samplings of one queued graph gave, through whatever models. A later one may start from a crop of it."""

    def __init__(self) -> None:
        self._prompt_id: str | None = None
        self._kept: deque[tuple[Tensor, Tensor]] = deque(maxlen=KEPT_RESULTS)  # layout, latent

    def add(self, prompt_id: str | None, latent: Tensor) -> None:
        """Keep what a sampling of this graph gave, [B, C, h, w]; other graphs' results are dropped.

        prompt_id: the host's; None if it is unknown; then nothing is kept. Waits for the device.
        """
        if prompt_id != self._prompt_id:
            self._prompt_id = prompt_id
            self._kept.clear()
        if prompt_id is None:
            return
        known = _planes(latent)
        if (longest := max(known.shape[-2:])) > KEPT_SIDE:
            size = [max(1, side * KEPT_SIDE // longest) for side in known.shape[-2:]]
            known = F.interpolate(known, size=size, mode="area")
        self._kept.append((layout(latent), known))

    def cropped(self, prompt_id: str | None, start: Tensor) -> bool:
        """Whether a latent [B, C, h, w] shows a part of what a sampling of this graph gave, and none of it whole.

        The first picture of the latent decides. Waits for the device.
        """
        if prompt_id != self._prompt_id or any(same_picture(start, whole) for whole, _ in self._kept):
            return False
        first = _planes(start[:1])
        return any(latent.shape[1] == first.shape[1] and crop_fit(first, latent) > CROP_FIT for _, latent in self._kept)
