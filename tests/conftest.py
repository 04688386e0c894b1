"""Fixtures: the pack under the name `mip_adapter`, a ComfyUI to import, a ComfyUI that serves, a browser."""

from __future__ import annotations

import gc
import importlib
import importlib.util
import multiprocessing
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import hypothesis
import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]


def _load_pack() -> None:
    """By path: the repository's root must not be on sys.path, because its `nodes` would hide the host's."""
    spec = importlib.util.spec_from_file_location("package", ROOT / "launcher" / "package.py")
    assert spec and spec.loader
    package = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(package)
    package.load_package()


_load_pack()
from mip_adapter.launcher import comfyui  # noqa: E402
from mip_adapter.launcher.environment import Problem  # noqa: E402
from mip_adapter.launcher.server import FOLDERS, Server  # noqa: E402

# No deadlines: a busy machine is not a failure. In CI a red run must be red again tomorrow.
in_ci = os.environ.get("CI") == "true"
hypothesis.settings.register_profile("ours", max_examples=25, deadline=None, derandomize=in_ci)
hypothesis.settings.load_profile("ours")


if os.environ.get("PYTEST_XDIST_WORKER"):
    torch.set_num_threads(1)  # the workers share the cores
    os.environ["OMP_NUM_THREADS"] = "1"  # and so do the processes that they start


@pytest.fixture(autouse=True)
def _same_numbers_every_time() -> None:
    torch.manual_seed(0)


@pytest.fixture(autouse=True, scope="module")
def _collections_stay_short() -> None:
    """The host collects garbage at almost every model that it loads. That took 30 of 76 seconds of two modules. So what
    outlives a module of tests, above all imported code, is frozen and not looked at again."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def _no_forked_process_is_left() -> Iterator[None]:
    """It would keep the pipes that it inherited open, and the browser's driver waits for the end of one."""
    yield
    left = multiprocessing.active_children()
    for each in left:
        each.kill()
        each.join()
    assert not left, "a test leaves processes that it started"


# Besides what is marked where it is written: fixtures and folders.
SLOW = {"server", "browser"}
SLOW_FOLDERS = ("server", "browser", "training", "research", "launcher", "benchmarks", "commands")
SAMPLING_FOLDERS = ("patching", "relevance", "evaluation", "miniature", "fuzz")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """`-m "not host"` leaves the tests that need no ComfyUI, `-m "not slow"` those that serve, browse or train none.

    Of a test that samples in many cases (each merge, each kind of area), `-m "not slow"` leaves the first.
    """
    known = set()
    for item in items:
        fixtures, folder = set(getattr(item, "fixturenames", ())), item.path.relative_to(ROOT / "tests").parts[0]
        if {"host", *SLOW} & fixtures:
            item.add_marker(pytest.mark.host)
        test = (item.path, getattr(item, "originalname", item.name))
        another_case = folder in SAMPLING_FOLDERS and "host" in fixtures and test in known
        known.add(test)
        if SLOW & fixtures or folder in SLOW_FOLDERS or another_case:
            item.add_marker(pytest.mark.slow)


def pytest_terminal_summary(terminalreporter) -> None:
    """Repeat what failed before the tests, so that it is not lost above them."""
    if failed := os.environ.get("MIP_ADAPTER_FAILED_STEPS"):
        terminalreporter.write_line(f"FAILED before the tests: {failed}", red=True)


def host_folder() -> Path:
    """The ComfyUI to test against: COMFYUI_PATH, or the one that mip.py unpacked."""
    try:
        folder = comfyui.given_host() or comfyui.unpacked_host_folder()
    except Problem as problem:
        pytest.fail(str(problem), pytrace=False)
    if not folder.is_dir():
        pytest.fail("No ComfyUI here yet: run `python mip.py test` once, or set COMFYUI_PATH.", pytrace=False)
    return folder


@pytest.fixture(scope="session")
def host(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """ComfyUI's modules, importable from here on: on the CPU, with folders of its own.

    `host.folder` is the checkout, `host.base` its models, input and output. Ask for this fixture in
    every test that imports comfy, folder_paths, … or `mip_adapter.nodes`, and import them inside the test.
    """
    folder, base = host_folder(), tmp_path_factory.mktemp("host")
    for name in FOLDERS:
        (base / name).mkdir()
    sys.path.insert(0, str(folder))
    args = importlib.import_module("comfy.cli_args").args
    args.cpu, args.base_directory = True, str(base)
    args.use_pytorch_cross_attention = True  # as hosts on a GPU do; it is faster on a processor, too
    return SimpleNamespace(folder=folder, base=base)


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory):
    """A running ComfyUI with this pack and another: `server.url`, `server.base` (models, …), `server.log`."""
    base = tmp_path_factory.mktemp("server")
    (base / "custom_nodes").mkdir()
    shutil.copy(ROOT / "tests" / "support" / "another_pack.py", base / "custom_nodes")
    with Server(sys.executable, host_folder(), base) as running:
        yield running


@pytest.fixture(scope="session")
def browser() -> Iterator:
    """Playwright's Browser over a Chromium of the machine; without one the test is skipped, in CI it fails."""
    from mip_adapter.docs import browser

    chrome = browser.find_chrome()
    if chrome is None:
        if os.environ.get("CI") == "true":
            pytest.fail(browser.NO_CHROME, pytrace=False)
        pytest.skip(browser.NO_CHROME)
    with browser.launched(chrome) as running:
        yield running
