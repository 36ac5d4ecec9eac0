"""The budget-curves view: controls are set, then figures, words and files are read."""

import re
import subprocess
import sys

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import pytest
from made_runs import BUDGETS, random_right, write_run

from anytime_lab.look.curves_view import BudgetCurves
from anytime_lab.look.style import export, latex_table
from anytime_lab.page import escaped, plain, short
from anytime_lab.priors import Prior
from anytime_lab.read.curves import paired_difference, problem_table
from anytime_lab.read.runs import find_evaluations
from anytime_lab.read.told import difference_table, told_difference, under_prior
from anytime_lab.store.records import part_path, read_records, write_json


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    for name, lead, seed in (("grpo", 0, 1), ("ar", 0.25, 2), ("twin", 0, 1)):
        write_run(folder / name, random_right(seed=seed, lead=lead))
    return folder


@pytest.fixture
def view(runs, tmp_path):
    return BudgetCurves([runs / n for n in ("ar", "grpo", "twin")], "grpo", tmp_path / "out")


def words(html):
    return re.sub(r"\s+", " ", re.sub(r"<[^>]*>", " ", html))


def cells(html):
    rows = re.findall(r"<tr>(.*?)</tr>", html)
    return [re.findall(r"<t[dh][^>]*>(.*?)</t[dh]>", r) for r in rows]


def read_out(view):
    header, *rows = cells(view.read_out.value)
    return pd.DataFrame(rows, columns=range(len(header))).set_index(0), header


def line(view, name):
    return next(t for t in view.curves.live.data if t.name == name)


# --- the read-out --------------------------------------------------------------------------------


def test_the_slider_reads_every_run_at_its_budget(view):
    view.budget.value = 8
    rows, header = read_out(view)
    assert header[1] == "at 8 tokens"
    for name in ("ar", "grpo", "twin"):
        drawn = line(view, name)
        shown = float(rows.loc[name, 1].split("\xa0")[0])
        assert shown == pytest.approx(100 * drawn.y[drawn.x.index(8)], abs=0.051)
    view.budget.value = 32
    assert read_out(view)[1][1] == "at 32 tokens"
    assert view.curves.live.layout.shapes[0].x0 == 32


def test_differences_are_the_paired_ones_of_the_curves(runs, view):
    tables = {n: problem_table(read_records(runs / n)) for n in ("ar", "grpo")}
    known = paired_difference(tables["ar"], tables["grpo"], resamples=10)
    frame = view.frame()
    mine = frame[frame["run"] == "ar"].set_index("budget")
    theirs = known[known["measure"] == "accuracy"].set_index("budget")
    for ours, name in (("difference", "difference"), ("difference_low", "low")):
        assert mine[ours].tolist() == pytest.approx(theirs[name].tolist())
    anytime = known[known["measure"] == "anytime"].iloc[0]
    pair = difference_table(tables["ar"], tables["grpo"])
    told = under_prior(pair, Prior.uniform(BUDGETS))
    assert (told.value, told.low) == pytest.approx((anytime["difference"], anytime["low"]))


def test_an_interval_that_holds_nothing_is_said_in_words(view):
    view.budget.value = 16
    rows, _ = read_out(view)
    assert rows.loc["twin", 2].endswith("not distinguishable")
    assert rows.loc["ar", 2].endswith("above")
    assert rows.loc["grpo", 2] == "reference"
    view.reference.value = "ar"
    rows, _ = read_out(view)
    assert rows.loc["grpo", 2].endswith("below")


def test_one_problem_is_too_few_to_tell(tmp_path):
    for name in "ab":
        write_run(tmp_path / name, np.ones((1, 2, 4, 1)))
    view = BudgetCurves([tmp_path / "a", tmp_path / "b"])
    assert read_out(view)[0].loc["b", 2].endswith("too few problems to tell")


def test_tokens_to_accuracy_is_the_first_budget_that_reaches_it(view):
    view.level.value = 0.0
    assert set(read_out(view)[0][6]) == {"8"}
    view.level.value = 1.0
    drawn = line(view, "grpo")
    assert max(drawn.y) < 1 and read_out(view)[0].loc["grpo", 6] == "not reached"
    view.level.value = round(drawn.y[2], 2) - 0.01
    assert read_out(view)[0].loc["grpo", 6] == "24"


# --- the prior -----------------------------------------------------------------------------------


def test_the_prior_reweights_the_anytime_score_at_once(view):
    drawn = line(view, "ar")
    before = read_out(view)[0].loc["ar", 3]
    view.prior.kind.value = "base"
    rows, _ = read_out(view)
    assert rows.loc["ar", 3] == rows.loc["ar", 5] != before  # the final accuracy
    view.prior.kind.value = "linear"
    mean = np.dot([8, 16, 24, 32], drawn.y) / 80
    assert read_out(view)[0].loc["ar", 3].startswith(f"{100 * mean:.1f}")


# --- choices -------------------------------------------------------------------------------------


def test_runs_keep_their_colours_and_traces_when_others_leave(view):
    before = {t.name: t.line.color for t in view.curves.live.data if t.visible}
    count = len(view.curves.live.data)
    view.runs.value = ["grpo", "twin"]
    after = {t.name: t.line.color for t in view.curves.live.data if t.visible}
    assert set(after) == {"grpo", "grpo 95 %", "twin", "twin 95 %"}
    assert all(before[name] == after[name] for name in ("grpo", "twin"))
    assert len(view.curves.live.data) == count
    view.runs.value = []
    assert not any(t.visible for t in view.curves.live.data)
    assert "No run is chosen" in view.notes.value and view.budget.disabled


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
    assert list(view.shown) == ["ar · step 40", "start"]
    view.steps.value = [20, 40]
    assert list(view.shown) == ["ar · step 20", "ar · step 40", "start"]
    assert view.frame().query("step == 20")["run"].unique().tolist() == ["ar · step 20"]
    view.dataset.value = "math500"
    assert list(view.shown) == ["ar · step 40"]
    assert view.frame()["dataset"].unique().tolist() == ["math500"]


def test_a_step_is_read_from_the_checkpoint_of_the_model(tmp_path):
    write_run(tmp_path / "a", random_right(p=2), model="out/checkpoint-75")
    assert find_evaluations([tmp_path / "a"]).evaluations[0].step == 75


def test_runs_of_one_name_are_told_apart_by_their_folders(tmp_path):
    for name in ("grpo", "ar"):
        write_run(tmp_path / name / "eval", random_right(p=2))
    found = find_evaluations([tmp_path / "grpo" / "eval", tmp_path / "ar" / "eval"])
    assert [e.run for e in found.evaluations] == ["grpo/eval", "ar/eval"]
    assert [e.run for e in find_evaluations(tmp_path).evaluations] == ["ar", "grpo"]
    named = find_evaluations({"x": tmp_path / "grpo" / "eval"})
    assert [e.run for e in named.evaluations] == ["x"]


def test_runs_at_other_budgets_are_compared_where_they_meet(tmp_path):
    write_run(tmp_path / "a", random_right(p=5), budgets=(8, 16, 24, 32))
    write_run(tmp_path / "b", random_right(p=5), budgets=(16, 32, 48, 64))
    view = BudgetCurves([tmp_path / "a", tmp_path / "b"])
    assert [b for _, b in view.budget.options] == [8, 16, 24, 32, 48, 64]
    assert view.prior.budgets == (16, 32)
    view.budget.value = 64
    assert read_out(view)[0].loc["a", 1] == "not measured"
    view.budget.value = 16
    assert "not distinguishable" in read_out(view)[0].loc["b", 2]


def test_the_budget_axis_goes_logarithmic_in_place(view):
    view.log_axis.value = True
    axis = view.curves.live.layout.xaxis
    assert axis.type == "log" and axis.tickvals == (8, 16, 32)
    view.log_axis.value = False
    assert view.curves.live.layout.xaxis.type == "linear"


def test_published_values_lie_over_the_curves_when_asked(view):
    assert "published" not in str([t.name for t in view.curves.live.data])
    view.published.value = "AIME24"
    point = line(view, "AR-uniform (published)")
    assert point.x == (8000,) and point.y == pytest.approx((0.322,))
    assert line(view, "GRPO (published), anytime").y == pytest.approx((0.19, 0.19))
    assert ["GRPO", "28.9 %", "19.0 %"] in cells(view.published_table.value)
    assert "not AIME24" in view.published_table.value  # these runs are on countdown
    count = len(view.curves.live.data)
    view.published.value = "MATH500"
    assert line(view, "GRPO (published)").y == pytest.approx((0.847,))
    view.published.value = "none"
    assert len(view.curves.live.data) == count
    assert not line(view, "GRPO (published)").visible and view.published_table.value == ""


def test_a_point_leads_to_the_problems_behind_it(view):
    slot = [name for name in view.shown].index("ar")

    class Points:
        xs = [24]

    view.curves._clicked(slot, None, Points, None)
    assert view.budget.value == 24 and view.inside_run.value == "ar"
    view.inside.click()
    (inside,) = view.inside_slot.children
    assert (inside.a.value, inside.b.value, inside.listed.value) == ("ar", "grpo", 24)
    values = {n: problem_table(read_records(view._names[n].path)) for n in ("ar", "grpo")}
    lead = values["ar"].values[:, 2] - values["grpo"].values[:, 2]
    first = str(values["ar"].problems[lead.argmax()])
    assert lead[list(values["ar"].problems).index(inside.problem.value)] == lead.max()
    assert inside.problem.options[0][1] == min(first, inside.problem.options[0][1])


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
    assert "no finished part yet" in view.notes.value and view.budget.disabled
    with pytest.raises(ValueError, match="no run is shown"):
        view.figure()
    assert view.save("csv") is None and "Not exported" in view.status.value
    view.inside.click()
    assert not view.inside_slot.children


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
    assert view.reference.value == "grpo"


# --- hostile text --------------------------------------------------------------------------------

HOSTILE = "<img src=x onerror=alert(1)></script><script>$x^2$\x1b[31m\u202egnp"


def test_names_of_runs_cannot_act(tmp_path):
    write_run(tmp_path / "a", random_right(p=3), dataset=HOSTILE)
    view = BudgetCurves({HOSTILE: tmp_path / "a", "b": tmp_path / "a"}, reference=HOSTILE + "x")
    for html in (view.notes.value, view.read_out.value):
        assert "<img" not in html and "<script" not in html and "\x1b" not in html
        assert "\u202e" not in html
    names = "".join(str(t.name) + str(t.hovertemplate) for t in view.curves.live.data)
    assert "<img" not in names and "$" not in names


def test_text_keeps_its_length_and_loses_its_powers():
    text = "a\x1b[31mb\u202ec\x00\x9b\ud800\u2066\ttab\n"
    shown = plain(text)
    assert len(shown) == len(text)
    assert shown == "a␛[31mb\ufffdc␀\ufffd\ufffd\ufffd\ttab\n"
    shown.encode()
    assert plain("שלום é ∑ 👩‍🔬") == "שלום é ∑ 👩‍🔬"
    assert escaped("<a href='x'>&") == "&lt;a href=&#x27;x&#x27;&gt;&amp;"


def test_a_line_of_a_megabyte_is_cut():
    cut = escaped("x" * 1_000_000)
    assert len(cut) < 20_100 and "980,000 characters left out" in cut
    assert len(short("y" * 1_000_000)) == 60


# --- files ---------------------------------------------------------------------------------------


def test_the_static_figure_shows_what_the_view_shows(view):
    view.runs.value = ["ar", "grpo"]
    figure = view.figure()
    assert isinstance(figure, go.Figure) and not isinstance(figure, go.FigureWidget)
    assert {t.name for t in figure.data} == {"ar", "grpo", "ar 95 %", "grpo 95 %"}
    drawn = next(t for t in figure.data if t.name == "ar")
    assert list(drawn.y) == pytest.approx(list(line(view, "ar").y))
    view.published.value = "MATH500"
    assert "GRPO (published)" in [t.name for t in view.figure().data]


def test_the_tidy_table_is_exported_as_csv_and_latex(view):
    view.exports["csv"].click()
    assert "Wrote" in view.status.value
    read = pd.read_csv(f"{view.folder.value}/budget-curves.csv")
    assert list(read["run"].unique()) == ["ar", "grpo", "twin"] and len(read) == 12
    assert read["accuracy"].tolist() == pytest.approx(view.frame()["accuracy"].tolist())
    path = view.save("tex")
    told = path.read_text()
    assert told.startswith(r"\begin{tabular}{lll") and r"n\_problems" in told
    assert told.count(r"\\") == 13


def test_latex_text_is_escaped():
    frame = pd.DataFrame({"run": ["a_b & 50% \\x{}"], "accuracy": [0.12345], "step": [None]})
    body = latex_table(frame).splitlines()[4]
    assert body == r"a\_b \& 50\% \textbackslash{}x\{\} & $0.123$ & -- \\"


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
    with pytest.raises(ValueError, match="end it in one of"):
        export(go.Figure(), pd.DataFrame(), tmp_path / "figure.gif")


@pytest.mark.slow
def test_images_are_exported(view):
    assert view.save("png").read_bytes().startswith(b"\x89PNG")
    assert "<svg" in view.save("svg").read_text()[:400]


# --- the house -----------------------------------------------------------------------------------


def test_every_control_has_a_label(view):
    controls = [view.dataset, view.runs, view.steps, view.reference, view.budget, view.log_axis]
    controls += [view.level, view.published, view.again, view.folder, view.inside_run, view.inside]
    controls += [*view.exports.values(), view.prior.kind, view.prior.ratio, view.prior.place]
    assert all(control.description for control in [*controls, view.prior.weight])


def test_the_views_load_no_torch():
    code = (
        "import sys; import anytime_lab.look.curves_view, anytime_lab.look.policies_view;"
        "assert not {'torch', 'transformers', 'trl', 'datasets'} & set(sys.modules), 'heavy'"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_words_for_differences_follow_the_interval():
    from anytime_lab.read.curves import Estimate

    assert told_difference(Estimate(0.1, 0.01, 0.05, 0.15, 9)).endswith("above")
    assert told_difference(Estimate(-0.1, 0.01, -0.15, -0.05, 9)).endswith("below")
    assert told_difference(Estimate(0.1, 0.1, -0.1, 0.3, 9)).endswith("not distinguishable")
