"""What a torch file's pickle would call, read without running it.

`torch.load(weights_only=True)` already refuses foreign code. The file is checked first for three reasons: other packs
replace `torch.load`, old torch versions had holes, and the error message can name what the file would call.
"""

from __future__ import annotations

import io
import pickletools
import re
import zipfile
from pathlib import Path
from typing import BinaryIO

_SAFE = {
    "collections OrderedDict",
    "torch Size",
    "torch device",
    "torch._utils _rebuild_parameter",
    "torch._utils _rebuild_tensor",
    "torch._utils _rebuild_tensor_v2",
    "torch.nn.parameter Parameter",
    "torch.storage TypedStorage",
    "torch.storage UntypedStorage",
}
_SAFE_TORCH = re.compile(r"torch(\.cuda)? (\w+Storage|b?float\w*|u?int\d+|double|half|bool|long|short|uint8)")
# Opcodes other than GLOBAL that import or build objects. torch.save (protocol 2) writes none of them.
_NEVER = {"STACK_GLOBAL", "INST", "OBJ", "EXT1", "EXT2", "EXT4", "NEWOBJ_EX"}
_LEGACY_PICKLES = 5  # magic number, protocol, machine, the object, the storages' keys; raw numbers follow
_LARGEST = 1 << 26  # bytes of pickle (about 100 per tensor); a zip can unpack to far more than its size


def forbidden_name(path: Path, zipped: bool) -> str | None:
    """The first name the file's pickles would call that weights do not need, or None.

    Errors of a broken pickle or archive are not caught; the caller explains them.
    """
    if not zipped:
        with path.open("rb") as stream:
            return next((bad for _ in range(_LEGACY_PICKLES) if (bad := _scan(stream))), None)
    with zipfile.ZipFile(path) as archive:
        pickles = [record for record in archive.infolist() if record.filename.endswith(".pkl")]
        if sum(record.file_size for record in pickles) > _LARGEST:
            raise MemoryError("its index is larger than any adapter's")
        return next((bad for record in pickles if (bad := _scan(io.BytesIO(archive.read(record))))), None)


def _scan(stream: BinaryIO) -> str | None:
    """`forbidden_name` for one pickle, read up to its STOP."""
    strings = [""]
    for opcode, argument, _ in pickletools.genops(stream):
        if opcode.name in _NEVER:
            return ".".join(strings[-2:]) if opcode.name == "STACK_GLOBAL" else opcode.name
        if isinstance(argument, str):
            strings.append(argument)
        if opcode.name == "GLOBAL" and argument not in _SAFE and not _SAFE_TORCH.fullmatch(str(argument)):
            return str(argument).replace(" ", ".")
    return None
