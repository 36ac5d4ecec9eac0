"""The training view: figures equal the frames, only what is new is read, it follows and stops."""

import json
import time

import numpy as np
import pytest
from made_runs import told

from anytime_lab.look.training_view import MOST, Training, thinned
from anytime_lab.read.training import (
    MetricsTail,
    read_metrics,
    read_progress,
    training_frame,
    variance_frame,
)
from anytime_lab.store.files import append_jsonl, write_progress
from anytime_lab.train.recording import drop_lines_after

BUDGETS = (24, 96)


def line(step, budgets=BUDGETS, lift=0.0):
    row = {
        "step": step,
        "anytime_accuracy": 0.4 + lift + 0.01 * (step % 7),
        "uniform_accuracy": 0.3 + lift + 0.01 * (step % 5),
        "final_accuracy": 0.5 + lift + 0.01 * (step % 3),
        "thinking/length": 80.0 - step % 11,
        "seconds": 2.5 * step,
    }
    for j, b in enumerate(budgets):
        row[f"score/{b}"] = 0.2 * j + 0.01 * (step % 4)
        if len(budgets) > 1:
            for place, name in enumerate(("progress", "group", "brpo")):
                row[f"variance/corr/{name}/{b}"] = 0.1 * place + 0.001 * step
                row[f"variance/ratio/{name}/{b}"] = 0.9 - 0.1 * place
    return row


def write(folder, steps, total=None, **changes):
    for step in steps:
        append_jsonl(folder / "metrics.jsonl", line(step, **changes))
    if total:
        write_progress(folder, "train", max(steps), total, "updates", started=time.time())
    return folder


@pytest.fixture
def pair(tmp_path):
    return {
        "AR": write(tmp_path / "ar", range(1, 21), 20),
        "GRPO": write(tmp_path / "grpo", range(1, 16), 15, budgets=(96,), lift=0.1),
    }


def drawn(view, name, panel):
    at = 6 * list(view.tails).index(name) + 2 * panel
    return view.panels.data[at : at + 2]


def test_the_panels_are_the_training_frame(pair):
    view = Training(pair)
    frame = training_frame({name: read_metrics(path) for name, path in pair.items()}, 10)
    measures = ("anytime accuracy", "final accuracy", "thinking length")
    for name in pair:
        for i, measure in enumerate(measures):
            part = frame[(frame["run"] == name) & (frame["measure"] == measure)]
            faint, strong = drawn(view, name, i)
            assert list(faint.y) == part["value"].tolist()
            assert list(strong.y) == pytest.approx(part["smooth"].tolist())
            assert list(strong.x) == part["step"].tolist()
    assert len(drawn(view, "GRPO", 0)[0].y) == 0
    assert "GRPO: scored at fewer budgets" in view.notes.value
    static = view.figure()
    assert [t.name for t in static.data if t.showlegend is not False][:2] == ["AR", "GRPO"]


def test_scores_and_variance_are_those_of_the_run_in_detail(pair):
    view = Training(pair, window=2)
    assert [t.name for t in view.scores.data] == ["AR", "GRPO"]
    assert list(view.scores.data[0].y) == pytest.approx([0.015, 0.215])  # steps 19, 20
    assert list(view.history.data[1].y[:2]) == pytest.approx([0.21, 0.215])
    assert [t.name for t in view.history.data if t.visible] == ["24 tokens", "96 tokens"]
    frame = variance_frame(read_metrics(pair["AR"]), 10)
    corr = frame[(frame["baseline"] == "brpo") & (frame["measure"] == "corr")]
    assert list(view.variance.data[2].y) == pytest.approx(corr["value"].tolist())
    assert list(view.variance.data[5].y) == pytest.approx([0.7, 0.7])
    view.detail.value = "GRPO"
    assert len(view.variance.data[2].y) == 0
    assert "GRPO has no variance diagnostics" in view.notes.value
    assert len(view.variance_figure().data) == 6


def test_window_axis_and_runs_redraw_in_place(pair):
    view = Training(pair, window=1)
    before = view.panels
    assert list(drawn(view, "AR", 1)[0].y) == list(drawn(view, "AR", 1)[1].y)
    view.over.value = "seconds"
    assert drawn(view, "AR", 1)[1].x[0] == 2.5
    view.window.value = 20
    assert drawn(view, "AR", 2)[1].y[-1] == pytest.approx(
        np.mean([80 - s % 11 for s in range(1, 21)])
    )
    view.runs.value = ("GRPO",)
    assert len(drawn(view, "AR", 1)[1].y) == 0
    assert len(drawn(view, "GRPO", 0)[1].y) == 15  # alone it is compared with nobody
    assert view.panels is before
    view.runs.value = ()
    assert all(control.description for control in (view.follow, view.over, view.window, view.runs,
                                                   view.detail))  # fmt: skip


def test_only_what_is_new_is_read_and_torn_lines_wait(tmp_path):
    tail = MetricsTail(write(tmp_path, range(1, 4)))
    assert tail.read() and sorted(tail.rows) == [1, 2, 3]
    assert not tail.read()
    whole = json.dumps(line(4))
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write(whole[:40])
    assert not tail.read() and 4 not in tail.rows
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write(whole[40:] + "\n")
    offset = tail._offset
    assert tail.read() and tail._offset == offset + len(whole) + 1
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('\x00\x00\n"text"\n{"step": "x"}\n')
    assert tail.read() and sorted(tail.rows) == [1, 2, 3, 4]
    assert "1 lines are not JSON" in tail.complaint


def test_a_resumed_run_is_read_anew(tmp_path):
    tail = MetricsTail(write(tmp_path, range(1, 11)))
    tail.read()
    drop_lines_after(tmp_path / "metrics.jsonl", 4)
    assert tail.read() and sorted(tail.rows) == [1, 2, 3, 4]
    write(tmp_path, range(5, 30))
    assert tail.read() and len(tail.rows) == 29
    (tmp_path / "metrics.jsonl").unlink()
    assert tail.read() and not tail.rows


def wait_for(condition, seconds=20):
    end = time.time() + seconds
    while not condition() and time.time() < end:
        time.sleep(0.02)
    assert condition()


def test_it_follows_a_run_and_stops_when_it_is_finished(tmp_path):
    write(tmp_path / "run", range(1, 4), 6)
    view = Training([tmp_path / "run"], seconds=0.02)
    assert view.follow.value
    write(tmp_path / "run", [4, 5])
    wait_for(lambda: "5 of 6" in view.state.value)
    assert len(drawn(view, "run", 1)[0].y) == 5
    write(tmp_path / "run", [6], 6)
    wait_for(lambda: not view.follow.value)
    assert len(drawn(view, "run", 1)[0].y) == 6 and "6 of 6, finished" in view.state.value
    view._thread.join(5)
    assert not view._thread.is_alive()


def test_pause_and_closing_stop_it(tmp_path):
    write(tmp_path / "run", range(1, 4), 6)
    view = Training([tmp_path / "run"], seconds=0.02)
    first = view._thread
    view.follow.value = False
    first.join(5)
    write(tmp_path / "run", [4])
    assert not first.is_alive() and len(drawn(view, "run", 1)[0].y) == 3
    view.follow.value = True
    wait_for(lambda: len(drawn(view, "run", 1)[0].y) == 4)
    view.close()
    view._thread.join(5)
    assert not view._thread.is_alive()


def test_a_view_made_before_training_waits_for_the_new_run(tmp_path):
    folder = write(tmp_path / "run", range(1, 4), 3)  # an earlier run, finished
    view = Training([folder], seconds=0.02, follow=True)
    time.sleep(0.2)
    assert view.follow.value
    drop_lines_after(folder / "metrics.jsonl", 0)
    write(folder, [1, 2], 2)
    wait_for(lambda: not view.follow.value)
    assert len(drawn(view, "run", 1)[0].y) == 2
    assert not Training([folder]).follow.value  # after the fact nothing is followed


def test_folders_that_are_not_there_or_broken_are_sentences(tmp_path):
    assert "No run folders" in Training([]).notes.value
    later = Training({"later": tmp_path / "later"}, follow=False)
    assert "has no metrics.jsonl yet" in later.notes.value and "no step yet" in later.state.value
    assert "No run has a step yet" in told(later.figure())
    write(tmp_path / "later", [1])
    later.refresh()
    assert len(drawn(later, "later", 1)[0].y) == 1 and "no metrics" not in later.notes.value
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "metrics.jsonl").write_bytes(b"\xff\xfe\n{]\n")
    (tmp_path / "bad" / "progress.json").write_text("[]")
    bad = Training([tmp_path / "bad"], follow=False)
    assert "2 lines are not JSON" in bad.notes.value
    assert read_progress(tmp_path / "bad").total == 0
    append_jsonl(tmp_path / "bad" / "metrics.jsonl", {"step": 1, "final_accuracy": "text"})
    bad.refresh()
    assert "could not be updated" not in bad.notes.value
    (tmp_path / "dir" / "metrics.jsonl").mkdir(parents=True)
    assert "could not be read" in Training([tmp_path / "dir"], follow=False).notes.value


def test_hostile_names_are_text(tmp_path):
    name = "<img src=x onerror=alert(1)>$x$\u202e"
    view = Training({name: write(tmp_path / "run", range(1, 4), 3)})
    html = view.state.value + view.notes.value
    assert "<img" not in html and "\u202e" not in html
    assert all("<img" not in (trace.name or "") for trace in [*view.panels.data, *view.scores.data])


def test_long_runs_are_thinned_to_their_last_step(tmp_path):
    kept = thinned(4000)
    assert len(kept) <= MOST and kept[-1] == 3999 and len(set(np.diff(kept))) == 1
    assert thinned(5).tolist() == [0, 1, 2, 3, 4]
