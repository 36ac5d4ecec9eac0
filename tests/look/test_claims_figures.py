"""A study's figures: which traces, where the marks stand, in which colour."""

import nbformat
import pandas as pd
import pytest
from made_notebooks import run_notebook

from anytime_lab.look.figures import plot_claims, plot_course
from anytime_lab.look.pictures import FIGURE
from anytime_lab.look.style import COLOURS, QUIET
from anytime_lab.run.notebook import NOTEBOOKS


def effect(claim, axis, value, verdict, measure="anytime"):
    row = {"claim": claim, "axis": axis, "effect": value, "low": value - 0.01}
    return row | {"high": value + 0.02, "verdict": verdict, "measure": measure, "seeds": 5}


def test_claims_have_a_row_each_and_a_mark_an_axis():
    axes = ("updates", "seconds", "flops")
    frame = pd.DataFrame(
        [effect("first", axis, 0.05, "holds") for axis in axes]
        + [effect("second <b>", axis, -0.03, "the other way") for axis in axes[:2]]
        + [effect("second <b>", "flops", 0.0, "not seen")]
        + [effect("shorter", axis, -9.0, "holds", "length") for axis in axes]
    )
    figure = plot_claims(frame)
    named = ["updates", "processor time", "FLOPs"]
    assert [trace.name for trace in figure.data] == [f"at equal {axis}" for axis in named]
    assert figure.layout.yaxis.ticktext == ("second &lt;b&gt;", "first")  # no lengths
    updates, _, flops = figure.data
    assert list(updates.x) == [5.0, -3.0]
    assert list(updates.marker.color) == [COLOURS[0], COLOURS[1]]
    assert list(flops.marker.color) == [COLOURS[0], QUIET]
    assert [round(up, 9) for up in updates.error_x.array] == [2.0, 2.0]
    assert [round(y) for y in updates.y] == [1, 0]
    assert "<b>+5.0</b> points [+4.0, +7.0], 5 seeds: holds" in updates.customdata[0]


def test_a_course_is_a_line_and_a_band_for_each_run():
    frame = pd.DataFrame(
        {
            "run": ["GRPO"] * 2 + ["AR"] * 2,
            "cost": [0.0, 10.0, 0.0, 20.0],
            "value": [0.4, 0.5, 0.4, 0.7],
            "low": [0.39, 0.49, 0.39, 0.69],
            "high": [0.41, 0.51, 0.41, 0.71],
            "seeds": 5,
        }
    )
    panels = {"updates": frame, "FLOPs": frame.assign(cost=2 * frame["cost"])}
    figure = plot_course(panels, "Anytime accuracy")
    names = ["GRPO 95 %", "AR 95 %", "GRPO", "AR"]
    assert [trace.name for trace in figure.data] == names * 2
    assert list(figure.data[7].x) == [0.0, 40.0] and figure.data[7].xaxis == "x2"
    assert list(figure.data[3].x) == [0.0, 20.0]
    low, high = figure.layout.yaxis.range
    assert low < 0.39 and high > 0.71
    titles = [figure.layout[axis].title.text for axis in ("xaxis", "xaxis2", "yaxis", "yaxis2")]
    assert titles == ["updates", "FLOPs", "Anytime accuracy", None]


@pytest.mark.slow
def test_the_notebook_opens_on_the_study_that_ships(tmp_path):
    run_notebook(NOTEBOOKS / "11_claims.ipynb", {}, tmp_path / "run")
    cells = nbformat.read(tmp_path / "run" / "notebook.ipynb", 4).cells
    outputs = [
        output.data for cell in cells for output in cell.get("outputs", ()) if "data" in output
    ]
    assert sum(FIGURE in data for data in outputs) == 8
    told = "".join(data.get("text/html", "") for data in outputs)
    for part in "abcde":
        assert f"({part})" in told
    assert "AR-uniform above GRPO" in told and "seeds" in told


def test_runs_beside_those_of_every_panel_have_colours_of_their_own():
    def frame(*runs):
        return pd.DataFrame({"run": runs, "cost": 1.0, "value": 0.5, "low": 0.4, "high": 0.6})

    panels = {str(k): frame("AR", "GRPO", *(f"{k}{i}" for i in range(3))) for k in range(3)}
    figure = plot_course(panels, "Accuracy")
    lines = [trace for trace in figure.data if not trace.name.endswith("95 %")]
    for panel in ("x", "x2", "x3"):
        colours = [trace.line.color for trace in lines if trace.xaxis == panel]
        assert len(colours) == len(set(colours)) == 5
    assert len({trace.line.color for trace in lines if trace.name == "AR"}) == 1
