"""Files made to harm: each is refused with a sentence, within a bound on memory and time."""

from __future__ import annotations

import io
import json
import pickle
import pickletools
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from mip_adapter.weights.adapter import load_adapter, load_head
from mip_adapter.weights.files import read_tensors

from ..support import weights_samples as samples
from ..support.bounded import needs_fork, refused
from ..support.weights_samples import SMALL

pytestmark = needs_fork


def saved(content: object, **options: bool) -> bytes:
    stream = io.BytesIO()
    torch.save(content, stream, **options)
    return stream.getvalue()


def archive(index: bytes, compression: int = zipfile.ZIP_STORED, **records: bytes) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", compression) as made:
        made.writestr("archive/data.pkl", index)
        for key, content in records.items():
            made.writestr(f"archive/data/{key[1:]}", content)
    return stream.getvalue()


def index_of(content: object) -> bytes:
    with zipfile.ZipFile(io.BytesIO(saved(content))) as made:
        return made.read("archive/data.pkl")


def sound(**fill: Callable) -> dict:
    return samples.nested(samples.flat(SMALL["base"], **fill))


def expanded() -> bytes:
    """2.6 KB whose tensors have the shapes of an SDXL adapter, each made of one number."""
    one = torch.ones(1, dtype=torch.float16)
    return saved(samples.nested(samples.flat(samples.FAMILIES["MIP-Adapter model_sdxl"], one.expand)))


def same_numbers() -> bytes:
    block = torch.ones(1 << 20)
    return saved({"image_proj": {f"{i}.weight": block for i in range(3000)}, "ip_adapter": {}})


def deflated_zeros() -> bytes:
    index = index_of({})
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as made:
        made.writestr("archive/data.pkl", index)
        with made.open("archive/data/0", "w") as record:
            for _ in range(65):
                record.write(bytes(1 << 20))
    return stream.getvalue()


def second_index() -> bytes:
    stream = io.BytesIO(saved(sound()))
    with zipfile.ZipFile(stream, "a", zipfile.ZIP_DEFLATED) as made:
        made.writestr("archive/more/data.pkl", b"\x80\x02" + b"N" * (48 << 20) + b".")
    return stream.getvalue()


def long_index() -> bytes:
    return archive(b"\x80\x02" + b"N" * 10_000_000 + b"N.", zipfile.ZIP_DEFLATED)


def long_legacy() -> bytes:
    return b"\x80\x02" + b"N" * 5_000_000 + b"N."


def far_memo() -> bytes:
    return archive(b"\x80\x02}r\xff\xff\xff\xff.")


def deep_key() -> bytes:
    return archive(b"\x80\x02})" + b"\x85" * 100_000 + b"Ns.")


def deep_value() -> bytes:
    return archive(b"\x80\x02}X\x01\x00\x00\x00a)" + b"\x85" * 100_000 + b"s.")


def wide_nest() -> bytes:
    """Four dictionaries, each of 300 entries that are all the next one: 8 · 10⁹ keys to visit."""
    inside: dict = {str(i): 0 for i in range(300)}
    for _ in range(3):
        inside = {str(i): inside for i in range(300)}
    return archive(pickle.dumps(inside, protocol=2))


def long_key() -> bytes:
    inside = {str(i): 0 for i in range(3000)}
    return archive(pickle.dumps({"x" * 3_000_000: inside}, protocol=2))


def beyond_its_record() -> bytes:
    """A storage of 4 GB, in a record of 16 bytes: torch.load would read other memory of the process."""
    index = index_of({"image_proj": {"proj.weight": torch.arange(4.0)}, "ip_adapter": {}})
    return archive(index.replace(b"K\x04", b"J" + (1 << 30).to_bytes(4, "little")), _0=bytes(16))


def legacy_beyond() -> bytes:
    whole = saved({"image_proj": {"proj.weight": torch.arange(4.0)}}, _use_new_zipfile_serialization=False)
    return whole.replace(b"K\x04", b"J" + (1 << 30).to_bytes(4, "little"))


def many_keys() -> bytes:
    header = {str(i): {"dtype": "F16", "shape": [0], "data_offsets": [0, 0]} for i in range(60_000)}
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text


def long_header() -> bytes:
    text = json.dumps({"__metadata__": {"a": "x" * (90 << 20)}}).encode()
    return struct.pack("<Q", len(text)) + text


def many_records() -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as made:
        for i in range(8_000):
            made.writestr(f"archive/data/{i:0>300}", b"")
        made.writestr("archive/data.pkl", index_of({}))
    return stream.getvalue()


ATTACKS = {
    expanded: "is made of 1 numbers",
    same_numbers: "the same numbers in many tensors",
    deflated_zeros: "far larger than the file",
    second_index: "more than one index",
    long_index: "larger than any adapter's",
    long_legacy: "larger than any adapter's",
    far_memo: "holds no tensors",
    deep_key: "keys that are no names",
    deep_value: "is not a tensor",
    wide_nest: "more than 50,000 tensors",
    long_key: "a name of 3,000,00",
    beyond_its_record: "smaller than the index says",
    legacy_beyond: "not as long as the index says",
    many_keys: "more than 50,000 tensors",
    long_header: "a header of 94,",
    many_records: "more records than any adapter",
}


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.__name__)
def test_attack(tmp_path: Path, attack: Callable[[], bytes]) -> None:
    path = tmp_path / "sent.bin"
    path.write_bytes(attack())
    refused(lambda: load_adapter(path), "sent.bin", ATTACKS[attack])


def test_a_head_is_read_by_the_same_rules(tmp_path: Path) -> None:
    path = tmp_path / "sent.bin"
    path.write_bytes(saved({"1.text_to_weight.weight": torch.ones(1).expand(1, 1 << 40)}))
    refused(lambda: load_head(path), "is made of 1 numbers")


def test_parts_of_a_tensor_and_shared_numbers_load(tmp_path: Path) -> None:
    """What torch.save writes of views: an offset, strides, the same numbers twice."""
    block = torch.arange(24.0).reshape(4, 6)
    for legacy in (False, True):
        content = {"a": block[1:, ::2], "b": block.T, "c": block, "d": torch.tensor(7), "e": torch.ones(0, 3)}
        (tmp_path / "a.bin").write_bytes(saved(content, _use_new_zipfile_serialization=not legacy))
        tensors = read_tensors(tmp_path / "a.bin")
        assert all(torch.equal(tensors[key], content[key]) for key in content)
        assert tensors["a"].untyped_storage().data_ptr() == tensors["c"].untyped_storage().data_ptr()


def test_the_same_as_torch_load(tmp_path: Path) -> None:
    """Of every dtype, of state dicts with their metadata, of what is unaligned in an old file."""
    numbers = torch.arange(7)
    dtypes = (
        torch.float16,
        torch.bfloat16,
        torch.float64,
        torch.int8,
        torch.uint8,
        torch.int16,
        torch.int32,
        torch.bool,
    )
    content = {str(dtype): numbers.to(dtype) for dtype in dtypes} | torch.nn.Linear(3, 2).state_dict()
    for legacy in (False, True):
        (tmp_path / "a.bin").write_bytes(saved(content, _use_new_zipfile_serialization=not legacy))
        tensors = read_tensors(tmp_path / "a.bin")
        wanted = torch.load(tmp_path / "a.bin", weights_only=True)
        assert tensors.keys() == wanted.keys()
        assert all(torch.equal(tensors[key], wanted[key]) and tensors[key].dtype == wanted[key].dtype for key in wanted)


def test_no_opcode_runs_anything(tmp_path: Path) -> None:
    """Every opcode that Python knows, alone and on a full stack."""
    for opcode in pickletools.opcodes:
        for before in (b"", b"(}]N)", b"}X\x01\x00\x00\x00aN"):
            (tmp_path / "a.bin").write_bytes(
                archive(b"\x80\x02" + before + opcode.code.encode("latin-1") + b"os\nsystem\n.")
            )
            with pytest.raises(ValueError, match="a.bin"):
                load_adapter(tmp_path / "a.bin")
