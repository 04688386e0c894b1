"""The architecture, read from the imports: nodes → host_* → pure, and nothing that a host forbids."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

from ..support.paths import ROOT

OUTSIDE = {"tests", "output", "venv", "build", "dist"}  # not part of the pack
TOOLS = {"mip.py", "benchmarks", "docs"}  # run by developers, never imported by the host
HOST_MODULES = {
    *("comfy", "comfy_api", "comfy_api_nodes", "comfy_config", "comfy_execution", "comfy_extras"),
    *("execution", "folder_paths", "latent_preview", "node_helpers", "nodes", "server"),
}
FORBIDDEN = {"huggingface_hub", "pip", "requests", "subprocess", "urllib"}


def files() -> list[Path]:
    """The repository's Python files, relative to its root, without tests and hidden folders."""
    found = (path.relative_to(ROOT) for path in ROOT.rglob("*.py"))
    return sorted(path for path in found if path.parts[0] not in OUTSIDE and path.parts[0][0] != ".")


def layer(path: Path) -> str:
    if path.parts[0] == "nodes" or path == Path("__init__.py"):
        return "nodes"
    return "host" if path.name.startswith("host_") else "pure"


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
TREES = {path: ast.parse((ROOT / path).read_text("utf-8"), str(path)) for path in FILES}


def test_the_pack_is_found():
    assert {"__init__.py", "nodes/__init__.py", "mip.py"} <= {path.as_posix() for path in FILES}


def test_only_nodes_and_host_files_import_comfyui():
    wrong = {str(p): absolute_imports(t) & HOST_MODULES for p, t in TREES.items() if layer(p) == "pure"}
    assert not {path: names for path, names in wrong.items() if names}


def test_dependencies_point_one_way():
    allowed = {"pure": {"pure"}, "host": {"pure", "host"}, "nodes": {"pure", "host", "nodes"}}
    wrong = [
        f"{path} imports {reached}"
        for path, tree in TREES.items()
        for reached in relative_imports(path, tree)
        if layer(reached) not in allowed[layer(path)]
    ]
    assert not wrong


def test_own_packages_are_imported_relatively():
    """The host has a top-level `nodes` too, and a custom node's folder has no importable name."""
    own = {path.parts[0] for path in FILES if len(path.parts) > 1} - {"nodes"} | {"mip_adapter", "mip"}
    wrong = {str(p): absolute_imports(t) & own for p, t in TREES.items() if p.parts[0] not in TOOLS}
    assert not {path: names for path, names in wrong.items() if names}


def test_nothing_that_the_registry_forbids():
    """No eval or exec anywhere; in the pack itself no installing, no downloading, no processes."""
    called = {
        (str(path), node.func.id)
        for path, tree in TREES.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
    }
    assert not {(path, name) for path, name in called if name in ("eval", "exec", "__import__")}
    imported = {str(p): absolute_imports(t) & FORBIDDEN for p, t in TREES.items() if p.parts[0] not in TOOLS}
    assert not {path: names for path, names in imported.items() if names}


def test_importing_the_pack_imports_no_host():
    """comfy_entrypoint imports what it needs when it is called."""
    tree = TREES[Path("__init__.py")]
    top_level = ast.Module([node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)], [])
    assert not absolute_imports(top_level) and not relative_imports(Path("__init__.py"), top_level)


def test_pytest_imports_the_pack_once_and_by_its_alias():
    """A second copy, by pytest's own collection, would have types of its own."""
    init = str(ROOT / "__init__.py")
    assert [name for name, module in sys.modules.items() if getattr(module, "__file__", "") == init] == ["mip_adapter"]
