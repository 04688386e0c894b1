"""Draws the relevance over the host's preview while sampling. A setting of the frontend switches it on.

The sampler's callback makes the preview with the user's chosen method and reports it to the host's progress handlers.
During that callback the frontend's handler is disabled and one of ours receives the preview. The frontend then gets
the picture once, with the objects' colours.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import folder_paths
import latent_preview
from comfy.cli_args import args
from comfy_execution.progress import ProgressHandler, get_progress_state
from PIL import Image
from torch import Tensor

from ..relevance.maps import preview
from ..relevance.record import RelevanceRecord

SETTING = "MIP-Adapter.LivePreview"  # web/js/live_preview.js
FRONTEND = "webui"  # the host's name for the handler that sends progress and previews
SIDE = 512  # pixels of the longer side, the host's own limit by default

log = logging.getLogger(__name__)


def wanted() -> bool:
    """Whether the frontend's setting is on. The host stores it in a file per user.

    With --multi-user the host does not say which user is sampling; the answer is then no.
    """
    if args.multi_user:
        return False
    try:
        file = Path(folder_paths.get_public_user_directory("default") or "") / "comfy.settings.json"
        settings = json.loads(file.read_text("utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(settings, dict) and settings.get(SETTING) is True


class _Listener(ProgressHandler):
    """Keeps the last progress that the host reported."""

    def __init__(self) -> None:
        super().__init__("mip-adapter")
        self.heard: tuple[str, float, float, Any] | None = None

    def update_handler(self, node_id, value, max_value, state, prompt_id, image=None) -> None:
        self.heard = node_id, value, max_value, image


def with_relevance(callback: Callable, records: Sequence[RelevanceRecord], latent_format: Any) -> Callable:
    """Wraps a sampler's callback so that its preview shows the relevance of the last record.

    callback: the sampler's, called with (step, x0, x, total_steps).
    records: those that the sampling has filled so far.
    latent_format: the model's.
    """

    def with_overlay(step: int, x0: Tensor, x: Tensor, total_steps: int) -> Any:
        registry, listener = get_progress_state(), _Listener()
        frontend = registry.handlers.get(FRONTEND)
        if not records or frontend is None or not frontend.enabled:
            return callback(step, x0, x, total_steps)
        registry.register_handler(listener)
        registry.disable_handler(FRONTEND)
        try:
            result = callback(step, x0, x, total_steps)
        finally:
            registry.enable_handler(FRONTEND)
            registry.unregister_handler(listener.name)
        if listener.heard is not None:
            node, value, total, image = listener.heard
            registry.update_progress(node, value, total, _picture(image, x0, records[-1], latent_format))
        return result

    return with_overlay


def _picture(image: Any, x0: Tensor, record: RelevanceRecord, latent_format: Any) -> Any:
    """The host's preview (format, picture, size limit), or a small picture if it is None, with the relevance on it."""
    try:
        kind, picture, limit = image or ("JPEG", _small_picture(x0, latent_format), SIDE)
        shares = record.shares()[:, 0]
        drawn = preview(picture.convert("RGB"), shares, record.names, record.colours, limit or SIDE)
        return kind, drawn, limit
    except Exception as error:  # another pack's preview may be anything, and must not stop the sampling
        log.debug("No relevance on the preview: %s", error)
        return image


def _small_picture(x0: Tensor, latent_format: Any) -> Image.Image:
    """A picture of the latent's size: its approximate colours, or grey where the format has none."""
    if latent_format.latent_rgb_factors is None:
        return Image.new("RGB", (x0.shape[-1], x0.shape[-2]), "grey")
    previewer = latent_preview.Latent2RGBPreviewer(
        latent_format.latent_rgb_factors,
        latent_format.latent_rgb_factors_bias,
        getattr(latent_format, "latent_rgb_factors_reshape", None),
    )
    return previewer.decode_latent_to_preview(x0)
