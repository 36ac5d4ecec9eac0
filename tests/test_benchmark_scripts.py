"""The scripts in benchmarks/ run, at sizes that prove nothing about speed."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).resolve().parent.parent / "benchmarks"
# Each script, its arguments, and lines that it prints with a number above 0.
RUNS = {
    "trees": (
        "--thinking 8 --layers 1 --hidden 64 --trees 1 --rounds 1 --summary 2 "
        "--backends segmented unrolled",
        [rf"update, {name} +(\S+) s" for name in ("segmented", "unrolled")]
        + [rf"sampling, {name} +(\S+) tokens/s" for name in ("on the cache", "by generate")],
    ),
    "views": (
        "--problems 20 --samples 2 --budgets 4 --runs 2 --part 8",
        [rf"{view}: first paint +(\S+) ms" for view in ("budget curves", "one problem", "rules")],
    ),
    "engines": ("hf --problems 2 --rounds 1 --samples 1", [r"hf .* (\S+) tokens/s"]),
    "grading": ("--quick", [r"easy .*\) +900 +(\S+) ", r"mixed .*\) +900 +(\S+) "]),
}


@pytest.mark.slow
def test_every_benchmark_runs():
    assert {path.stem for path in SCRIPTS.glob("*.py")} == set(RUNS)
    started = {
        name: subprocess.Popen(
            [sys.executable, SCRIPTS / f"{name}.py", *arguments.split()],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for name, (arguments, _) in RUNS.items()
    }
    told = {name: (*process.communicate(), process.returncode) for name, process in started.items()}
    for name, (out, errors, status) in told.items():
        assert status == 0, f"{name}: {errors[-3000:]}"
        for line in RUNS[name][1]:
            (number,) = re.findall(line, out)
            assert float(number.replace(",", "")) > 0, line
