"""What an artist installs: the files that .comfyignore leaves. All of it runs there, and nothing of it is research."""

from __future__ import annotations

import shutil
import sys
from fnmatch import fnmatch
from pathlib import Path

import pytest

from ..support.paths import ROOT
from ..support.subprocesses import finished

IMPORT_ALL = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])  # the host's: its `nodes` comes before ours
from comfy.cli_args import args
args.cpu = True
sys.path.insert(0, "launcher")
from package import load_package
sys.path.pop(0)
files = [path.with_suffix("") for path in Path().rglob("*.py") if path.name not in ("mip.py", "__init__.py")]
for path in files:
    load_package(".".join(path.parts))
print(len(files), "modules")
"""


pytestmark = pytest.mark.slow


def ignored() -> list[str]:
    return (ROOT / ".comfyignore").read_text("utf-8").split()


def is_installed(path: Path) -> bool:
    patterns = ignored()
    return not any(path.as_posix().startswith(p) if p.endswith("/") else fnmatch(path.as_posix(), p) for p in patterns)


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("installed")
    listed = finished(["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"], cwd=ROOT).stdout
    for name in filter(None, listed.split("\0")):
        if is_installed(Path(name)) and (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, folder / name)
    return folder


def test_every_module_imports(host, installed: Path):
    done = finished([sys.executable, "-c", IMPORT_ALL, host.folder], cwd=installed)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout.split()[-2]) > 100


def test_nothing_of_research_is_there(installed: Path):
    for name in ("research", "tests", "benchmarks"):
        assert not (installed / name).exists()
    weights = sorted(path.relative_to(installed).as_posix() for path in installed.rglob("*.safetensors"))
    assert {path.split("/")[0] for path in weights} == {"miniature"} and len(weights) == 8


def test_a_command_of_the_repository_says_so(installed: Path):
    done = finished([sys.executable, installed / "mip.py", "arms", "--prompts", "1"])
    assert done.returncode == 1 and "comes with the repository only" in done.stderr


def test_scripts_of_the_frontend_show_texts_as_texts() -> None:
    """A workflow's words are drawn or put in as text, never as HTML or code."""
    forbidden = ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "new Function", "srcdoc")
    scripts = sorted((ROOT / "web" / "js").glob("*.js"))
    assert scripts
    found = [(path.name, word) for path in scripts for word in forbidden if word in path.read_text("utf-8")]
    assert not found
