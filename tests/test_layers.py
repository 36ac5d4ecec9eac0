"""The layer rule: what each module may import, read off the imports themselves."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parent.parent / "anytime_lab"
MODULES = sorted(
    ".".join(path.relative_to(PACKAGE).with_suffix("").parts)
    for path in PACKAGE.rglob("*.py")
    if path.name != "__init__.py"
)
# Layers of the train and evaluate arm; a module imports from lower layers, or its own below it.
LAYERS = {
    0: {
        "priors", "prompts", "verify", "records", "rollout_records", "manifest", "grading",
        "thoughts",
    },
    1: {"tree", "advantages"},
    2: {
        "attention", "tasks", "engines", "config", "config_checks", "presets", "rollouts",
        "metrics", "embedded", "models", "costs", "checkpoints", "decoding",
    },
    3: {
        "trainer", "vllm_rollouts", "rollout_recorder", "tree_scoring", "checks", "run_setup",
        "runlog", "sharding", "evaluate", "evaluation_folder", "warmstart", "preflight_plan",
    },
    4: {
        "preflight", "doctor", "serve", "parameters", "launch", "execute", "executors", "job_table",
        "jobs", "storage", "ray_executor",
        "lab", "sweep", "sweep_checks", "sweep_file", "sweep_jobs", "sweep_page", "sweep_plan",
    },
}  # fmt: skip
LOOK = {
    "records", "rollout_records", "manifest", "priors", "curves", "measures", "policies",
    "published", "training_curves", "seeds", "plot_style", "plots", "pictures", "summary", "report",
    "widgets",
}  # fmt: skip
# Who may import what from outside.
ONLY = {
    "torch": lambda room: layer_of(room) in (1, 2, 3),
    "transformers": lambda room: layer_of(room) in (2, 3),
    "trl": lambda room: room in {"config", "trainer", "sharding", "warmstart"},
    "vllm": lambda room: room == "engines",
    "papermill": lambda room: room in {"parameters", "execute"},
    "ray": lambda room: room == "ray_executor",
    "plotly": lambda room: room in {"plots", "plot_style", "report", "widgets"},
    "ipywidgets": lambda room: room == "widgets",
    "sympy": lambda room: room == "grading",
    "math_verify": lambda room: room == "grading",
}


def room_of(module):
    return module.split(".")[0]


def layer_of(room):
    return next((layer for layer, rooms in LAYERS.items() if room in rooms), None)


def imports(module):
    """Modules that a module imports, anywhere in it, absolute."""
    tree = ast.parse((PACKAGE / Path(*module.split("."))).with_suffix(".py").read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module} imports relatively"
            yield node.module
            if node.module == "anytime_lab":
                yield from (f"anytime_lab.{alias.name}" for alias in node.names)


def own_imports(module):
    found = {name.removeprefix("anytime_lab.") for name in imports(module)
             if name.startswith("anytime_lab.")}  # fmt: skip
    return {room_of(name) for name in found}


def test_every_module_has_a_room():
    known = set().union(*LAYERS.values(), LOOK)
    assert {room_of(module) for module in MODULES} <= known


@pytest.mark.parametrize("module", MODULES)
def test_a_module_imports_from_its_own_layer_or_below(module):
    room = room_of(module)
    for other in own_imports(module) - {room}:
        if room in LOOK and room not in LAYERS[0]:
            assert other in LOOK or layer_of(other) == 0, f"{module} imports {other}"
        elif layer_of(room) == 4:
            continue  # the top sees everything
        else:
            assert other not in LOOK - LAYERS[0], f"{module} imports {other} of the look arm"
            assert layer_of(other) <= layer_of(room), f"{module} imports {other}"


@pytest.mark.parametrize("module", MODULES)
def test_heavy_libraries_are_imported_where_they_belong_only(module):
    for name in imports(module):
        allowed = ONLY.get(name.split(".")[0])
        assert allowed is None or allowed(room_of(module)), f"{module} imports {name}"


def test_nothing_imports_in_circles():
    graph = {module: {m.removeprefix("anytime_lab.") for m in imports(module)} & set(MODULES)
             for module in MODULES}  # fmt: skip
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
        sorted(f"anytime_lab.{m}" for m in MODULES if room_of(m) in LOOK),
        ["anytime_lab.verify", "anytime_lab.prompts", "anytime_lab.priors"],
    ],
)
def test_results_open_without_torch(names):
    code = (
        f"import importlib, sys\nfor name in {names!r}: importlib.import_module(name)\n"
        "heavy = {'torch', 'transformers', 'trl', 'vllm', 'sympy', 'math_verify'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


def test_init_files_export_nothing():
    for path in PACKAGE.rglob("__init__.py"):
        tree = ast.parse(path.read_text())
        assert not any(isinstance(node, (ast.Import, ast.ImportFrom)) for node in ast.walk(tree))


def test_no_file_is_longer_than_400_lines():
    for path in PACKAGE.rglob("*.py"):
        assert len(path.read_text().splitlines()) <= 400, path.name
