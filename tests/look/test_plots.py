"""Figures by what they hold: names of traces, data, colours, places of labels."""

import itertools

import numpy as np
import pandas as pd
import pytest

from anytime_lab.look.figures import plot_accuracy, plot_difference, plot_training
from anytime_lab.look.style import (
    COLOURS,
    DASHES,
    LABEL_CHARACTERS,
    MARKERS,
    apart,
    budget_ticks,
    label_lines,
    log_ticks,
    point_ticks,
    run_styles,
    safe_text,
    short_text,
)

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


# --- accuracy ------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 2, 5])
def test_each_run_has_a_band_and_a_line(count):
    runs = [f"run {i}" for i in range(count)]
    figure = plot_accuracy(curves(runs))
    assert [t.name for t in figure.data] == [*(f"{r} 95 %" for r in runs), *runs]
    assert [a.text for a in figure.layout.annotations] == [f"<b>{r}</b>" for r in runs]


def test_lines_and_bands_hold_the_frame():
    frame = curves(["a", "b"]).sample(frac=1, random_state=3)  # in any order
    figure = plot_accuracy(frame)
    a = frame[frame["run"] == "a"].sort_values("budget")
    line = next(t for t in figure.data if t.name == "a")
    assert list(line.x) == [8, 16, 24]
    assert list(line.y) == a["accuracy"].tolist()
    assert np.asarray(line.customdata)[:, 0] == pytest.approx(100 * a["low"].to_numpy())
    band = next(t for t in figure.data if t.name == "a 95 %")
    assert list(band.x) == [8, 16, 24, 24, 16, 8]  # up along the high side, back along the low
    assert list(band.y) == [*a["high"], *a["low"][::-1]]


def test_a_budget_without_an_interval_keeps_its_point():
    frame = curves(["a"])
    frame.loc[1, ["low", "high"]] = np.nan
    figure = plot_accuracy(frame)
    assert list(figure.data[0].x) == [8, 24, 24, 8]
    assert list(figure.data[1].x) == [8, 16, 24]


def test_a_run_keeps_its_colour_when_others_are_missing():
    whole = plot_accuracy(curves(["a", "b", "c"]))
    part = plot_accuracy(curves(["c"]), runs=["a", "b", "c"])
    assert lines(part)[0].line == lines(whole)[2].line
    assert lines(part)[0].marker.symbol == lines(whole)[2].marker.symbol
    with pytest.raises(ValueError, match=r"does not name: \['d'\]"):
        plot_accuracy(curves(["d"]), runs=["a"])


def test_runs_differ_by_colour_dash_and_marker():
    styles = list(run_styles([str(i) for i in range(12)]).values())
    assert len({(s.colour, s.dash) for s in styles}) == 12
    first = styles[:5]
    for of in (
        "colour",
        "dash",
        "marker",
    ):  # each by itself, for a grey print or a colour-blind eye
        assert len({getattr(s, of) for s in first}) == 5
    assert len(set(DASHES)) == len(DASHES) and len(set(MARKERS)) == len(MARKERS)


@pytest.mark.parametrize("paper", ["#FFFFFF", "#111111"])
def test_every_colour_is_seen_on_white_and_on_black(paper):
    def light(colour):  # WCAG 2.2, relative luminance
        parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
        return float(np.dot(linear, (0.2126, 0.7152, 0.0722)))

    for colour in COLOURS:
        low, high = sorted((light(colour), light(paper)))
        assert (high + 0.05) / (low + 0.05) >= 3, colour


def test_the_accuracy_axis_is_in_percent_and_holds_all_bands():
    figure = plot_accuracy(curves(["a"], start=0.7))
    assert figure.layout.yaxis.tickformat == ".0%"
    low, high = figure.layout.yaxis.range
    assert low < 0.65 and 0.95 < high < 1.03
    assert "tokens" in figure.layout.xaxis.title.text


def test_a_logarithmic_axis_keeps_first_and_last_budget():
    figure = plot_accuracy(curves(["a"], budgets=(8, 16, 96)), log_budget=True)
    assert figure.layout.xaxis.type == "log"
    low, high = figure.layout.xaxis.range
    assert 10**low < 8 and 10**high > 96
    ticks = log_ticks(list(range(250, 8001, 250)))["tickvals"]
    assert ticks[0] == 250 and ticks[-1] == 8000
    assert all(b / a >= 1.2 for a, b in itertools.pairwise(ticks))


def test_few_budgets_are_their_own_ticks():
    assert budget_ticks([24, 8, 16])["tickvals"] == [8, 16, 24]
    assert "tickvals" not in budget_ticks(range(1, 33))


def test_frames_that_cannot_be_drawn_are_refused():
    with pytest.raises(ValueError, match=r"lacks the columns \['low'\]"):
        plot_accuracy(curves(["a"]).drop(columns="low"))
    with pytest.raises(ValueError, match="empty"):
        plot_accuracy(curves(["a"]).iloc[:0])


# --- differences ---------------------------------------------------------------------------------


def test_differences_leave_out_other_measures_and_name_the_reference():
    frame = curves(["ar"], value="difference").assign(reference="grpo", measure="accuracy")
    other = frame.iloc[:1].assign(measure="anytime", budget=pd.NA)
    figure = plot_difference(pd.concat([frame, other]))
    assert [t.name for t in figure.data] == ["ar 95 %", "ar"]
    assert len(figure.data[1].x) == 3
    assert figure.layout.title.text == "Paired difference of accuracy to grpo"
    assert figure.layout.shapes[0].y0 == 0 == figure.layout.shapes[0].y1
    assert figure.layout.yaxis.range[0] < 0  # zero is always in sight


def test_ticks_of_points_have_signs():
    told = point_ticks(-0.12, 0.21)
    assert told["ticktext"][:4] == ["−15", "−10", "−5", "0"]
    assert told["ticktext"][-1] == "+25"
    assert point_ticks(-0.004, 0.004)["ticktext"][-1].startswith("+0.")


# --- names ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_names_are_shown_and_do_nothing(name):
    figure = plot_accuracy(curves([name, "b"]))
    line = next(t for t in lines(figure) if t.name != "b")
    for text in (line.name, line.hovertemplate, *(a.text for a in figure.layout.annotations)):
        assert "<script" not in text and "$" not in text
        assert "\u202e" not in text and "\x1b" not in text
        inner = text.removeprefix("<b>").removesuffix("</b>")
        assert "<b>a" not in inner
    # a name never becomes a placeholder of the hover template: three are our own
    assert line.hovertemplate.count("%{") == 3


def test_safe_text_keeps_ordinary_names():
    assert safe_text("AR-uniform, 75 %") == "AR-uniform, 75 %"


def test_long_names_keep_the_end_that_tells_them_apart():
    ours, theirs = "AnytimeReasoner-uniform", "AnytimeReasoner-uniform at GRPO's wall time"
    assert label_lines(ours) == [ours]
    assert label_lines(theirs) == [ours, "at GRPO's wall time"]
    a, b = short_text("x" * 80 + " one"), short_text("x" * 80 + " two")
    assert a != b and a.endswith("one") and "…" in a


@pytest.mark.parametrize("size", [1, 24, 25, 26, 47, 48, 49, 200])
@pytest.mark.parametrize("letters", ["a", "ab ", "a-", "word and "])
def test_a_label_has_at_most_two_short_lines(size, letters):
    name = (letters * size)[:size].strip() or "a"
    told = label_lines(name)
    assert 1 <= len(told) <= 2
    assert all(0 < len(line) <= LABEL_CHARACTERS for line in told)
    if len(name) <= LABEL_CHARACTERS:
        assert told == [name]
    elif len(name) <= 2 * LABEL_CHARACTERS:  # nothing but a space is lost
        assert "".join(told).replace(" ", "") == name.replace(" ", "")


def test_blocks_that_fit_stay_and_others_share_the_way():
    assert apart([1, 5], [1, 1], 0, 10) == [1, 5]
    assert apart([5, 5], [1, 1], 0, 10) == pytest.approx([4.5, 5.5])
    assert apart([5, 5], [2, 4], 0, 10) == pytest.approx([3.5, 6.5])
    assert apart([9.9, 10], [1, 1], 0, 10) == pytest.approx([8.5, 9.5])  # not past the axis


def test_blocks_never_overlap_and_stay_inside():
    rng = np.random.default_rng(0)
    for _ in range(200):
        n = int(rng.integers(1, 8))
        wanted = np.sort(rng.random(n)).tolist()
        sizes = (0.12 * rng.random(n) + 0.01).tolist()
        centres = apart(wanted, sizes, 0.0, 1.0)
        edges = [(c - s / 2, c + s / 2) for c, s in zip(centres, sizes, strict=True)]
        assert edges[0][0] >= -1e-9 and edges[-1][1] <= 1 + 1e-9
        assert all(a[1] <= b[0] + 1e-9 for a, b in itertools.pairwise(edges))


# --- training and variance -----------------------------------------------------------------------


def training(runs, measures=("anytime accuracy", "final accuracy", "thinking length")):
    rows = [
        {"run": r, "step": s, "seconds": 2.0 * s, "measure": m, "value": 0.1 * s, "smooth": 0.1}
        for r in runs
        for m in measures
        for s in (1, 2, 3)
    ]
    return pd.DataFrame(rows)


def test_training_has_three_panels_with_raw_and_smooth_curves():
    figure = plot_training(training(["a", "b"]))
    assert [t.name for t in figure.data] == 3 * ["a, each step", "a"] + 3 * ["b, each step", "b"]
    assert [t.name for t in figure.data if t.showlegend] == ["a", "b"]
    titles = [a.text for a in figure.layout.annotations]
    assert titles == ["Anytime accuracy", "Final accuracy", "Thinking length (tokens)"]
    assert figure.layout.yaxis.tickformat == ".0%" and figure.layout.yaxis3.tickformat is None


def test_training_over_seconds_takes_that_column():
    figure = plot_training(training(["a"]), over="seconds")
    assert list(figure.data[0].x) == [2, 4, 6]
    assert figure.layout.xaxis.title.text == "Seconds of training"


def test_a_run_that_lacks_a_panel_is_still_in_the_legend():
    frame = training(["grpo", "ar"])
    frame = frame[(frame["run"] == "ar") | (frame["measure"] != "anytime accuracy")]
    figure = plot_training(frame)
    assert [t.name for t in figure.data if t.showlegend] == ["grpo", "ar"]
    assert [a.text for a in figure.layout.annotations][0] == "Anytime accuracy"
