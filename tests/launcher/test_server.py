"""The server that mip.py runs.

Stand-ins for the host answer or fail at once; the real host has its turn at the end.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import time
import urllib.request
from pathlib import Path
from subprocess import PIPE

import pytest

from ..support.launchers import fake_host, load
from ..support.paths import ROOT
from ..support.subprocesses import started

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


def test_a_pack_that_does_not_load_is_reported(host, copy: Path, tmp_path: Path):
    (copy / "__init__.py").write_text("raise ImportError('half of it is missing')\n")
    mip = load(copy)
    broken = mip.server.Server(sys.executable, host.folder, tmp_path / "base")
    with pytest.raises(mip.environment.Problem, match="could not load this pack: .*half of it is missing"), broken:
        pass
