"""A real ComfyUI with this pack, started, watched and ended."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Sequence
from pathlib import Path

from .environment import Problem, environ, tail
from .package import ROOT

PACK = "ComfyUI-MIP-Adapter"  # its folder under custom_nodes
# Runs the host's main.py, and ends it should our process be killed before it could stop the host.
RUN_HOST = """
import os, runpy, sys, threading, time
def watch(parent=os.getppid()):
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)
threading.Thread(target=watch, daemon=True).start()
del sys.argv[0]
sys.path.insert(0, os.path.dirname(sys.argv[0]))
runpy.run_path(sys.argv[0], run_name="__main__")
"""
FOLDERS = ("custom_nodes", "input", "models", "output", "temp", "user")
PORT_TAKEN = re.compile(r"errno (98|48|10048)\b", re.IGNORECASE)  # EADDRINUSE: Linux, macOS, Windows


class Server:
    """A real ComfyUI with this pack, on the loopback interface; a context manager that always stops it.

    `base` holds its models, input, output and user folders, `log` is what it prints. Raises Problem with
    the host's own words when it does not come up, or comes up without the pack.
    """

    def __init__(self, python: str, host: Path, base: Path, arguments: Sequence[str] = ("--cpu",), *,
                 port: int | None = None, log: Path | None = None, timeout: float = 300):  # fmt: skip
        self.python, self.host, self.base, self.arguments = python, host, base, arguments
        self.port, self.any_port = port or 0, port is None
        self.log, self.timeout = log or base / "server.log", timeout
        self.process: subprocess.Popen | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def __enter__(self) -> Server:
        for folder in FOLDERS:
            (self.base / folder).mkdir(parents=True, exist_ok=True)
        link_pack(self.base / "custom_nodes" / PACK)
        try:
            self.start()
            if reason := self.pack_failure():
                raise Problem(f"ComfyUI could not load this pack: {reason}\nIts whole log: {self.log}")
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self, tries: int = 3) -> None:
        """Launch and wait; again on another port if someone took ours before the host bound it."""
        self.port = free_port(0 if self.any_port else self.port)
        self.launch()
        if self.answers():
            return
        self.stop()
        if self.any_port and tries > 1 and PORT_TAKEN.search(tail(self.log, 40)):
            return self.start(tries - 1)
        raise Problem(f"ComfyUI did not start. Its log, {self.log}, ends:\n{tail(self.log, 40)}")

    def launch(self) -> None:
        line = [self.python, "-c", RUN_HOST, str(self.host / "main.py"), "--port", str(self.port)]
        line += ["--base-directory", str(self.base), "--database-url", "sqlite:///:memory:"]
        line += ["--disable-api-nodes", *self.arguments]
        group: dict = {"start_new_session": True}
        if sys.platform == "win32":
            group = {"creationflags": subprocess.CREATE_NEW_PROCESS_GROUP}
        with open(self.log, "wb") as log:
            self.process = subprocess.Popen(
                line, cwd=self.host, env=environ(), stdin=subprocess.DEVNULL, stdout=log, stderr=log, **group
            )

    def answers(self) -> bool:
        """Wait for the first answer; False when the host ends or the time is up."""
        assert self.process
        direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # no proxy to ourselves
        deadline = time.monotonic() + self.timeout
        while self.process.poll() is None and time.monotonic() < deadline:
            with contextlib.suppress(OSError), direct.open(f"{self.url}/system_stats", timeout=5):
                return True
            time.sleep(0.2)
        return False

    def pack_failure(self) -> str | None:
        """Why the host dropped the pack, or None: it goes on without packs that it cannot load."""
        lines = [line for line in self.log.read_text("utf-8", "replace").splitlines() if PACK in line]
        if not any("(IMPORT FAILED)" in line for line in lines):
            return None
        reasons = [line for line in lines if line.startswith(("Cannot import", "Error while", "Skip"))]
        return reasons[-1] if reasons else "it gives no reason"

    def stop(self) -> None:
        """End the host and its children: ask, then insist."""
        if self.process is None or self.process.poll() is not None:
            return
        if sys.platform == "win32":
            subprocess.run(["taskkill", "/T", "/F", "/PID", str(self.process.pid)], capture_output=True)
            self.process.wait()
            return
        for insist in (signal.SIGTERM, signal.SIGKILL):
            with contextlib.suppress(ProcessLookupError, subprocess.TimeoutExpired):
                os.killpg(self.process.pid, insist)
                self.process.wait(10)
                return


def free_port(wanted: int = 0) -> int:
    """`wanted` if nothing listens there; for 0 a port of the system's choice."""
    with socket.socket() as probe:
        if sys.platform != "win32":
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # one just let go of is free
        try:
            probe.bind(("127.0.0.1", wanted))
        except (OSError, OverflowError) as error:
            raise Problem(
                f"Port {wanted} cannot be used ({error}). Stop what listens there, or choose another by --port."
            ) from None
        return probe.getsockname()[1]


def link_pack(link: Path) -> None:
    """Put the checkout under custom_nodes: a link, so that the host runs what is being edited."""
    if link.resolve() == ROOT:
        return
    link.unlink(missing_ok=True)  # one to another checkout, or to where this one was
    try:
        link.symlink_to(ROOT, target_is_directory=True)
    except OSError:
        if sys.platform != "win32":
            raise
        import _winapi  # symlinks need a privilege on Windows, junctions do not

        _winapi.CreateJunction(str(ROOT), str(link))


def device_arguments(python: str) -> list[str]:
    """`--cpu` where PyTorch sees no accelerator: the host would not start without it."""
    probe = "import torch as t; raise SystemExit(not getattr(t, 'accelerator', t.cuda).is_available())"
    found = subprocess.run([python, "-c", probe], env=environ(), capture_output=True).returncode == 0
    return [] if found else ["--cpu"]
