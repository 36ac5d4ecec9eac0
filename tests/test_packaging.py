"""What a clone promises: environments, pins, targets, notebooks; all checked without network."""

import json
import re
import subprocess
import tomllib
from pathlib import Path

import nbformat
import pytest
import yaml

from anytime_lab.run.notebook import declared_parameters

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
WANTED = ("jupyterlab", "torch", "transformers", "trl", "vllm", "datasets", "plotly",
          "ipywidgets", "papermill")  # fmt: skip
TRACKED = subprocess.run(
    ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True
).stdout.split()


def names(requirements):
    return {re.match(r"[A-Za-z0-9_-]+", one)[0].lower() for one in requirements}


def test_the_conda_environment_brings_everything():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    plain = [one for one in environment["dependencies"] if isinstance(one, str)]
    (pip,) = [one["pip"] for one in environment["dependencies"] if isinstance(one, dict)]
    assert {re.split(r"[=<>]", one)[0] for one in plain} == {"python", "pip"}
    (editable,) = pip
    extras = re.fullmatch(r"-e \.\[([a-z,]+)\]", editable)[1].split(",")
    brought = names(PROJECT["dependencies"])
    for extra in extras:
        brought |= names(PROJECT["optional-dependencies"][extra])
    assert set(WANTED) <= brought


def test_the_conda_python_is_one_that_the_project_takes():
    text = (ROOT / "environment.yml").read_text()
    minor = int(re.search(r"python=3\.(\d+)", text)[1])
    low, high = map(int, re.fullmatch(r">=3\.(\d+),<3\.(\d+)", PROJECT["requires-python"]).groups())
    assert low <= minor < high


def test_pins_stand_in_pyproject_only():
    allowed = {"pyproject.toml"}
    pin = re.compile(r"\b(transformers|trl|datasets|vllm|plotly|papermill|ray)\s*==\s*\d")
    for name in TRACKED:
        if name not in allowed and not name.endswith((".ipynb", ".json", ".jsonl", ".safetensors")):
            assert not pin.search((ROOT / name).read_text(errors="ignore")), name


@pytest.mark.parametrize("target", ["lab", "test", "test-slow", "jupyter", "clean", "help"])
def test_make_knows_its_targets(target):
    run = subprocess.run(["make", "-n", target], cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr


def test_what_the_readme_writes_has_its_folder_in_a_fresh_clone():
    assert "runs/.gitignore" in TRACKED  # papermill makes no folder for its output


def test_ci_runs_the_fast_and_the_slow_tests():
    lines = (ROOT / ".ci/run").read_text().splitlines()
    (tests,) = [line for line in lines if line.startswith("make test")]
    assert '-m "slow or not slow"' in tests and "make lint" in lines
    assert (ROOT / ".ci/run").stat().st_mode & 0o111


def test_the_project_stands_alone():
    for name in TRACKED:
        if name.endswith((".py", ".md", ".ipynb", ".toml", ".yml", ".yaml", "Makefile")):
            if name == "tests/test_packaging.py":
                continue
            text = (ROOT / name).read_text(errors="ignore")
            assert "../shared" not in text and "/work/" not in text, name


def test_the_shipped_model_is_small_and_safe():
    folder = ROOT / "anytime_lab/embedded_model"
    files = list(folder.iterdir())
    assert sum(path.stat().st_size for path in files) <= 8 * 1024 * 1024
    assert not [p.name for p in files if p.suffix in (".bin", ".pt", ".pkl")]
    patterns = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert "embedded_model/*" in patterns["tool"]["setuptools"]["package-data"]["anytime_lab"]


def cells(path):
    return json.loads(path.read_text(encoding="utf-8"))["cells"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_notebooks_are_short_plain_and_clean(path):
    code = [cell for cell in cells(path) if cell["cell_type"] == "code"]
    tagged = [c for c in code if "parameters" in c["metadata"].get("tags", [])]
    assert len(tagged) == 1
    assert len(code) <= 12
    for cell in code:
        source = "".join(cell["source"])
        assert not re.search(r"^\s*(def|class|for|while)\b", source, re.M), source
        assert cell["outputs"] == [] and cell["execution_count"] is None
    assert "widgets" not in json.loads(path.read_text(encoding="utf-8"))["metadata"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_parameters_are_json_literals_with_a_type(path):
    (cell,) = [c for c in cells(path) if "parameters" in c["metadata"].get("tags", [])]
    lines = [line for line in "".join(cell["source"]).splitlines() if line.strip()]
    assert all(re.match(r"\w+: (int|float|str|bool|list|dict) = ", line) for line in lines), lines
    declared = declared_parameters(path)
    assert len(declared) == len(lines)
    assert json.loads(json.dumps(declared)) == declared


def test_executed_copies_show_their_views_as_pictures_and_are_small():
    copies = sorted((ROOT / "docs/notebooks").glob("*.ipynb"))
    shown = {"04_budget_curves", "06_inside_a_problem", "08_credit", "09_training", "11_claims"}
    assert {path.stem for path in copies} == shown
    for path in copies:
        outputs = [one for cell in cells(path) for one in cell.get("outputs", ())]
        kinds = {kind for one in outputs for kind in one.get("data", ())}
        assert "image/png" in kinds and not any("plotly" in k or "widget" in k for k in kinds), (
            kinds
        )
        assert not [one for one in outputs if one["output_type"] == "error"]
        assert path.stat().st_size < 300_000  # of pictures alone: no plotly.js, no widget state


def test_a_badge_opens_a_notebook_in_colab_and_a_second_one_replaces_it(monkeypatch):
    from IPython.core.inputtransformer2 import TransformerManager

    monkeypatch.syspath_prepend(ROOT / "docs")
    from colab import ALONE, with_badge

    for name in ALONE:
        path = ROOT / "notebooks" / f"{name}.ipynb"
        bare = nbformat.read(path, as_version=4)
        once = with_badge(nbformat.read(path, as_version=4), name, "a/new")
        twice = with_badge(
            with_badge(nbformat.read(path, as_version=4), name, "b/old"), name, "a/new"
        )
        nbformat.validate(twice)
        assert twice == once != bare
        link = f"colab.research.google.com/github/a/new/blob/main/notebooks/{name}.ipynb"
        assert link in once.cells[0].source and "b/old" not in str(once)
        assert once.cells[0].source.split("\n")[0] == bare.cells[0].source.split("\n")[0]
        assert once.cells[2:] == bare.cells[1:]
    # Elsewhere than in Colab its first cell does nothing.
    exec(TransformerManager().transform_cell(once.cells[1].source), {})
