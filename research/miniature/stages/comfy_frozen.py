"""The miniature as the frozen model of `training/`, over scenes that are encoded already."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ....miniature import config
from ....training.objective import Batch
from ....training.site import Merging
from ....weights.adapter import Adapter
from ....weights.sites import Site, cross_attentions, unet_sites
from .. import comfy_networks
from . import noise_schedule
from .base import Conditioner
from .paired import Paired
from .precision import activations

REMEMBERED = 4096  # captions whose encodings are cached


class Frozen:
    """A `training.objective.FrozenModel` over encoded scenes.

    The UNet is a copy in the dtype of activations on this device. What is trained stays in float32.
    """

    prediction: Literal["eps", "v"] = "v"
    dtype = torch.float32

    def __init__(self, unet: Any, vision: nn.Module, condition: Conditioner, scenes: Paired):
        self.vision, self.condition, self.scenes = vision, condition, scenes
        self.device = condition.device
        self.unet = deepcopy(unet).to(activations(self.device.type))
        self.unet.dtype = activations(self.device.type)  # ComfyUI's UNet casts its inputs to this dtype
        self.alphas = noise_schedule.alphas().float().to(self.device)
        self.sites: tuple[Site, ...] = unet_sites(self.unet)
        self.attentions = cross_attentions(self.unet)
        self.known: dict[str, tuple[Tensor, Tensor]] = {}

    def encode(self, samples: Sequence[Any], adapter: Adapter) -> Batch:
        """The batch of these `paired.Scene`s, without the captions and references that a sample drops."""
        rows, output = [sample.row for sample in samples], adapter.spec.encoder.output
        context, vector = self.words(["" if sample.drop_text else sample.caption for sample in samples])
        features = self.scenes.features(rows, output)
        left_out = torch.tensor([sample.drop_image for sample in samples for _ in sample.names])
        if left_out.any():
            features[left_out] = self.nothing(output)
        return Batch(
            ids=tuple(sample.id for sample in samples),
            indices=tuple(sample.index for sample in samples),
            latents=self.scenes.latents[rows].to(self.device).float(),
            context=context,
            vector=vector,
            features=features.to(self.device),
            texts=tuple(tuple(self.object_text(name) for name in sample.names) for sample in samples),
            mask=self.scenes.masks[rows].to(self.device).float(),
        )

    def words(self, captions: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Context [B, 77, 128] and vector [B, Y] of captions, cached."""
        if new := sorted({caption for caption in captions if caption not in self.known}):
            if len(self.known) > REMEMBERED:
                self.known.clear()
                new = sorted(set(captions))
            context, vector = self.condition(new)
            self.known |= {each: (context[i].half(), vector[i]) for i, each in enumerate(new)}
        found = [self.known[caption] for caption in captions]
        return torch.stack([context for context, _ in found]).float(), torch.stack([vector for _, vector in found])

    def object_text(self, name: str) -> Tensor:
        """[1, X]: the name of a kind is one token, encoded on its own."""
        return self.words([name])[0][0, 1:2]

    @torch.no_grad()
    def nothing(self, output: str) -> Tensor:
        """The image encoder's output where no reference is given; see `patching.encode.null_features`."""
        if output == "image_embeds":
            return torch.zeros(config.CLIP_VISION["projection_dim"])
        side = config.CLIP_VISION["image_size"]
        return self.vision(torch.zeros(1, 3, side, side, device=self.device))[0][0].cpu()

    def predict(self, noisy: Tensor, timesteps: Tensor, batch: Batch, merging: Merging) -> Tensor:
        replace = {site.key: partial(self._merge, site, merging) for site in self.sites}
        patches = {"patches_replace": {"attn2": replace}}
        return comfy_networks.run_unet(self.unet, noisy, timesteps, batch.context, batch.vector, patches).float()

    def _merge(self, site: Site, merging: Merging, q: Tensor, k: Tensor, v: Tensor, options: dict) -> Tensor:
        z_text = comfy_networks.attention(q, k, v, site.heads)
        return merging(site.number, site.heads, z_text, q, self.attentions[site.key].to_k)
