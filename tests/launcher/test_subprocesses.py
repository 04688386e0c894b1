"""The processes of the other tests: subprocesses.py keeps its word."""

from __future__ import annotations

import signal
import sys
from subprocess import PIPE

import psutil
import pytest

from ..support.subprocesses import finished, started

# One that starts another, in a session of its own, that nobody waits for.
TWO = """
import subprocess, sys, time
print(subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True).pid, flush=True)
time.sleep(600)
"""


def test_what_fails_leaves_no_process_behind() -> None:
    family = []
    with pytest.raises(RuntimeError), started([sys.executable, "-c", TWO], stdout=PIPE, text=True) as process:
        family += [psutil.Process(process.pid), psutil.Process(int(process.stdout.readline()))]
        raise RuntimeError
    assert len(family) == 2
    assert not [each for each in family if each.is_running() and each.status() != psutil.STATUS_ZOMBIE]


@pytest.mark.skipif(sys.platform == "win32", reason="a Ctrl-C cannot be sent to one process there")
def test_a_process_heeds_ctrl_c_though_we_are_deaf_to_it() -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        ask = "import signal; print(signal.getsignal(signal.SIGINT) is signal.default_int_handler)"
        assert finished([sys.executable, "-c", ask]).stdout == "True\n"
        assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)
