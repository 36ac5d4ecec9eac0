"""The training view: figures equal the frames, only what is new is read, it follows and stops."""

import json
import time

import numpy as np
import pytest
from made_runs import told

from anytime_lab.look.training_view import MOST, Training, plot_training, thinned
from anytime_lab.read.training import (
    MetricsTail,
    read_metrics,
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


PANELS = ("anytime accuracy", "final accuracy", "thinking length")


def drawn(view, name, panel):
    """The faint and the strong line of a run in a panel, by the panel's title."""
    figure = view.live.figure
    titles = [note.text for note in figure.layout.annotations]
    (axis,) = [i for i, title in enumerate(titles) if title.lower().startswith(PANELS[panel])]
    there = {t.name: t for t in figure.data if t.xaxis == f"x{axis + 1 if axis else ''}"}
    return there.get(f"{name}, each step"), there.get(name)


def lines(view, column):
    """name → y of the traces in the last row (variance) or the one above (scores)."""
    return {t.name: list(t.y) for t in view.live.figure.data if t.xaxis == column}


def test_the_panels_are_the_training_frame(pair):
    view = Training(pair)
    frame = training_frame({name: read_metrics(path) for name, path in pair.items()}, 10)
    for name in pair:
        for i, measure in enumerate(PANELS):
            part = frame[(frame["run"] == name) & (frame["measure"] == measure)]
            faint, strong = drawn(view, name, i)
            if (name, measure) == ("GRPO", "anytime accuracy"):
                assert faint is strong is None and not len(part)
                continue
            assert list(faint.y) == part["value"].tolist()
            assert list(strong.y) == pytest.approx(part["smooth"].tolist())
            assert list(strong.x) == part["step"].tolist()
    assert "GRPO: not scored at 24, 96 tokens" in view.notes.value
    # what both runs have stands first, and each run is once in the legend
    assert view.live.figure.layout.annotations[0].text == "Final accuracy"
    named = [t.name for t in view.live.figure.data if t.showlegend and t.legend is None]
    assert named == ["AR", "GRPO"]
    assert view.figure().to_json() == view.live.figure.to_json()
    assert "96.3%" not in view.state.value
    means = frame.groupby(["run", "measure"])["smooth"].last()
    assert f"<td>{means['GRPO', 'final accuracy']:.1%}</td>" in view.state.value


def test_the_three_panels_stand_alone_and_over_seconds(pair):
    frame = training_frame({"AR": read_metrics(pair["AR"])})
    figure = plot_training(frame, over="seconds")
    assert [t.name for t in figure.data] == 3 * ["AR, each step", "AR"]
    titles = [a.text for a in figure.layout.annotations]
    assert titles == ["Anytime accuracy", "Final accuracy", "Thinking length (tokens)"]
    assert figure.layout.yaxis.tickformat == ".0%" and figure.layout.yaxis3.tickformat is None
    assert list(figure.data[0].x[:2]) == [2.5, 5.0]
    assert figure.layout.xaxis.title.text == "Seconds of training"


def test_scores_and_variance_are_those_of_the_run_in_detail(pair):
    view = Training(pair, window=2)
    assert lines(view, "x4")["AR"] == pytest.approx([0.015, 0.215])  # steps 19, 20
    assert lines(view, "x4")["GRPO"] == pytest.approx([0.025])  # steps 14, 15
    assert list(lines(view, "x5")) == ["24 tokens", "96 tokens"]
    assert lines(view, "x5")["96 tokens"][:2] == pytest.approx([0.21, 0.215])
    frame = variance_frame(read_metrics(pair["AR"]), 10)
    corr = frame[(frame["baseline"] == "brpo") & (frame["measure"] == "corr")]
    assert lines(view, "x6")["BRPO (V)"] == pytest.approx(corr["value"].tolist())
    assert lines(view, "x7")["BRPO (V)"] == pytest.approx([0.7, 0.7])
    assert "an older run" in view.variance.value and "worse than none" not in view.variance.value
    view.detail.value = "GRPO"
    assert not lines(view, "x6") and "No variance to show" in view.variance.value


def test_a_baseline_that_is_worse_than_none_is_said_to_be(tmp_path):
    for step in range(1, 6):
        row = line(step)
        row |= {
            f"variance/reached/{b}": share for b, share in zip(BUDGETS, (1.0, 0.4), strict=True)
        }
        row["variance/ratio/progress/96"] = 121.0 if step == 3 else 1.5  # a mean would be 25
        append_jsonl(tmp_path / "metrics.jsonl", row)
    view = Training([tmp_path], follow=False)
    assert "reach a budget: 100% at 24, 40% at 96 tokens" in view.variance.value
    assert "progress (V1) baseline is worse than none at 96 tokens: it leaves 1.5 times" in (
        view.variance.value
    )


def test_many_budgets_are_followed_in_colours_of_their_own(tmp_path):
    write(tmp_path, range(1, 4), budgets=tuple(range(10, 210, 10)))
    view = Training([tmp_path], follow=False)
    followed = [t for t in view.live.figure.data if t.legend == "legend2"]
    assert [t.name for t in followed][:: len(followed) - 1] == ["10 tokens", "200 tokens"]
    assert len({t.line.color for t in followed}) == len(followed) == 7


def test_window_axis_and_runs_redraw_in_place(pair):
    view = Training(pair, window=1)
    before = view.live
    assert list(drawn(view, "AR", 1)[0].y) == list(drawn(view, "AR", 1)[1].y)
    view.over.value = "seconds"
    assert drawn(view, "AR", 1)[1].x[0] == 2.5
    view.window.value = 20
    assert drawn(view, "AR", 2)[1].y[-1] == pytest.approx(
        np.mean([80 - s % 11 for s in range(1, 21)])
    )
    view.runs.value = ("GRPO",)
    assert drawn(view, "AR", 1)[1] is None
    assert len(drawn(view, "GRPO", 0)[1].y) == 15  # alone it is compared with nobody
    assert view.live is before and view.live.layout.display is None
    view.runs.value = ()
    assert view.live.layout.display == "none"
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


def test_a_run_that_stopped_is_said_to_be_stopped(tmp_path):
    for name, message in (("told", "training stopped: interrupted"), ("silent", "")):
        write(tmp_path / name, range(1, 4))
        write_progress(tmp_path / name, "train", 3, 6, "updates", started=0.0, message=message)
    view = Training({n: tmp_path / n for n in ("told", "silent")})
    assert "3 of 6, stopped (interrupted)" in view.state.value
    assert view.unfinished() == ["silent"]
    view.close()
    tail, last = view.tails["silent"], view.tails["silent"].progress.updated
    tail.rows[3]["time/step"] = 20.0
    assert tail.told(last + 100).startswith("3 of 6, about ")
    assert tail.told(last + 601) == "3 of 6, no update for 10 min: it seems to have stopped"
    tail.rows[3]["time/step"] = 90.0  # its updates are long
    assert "stopped" not in tail.told(last + 601)


def test_folders_that_are_not_there_or_broken_are_sentences(tmp_path):
    assert "No run folders" in Training([]).notes.value
    later = Training({"later": tmp_path / "later"}, follow=False)
    assert "has no metrics.jsonl yet" in later.notes.value and "no step yet" in later.state.value
    assert "No run has an update yet" in told(later.picture())
    assert later.live.layout.display == "none"  # no axes without a line
    write(tmp_path / "later", [1])
    later.refresh()
    assert len(drawn(later, "later", 1)[0].y) == 1 and "no metrics" not in later.notes.value
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "metrics.jsonl").write_bytes(b"\xff\xfe\n{]\n")
    (tmp_path / "bad" / "progress.json").write_text("[]")
    bad = Training([tmp_path / "bad"], follow=False)
    assert "2 lines are not JSON" in bad.notes.value
    assert bad.tails["bad"].progress.total == 0
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
    assert "<img" not in view.live.figure.to_json() and "$x$" not in view.live.figure.to_json()


def test_long_runs_are_thinned_to_their_last_step(tmp_path):
    kept = thinned(4000)
    assert len(kept) <= MOST and kept[-1] == 3999 and len(set(np.diff(kept))) == 1
    assert thinned(5).tolist() == [0, 1, 2, 3, 4]
