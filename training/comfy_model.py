"""An SD1.5 or SDXL model that ComfyUI has loaded, as the frozen model of training."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, Literal

import comfy.model_management as management
import comfy.model_sampling
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ..common.hashing import weights_sha256
from ..patching.encode import encode_pictures, face_features, null_features
from ..patching.inner_lora import with_inner_lora
from ..patching.object_text import encode_object_text
from ..weights.adapter import Adapter
from ..weights.sites import Site, SiteKey, check_sites, cross_attentions, unet_sites
from .comfy_latents import sampled_latents
from .config import TrainConfig
from .dataset import Sample, SubjectFolder
from .objective import Batch
from .run_config import BaseModels
from .site import Merging
from .trainable import check_family

CONTEXT = 77  # tokens: captions are cut to one CLIP context, as in the paper
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
GIB = 1 << 30


class HostModel:
    """A `FrozenModel` over ComfyUI's objects. Create and use it outside of inference mode.

    The weights keep their values, and the given MODEL keeps its patches: its LoRAs are applied, its replacements of
    cross-attentions are not.

    Raises ValueError for a model that is not a UNet with eps- or v-prediction, or that needs more than a noisy latent.
    """

    def __init__(self, model: Any, clip: Any, vae: Any, clip_vision: Any, recipe: TrainConfig) -> None:
        self.patcher, self.clip, self.vae, self.clip_vision, self.recipe = model.clone(), clip, vae, clip_vision, recipe
        self.unet = model.model.diffusion_model
        self.sites: tuple[Site, ...] = unet_sites(self.unet)
        check_channels(self.unet, model.model.latent_format.latent_channels)
        self.device: torch.device = model.load_device
        self.dtype = choose_dtype(recipe.precision, self.device)
        current = model.get_model_object("manual_cast_dtype") or model.model.get_dtype()
        if current != self.dtype:
            self.patcher.set_model_compute_dtype(self.dtype)
        sampling = model.get_model_object("model_sampling")
        self.prediction: Literal["eps", "v"] = prediction_of(sampling)
        self.alphas = (1 / (1 + sampling.sigmas.float().square())).to(self.device, copy=True)
        # What the UNet gets for each timestep: its number, except for distilled and
        # continuous model samplings.
        self.unet_timesteps: Tensor = sampling.timestep(sampling.sigmas).float().to(self.device, copy=True)
        self._attentions: dict[SiteKey, Any] = cross_attentions(self.unet)
        # The cache wraps a function of the CLIP alone. A cached method would keep `self` and all models alive.
        self._object_text: Callable[[str, Adapter], Tensor] = lru_cache(4096)(partial(encode_object_text, clip))
        self._empty: Tensor | None = None

    def base_sha256(self) -> str:
        """Digest of the UNet's own weights. It does not depend on LoRAs, applied or not."""
        prefix, weights = "diffusion_model.", unpatched_weights(self.patcher)
        return weights_sha256({k.removeprefix(prefix): v for k, v in weights.items() if k.startswith(prefix)})

    def encode(self, samples: Sequence[Sample], adapter: Adapter) -> Batch:
        """Encode samples with ComfyUI's VAE, CLIP and image encoder, in inference mode.

        The results are cloned outside of it, because inference tensors cannot be saved for a backward pass.
        """
        with torch.inference_mode():
            latents = self.patcher.model.process_latent_in(self._encode_pictures(samples))
            context, vector = zip(*(self._encode_caption(sample) for sample in samples), strict=True)
            features = self._encode_references(samples, adapter)
            texts = tuple(tuple(self._object_text(name, adapter) for name in sample.names) for sample in samples)

        def ours(tensor: Tensor) -> Tensor:
            return tensor.to(self.device, torch.float32).clone()

        return Batch(
            ids=tuple(sample.id for sample in samples),
            indices=tuple(sample.index for sample in samples),
            latents=ours(latents),
            context=ours(torch.cat(context)),
            vector=None if vector[0] is None else ours(torch.cat(vector)),
            features=ours(features),
            texts=tuple(tuple(ours(text) for text in row) for row in texts),
            mask=ours(torch.stack([sample.mask for sample in samples])),
        )

    def predict(self, noisy: Tensor, timesteps: Tensor, batch: Batch, merging: Merging) -> Tensor:
        """ComfyUI's `_apply_model` without its conversions from and to sigma."""
        self._load()
        options = dict(self.patcher.model_options.get("transformer_options", {}))
        replace = dict(options.get("patches_replace", {}))
        replace["attn2"] = {site.key: partial(self._merge, site, merging) for site in self.sites}
        options |= {"patches_replace": replace, "optimized_attention_override": _plain_attention}
        more = {} if batch.vector is None else {"y": batch.vector.to(self.dtype)}
        with checkpointed(self.unet, self.recipe.checkpointing):
            return self.unet(
                noisy.to(self.dtype),
                self.unet_timesteps[timesteps],
                context=batch.context.to(self.dtype),
                transformer_options=options,
                **more,
            )

    def _merge(self, site: Site, merging: Merging, q: Tensor, k: Tensor, v: Tensor, options: dict) -> Tensor:
        z_text = attend(q, k, v, site.heads)
        return merging(site.number, site.heads, z_text, q, self._attentions[site.key].to_k)

    def _load(self) -> None:
        """Load the UNet onto the device, ready for gradients. Cheap when it is loaded already."""
        need = self.recipe.batch_size * (self.recipe.resolution / 512) ** 2 * GIB
        management.load_models_gpu([self.patcher], memory_required=need)
        release_inference_tensors(self.unet)
        self.unet.requires_grad_(False)

    def _encode_pictures(self, samples: Sequence[Sample]) -> Tensor:
        pictures = torch.stack([sample.image for sample in samples]).movedim(1, -1)  # BCHW -> BHWC
        if self.recipe.latents == "mean":
            return self.vae.encode(pictures)
        return sampled_latents(self.vae, pictures, [sample.index for sample in samples], self.recipe.seed)

    def _encode_caption(self, sample: Sample) -> tuple[Tensor, Tensor | None]:
        caption = "" if sample.drop_text else sample.caption
        for bracket in "()":  # punctuation in a caption, but ComfyUI would read them as weights
            caption = caption.replace(bracket, "\\" + bracket)
        context, pooled = self.clip.encode_from_tokens(self.clip.tokenize(caption), return_pooled=True)
        vector = self.patcher.model.encode_adm(
            pooled_output=pooled,
            height=sample.original_size[0],
            width=sample.original_size[1],
            crop_h=sample.corner[0],
            crop_w=sample.corner[1],
            target_height=self.recipe.resolution,
            target_width=self.recipe.resolution,
            device=self.device,
        )
        return context[:, :CONTEXT], vector

    def _encode_references(self, samples: Sequence[Sample], adapter: Adapter) -> Tensor:
        """Features of the objects of all samples, one after another. Dropped references get those of the unconditional
        branch.
        """
        if adapter.spec.face is None:
            pictures = torch.cat([sample.references for sample in samples]).movedim(1, -1)
            features = encode_pictures(self.clip_vision, pictures, adapter)
        else:
            faces = [sample.faces for sample in samples if sample.faces is not None]
            features = face_features(torch.cat(faces), adapter)
        if any(sample.drop_image for sample in samples):
            if self._empty is None:
                self._empty = null_features(self.clip_vision, adapter)
            left_out = torch.tensor([sample.drop_image for sample in samples for _ in sample.names])
            features[left_out] = self._empty.to(features)
        return features


def prepared(
    base: BaseModels, adapter: Adapter, dataset_folder: str | Path, recipe: TrainConfig
) -> tuple[HostModel, SubjectFolder, dict[str, str]]:
    """What `train` needs: the base as the frozen model, the samples, and metadata on what training began with.

    Raises ValueError with a sentence for the user.
    """
    # `train` checks both for any model. Here they come before the folder is read, which may take minutes.
    check_sites(adapter.spec, adapter.name, unet_sites(base.model.model.diffusion_model))
    check_family(adapter)
    samples = SubjectFolder(dataset_folder, recipe, adapter.spec.face)
    host_model = HostModel(with_inner_lora(base.model, adapter, 1.0), *base[1:], recipe)
    return host_model, samples, {"start": adapter.name, "base_weights_sha256": host_model.base_sha256()}


def choose_dtype(precision: str, device: torch.device) -> torch.dtype:
    """The dtype of a precision. "auto" is float32 on the CPU, bf16 where the device supports it, and fp16 on older
    cards.
    """
    if precision != "auto":
        return DTYPES[precision]
    if device.type == "cpu":
        return torch.float32
    return torch.bfloat16 if management.should_use_bf16(device) else torch.float16


def check_channels(unet: Any, latent: int) -> None:
    """Raises ValueError for a UNet that takes more than the latent, such as a mask or a second picture."""
    if unet.in_channels != latent:
        raise ValueError(
            f"This model's UNet reads {unet.in_channels} channels where a latent has {latent}: it is made for "
            "inpainting or editing. Train on a plain checkpoint; the adapter works with both."
        )


def prediction_of(sampling: Any) -> Literal["eps", "v"]:
    """The prediction type of a model sampling. Raises ValueError unless it is eps or v over discrete timesteps."""
    kinds = comfy.model_sampling
    others = (kinds.EDM, kinds.X0)
    if getattr(sampling, "sigmas", None) is not None and not isinstance(sampling, others):
        if isinstance(sampling, kinds.V_PREDICTION):
            return "v"
        if isinstance(sampling, kinds.EPS):
            return "eps"
    raise ValueError(
        f"This model's sampling ({', '.join(kind.__name__ for kind in type(sampling).__mro__[1:3])}) is neither "
        "eps- nor v-prediction; training works with SD1.5, SDXL and their derivatives."
    )


def attend(q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
    """Attention [B, N, h·d] by PyTorch's own kernel. Other kernels that ComfyUI may choose have no backward pass."""
    q, k, v = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)


def _plain_attention(_: Callable, q: Tensor, k: Tensor, v: Tensor, heads: int, *args: Any, **kwargs: Any) -> Tensor:
    return attend(q, k, v, heads)


def release_inference_tensors(module: nn.Module) -> None:
    """Replace weights that were loaded in inference mode, since those cannot take part in a backward pass.

    Each replacement is an ordinary tensor over the same memory, so values and storage stay the same.
    """
    for part in module.modules():
        for name, own in part._parameters.items():
            if own is not None and own.is_inference():
                twin = torch.empty(0, dtype=own.dtype, device=own.device)
                twin.set_(own.untyped_storage(), own.storage_offset(), own.size(), own.stride())
                part._parameters[name] = nn.Parameter(twin, requires_grad=False)


@contextmanager
def checkpointed(unet: Any, active: bool) -> Iterator[None]:
    """Gradient checkpointing inside the block: transformer and residual blocks store only their inputs and run again in
    the backward pass.
    """
    blocks = list(_heavy_blocks(unet)) if active else []
    before = [vars(block).get("forward") for block in blocks]
    try:
        for block in blocks:
            block.forward = partial(_recomputed, block.forward)
        yield
    finally:
        for block, forward in zip(blocks, before, strict=True):
            vars(block).pop("forward", None)
            if forward is not None:
                block.forward = forward


def _heavy_blocks(unet: Any) -> Iterator[Any]:
    for layers in (*unet.input_blocks, unet.middle_block, *unet.output_blocks):
        for layer in layers or ():
            if hasattr(layer, "transformer_blocks"):
                yield from layer.transformer_blocks
            elif hasattr(layer, "in_layers"):
                yield layer


def _recomputed(forward: Callable, *args: Any, **kwargs: Any) -> Any:
    # ComfyUI writes the current block into the options during the forward pass. The second pass needs them unchanged.
    if "transformer_options" in kwargs:
        kwargs["transformer_options"] = dict(kwargs["transformer_options"])
    return checkpoint(forward, *args, use_reentrant=False, preserve_rng_state=False, **kwargs)


def model_parts(patcher: Any) -> Iterator[Any]:
    """What identifies a MODEL: all its weights by name, and its LoRAs."""
    yield from sorted(unpatched_weights(patcher).items())
    for key, patches in sorted(getattr(patcher, "patches", {}).items(), key=lambda item: str(item[0])):
        yield str(key), patches


def unpatched_weights(patcher: Any) -> dict[str, Tensor]:
    """The weights of a MODEL by name, without LoRAs.

    When a model is loaded, ComfyUI writes LoRAs into its weights, perhaps those of another MODEL that shares them. It
    keeps the original weights in `backup`.
    """
    backup = getattr(patcher, "backup", {})
    return {key: getattr(backup.get(key), "weight", tensor) for key, tensor in patcher.model.state_dict().items()}
