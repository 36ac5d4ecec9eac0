"""The shipped smoke sweep, run for real by the sweep notebook."""

import json
from pathlib import Path

import pandas as pd
import pytest
from made_notebooks import run_cells, run_notebook

from anytime_lab.run.sweep import prepare_sweep
from anytime_lab.store.files import read_jsonl
from anytime_lab.store.records import read_records

ROOT = Path(__file__).resolve().parents[2]
SMOKE = ROOT / "experiments/smoke.yaml"


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_smoke_sweep_runs_from_its_notebook(tmp_path):
    out = tmp_path / "out"
    said = {"experiment": str(SMOKE), "output_dir": str(out)}
    run_cells("05_sweep", said)
    assert not out.exists(), "a dry run writes nothing"
    run_notebook(ROOT / "notebooks/05_sweep.ipynb", {**said, "dry_run": False}, tmp_path / "real")
    planned = prepare_sweep(SMOKE, out).plan().values()
    assert [one.status for one in planned] == ["done"] * 4
    trained = [one.job.folder for one in planned if one.job.folder.name == "train"]
    assert [len(read_jsonl(folder / "metrics.jsonl")) for folder in trained] == [2]
    summary = pd.read_csv(out / "summary.csv").set_index("run")
    # The page's numbers again, from the records: the mean over problems and budgets.
    for name in ("start", "AR-uniform"):
        records = read_records(out / name / "seed-0" / "evaluate")
        assert summary.loc[name, "anytime"] == pytest.approx(records["score"].mean())
    page = (out / "comparison.html").read_text()
    assert "AR-uniform" in page
    executed = (tmp_path / "real/notebook.ipynb").read_text()
    assert "comparison.html" in executed
    shown = [
        "".join(output["data"]["text/html"])
        for cell in json.loads(executed)["cells"]
        for output in cell.get("outputs", ())
        if "text/html" in output.get("data", {})
    ]
    (table,) = [html for html in shown if html.count(">done<") == 4]  # as it stood at the end
    assert all(one.job.name in table for one in planned)
