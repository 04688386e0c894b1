"""What commands say to the person at the terminal. All of it goes through here."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from contextlib import suppress

from .batching import memory_ran_out

NO_MEMORY = "The memory does not suffice: use smaller pictures or batches, fewer workers, or close other programs."


def legible(text: object) -> str:
    """The text without characters that steer a terminal or cannot be encoded, such as in the names of files."""
    return "".join(each if each.isprintable() or each in "\n\t" else "?" for each in str(text))


def say(text: object) -> None:
    """Prints lines. A full disk or a closed pipe ends no command."""
    with suppress(OSError):
        print(legible(text), flush=True)


def complain(text: object) -> None:
    """Prints what went wrong, on stderr."""
    with suppress(OSError):
        print(legible(text), file=sys.stderr, flush=True)


def log_to_console() -> None:
    """Logs are lines for the terminal too."""
    handler = logging.StreamHandler()
    handler.setFormatter(_Legible("%(message)s"))
    logging.basicConfig(level=logging.INFO, handlers=[handler])


class _Legible(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return legible(super().format(record))


def exit_status(act: Callable[[], int | None]) -> int:
    """Runs a command that can be resumed: what `act` returns, 0 for None; 1 with a sentence on stderr for what went
    wrong; 130 if it was stopped.
    """
    try:
        return act() or 0
    except (ValueError, OSError) as error:
        complain(error)
    except (MemoryError, RuntimeError) as error:
        if not memory_ran_out(error):
            raise
        complain(NO_MEMORY)
    except KeyboardInterrupt:
        complain("Stopped. The same command goes on from here.")
        return 130
    return 1
