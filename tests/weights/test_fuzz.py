"""The loader under fire: whatever happens to a file, it loads as a valid adapter or is refused with a sentence."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch
from mip_adapter.weights.adapter import Adapter, load_adapter, load_head
from safetensors.torch import save_file

from ..support import weights_samples as samples
from ..support.bounded import LONGER
from ..support.weights_samples import SMALL

pytestmark = pytest.mark.filterwarnings("ignore:Detected pickle protocol:UserWarning")

FORMATS = ("safetensors", "bin", "old.bin")


def write(path: Path, tensors: dict[str, torch.Tensor]) -> None:
    if path.name.endswith(".safetensors"):
        save_file({key: tensor.contiguous().clone() for key, tensor in tensors.items()}, path)
    else:
        zipped = not path.name.endswith("old.bin")
        torch.save(samples.nested(tensors), path, _use_new_zipfile_serialization=zipped)


def loads_or_refuses(path: Path) -> Adapter | None:
    """Never another exception. What loads is whole: right shapes, finite numbers, usable."""
    try:
        adapter = load_adapter(path)
    except ValueError as error:
        assert len(str(error)) > 20 and str(error).isprintable()
        assert path.name in str(error)
        adapter = None
    else:
        spec = adapter.spec
        assert [(n, site.k_weight.shape[0]) for n, site in adapter.site_weights.items()] == list(spec.site_widths)
        for site in adapter.site_weights.values():
            assert site.k_weight.shape == site.v_weight.shape and site.k_weight.shape[1] == spec.context_dim
            assert torch.isfinite(site.k_weight).all() and torch.isfinite(site.v_weight).all()
            assert (site.head is not None) == spec.has_head
        assert all(torch.isfinite(tensor).all() for tensor in adapter.image_proj.values())
    try:
        load_head(path)
    except ValueError as error:
        assert path.name in str(error)
    return adapter


@pytest.fixture(params=[(kind, family) for kind in FORMATS for family in ("base", "plus")], ids=lambda p: "-".join(p))
def sound(request, tmp_path) -> tuple[Path, bytes]:
    """A path to write to, and the bytes of a sound adapter in that format."""
    kind, family = request.param
    path = tmp_path / f"fuzzed.{kind}"
    write(path, samples.flat(SMALL[family]))
    assert loads_or_refuses(path) is not None
    return path, path.read_bytes()


def test_cut_off_anywhere(sound):
    path, whole = sound
    rng = random.Random(1)
    lengths = [0, 1, 7, 8, 9, 100, len(whole) - 1, len(whole) - 8]
    for length in lengths + [rng.randrange(len(whole)) for _ in range(32 * LONGER)]:
        path.write_bytes(whole[:length])
        assert loads_or_refuses(path) is None, f"cut at {length} of {len(whole)}"


def test_flipped_bytes(sound):
    path, whole = sound
    rng = random.Random(2)
    for case in range(80 * LONGER):
        broken = bytearray(whole)
        # Half of the cases near the start or the end, where the indices are.
        for _ in range(rng.choice((1, 1, 2, 8, 64))):
            where = rng.choice((rng.randrange(len(whole)), rng.randrange(512), len(whole) - 1 - rng.randrange(512)))
            broken[where] = rng.randrange(256) if case % 2 else broken[where] ^ (1 << rng.randrange(8))
        path.write_bytes(broken)
        loads_or_refuses(path)


def test_spliced_and_padded(sound):
    path, whole = sound
    rng = random.Random(3)
    for _ in range(20 * LONGER):
        a, b = sorted(rng.randrange(len(whole)) for _ in range(2))
        for broken in (whole[:a] + whole[b:], whole[:b] + whole[a:], whole[:a] + rng.randbytes(b - a) + whole[b:]):
            path.write_bytes(broken)
            loads_or_refuses(path)


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("family", SMALL)
def test_swapped_shapes_dropped_and_added_keys(tmp_path, kind, family):
    rng = random.Random(f"{kind}{family}")
    path = tmp_path / f"fuzzed.{kind}"
    original = samples.flat(SMALL[family])
    for _ in range(30 * LONGER):
        tensors = dict(original)
        for _ in range(rng.choice((1, 1, 2, 5))):
            mutate(tensors, rng)
        write(path, tensors)
        adapter = loads_or_refuses(path)
        same = tensors.keys() == original.keys() and all(tensors[k].shape == original[k].shape for k in tensors)
        if same and all_finite(tensors):
            assert adapter is not None


def mutate(tensors: dict[str, torch.Tensor], rng: random.Random) -> None:
    key, other = rng.choice(sorted(tensors)), rng.choice(sorted(tensors))
    match rng.randrange(9):
        case 0:
            tensors[key] = torch.randn([rng.choice((0, 1, 2, 5, 64)) for _ in range(rng.randrange(5))])
        case 1:
            tensors[key] = tensors[key].movedim(0, -1) if tensors[key].ndim else tensors[key]
        case 2:
            tensors[key], tensors[other] = tensors[other], tensors[key]
        case 3 if len(tensors) > 1:
            del tensors[key]
        case 4:
            tensors[f"{key.rsplit('.', 1)[0]}.{rng.choice(('bias', 'weight', 'x'))}"] = torch.ones(3)
        case 5:
            number = rng.choice((0, 2, 9, 99999, 10**9))
            tensors[f"ip_adapter.{number}.{rng.choice(('to_k_ip', 'to_v_ip', 'text_to_weight'))}.weight"] = torch.ones(
                8, 12
            )
        case 6:
            tensors[key] = tensors[key].to(rng.choice((torch.float16, torch.int8, torch.bool, torch.complex64)))
        case 7 if tensors[key].is_floating_point():
            tensors[key] = tensors[key] * float("nan")
        case _:
            tensors[f"image_proj.layers.{rng.choice((0, 3, 77))}.0.to_q.weight"] = torch.ones(64, 16)


def all_finite(tensors: dict[str, torch.Tensor]) -> bool:
    return all(t.is_floating_point() and bool(torch.isfinite(t).all()) for t in tensors.values())
