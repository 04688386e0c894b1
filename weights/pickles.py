"""Reads the pickles in torch's files without running anything.

A pickle is a program: it may import and call whatever is installed, and a few bytes of it can claim gigabytes. Here its
opcodes are interpreted by a table of the few that `torch.save` writes for tensors. Nothing is imported or called, a
tensor becomes a note of where its numbers are (`View`), and every claim is checked before memory is asked for.
`torch.load` is not used: other packs replace it, and where a record is smaller than its index says, it reads beyond.
"""

from __future__ import annotations

import math
import pickletools
from collections.abc import Callable
from typing import Any, BinaryIO, NamedTuple

import torch

MOST_OPCODES = 300_000  # about 40 for a tensor: three times those of a whole SDXL checkpoint
LARGEST = 1 << 25  # bytes of a file's pickles, about 100 for a tensor
MOST_AXES = 16


class Forbidden(ValueError):
    """The pickle would import what weights do not need."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.name = name


class Name(NamedTuple):
    """What a pickle would import; it stays a name."""

    text: str


class Storage(NamedTuple):
    """Numbers in the file. key: of their record; numbers: how many."""

    key: str
    dtype: torch.dtype
    numbers: int


class View(NamedTuple):
    """A tensor: which numbers of a storage it consists of, with offset and strides in numbers."""

    storage: Storage
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]


_DTYPES = {
    "Float": torch.float32, "Half": torch.float16, "BFloat16": torch.bfloat16, "Double": torch.float64,
    "Long": torch.int64, "Int": torch.int32, "Short": torch.int16, "Char": torch.int8, "Byte": torch.uint8,
    "Bool": torch.bool, "ComplexFloat": torch.complex64, "ComplexDouble": torch.complex128,
}  # fmt: skip
_STORAGES = {f"{module} {kind}Storage": dtype for kind, dtype in _DTYPES.items() for module in ("torch", "torch.cuda")}
_CALLING = {"INST", "OBJ", "EXT1", "EXT2", "EXT4", "NEWOBJ_EX"}
_DTYPE_NAMES = {f"torch {str(dtype).removeprefix('torch.')}" for dtype in _DTYPES.values()}


def read_pickle(stream: BinaryIO, storages: dict[str, Storage], most: int = MOST_OPCODES) -> Any:
    """The value of one pickle, read up to its STOP.

    storages: those that its tensors lie in are added by their keys.
    most: opcodes that are read.

    Raises Forbidden for a pickle that would import anything else than tensors need, ValueError for any other that is
    not what `torch.save` writes. Errors of pickletools are not caught; the caller explains them.
    """
    machine = _Machine(storages)
    strings = [""]
    for count, (opcode, argument, _) in enumerate(pickletools.genops(stream)):
        if count > most:
            raise ValueError("its index is larger than any adapter's")
        if isinstance(argument, str):
            strings.append(argument)
        if opcode.name == "STACK_GLOBAL":
            raise Forbidden(".".join(strings[-2:]))
        if (
            opcode.name == "GLOBAL"
            and argument not in _CALLS
            and argument not in _STORAGES
            and argument not in _DTYPE_NAMES
        ):
            raise Forbidden(str(argument).replace(" ", "."))
        if opcode.name == "STOP":
            return machine.pop()
        if (act := _ACTS.get(opcode.name)) is None:
            if opcode.name in _CALLING:
                raise Forbidden(opcode.name)
            raise ValueError(f"its index has the opcode {opcode.name}, which torch.save does not write")
        act(machine, argument)
    raise ValueError("its index is cut off")


class _Machine:
    """The stack on which a pickle builds its value."""

    def __init__(self, storages: dict[str, Storage]) -> None:
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}
        self.storages = storages

    def push(self, value: Any) -> None:
        self.stack.append(value)

    def pop(self) -> Any:
        if len(self.stack) <= (self.marks[-1] if self.marks else 0):
            raise ValueError("its index is no torch file's")
        return self.stack.pop()

    def since_mark(self) -> list[Any]:
        start = self.marks.pop()
        taken = self.stack[start:]
        del self.stack[start:]
        return taken

    def tuple_of(self, count: int) -> None:
        taken = [self.pop() for _ in range(count)]
        self.push(tuple(reversed(taken)))

    def remember(self, at: int | None) -> None:
        value = self.pop()
        self.push(value)
        self.memo[len(self.memo) if at is None else at] = value

    def call(self) -> None:
        arguments, function = self.pop(), self.pop()
        if not isinstance(function, Name) or function.text not in _CALLS or not isinstance(arguments, tuple):
            raise ValueError("its index calls what is no function")
        self.push(_CALLS[function.text](*arguments))

    def storage(self) -> None:
        kind, storage_type, key, _, count, *_ = self.pop()
        dtype = _STORAGES.get(storage_type.text)
        if kind != "storage" or dtype is None or not isinstance(key, str) or type(count) is not int or count < 0:
            raise ValueError("its index names numbers of an unknown kind")
        storage = self.storages.setdefault(key, Storage(key, dtype, count))
        if storage != (key, dtype, count):
            raise ValueError("its index describes the same numbers twice")
        self.push(storage)

    def append(self, values: list[Any]) -> None:
        target = self.pop()
        if not isinstance(target, list):
            raise ValueError("its index appends to what is no list")
        target += values
        self.push(target)

    def put(self, pairs: list[Any]) -> None:
        target = self.pop()
        keys, values = pairs[::2], pairs[1::2]
        # Keys are only words and numbers: a deep tuple would overflow the stack of C when it is hashed.
        if not isinstance(target, dict) or not all(isinstance(key, str | int) for key in keys):
            raise ValueError("its index has keys that are no names")
        target.update(zip(keys, values, strict=True))
        self.push(target)


def _tensor(storage: Any, offset: Any, size: Any, stride: Any, *_: Any) -> View:
    numbers = (offset, *size, *stride)
    if not isinstance(storage, Storage) or len(size) != len(stride) or len(size) > MOST_AXES:
        raise ValueError("a tensor of its index has no shape")
    if not all(type(each) is int and 0 <= each < 1 << 48 for each in numbers):
        raise ValueError("a tensor of its index has a shape that is none")
    last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    # An expanded tensor, of stride 0, has more elements than there are numbers: a copy would fill the memory.
    if 0 not in size and (last >= storage.numbers or math.prod(size) > storage.numbers):
        raise ValueError(f"a tensor of the shape {list(size)} is made of {storage.numbers} numbers")
    return View(storage, offset, tuple(size), tuple(stride))


def _ordered(*pairs: Any) -> dict[Any, Any]:
    if any(pairs):
        raise ValueError("its index fills a dictionary in an unknown way")
    return {}


# What a pickle of tensors may call, as `_Machine.call` does it.
_CALLS: dict[str, Callable[..., Any]] = {
    "collections OrderedDict": _ordered,
    "torch Size": lambda size: tuple(size),
    "torch device": lambda *_: Name("torch.device"),
    "torch._utils _rebuild_parameter": lambda tensor, *_: tensor,
    "torch._utils _rebuild_tensor": _tensor,
    "torch._utils _rebuild_tensor_v2": _tensor,
    "torch.nn.parameter Parameter": lambda tensor, *_: tensor,
}

_ACTS: dict[str, Callable[[_Machine, Any], None]] = {
    **dict.fromkeys(("PROTO", "FRAME"), lambda _, __: None),
    **dict.fromkeys(
        ("BININT", "BININT1", "BININT2", "LONG1", "LONG4", "BINFLOAT", "BINUNICODE", "SHORT_BINUNICODE", "BINSTRING",
         "SHORT_BINSTRING", "BINBYTES", "SHORT_BINBYTES"),
        _Machine.push,
    ),
    "NONE": lambda machine, _: machine.push(None),
    "NEWTRUE": lambda machine, _: machine.push(True),
    "NEWFALSE": lambda machine, _: machine.push(False),
    "GLOBAL": lambda machine, name: machine.push(Name(name)),
    "MARK": lambda machine, _: machine.marks.append(len(machine.stack)),
    "EMPTY_DICT": lambda machine, _: machine.push({}),
    "EMPTY_LIST": lambda machine, _: machine.push([]),
    "EMPTY_TUPLE": lambda machine, _: machine.push(()),
    "TUPLE": lambda machine, _: machine.push(tuple(machine.since_mark())),
    "TUPLE1": lambda machine, _: machine.tuple_of(1),
    "TUPLE2": lambda machine, _: machine.tuple_of(2),
    "TUPLE3": lambda machine, _: machine.tuple_of(3),
    **dict.fromkeys(("BINPUT", "LONG_BINPUT", "MEMOIZE"), _Machine.remember),
    **dict.fromkeys(("BINGET", "LONG_BINGET"), lambda machine, at: machine.push(machine.memo[at])),
    "APPEND": lambda machine, _: machine.append([machine.pop()]),
    "APPENDS": lambda machine, _: machine.append(machine.since_mark()),
    "SETITEM": lambda machine, _: machine.put([machine.pop(), machine.pop()][::-1]),
    "SETITEMS": lambda machine, _: machine.put(machine.since_mark()),
    "REDUCE": lambda machine, _: machine.call(),
    "NEWOBJ": lambda machine, _: machine.call(),
    "BUILD": lambda machine, _: machine.pop() and None,  # a state dict's _metadata, which nobody needs
    "BINPERSID": lambda machine, _: machine.storage(),
}  # fmt: skip
