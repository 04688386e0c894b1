"""Checks at the nodes' door: before a run starts, and of what a run hands to a node."""

import functools
import re
from collections.abc import Callable, Container, Iterable, Mapping
from inspect import signature
from typing import Any

import torch
from comfy_api.latest import io
from torch import Tensor

from ..common.batching import OUT_OF_MEMORY, memory_ran_out
from ..common.text import brief, printable

_LONG_QUOTE = re.compile(r"“([^“”]{120})[^“”]+”")
LONGEST_CHOICE = 1000  # letters of what is chosen from a list, such as a path; it has one line
LONGEST = 20_000  # letters of any text
NARROWEST, LONG_SIDE = 32, 2048  # a picture with a longer side than this may be so many times as long as it is wide
BRIGHTEST = 2.0  # a picture or mask goes from 0 to 1; sharpening and upscaling leave that a little
PIXELS = (io.Image, io.Mask)
GROWN = "COMFY_AUTOGROW_V3"  # an input with sockets of one kind; its value is what is connected, by socket
ENCODERS = (io.Clip, io.ClipVision)  # a checkpoint may hold none; the nodes say which one they need


def valid_or_message(look_up: Callable[..., object], *given: str | None) -> bool | str:
    """For `validate_inputs`: True, or the message of the ValueError that `look_up` raises for the given values.

    A linked value is None until the run, a missing one always; the host tells of that. Neither is checked here.
    """
    return None in given or checked_call(lambda: look_up(*(_name(each) for each in given)))


def checked_call(check: Callable[..., object], *given: object) -> bool | str:
    """True, or the sentence of the error that `check` raises for the given values."""
    try:
        check(*given)
    except (ValueError, OSError) as error:
        return _sentence(error)
    return True


def fingerprint_of(look_up: Callable[..., object], *given: str | None) -> object:
    """For `fingerprint_inputs`, which must not raise: what `look_up` returns for the given values, None if it raises.

    Whatever is wrong with them is told by `validate_inputs`, or by the node itself.
    """
    try:
        return None if None in given else look_up(*(_name(each) for each in given))
    except (ValueError, OSError):
        return None


def _name(given: object) -> str:
    if not isinstance(given, str):
        raise ValueError(f"{brief(repr(given), 60)} is no name: choose one from the list, expected a text.")
    return checked_text("name", given)


def check_whenever_it_runs(node: type[io.ComfyNode]) -> None:
    """Put a node's `execute` behind checks that are the same for all nodes.

    A workflow may come from anywhere, and linked values pass the host's own checks by. So texts are made printable and
    are not endless, pictures are no bytes and not extremely narrow, nothing needed is missing, and a sentence that
    quotes something can always be printed.
    """
    execute = node.execute.__func__  # pyright: ignore[reportFunctionMemberAccess]
    _, *known = signature(execute).parameters  # the first is the class

    @functools.wraps(execute)
    def checked_execute(cls: type[io.ComfyNode], /, *given: Any, **named: Any) -> io.NodeOutput:
        try:
            check_names(node, known, named)
            kinds = _kinds(cls)
            named = {name: _checked(name, value, kinds.get(name, "")) for name, value in named.items()}
            check_inputs(node, signature(execute).bind(cls, *given, **named).arguments)
            return execute(cls, *given, **named)
        except (MemoryError, RuntimeError) as error:
            if isinstance(error, OUT_OF_MEMORY) or not memory_ran_out(error):  # the host makes room on its GPU
                raise
            raise ValueError(
                "The memory does not suffice for this node: use smaller or fewer pictures, or close other programs."
            ) from error
        except ValueError as error:
            if (sentence := _sentence(error)) != str(error):
                raise ValueError(sentence) from None
            raise

    node.execute = classmethod(checked_execute)  # pyright: ignore[reportAttributeAccessIssue]


def _sentence(error: Exception) -> str:
    said = _LONG_QUOTE.sub(r"“\1…”", str(error))
    return "\n".join(brief(line, 2000) for line in said.split("\n")[:100])


TYPED = ("", "STRING", "INT", "FLOAT", "BOOLEAN", "COMBO")  # inputs that hold what somebody typed
WRITTEN = ("BOUNDING_BOX", "BBOX", "SEGS", "LATENT")  # sockets whose values are plain lists or dictionaries


@functools.cache
def _kinds(node: Any) -> dict[str, str]:
    """The type of each input of a node; behind `GROWN` that of its sockets."""
    kinds = {each.id: str(each.get_io_type()) for each in node.define_schema().inputs}
    return kinds | {each.id: f"{GROWN} {each.template.input.get_io_type()}" for each in _grown(node)}


def _grown(node: Any) -> list[Any]:
    """The node's inputs whose sockets grow."""
    return [each for each in node.define_schema().inputs if each.get_io_type() == GROWN]


def _is_written(value: Any, kind: str) -> bool:
    """Whether a workflow holds the value itself where it should hold a link: the host lets that pass."""
    if isinstance(value, list | dict) and not set(kind.split(",")) & set(WRITTEN):
        # A list of pictures was made by a node; `check_inputs` tells of it.
        pictures = kind in ("IMAGE", "MASK") and isinstance(value, list) and any(isinstance(e, Tensor) for e in value)
        return not pictures
    return isinstance(value, str | int | float)


def _checked(name: str, value: Any, kind: str) -> Any:
    if kind.startswith(GROWN) and isinstance(value, dict):
        return {socket: _checked(socket, each, kind.split()[1]) for socket, each in value.items()}
    if kind not in TYPED and _is_written(value, kind):
        raise ValueError(
            f"The input {name} is {brief(repr(value), 60)}, expected {kind} of another node: connect one there."
        )
    if isinstance(value, str):
        text = checked_text(name, value)
        return " ".join(text.splitlines())[:LONGEST_CHOICE] if kind == "COMBO" else text
    if isinstance(value, Tensor) and value.ndim in (3, 4):
        height, width = value.shape[1:3]
        if max(height, width) > max(LONG_SIDE, NARROWEST * min(height, width)):
            raise ValueError(
                f"The input {name} is {width}×{height} pixels, too narrow to be drawn or cut out: its long side may be "
                f"{NARROWEST} times the short one. Crop it first."
            )
    return value


def checked_text(name: str, text: str) -> str:
    """The text, printable. Raises ValueError if it is endless."""
    if len(text) > LONGEST:
        raise ValueError(
            f"The input {name} has {len(text):,} letters, “{brief(text, 40)}”; at most {LONGEST:,} are accepted. "
            "Shorten it."
        )
    return printable(text)


def check_names(node: type[io.ComfyNode], known: Container[str], given: Iterable[str]) -> None:
    """Raises ValueError for an input that the node does not have. The host hands on whatever a workflow links.

    known: the parameters of its `execute`.
    given: the inputs' names.
    """
    for each in given:
        if each not in known:
            name, inputs = _inputs_of(node)
            raise ValueError(
                f"{name} has no input “{brief(each, 60)}”: disconnect it, or install the version of MIP-Adapter that "
                f"the workflow was made with. Its inputs are {', '.join(inputs)}."
            )


def check_inputs(node: type[io.ComfyNode], given: Mapping[str, Any]) -> None:
    """Raises ValueError with a sentence for an input that got nothing, no picture, or bytes.

    given: the inputs by name.
    """
    name, inputs = _inputs_of(node)
    for key, value in given.items():
        if key not in inputs:
            continue
        kind, optional, grows = inputs[key]
        for socket, each in value.items() if grows and isinstance(value, dict) else [(key, value)]:
            _check_input(each, f"The input “{socket}” of {name}", kind, optional)


def _check_input(value: Any, what: str, kind: type | None, optional: bool) -> None:
    if value is None and not optional and kind not in ENCODERS:
        raise ValueError(
            f"{what} got nothing: what is connected to it gives none. A switch whose inputs are all muted or bypassed "
            "does so; unmute one, or connect another node."
        )
    if value is not None and kind in PIXELS:
        _check_pixels(value, what, "mask" if kind is io.Mask else "picture")
    if kind is io.Latent and not isinstance(getattr(value, "get", lambda _: None)("samples"), torch.Tensor):
        raise ValueError(f"{what} got no latent: connect the latent of a sampler.")


@functools.cache
def _inputs_of(node: type[io.ComfyNode]) -> tuple[str, dict[str, tuple[type | None, bool, bool]]]:
    """The node's name; of each input by name: its type or that of its sockets, optional, and whether they grow."""
    schema = node.define_schema()
    inputs = {each.id: (getattr(each, "Parent", None), bool(each.optional), False) for each in schema.inputs}
    grown = {each.id: (each.template.input.Parent, bool(each.optional), True) for each in _grown(node)}
    return schema.display_name or schema.node_id, inputs | grown


def _check_pixels(value: Any, what: str, kind: str) -> None:
    if isinstance(value, list | tuple):
        raise ValueError(
            f"{what} got a list of {len(value)} values instead of a batch: make one of it (“Image List to Image Batch” "
            "or “Mask List to Mask Batch” of Impact Pack)."
        )
    if not isinstance(value, torch.Tensor):
        raise ValueError(f"{what} got a {type(value).__name__}, which is no {kind}: connect another output.")
    if value.numel() and value.dtype != torch.bool and BRIGHTEST < (brightest := float(value.max())) < float("inf"):
        raise ValueError(
            f"{what} got values up to {brightest:g}, but a {kind} of ComfyUI goes from 0 to 1: the node that made it "
            "gives bytes. Divide by 255, or use another node."
        )
