"""Graphs in Python: ComfyUI's nodes and ours, wired as in a workflow, around the small model of small.py.

Call these after the `host` fixture. All sampling is ComfyUI's own code.
"""

from __future__ import annotations

import atexit
import gc
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from . import small
from .direct import Direct, DirectPatch
from .direct_pool import DirectPool
from .golden import FOLDER

SIZE = (16, 16)  # latent pixels
TOLERANCE = 1e-4  # relative to the adapter's effect; float32 gives about 1e-5, a wrong share or branch 1e-1
OBJECTS = ("cat", "red coffee cup")


class Bundle(NamedTuple):
    model: Any
    clip: Any
    vision: Any
    adapters: dict[str, Any]  # base, plus


@cache
def bundle() -> Bundle:
    """The models, loaded once for all tests. Nothing may change them, and some tests check that."""
    from mip_adapter.weights.adapter import load_adapter

    torch.set_num_threads(1)  # with tensors of a few KB, threads would only wait for each other
    model = small.model()
    golden = {family: load_adapter(FOLDER / f"{family}_ip_adapter.bin") for family in ("base", "plus")}
    adapters = {family: small.fitted(adapter, model) for family, adapter in golden.items()}
    return Bundle(model, small.clip(), small.vision(), adapters)


@atexit.register
def release() -> None:
    """Free the models before ComfyUI's modules are torn down."""
    bundle.cache_clear()
    _encoded.cache_clear()
    gc.collect()


def photo(number: int, height: int = 24, width: int = 32) -> Tensor:
    """A picture [1, H, W, 3] of noise, the same for the same number."""
    return torch.rand(1, height, width, 3, generator=torch.Generator().manual_seed(number))


@cache
def _encoded(text: str) -> list:
    import nodes

    with torch.inference_mode():
        return nodes.CLIPTextEncode().encode(bundle().clip, text)[0]


def prompt(text: str, clip: Any = None) -> list:
    """The conditioning of CLIPTextEncode. The bundle's CLIP encodes each text once; every caller gets its own list."""
    import nodes

    if clip is None:
        return [[tensor, dict(more)] for tensor, more in _encoded(text)]
    with torch.inference_mode():
        return nodes.CLIPTextEncode().encode(clip, text)[0]


def references(texts: Sequence[str] = OBJECTS, **each: Sequence) -> tuple:
    """A chain of MIPReference nodes. each: further inputs, one value per object, such as region=[a, None]."""
    from mip_adapter.nodes.reference import MIPReference

    chain: tuple = ()
    for i, text in enumerate(texts):
        more = {"image": photo(i), "weight": 1.0, **{name: values[i] for name, values in each.items()}}
        chain = MIPReference.execute(text=text, references=chain, **more).args[0]
    return chain


def apply(chain: tuple | None = None, *, model: Any = None, clip: Any = None, family: str = "base", adapter: Any = None,
          scale: float = 1.0, start: float = 0.0, end: float = 1.0, merge: dict | None = None,
          head: dict | None = None, fusion_head: Any = None) -> Any:  # fmt: skip
    """MIPApply behind MIPMerge and MIPFusionHead. Returns the new MODEL.

    head: settings of MIPFusionHead; fusion_head: an output of it.
    """
    from mip_adapter.attention.options import FusionHead, Merge
    from mip_adapter.nodes.apply import MIPApply

    parts = bundle()
    adapter = adapter or parts.adapters[family]
    with torch.inference_mode():
        return MIPApply.execute(
            model or parts.model, clip or parts.clip, parts.vision, adapter, references() if chain is None else chain,
            scale, start, end, Merge(**merge) if merge else None,
            FusionHead(adapter.head, head.get("gate", "image"), head.get("strength", 1.0)) if head else fusion_head,
        ).args[0]  # fmt: skip


Branch = Callable[[int, Any], tuple[bool, Sequence[int] | None]]


def positive_first(index: int, uuid: Any) -> tuple[bool, None]:
    """The branch of each cond in a plain graph: the positive has index 0."""
    return index == 0, None


def apply_directly(chain: tuple | None = None, *, branch: Branch = positive_first, model: Any = None,
                   clip: Any = None, family: str = "base", scale: float = 1.0, start: float = 0.0, end: float = 1.0,
                   merge: dict | None = None, head: dict | None = None, size: tuple[int, int] = SIZE,
                   pool: DirectPool | None = None) -> Any:  # fmt: skip
    """What `apply` must equal: a MODEL with the definition at every site. branch, pool: as in `DirectPatch`."""
    from mip_adapter.patching.encode import encode_references
    from mip_adapter.weights.sites import cross_attentions, unet_sites

    parts, pooled = bundle(), (merge or {}).get("measure") == "pool"
    adapter, model, chain = parts.adapters[family], model or parts.model, references() if chain is None else chain
    with torch.inference_mode():
        encoded = encode_references(chain, adapter, clip or parts.clip, parts.vision)
    regions = [r.region for r in chain]
    direct = Direct(
        tokens=encoded.tokens, null=encoded.null_tokens, texts=encoded.content_tokens, weights=encoded.weights,
        to_k={n: w.k_weight for n, w in adapter.site_weights.items()},
        to_v={n: w.v_weight for n, w in adapter.site_weights.items()},
        head=adapter.head, scale=scale, **merge or {}, **head or {},
        regions=[r if r is None else r[0] for r in regions] if any(r is not None for r in regions) else None,
    )  # fmt: skip
    to_sigma = model.get_model_object("model_sampling").percent_to_sigma
    window = (to_sigma(start), to_sigma(end))
    patched, unet = model.clone(), model.model.diffusion_model
    modules = cross_attentions(unet)
    pool = pool or DirectPool()
    pool.watch(patched)
    for site in unet_sites(unet):
        patch = DirectPatch(direct, modules[site.key], site.number, branch, size, window, pool if pooled else None)
        patched.set_model_attn2_replace(patch, *site.key)
    return patched


def guide(model: Any, positive: Any = None, negative: Any = None, cfg: float = 4.0) -> Any:
    """A CFGGuider."""
    import comfy.samplers

    guider = comfy.samplers.CFGGuider(model)
    guider.set_conds(positive or prompt("a cat beside a red coffee cup"), negative or prompt("blurry"))
    guider.set_cfg(cfg)
    return guider


def output(result: Any) -> Any:
    """The first output of a node, of either node API."""
    return getattr(result, "args", result)[0]


def sample(guider: Any, steps: int = 2, *, size: tuple[int, int] = SIZE, batch: int = 1, seed: int = 7,
           sampler: str = "euler", callback: Callable | None = None,
           channels: tuple[int, ...] = (4,)) -> Tensor:  # fmt: skip
    """What SamplerCustomAdvanced does with a guider. A MODEL gets a CFGGuider with the default prompts.

    channels: of the latents, with the frames where they have any.
    """
    import comfy.samplers

    guider = guider if hasattr(guider, "sample") else guide(guider)
    sampling = guider.model_patcher.get_model_object("model_sampling")
    noise = torch.randn(batch, *channels, *size, generator=torch.Generator().manual_seed(seed))
    with torch.inference_mode():
        return guider.sample(
            noise, torch.zeros_like(noise), comfy.samplers.sampler_object(sampler),
            comfy.samplers.calculate_sigmas(sampling, "normal", steps), callback=callback, disable_pbar=True, seed=seed,
        )  # fmt: skip


def deviation(got: Tensor, expected: Tensor, without: Tensor) -> float:
    """The error relative to the adapter's effect: 0 is exact, 1 is no better than no adapter."""
    got, expected, without = got.double(), expected.double(), without.double()
    effect = float((expected - without).norm())
    assert effect > 1e-3 * float(without.norm()), "the adapter changes too little to tell right from wrong"
    return float((got - expected).norm()) / effect


def watch_calls(model: Any, calls: list[list[int]]) -> Any:
    """A clone of the MODEL that appends the `cond_or_uncond` of every UNet call to `calls`."""

    def noted(run: Callable, call: dict) -> Tensor:
        calls.append(call["cond_or_uncond"])
        return run(call["input"], call["timestep"], **call["c"])

    model = model.clone()
    model.set_model_unet_function_wrapper(noted)
    return model


def in_tiles(model: Any, at_once: int) -> Any:
    """A clone of the MODEL that evaluates halves of the canvas, as packs that sample in tiles do.

    `at_once` halves are stacked in one call; all conds of the first half come before those of the second.
    """

    def run(apply_model: Callable, call: dict) -> Tensor:
        halves, out = call["input"].chunk(2, -1), []
        for start in range(0, 2, at_once):
            some = halves[start : start + at_once]
            more = {
                name: torch.cat([each] * len(some)) if isinstance(each, Tensor) else each
                for name, each in call["c"].items()
            }
            out += apply_model(torch.cat(some), torch.cat([call["timestep"]] * len(some)), **more).chunk(len(some))
        return torch.cat(out, -1)

    model = model.clone()
    model.set_model_unet_function_wrapper(run)
    return model


def in_windows(
    model: Any, length: int, schedule: str = "standard_static", fuse: str = "pyramid", **options: Any
) -> Any:
    """A clone of the MODEL whose batches the host samples in context windows of so many pictures. 0.3.75 can do so when
    there are as many steps as pictures less one. options: more for the host's handler."""
    import comfy.context_windows as windows

    model = model.clone()
    model.model_options["context_handler"] = windows.IndexListContextHandler(
        windows.get_matching_context_schedule(schedule), windows.get_matching_fuse_method(fuse),
        context_length=length, context_overlap=1, **options,
    )  # fmt: skip
    return model


def little_memory(monkeypatch: Any) -> None:
    """The model says that it needs more than any machine has: the host evaluates every cond in a call of its own."""
    monkeypatch.setattr(bundle().model.model, "memory_usage_factor", 1e12)


def compare(make_guider: Callable, *, order: Sequence[str] = (), areas: Sequence | None = None,
            sampling: dict | None = None, **options: Any) -> None:  # fmt: skip
    """Sampling with MIPApply must equal sampling with the definition. Rows of the batch are known by their cond's uuid.

    make_guider: `make_guider(model)` wires everything behind MIPApply.
    order: the names of the guider's conds in the order of evaluation, where ComfyUI reuses a cond's uuid for the
        opposite branch.
    areas: of the positives, in latent pixels, where the graph sets them in another way than by the cond's own area.
        sampling: options of `sample`.
    """
    table: dict[Any, tuple[str, Any]] = {}

    def branch(index: int, uuid: Any) -> tuple[bool, Any]:
        name, area = table[uuid]
        return "negative" not in (order[index] if order else name), area

    sampling = sampling or {}
    direct = make_guider(apply_directly(branch=branch, size=sampling.get("size", SIZE), **options))
    for name, conds in direct.original_conds.items():
        said = areas if areas and name == "positive" else [cond.get("area") for cond in conds]
        table.update({cond["uuid"]: (name, area) for cond, area in zip(conds, said, strict=True)})
    expected = sample(direct, **sampling)
    got = sample(make_guider(apply(**options)), **sampling)
    without = sample(make_guider(bundle().model), **sampling)
    off = deviation(got, expected, without)
    assert off < TOLERANCE, f"{off:.2g}"
