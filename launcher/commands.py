"""The commands of `mip.py`. Each is a function here or is forwarded to a module of the pack."""

from __future__ import annotations

import argparse
import contextlib
import difflib
import os
import signal
import subprocess
import sys
import tempfile
import webbrowser
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from .comfyui import given_host, prepare
from .environment import (
    Problem,
    cache_home,
    claimed,
    environ,
    environment_folder,
    is_complete,
    own_group,
    say,
    stop_group,
    tail,
)
from .package import ROOT, arguments_for, print_any_character
from .server import PACK, Server, device_arguments

COMMANDS: dict[str, tuple[str, Callable[[list[str]], int]]] = {}


def command(purpose: str):
    """Register a function as the subcommand of its name. The function gets the rest of the command line."""

    def register(function: Callable[[list[str]], int]):
        COMMANDS[function.__name__] = (purpose, function)
        return function

    return register


def forward(name: str, module: str, purpose: str, become: bool = False) -> None:
    """Register a subcommand that passes all its arguments to `main(argv)` of a module of the pack.

    purpose: the subcommand's line in the usage.
    become: replace the launcher's process with it where the system can, so that signals reach it directly.
    """

    def run(arguments: list[str]) -> int:
        if not ROOT.joinpath(*module.split(".")).with_suffix(".py").is_file():
            raise Problem(f"mip.py {name} comes with the repository only, not with an installed pack: clone it.")
        given = os.environ.get("MIP_ADAPTER_PYTHON")
        if {"-h", "--help"} & set(arguments) and not (given or is_complete(environment_folder(given_host()))):
            say(f"mip.py {name}: {purpose}. Its options can be shown once the environment exists.")
            return 0
        python, host = prepare()
        line = [python, *arguments_for(module), *arguments]
        if become and sys.platform != "win32":
            os.execve(python, line, environ(COMFYUI_PATH=str(host)))
        return call(line, host)

    COMMANDS[name] = (purpose, run)


def call(line: Sequence[str | Path], host: Path, cwd: Path | None = None, **more: str) -> int:
    """Run a command line with COMFYUI_PATH and more environment variables. Returns its exit status."""
    variables = environ(COMFYUI_PATH=str(host), **more)
    return subprocess.call([str(part) for part in line], cwd=cwd, env=variables)


@contextlib.contextmanager
def beside(line: Sequence[str | Path], host: Path, cwd: Path) -> Iterator[Callable[[], int]]:
    """Run a command line while the block runs. What it gives waits for the end, prints the output, returns the status.

    If the block fails or is interrupted, the command and its children are stopped.
    """
    with (
        tempfile.TemporaryFile() as output,
        subprocess.Popen(
            [str(part) for part in line],
            cwd=cwd,
            env=environ(COMFYUI_PATH=str(host)),
            stdout=output,
            stderr=subprocess.STDOUT,
            **own_group(),
        ) as process,
    ):

        def finish() -> int:
            code = process.wait()
            output.seek(0)
            say(output.read().decode("utf-8", "replace").rstrip())
            return code

        try:
            yield finish
        except BaseException:
            stop_group(process)
            raise


def options(name: str) -> argparse.ArgumentParser:
    """A parser for the options of a subcommand."""
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
    with (
        claimed(output, "A demo", "wait for its end, or choose another --output"),
        tempfile.TemporaryDirectory(prefix="mip-demo-", ignore_cleanup_errors=True) as base,
    ):
        say("Starting ComfyUI …")
        with Server(python, host, Path(base), device_arguments(python), log=log) as server:
            say(f"ComfyUI answers at {server.url}")
            posted = ["run", "--server", server.url, "--output", output, *workflow]
            code = call([python, *arguments_for("commands.demo"), *posted], host)
    if code:
        say(f"The demo failed. ComfyUI's log, {log}, ends:\n{tail(log, 30)}")
    return code


@command("lint, types and all tests; more arguments go to pytest")
def test(arguments: list[str]) -> int:
    parser = options("test")
    parser.add_argument("--fast", action="store_true", help="without the tests that serve, browse or train")
    parser.add_argument("-m", dest="marked", metavar="MARKS", help="only tests with these marks, as pytest's -m")
    chosen, more = parser.parse_known_args(arguments)
    named = [ROOT / each.partition("::")[0] for each in more]
    if not any(path.exists() and ROOT / "tests" in (path, *path.parents) for path in named):  # a process for each core
        more = ["-n", str(min(os.cpu_count() or 1, 4)), "--dist", "worksteal", *more]
    if marks := [f"({each})" for each in (chosen.fast and "not slow", chosen.marked) if each]:
        more = ["-m", " and ".join(marks), *more]
    python, host = prepare()
    failed = []
    for name, step in {"ruff check": ["ruff", "check"], "ruff format": ["ruff", "format", "--check"]}.items():
        say(f"== {name}")
        if call([python, "-m", *step], host, ROOT):
            failed.append(name)
    say("== pytest, basedpyright beside it")
    with beside([python, "-m", "basedpyright", "--pythonpath", python], host, ROOT) as types:
        # tests/conftest.py repeats the failed steps at the end of the output
        code = call([python, "-m", "pytest", *more], host, ROOT, MIP_ADAPTER_FAILED_STEPS=", ".join(failed))
        say("== basedpyright")
        if types():
            failed.append("basedpyright")
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
    with Server(python, host, base, device_arguments(python) + more, port=chosen.port) as server:
        # Pictures for the workflows that ask for two of the user's own. Everything else works without them.
        call([python, *arguments_for("commands.demo"), "prepare", "--base-directory", base], host)
        say(f"ComfyUI with {PACK}: {server.url} (Ctrl-C stops it)")
        say(f"  models go into {base / 'models'}\n  log: {server.log}")
        if chosen.open:
            webbrowser.open(server.url)
        assert server.process
        code = server.process.wait()
    say(f"ComfyUI ended by itself. Its log ends:\n{tail(server.log, 15)}")
    return code


forward("arms", "research.ablation.command", "merging or training? all arms, judged", become=True)
forward("bench", "benchmarks.bench", "time our attention against the others'")
forward("convert", "commands.convert", "turn an adapter's .bin into .safetensors")
forward("curate", "commands.curate", "score training pictures by their objects, keep the best", become=True)
forward("concept101", "commands.concept101.command", "make and score the paper's benchmark", become=True)
forward("dataset", "commands.dataset", "find and cut out the objects of pictures, for training", become=True)
forward("edits", "research.studies.comfy_edits", "an edit model's references: does the bias bind?", become=True)
forward("faces", "research.studies.comfy_faces", "embeddings of looks in place of pictures: what binds?", become=True)
forward("overlap", "research.studies.comfy_overlap", "do the relevance maps lie on the objects?", become=True)
forward("pictures", "docs.pictures", "make the pictures of workflows and help pages anew")
forward("relevance", "benchmarks.relevance_score", "does noise meet its object?", become=True)
forward("sites", "research.studies.comfy_sites", "which cross-attentions know where the objects are?", become=True)
forward("steer", "research.studies.comfy_steering", "pictures before and after each way of steering", become=True)
forward("styles", "research.studies.comfy_styles", "objects beside a style: what keeps its looks?", become=True)
forward("train", "commands.train", "train an adapter or its fusion head", become=True)


def usage() -> str:
    lines = [f"  {name:<11}{purpose}" for name, (purpose, _) in COMMANDS.items()]
    return "usage: python mip.py COMMAND …\n\n" + "\n".join(lines) + "\n\n`mip.py COMMAND --help` says more."


def main(arguments: list[str]) -> int:
    print_any_character()
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
