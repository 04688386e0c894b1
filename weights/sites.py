"""A model's attention sites: where they are, how adapters number them, whether an adapter fits.

In a UNet they are the cross-attentions. In FLUX.1 they are its blocks, where text and picture attend together.

The sites are found by the attributes of the host's blocks. That needs no table of architectures, and it works on the
meta device.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any

from torch import Tensor

from .spec import AdapterSpec, architecture

# The host's patch key: ("input" | "middle" | "output", block, index) in a UNet,
# ("double_block" | "single_block", index) in FLUX.1.
SiteKey = tuple[str, int, int] | tuple[str, int]

FLUX_TEXT = 4096  # width of FLUX.1's text, from T5 XXL

_ARCHITECTURE_NAMES = {  # the host's class -> what its users call it
    "OpenAISignatureMMDITWrapper": "Stable Diffusion 3",
    "MMDiT": "Stable Diffusion 3",
    "HunYuanDiT": "Hunyuan-DiT",
    "StageC": "Stable Cascade",
    "StageB": "Stable Cascade",
}
OWN_ATTENTION = (
    "Packs for quantised models, such as Nunchaku, run an attention of their own that nobody else can reach; fp8 and "
    "GGUF files do not need them."
)


@dataclass(frozen=True)
class Site:
    """One cross-attention, or one block of FLUX.1.

    key: the host's patch key.
    number: N, the site's number in adapters.
    width: C.
    heads: number of heads.
    context_dim: X, the width of the text.
    """

    key: SiteKey
    number: int
    width: int
    heads: int
    context_dim: int


def model_sites(model: Any) -> tuple[Site, ...]:
    """All sites of a diffusion model. Raises ValueError if it has none that an adapter could use."""
    return joint_sites(model) if is_joint(model) else unet_sites(model)


def is_joint(model: Any) -> bool:
    """Whether text and picture attend together in this model as in FLUX.1, text first."""
    # The text of HunyuanVideo, which also has double blocks, comes last and through a network instead of a matrix.
    return all(hasattr(model, name) for name in ("double_blocks", "single_blocks", "pe_embedder")) and hasattr(
        getattr(model, "txt_in", None), "weight"
    )


def joint_sites(model: Any) -> tuple[Site, ...]:
    """The blocks of FLUX.1 in the order in which they run. Their numbers count both kinds of blocks, from 0."""
    blocks = [
        ((kind, index), block)
        for kind, row in (("double_block", model.double_blocks), ("single_block", model.single_blocks))
        for index, block in enumerate(row)
    ]
    context = _columns(model.txt_in)
    return tuple(
        Site(key, number, block.hidden_size, block.num_heads, context) for number, (key, block) in enumerate(blocks)
    )


def edit_sites(model: Any) -> tuple[Site, ...]:
    """The blocks of a model that attends to text, picture and references together, text first, as edit models do.

    Raises ValueError if the model is none.
    """
    if is_joint(model):
        return joint_sites(model)
    if all(hasattr(model, name) for name in ("transformer_blocks", "txt_norm", "txt_in", "img_in", "time_text_embed")):
        context = _columns(model.txt_in)
        return tuple(
            Site(("double_block", number), number, block.dim, block.num_attention_heads, context)
            for number, block in enumerate(model.transformer_blocks)
        )
    kind = type(model).__name__
    kind = _ARCHITECTURE_NAMES.get(kind, kind)
    raise ValueError(
        f"This model is no edit model that MIP-Adapter knows (it is a {kind}): load FLUX.1 Kontext, FLUX.2 or "
        f"Qwen-Image-Edit with ComfyUI's own loader. {OWN_ATTENTION}"
    )


def unet_sites(unet: Any) -> tuple[Site, ...]:
    """All sites in the order of their numbers.

    N counts every attention in diffusers' order: down blocks, up blocks, middle block. Within a transformer block the
    self-attention comes first, then the cross-attention. Raises ValueError if the model has no site.
    """
    if not hasattr(unet, "input_blocks") or not hasattr(unet, "output_blocks"):
        raise ValueError(_no_cross_attention(unet))
    sites = [
        Site(key, number, _rows(module.to_q), module.heads, _columns(module.to_k))
        for number, key, name, module in _attentions(unet)
        if name == "attn2"
    ]
    if not sites:
        raise ValueError(_no_cross_attention(unet))
    return tuple(sites)


def cross_attentions(unet: Any) -> dict[SiteKey, Any]:
    """The attn2 module of every site, with to_q, to_k, to_v and to_out."""
    return {key: module for _, key, name, module in _attentions(unet) if name == "attn2"}


def attention_weights(unet: Any) -> dict[str, str]:
    """Names of the weights of all attentions in the UNet by a FaceID file's name for them: “0.to_q”, … “N.to_out”.

    See `unet_sites` for the numbers; self-attentions have the even ones.
    """
    names = {module: name for name, module in unet.named_modules()}
    parts = {"to_q": "to_q", "to_k": "to_k", "to_v": "to_v", "to_out": "to_out.0"}
    return {
        f"{number}.{part}": f"{names[module]}.{below}.weight"
        for number, _, _, module in _attentions(unet)
        for part, below in parts.items()
    }


def _attentions(unet: Any) -> Iterator[tuple[int, SiteKey, str, Any]]:
    """All attentions as (number, key of the block, “attn1” or “attn2”, module), in the order of their numbers."""
    number = count()
    for key, block in _transformer_blocks(unet):
        for name in ("attn1", "attn2"):
            if (module := getattr(block, name, None)) is not None:
                yield next(number), key, name, module


def _transformer_blocks(unet: Any) -> Iterator[tuple[SiteKey, Any]]:
    middle = getattr(unet, "middle_block", None)
    places: tuple[tuple[str, Any], ...] = (
        ("input", unet.input_blocks),
        ("output", unet.output_blocks),
        ("middle", [] if middle is None else [middle]),
    )
    for place, blocks in places:
        for position, layers in enumerate(blocks):
            inside = (block for layer in layers for block in getattr(layer, "transformer_blocks", ()))
            for index, block in enumerate(inside):
                yield (place, position, index), block


def _rows(linear: Any) -> int:
    return getattr(linear, "out_features", None) or linear.weight.shape[0]


def _columns(linear: Any) -> int:
    # in_features first, because quantised layers store their weight in other shapes
    return getattr(linear, "in_features", None) or linear.weight.shape[1]


def _no_cross_attention(unet: Any) -> str:
    own = type(unet).__name__
    kind = _ARCHITECTURE_NAMES.get(own, own)
    article = "an" if kind[:1] in "AEIOU" else "a"
    said = (
        f"This model has no cross-attention UNet (it is {article} {kind}): MIP-Adapter works with SD1.5, "
        "SDXL, FLUX.1 and their derivatives. Load such a checkpoint."
    )
    return said if own in _ARCHITECTURE_NAMES else f"{said} {OWN_ATTENTION}"


def check_sites(spec: AdapterSpec, name: str, sites: Sequence[Site]) -> None:
    """Raises ValueError if an adapter does not belong to the UNet with these sites. name: used in messages."""
    context = sites[0].context_dim
    numbered = tuple((site.number, site.width) for site in sites)
    if context == spec.context_dim and numbered == spec.site_widths:
        return
    doubles = sum(site.key[0] == "double_block" for site in sites)
    if spec.is_joint and context == spec.context_dim and numbered[:doubles] == spec.site_widths:
        return  # XLabs' adapters act at the double blocks alone
    adapter = _called(spec.context_dim, len(spec.site_widths), spec.architecture)
    model = _called(context, len(sites), architecture(context, numbered))
    if context == spec.context_dim and len(sites) == len(spec.site_widths):
        own = dict(spec.site_widths)
        number, width = next((n, w) for n, w in numbered if own.get(n) != w)
        model += f" (at site {number} the model is {width} wide, the adapter {own.get(number)})"
    raise ValueError(
        f"“{name}” is an adapter for {adapter}, and this model is {model}. Load a checkpoint "
        "that belongs to the adapter, or choose the adapter for this model."
    )


def check_head(head: Mapping[int, Tensor], name: str, sites: Sequence[Site]) -> None:
    """Raises ValueError if a fusion head from another file does not belong to these sites."""
    got = {number: row.shape[0] for number, row in head.items()}
    want = {site.number: site.width for site in sites}
    if got != want:
        wrong = next(n for n in sorted(want | got) if want.get(n) != got.get(n))
        widths = f"site {wrong}: head {got.get(wrong, 'none')}, model {want.get(wrong, 'none')} wide"
        raise ValueError(
            f"The fusion head “{name}” has {len(got)} rows and this model has {len(want)} sites ({widths}): "
            "it was trained for another model. Choose a head for this one, or set head_name to “from the adapter”."
        )


def _called(context_dim: int, count: int, known: str) -> str:
    """A UNet's name, or for a custom one its shape in words."""
    if known != "custom":
        return known
    if context_dim == FLUX_TEXT:
        return f"FLUX.1's family with {count} blocks"
    families = {2048: "SDXL's family", 768: "SD1.x", 1024: "SD2.x", 1280: "the SDXL refiner"}
    family = families.get(context_dim, "a UNet of its own kind")
    return f"{family} with {count} cross-attention sites and context width {context_dim}"
