"""Starts, watches and stops a real ComfyUI with this pack."""

from __future__ import annotations

import contextlib
import json
import re
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .environment import Problem, claimed, environ, own_group, stop_group, tail
from .package import NOT_HERE, ROOT

PACK = "ComfyUI-MIP-Adapter"  # its folder under custom_nodes
# Runs the host's main.py, and exits if the launcher's process ends without stopping it.
RUN_HOST = f"""
{NOT_HERE}
import os, runpy, threading, time
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
LEVEL = re.compile(r"^(\x1b\[\d+m)*\[[A-Z]+\]\x1b\[0m ")  # newer hosts begin each line of the log with it
PORT_TAKEN = re.compile(r"errno (98|48|10048)\b", re.IGNORECASE)  # EADDRINUSE: Linux, macOS, Windows


class Server:
    """A real ComfyUI with this pack on the loopback interface. It is a context manager that always stops the server.

    python, host: the interpreter and ComfyUI's folder.
    base: holds the server's models, input, output and user folders.
    arguments: further arguments of ComfyUI.
    port: default any free one.
    log: the file for its output; default in `base`.
    timeout: seconds to wait for the first answer.

    Entering raises Problem with the end of the log if the server does not start, or starts without the pack. It also
    does if another server runs in `base`: that one's log and its link to the pack stay as they are.
    """

    def __init__(self, python: str, host: Path, base: Path, arguments: Sequence[str] = ("--cpu",), *,
                 port: int | None = None, log: Path | None = None, timeout: float = 300):  # fmt: skip
        self.python, self.host, self.base, self.arguments = python, host, base, arguments
        self.port, self.any_port = port or 0, port is None
        self.log, self.timeout = log or base / "server.log", timeout
        self.process: subprocess.Popen | None = None
        self.claims = contextlib.ExitStack()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def __enter__(self) -> Server:
        self.claims.enter_context(claimed(self.base, "ComfyUI", "stop it, or set MIP_ADAPTER_HOME to another folder"))
        try:
            for folder in FOLDERS:
                (self.base / folder).mkdir(parents=True, exist_ok=True)
            link_pack(self.base / "custom_nodes" / PACK)
            self.start()
            if reason := self.pack_failure():
                raise Problem(f"ComfyUI could not load this pack: {reason}\nIts whole log: {self.log}")
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        with self.claims:
            self.stop()

    def start(self, tries: int = 3) -> None:
        """Launch and wait. Tries another port if the chosen one was taken before the host bound it."""
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
        with open(self.log, "wb") as log:
            self.process = subprocess.Popen(
                line, cwd=self.host, env=environ(), stdin=subprocess.DEVNULL, stdout=log, stderr=log, **own_group()
            )

    def answers(self) -> bool:
        """Wait for the first answer. False if the host ends or the time is up."""
        assert self.process
        direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # no proxy for the loopback interface
        deadline = time.monotonic() + self.timeout
        while self.process.poll() is None and time.monotonic() < deadline:
            with contextlib.suppress(OSError, ValueError), direct.open(f"{self.url}/system_stats", timeout=5) as answer:
                if self.is_ours(json.loads(answer.read(1 << 20))):
                    return True
            time.sleep(0.2)
        return False

    def is_ours(self, stats: Any) -> bool:
        """Whether the host that answers is the one that was started: another program may have taken the port before.

        stats: its answer; it names the command line.
        """
        try:
            return str(self.base) in stats["system"]["argv"]
        except (KeyError, TypeError):
            return False

    def pack_failure(self) -> str | None:
        """Why the host could not load the pack, or None. The host runs on without packs that it cannot load."""
        log = self.log.read_text("utf-8", "replace").splitlines()
        lines = [LEVEL.sub("", line) for line in log if PACK in line]
        if not any("(IMPORT FAILED)" in line for line in lines):
            return None
        reasons = [line for line in lines if line.startswith(("Cannot import", "Error while", "Skip"))]
        return reasons[-1] if reasons else "it gives no reason"

    def stop(self) -> None:
        """Stop the host and its children."""
        if self.process is not None:
            stop_group(self.process)


def free_port(wanted: int = 0) -> int:
    """The port `wanted`; for 0 a free one chosen by the system. Raises Problem if the port is taken."""
    with socket.socket() as probe:
        if sys.platform != "win32":
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # a port released just now counts as free
        try:
            probe.bind(("127.0.0.1", wanted))
        except (OSError, OverflowError) as error:
            raise Problem(
                f"Port {wanted} cannot be used ({error}). Stop what listens there, or choose another by --port."
            ) from None
        return probe.getsockname()[1]


def link_pack(link: Path) -> None:
    """Link the checkout into custom_nodes, so that the host runs the files that are edited."""
    if link.resolve() == ROOT:
        return
    link.unlink(missing_ok=True)  # it may lead to another checkout, or to a former place of this one
    try:
        link.symlink_to(ROOT, target_is_directory=True)
    except OSError:
        if sys.platform != "win32":
            raise
        import _winapi  # on Windows symlinks need a privilege; junctions do not

        _winapi.CreateJunction(str(ROOT), str(link))


def device_arguments(python: str) -> list[str]:
    """`--cpu` if PyTorch finds no accelerator: the host would not start without it."""
    probe = f"{NOT_HERE}; import torch as t; raise SystemExit(not getattr(t, 'accelerator', t.cuda).is_available())"
    found = subprocess.run([python, "-c", probe], env=environ(), capture_output=True).returncode == 0
    return [] if found else ["--cpu"]
