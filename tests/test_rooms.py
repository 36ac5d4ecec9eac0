"""The plan of the house: which room may import which, read off the imports themselves."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "anytime_lab"
GROUND = {"store", "verify", "priors", "prompts", "tree", "page"}
LOWER = GROUND | {"engines", "tasks", "read"}
# Room → rooms it may import from, beside itself. Nothing else is a room.
ROOMS = {
    **{room: set() for room in GROUND},
    "engines": {"tree", "prompts", "priors"},
    "tasks": {"verify", "store", "prompts"},
    "read": {"store", "priors", "page"},
    "train": GROUND | {"engines", "tasks"},
    "evaluate": GROUND | {"engines"},
    "look": {"read", "store", "verify", "page", "priors", "engines.thoughts"},
    "run": LOWER | {"train", "evaluate", "look"},
    "__main__": LOWER | {"train", "evaluate", "look", "run"},
}
# Library → rooms, or files of a room, that may import it.
ONLY = {
    "torch": {"tree", "engines", "train", "evaluate", "run"},
    "transformers": {"engines", "train", "evaluate", "run"},
    "trl": {"train"},
    "vllm": {"engines"},
    "papermill": {"run"},
    "ray": {"run"},
    "plotly": {"look"},
    "ipywidgets": {"look"},
    "sympy": {"verify"},
    "math_verify": {"verify"},
}
MODULES = sorted(
    ".".join(path.relative_to(PACKAGE).with_suffix("").parts)
    for path in PACKAGE.rglob("*.py")
    if path.name != "__init__.py"
)
LINES = 20_041  # of the whole package. It may only fall: lower it with every change that does.


def room_of(module):
    return module.split(".")[0]


def imports(module):
    """Modules that a module imports, anywhere in it, absolute."""
    tree = ast.parse((PACKAGE / Path(*module.split("."))).with_suffix(".py").read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module} imports relatively"
            yield node.module
            if node.module.startswith("anytime_lab"):
                yield from (f"{node.module}.{alias.name}" for alias in node.names)


def own_imports(module):
    found = {name.removeprefix("anytime_lab.") for name in imports(module)
             if name.startswith("anytime_lab.")}  # fmt: skip
    return found & set(MODULES)


def test_every_entry_of_the_package_is_a_room():
    entries = {path.stem for path in PACKAGE.iterdir() if path.suffix == ".py" or
               (path.is_dir() and any(path.glob("*.py")))}  # fmt: skip
    assert entries - {"__init__"} <= set(ROOMS)
    assert len(entries - {"__init__", "__main__"}) <= 15


@pytest.mark.parametrize("module", MODULES)
def test_a_room_imports_only_from_rooms_below_it(module):
    room = room_of(module)
    for other in own_imports(module):
        assert room_of(other) == room or {room_of(other), other} & ROOMS[room], (
            f"{module} imports {other}; {room} may import {sorted(ROOMS[room])}"
        )


@pytest.mark.parametrize("module", MODULES)
def test_heavy_libraries_are_imported_where_they_belong_only(module):
    for name in imports(module):
        allowed = ONLY.get(name.split(".")[0])
        assert allowed is None or {room_of(module), module} & allowed, f"{module} imports {name}"


def test_nothing_imports_in_circles():
    graph = {module: own_imports(module) for module in MODULES}
    done = set()

    def visit(module, path):
        assert module not in path, " -> ".join([*path, module])
        if module not in done:
            for other in graph[module]:
                visit(other, [*path, module])
            done.add(module)

    for module in graph:
        visit(module, [])


@pytest.mark.parametrize(
    "names",
    [
        sorted(f"anytime_lab.{m}" for m in MODULES if room_of(m) in ("store", "read", "look")),
        ["anytime_lab.verify.verifiers", "anytime_lab.prompts", "anytime_lab.priors"],
    ],
)
def test_results_open_without_torch(names):
    code = (
        f"import importlib, sys\nfor name in {names!r}: importlib.import_module(name)\n"
        "heavy = {'torch', 'transformers', 'trl', 'datasets', 'vllm', 'sympy', 'math_verify'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


def test_init_files_export_nothing():
    for path in PACKAGE.rglob("__init__.py"):
        tree = ast.parse(path.read_text())
        assert not any(isinstance(node, (ast.Import, ast.ImportFrom)) for node in ast.walk(tree))


def test_the_library_stays_thin():
    lines = sum(len(path.read_text().splitlines()) for path in PACKAGE.rglob("*.py"))
    assert lines <= LINES, f"{lines} lines; {LINES} before. What does the new code replace?"


def test_the_readme_shows_the_house_as_the_modules_tell_it():
    tree = PACKAGE.parent / "docs" / "tree.py"
    run = subprocess.run([sys.executable, tree, "--check"], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
