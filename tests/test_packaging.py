"""What the folder promises to whoever clones it: one place for versions, data, targets, sizes."""

import ast
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from fnmatch import fnmatch
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "anytime_lab"
MODEL = PACKAGE / "embedded_model"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
TARGETS = ("help", "install", "lab", "jupyter", "test", "test-slow", "lint", "clean")
ENVIRONMENT = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))


def requirements(extras: set[str]) -> dict[str, Requirement]:
    """Of the project with extras, those that extras name in turn included; by package."""
    lines = list(PROJECT["project"]["dependencies"])
    for extra in extras:
        lines += PROJECT["project"]["optional-dependencies"][extra]
    found = {}
    for requirement in map(Requirement, lines):
        if canonicalize_name(requirement.name) == "anytime-lab":
            found |= requirements(requirement.extras)
        else:
            found[canonicalize_name(requirement.name)] = requirement
    return found


def project_files() -> list[Path]:
    """Text files of the checkout that are not generated."""
    ignored = (ROOT / ".gitignore").read_text(encoding="utf-8").split()
    found = []
    for folder, folders, names in os.walk(ROOT):
        folders[:] = [
            name
            for name in folders
            if not any(fnmatch(f"{name}/", pattern) for pattern in ignored)
            and (not name.startswith(".") or name in (".ci", ".github"))
        ]
        found += [Path(folder, name) for name in names if not name.endswith(".safetensors")]
    return found


def make(*arguments: str, path: str | None = None, folder: Path = ROOT, **environment: str):
    """Run make with a search path; without make on the machine, the test is skipped."""
    program = shutil.which("make")
    if program is None:
        pytest.skip("no make")
    variables = {
        k: v for k, v in os.environ.items() if k not in ("MAKEFLAGS", "MAKELEVEL", "MFLAGS")
    }
    variables |= {"PATH": path or os.environ["PATH"], **environment}
    return subprocess.run(
        [program, "--no-print-directory", *arguments],
        cwd=folder,
        env=variables,
        capture_output=True,
        text=True,
        timeout=60,
    )


def script(path: Path, text: str) -> None:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)


def test_the_conda_environment_holds_everything_that_users_asked_for():
    (pip_part,) = [part["pip"] for part in ENVIRONMENT["dependencies"] if isinstance(part, dict)]
    (line,) = pip_part  # nothing beside the project itself, so no second place with versions
    extras = re.fullmatch(r"-e \.\[([\w,]+)\]", line)[1].split(",")
    wanted = {"jupyterlab", "torch", "transformers", "trl", "vllm", "datasets"}
    wanted |= {"plotly", "ipywidgets", "papermill"}
    held = requirements(set(extras))
    assert wanted <= set(held)
    for name in wanted:
        marker = held[name].marker
        assert marker is None or marker.evaluate({"sys_platform": "linux"}), name


def test_conda_takes_a_python_that_the_project_admits():
    plain = [part for part in ENVIRONMENT["dependencies"] if isinstance(part, str)]
    assert {re.split("[=<>]", part)[0] for part in plain} == {"python", "pip"}
    (python,) = [part for part in plain if part.startswith("python")]
    minor = python.split("=")[1]
    admitted = SpecifierSet(PROJECT["project"]["requires-python"])
    assert f"{minor}.0" in admitted
    assert [minor for minor in range(9, 17) if f"3.{minor}.0" in admitted] == [11, 12, 13]


def test_versions_of_packages_stand_in_pyproject_only():
    names = set(requirements(set(PROJECT["project"]["optional-dependencies"])))
    pin = re.compile(r"([A-Za-z][\w.-]*)(?:\[[\w,]*\])?\s*(?:==|~=|>=)\s*\d")
    for name in ("Makefile", "environment.yml", ".ci/run"):
        text = (ROOT / name).read_text(encoding="utf-8")
        found = {canonicalize_name(match) for match in pin.findall(text)}
        assert not found & names, f"{name} pins {found & names}"
    for leftover in ("requirements.txt", "setup.py", "setup.cfg", "pytest.ini", "ruff.toml"):
        assert not (ROOT / leftover).exists(), leftover


def test_libraries_whose_insides_are_used_are_pinned_to_a_minor_version():
    held = requirements({"vllm", "ray"})
    for name in ("torch", "transformers", "trl", "vllm", "plotly", "papermill", "ray"):
        (specifier,) = held[name].specifier
        assert specifier.operator == "==" and specifier.version.count(".") >= 2, held[name]


def test_what_the_package_imports_is_declared():
    """Third-party imports at module level, except what a declared package brings along."""
    brought = {"latex2sympy2_extended", "sympy", "tokenizers", "nbformat", "ipykernel", "IPython"}
    named = {"math_verify": "math-verify", "yaml": "pyyaml"}
    declared = set(requirements(set()))
    for path in PACKAGE.rglob("*.py"):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                names = [node.module]
            else:
                continue
            for name in {name.split(".")[0] for name in names}:
                if name in sys.stdlib_module_names or name in brought | {"anytime_lab"}:
                    continue
                wanted = canonicalize_name(named.get(name, name))
                assert wanted in declared, f"{path} imports {name}; declare it in pyproject.toml"


def test_the_version_is_the_packages_own():
    dynamic = PROJECT["tool"]["setuptools"]["dynamic"]["version"]["attr"]
    assert dynamic == "anytime_lab.__version__"
    assert "version" in PROJECT["project"]["dynamic"]
    text = (PACKAGE / "__init__.py").read_text(encoding="utf-8")
    version = re.search(r'^__version__ = "(.+)"$', text, re.MULTILINE)[1]
    assert f"## {version} " in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


def test_the_shipped_model_is_package_data_and_small():
    patterns = PROJECT["tool"]["setuptools"]["package-data"]["anytime_lab"]
    files = [path for path in MODEL.rglob("*") if path.is_file()]
    assert {"config.json", "tokenizer.json", "model.safetensors"} <= {path.name for path in files}
    for path in files:
        name = path.relative_to(PACKAGE).as_posix()
        assert any(fnmatch(name, pattern) for pattern in patterns), name
    assert sum(path.stat().st_size for path in files) <= 8 * 2**20


@pytest.mark.slow
def test_a_wheel_holds_every_module_and_the_model(tmp_path):
    source, wheels = tmp_path / "source", tmp_path / "wheels"
    source.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    leave = shutil.ignore_patterns("__pycache__")
    shutil.copytree(PACKAGE, source / "anytime_lab", ignore=leave)
    build = f"from setuptools.build_meta import build_wheel; build_wheel({str(wheels)!r})"
    wheels.mkdir()
    done = subprocess.run(
        [sys.executable, "-c", build], cwd=source, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    (wheel,) = wheels.glob("anytime_lab-*.whl")
    held = set(zipfile.ZipFile(wheel).namelist())
    shipped = [*PACKAGE.rglob("*.py"), *(path for path in MODEL.rglob("*") if path.is_file())]
    assert {path.relative_to(ROOT).as_posix() for path in shipped} <= held
    assert not [name for name in held if name.startswith(("tests/", "benchmarks/"))]


def test_no_file_of_the_package_is_longer_than_400_lines():
    lengths = {p: len(p.read_text(encoding="utf-8").splitlines()) for p in PACKAGE.rglob("*.py")}
    assert {str(path): lines for path, lines in lengths.items() if lines > 400} == {}


def test_only_ci_knows_of_a_folder_beside_the_checkout():
    beside = "../" + "shared"
    told = set()
    for path in project_files():
        if beside in path.read_text(encoding="utf-8", errors="ignore"):
            told.add(path.relative_to(ROOT).as_posix())
    assert told == {".ci/run"}


def test_make_shows_its_targets_and_has_them():
    shown = make()
    assert shown.returncode == 0, shown.stderr
    for target in TARGETS:
        assert re.search(rf"^  make {target} +\S", shown.stdout, re.MULTILINE), target
        planned = make("--dry-run", target)
        assert planned.returncode == 0, planned.stderr


def torch_line(tmp_path: Path, **programs: str) -> str:
    """What make would install as torch, with these programs before all others."""
    for name, text in programs.items():
        script(tmp_path / name.replace("_", "-"), text)
    path = f"{tmp_path}{os.pathsep}{os.environ['PATH']}"
    planned = make("--dry-run", "--always-make", "install", path=path)
    assert planned.returncode == 0, planned.stderr
    (line,) = [line for line in planned.stdout.splitlines() if "install --quiet --no-deps" in line]
    return line.split("--no-deps ")[1].strip()


def test_without_an_nvidia_device_on_linux_only_the_cpu_build_of_torch_will_do(tmp_path):
    pinned = str(requirements(set())["torch"])
    line = torch_line(tmp_path, nvidia_smi="echo 'No devices found.'; exit 6", uname="echo Linux")
    assert line.split()[0] == f"{pinned}+cpu"
    assert "--extra-index-url https://download.pytorch.org/whl/cpu" in line


def test_with_an_nvidia_device_torch_comes_from_the_usual_index(tmp_path):
    pinned = str(requirements(set())["torch"])
    smi = "echo 'GPU 0: NVIDIA H100 80GB HBM3'"
    assert torch_line(tmp_path, nvidia_smi=smi, uname="echo Linux") == pinned


def test_elsewhere_than_linux_torch_has_one_build(tmp_path):
    pinned = str(requirements(set())["torch"])
    assert torch_line(tmp_path, nvidia_smi="exit 1", uname="echo Darwin") == pinned


def test_make_says_which_pythons_it_found_when_none_will_do(tmp_path):
    programs = tmp_path / "bin"
    programs.mkdir()
    script(programs / "python3", 'test "$1" = --version && echo Python 3.9.2 || exit 1')
    for name in ("Makefile", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path)
    failed = make("install", path=str(programs), folder=tmp_path)
    assert failed.returncode != 0
    assert "No Python 3.11, 3.12 or 3.13" in failed.stderr
    assert "python3: Python 3.9.2" in failed.stderr
    assert "make PYTHON=" in failed.stderr
    assert not (tmp_path / ".venv").exists()


def test_the_checks_of_ci_are_a_program():
    run = ROOT / ".ci" / "run"
    assert os.access(run, os.X_OK)
    text = run.read_text(encoding="utf-8")
    assert text.startswith("#!/usr/bin/env bash\n") and "\nset -euo pipefail\n" in text
    assert (
        text.index("\nmake test\n") < text.index("\nmake test-slow\n") < text.index("\nmake lint\n")
    )
