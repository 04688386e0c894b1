"""A face, upright and at its usual size: the crop that face recognition and the face adapters were trained on."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

# ArcFace's places for eyes, nose and corners of the mouth, x and y in a crop of 112 × 112 pixels.
PLACES = (
    (38.2946, 51.6963), (73.5318, 51.5014), (56.0252, 71.7366), (41.5493, 92.3655), (70.7299, 92.2041)
)  # fmt: skip
SIDE = 112


def similarity(points: np.ndarray, places: np.ndarray) -> np.ndarray:
    """The matrix [2, 3] that turns, scales and moves `points` [K, 2] onto `places` [K, 2] with the least squared error.

    Source: S. Umeyama, Least-squares estimation of transformation parameters between two point patterns, 1991.
    """
    points, places = points.astype(np.float64), places.astype(np.float64)
    centre, aim = points.mean(0), places.mean(0)
    u, sizes, v = np.linalg.svd((places - aim).T @ (points - centre))
    upright = np.array([1.0, np.sign(np.linalg.det(u) * np.linalg.det(v))])  # a turn, never a mirror image
    turn = u * upright @ v
    scale = (sizes * upright).sum() / ((points - centre) ** 2).sum()
    return np.column_stack([scale * turn, aim - scale * turn @ centre])


def aligned(picture: Tensor, points: np.ndarray, side: int = 2 * SIDE) -> Tensor:
    """The face in a picture [H, W, 3], as [side, side, 3]. What lies outside the picture is black.

    points: [5, 2], eyes, nose and corners of the mouth, x and y in pixels.
    """
    matrix = similarity(points, np.array(PLACES) * (side / SIDE))
    back = np.linalg.inv(np.vstack([matrix, [0, 0, 1]]))[:2]
    steps = torch.arange(side, dtype=torch.float64)
    rows, columns = torch.meshgrid(steps, steps, indexing="ij")
    places = torch.stack([columns, rows, torch.ones_like(rows)], dim=-1) @ torch.from_numpy(back).T  # [side, side, 2]
    height, width = picture.shape[:2]
    # Pixels lie at whole numbers; grid_sample counts from −1 at the first one to 1 at the last.
    grid = places * torch.tensor([2 / (width - 1), 2 / (height - 1)], dtype=torch.float64) - 1
    channels_first = picture.movedim(-1, 0).unsqueeze(0).float().cpu()
    crop = F.grid_sample(channels_first, grid.unsqueeze(0).float(), padding_mode="zeros", align_corners=True)
    return crop.squeeze(0).movedim(0, -1)
