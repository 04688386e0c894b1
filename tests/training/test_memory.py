"""The memory of one training step at real size, counted tensor by tensor on the meta device: no GPU is needed, and the
allocator's waste and cuDNN's workspaces are not in it."""

from __future__ import annotations

import weakref

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

from ..support.training_world import small_recipe

META = torch.device("meta")
GIB = 1 << 30
ENCODERS = 2 * (123_060_480 + 694_659_841 + 1_844_907_776 + 83_653_863)  # fp16: CLIP-L, CLIP-G, ViT-bigG, VAE


class Peak(TorchDispatchMode):
    """Bytes of all storages that are alive, and the most there were."""

    def __init__(self) -> None:
        super().__init__()
        self.live: dict[int, int] = {}
        self.now = self.peak = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        tree_map_only(Tensor, self._note, out)
        return out

    def _note(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        if tensor.device == META and storage._cdata not in self.live:
            self.live[storage._cdata] = storage.nbytes()
            self.now += storage.nbytes()
            self.peak = max(self.peak, self.now)
            weakref.finalize(storage, self._free, storage._cdata)

    def _free(self, key: int) -> None:
        self.now -= self.live.pop(key)


def one_step(checkpointing: bool, train: str = "adapter", batch_size: int = 4, side: int = 512) -> tuple[float, float]:
    """(all, without the UNet's own weights) in GiB at the peak of a step of SDXL in bf16 with two objects a picture."""
    import comfy.model_base
    import comfy.model_patcher
    from mip_adapter.training.comfy_model import HostModel
    from mip_adapter.training.objective import Batch, Objective
    from mip_adapter.training.trainable import TrainableAdapter
    from mip_adapter.weights.adapter import build_adapter

    from ..support.weights_samples import Sample, flat, meta
    from ..weights.test_sites import build

    config, _ = build("SDXL")
    config.set_inference_dtype(torch.bfloat16, None)
    recipe = small_recipe(checkpointing=checkpointing, train=train, precision="bf16", batch_size=batch_size)
    with Peak() as memory:
        model = comfy.model_base.SDXL(config, device=META)
        weights = memory.now
        assert 2.56e9 < weights / 2 < 2.58e9
        frozen = HostModel(comfy.model_patcher.ModelPatcher(model, META, META), None, None, None, recipe)
        frozen._load = lambda: model.requires_grad_(False)
        widths = tuple(site.width for site in frozen.sites)
        sample = Sample("base", 2048, 1280, widths, True, tokens=4)
        adapter = build_adapter(flat(sample, meta), "adapter")
        student = TrainableAdapter(adapter, recipe, torch.bfloat16).to(META)
        objective = Objective(student, frozen, recipe)
        optimizer = torch.optim.AdamW(student.parameters())
        empty = lambda *shape: torch.empty(shape, device=META)  # noqa: E731
        for parameter in student.parameters():
            parameter.grad = torch.zeros_like(parameter)
        optimizer.step()  # its state lies beside the activations of every step but the first
        optimizer.zero_grad(set_to_none=True)
        batch = Batch(
            ids=("",) * batch_size, indices=tuple(range(batch_size)),
            latents=empty(batch_size, 4, side // 8, side // 8), context=empty(batch_size, 77, 2048),
            vector=empty(batch_size, 2816), features=empty(2 * batch_size, 1280),
            texts=((empty(1, 2048), empty(2, 2048)),) * batch_size,
            mask=empty(batch_size, side // 8, side // 8),
        )  # fmt: skip
        objective(batch).backward()
        optimizer.step()
    return memory.peak / GIB, (memory.peak - weights) / GIB


def test_a_step_on_sdxl_fits_a_card_of_24_gb(host) -> None:
    """Also with all encoders beside it, which the host would otherwise move away."""
    peak, own = one_step(True)
    print(f"{peak:.2f} GiB, {own:.2f} without the UNet, {ENCODERS / GIB:.2f} for the encoders")
    assert own > 5 and peak < 12 and peak + ENCODERS / GIB < 18


def test_muon_needs_little_beside_what_it_steps() -> None:
    """All keys and values of SDXL's middle: a few matrices at a time."""
    from mip_adapter.training.optimizers import Muon

    with Peak() as memory:
        matrices = [torch.nn.Parameter(torch.empty(1280, 2048, device=META)) for _ in range(20)]
        optimizer = Muon(matrices, 0.02, 0.1)
        for matrix in matrices:
            matrix.grad = torch.empty_like(matrix)
        optimizer.step()
        lasting = memory.now
        optimizer.step()
    assert memory.now == lasting and memory.peak < lasting + 0.3 * GIB
