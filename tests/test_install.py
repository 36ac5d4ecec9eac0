"""Installation: which torch make takes, what it says without a Python, what a wheel holds."""

import ast
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "anytime_lab"
MODEL = PACKAGE / "embedded_model"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
TARGETS = ("help", "install", "sync", "lab", "jupyter", "test", "test-slow", "lint", "clean")


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


def test_versions_of_packages_stand_in_pyproject_only():
    names = set(requirements(set(PROJECT["project"]["optional-dependencies"])))
    pin = re.compile(r"([A-Za-z][\w.-]*)(?:\[[\w,]*\])?\s*(?:==|~=|>=)\s*\d")
    for name in ("Makefile", "environment.yml", ".ci/run"):
        text = (ROOT / name).read_text(encoding="utf-8")
        found = {canonicalize_name(match) for match in pin.findall(text)}
        assert not found & names, f"{name} pins {found & names}"
    for leftover in ("requirements.txt", "setup.py", "setup.cfg", "pytest.ini", "ruff.toml"):
        assert not (ROOT / leftover).exists(), leftover


LOCK = tomllib.loads((ROOT / "uv.lock").read_text(encoding="utf-8"))["package"]


def test_the_lock_is_of_what_pyproject_asks_for():
    (own,) = [one for one in LOCK if one["name"] == "anytime-lab"]
    groups = {"": PROJECT["project"]["dependencies"], **PROJECT["project"]["optional-dependencies"]}
    asked = {
        (extra, canonicalize_name(one.name), one.specifier)
        for extra, lines in groups.items()
        for one in map(Requirement, lines)
    }
    locked = {
        (
            "".join(re.findall(r"extra == '([\w-]+)'", one.get("marker", ""))),
            one["name"],
            SpecifierSet(one.get("specifier", "")),
        )
        for one in own["metadata"]["requires-dist"]
    }
    assert locked == asked, "pyproject.toml has changed: make lock"
    for _, name, specifier in asked - {("dev", "anytime-lab", SpecifierSet())}:
        found = [one["version"] for one in LOCK if one["name"] == name]
        assert found and all(specifier.contains(version) for version in found), (name, found)


def test_the_lock_takes_packages_from_pypi_and_holds_their_hashes():
    for package in LOCK:
        if package["name"] == "anytime-lab":
            continue
        assert package["source"] == {"registry": "https://pypi.org/simple"}, package["name"]
        files = [*package.get("wheels", ()), *filter(None, [package.get("sdist")])]
        assert files, package["name"]
        for file in files:
            assert file["url"].startswith("https://files.pythonhosted.org/packages/"), file
            assert re.fullmatch("sha256:[0-9a-f]{64}", file["hash"]), file


def test_libraries_whose_insides_are_used_are_pinned_to_a_minor_version():
    held = requirements({"vllm", "ray"})
    for name in ("torch", "transformers", "trl", "vllm", "plotly", "papermill", "ray"):
        (specifier,) = held[name].specifier
        assert specifier.operator == "==" and specifier.version.count(".") >= 2, held[name]


def module_level_imports(path: Path) -> set[str]:
    """Top-level names of the third-party packages that a file imports when it is imported."""
    names = set()
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add(node.module.split(".")[0])
    return names - set(sys.stdlib_module_names) - {"anytime_lab"}


def test_what_the_package_imports_is_declared():
    """By the project itself, or by a package that it declares."""
    admitted = set(requirements(set()))
    for name in tuple(admitted):
        for line in metadata.requires(name) or ():
            admitted.add(canonicalize_name(Requirement(line).name))
    sources = metadata.packages_distributions()
    for path in PACKAGE.rglob("*.py"):
        for name in module_level_imports(path):
            packages = {canonicalize_name(one) for one in sources[name]}
            assert packages & admitted, f"{path} imports {name}; declare it in pyproject.toml"


def test_the_version_is_the_packages_own():
    dynamic = PROJECT["tool"]["setuptools"]["dynamic"]["version"]["attr"]
    assert dynamic == "anytime_lab.__version__"
    assert "version" in PROJECT["project"]["dynamic"]
    text = (PACKAGE / "__init__.py").read_text(encoding="utf-8")
    version = re.search(r'^__version__ = "(.+)"$', text, re.MULTILINE)[1]
    assert f"## {version} " in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


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


def test_make_shows_its_targets_and_has_them():
    shown = make()
    assert shown.returncode == 0, shown.stderr
    for target in TARGETS:
        assert re.search(rf"^  make {target} +\S", shown.stdout, re.MULTILINE), target
        planned = make("--dry-run", target)
        assert planned.returncode == 0, planned.stderr


def test_the_tests_that_make_names_exist():
    named = re.findall(r"\btests/\S+\.py", (ROOT / "Makefile").read_text(encoding="utf-8"))
    assert len(named) >= 3
    assert [path for path in named if not (ROOT / path).exists()] == []


def torch_line(tmp_path: Path, **programs: str) -> str:
    """What make would install as torch, with these programs before all others."""
    for name, text in programs.items():
        script(tmp_path / name.replace("_", "-"), text)
    path = f"{tmp_path}{os.pathsep}{os.environ['PATH']}"
    planned = make("--dry-run", "--always-make", "install", path=path)
    assert planned.returncode == 0, planned.stderr
    (line,) = [line for line in planned.stdout.splitlines() if "install --quiet --no-deps" in line]
    return line.split("--no-deps ")[1].split("||")[0].strip()


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
    assert "make install PYTHON=" in failed.stderr
    assert not (tmp_path / ".venv").exists()


def test_where_torch_cannot_be_had_make_says_how_to_take_it_from_elsewhere(tmp_path):
    python = tmp_path / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    # pip is there and up to date; torch is neither installed nor to be had
    script(python, 'case "$*" in "-c "*|*torch*) echo no torch >&2; exit 1;; esac')
    for name in ("Makefile", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path)
    failed = make("install", folder=tmp_path)
    assert failed.returncode != 0
    pinned = str(requirements(set())["torch"])
    assert f'make install TORCH="{pinned} --index-url URL"' in failed.stderr
    assert f"make install TORCH={pinned} " in failed.stderr
    assert "Installing the project" not in failed.stdout
    assert not (tmp_path / ".venv" / ".installed").exists()
