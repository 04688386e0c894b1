"""Checks before a run starts."""

from collections.abc import Callable


def found(look_up: Callable[..., object], *given: str | None) -> bool | str:
    """For `validate_inputs`: True, or what the look-up says against it. A linked value is None: known later."""
    try:
        if None not in given:
            look_up(*given)
    except ValueError as error:
        return str(error)
    return True
