"""One notebook, one folder: done when the result is there, a failure with its reason when not."""

import io
import json
import os
import subprocess
import sys

import nbformat
import psutil
import pytest
from made_notebooks import notebook, row_notebook, run_notebook
from rich.console import Console

from anytime_lab.run.process import (
    Job,
    Needs,
    RunFailed,
    run_to_end,
    told_changes,
)
from anytime_lab.store.files import read_json, read_jsonl, write_json

COUNT = "from pathlib import Path\nwith open({!r}, 'a') as f: f.write(f'{{x}},')"
FIGURE = "import plotly.graph_objects as go\ngo.Figure(go.Scatter(y=[1, 2]))"


def test_a_result_counts_however_its_process_ended(tmp_path, monkeypatch):
    run = Job("run", row_notebook(tmp_path), {}, tmp_path / "run")

    def aborts_after(result):
        def process(*_, **__):
            write_json(run.folder / "result.json", result)
            code = "import os; os.abort()"
            return Popen([sys.executable, "-c", code], stdin=subprocess.PIPE)

        monkeypatch.setattr(subprocess, "Popen", process)

    Popen = subprocess.Popen
    aborts_after({"hash": run.hash, "seconds": 1.0})
    assert run_to_end(run)["seconds"] == 1.0
    aborts_after({"hash": "of another run"})
    with pytest.raises(RunFailed, match="stopped by signal SIGABRT"):
        run_to_end(run)


def test_a_changed_notebook_and_a_moved_folder(tmp_path):
    path = row_notebook(tmp_path)
    folder = tmp_path / "one" / "run"
    run = Job("run", path, {"output_dir": str(folder), "x": 2}, folder)
    moved = tmp_path / "two" / "run"
    assert run.hash == Job("run", path, {"output_dir": str(moved), "x": 2}, moved).hash
    before = run.made_of
    source = json.loads(path.read_text())
    source["cells"][1]["source"] = "pass"
    path.write_text(json.dumps(source))
    after = Job("run", path, {"output_dir": str(folder), "x": 2}, folder).made_of
    assert told_changes(before, after) == "the notebook's code"
    assert told_changes({}, after) == "made by an older anytime_lab"
    longer = Job("run", path, {"x": 2}, folder, needs=Needs(timeout=5)).made_of
    assert longer == Job("run", path, {"x": 2}, folder).made_of, "a limit changes no result"


@pytest.mark.slow
def test_a_finished_run_is_kept_and_a_changed_one_runs_again(tmp_path):
    runs = tmp_path / "runs.txt"
    path = notebook(tmp_path, COUNT.format(str(runs)))
    first = run_notebook(path, {"x": 5}, tmp_path / "run")
    assert run_notebook(path, {"x": 5}, tmp_path / "run") == first
    assert runs.read_text() == "5,"
    told = Console(record=True, width=400, file=io.StringIO())
    notebook(tmp_path, COUNT.format(str(runs)), "pass")
    run_notebook(path, {"x": 6}, tmp_path / "run", told)
    why = "the notebook's code; x 5 → 6"
    said = f"run: made anew ({why}); the old files go to {tmp_path / 'run/.replaced'}."
    assert said in told.export_text()
    assert runs.read_text() == "5,6,"
    (old,) = (tmp_path / "run/.replaced").iterdir()
    assert (old / "notebook.ipynb").exists()
    assert read_json(old / "run.json")["parameters"] == {"x": 5}
    assert read_json(tmp_path / "run/result.json")["parameters"] == {"x": 6}
    executed = nbformat.read(tmp_path / "run/notebook.ipynb", 4)
    assert "widgets" not in executed.metadata


@pytest.mark.slow
def test_a_kernel_that_dies_at_its_start_is_started_again(tmp_path, monkeypatch):
    deaths = tmp_path / "deaths"
    (tmp_path / "sitecustomize.py").write_text(
        "import os, sys\n"
        f"if 'ipykernel_launcher' in sys.orig_argv and not os.path.exists({str(deaths)!r}):\n"
        f"    open({str(deaths)!r}, 'w').close()\n"
        "    os._exit(1)\n"
    )
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}")
    run = tmp_path / "run"
    run_notebook(row_notebook(tmp_path), {"rows": 3, "output_dir": str(run)}, run)
    assert len(read_jsonl(run / "rows.jsonl")) == 3 and deaths.exists()
    assert "another one is started" in (run / "log.txt").read_text()


@pytest.mark.slow
def test_figures_have_no_pictures_where_there_is_no_browser_and_the_log_says_so(
    tmp_path, monkeypatch
):
    # test_lab.py looks at the pictures that there are where there is one.
    monkeypatch.setenv("BROWSER_PATH", "/nowhere")
    run_notebook(notebook(tmp_path, FIGURE), {}, tmp_path / "run")
    executed = nbformat.read(tmp_path / "run/notebook.ipynb", 4)
    (shown,) = [output.data for cell in executed.cells for output in cell.outputs]
    assert "application/vnd.plotly.v1+json" in shown and "image/png" not in shown
    said = "have no pictures: no png was written: no browser was found at BROWSER_PATH='/nowhere'"
    assert said in (tmp_path / "run/log.txt").read_text()


@pytest.mark.slow
def test_a_dead_kernel_is_a_failure(tmp_path):
    path = notebook(tmp_path, "import os\nos._exit(3)")
    with pytest.raises(RunFailed, match="(?i)kernel"):
        run_notebook(path, {}, tmp_path / "run")


@pytest.mark.slow
def test_a_stopped_run_leaves_no_process(tmp_path):
    mark = tmp_path / "pid"
    code = f"import os, time\nopen({str(mark)!r}, 'w').write(str(os.getpid()))\ntime.sleep(300)"
    run = Job("run", notebook(tmp_path, code), {}, tmp_path / "run")

    def look():
        if mark.exists() and mark.read_text():
            raise InterruptedError

    with pytest.raises(InterruptedError):
        run_to_end(run, look=look)
    kernel = int(mark.read_text())
    assert not psutil.pid_exists(kernel) or psutil.Process(kernel).status() == "zombie"
    assert run.result is None


@pytest.mark.slow
def test_the_kernel_is_this_environments_and_parameters_arrive_as_they_are(tmp_path, monkeypatch):
    told = tmp_path / "told.json"
    parameters = "a: float = 1.0\nb: list = []\nc: dict = {}\nd: bool = True\ne: str = ''"
    code = (
        "import json, sys, os\n"
        "found = [sys.prefix, os.getcwd(), os.environ['MARK'], a, b, c, d, e]\n"
        f"json.dump(found, open({str(told)!r}, 'w'))"
    )
    path = notebook(tmp_path, code, parameters=parameters)
    wanted = [1e-6, [1, "x", None, [2.5]], {"k": {"l": [True, False]}}, False, "1e-6 ' \" \\ ü"]
    given = dict(zip("abcde", wanted, strict=True))
    monkeypatch.setenv("MARK", "yes")
    run_notebook(path, given, tmp_path / "run")
    assert json.loads(told.read_text()) == [sys.prefix, str(tmp_path), "yes", *wanted]


@pytest.mark.slow
def test_a_secret_reaches_the_notebook_and_no_file(tmp_path):
    told = tmp_path / "told.txt"
    code = (
        "from anytime_lab.run.notebook import take_parameters\ntake_parameters(globals())\n"
        f"open({str(told)!r}, 'w').write(engine + options['api_key'])\nprint(engine, options)\n"
        "raise ValueError(f'the server at {engine} refused {options}')"
    )
    declared = "engine: str = ''\noptions: dict = {}"
    path = notebook(tmp_path, code, parameters=declared)
    secret = {"engine": "http://me:hunter2@host/v1", "options": {"api_key": "k3y-of-mine"}}
    with pytest.raises(RunFailed, match="ValueError: the server at .* refused") as failed:
        run_notebook(path, secret, tmp_path / "run")
    assert not (tmp_path / "run/result.json").exists()
    assert told.read_text() == "http://me:hunter2@host/v1k3y-of-mine"
    files = [file for file in (tmp_path / "run").rglob("*") if file.is_file()]
    assert {"run.json", "notebook.ipynb", "log.txt", "failure.json"} <= {f.name for f in files}
    for text in (str(failed.value), *(file.read_text() for file in files)):
        assert "hunter2" not in text and "k3y-of-mine" not in text
