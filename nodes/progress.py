"""A progress bar that lets the artist interrupt."""

from collections.abc import Callable

import comfy.model_management as management
from comfy.utils import ProgressBar


def ticking(total: int) -> Callable[[int], None]:
    """A function that advances the bar by the number of items just done, out of `total`.

    It raises the host's exception if the artist has interrupted.
    """
    bar = ProgressBar(total)

    def tick(done: int) -> None:
        management.throw_exception_if_processing_interrupted()
        bar.update(done)

    return tick
