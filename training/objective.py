"""The loss of one batch over a frozen diffusion model, which is behind a protocol."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor, nn

from ..attention.options import Merge
from ..common.rng import generator
from ..weights.adapter import Adapter
from ..weights.projection import project
from ..weights.sites import Site
from .config import TrainConfig
from .dataset import Sample
from .site import Merging, RowObjects
from .trainable import TrainableAdapter


@dataclass(frozen=True, eq=False)
class Batch:
    """B encoded samples.

    ids, indices: of the samples.
    latents: [B, 4, h, w].
    context: [B, 77, X], the captions.
    vector: [B, Y], SDXL's pooled text and size conditioning; None for SD1.5.
    features: [ΣM_b, …], the image encoder's output for the objects of all rows, one after another.
    texts: for every row and every object [L_i, X].
    mask: [B, h, w] in 0..1, the share of each latent position that objects cover.
    """

    ids: tuple[str, ...]
    indices: tuple[int, ...]
    latents: Tensor
    context: Tensor
    vector: Tensor | None
    features: Tensor
    texts: tuple[tuple[Tensor, ...], ...]
    mask: Tensor


class FrozenModel(Protocol):
    """What training needs from a diffusion model. `training/comfy_model.py` implements it for ComfyUI.

    alphas: [K] on the device, ᾱ of every timestep.
    prediction: what the model predicts.
    dtype: of the activations.
    """

    alphas: Tensor
    prediction: Literal["eps", "v"]
    sites: tuple[Site, ...]
    device: torch.device
    dtype: torch.dtype

    def encode(self, samples: Sequence[Sample], adapter: Adapter) -> Batch:
        """Encode samples without gradients. Empty counterparts replace dropped captions and references."""
        ...

    def predict(self, noisy: Tensor, timesteps: Tensor, batch: Batch, merging: Merging) -> Tensor:
        """The UNet's output for noisy latents, differentiable with respect to the tensors in `merging`.

        timesteps: [B], indices into `alphas`.
        merging: called at every cross-attention.
        """
        ...


class Objective(nn.Module):
    """The adapter in training and the model as one module. A forward pass returns one differentiable loss."""

    def __init__(self, trainable: TrainableAdapter, model: FrozenModel, recipe: TrainConfig) -> None:
        super().__init__()
        self.trainable, self.recipe = trainable, recipe
        self._model = (model,)  # in a tuple, so that a frozen model that is a module is not registered as a submodule

    def forward(self, batch: Batch) -> Tensor:
        model, recipe = self._model[0], self.recipe
        noise, timesteps = draw_noise(batch, recipe, len(model.alphas))
        alpha = model.alphas[timesteps.to(model.alphas.device)].view(-1, 1, 1, 1)
        latents, noise = batch.latents, noise.to(batch.latents)
        noisy, target = diffuse(latents, noise, alpha, model.prediction)
        adapter = self.trainable.adapter()
        objects = RowObjects.gather(project(adapter, batch.features), batch.texts)
        merging = Merging(adapter.site_weights, objects, Merge(recipe.merge, recipe.normalization), recipe.gate)
        predicted = model.predict(noisy, timesteps.to(noisy.device), batch, merging)
        error = masked_mean((predicted.float() - target).square().mean(1), batch.mask, recipe.background)
        return (error * snr_weight(alpha.flatten(), model.prediction, recipe.min_snr)).mean()


def draw_noise(batch: Batch, recipe: TrainConfig, count: int) -> tuple[Tensor, Tensor]:
    """Noise like the latents, and timesteps [B].

    They depend on the seed and the samples' indices alone, not on the process that computes them.

    cubic: t = (1 − u³) · count with u uniform in 0..1; its median is 7/8 of count.
    noise_offset: ε + offset · ε' with one ε' for all places of a channel; the model is to predict the sum.
    """
    generators = [generator(recipe.seed, "noise", index) for index in batch.indices]
    if recipe.timesteps == "cubic":
        uniform = torch.cat([torch.rand(1, generator=each) for each in generators])
        timesteps = ((1 - uniform**3) * count).long().clamp_max(count - 1)
    else:
        timesteps = torch.cat([torch.randint(count, (1,), generator=each) for each in generators])
    shape = batch.latents.shape[1:]
    noise = torch.stack([torch.randn(shape, generator=each) for each in generators])
    if recipe.noise_offset:
        noise += recipe.noise_offset * torch.stack([torch.randn(shape[0], 1, 1, generator=each) for each in generators])
    return noise, timesteps


def diffuse(latents: Tensor, noise: Tensor, alpha: Tensor, prediction: str) -> tuple[Tensor, Tensor]:
    """x_t = √ᾱ x + √(1−ᾱ) ε, and the target of the prediction: ε, or v = √ᾱ ε − √(1−ᾱ) x."""
    signal, spread = alpha.sqrt(), (1 - alpha).sqrt()
    return signal * latents + spread * noise, noise if prediction == "eps" else signal * noise - spread * latents


def masked_mean(error: Tensor, mask: Tensor, outside: float) -> Tensor:
    """[B] weighted means of errors [B, h, w]. A position weighs 1 inside objects and `outside` elsewhere."""
    weight = outside + (1 - outside) * mask
    return (weight * error).flatten(1).sum(1) / weight.flatten(1).sum(1)


def snr_weight(alpha: Tensor, prediction: str, gamma: float) -> Tensor:
    """min-SNR (arXiv 2303.09556): min(SNR, γ) / SNR for eps, / (SNR + 1) for v; 1 where γ is 0. alpha [B]."""
    if not gamma:
        return torch.ones_like(alpha)
    snr = alpha / (1 - alpha)
    return snr.clamp(max=gamma) / (snr if prediction == "eps" else snr + 1)
