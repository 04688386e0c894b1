"""Work in a process that may take only so much memory and time, as an attack must be refused."""

from __future__ import annotations

import json
import multiprocessing
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import pytest
import torch

LONGER = int(os.environ.get("MIP_ADAPTER_FUZZ", "1"))  # how many times as many cases the tests with random ones make
MEMORY = 2 << 30  # bytes above what the process has
SECONDS = 20  # of the processor; what the attacks took before they were refused is longer on every machine

needs_fork = pytest.mark.skipif(sys.platform in ("win32", "darwin"), reason="the limits need fork, and Linux to hold")


def refused(act: Callable[[], Any], *words: str) -> str:
    """The sentence of the ValueError that `act` raises within the limits; it contains the words."""
    kind, said = outcome(act)
    assert kind == "ValueError", f"{kind}: {said}"
    assert all(word in said for word in words), said
    assert said.isprintable() and 20 < len(said) < 1500, said[:2000]
    return said


def outcome(act: Callable[[], Any], seconds: int = SECONDS) -> tuple[str, str]:
    """What becomes of `act` within the limits: the exception's type and words, or ("", "") where it returns."""
    return next(outcomes([act], seconds))


def outcomes(acts: Iterable[Callable[[], Any]], seconds: int = 5) -> Iterator[tuple[str, str]]:
    """What becomes of each of the acts, one after the other in one process. seconds: of the processor, for each.

    Whoever ends the process is the last.
    """
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_limited, args=(acts, seconds, theirs))
    process.start()
    theirs.close()
    try:
        while (came := ours.recv()) is not None:
            yield came
    except EOFError:
        process.join()
        yield f"the process ended with {process.exitcode}", ""
    finally:
        process.kill()
        process.join()


def _limited(acts: Iterable[Callable[[], Any]], seconds: int, pipe: Any) -> None:
    import resource

    torch.set_num_threads(1)  # other threads do not survive a fork
    with open("/proc/self/statm") as sizes:
        taken = int(sizes.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (taken + MEMORY, taken + MEMORY))
    for act in acts:
        used = resource.getrusage(resource.RUSAGE_SELF)
        last = int(used.ru_utime + used.ru_stime) + seconds + 1
        resource.setrlimit(resource.RLIMIT_CPU, (last, resource.RLIM_INFINITY))
        try:
            act()
            pipe.send(("", ""))
        except ValueError as error:
            raw = isinstance(error, UnicodeError | json.JSONDecodeError)
            pipe.send((type(error).__name__ if raw else "ValueError", str(error)))
        except BaseException as error:
            pipe.send((type(error).__name__, str(error)))
    pipe.send(None)
