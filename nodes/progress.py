"""A progress bar that lets the artist interrupt."""

from collections.abc import Callable

import comfy.model_management as management
from comfy.utils import ProgressBar


def ticking(total: int) -> Callable[[int], None]:
    """Told how many of `total` pieces were done since, it moves the bar, or raises the host's exception."""
    bar = ProgressBar(total)

    def tick(done: int) -> None:
        management.throw_exception_if_processing_interrupted()
        bar.update(done)

    return tick
