"""The main job at smoke scale, as a user runs it, and what its parts decide."""

import json
import re
import subprocess
import sys

import nbformat
import pytest
from lab_browser import find_browser

from anytime_lab.look.pictures import FIGURE, PICTURE
from anytime_lab.run.lab import AR_EQUAL_TIME, GRPO, SCALES, lab_jobs, step_within, training_seconds
from anytime_lab.run.notebook import NOTEBOOKS, declared_parameters, run_notebook
from anytime_lab.store.records import append_jsonl, read_records


def metrics(folder, seconds):
    folder.mkdir()
    for step, spent in enumerate(seconds, start=1):
        append_jsonl(folder / "metrics.jsonl", {"step": step, "seconds": spent})


def test_equal_time_takes_the_last_checkpoint_within_it(tmp_path):
    run = tmp_path / "run"
    metrics(run, [10.0, 20.0, 30.0, 40.0])
    for step in (1, 2, 4):
        (run / f"checkpoint-{step}").mkdir()
    assert training_seconds(run) == 40.0
    assert step_within(run, 39.9) == 2
    assert step_within(run, 40.0) == 4
    assert step_within(run, 10.0) == 1
    assert step_within(run, 9.0) == 0  # nothing yet but the start


@pytest.mark.parametrize(("grpo", "model"), [(25.0, "train_ar/checkpoint-2"), (9.0, "embedded")])
def test_at_equal_time_the_model_is_the_one_that_the_run_had_by_then(tmp_path, grpo, model):
    metrics(tmp_path / "train_ar", [10.0, 20.0, 30.0, 40.0])
    metrics(tmp_path / "train_grpo", [grpo / 2, grpo])
    for step in (1, 2, 4):
        (tmp_path / "train_ar" / f"checkpoint-{step}").mkdir()
    jobs = {job.name: job for job in lab_jobs(tmp_path, SCALES["full"], 0)}
    expected = model if model == "embedded" else str(tmp_path / model)
    assert jobs[f"evaluate {AR_EQUAL_TIME}"].parameters()["model"] == expected
    made = "0 updates" if model == "embedded" else "2 updates"
    assert f"had made {made} by then" in jobs["compare"].parameters()["equal_time_note"]


def test_both_runs_differ_in_the_preset_only(tmp_path):
    jobs = {job.name: job for job in lab_jobs(tmp_path, SCALES["full"], 3)}
    grpo = dict(jobs["train GRPO"].parameters)
    ar = dict(jobs["train AnytimeReasoner-uniform"].parameters)
    assert {k for k in grpo if grpo[k] != ar[k]} == {"preset", "output_dir"}
    compared = [j for name, j in jobs.items() if name in ("evaluate start", f"evaluate {GRPO}")]
    first, second = (dict(job.parameters) for job in compared)
    assert {k for k in first if first[k] != second[k]} == {"model", "output_dir"}
    assert len(first["budgets"]) >= 12


def lab(out, *arguments):
    command = [sys.executable, "-m", "anytime_lab.run.lab", "--scale", "smoke", "--out", str(out)]
    return subprocess.run([*command, *arguments], capture_output=True, text=True, timeout=900)


@pytest.fixture(scope="module")
def smoke(tmp_path_factory):
    """The folder of a whole main job at smoke scale."""
    out = tmp_path_factory.mktemp("main job") / "lab"
    run = lab(out)
    assert run.returncode == 0, run.stderr[-3000:]
    return out


OF_THE_LAB = ("04_budget_curves", "06_inside_a_problem", "07_policies", "08_credit", "09_training")


@pytest.mark.slow
@pytest.mark.parametrize("name", OF_THE_LAB)
def test_notebooks_read_what_the_main_job_left_by_their_defaults(smoke, tmp_path, name):
    def here(value):
        if isinstance(value, dict):
            return {key: here(one) for key, one in value.items()}
        return value.replace("../runs/lab", str(smoke)) if isinstance(value, str) else value

    path = NOTEBOOKS / f"{name}.ipynb"
    defaults = declared_parameters(path)
    assert any("../runs/lab/" in str(value) for value in defaults.values())
    run_notebook(path, {key: here(value) for key, value in defaults.items()}, tmp_path / "run")
    executed = tmp_path / "run" / "notebook.ipynb"
    assert executed.stat().st_size < 1_000_000
    outputs = [o for c in nbformat.read(executed, 4).cells for o in c.get("outputs", [])]
    figures = [o.data for o in outputs if FIGURE in o.get("data", {})]
    assert figures  # a static one goes before each view
    if find_browser():
        assert all(PICTURE in data for data in figures)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("01_warm_start", {"steps": 2, "good_steps": 2, "batch_size": 8, "num_problems": 10}),
        ("10_answer_now", {"ask_at": [0, 10, 40], "num_summaries": 2}),
    ],
)
def test_notebooks_that_need_no_run_go_alone(tmp_path, name, parameters):
    path = NOTEBOOKS / f"{name}.ipynb"
    if "output_dir" in declared_parameters(path):
        parameters = {**parameters, "output_dir": str(tmp_path / "out")}
    run_notebook(path, parameters, tmp_path / "run")


@pytest.mark.slow
def test_the_whole_main_job_at_smoke_scale(smoke):
    out = smoke
    told = json.loads((out / "lab.json").read_text())
    assert [row["run"] for row in told["summary"]] == ["start", GRPO, "AnytimeReasoner-uniform"]
    curve = [row for row in told["equal_updates"] if row["measure"] == "accuracy"]
    assert {row["budget"] for row in curve} == set(SCALES["smoke"].budgets)
    page = (out / "comparison.html").read_text()
    assert "AnytimeReasoner-uniform" in page
    markup = re.sub(r"<script\b.*?</script>", "", page, flags=re.DOTALL)
    assert "<table" in markup  # what follows looks at more than nothing
    assert not re.search(r"""(src|href)=["']?(https?:)?//""", markup)
    assert not re.search(r"<script[^>]*\bsrc=", page)
    records = read_records(out / "evaluate_ar")
    assert len(records) == 40 * len(SCALES["smoke"].budgets)
    before = {p: p.stat().st_mtime_ns for p in out.rglob("records/*.parquet")}
    again = lab(out)
    assert again.returncode == 0
    assert "finished earlier" in again.stdout
    assert before == {p: p.stat().st_mtime_ns for p in out.rglob("records/*.parquet")}
    (out / "mine.txt").write_text("keep")
    refused = lab(out, "--fresh")
    assert refused.returncode != 0 and "mine.txt" in refused.stderr
    assert (out / "lab.json").exists()
