"""The budget-curves view: controls are set, then figures, words and files are read."""

import re
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from made_runs import BUDGETS, random_right, write_run

from anytime_lab.look.curves_view import BudgetCurves, PriorEditor
from anytime_lab.priors import Prior
from anytime_lab.read.curves import difference_table, paired_difference, problem_table
from anytime_lab.read.runs import find_evaluations
from anytime_lab.read.told import told_difference, told_points, under_prior
from anytime_lab.store.files import read_json, write_json
from anytime_lab.store.records import part_path, read_records


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    for name, lead, seed in (("grpo", 0, 1), ("ar", 0.25, 2), ("twin", 0, 1)):
        write_run(folder / name, random_right(seed=seed, lead=lead))
    return folder


@pytest.fixture
def view(runs, tmp_path):
    view = BudgetCurves([runs / n for n in ("ar", "grpo", "twin")], "grpo")
    view.folder.value = str(tmp_path / "out")
    return view


def words(html):
    return re.sub(r"\s+", " ", re.sub(r"<[^>]*>", " ", html))


def cells(html):
    rows = re.findall(r"<tr>(.*?)</tr>", html)
    return [re.findall(r"<t[dh][^>]*>(.*?)</t[dh]>", r) for r in rows]


def listed(view, name):
    return next(row for row in view.runs._rows if row["name"] == name)


def score(view, name):
    return next(row[1:] for row in cells(view.score.value) if row[0] == name)


def line(view, name):
    return next(t for t in view.live.figure.data if t.name == name)


def drawn(view):
    return {t.name for t in view.live.figure.data} - {"prior"}


# --- at a budget ---------------------------------------------------------------------------------


def test_the_line_reads_every_run_at_its_budget(view):
    view.live.move_to(8)
    assert view.runs._head[3] == "at 8 tokens"
    for name in ("ar", "grpo", "twin"):
        shown = float(listed(view, name)["here"].split("\xa0")[0])
        assert shown == pytest.approx(100 * line(view, name).y[0], abs=0.051)
    view.live.move_to(32)
    assert view.runs._head[3] == "at 32 tokens"


def test_differences_are_the_paired_ones_of_the_curves(runs, view):
    tables = {n: problem_table(read_records(runs / n)) for n in ("ar", "grpo")}
    known = paired_difference(tables["ar"], tables["grpo"])
    frame = view.frame()
    mine = frame[frame["run"] == "ar"].set_index("budget")
    theirs = known[known["measure"] == "accuracy"].set_index("budget")
    for ours, name in (("difference", "difference"), ("difference_low", "low")):
        assert mine[ours].tolist() == pytest.approx(theirs[name].tolist())
    anytime = known[known["measure"] == "anytime"].iloc[0]
    pair = difference_table(tables["ar"], tables["grpo"])
    told = under_prior(pair, Prior.uniform(BUDGETS))
    assert (told.value, told.low) == pytest.approx((anytime["difference"], anytime["low"]))
    told = told_points(*theirs.loc[16, ["difference", "low", "high"]])
    view.live.move_to(16)
    row = listed(view, "ar")
    assert f"{row['difference']} {row['difference_bounds']}" == told


def test_the_first_line_tells_the_result(view):
    assert "ar is above grpo at" in words(view.story.value)
    view.runs.reference = "ar"
    assert "is below ar at" in words(view.story.value)
    assert listed(view, "ar")["difference"] == "reference"
    view.runs.ticked = ["twin", "grpo"]
    assert view.runs.reference == "grpo"  # the one before is not shown
    assert "twin is not distinguishable from grpo" in words(view.story.value)


def test_the_result_at_equal_training_time_is_told_beside_it(runs):
    both = {n: runs / n for n in ("ar", "grpo")}
    view = BudgetCurves(both, "grpo", equal_time={"ar": runs / "twin", "grpo": runs / "grpo"})
    assert "at equal training time ar" in words(view.story.value)


def test_an_interval_that_holds_nothing_is_said_in_words(view):
    assert score(view, "twin")[1].endswith("not distinguishable")
    assert score(view, "ar")[1].endswith("above") and score(view, "grpo")[1] == "reference"
    view.runs.reference = "ar"
    assert score(view, "grpo")[1].endswith("below")


def test_one_problem_is_too_few_to_tell(tmp_path):
    for name in "ab":
        write_run(tmp_path / name, np.ones((1, 2, 4, 1)))
    view = BudgetCurves([tmp_path / "a", tmp_path / "b"])
    assert score(view, "b")[1].endswith("too few problems to tell")


def test_tokens_to_accuracy_is_the_first_budget_that_reaches_it(view):
    view.level.value = 0.0
    assert words(view.reach.value).strip() == "To 0%: ar: 8; grpo: 8; twin: 8."
    view.level.value = 1.0
    assert "grpo: not reached" in view.reach.value
    view.level.value = round(line(view, "grpo").y[2], 2) - 0.01
    assert "grpo: 24" in view.reach.value


def test_what_was_cut_and_left_open_is_told_at_each_point(tmp_path):
    answers = [[[[None], ["1"]]], [[["1"], ["1"]]]]
    lengths = [[8], [32]]
    write_run(
        tmp_path / "run", [[[[0], [1]]], [[[0], [1]]]], budgets=(8, 32), lengths=lengths,
        answers=answers,
    )  # fmt: skip
    said = line(BudgetCurves([tmp_path / "run"]), "run").customdata
    assert "50% of thinkings cut, 50% finished" in said[0] and "up to 50%" in said[0]
    assert "50% of thinkings cut" in said[1] and "up to" not in said[1]


# --- the prior -----------------------------------------------------------------------------------


def test_the_prior_reweights_the_anytime_score_at_once(view):
    curve = line(view, "ar").y
    view.prior.kind.value = "base"
    assert score(view, "ar")[0].startswith(f"{100 * curve[-1]:.1f}")
    view.prior.kind.value = "linear"
    mean = np.dot([8, 16, 24, 32], curve) / 80
    assert score(view, "ar")[0].startswith(f"{100 * mean:.1f}")
    assert line(view, "prior").y[1::3] == pytest.approx((0.1, 0.2, 0.3, 0.4))
    assert list(view.figure().data[-1].y) == list(line(view, "prior").y)


def test_bars_that_were_drawn_are_the_prior(view):
    view._painted([1, 1, 0, 0])
    assert view.prior.kind.value == "by hand" and view.prior.prior.weights == (0.5, 0.5, 0, 0)
    view.live.move_to(24)
    view.prior.weight.value = 1.0
    assert view.prior.prior.weights == pytest.approx((1 / 3, 1 / 3, 1 / 3, 0))


def test_a_ratio_makes_the_geometric_prior():
    editor = PriorEditor([10, 20, 30])
    editor.kind.value = "geometric"
    editor.ratio.value = 0.5
    assert editor.prior.weights == pytest.approx((4 / 7, 2 / 7, 1 / 7))
    assert editor.ratio.layout.display is None


def test_bars_drawn_by_hand_become_the_prior():
    editor = PriorEditor([10, 20, 30, 40])
    editor.draw([0.4, 0.2, -0.1, 0.2])
    assert editor.kind.value == "by hand"
    assert editor.prior.weights == pytest.approx((0.5, 0.25, 0, 0.25))


def test_weights_are_set_by_key_where_the_line_stands():
    editor = PriorEditor([10, 20, 30])
    editor.kind.value = "by hand"
    for budget in (30, 20, 10):
        editor.stand_at(budget)
        assert editor.weight.description == f"Weight of {budget}"
        editor.weight.value = 0.0
    assert editor.prior.weights == pytest.approx((1, 0, 0))
    assert "At least one weight" in editor.notes.value


@pytest.mark.parametrize("bars", [[], [0, 0, 0], [1, 2], [float("nan"), 1, 1], [-1, -2, 0]])
def test_bars_that_say_nothing_change_nothing(bars):
    editor = PriorEditor([10, 20, 30])
    editor.draw(bars)
    assert editor.prior == Prior.uniform([10, 20, 30])


def test_weights_drawn_by_hand_follow_to_another_grid():
    editor = PriorEditor([10, 20, 30])
    editor.draw([2, 1, 0])
    editor.set_budgets([5, 10, 15, 20, 25])
    assert editor.prior.budgets == (5, 10, 15, 20, 25)
    assert editor.prior.weights == pytest.approx((0.4, 0.3, 0.2, 0.1, 0))


def test_no_budgets_leave_no_prior():
    editor = PriorEditor([])
    assert editor.prior is None and editor.kind.disabled
    editor.draw([])
    editor.kind.value = "base"
    assert "No budget" in editor.notes.value
    editor.set_budgets([10, 20])
    assert editor.prior.weights == (0, 1) and not editor.kind.disabled


# --- choices -------------------------------------------------------------------------------------


def test_runs_keep_their_colours_when_others_leave(view):
    before = {t.name: t.line.color for t in view.live.figure.data}
    view.runs.ticked = ["grpo", "twin"]
    after = {t.name: t.line.color for t in view.live.figure.data}
    wide = {f"{name} at all budgets" for name in ("grpo", "twin")} & drawn(view)
    assert len(wide) == 1  # of the one that is compared
    assert drawn(view) - wide == {"grpo", "grpo 95 %", "twin", "twin 95 %"}
    assert all(before[name] == after[name] for name in ("grpo", "twin"))
    view.runs.ticked = []
    assert not drawn(view) and view.live.stop is None
    assert "No run is chosen" in view.notes.value and view.prior.kind.disabled


def test_of_many_runs_the_first_are_shown(tmp_path):
    for seed in range(8):
        write_run(tmp_path / f"r{seed}", random_right(p=3, seed=seed))
    view = BudgetCurves(tmp_path)
    assert len(view.shown) == 6 and len(view.runs._rows) == 8
    assert "6 of 8 runs are shown" in view.notes.value
    assert all(t.opacity == 1 for t in view.live.figure.data if t.name.endswith("95 %"))
    view.runs.ticked = [row["name"] for row in view.runs._rows]
    assert "Bands of more than 6 runs" in view.notes.value
    bands = [t for t in view.live.figure.data if t.name.endswith("95 %")]
    assert len(bands) == 15 and all(t.opacity == t.meta["rest"] == 0 for t in bands)


def test_datasets_and_steps_are_chosen_apart(tmp_path):
    for step in (20, 40):
        for dataset in ("aime24", "math500"):
            write_run(
                tmp_path / "ar" / dataset / f"step-{step}",
                random_right(p=4, seed=step),
                dataset=dataset,
            )
    write_run(tmp_path / "start", random_right(p=4), dataset="aime24")
    view = BudgetCurves([tmp_path / "ar", tmp_path / "start"])
    assert view.dataset.options == (("aime24", "aime24"), ("math500", "math500"))
    assert list(view.shown) == ["ar · step 40 · aime24", "start · aime24"]
    view.runs.ticked = [row["name"] for row in view.runs._rows]
    assert list(view.shown) == [f"{n} · aime24" for n in ("ar · step 20", "ar · step 40", "start")]
    assert view.frame().query("step == 20")["run"].unique().tolist() == ["ar · step 20 · aime24"]
    view.dataset.value = "math500"
    assert list(view.shown) == ["ar · step 40 · math500"]
    assert view.frame()["dataset"].unique().tolist() == ["math500"]


def test_a_step_is_read_from_the_checkpoint_of_the_model(tmp_path):
    write_run(tmp_path / "a", random_right(p=2), model="out/checkpoint-75")
    assert find_evaluations([tmp_path / "a"])[0][0].step == 75


def test_runs_of_one_name_are_told_apart_by_their_folders(tmp_path):
    for name in ("grpo", "ar"):
        write_run(tmp_path / name / "eval", random_right(p=2))
    found, _ = find_evaluations([tmp_path / "grpo" / "eval", tmp_path / "ar" / "eval"])
    assert [e.run for e in found] == ["grpo/eval", "ar/eval"]
    assert [e.run for e in find_evaluations(tmp_path)[0]] == ["ar", "grpo"]
    named, _ = find_evaluations({"x": tmp_path / "grpo" / "eval"})
    assert [e.run for e in named] == ["x"]


def test_a_broken_folder_hides_none_of_the_others(tmp_path):
    for name in "abc":
        write_run(tmp_path / name, random_right())
    manifest = read_json(tmp_path / "b" / "manifest.json")
    write_json(tmp_path / "b" / "manifest.json", manifest | {"chunks": "two"})
    found, complaints = find_evaluations(tmp_path)
    assert [e.run for e in found] == ["a", "c"]
    assert len(complaints) == 1 and "'two' parts" in complaints[0]


def test_runs_at_other_budgets_are_said_to_be_and_compared_where_they_meet(tmp_path):
    write_run(tmp_path / "a", random_right(p=5), budgets=(8, 16, 24, 32))
    write_run(tmp_path / "b", random_right(p=5), budgets=(16, 32, 48, 64))
    view = BudgetCurves([tmp_path / "a", tmp_path / "b"])
    assert [x for x, _ in view.live._stops] == [8, 16, 24, 32, 48, 64]
    said = words(view.notes.value)
    assert "a at 8, 16, 24, 32; b at 16, 32, 48, 64" in said and "They share 16, 32." in said
    assert view.common.layout.display is None and view.prior.budgets == (16, 32)
    view.live.move_to(64)
    assert listed(view, "a")["here"] == "not measured"
    view.common.value = "a"
    assert view.prior.budgets == (8, 16, 24, 32)
    assert score(view, "a")[0] != "—" and score(view, "b")[0] == "—"


def test_the_axis_goes_logarithmic_or_over_what_was_spent(view):
    view.log_axis.value = True
    axis = view.live.figure.layout.xaxis
    assert axis.type == "log" and axis.tickvals == (8, 16, 32)
    view.log_axis.value = False
    assert view.live.figure.layout.xaxis.type == "linear"
    view.live.move_to(32)
    view.over.value = "spent"
    assert view.budget == 32 and view.live.stop == line(view, "grpo").x[-1]


def test_flops_and_seconds_are_drawn_over_where_every_run_tells_them(tmp_path):
    for name, size, seconds in (("small", 10, 3.0), ("large", 1000, 50.0)):
        path = write_run(tmp_path / name, random_right(p=3)) / "manifest.json"
        # two sessions of 100 and 300 tokens, and one that was killed
        told = ({"tokens": 100, "seconds": seconds}, {"tokens": 300, "seconds": seconds}, {})
        sessions = [{"versions": {}} | numbers for numbers in told]
        write_json(path, read_json(path) | {"parameters": size, "sessions": sessions})
    write_run(tmp_path / "untold", random_right(p=3))
    view = BudgetCurves([tmp_path / n for n in ("small", "large", "untold")])
    columns = [column for _, column in view.over.options]
    assert columns == ["budget", "spent"]
    assert "No axis of seconds: not told by untold." in view.axes.value
    assert "No axis of flops: not told by untold." in view.axes.value
    view.runs.ticked = ["small", "large"]
    assert [column for _, column in view.over.options] == ["budget", "spent", "seconds", "flops"]
    view.over.value = "flops"
    spent = view.frame().query("run == 'large'")["spent"]
    assert line(view, "large").x == pytest.approx(2 * 1000 * spent)
    assert line(view, "small").x == pytest.approx(2 * 10 * spent)
    assert "estimated" in view.live.figure.layout.xaxis.title.text
    view.over.value = "seconds"
    assert line(view, "large").x == pytest.approx(100.0 / 400 * spent)
    assert line(view, "small").x == pytest.approx(6.0 / 400 * spent)
    view.runs.ticked = ["small", "untold"]
    assert view.over.value == "budget"


def test_published_values_lie_over_the_curves_when_asked(view):
    view.published.value = "AIME24"
    point = line(view, "AR-uniform (published)")
    assert point.x == (8000,) and point.y == pytest.approx((0.322,))
    assert line(view, "GRPO (published), anytime").y == pytest.approx((0.19, 0.19))
    assert ["GRPO", "28.9 %", "19.0 %"] in cells(view.published_table.value)
    assert "not AIME24" in view.published_table.value  # these runs are on countdown
    view.published.value = "none"
    assert "published" not in str(drawn(view)) and "<table" not in view.published_table.value


def test_a_point_leads_to_the_problems_behind_it_and_back(view):
    view.live.move_to(24)
    view._point_clicked(["ar", 24, 0.5])
    inside = view.aside.children[-1]
    assert (inside.a.value, inside.b.value, inside.budget) == ("ar", "grpo", 24)
    a, b = (inside.sides[i].path.set_index("budget")["right"] for i in (0, 1))
    assert a[24] and not b[24]  # what is shown first is where the story is
    view.live.move_to(8)
    assert inside.budget == 8
    view.back.click()
    assert view.runs in view.aside.children
    view._point_clicked(["prior", 24, 0.5])
    assert view.runs in view.aside.children


# --- bad folders ---------------------------------------------------------------------------------


def test_folders_that_cannot_be_read_are_sentences(runs, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "holiday.jpg").touch()
    write_json(tmp_path / "odd" / "manifest.json", {"format": "anytime_lab evaluation 1"})
    write_run(tmp_path / "torn", random_right(p=3))
    part_path(tmp_path / "torn", "records", 0).write_bytes(b"PAR1 no")
    (tmp_path / "garbled").mkdir()
    (tmp_path / "garbled" / "manifest.json").write_text('{"format": ')
    names = ["empty", "foreign", "odd", "torn", "garbled", "nowhere"]
    view = BudgetCurves([runs / "grpo", *(tmp_path / n for n in names)])
    told = words(view.notes.value)
    for said in ("empty is empty", "holiday.jpg", "/odd", "damaged", "JSON"):
        assert said in told
    assert "nowhere is not a folder" in told
    assert list(view.shown) == ["grpo"]
    alone = BudgetCurves([tmp_path / "empty"])
    assert "is empty" in alone.notes.value
    assert "No run folders" in BudgetCurves([]).notes.value


def test_a_run_with_no_readable_part_leaves_the_view_usable(tmp_path):
    write_run(tmp_path / "new", random_right(p=3), parts=2, written=0)
    view = BudgetCurves([tmp_path / "new"])
    assert "no finished part yet" in view.notes.value and view.prior.kind.disabled
    with pytest.raises(ValueError, match="no run is shown"):
        view.figure()
    assert view.save("csv") is None and "Not exported" in view.status.value
    view.inside.click()
    assert view.runs in view.aside.children


def test_a_run_that_still_writes_is_read_as_far_as_it_is(tmp_path):
    right = random_right(p=6, n=4)
    write_run(tmp_path / "run", right, parts=4, written=2)
    view = BudgetCurves([tmp_path / "run"])
    assert "2 of 4 parts" in view.notes.value
    before = line(view, "run").y
    write_run(tmp_path / "run", right, parts=4)
    view.again.click()
    assert "parts" not in view.notes.value
    assert line(view, "run").y == pytest.approx(right.mean(axis=(0, 1, 3)))
    assert line(view, "run").y != before


def test_an_unknown_reference_is_told(runs):
    view = BudgetCurves([runs / "grpo", runs / "ar"], reference="ppo")
    assert "'ppo' is not one of the runs" in words(view.notes.value).replace("&#x27;", "'")
    assert view.runs.reference == "grpo"


# --- hostile text --------------------------------------------------------------------------------

HOSTILE = "<img src=x onerror=alert(1)></script><script>$x^2$\x1b[31m\u202egnp"


def test_names_of_runs_cannot_act(tmp_path):
    write_run(tmp_path / "a", random_right(p=3), dataset=HOSTILE)
    view = BudgetCurves({HOSTILE: tmp_path / "a", "b": tmp_path / "a"}, reference=HOSTILE + "x")
    for html in (view.notes.value, view.score.value, view.story.value, view.reach.value):
        assert "<img" not in html and "<script" not in html and "\x1b" not in html
        assert "\u202e" not in html
    names = "".join(str(t.name) + str(t.hovertemplate) for t in view.live.figure.data)
    assert "<img" not in names and "$" not in names


# --- files ---------------------------------------------------------------------------------------


def test_the_tidy_table_is_exported_as_csv_and_latex(view):
    view.kind.value = "csv"
    view.write.click()
    assert "Wrote" in view.status.value
    read = pd.read_csv(f"{view.folder.value}/budget-curves.csv")
    assert list(read["run"].unique()) == ["ar", "grpo", "twin"] and len(read) == 12
    assert read["accuracy"].tolist() == pytest.approx(view.frame()["accuracy"].tolist())
    path = view.save("tex")
    told = path.read_text()
    assert told.startswith(r"\begin{tabular}{ll") and r"n\_problems" in told
    assert told.count(r"\\") == 13


def test_the_exported_page_fetches_nothing(view):
    page = view.save("html").read_text()
    assert not re.search(r"<(script|link|img)[^>]+(src|href)=[\"']?(https?:)?//", page)
    assert page.count("Plotly.newPlot(") >= 1 and len(page) > 1_000_000


def test_an_export_that_cannot_be_written_is_told(view, tmp_path):
    (tmp_path / "file").touch()
    view.folder.value = str(tmp_path / "file" / "below")
    for kind in ("csv", "html"):
        assert view.save(kind) is None
        assert "Not exported" in view.status.value


@pytest.mark.slow
def test_images_are_exported(view):
    assert view.save("png").read_bytes().startswith(b"\x89PNG")
    assert "<svg" in view.save("svg").read_text()[:400]


# --- the house -----------------------------------------------------------------------------------


def test_every_control_has_a_label(view):
    controls = [view.dataset, view.common, view.log_axis, view.over, view.level, view.published]
    controls += [view.again, view.folder, view.kind, view.write, view.inside, view.back]
    controls += [view.prior.kind, view.prior.ratio, view.prior.weight]
    assert all(control.description for control in controls)
    assert view.live.label.startswith("Accuracy by thinking budget. ar is above grpo")


def test_the_views_load_no_torch():
    code = (
        "import sys; import anytime_lab.look.curves_view, anytime_lab.look.policies_view;"
        "assert not {'torch', 'transformers', 'trl', 'datasets'} & set(sys.modules), 'heavy'"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_words_for_differences_follow_the_interval():
    from anytime_lab.read.curves import Estimate

    assert told_difference(Estimate(0.1, 0.05, 0.15, 0.01, 9)).endswith("above")
    assert told_difference(Estimate(-0.1, -0.15, -0.05, 0.01, 9)).endswith("below")
    assert told_difference(Estimate(0.1, -0.1, 0.3, 0.1, 9)).endswith("not distinguishable")
