"""Prompts queued at a server, and what became of them. How long all of it may take is the test's limit."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, TypeVar

import httpx

T = TypeVar("T")


def get(server: Any, path: str, **params: Any) -> httpx.Response:
    return httpx.get(f"{server.url}/{path}", params=params, trust_env=False, timeout=None)


def post(server: Any, path: str, body: dict | None = None) -> httpx.Response:
    return httpx.post(f"{server.url}/{path}", json=body or {}, trust_env=False, timeout=None)


def queue(server: Any, prompt: dict) -> str:
    """The number of a prompt that the server accepts."""
    answer = post(server, "prompt", {"prompt": prompt})
    assert answer.status_code == 200 and not answer.json()["node_errors"], answer.text
    return answer.json()["prompt_id"]


def wait_for(happened: Callable[[], T | None]) -> T:
    """What is asked for, once it is something."""
    while not (got := happened()):
        time.sleep(0.05)
    return got


def history(server: Any, number: str = "") -> dict[str, dict]:
    """What the server says of a prompt that has ended, or of all of them, by number."""
    return get(server, f"history/{number}".rstrip("/")).json()


def ended(server: Any, number: str) -> dict:
    """Wait for the end of a prompt: what the server then says of it."""
    return wait_for(lambda: history(server, number).get(number))


def run(server: Any, prompt: dict) -> dict:
    """What the server says of a prompt that has succeeded, its outputs by node among it."""
    entry = ended(server, queue(server, prompt))
    assert entry["status"]["status_str"] == "success", entry["status"]["messages"]
    return entry


def wait_until_idle(server: Any) -> None:
    wait_for(lambda: not any(get(server, "queue").json().values()))
