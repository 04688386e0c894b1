"""The architecture, read from the imports: each floor knows only what lies below it, and few files know the host."""

from __future__ import annotations

import ast
import functools
import sys
from pathlib import Path

from ..support.paths import ROOT

OUTSIDE = {"tests", "output", "venv", "build", "dist"}  # not part of the pack
TOOLS = {"mip.py", "launcher", "benchmarks", "docs"}  # run by developers, never imported by the host
# From the ground up; folders of one floor do not see each other.
FLOORS = (
    {"common"},
    {"weights"},
    {"attention"},
    {"relevance"},
    {"patching", "evaluation"},
    {"training", "miniature"},
    {"nodes", "commands"},
    {"research"},
)
LEVELS = {folder: level for level, folders in enumerate(FLOORS) for folder in folders}
USED = LEVELS["nodes"]  # from here up the pack is used: by artists, from the shell, by researchers
VIOLATIONS: set[tuple[str, str]] = set()  # (importing file, imported file) that are still to be mended
HOST_MODULES = {
    *("comfy", "comfy_api", "comfy_api_nodes", "comfy_config", "comfy_execution", "comfy_extras"),
    *("execution", "folder_paths", "latent_preview", "node_helpers", "nodes", "server"),
}
FORBIDDEN = {"huggingface_hub", "pip", "requests", "subprocess", "urllib"}


def files() -> list[Path]:
    """The repository's Python files, relative to its root, without tests and hidden folders."""
    found = (path.relative_to(ROOT) for path in ROOT.rglob("*.py"))
    return sorted(path for path in found if path.parts[0] not in OUTSIDE and path.parts[0][0] != ".")


def floor(path: Path) -> str:
    """The top folder of a file; "" for files of the root."""
    return path.parts[0] if len(path.parts) > 1 else ""


def knows_host(path: Path) -> bool:
    """Whether a file may import ComfyUI."""
    return floor(path) in ("nodes", "patching") or path == Path("__init__.py") or path.name.startswith("comfy_")


def absolute_imports(tree: ast.AST) -> set[str]:
    """Top-level names of `import a.b` and `from a.b import c`, wherever in the file they stand."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            names.add(node.module.split(".")[0])
    return names


def relative_imports(path: Path, tree: ast.AST) -> set[Path]:
    """The files of the repository that `from .a import b` reaches; b may be a module or a name."""
    reached = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.level:
            base = Path(*path.parts[: -node.level], *(node.module or "").split("."))
            candidates = [base, *(base / alias.name for alias in node.names)]
            reached |= {file for name in candidates for file in (name.with_suffix(".py"), name / "__init__.py")}
    return {file for file in reached if (ROOT / file).is_file()}


def parse(path: Path) -> ast.Module:
    return ast.parse((ROOT / path).read_text("utf-8"), str(path))


FILES = files()


@functools.cache
def trees() -> dict[Path, ast.Module]:
    """Parsed by the first test that asks, because every process of a run collects all tests."""
    return {path: parse(path) for path in FILES}


def test_the_pack_is_found():
    assert {"__init__.py", "nodes/__init__.py", "mip.py"} <= {path.as_posix() for path in FILES}
    assert {floor(path) for path in FILES} - {"", *TOOLS} == LEVELS.keys()


def test_only_some_files_import_comfyui():
    wrong = {str(p): absolute_imports(t) & HOST_MODULES for p, t in trees().items() if not knows_host(p)}
    assert not {path: names for path, names in wrong.items() if names}


def own_imports() -> list[tuple[Path, Path]]:
    """(importing file, imported file) of the floors."""
    return [
        (path, reached)
        for path, tree in trees().items()
        for reached in relative_imports(path, tree)
        if floor(path) in LEVELS and floor(reached) not in ("", floor(path))
    ]


def test_each_floor_knows_only_what_lies_below():
    levels = {**LEVELS, "launcher": LEVELS["nodes"]}  # research is run by developers, and may use it
    wrong = {(str(a), str(b)) for a, b in own_imports() if levels.get(floor(b), len(FLOORS)) >= levels[floor(a)]}
    assert wrong == VIOLATIONS, "mend it, or take what is mended from the list"
    assert len(own_imports()) > 200


def test_the_method_can_be_read_and_run_without_a_host():
    """Below what is used, files that may not import ComfyUI do not import files that do."""
    wrong = [
        f"{path} imports {reached}"
        for path, tree in trees().items()
        if floor(path) in LEVELS and LEVELS[floor(path)] < USED and not knows_host(path)
        for reached in relative_imports(path, tree)
        if knows_host(reached)
    ]
    assert not wrong


def test_the_launcher_needs_the_standard_library_alone():
    for path, tree in trees().items():
        if floor(path) == "launcher":
            assert not absolute_imports(tree) - sys.stdlib_module_names, path
            assert {floor(reached) for reached in relative_imports(path, tree)} <= {"launcher"}, path


def test_own_packages_are_imported_relatively():
    """The host has a top-level `nodes` too, and a custom node's folder has no importable name."""
    own = {path.parts[0] for path in FILES if len(path.parts) > 1} - {"nodes"} | {"mip_adapter", "mip"}
    wrong = {str(p): absolute_imports(t) & own for p, t in trees().items() if p.parts[0] not in TOOLS}
    assert not {path: names for path, names in wrong.items() if names}


def test_nothing_that_the_registry_forbids():
    """No eval or exec anywhere; in the pack itself no installing, no downloading, no processes."""
    called = {
        (str(path), node.func.id)
        for path, tree in trees().items()
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
    }
    assert not {(path, name) for path, name in called if name in ("eval", "exec", "__import__")}
    imported = {str(p): absolute_imports(t) & FORBIDDEN for p, t in trees().items() if p.parts[0] not in TOOLS}
    assert not {path: names for path, names in imported.items() if names}


def test_importing_the_pack_imports_no_host():
    """comfy_entrypoint imports what it needs when it is called."""
    tree = trees()[Path("__init__.py")]
    top_level = ast.Module([node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)], [])
    assert not absolute_imports(top_level) and not relative_imports(Path("__init__.py"), top_level)


def test_pytest_imports_the_pack_once_and_by_its_alias():
    """A second copy, by pytest's own collection, would have types of its own."""
    init = str(ROOT / "__init__.py")
    assert [name for name, module in sys.modules.items() if getattr(module, "__file__", "") == init] == ["mip_adapter"]
