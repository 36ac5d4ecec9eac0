"""One notebook, one folder: done when the result is there, refused before work when it is wrong."""

import json
import os
import signal
import time
from pathlib import Path

import nbformat
import psutil
import pytest
from lab_browser import find_browser
from made_notebooks import notebook

from anytime_lab.run.notebook import NotebookRun, RunFailed, run_notebook, start_run, stop_run
from anytime_lab.run.places import LocalExecutor
from anytime_lab.run.sweep import Job, JobsFailed, run_jobs
from anytime_lab.store.records import read_json

pytestmark = pytest.mark.slow  # every run starts a kernel


COUNT = "from pathlib import Path\nwith open({!r}, 'a') as f: f.write(f'{{x}},')"


def test_a_finished_run_is_kept_and_a_changed_one_runs_again(tmp_path):
    runs = tmp_path / "runs.txt"
    path = notebook(tmp_path, COUNT.format(str(runs)))
    first = run_notebook(path, {"x": 5}, tmp_path / "run")
    assert run_notebook(path, {"x": 5}, tmp_path / "run") == first
    assert runs.read_text() == "5,"
    with pytest.warns(UserWarning, match=r"run: made anew \(x 5 → 6\); .*replaced"):
        run_notebook(path, {"x": 6}, tmp_path / "run")
    assert runs.read_text() == "5,6,"
    assert read_json(tmp_path / "run/result.json")["parameters"] == {"x": 6}
    notebook(tmp_path, COUNT.format(str(runs)), "pass")
    with pytest.warns(UserWarning, match="the notebook's code"):
        run_notebook(path, {"x": 6}, tmp_path / "run")
    assert runs.read_text() == "5,6,6,"
    executed = nbformat.read(tmp_path / "run/notebook.ipynb", 4)
    assert "widgets" not in executed.metadata


FIGURE = "import plotly.graph_objects as go\ngo.Figure(go.Scatter(y=[1, 2]))"


@pytest.mark.parametrize("browser", [True, False])
def test_figures_have_pictures_where_there_is_a_browser(tmp_path, browser):
    if browser and find_browser() is None:
        pytest.skip("no browser to draw with")
    told = {} if browser else {"BROWSER_PATH": "/nowhere"}
    run_notebook(notebook(tmp_path, FIGURE), {}, tmp_path / "run", told)
    executed = nbformat.read(tmp_path / "run/notebook.ipynb", 4)
    (shown,) = [output.data for cell in executed.cells for output in cell.outputs]
    assert "application/vnd.plotly.v1+json" in shown and ("image/png" in shown) is browser
    said = "have no pictures: no png was written: no browser was found at BROWSER_PATH='/nowhere'"
    assert (said in (tmp_path / "run/log.txt").read_text()) is not browser


def test_the_kernel_is_this_environments(tmp_path):
    import sys

    told = tmp_path / "told.json"
    code = (
        "import json, sys, os\nfound = [sys.prefix, os.getcwd(), os.environ['MARK']]\n"
        f"json.dump(found, open({str(told)!r}, 'w'))"
    )
    path = notebook(tmp_path, code)
    run_notebook(path, {}, tmp_path / "run", {"MARK": "yes"})
    assert json.loads(told.read_text()) == [sys.prefix, str(tmp_path), "yes"]


def test_an_error_in_a_cell_is_the_reason(tmp_path):
    path = notebook(tmp_path, "raise ValueError('the budget is wrong')")
    with pytest.raises(RunFailed, match="ValueError: the budget is wrong"):
        run_notebook(path, {}, tmp_path / "run")
    assert not (tmp_path / "run/result.json").exists()


def test_a_dead_kernel_is_a_failure(tmp_path):
    path = notebook(tmp_path, "import os\nos._exit(3)")
    with pytest.raises(RunFailed, match="(?i)kernel"):
        run_notebook(path, {}, tmp_path / "run")


def test_a_stopped_run_leaves_no_process(tmp_path):
    mark = tmp_path / "pid"
    code = f"import os, time\nopen({str(mark)!r}, 'w').write(str(os.getpid()))\ntime.sleep(300)"
    run = NotebookRun(notebook(tmp_path, code), {}, tmp_path / "run")
    process = start_run(run)
    while not (mark.exists() and mark.read_text()):
        time.sleep(0.1)
    kernel = int(mark.read_text())
    stop_run(process)
    assert not psutil.pid_exists(kernel) or psutil.Process(kernel).status() == "zombie"
    assert run.result is None


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
    with pytest.raises(JobsFailed, match="ZeroDivisionError(.|\n)*after broken: not run: broken"):
        run_jobs(jobs, 2)
    assert log.read_text() == "1,2,"
    notebook(tmp_path, "pass", name="bad.ipynb")
    results = run_jobs([*jobs[:2], jobs[3]], 2)
    assert set(results) == {"first", "broken", "after broken"}
    assert log.read_text() == "1,2,9,"


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
    run_jobs(jobs, LocalExecutor(2, devices=("3", "7")))
    assert [read_json(tmp_path / f"told-{x}.json") for x in (1, 2)] == [["3", "3"], ["7", "3"]]


def test_a_signal_stops_all_runs_and_the_next_call_goes_on(tmp_path):
    import subprocess
    import sys

    mark = tmp_path / "pid"
    code = f"import os, time\nopen({str(mark)!r}, 'w').write(str(os.getpid()))\ntime.sleep(300)"
    path = notebook(tmp_path, code)
    script = (
        "from pathlib import Path\nfrom anytime_lab.run.sweep import *\n"
        f"run_jobs([Job('a', Path({str(path)!r}), {{}}, Path({str(tmp_path / 'run')!r}))], 1)"
    )
    parent = subprocess.Popen([sys.executable, "-c", script], start_new_session=True)
    while not (mark.exists() and mark.read_text()):
        time.sleep(0.1)
    os.kill(parent.pid, signal.SIGTERM)
    assert parent.wait(timeout=60) != 0
    kernel = int(mark.read_text())
    assert not psutil.pid_exists(kernel) or psutil.Process(kernel).status() == "zombie"
    notebook(tmp_path, "pass")
    run_notebook(path, {}, tmp_path / "run")


@pytest.mark.parametrize(
    ("parameters", "says"),
    [
        ({"y": 1}, "no parameter 'y'; it has x, names"),
        ({"x": "1"}, "x is '1' .str.; expected int, such as 1"),
        ({"x": True}, "expected int"),
        ({"x": 1.5}, "expected int"),
        ({"names": ("a",)}, "JSON cannot hold"),
        ({"names": Path("a")}, "JSON cannot hold"),
        ({"x": float("nan")}, "JSON cannot hold"),
    ],
)
def test_wrong_parameters_are_refused_before_anything_runs(tmp_path, parameters, says):
    path = notebook(tmp_path, "pass")
    with pytest.raises(ValueError, match=says):
        run_notebook(path, parameters, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_an_unknown_notebook_lists_what_exists(tmp_path):
    with pytest.raises(FileNotFoundError, match="02_train.ipynb"):
        run_notebook(tmp_path / "none.ipynb", {}, tmp_path / "run")


@pytest.mark.parametrize(
    ("jobs", "says"),
    [
        ([("a", ("b",)), ("b", ())], "comes after"),
        ([("a", ("a",))], "comes after"),
        ([("a", ()), ("a", ())], "must differ"),
    ],
)
def test_plans_that_cannot_run_are_refused(tmp_path, jobs, says):
    path = notebook(tmp_path, "pass")
    made = [Job(name, path, {}, tmp_path / name, after) for name, after in jobs]
    with pytest.raises(ValueError, match=says):
        run_jobs(made, 1)
