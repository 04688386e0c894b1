"""The adapter in training, with some or all of its tensors as parameters; and a new adapter where there is no file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ..common.rng import generator
from ..weights.adapter import Adapter, build_adapter, site_weights
from ..weights.sites import Site, SiteKey
from ..weights.spec import BIAS_KEYS, HEAD_KEY, WEIGHT_KEYS
from .config import TrainConfig

Fresh = Literal["base", "faceid"]  # families of new adapters


@dataclass(frozen=True, eq=False)
class TrainedAdapter(Adapter):
    """An adapter with a record of how it was made. about: the metadata of its file."""

    about: Mapping[str, str] = field(default_factory=dict)


def flat_tensors(adapter: Adapter) -> dict[str, Tensor]:
    """The official layout: `image_proj.…`, `ip_adapter.N.…`; the head's rows as [1, C]; a FaceID file's LoRA too."""
    flat = {f"image_proj.{key}": tensor for key, tensor in adapter.image_proj.items()}
    for number, site in adapter.site_weights.items():
        head = None if site.head is None else site.head.unsqueeze(0)
        tensors = zip(
            (*WEIGHT_KEYS, *BIAS_KEYS), (site.k_weight, site.v_weight, head, site.k_bias, site.v_bias), strict=True
        )
        flat |= {f"ip_adapter.{number}.{part}": tensor for part, tensor in tensors if tensor is not None}
    return flat | {f"ip_adapter.{key}": tensor for key, tensor in adapter.lora.items()}


def with_tensors(adapter: Adapter, flat: Mapping[str, Tensor]) -> Adapter:
    """The adapter with other tensors. Their gradients stay connected."""
    sites = site_weights(flat, adapter.site_weights, adapter.spec)
    projection = {key: flat[f"image_proj.{key}"] for key in adapter.image_proj}
    lora = {key: flat[f"ip_adapter.{key}"] for key in adapter.lora}
    has_head = any(site.head is not None for site in sites.values())
    spec = adapter.spec if adapter.spec.has_head == has_head else replace(adapter.spec, has_head=has_head)
    tables = MappingProxyType(projection), sites, MappingProxyType(lora)
    return Adapter(adapter.name, spec, *tables)


def is_trained(key: str, recipe: TrainConfig) -> bool:
    """Whether the recipe trains the tensor with this key. A LoRA inside the file stays as it is."""
    if "_lora." in key:
        return False
    if key.endswith(HEAD_KEY):
        return recipe.gate != "off"
    if key.startswith("ip_adapter."):
        return recipe.train != "head"
    return recipe.train == "all"


class TrainableAdapter(nn.Module):
    """An adapter as a module. What the recipe trains are float32 parameters, the rest are frozen copies.

    starting_adapter: what training starts from; a head that it lacks is added, see `first_row`.
    """

    def __init__(self, adapter: Adapter, recipe: TrainConfig, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.starting_adapter = adapter
        flat = flat_tensors(adapter)
        if recipe.gate != "off":
            for number, site in adapter.site_weights.items():
                flat.setdefault(f"ip_adapter.{number}.{HEAD_KEY}", first_row(number, site.k_weight.shape[0], recipe))
        self.keys = tuple(key for key in flat if is_trained(key, recipe))
        self.trained = nn.ParameterList(nn.Parameter(_copy(flat.pop(key), torch.float32)) for key in self.keys)
        self.frozen = {
            key: _copy(tensor, dtype if key.startswith("ip_adapter.") else torch.float32)
            for key, tensor in flat.items()
        }

    def _apply(self, fn, recurse: bool = True):  # frozen tensors are not buffers, so checkpoints do not store them
        self.frozen = {key: fn(tensor) for key, tensor in self.frozen.items()}
        return super()._apply(fn, recurse)

    def adapter(self) -> Adapter:
        """The adapter with gradients."""
        return with_tensors(self.starting_adapter, self.frozen | dict(zip(self.keys, self.trained, strict=True)))

    def finished(self, learnt: Mapping[str, Tensor] | None, about: Mapping[str, str]) -> TrainedAdapter:
        """A copy on the CPU. Tensors that are not trained keep the starting adapter's dtypes.

        learnt: tensors by key to use in place of the parameters (their moving average).
        about: metadata.
        """
        flat = flat_tensors(self.starting_adapter)
        tensors = learnt or dict(zip(self.keys, self.trained, strict=True))
        flat |= {key: tensor.detach().to("cpu", torch.float32, copy=True) for key, tensor in tensors.items()}
        made = with_tensors(self.starting_adapter, flat)
        parts = made.name, made.spec, made.image_proj, made.site_weights, made.lora
        return TrainedAdapter(*parts, about=MappingProxyType(dict(about)))


def check_family(adapter: Adapter) -> None:
    """Raises ValueError for a family that is not trained: those that read a face embedding and a picture both."""
    if adapter.spec.face is not None and adapter.spec.reads_pictures:
        raise ValueError(
            f"“{adapter.name}” ({adapter.spec.family}) reads face embeddings and pictures of faces, and training is "
            "for adapters that read one of both: choose a FaceID, portrait, base or plus adapter."
        )


def first_row(number: int, width: int, recipe: TrainConfig) -> Tensor:
    """The fusion head of site `number` before its first step [1, C].

    "random": uniform in ±1/√C, with which torch begins a linear layer from C to 1, and so the official script. "zeros":
    sigmoid(0) is the same everywhere, so g̃ is 1 and training starts from the adapter as it is.
    """
    row = torch.zeros(1, width)
    if recipe.head_start == "random":
        row.uniform_(-(width**-0.5), width**-0.5, generator=generator(recipe.seed, "fusion head", number))
    return row


def _copy(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    return tensor.detach().to(dtype, copy=True)


def init_adapter(
    sites: Sequence[Site],
    attentions: Mapping[SiteKey, Any],
    encoder_width: int,
    tokens: int = 4,
    seed: int = 0,
    family: Fresh = "base",
) -> Adapter:
    """A new adapter: to_k_ip and to_v_ip are copies of the UNet's to_k and to_v.

    encoder_width: of the image embedding, or of the face embedding.
    tokens: how many the image projection makes of it. The projection is random, so it must be trained too (train =
        "all").
    """
    context, random = sites[0].context_dim, generator(seed, "fresh adapter")
    flat: dict[str, Tensor] = {}
    layers = {"base": ("proj",), "faceid": ("proj.0", "proj.2")}[family]
    widths = (encoder_width, *([2 * encoder_width] * (len(layers) - 1)), tokens * context)
    for key, columns, rows in zip(layers, widths, widths[1:], strict=False):
        flat[f"image_proj.{key}.weight"] = torch.randn(rows, columns, generator=random) * columns**-0.5
        flat[f"image_proj.{key}.bias"] = torch.zeros(rows)
    flat |= {"image_proj.norm.weight": torch.ones(context), "image_proj.norm.bias": torch.zeros(context)}
    for site in sites:
        attention = attentions[site.key]
        for part, module in zip(WEIGHT_KEYS, (attention.to_k, attention.to_v), strict=False):
            flat[f"ip_adapter.{site.number}.{part}"] = module.weight.detach().to("cpu", torch.float32, copy=True)
    return build_adapter(flat, "a fresh adapter")
