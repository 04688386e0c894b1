"""On models that are changed, stored or run in other ways: LoRA, hooks, ControlNet, dtypes, low VRAM, torch.compile."""

from __future__ import annotations

import copy
import logging

import pytest
import torch
from safetensors.torch import save_file

from ..support import graphs, small
from ..support.graphs import TOLERANCE, bundle, compare, deviation, guide, prompt, references, sample

pytestmark = pytest.mark.slow

TO_K = "attn2.to_k.weight"
MASK = torch.linspace(0, 1, 8).expand(1, 8, 8)
CLIP_TO_Q = "text_encoders.clip_g.transformer.text_model.encoder.layers.0.self_attn.q_proj"


@pytest.fixture
def lora(host) -> dict[str, torch.Tensor]:
    """A LoRA on every to_k of the UNet's cross-attentions and on a matrix of the CLIP, also as “test.safetensors”."""
    tensors, seeded = {}, torch.Generator().manual_seed(0)
    shapes = {key: weight.shape for key, weight in bundle().model.model.named_parameters() if TO_K in key}
    for key, (rows, columns) in {**shapes, CLIP_TO_Q: (32, 32)}.items():
        key = key.removesuffix(".weight")
        tensors[f"{key}.lora_up.weight"] = torch.randn(rows, 4, generator=seeded) * 0.5
        tensors[f"{key}.lora_down.weight"] = torch.randn(4, columns, generator=seeded) * columns**-0.5
        tensors[f"{key}.alpha"] = torch.tensor(4.0)
    folder = host.base / "models" / "loras"
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / "test.safetensors")
    return tensors


def load_lora(model, clip=None):
    import folder_paths

    import nodes

    folder_paths.filename_list_cache.clear()
    if clip is None:
        return nodes.LoraLoaderModelOnly().load_lora_model_only(model, "test.safetensors", 0.8)[0]
    return nodes.LoraLoader().load_lora(model, clip, "test.safetensors", 0.8, 0.8)


def merged_by_hand(lora: dict):
    """The model with the LoRA's product added to its weights, never seen by the host's LoRA code."""
    model = small.model()
    weights = dict(model.model.named_parameters())
    with torch.no_grad():
        for key in (k.removesuffix(".lora_up.weight") for k in lora if k.endswith("lora_up.weight")):
            if f"{key}.weight" in weights:
                weights[f"{key}.weight"] += 0.8 * lora[f"{key}.lora_up.weight"] @ lora[f"{key}.lora_down.weight"]
    return model


def test_lora_before_and_after_is_a_merged_model(lora) -> None:
    """The object texts' keys come from the patched to_k."""
    merged = merged_by_hand(lora)
    expected, without = sample(graphs.apply_directly(model=merged)), sample(merged)
    for lorad in (graphs.apply(model=load_lora(bundle().model)), load_lora(graphs.apply()), graphs.apply(model=merged)):
        assert deviation(sample(lorad), expected, without) < TOLERANCE
    assert deviation(sample(graphs.apply()), expected, without) > 100 * TOLERANCE


def test_lora_on_the_clip(lora) -> None:
    """The object texts are encoded by the CLIP that is connected, with its LoRA."""
    model, clip = load_lora(bundle().model, bundle().clip)
    conds = prompt("a cat beside a cup", clip), prompt("blurry", clip)
    compare(lambda patched: guide(patched, *conds), model=model, clip=clip)


def test_hooks_on_one_cond(lora) -> None:
    """A LoRA hook on the positive alone: the host switches weights between two calls of one step."""
    import comfy.hooks

    positive = prompt("a cat beside a cup")
    hooked = comfy.hooks.set_hooks_for_conditioning(positive, comfy.hooks.create_hook_lora(lora, 0.8, 0.0))
    compare(lambda model: guide(model, hooked))
    once = sample(guide(graphs.apply(), positive))
    assert not torch.equal(once, sample(guide(graphs.apply(), hooked)))
    assert torch.equal(once, sample(guide(graphs.apply(), positive)))


@pytest.mark.parametrize("on_both", [True, False])
def test_controlnet(host, on_both: bool) -> None:
    import comfy.cldm.cldm
    import comfy.controlnet
    import comfy.ops

    import nodes

    unet = copy.deepcopy(bundle().model.model.model_config.unet_config)
    del unet["out_channels"], unet["transformer_depth_output"]
    net = comfy.cldm.cldm.ControlNet(**unet, hint_channels=3, operations=comfy.ops.manual_cast, device="cpu")
    small.fill(net)
    control = comfy.controlnet.ControlNet(net, load_device=torch.device("cpu"))
    conds = prompt("a cat beside a cup"), prompt("blurry")
    both = nodes.ControlNetApplyAdvanced().apply_controlnet(*conds, control, graphs.photo(1, 128, 128), 0.5, 0.0, 0.9)
    positive, negative = both[0], both[1] if on_both else conds[1]
    assert not torch.equal(sample(guide(bundle().model, positive, negative)), sample(guide(bundle().model, *conds)))
    compare(lambda model: guide(model, positive, negative))


DTYPES = [
    (torch.float32, None),
    (torch.float16, None),
    (torch.bfloat16, None),
    (torch.float8_e4m3fn, torch.float32),
    (torch.float8_e4m3fn, torch.bfloat16),
    (torch.float8_e5m2, torch.float16),
]


@pytest.mark.parametrize("merge", [{}, {"strategy": "concat"}, {"sharpness": 4.0, "background": 0.5}], ids=str)
@pytest.mark.parametrize("dtype, compute", DTYPES, ids=str)
def test_dtypes(host, dtype: torch.dtype, compute: torch.dtype | None, merge: dict) -> None:
    """As exact as the definition in the same dtype, against the definition in float32 with the same weights: two errors
    of one size, whose ratio is the processor's luck."""
    model, exact = small.stored_as(dtype, compute), small.stored_as(dtype, torch.float32)
    expected, without = sample(graphs.apply_directly(model=exact, merge=merge), 1), sample(exact, 1)
    floor = deviation(sample(graphs.apply_directly(model=model, merge=merge), 1), expected, without)
    assert deviation(sample(graphs.apply(model=model, merge=merge), 1), expected, without) < 2 * floor + TOLERANCE


@pytest.mark.parametrize("before", [True, False], ids=["before", "after"])
def test_compute_dtype_is_changed(host, before: bool) -> None:
    """ModelComputeDtype behind MIPApply: the plan follows what the model really computes in."""
    from comfy_extras.nodes_model_advanced import ModelComputeDtype

    def as_bf16(model):
        return getattr(ModelComputeDtype(), ModelComputeDtype.FUNCTION)(model, "bf16")[0]

    expected, without = sample(graphs.apply_directly(), 1), sample(bundle().model, 1)
    got = sample(graphs.apply(model=as_bf16(bundle().model)) if before else as_bf16(graphs.apply()), 1)
    assert 1e-4 < deviation(got, expected, without) < 0.1


def test_low_vram(lora) -> None:
    """Weights that stay outside and are cast, with their LoRA, whenever their module runs."""
    import comfy.model_patcher

    class LittleMemory(comfy.model_patcher.ModelPatcher):
        def partially_load(self, device_to, extra_memory=0, force_patch_weights=False):
            return super().partially_load(device_to, 4_000_000, force_patch_weights)

    model = load_lora(small.model(LittleMemory))
    got = sample(graphs.apply(model=model))
    to_ks = [m for n, m in model.model.named_modules() if n.endswith("attn2.to_k")]
    assert model.model.model_lowvram and any(m.weight_function for m in to_ks), "everything was loaded"
    merged = merged_by_hand(lora)
    assert deviation(got, sample(graphs.apply_directly(model=merged)), sample(merged)) < TOLERANCE


def test_torch_compile(host, monkeypatch) -> None:
    """TorchCompileModel's own way, with a backend that does all but make kernels, on one transformer so that it takes
    seconds. (The order of the nodes makes no difference: the model is compiled while it samples.)"""
    from comfy_api.torch_helpers import set_torch_compile_wrapper

    monkeypatch.setattr(logging.getLogger("torch.__trace"), "propagate", False)  # pytest would keep every line of it
    regional = references(region=[MASK, None])
    choices: tuple[dict, ...] = ({}, {"chain": regional}, {"merge": {"strategy": "concat"}})
    for options in choices:
        compiled = graphs.apply(**options).clone()
        set_torch_compile_wrapper(
            model=compiled, backend="aot_eager", keys=["diffusion_model.input_blocks.3.1.transformer_blocks.0"]
        )
        expected, without = sample(graphs.apply(**options), 1), sample(bundle().model, 1)
        assert deviation(sample(compiled, 1), expected, without) < TOLERANCE
