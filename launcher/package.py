"""Imports the checkout by the name `mip_adapter`, whatever its folder is called."""

from __future__ import annotations

import importlib
import importlib.util
import io
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = "mip_adapter"
# What runs by `python -c` begins so. Nothing is imported from the current folder, which may hold somebody's
# torch.py. Python before 3.11 does not heed PYTHONSAFEPATH; sys is built in, so it comes from no folder.
NOT_HERE = "import sys; sys.path[:] = [each for each in sys.path if each]"


def load_package(module: str = ""):
    """Import the pack, or one of its modules."""
    if PACKAGE not in sys.modules:
        init = ROOT / "__init__.py"
        spec = importlib.util.spec_from_file_location(PACKAGE, init, submodule_search_locations=[str(ROOT)])
        assert spec and spec.loader
        sys.modules[PACKAGE] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[PACKAGE])
    return importlib.import_module(f"{PACKAGE}.{module}" if module else PACKAGE)


def arguments_for(module: str) -> tuple[str, str]:
    """Arguments of Python that run `main(argv)` of a module of the pack."""
    run = f"runpy.run_path({str(Path(__file__).resolve())!r})['run_module']"
    return "-c", f"{NOT_HERE}; import runpy; sys.exit({run}({module!r}, sys.argv[1:]))"


def run_module(module: str, arguments: list[str]) -> int:
    """Runs a module's `main`; started by the arguments of `arguments_for`."""
    print_any_character()
    return load_package(module).main(arguments)


def print_any_character() -> None:
    """Replace characters that the console cannot show instead of raising an error."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
