"""The rooms of the package: who may import whom, and which libraries."""

import ast
import os
import subprocess
import sys
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "anytime_lab"

# Arm and layer of each module, or of all modules of a folder. Both arms stand on "base", and "work"
# runs notebooks on top. Within an arm, a module imports from its own layer or a lower one.
ROOMS = {
    # what both arms share
    "priors": ("base", 0),
    "prompts": ("base", 0),
    "grading": ("base", 0),
    "verify": ("base", 0),
    "records": ("base", 0),
    "manifest": ("base", 0),
    # train and evaluate
    "tree": ("train", 1),
    "advantages": ("train", 1),
    "rollouts": ("train", 1),
    "metrics": ("train", 1),
    "attention": ("train", 2),
    "tree_scoring": ("train", 2),
    "checkpoints": ("train", 2),
    "decoding": ("train", 2),
    "embedded": ("train", 2),
    "models": ("train", 2),
    "tasks": ("train", 2),
    "engines": ("train", 2),
    "config": ("train", 2),
    "config_checks": ("train", 2),
    "presets": ("train", 2),
    "checks": ("train", 3),
    "run_setup": ("train", 3),
    "runlog": ("train", 3),
    "trainer": ("train", 3),
    "warmstart": ("train", 3),
    "evaluation_folder": ("train", 3),
    "evaluate": ("train", 3),
    # look
    "widgets.html": ("look", 1),  # escaping of text, for whatever draws or prints
    "curves": ("look", 1),
    "measures": ("look", 1),
    "policies": ("look", 1),
    "published": ("look", 1),
    "summary": ("look", 1),
    "training_curves": ("look", 1),
    "plot_style": ("look", 2),
    "plots": ("look", 2),
    "report": ("look", 3),
    "widgets": ("look", 3),
    # run notebooks
    "launch": ("work", 4),
    "jobs": ("work", 4),
    "lab": ("work", 4),
    "sweep": ("work", 4),
}

# Which rooms may import a library: an arm and layers, or modules by name.
LIBRARIES = {
    "torch": {("train", 1), ("train", 2), ("train", 3)},
    "accelerate": {("train", 2), ("train", 3)},
    "datasets": {("train", 2), ("train", 3)},
    "peft": {("train", 2), ("train", 3)},
    "tokenizers": {("train", 2), ("train", 3)},
    "transformers": {("train", 2), ("train", 3)},
    "trl": {"config", "config_checks", "checks", "run_setup", "runlog", "trainer", "warmstart"},
    "vllm": {"engines", "trainer"},
    "sympy": {"grading.symbolic"},
    "math_verify": {"grading.symbolic"},
    "latex2sympy2_extended": {"grading.symbolic"},
    "papermill": {("work", 4)},
    "ray": {("work", 4)},
    "plotly": {("look", 2), ("look", 3)},
    "ipywidgets": {("look", 3)},
    "anywidget": {("look", 3)},
    "IPython": {("look", 3)},
}


def module_name(path: Path) -> str:
    """`anytime_lab/widgets/html.py` → `widgets.html`; a package's own file → the package."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


SOURCES = {module_name(path): path for path in sorted(PACKAGE.rglob("*.py"))}
MODULES = [name for name, path in SOURCES.items() if path.name != "__init__.py"]


def listed(module: str, names: set) -> bool:
    """Whether a module, or a folder that it is in, is among the names."""
    parts = module.split(".")
    return any(".".join(parts[:n]) in names for n in range(len(parts), 0, -1))


def room(module: str) -> tuple[str, int]:
    parts = module.split(".")
    for n in range(len(parts), 0, -1):
        if (found := ROOMS.get(".".join(parts[:n]))) is not None:
            return found
    pytest.fail(f"anytime_lab.{module} has no room; give it an arm and a layer in {__file__}")


def imported(module: str, top_level_only: bool = False) -> set[str]:
    """Full names of what a module imports, in functions too; `from a import b` gives a and a.b."""
    tree = ast.parse(SOURCES[module].read_text(encoding="utf-8"))
    nodes = [
        node
        for part in tree.body
        if not (top_level_only and isinstance(part, ast.FunctionDef | ast.ClassDef))
        for node in ast.walk(part)
    ]
    names = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"anytime_lab.{module} has a relative import; write the name"
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return names


def test_every_room_holds_a_module_that_exists():
    planned = {"sweep"}
    for name in set(ROOMS) - planned:
        assert any(module == name or module.startswith(f"{name}.") for module in MODULES), name


def faults(module: str, imports: set[str]) -> list[str]:
    """What the rule has against a module with these imports."""
    arm, layer = room(module)
    found = []
    for other in sorted({name.removeprefix("anytime_lab.") for name in imports} & set(MODULES)):
        other_arm, other_layer = room(other)
        if (other_arm not in ("base", arm) and arm != "work") or other_layer > layer:
            found.append(f"{module} ({arm} {layer}) imports {other} ({other_arm} {other_layer})")
    for library in sorted({name.split(".")[0] for name in imports} & set(LIBRARIES)):
        if (arm, layer) not in LIBRARIES[library] and not listed(module, LIBRARIES[library]):
            found.append(f"{module} ({arm} {layer}) imports {library}")
    return found


def test_modules_import_from_lower_layers_of_their_own_arm_and_the_libraries_of_their_layer():
    assert [fault for module in MODULES for fault in faults(module, imported(module))] == []


@pytest.mark.parametrize(
    ("module", "wrong"),
    [
        ("curves", "torch"),
        ("curves", "anytime_lab.plots"),
        ("widgets.canvas", "anytime_lab.tree"),
        ("records", "anytime_lab.tree"),
        ("tree", "transformers.cache_utils"),
        ("advantages", "anytime_lab.trainer"),
        ("evaluate", "trl"),
        ("engines.hf", "anytime_lab.curves"),
        ("trainer", "papermill"),
    ],
)
def test_the_rule_refuses(module, wrong):
    assert faults(module, {"pathlib", "anytime_lab.priors"}) == []
    assert len(faults(module, {wrong})) == 1


def test_imports_inside_functions_count():
    assert "torch" in imported("evaluation_folder")
    assert "torch" not in imported("evaluation_folder", top_level_only=True)


def test_modules_do_not_import_in_circles():
    graph = {
        module: {name.removeprefix("anytime_lab.") for name in imported(module, True)}
        & set(MODULES) - {module}
        for module in MODULES
    }
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(" imports ".join(reversed(error.args[1])))


def test_vllm_is_imported_in_the_class_that_needs_it():
    for module in MODULES:
        tops = {name.split(".")[0] for name in imported(module, top_level_only=True)}
        assert not tops & {"vllm", "ray"}, f"{module} imports it for everybody"


def test_packages_export_nothing_of_their_modules():
    for path in PACKAGE.rglob("__init__.py"):
        imports = [
            node
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
            if isinstance(node, ast.Import | ast.ImportFrom)
        ]
        assert not imports, f"{path} imports; a name has one home"


def loaded_after(modules: list[str]) -> set[str]:
    """Top-level packages in `sys.modules` after a fresh process has imported modules."""
    lines = [f"import anytime_lab.{module}" for module in modules]
    lines.append("import sys; print(*sorted({name.split('.')[0] for name in sys.modules}))")
    done = subprocess.run(
        [sys.executable, "-c", "\n".join(lines)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return set(done.stdout.split())


def test_looking_at_results_loads_no_torch():
    look = [module for module in MODULES if room(module)[0] == "look"]
    assert {"curves", "plots", "report", "widgets.budget_curves"} <= set(look)
    loaded = loaded_after(look)
    assert {"pandas", "plotly", "ipywidgets"} <= loaded
    assert not loaded & {"torch", "transformers", "trl", "datasets", "vllm", "papermill"}


def test_grading_loads_no_torch_and_no_sympy():
    base = [module for module in MODULES if room(module)[0] == "base"]
    # Its imports are for the worker processes, which grade with it.
    workers_only = {"grading.symbolic", "grading.worker"}
    loaded = loaded_after([module for module in base if module not in workers_only])
    assert not loaded & {"torch", "transformers", "trl", "sympy", "math_verify", "plotly"}
