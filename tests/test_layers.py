"""Rooms: a module imports only from lower layers, files stay short, light imports stay light."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
LAYERS = {
    "clmoe.errors": 0, "clmoe.events": 0,
    "clmoe.recipe": 1, "clmoe.runs": 1,
    "clmoe.data": 2, "clmoe.model": 2, "clmoe.method": 2, "clmoe.metrics": 2,
    "clmoe.parallel": 2,
    "clmoe.training": 3, "clmoe.evaluation": 3, "clmoe.baselines": 3, "clmoe.interop": 3,
    "clmoe.bench": 3,
    "clmoe.reporting": 4,
    "clmoe.stages": 5,
    "clmoe_cli": 6,
}  # fmt: skip
HEAVY = {"torch", "transformers", "peft", "accelerate", "datasets", "sklearn", "matplotlib"}
NO_HEAVY = ("clmoe.errors", "clmoe.events", "clmoe.recipe", "clmoe.runs", "clmoe_cli")
NO_TORCH = (*NO_HEAVY, "clmoe.reporting")
LONGEST = 400
MODULES = sorted([*(ROOT / "clmoe").rglob("*.py"), *(ROOT / "clmoe_cli").rglob("*.py")])


def name_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def room_of(module: str) -> str | None:
    parts = module.split(".")
    return next(
        (name for name in (".".join(parts[:2]), parts[0]) if name in LAYERS),
        None,
    )


def imports(path: Path, *, at_top_only: bool = False) -> Iterator[str]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    nodes = _executed_at_import(tree) if at_top_only else ast.walk(tree)
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative imports hide the layer"
            yield node.module or ""
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def _executed_at_import(tree: ast.AST) -> Iterator[ast.AST]:
    """What runs when the module is imported: not in functions, not under TYPE_CHECKING."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            continue
        yield node
        yield from _executed_at_import(node)


def test_there_is_something_to_test() -> None:
    names = {name_of(path) for path in MODULES}
    assert {"clmoe.errors", "clmoe.recipe.load", "clmoe.runs.run", "clmoe_cli.app"} <= names
    assert {room_of(name) for name in names} - {None} <= set(LAYERS)


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_imports_only_from_lower_layers(path: Path) -> None:
    module = name_of(path)
    room = room_of(module)
    if room is None:  # clmoe/__init__.py and other files at the top are anybody's
        return
    wrong = []
    for imported in imports(path):
        other = room_of(imported)
        if other is None or other == room:
            continue
        runs_above_1 = other == "clmoe.runs" and LAYERS[room] in (2, 3)
        sideways = LAYERS[other] == LAYERS[room] and (room, other) == ("clmoe.recipe", "clmoe.runs")
        if LAYERS[other] > LAYERS[room] or runs_above_1 or sideways:
            wrong.append(imported)
    assert wrong == []


@pytest.mark.parametrize(
    "path", [p for p in MODULES if name_of(p).startswith(NO_TORCH)], ids=name_of
)
def test_no_torch_in_light_rooms(path: Path) -> None:
    forbidden = HEAVY if name_of(path).startswith(NO_HEAVY) else {"torch"}
    assert not {name for name in imports(path) if name.split(".")[0] in forbidden}


@pytest.mark.parametrize(
    "path", [p for p in MODULES if name_of(p).startswith("clmoe_cli")], ids=name_of
)
def test_the_command_line_imports_stages_late(path: Path) -> None:
    late = {"clmoe.stages", "clmoe.data", "clmoe.model", "clmoe.training"}
    assert not {name for name in imports(path, at_top_only=True) if room_of(name) in late}


@pytest.mark.parametrize(
    "path", [*MODULES, *sorted((ROOT / "tests").rglob("*.py"))], ids=lambda path: str(path.name)
)
def test_files_are_short(path: Path) -> None:
    lines = path.read_text(encoding="utf-8").count("\n")
    assert lines <= LONGEST, f"{path.relative_to(ROOT)} has {lines} lines"


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_files_say_what_they_are_for(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    assert ast.get_docstring(tree) or not tree.body


@pytest.mark.parametrize("module", ["clmoe.recipe", "clmoe.runs", "clmoe_cli.app", "clmoe"])
def test_light_imports(module: str) -> None:
    code = (
        f"import sys, {module}; "
        f"print(sorted({HEAVY!r} & {{name.split('.')[0] for name in sys.modules}}))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert done.stdout.strip() == "[]"


def test_the_library_does_not_print_or_exit() -> None:
    wrong = []
    for path in MODULES:
        if name_of(path).startswith("clmoe_cli"):
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Call):
                continue
            called = ast.unparse(node.func)
            if called in {"print", "exit", "quit", "sys.exit", "os._exit"}:
                wrong.append(f"{name_of(path)}:{node.lineno} {called}")
    assert wrong == []
