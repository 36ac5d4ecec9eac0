"""What is told of jobs that run, where there is a terminal, a page or neither."""

import io
import time

from rich.console import Console

from anytime_lab.run.jobs import State
from anytime_lab.run.notebook import NOTEBOOKS
from anytime_lab.run.process import Job
from anytime_lab.run.sweep import prepare_sweep
from anytime_lab.run.sweep_file import told
from anytime_lab.run.table import RETELL, live_table
from anytime_lab.store.files import write_progress

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
    lab.show(2, Console(file=out, width=200))
    assert "It takes 4 to 6 minutes on two cores." in out.getvalue()
    then = told(lab.sweep, lab.out, lab.sweep.file.then)
    assert "open notebooks/04_budget_curves.ipynb" in then
