"""The view of exit rules: what it draws and says is what the replay gives."""

import numpy as np
import pytest
from made_runs import random_right, told, write_run

from anytime_lab.look.policies_view import Policies
from anytime_lab.read.policies import (
    REPLAY_COLUMNS,
    calibration,
    fixed_budgets,
    lay_out,
    policy_frame,
    stop_on_agreement,
)
from anytime_lab.store.records import part_path, read_records


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    write_run(folder / "ar", random_right(p=10, seed=2, lead=0.2))
    write_run(folder / "grpo", random_right(p=10, seed=1))
    return [folder / "ar", folder / "grpo"]


def line(view, name):
    return next(t for t in view.live.figure.data if t.name == name)


def test_each_rule_is_drawn_where_its_replay_puts_it(runs):
    view = Policies(runs)
    replay = lay_out(read_records(runs[0], REPLAY_COLUMNS))
    known = policy_frame([*fixed_budgets(replay), *stop_on_agreement(replay, [2, 3, 4])])
    told = known[known["policy"] == "agreement"]
    drawn = line(view, "stop when k budgets agree")
    assert list(drawn.x) == pytest.approx(told["tokens"].tolist())
    assert list(drawn.y) == pytest.approx(told["accuracy"].tolist())
    assert "majority of 2" in {t.name for t in view.live.figure.data}  # cheap at small budgets


def test_what_costs_more_than_the_largest_budget_is_drawn_when_asked(runs):
    view = Policies(runs)
    most = max(line(view, "fixed budget").x)
    assert all(max(t.x) <= most * 1.05 for t in view.live.figure.data)
    count = len(view.live._stops)
    view.beyond.value = True
    assert max(line(view, "majority of 4").x) == pytest.approx(4 * most)
    assert len(view.live._stops) > count
    names = {t.name for t in view.live.figure.data}
    assert "fixed budget 95 %" in names and "majority of 8" not in names  # four samples


def test_the_point_is_read_against_a_fixed_budget(runs):
    view = Policies(runs)
    for place, (tokens, setting) in enumerate(view.live._stops):
        view.live.at = place
        row = view.points.query("setting == @setting").iloc[0]
        assert tokens == row["tokens"] and f"{tokens:,.0f} tokens" in view.read_out.value
        assert setting.split(" ")[0] in view.read_out.value
        riding = [t.meta["riding"][place] for t in view.live.figure.data if "riding" in t.meta]
        assert [r[:2] for r in riding if r] == [[tokens, row["accuracy"]]]
        held = row["difference_low"] <= 0 <= row["difference_high"]
        assert ("not distinguishable" in view.read_out.value) == bool(held)


def test_another_run_and_another_count_are_drawn(runs):
    view = Policies(runs)
    before = list(line(view, "fixed budget").y)
    view.run.value = "grpo"
    assert list(line(view, "fixed budget").y) != before
    spent = np.array(line(view, "fixed budget").x)
    view.count.value = "with_summaries"
    assert list(line(view, "fixed budget").x) == pytest.approx(spent + 4)
    assert "summary" in view.live.figure.layout.xaxis.title.text
    view.log_axis.value = False
    assert view.live.figure.layout.xaxis.type == "linear"


def test_the_confidence_is_that_of_the_summary_or_of_its_mean_token(runs):
    view = Policies(runs)
    replay = lay_out(read_records(runs[0], REPLAY_COLUMNS))
    for per_token in (True, False):
        view.confidence.value = per_token
        for budget in (24, 0):
            view.at.value = budget
            told = calibration(replay.per_token() if per_token else replay, budget or None)
            assert list(view.reliability.figure.data[1].x) == pytest.approx(
                told["confidence"].tolist()
            )
            assert f"{told['answers'].sum():,} answers" in view.calibrated.value
    names = [t.name for t in view.calibration_figure().data]
    assert names == ["perfectly calibrated", "answers"]


def test_static_figures_hold_what_the_view_holds(runs):
    view = Policies(runs)
    static = {t.name: t for t in view.figure().data}
    assert all(list(static[t.name].y) == list(t.y) for t in view.live.figure.data)


def test_runs_that_cannot_be_replayed_are_sentences(runs, tmp_path):
    write_run(tmp_path / "torn", random_right(p=3))
    part_path(tmp_path / "torn", "records", 0).write_bytes(b"no")
    view = Policies([tmp_path / "torn", runs[0]])
    assert "damaged" in view.notes.value and view.points.empty
    assert "No run is open" in told(view.picture())
    assert "No run is open" in told(view.calibration_figure())
    view.run.value = "ar"
    assert "damaged" not in view.notes.value and len(view.points)
    view.run.value = "torn"
    assert "<p" not in view.read_out.value and view.live.stop is None
    (tmp_path / "empty").mkdir()
    assert "is empty" in Policies([tmp_path / "empty"]).notes.value


def test_a_run_that_still_writes_loses_its_majorities_only(tmp_path):
    write_run(tmp_path / "run", random_right(p=4, n=3), parts=3, written=1)
    view = Policies([tmp_path / "run"])
    assert "1 of 3 parts" in view.notes.value and "Majorities are left out" in view.notes.value
    assert not any("majority" in t.name for t in view.live.figure.data)
    assert len(line(view, "stop when k budgets agree").x) == 3


def test_one_budget_is_enough_to_draw(tmp_path):
    write_run(tmp_path / "run", np.ones((2, 2, 1, 1)), budgets=(8,))
    view = Policies([tmp_path / "run"])
    assert list(line(view, "fixed budget").x) == [8]


def test_verdicts_of_none_leave_a_sentence(tmp_path):
    write_run(tmp_path / "run", np.full((2, 2, 4, 1), np.nan))
    view = Policies([tmp_path / "run"])
    assert "no summary has both an answer and a verdict" in view.calibrated.value
    view.figure()


def test_every_control_has_a_label(runs):
    view = Policies(runs)
    controls = [view.run, view.count, view.confidence, view.log_axis, view.beyond, view.at]
    assert all(control.description for control in controls)
