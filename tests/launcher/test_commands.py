"""mip.py as a user meets it: its sentences, what it starts, commands in the real host."""

from __future__ import annotations

import json
import os
import socket
import sys
from contextlib import nullcontext, suppress
from pathlib import Path

import pytest

from ..support.launchers import load, run
from ..support.paths import ROOT
from ..support.subprocesses import finished

COMMANDS = (
    "demo",
    "test",
    "serve",
    "bench",
    "convert",
    "curate",
    "dataset",
    "concept101",
    "train",
    "arms",
    "pictures",
    "relevance",
)


def test_help_lists_the_commands(clean: Path):
    result = run("--help")
    assert result.returncode == 0
    for name in COMMANDS:
        assert f"\n  {name} " in result.stdout


@pytest.mark.parametrize("name", COMMANDS)
def test_help_of_a_command_installs_nothing(clean: Path, name: str):
    result = run(name, "--help")
    assert result.returncode == 0 and name in result.stdout
    assert not clean.exists()


def test_unknown_command(clean: Path):
    result = run("dmeo")
    assert result.returncode == 2
    assert "no command 'dmeo'" in result.stderr and "Did you mean demo?" in result.stderr
    assert run().returncode == 2


@pytest.mark.parametrize(("variable", "says"), [("COMFYUI_PATH", "no ComfyUI is there"), ("MIP_ADAPTER_PYTHON", "run")])
def test_a_wrong_path_gets_a_sentence(clean: Path, monkeypatch: pytest.MonkeyPatch, variable: str, says: str):
    monkeypatch.setenv(variable, str(clean / "nowhere"))
    result = run("demo")
    assert result.returncode == 1
    assert variable in result.stderr and says in result.stderr and "Traceback" not in result.stderr
    assert not clean.exists()


@pytest.mark.parametrize(
    ("given", "marked", "in_parallel"),
    [
        ([], None, True),
        (["--fast"], "(not slow)", True),
        (["--fast", "-m", "not host or slow", "-x"], "(not slow) and (not host or slow)", True),
        (["-m", "not host", "-k", "weights"], "(not host)", True),
        (["--fast", "tests/weights/test_sites.py::test_all", "-x"], "(not slow)", False),
        (["tests"], None, False),
    ],
)
def test_what_pytest_is_told(
    given: list[str], marked: str | None, in_parallel: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """In any folder: paths are the checkout's."""
    mip, lines = load(ROOT), []
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(mip.commands, "prepare", lambda: ("its python", Path("host")))
    monkeypatch.setattr(mip.commands, "call", lambda line, *_, **__: lines.append(line) and 0)
    monkeypatch.setattr(mip.commands, "beside", lambda *_: nullcontext(lambda: 0))
    assert mip.commands.main(["test", *given]) == 0
    told = lines[-1]
    assert (told[told.index("-m", 2) + 1] if "-m" in told[2:] else None) == marked
    assert ("-n" in told) == in_parallel
    assert [each for each in given if each.startswith("tests") or each == "-x"] == [
        each for each in told if each.startswith("tests") or each == "-x"
    ]


@pytest.mark.parametrize("status", [0, 3])
def test_a_command_beside_a_block_is_waited_for_and_heard(
    status: int, tmp_path: Path, capfd: pytest.CaptureFixture[str]
):
    """Also when it says more than a pipe holds, and ends after the block's work."""
    commands = load(ROOT).commands
    go, ended = tmp_path / "go", "the last line"
    program = f"""
import pathlib, sys, time
print("line\\n" * 100_000)
while not pathlib.Path({str(go)!r}).exists():
    time.sleep(0.01)
print({ended!r}, file=sys.stderr)
sys.exit({status})"""
    with commands.beside([sys.executable, "-c", program], tmp_path, tmp_path) as finish:
        assert ended not in capfd.readouterr().out
        go.touch()
        assert finish() == status
    assert capfd.readouterr().out.endswith(f"{ended}\n")


@pytest.mark.parametrize("interruption", [KeyboardInterrupt, SystemExit], ids=["Ctrl-C", "terminated"])
@pytest.mark.timeout(60)
def test_a_command_beside_a_block_ends_with_an_interrupted_block(interruption: type[BaseException], tmp_path: Path):
    """And so does what it started: basedpyright is a Python that waits for a program of another language."""
    commands, heard = load(ROOT).commands, []
    with socket.create_server(("127.0.0.1", 0)) as ear:
        ear.settimeout(30)
        child = f"import socket, time; line = socket.create_connection({ear.getsockname()!r}); time.sleep(90)"
        program = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])"
        with pytest.raises(interruption), commands.beside([sys.executable, "-c", program], tmp_path, tmp_path):
            heard.append(ear.accept()[0])
            raise interruption
    with heard[0] as line, suppress(ConnectionError):
        line.settimeout(30)
        assert line.recv(1) == b""  # the child's end of the line is closed


@pytest.mark.skipif(sys.platform == "win32", reason="Windows cannot replace a process")
@pytest.mark.parametrize(
    "name",
    ["arms", "concept101", "curate", "dataset", "edits", "overlap", "relevance", "sites", "steer", "styles", "train"],
)
def test_long_work_is_done_by_the_process_that_was_started(name: str, monkeypatch: pytest.MonkeyPatch):
    """So that whoever kills it leaves no worker behind."""
    mip = load(ROOT)

    def become(python: str, line: list[str], variables: dict[str, str]) -> None:
        assert line[0] == python == "its python" and line[-1] == "--more" and variables["COMFYUI_PATH"] == "host"
        raise KeyboardInterrupt

    monkeypatch.setattr(mip.commands, "prepare", lambda: ("its python", Path("host")))
    monkeypatch.setattr(os, "execve", become)
    assert mip.commands.main([name, "--more"]) == 130


# ---- with the real host ----


def test_no_module_of_the_current_folder_is_run(host, clean: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Somebody sends a folder of pictures, and `mip.py curate .` is started in it."""
    trap = tmp_path / "pictures"
    for name in ("torch", "runpy", "sys", "pip", "venv", "encodings", "safetensors", "common", "commands", "launcher"):
        (trap / name).mkdir(parents=True)
        for file in (trap / name / "__init__.py", trap / name / "__main__.py", trap / f"{name}.py"):
            file.write_text("open(__file__ + '.was-run', 'w')\n")
    monkeypatch.chdir(trap)
    monkeypatch.setenv("COMFYUI_PATH", str(host.folder))
    monkeypatch.setenv("MIP_ADAPTER_PYTHON", sys.executable)
    assert "Traceback" not in run("curate", ".").stderr
    mip = load(ROOT)
    mip.environment.run_logged([*mip.environment.pip(sys.executable), "--version"], tmp_path / "pip.log")
    mip.environment.run_logged([sys.executable, "-m", "venv", "--help"], tmp_path / "venv.log")
    # where Python is too old to heed PYTHONSAFEPATH, what runs by -c forgets the folder itself
    for code in (mip.server.RUN_HOST, mip.commands.arguments_for("commands.convert")[1]):
        assert code.strip().startswith(mip.package.NOT_HERE)
    assert finished([sys.executable, "-c", f"{mip.package.NOT_HERE}; import runpy"]).returncode == 0
    assert not list(trap.rglob("*.was-run"))


def test_convert(host, clean: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("COMFYUI_PATH", str(host.folder))
    monkeypatch.setenv("MIP_ADAPTER_PYTHON", sys.executable)
    source = ROOT / "tests" / "data" / "golden" / "base_ip_adapter.bin"
    result = run("convert", str(source), "--output", str(tmp_path / "base.safetensors"))
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "base.safetensors").stat().st_size > 1000
    missing = run("convert", str(tmp_path / "missing.bin"))
    assert missing.returncode == 1
    assert "missing.bin" in missing.stderr and "Traceback" not in missing.stderr
    monkeypatch.setenv("PYTHONIOENCODING", "ascii")
    plain = run("convert", str(source), "--output", str(tmp_path / "ähnlich.safetensors"))
    assert plain.returncode == 0 and "?hnlich.safetensors" in plain.stdout, plain.stderr


def test_demo_writes_its_pictures(host, clean: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("COMFYUI_PATH", str(host.folder))
    monkeypatch.setenv("MIP_ADAPTER_PYTHON", sys.executable)
    workflow = json.loads((ROOT / "commands" / "demo_api.json").read_text("utf-8"))
    for node in workflow.values():  # the demo's own steps have their turn in tests/miniature
        node["inputs"] |= {key: 1 for key in ("steps", "batch_size") if isinstance(node["inputs"].get(key), int)}
    (tmp_path / "short.json").write_text(json.dumps(workflow))
    result = run("demo", "--output", str(tmp_path / "pictures"), "--workflow", str(tmp_path / "short.json"))
    assert result.returncode == 0, result.stdout + result.stderr
    pictures = list((tmp_path / "pictures").glob("*.png"))
    assert pictures and all(str(path) in result.stdout for path in pictures)
