"""Work beside the main thread, where Playwright's synchronous face keeps an event loop running."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from threading import Thread
from typing import Any, TypeVar

T = TypeVar("T")


def complete(coroutine: Coroutine[Any, Any, T]) -> T:
    """What `asyncio.run` gives, in a thread of its own."""
    return aside(lambda: asyncio.run(coroutine))


def aside(work: Callable[..., T], *arguments: Any) -> T:
    """What `work(*arguments)` gives, in a thread of its own. Nobody waits for the thread once the test is over."""
    future: Future[T] = Future()

    def run() -> None:
        try:
            future.set_result(work(*arguments))
        except BaseException as error:  # SystemExit among them: it is the caller's
            future.set_exception(error)

    Thread(target=run, daemon=True).start()
    return future.result()
