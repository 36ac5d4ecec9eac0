"""The main job at smoke scale, as a user runs it."""

import itertools
import json
import os
import re
import subprocess
import sys

import nbformat
import pandas as pd
import pytest
from lab_browser import find_browser
from made_notebooks import run_cells, run_notebook, with_parameters

from anytime_lab.__main__ import main
from anytime_lab.look.pictures import FIGURE, PICTURE
from anytime_lab.run.notebook import NOTEBOOKS, declared_parameters
from anytime_lab.store.records import read_records

AR = "AnytimeReasoner-uniform"


@pytest.fixture(scope="module")
def smoke(tmp_path_factory):
    """The folder of a whole main job at smoke scale, without a browser for pictures."""
    out = tmp_path_factory.mktemp("main job") / "lab"
    command = [sys.executable, "-m", "anytime_lab", "lab", "--scale", "smoke", "--out", str(out)]
    room = {**os.environ, "BROWSER_PATH": "/nowhere"}
    run = subprocess.run(command, capture_output=True, text=True, timeout=900, env=room)
    assert run.returncode == 0, run.stderr[-3000:]
    told = run.stdout
    assert told.startswith("Checking lab.yaml; the plan and how long it takes follow.")
    assert "It takes a minute or two on two cores." in told.split("train_grpo: starting")[0]
    assert "train_grpo: done" in told and "open notebooks/04_budget_curves.ipynb" in told
    return out


OF_THE_LAB = ("04_budget_curves", "06_inside_a_problem", "07_policies", "08_credit", "09_training")


@pytest.mark.slow
def test_notebooks_read_what_the_main_job_left_by_their_defaults(smoke, tmp_path):
    # One after another in one kernel, each as if it were the first.
    all_of_them, begins = nbformat.v4.new_notebook(), []
    for name in OF_THE_LAB:
        defaults = json.dumps(declared_parameters(NOTEBOOKS / f"{name}.ipynb"))
        assert "runs/lab/" in defaults
        made = with_parameters(name, json.loads(defaults.replace("runs/lab", str(smoke))))
        begins.append(len(all_of_them.cells))
        all_of_them.metadata = made.metadata
        all_of_them.cells += [nbformat.v4.new_code_cell("get_ipython().reset()"), *made.cells]
    nbformat.write(all_of_them, tmp_path / "all.ipynb")
    run_notebook(tmp_path / "all.ipynb", {}, tmp_path / "run")
    cells = nbformat.read(tmp_path / "run/notebook.ipynb", 4).cells
    for begin, end in itertools.pairwise([*begins, len(cells)]):
        outputs = [o for c in cells[begin:end] for o in c.get("outputs", [])]
        figures = [o.data for o in outputs if FIGURE in o.get("data", {})]
        assert figures  # a static one goes before each view
        assert len(json.dumps(outputs)) < 1_000_000
        if find_browser():
            assert all(PICTURE in data for data in figures)


@pytest.mark.slow
def test_the_warm_start_that_made_the_model_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    small = {"steps": 2, "good_steps": 2, "batch_size": 8, "num_problems": 10}
    left = run_cells("01_warm_start", {**small, "output_dir": str(tmp_path / "out")})
    assert (tmp_path / "out/model.safetensors").exists()
    assert len(read_records(left["evaluated"])) == 10 * len(left["budgets"])


@pytest.mark.slow
def test_the_whole_main_job_at_smoke_scale(smoke, capsys):
    out = smoke
    summary = pd.read_csv(out / "summary.csv").set_index("run")
    assert list(summary.index) == ["start", "GRPO", AR, f"{AR}, GRPO's time"]
    page = (out / "comparison.html").read_text()
    assert "AnytimeReasoner-uniform" in page
    markup = re.sub(r"<script\b.*?</script>", "", page, flags=re.DOTALL)
    assert "<table" in markup  # what follows looks at more than nothing
    assert not re.search(r"""(src|href)=["']?(https?:)?//""", markup)
    assert not re.search(r"<script[^>]*\bsrc=", page)
    records = read_records(out / "evaluate_ar")
    assert len(records) == 40 * 12
    assert re.search(r"GRPO trained for [\d.]+ s, 4 updates\. .* had made [0-4] updates by", page)
    before = {p: p.stat().st_mtime_ns for p in out.rglob("records/*.parquet")}
    assert main(["lab", "--scale", "smoke", "--out", str(out)]) == 0
    assert "finished earlier" in capsys.readouterr().out
    assert before == {p: p.stat().st_mtime_ns for p in out.rglob("records/*.parquet")}
