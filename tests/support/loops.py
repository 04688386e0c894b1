"""Work in a separate thread, because Playwright's synchronous API keeps an event loop running in the main thread."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from threading import Thread
from typing import Any, TypeVar

T = TypeVar("T")


def complete(coroutine: Coroutine[Any, Any, T]) -> T:
    """The result of `asyncio.run`, in a thread of its own."""
    return aside(lambda: asyncio.run(coroutine))


def aside(work: Callable[..., T], *arguments: Any) -> T:
    """The result of `work(*arguments)`, in a daemon thread. A thread that hangs does not keep the process alive."""
    future: Future[T] = Future()

    def run() -> None:
        try:
            future.set_result(work(*arguments))
        except BaseException as error:  # the caller gets all of them, SystemExit too
            future.set_exception(error)

    Thread(target=run, daemon=True).start()
    return future.result()
