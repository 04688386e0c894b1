"""The environment: a venv in the user's cache folder, named by a hash of what is installed into it."""

from __future__ import annotations

import contextlib
import hashlib
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import tomllib

from .package import ROOT

SIZE_GB, NEED_GB = (8, 12) if sys.platform == "linux" else (3, 5)  # PyTorch for Linux includes CUDA


class Problem(Exception):
    """A sentence for the user, printed without a traceback."""


def say(text: str) -> None:
    print(text, flush=True)


def cache_home() -> Path:
    """The folder of environments and the host: MIP_ADAPTER_HOME, or the platform's cache folder."""
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
    return tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))


def group(name: str) -> list[str]:
    """A dependency group of pyproject.toml (PEP 735), with its included groups."""
    items = project()["dependency-groups"][name]
    return [line for i in items for line in ([i] if isinstance(i, str) else group(i["include-group"]))]


def requirements(checkout: Path | None) -> str:
    """Everything that is installed into the environment, as a requirements file. A checkout has its own list."""
    lines = group("host")
    if checkout and (checkout / "requirements.txt").is_file():
        lines = group("torch") + (checkout / "requirements.txt").read_text("utf-8").splitlines()
    ours = (ROOT / "requirements.txt").read_text("utf-8").splitlines()
    return "\n".join([*lines, *group("dev"), *ours, ""])


def environment_folder(checkout: Path | None) -> Path:
    """Its name depends on the requirements, Python's version and the platform."""
    key = repr((requirements(checkout), sys.version_info[:2], sys.platform, platform.machine()))
    return cache_home() / f"env-{hashlib.sha256(key.encode()).hexdigest()[:12]}"


def interpreter(folder: Path) -> Path:
    return folder / ("Scripts/python.exe" if sys.platform == "win32" else "bin/python")


def is_complete(folder: Path) -> bool:
    """Whether a venv was built to its end.

    A venv cannot be moved, so it cannot get its name last. A marker file, written last, shows that it is complete.
    """
    return (folder / "complete").is_file() and interpreter(folder).exists()


def environment(checkout: Path | None) -> str:
    """The Python with PyTorch, the host's requirements and our tools. Its venv is built on first use."""
    if given := os.environ.get("MIP_ADAPTER_PYTHON"):
        if found := shutil.which(given):
            return os.path.abspath(found)  # absolute, since commands run in other folders
        raise Problem(f"MIP_ADAPTER_PYTHON is {given}, which cannot be run. Name a Python interpreter.")
    folder = environment_folder(checkout)
    if not is_complete(folder):
        with lock("environment"):
            if not is_complete(folder):  # another run may have finished it while we waited
                build(folder, requirements(checkout))
    with contextlib.suppress(OSError):  # an administrator may have made it
        (folder / "complete").touch()  # its time says when the environment was last used
    return str(interpreter(folder))


def build(folder: Path, wanted: str) -> None:
    """Make the venv and install the requirements `wanted`. The marker is written last."""
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
    """Remove complete environments that no command has used for `days` days."""
    for marker in cache_home().glob("env-*/complete"):
        if time.time() - marker.stat().st_mtime > days * 86400:
            say(f"Removing {marker.parent}: not used for {days} days.")
            marker.unlink()
            shutil.rmtree(marker.parent, ignore_errors=True)


def pip(python: str) -> list[str]:
    return [python, "-m", "pip", "--no-input", "--disable-pip-version-check"]


def pip_progress(line: str) -> str | None:
    """What the user sees of a line of pip's output: big downloads and the long last step. None for other lines."""
    if found := re.match(r"\s*(?:Downloading|Using cached) (\w+)-(\S+?)-\S+ \(([\d.]+ [MG]B)\)", line):
        return f"  {found[1]} {found[2]}, {found[3]}"
    if line.startswith("Installing collected packages"):
        return f"  unpacking {line.count(',') + 1} packages …"
    return None


def run_logged(line: list[str], log: Path, progress: Callable[[str], str | None] = lambda _: None) -> None:
    """Run a command with its output in a log. `progress` selects the lines that the user sees.

    It runs in the log's folder, so that a module in the user's current folder is never taken for one of Python's.
    Raises Problem with the end of the log if the command fails.
    """
    with (
        open(log, "w", encoding="utf-8") as file,
        subprocess.Popen(
            line, cwd=log.parent, env=environ(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        ) as process,
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


def own_group() -> dict[str, Any]:
    """What Popen must be told so that `stop_group` reaches the process and its children."""
    if sys.platform == "win32":
        return {"creationflags": subprocess.CREATE_NEW_PROCESS_GROUP}
    return {"start_new_session": True}


def stop_group(process: subprocess.Popen) -> None:
    """Stop a process of `own_group` and its children: terminate them, then kill them after 10 seconds."""
    if process.poll() is not None:
        return
    if sys.platform == "win32":
        subprocess.run(["taskkill", "/T", "/F", "/PID", str(process.pid)], capture_output=True)
        process.wait()
        return
    for number in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError, subprocess.TimeoutExpired):
            os.killpg(process.pid, number)
            process.wait(10)
            return


def tail(log: Path, lines: int) -> str:
    """The last lines of a log, indented."""
    text = log.read_text("utf-8", "replace") if log.is_file() else ""
    return "\n".join("  | " + line for line in text.splitlines()[-lines:])


def environ(**more: str) -> dict[str, str]:
    """Environment variables for a child process, without those that change where its Python looks for modules.

    PYTHONSAFEPATH prevents imports from the current folder, such as of an unrelated torch.py.
    """
    kept = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "PYTHONHOME", "PIP_USER")}
    return kept | {"PYTHONSAFEPATH": "1", "PYTHONUTF8": "1", "PYTHONUNBUFFERED": "1"} | more


@contextlib.contextmanager
def lock(name: str) -> Iterator[None]:
    """Lets in one process at a time. The system releases the lock however the process ends."""
    cache_home().mkdir(parents=True, exist_ok=True)
    with open(cache_home() / f"{name}.lock", "a+") as file:
        if not try_lock(file.fileno()):
            say(f"Another run of mip.py is preparing the {name}; waiting for it.")
            while not try_lock(file.fileno()):
                time.sleep(0.5)
        yield


@contextlib.contextmanager
def claimed(folder: Path, what: str, remedy: str) -> Iterator[None]:
    """Holds a folder for this process. Raises Problem, which names the process that holds it and the remedy.

    what: the program that works there.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / ".lock", "a+", encoding="utf-8") as file:
        if not try_lock(file.fileno()):
            file.seek(0)
            holder = file.read(200).strip() or "another process"
            raise Problem(f"{what} already runs in {folder} ({holder}): {remedy}.")
        file.truncate(0)
        file.write(f"process {os.getpid()}, {ROOT}")
        file.flush()
        yield


def try_lock(handle: int) -> bool:
    """Lock an open file without waiting. Returns whether it succeeded."""
    try:
        if sys.platform == "win32":
            import msvcrt

            os.lseek(handle, 1 << 20, os.SEEK_SET)  # what stands in the file can be read by others
            msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return False
    return True
