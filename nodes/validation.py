"""Checks before a run starts."""

from collections.abc import Callable


def found(look_up: Callable[..., object], *given: str | None) -> bool | str:
    """For `validate_inputs`: True, or the message of the ValueError that `look_up` raises for the given values.

    A linked value is None until the run; it is not checked.
    """
    try:
        if None not in given:
            look_up(*given)
    except ValueError as error:
        return str(error)
    return True
