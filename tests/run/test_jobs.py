"""Runs side by side: in order, each with what it needs, stopped together, and what is told."""

import io
import time

import pytest
from made_notebooks import notebook
from rich.console import Console

from anytime_lab.run.jobs import RETELL, Job, State, live_table, run_jobs
from anytime_lab.run.notebook import NOTEBOOKS
from anytime_lab.run.places import LocalPlace
from anytime_lab.run.process import RunFailed
from anytime_lab.run.sweep import prepare_sweep
from anytime_lab.store.files import read_json, write_progress

COUNT = "from pathlib import Path\nwith open({!r}, 'a') as f: f.write(f'{{x}},')"


@pytest.mark.slow
def test_jobs_run_in_order_and_failures_stop_only_what_needs_them(tmp_path):
    log = tmp_path / "log.txt"
    good = notebook(tmp_path, COUNT.format(str(log)), name="good.ipynb")
    bad = notebook(tmp_path, "1 / 0", name="bad.ipynb")
    jobs = [
        Job("first", good, {"x": 1}, tmp_path / "1"),
        Job("broken", bad, {}, tmp_path / "2"),
        Job("after first", good, lambda: {"x": len(log.read_text())}, tmp_path / "3", ("first",)),
        Job("after broken", good, {"x": 9}, tmp_path / "4", ("broken",)),
    ]
    with pytest.raises(RunFailed, match="ZeroDivisionError(.|\n)*after broken: not run: broken"):
        run_jobs(jobs, LocalPlace(2))
    assert log.read_text() == "1,2,"
    notebook(tmp_path, "pass", name="bad.ipynb")
    run_jobs([*jobs[:2], jobs[3]], LocalPlace(2))
    assert all((tmp_path / name / "result.json").exists() for name in "124")
    assert log.read_text() == "1,2,9,"


@pytest.mark.slow
def test_each_run_has_its_own_devices_and_its_share_of_the_cores(tmp_path, monkeypatch):
    monkeypatch.setattr("anytime_lab.run.places.cores", lambda: 6)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    names = ("CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS")
    code = (
        f"import json, os, time\ntold = [os.environ[name] for name in {names}]\n"
        f"json.dump(told, open({str(tmp_path)!r} + f'/told-{{x}}.json', 'w'))\ntime.sleep(2)"
    )
    path = notebook(tmp_path, code)
    jobs = [Job(f"{x}", path, {"x": x}, tmp_path / f"{x}") for x in (1, 2)]
    run_jobs(jobs, LocalPlace(2, devices=("3", "7")))
    assert [read_json(tmp_path / f"told-{x}.json") for x in (1, 2)] == [["3", "3"], ["7", "3"]]


LAB = NOTEBOOKS.parent / "experiments/lab.yaml"


def test_without_a_terminal_lines_tell_what_begins_ends_and_how_far_it_is(tmp_path, monkeypatch):
    state = State(Job("train", tmp_path / "n.ipynb", {}, tmp_path / "train"))
    out, now = io.StringIO(), time.time()
    with live_table([state], Console(file=out, width=200), lambda: None) as draw:
        draw()  # nothing has begun
        state.status, state.started = "running", now - 20
        draw()
        write_progress(
            tmp_path / "train", "training", 3, 12, "updates", started=now - 20, message="loss 0.5"
        )
        draw()  # too soon after the last line
        later = time.monotonic() + RETELL
        monkeypatch.setattr(time, "monotonic", lambda: later)
        draw()
        state.end("done")
        draw()
        lines = out.getvalue().splitlines()
    assert lines == [
        "train: starting, 0:20",
        "train: 3/12 updates, 0:20 < 1:00, loss 0.5",
        "train: done, 0:20",
    ]


def test_the_main_job_begins_with_its_time_and_ends_with_the_notebook_to_open(tmp_path):
    out = io.StringIO()
    lab = prepare_sweep(LAB, tmp_path / "lab")
    lab.console = Console(file=out, width=200)
    lab.show(2)
    assert "It takes 4 to 6 minutes on two cores." in out.getvalue()
    then = lab.told(lab.file.then)
    assert "open notebooks/04_budget_curves.ipynb" in then
