"""What an adapter is, determined from its keys and shapes. Only the version of FaceID Plus is not in them.

The keys of its sites are `N.to_k_ip.weight`, `N.to_v_ip.weight`, `N.text_to_weight.weight`, with odd N. Adapters for
FLUX.1 number the blocks instead, from 0, and may have biases.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from ..common.text import some
from .families import BY_NAME, JOINT_FAMILIES, FacePlus, Family, family_of, plus_version, projection_shapes
from .foreign import reject_foreign

Output = Literal["image_embeds", "penultimate_hidden_states", "pooled", "face_embeds"]

OUTPUTS: Mapping[str, Output] = {  # of the families that read no hidden states
    "base": "image_embeds", "xlabs": "image_embeds", "instantx": "pooled",
    "faceid": "face_embeds", "portrait": "face_embeds", "portrait-unnorm": "face_embeds",
}  # fmt: skip
FACE_ANALYSER = "a face analyser"

OUTPUT_WORDS: Mapping[Output, str] = {
    "image_embeds": "image embeddings",
    "penultimate_hidden_states": "hidden states",
    "pooled": "pooled embeddings",
}
ENCODER_NAMES = {
    ("image_embeds", 1280): "CLIP ViT-bigG/14",
    ("image_embeds", 1024): "CLIP ViT-H/14",
    ("image_embeds", 768): "CLIP ViT-L/14",
    ("pooled", 1152): "SigLIP so400m/14",
    ("penultimate_hidden_states", 1664): "CLIP ViT-bigG/14",
    ("penultimate_hidden_states", 1280): "CLIP ViT-H/14",
    ("penultimate_hidden_states", 1024): "CLIP ViT-L/14",
}
# Context width, then runs of (count of sites, width C) in the order of the sites' numbers: down, up, middle.
ARCHITECTURES = {
    "SDXL": (2048, ((4, 640), (20, 1280), (30, 1280), (6, 640), (10, 1280))),
    "SD1.5": (768, ((2, 320), (2, 640), (2, 1280), (3, 1280), (3, 640), (3, 320), (1, 1280))),
    "FLUX.1": (4096, ((57, 3072),)),
    "FLUX.1's double blocks": (4096, ((19, 3072),)),
}
# What a site's keys end with.
HEAD_KEY = "text_to_weight.weight"
WEIGHT_KEYS = ("to_k_ip.weight", "to_v_ip.weight", HEAD_KEY)
BIAS_KEYS = ("to_k_ip.bias", "to_v_ip.bias")
LORA_PARTS = ("to_q", "to_k", "to_v", "to_out")
_KEY = re.compile(r"(0|[1-9]\d{0,4})\.(to_k_ip|to_v_ip|text_to_weight)\.weight")


@dataclass(frozen=True)
class EncoderNeed:
    """The image encoder an adapter was trained with, and the output that it reads.

    name: from the model's page, such as 'CLIP ViT-H/14'; a phrase if the width is unknown.
    output: the encoder's output that the adapter reads; “face_embeds” come from a face analyser.
    width: E, of that output.
    """

    name: str
    output: Output
    width: int

    @property
    def loader(self) -> str:
        """The node that loads it with this output."""
        return "Load SigLIP (MIP)" if self.output == "pooled" else "Load CLIP Vision"


def encoder_need(output: Output, width: int) -> EncoderNeed:
    """The encoder need, with the encoder's name derived from the output and its width."""
    if output == "face_embeds":
        return EncoderNeed(FACE_ANALYSER, output, width)
    name = ENCODER_NAMES.get((output, width), f"an image encoder with {width}-wide {OUTPUT_WORDS[output]}")
    return EncoderNeed(name, output, width)


@dataclass(frozen=True)
class AdapterSpec:
    """Family, widths and sites of one adapter.

    context_dim: X, the width of the text context.
    tokens: T, image tokens per picture; None if the encoder's token count decides.
    encoder: the image encoder that it needs.
    has_head: whether it has a fusion head.
    site_widths: (number N, width C), ascending N.
    face: F, the width of the face embedding that it reads; None: it reads none.
    lora_rank: of the LoRA for the UNet's attentions that the file holds; 0: it holds none.
    """

    family: Family
    context_dim: int
    tokens: int | None
    encoder: EncoderNeed
    has_head: bool
    site_widths: tuple[tuple[int, int], ...]
    face: int | None = None
    lora_rank: int = 0

    @property
    def reads_pictures(self) -> bool:
        """Whether it needs an image encoder (CLIP vision)."""
        return self.encoder.output != "face_embeds"

    @property
    def architecture(self) -> str:
        """A name of `ARCHITECTURES`, or 'custom'."""
        return architecture(self.context_dim, self.site_widths)

    @property
    def is_joint(self) -> bool:
        """Whether it is for models in which text and picture attend together, as in FLUX.1."""
        return self.family in JOINT_FAMILIES

    def __str__(self) -> str:
        kind = "MIP-Adapter" if self.has_head else "IP-Adapter"
        target = self.architecture
        if target == "custom":
            target = f"a UNet with {len(self.site_widths)} sites and context width {self.context_dim}"
        tokens = "a token per image patch" if self.tokens is None else f"{self.tokens} tokens"
        head = "with fusion head" if self.has_head else "no fusion head"
        lora = f", LoRA of rank {self.lora_rank} inside" if self.lora_rank else ""
        needs = [FACE_ANALYSER] * (self.face is not None)
        needs += [f"{self.encoder.name} as CLIP vision"] * self.reads_pictures
        return f"{kind} {self.family} for {target}, {tokens}, {head}{lora}; needs {' and '.join(needs)}"


def architecture(context_dim: int, sites: Iterable[tuple[int, int]]) -> str:
    """The name of the UNet with exactly these sites (number N, width C); 'custom' if it is unknown."""
    widths = [width for _, width in sites]
    for name, (context, runs) in ARCHITECTURES.items():
        if context == context_dim and widths == [width for count, width in runs for _ in range(count)]:
            return name
    return "custom"


def read_spec(tensors: Mapping[str, Tensor], name: str = "this file", face_plus: FacePlus = BY_NAME) -> AdapterSpec:
    """The spec of an adapter.

    tensors: by flat key, from `read_tensors`.
    name: the file's, for messages and `plus_version`.
    face_plus: which FaceID Plus a file of that family is.
    Raises ValueError. It names the file's kind if the file is no supported adapter, or the keys that are missing,
    unexpected or of the wrong shape.
    """
    reject_foreign(tensors, name)
    projection = {k.removeprefix("image_proj."): t for k, t in tensors.items() if k.startswith("image_proj.")}
    at_sites = {k.removeprefix("ip_adapter."): t for k, t in tensors.items() if k.startswith("ip_adapter.")}
    _check_key_groups(tensors, projection, at_sites, name)
    family = family_of(projection, at_sites)
    if family is None:
        raise ValueError(
            f"“{name}” has an image projection of an unknown kind ({some(projection)}), expected a linear "
            "one, a Resampler or an MLP. Choose a MIP-Adapter or IP-Adapter file for SDXL, SD1.5 or FLUX.1."
        )
    dims, expected = projection_shapes(family, projection)
    if family == "faceid-plusv2":
        family = plus_version(name, dims.context, face_plus)
    wanted = {f"image_proj.{key}": shape for key, shape in expected.items()}
    numbers = block_numbers(at_sites) if family in JOINT_FAMILIES else site_numbers(at_sites)
    rank = lora_rank(at_sites)
    shapes = site_shapes(at_sites, dims.context, numbers, family)
    shapes |= lora_shapes(at_sites, dims.context, numbers, rank) if rank else {}
    wanted |= {f"ip_adapter.{key}": shape for key, shape in shapes.items()}
    _check_complete(tensors, wanted, name)
    output = OUTPUTS.get(family, "penultimate_hidden_states")
    return AdapterSpec(
        family=family,
        context_dim=dims.context,
        tokens=dims.tokens,
        encoder=encoder_need(output, dims.features),
        has_head=any(key.endswith(HEAD_KEY) for key in at_sites),
        site_widths=tuple((number, at_sites[f"{number}.{WEIGHT_KEYS[0]}"].shape[0]) for number in numbers),
        face=dims.face,
        lora_rank=rank,
    )


def _check_key_groups(
    tensors: Mapping[str, Tensor], projection: Mapping[str, Tensor], at_sites: Mapping[str, Tensor], name: str
) -> None:
    """Raises ValueError unless there are tensors of a projection and of sites, and no others."""
    choose = "Choose a MIP-Adapter or IP-Adapter file."
    if at_sites and all(key.endswith(HEAD_KEY) for key in at_sites) and not projection:
        raise ValueError(
            f"“{name}” holds only a fusion head, expected a whole adapter. Choose it as head_name of the "
            "MIP Fusion Head node instead."
        )
    if not projection and not at_sites:
        raise ValueError(
            f"“{name}” is not an adapter: it holds {some(tensors)}, expected image_proj.… and "
            f"ip_adapter.… keys. {choose}"
        )
    if not projection or not at_sites:
        got, lacks = ("ip_adapter", "image_proj") if at_sites else ("image_proj", "ip_adapter")
        raise ValueError(f"“{name}” holds {got}.… keys and no {lacks}.… keys: half an adapter. {choose}")
    if extra := [k for k in tensors if not k.startswith(("image_proj.", "ip_adapter."))]:
        raise ValueError(f"“{name}” holds unexpected keys beside the adapter: {some(extra)}. {choose}")


def _check_complete(tensors: Mapping[str, Tensor], wanted: Mapping[str, tuple[int, ...]], name: str) -> None:
    """Raises ValueError unless the tensors have exactly the keys and shapes in `wanted`."""
    problems = []
    if missing := [k for k in wanted if k not in tensors]:
        problems.append(f"missing {some(missing)}")
    if extra := [k for k in tensors if k not in wanted]:
        problems.append(f"unexpected {some(extra)}")
    wrong = [
        f"{k} is {list(tensors[k].shape)}, expected {list(shape)}"
        for k, shape in wanted.items()
        if k in tensors and tuple(tensors[k].shape) != shape
    ]
    wrong += [f"{k} is empty, expected numbers" for k in wanted if k in tensors and tensors[k].numel() == 0]
    wrong += [
        f"{k} holds {str(tensors[k].dtype).removeprefix('torch.')}, expected floating-point numbers"
        for k in wanted
        if k in tensors and not tensors[k].is_floating_point()
    ]
    if wrong:
        problems.append(some(wrong))
    if problems:
        raise ValueError(
            f"“{name}” is not a complete adapter: {'; '.join(problems)}. Download it again, or choose another file."
        )


def site_shapes(
    at_sites: Mapping[str, Tensor], context_dim: int, numbers: Iterable[int], family: Family
) -> dict[str, tuple[int, ...]]:
    """The shape that every site's key must have. at_sites: the sites' tensors, keys without 'ip_adapter.'.

    numbers: the sites'. Either all sites have a row of the fusion head or none has.
    """
    with_head = any(key.endswith(HEAD_KEY) for key in at_sites)
    shapes: dict[str, tuple[int, ...]] = {}
    for number in numbers:
        keys, values, head = (f"{number}.{part}" for part in WEIGHT_KEYS)
        leading = at_sites.get(keys, at_sites.get(values))
        width = leading.shape[0] if leading is not None and leading.ndim == 2 else 0
        shapes |= {keys: (width, context_dim), values: (width, context_dim)}
        if with_head:
            shapes[head] = (1, width)
        if family == "xlabs":
            shapes |= {f"{number}.{part}": (width,) for part in BIAS_KEYS}
    return shapes


def site_numbers(keys: Mapping[str, Tensor]) -> range:
    """1, 3, 5, …, as many as there are distinct numbers in the keys.

    Each transformer block of a UNet numbers its self-attention first, then its cross-attention.
    """
    return range(1, 2 * len(block_numbers(keys)), 2)


def block_numbers(keys: Mapping[str, Tensor]) -> range:
    """0, 1, 2, …, as many as there are distinct numbers in the keys, at least one."""
    return range(max(1, len({match[1] for key in keys if (match := _KEY.fullmatch(key))})))


def lora_rank(at_sites: Mapping[str, Tensor]) -> int:
    """Rank of the LoRA among the sites' keys; 0 without one."""
    downs = (tensor.shape for key, tensor in at_sites.items() if key.endswith("_lora.down.weight"))
    return next((shape[0] for shape in downs if len(shape) == 2), 1 if any("_lora." in key for key in at_sites) else 0)


def lora_shapes(
    at_sites: Mapping[str, Tensor], context_dim: int, numbers: Iterable[int], rank: int
) -> dict[str, tuple[int, ...]]:
    """The shape that every key of a FaceID file's LoRA must have: W + up · down for every attention of the UNet.

    at_sites: the sites' tensors, keys without 'ip_adapter.'.
    numbers: the sites'. A cross-attention has the number N of its site, the self-attention of its block N − 1.
    """
    shapes: dict[str, tuple[int, ...]] = {}
    for site in numbers:
        leading = at_sites.get(f"{site}.{WEIGHT_KEYS[0]}")
        width = leading.shape[0] if leading is not None and leading.ndim == 2 else 0
        for number, source in ((site - 1, width), (site, context_dim)):
            for part in LORA_PARTS:
                reads = source if part in ("to_k", "to_v") else width
                shapes[f"{number}.{part}_lora.down.weight"] = (rank, reads)
                shapes[f"{number}.{part}_lora.up.weight"] = (width, rank)
    return shapes
