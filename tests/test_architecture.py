"""The house stands: who may import whom, what pure rooms may not touch, no cycles between modules."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

SOURCE = Path(__file__).resolve().parents[1] / "src/lmtower"

OPEN = {"errors", "config", "recipes", "logs", "processes"}
ALLOWED = {
    "errors": set[str](),
    "logs": set[str](),
    "processes": set[str](),
    "recipes": {"errors"},
    "config": {"errors", "recipes"},
    "telemetry": {"errors", "config"},
    "plan": OPEN,
    "engines": OPEN | {"plan"},
    "nodes": OPEN | {"plan", "engines"},
    "render": OPEN | {"plan", "engines", "telemetry"},
    "wire": OPEN,
    "personas": OPEN | {"wire"},
    "guard": OPEN | {"wire"},
    "ledger": OPEN | {"telemetry"},
    "gateway": OPEN | {"wire", "personas", "guard", "ledger", "telemetry"},
    "stores": OPEN,
    "console": OPEN | {"telemetry"},
}
CONTROL_PLANE = {"plan", "engines", "nodes", "render"}
DATA_PLANE = {"wire", "personas", "guard", "ledger", "gateway", "stores"}

PURE = ("plan", "engines", "wire", "personas", "guard", "render")
FORBIDDEN_WHEN_PURE = {
    "asyncio", "socket", "http", "urllib.request", "subprocess", "threading", "time", "random", "secrets", "uuid",
    "httpx", "httptools", "docker", "sqlalchemy", "uvloop", "requests",
}  # fmt: skip
BORDERS = {"plan/sources.py"}
"""Where a pure room's facts are read from files and the model hub, before anything is computed."""
OUTER_EDGES = {"cli/app.py", "gateway/handler.py", "gateway/errand.py"}
"""Outermost handlers: of a command, of a request, of a connection."""


@cache
def trees() -> dict[str, ast.Module]:
    """Every module of the package as a syntax tree, by its path below ``src/lmtower``."""
    paths = [path for path in SOURCE.rglob("*.py") if "presets" not in path.parts]
    return {path.relative_to(SOURCE).as_posix(): ast.parse(path.read_text("utf-8")) for path in sorted(paths)}


def room_of(path: str) -> str:
    """``gateway/server.py`` -> gateway; ``errors.py`` -> errors."""
    return path.partition("/")[0].removesuffix(".py")


def imports(tree: ast.AST, *, lazy: bool = True) -> Iterator[str]:
    """Dotted names that a module imports; without ``lazy`` only those that run when it is imported itself."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            if lazy:
                yield from imports(node, lazy=lazy)
        elif lazy or not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield from imports(node, lazy=lazy)


def rooms_imported(path: str) -> set[str]:
    """Other rooms that this module names, at import or later."""
    found = {name.split(".")[1] for name in imports(trees()[path]) if name.startswith("lmtower.")}
    return found - {room_of(path), "__version__"}


@pytest.mark.parametrize("path", [path for path in trees() if room_of(path) not in ("cli", "__init__", "__main__")])
def test_module_imports_only_rooms_that_it_may(path: str) -> None:
    """The table of the house is kept, late imports included; nobody imports the front door."""
    assert rooms_imported(path) - ALLOWED[room_of(path)] == set()


def test_control_plane_and_data_plane_never_meet() -> None:
    """A change of a persona can never touch an engine: the planes do not know each other."""
    meeting = [
        (path, other)
        for path in trees()
        for other in rooms_imported(path)
        if (room_of(path) in CONTROL_PLANE and other in DATA_PLANE)
        or (room_of(path) in DATA_PLANE and other in CONTROL_PLANE)
    ]
    assert meeting == []


@pytest.mark.parametrize("path", [path for path in trees() if room_of(path) in PURE and path not in BORDERS])
def test_pure_room_has_no_clock_network_or_async(path: str) -> None:
    """Pure rooms take time, ids and facts as arguments."""
    tree = trees()[path]
    names = set(imports(tree))
    touched = {bad for bad in FORBIDDEN_WHEN_PURE for name in names if name == bad or name.startswith(f"{bad}.")}
    is_async = any(isinstance(node, ast.AsyncFunctionDef | ast.Await) for node in ast.walk(tree))
    reads_environment = any(
        isinstance(node, ast.Attribute) and node.attr in ("environ", "getenv") for node in ast.walk(tree)
    )
    assert (touched, is_async, reads_environment) == (set(), False, False)


def test_modules_import_each_other_without_cycles() -> None:
    """Each module can be understood after the ones that it imports."""
    modules = {_module(path): path for path in trees()}
    graph = {name: set(_targets(path, modules)) - {name} for name, path in modules.items()}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(f"import cycle: {' -> '.join(error.args[1])}")


@pytest.mark.parametrize("path", trees())
def test_module_says_what_lives_in_it(path: str) -> None:
    """Every module has a docstring whose first line is a sentence."""
    text = ast.get_docstring(trees()[path])
    assert text
    assert text.splitlines()[0]


@pytest.mark.parametrize("path", trees())
def test_module_has_no_global_state_and_no_broad_except(path: str) -> None:
    """No ``global``; a broad ``except`` only at the outer edges, or where it re-raises."""
    tree = trees()[path]
    globals_used = [node.lineno for node in ast.walk(tree) if isinstance(node, ast.Global)]
    broad = [
        handler.lineno for handler in ast.walk(tree) if isinstance(handler, ast.ExceptHandler) and _is_broad(handler)
    ]
    assert (globals_used, [] if path in OUTER_EDGES else broad) == ([], [])


@pytest.mark.parametrize("path", trees())
def test_file_is_one_idea(path: str) -> None:
    """Past 500 lines there is a second idea in the file."""
    length = len((SOURCE / path).read_text("utf-8").splitlines())
    assert length <= 500


def _is_broad(handler: ast.ExceptHandler) -> bool:
    names = handler.type.elts if isinstance(handler.type, ast.Tuple) else [handler.type]
    wide = any(
        name is None or (isinstance(name, ast.Name) and name.id in ("Exception", "BaseException")) for name in names
    )
    reraises = any(isinstance(node, ast.Raise) and node.exc is None for node in ast.walk(handler))
    return wide and not reraises


def _module(path: str) -> str:
    return "lmtower." + path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")


def _targets(path: str, modules: dict[str, str]) -> Iterator[str]:
    for name in imports(trees()[path], lazy=False):
        if name in modules:
            yield name
        elif (parent := name.rpartition(".")[0]) in modules:
            yield parent
