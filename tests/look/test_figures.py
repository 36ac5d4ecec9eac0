"""Figures by what they hold: names of traces, data, colours, places of labels."""

import numpy as np
import pandas as pd
import pytest

from anytime_lab.look.figures import plot_curves
from anytime_lab.priors import Prior

HOSTILE = ["<script>alert(1)</script>", "$x^2$", "%{y}", "<b>a</b>", "a\u202eb", "\x1b[31mred"]


def curves(runs, budgets=(8, 16, 24), value="accuracy", start=0.2):
    rows = []
    for i, run in enumerate(runs):
        for j, budget in enumerate(budgets):
            v = start + 0.1 * j + 0.03 * i
            rows.append({"run": run, "budget": budget, value: v, "low": v - 0.05, "high": v + 0.05})
    return pd.DataFrame(rows)


def lines(figure):
    return [t for t in figure.data if t.mode == "lines+markers"]


@pytest.mark.parametrize("count", [1, 2, 5])
def test_each_run_has_a_band_and_a_line(count):
    runs = [f"run {i}" for i in range(count)]
    figure = plot_curves(curves(runs))
    assert [t.name for t in figure.data] == [*(f"{r} 95 %" for r in runs), *runs]
    named = [a.text.partition("</span> ")[2] for a in figure.layout.annotations]
    assert sorted(named) == runs


def test_lines_and_bands_hold_the_frame():
    frame = curves(["a", "b"]).sample(frac=1, random_state=3)  # in any order
    figure = plot_curves(frame)
    a = frame[frame["run"] == "a"].sort_values("budget")
    line = next(t for t in figure.data if t.name == "a")
    assert list(line.x) == [8, 16, 24]
    assert list(line.y) == a["accuracy"].tolist()
    assert line.customdata[0] == "a: <b>20.0 %</b> [15.0, 25.0] at 8 tokens"
    assert line.meta["riding"][1] == [16, pytest.approx(0.3), "30.0 %"]
    band = next(t for t in figure.data if t.name == "a 95 %")
    assert list(band.x) == [8, 16, 24, 24, 16, 8]  # up along the high side, back along the low
    assert list(band.y) == [*a["high"], *a["low"][::-1]]


def test_a_budget_without_an_interval_keeps_its_point():
    frame = curves(["a"])
    frame.loc[1, ["low", "high"]] = np.nan
    figure = plot_curves(frame)
    assert list(figure.data[0].x) == [8, 24, 24, 8]
    assert list(figure.data[1].x) == [8, 16, 24]


def test_a_run_keeps_its_colour_when_others_are_missing():
    whole = plot_curves(curves(["a", "b", "c"]))
    part = plot_curves(curves(["c"]), runs=["a", "b", "c"])
    assert lines(part)[0].line == lines(whole)[2].line
    assert lines(part)[0].marker.symbol == lines(whole)[2].marker.symbol
    with pytest.raises(ValueError, match=r"does not name: \['d'\]"):
        plot_curves(curves(["d"]), runs=["a"])


def test_the_accuracy_axis_is_in_percent_and_holds_all_bands():
    figure = plot_curves(curves(["a"], start=0.7))
    assert figure.layout.yaxis.tickformat == ".0%"
    low, high = figure.layout.yaxis.range
    assert low < 0.65 and 0.95 < high < 1.03
    assert "tokens" in figure.layout.xaxis.title.text


def test_a_logarithmic_axis_keeps_first_and_last_budget():
    figure = plot_curves(curves(["a"], budgets=(8, 16, 96)), log=True)
    assert figure.layout.xaxis.type == "log"
    low, high = figure.layout.xaxis.range
    assert 10**low < 8 and 10**high > 96


def test_frames_that_cannot_be_drawn_are_refused():
    with pytest.raises(ValueError, match=r"lacks the columns \['low'\]"):
        plot_curves(curves(["a"]).drop(columns="low"))
    with pytest.raises(ValueError, match="empty"):
        plot_curves(curves(["a"]).iloc[:0])


def test_differences_stand_below_on_the_same_axis_with_zero_in_sight():
    frame = curves(["ar", "grpo"])
    apart = {"difference": 0.1, "difference_low": 0.05, "difference_high": 0.15}
    frame.loc[frame["run"] == "ar", list(apart)] = list(apart.values())
    figure = plot_curves(frame, reference="grpo", prior=Prior.linear([8, 16, 24]))
    below = [t for t in figure.data if t.yaxis == "y2"]
    assert [t.name for t in below] == ["ar 95 %", "ar"] and below[1].y == (0.1, 0.1, 0.1)
    ends = {"difference_band_low": 0.02, "difference_band_high": 0.18}
    wide = plot_curves(frame.assign(**ends), reference="grpo").data
    (wide,) = [t for t in wide if t.name == "ar at all budgets"]
    assert wide.y == (0.18,) * 3 + (0.02,) * 3 and wide.yaxis == "y2"
    assert figure.layout.yaxis2.title.text == "Points to grpo"
    assert figure.layout.yaxis2.range[0] < 0 < figure.layout.yaxis2.range[1]
    bars = figure.data[-1]
    assert bars.name == "prior" and bars.yaxis == "y3" and figure.layout.xaxis.anchor == "y3"
    assert bars.y[1::3] == pytest.approx((1 / 6, 2 / 6, 3 / 6))
    domains = [figure.layout[f"yaxis{i}"].domain for i in ("", 2, 3)]
    assert all(upper[0] > lower[1] for upper, lower in zip(domains, domains[1:], strict=False))


def test_curves_are_drawn_over_what_was_spent():
    frame = curves(["a"]).assign(spent=[7.5, 12.0, 14.25])
    line = lines(plot_curves(frame, over="spent"))[0]
    assert line.x == (7.5, 12.0, 14.25)
    assert [stop[0] for stop in line.meta["riding"]] == [7.5, 12.0, 14.25]


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_names_are_shown_and_do_nothing(name):
    figure = plot_curves(curves([name, "b"]))
    line = next(t for t in lines(figure) if t.name != "b")
    for text in (line.name, *line.customdata, *(a.text for a in figure.layout.annotations)):
        assert "<script" not in text and "$" not in text and "%{" not in text
        assert "\u202e" not in text and "\x1b" not in text and "<b>a" not in text
    assert line.hovertemplate == "%{customdata}<extra></extra>"
