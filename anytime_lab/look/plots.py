"""Tidy frames → plotly figures. A plot never reads a file, never averages, never shows.

Runs are told apart by Okabe–Ito colour, dash and marker together, in the order in which they are
named, so that a run looks the same in every figure that is given the same `runs`.
"""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from anytime_lab.look.plot_style import (
    BAND_OPACITY,
    axis_span,
    budget_ticks,
    label_ends,
    log_ticks,
    point_ticks,
    run_styles,
    safe_text,
    short_text,
)

BASELINE_NAMES = {"progress": "progress", "group": "group", "brpo": "BRPO"}


def plot_accuracy(
    curves: pd.DataFrame,
    runs: Sequence[str] | None = None,
    log_budget: bool = False,
    title: str = "Accuracy by thinking budget",
    template: str = "plotly_white",
) -> go.Figure:
    """Accuracy against the thinking budget with 95 % bands, each curve named at its end.

    Args:
        curves: columns budget (tokens), accuracy, low, high, and run where there are several.
        runs: all runs of the study in order, which gives their colours; those in `curves` if None.
        log_budget: logarithmic budget axis.

    Returns traces named "RUN 95 %" (bands) and RUN (lines).
    """
    curves = _with_runs(curves, ["budget", "accuracy", "low", "high"])
    figure = _curves_figure(curves, "accuracy", runs, title, template, log_budget)
    low, high = axis_span(curves[["accuracy", "low", "high"]], 0.0, 1.0)
    figure.update_yaxes(title="Accuracy", tickformat=".0%", range=[low, high])
    return label_ends(figure, curves, "accuracy", run_styles(_order(curves, runs)))


def plot_difference(
    differences: pd.DataFrame,
    runs: Sequence[str] | None = None,
    log_budget: bool = False,
    title: str | None = None,
    template: str = "plotly_white",
) -> go.Figure:
    """Paired difference of accuracy to a reference run, with 95 % bands and a line at zero.

    Args:
        differences: columns budget, difference, low, high; run, reference, measure where known
            (rows of other measures than "accuracy" are left out).
        runs, log_budget: as `plot_accuracy`.
    """
    if "measure" in differences:
        differences = differences[differences["measure"] == "accuracy"]
    frame = _with_runs(differences, ["budget", "difference", "low", "high"])
    reference = frame["reference"].iloc[0] if "reference" in frame else None
    if title is None:
        title = "Paired difference of accuracy" + (
            f" to {short_text(reference)}" if reference else ""
        )
    figure = _curves_figure(frame, "difference", runs, title, template, log_budget, signed=True)
    figure.add_hline(y=0, line={"color": "#888", "width": 1.5, "dash": "solid"}, layer="below")
    values = frame[["difference", "low", "high"]].assign(zero=0.0)
    low, high = axis_span(values, -1.0, 1.0)
    figure.update_yaxes(
        title="Difference (percentage points)",
        range=[low, high],
        zeroline=False,
        **point_ticks(low, high),
    )
    return label_ends(figure, frame, "difference", run_styles(_order(frame, runs)))


def plot_training(
    training: pd.DataFrame,
    runs: Sequence[str] | None = None,
    over: str = "step",
    template: str = "plotly_white",
) -> go.Figure:
    """The paper's three panels: anytime accuracy, final accuracy and thinking length.

    Args:
        training: columns run, step, measure, value, smooth (the frame of training_frame()): the
            value is drawn faint, its running mean strong.
        runs: as `plot_accuracy`.
        over: the column on the x axis, "step" or "seconds".
    """
    frame = _with_runs(training, [over, "measure", "value", "smooth"])
    measures = sorted(set(frame["measure"]))  # whichever run comes first, and the paper's order
    named = set()
    figure = make_subplots(
        rows=1,
        cols=len(measures),
        subplot_titles=[
            m.capitalize() + ("" if "accuracy" in m else " (tokens)") for m in measures
        ],
        horizontal_spacing=0.08,
    )
    for run, style in run_styles(_order(frame, runs)).items():
        for column, measure in enumerate(measures, start=1):
            part = frame[(frame["run"] == run) & (frame["measure"] == measure)].sort_values(over)
            if not len(part):
                continue
            shown = "%{y:.1%}" if "accuracy" in measure else "%{y:.1f} tokens"
            common = {"x": part[over].tolist(), "mode": "lines", "legendgroup": safe_text(run)}
            figure.add_scatter(
                y=part["value"].tolist(),
                line={"color": style.band.replace(str(BAND_OPACITY), "0.3"), "width": 1},
                name=f"{safe_text(run)}, each step",
                hoverinfo="skip",
                showlegend=False,
                **common,
                row=1,
                col=column,
            )
            figure.add_scatter(
                y=part["smooth"].tolist(),
                line={"color": style.colour, "dash": style.dash, "width": 2.2},
                name=safe_text(run),
                showlegend=run not in named,
                hovertemplate=f"{short_text(run)}: {shown}<extra></extra>",
                **common,
                row=1,
                col=column,
            )
            named.add(run)
    _layout(figure, None, template, height=340)
    figure.update_xaxes(title="Update" if over == "step" else "Seconds of training")
    for column, measure in enumerate(measures, start=1):
        if "accuracy" not in measure:
            continue
        values = frame.loc[frame["measure"] == measure, ["value", "smooth"]]
        span = axis_span(values, 0.0, 1.0)
        figure.update_yaxes(tickformat=".0%", range=span, row=1, col=column)
    return _legend_above(figure, top=76)


def plot_variance(variance: pd.DataFrame, template: str = "plotly_white") -> go.Figure:
    """The variance figure: corr(V, R) and Var[R−V]/Var[R] per budget for the three baselines.

    Args:
        variance: columns budget, baseline, measure ("corr" or "ratio"), value.
    """
    _check(variance, ["budget", "baseline", "measure", "value"])
    panels = {"corr": "Correlation with the return", "ratio": "Variance left: Var[R−V] / Var[R]"}
    figure = make_subplots(
        rows=1, cols=2, subplot_titles=list(panels.values()), horizontal_spacing=0.1
    )
    for baseline, style in run_styles(list(dict.fromkeys(variance["baseline"]))).items():
        for column, measure in enumerate(panels, start=1):
            part = variance[(variance["baseline"] == baseline) & (variance["measure"] == measure)]
            part = part.sort_values("budget")
            label = BASELINE_NAMES.get(baseline, baseline)
            figure.add_scatter(
                x=part["budget"].tolist(),
                y=part["value"].tolist(),
                mode="lines+markers",
                name=safe_text(label),
                legendgroup=baseline,
                showlegend=column == 1,
                line={"color": style.colour, "dash": style.dash, "width": 2.2},
                marker={"symbol": style.marker, "size": 8},
                hovertemplate=f"{safe_text(label)}: %{{y:.2f}}<extra></extra>",
                row=1,
                col=column,
            )
    _layout(figure, None, template, height=360)
    figure.update_xaxes(
        title="Thinking budget (tokens)", **budget_ticks(variance["budget"], most=8)
    )
    figure.add_hline(y=1, row=1, col=2, line={"color": "#888", "width": 1.5}, layer="below")
    return _legend_above(figure, top=76)


# --- parts ---------------------------------------------------------------------------------------


def _check(frame: pd.DataFrame, columns: Sequence[str]) -> None:
    if missing := [c for c in columns if c not in frame]:
        raise ValueError(f"the frame lacks the columns {missing}; it has {list(frame.columns)}.")
    if not len(frame):
        raise ValueError("the frame is empty; there is nothing to draw.")


def _with_runs(frame: pd.DataFrame, columns: Sequence[str]) -> pd.DataFrame:
    _check(frame, columns)
    return frame if "run" in frame else frame.assign(run="accuracy")


def _order(frame: pd.DataFrame, runs: Sequence[str] | None) -> list[str]:
    found = list(dict.fromkeys(frame["run"]))
    if runs is None:
        return found
    if missing := [run for run in found if run not in runs]:
        raise ValueError(f"the frame holds runs that `runs` does not name: {missing}.")
    return list(runs)


def _curves_figure(
    frame: pd.DataFrame,
    value: str,
    runs: Sequence[str] | None,
    title: str | None,
    template: str,
    log_budget: bool,
    signed: bool = False,
) -> go.Figure:
    """Bands below, lines with markers above, budget on x."""
    figure = go.Figure()
    parts = {run: part.sort_values("budget") for run, part in frame.groupby("run", sort=False)}
    styles = {run: style for run, style in run_styles(_order(frame, runs)).items() if run in parts}
    for run, style in styles.items():
        part = parts[run].dropna(subset=["low", "high"])
        figure.add_scatter(
            x=[*part["budget"], *part["budget"][::-1]],
            y=[*part["high"], *part["low"][::-1]],
            fill="toself",
            fillcolor=style.band,
            line={"width": 0},
            mode="lines",
            name=f"{safe_text(run)} 95 %",
            legendgroup=safe_text(run),
            showlegend=False,
            hoverinfo="skip",
        )
    sign = "+" if signed else ""
    unit = " points" if signed else "%"
    for run, style in styles.items():
        part = parts[run]
        in_percent = (100 * part[["low", "high"]]).to_numpy()
        told = f"%{{customdata[2]:{sign}.1f}}{unit}"
        figure.add_scatter(
            x=part["budget"].tolist(),
            y=part[value].tolist(),
            customdata=[
                [*bounds, 100 * v] for bounds, v in zip(in_percent, part[value], strict=True)
            ],
            mode="lines+markers",
            name=safe_text(run),
            legendgroup=safe_text(run),
            showlegend=False,
            line={"color": style.colour, "dash": style.dash, "width": 2.4},
            marker={"symbol": style.marker, "size": 7 if len(part) <= 16 else 5},
            hovertemplate=f"{short_text(run)}: <b>{told}</b> "
            f"[%{{customdata[0]:{sign}.1f}}, %{{customdata[1]:{sign}.1f}}]<extra></extra>",
        )
    _layout(figure, title, template, height=440)
    figure.update_layout(hoverdistance=-1)  # the nearest budget is read wherever the pointer is
    budgets = sorted(set(frame["budget"]))
    if log_budget:
        figure.update_xaxes(type="log", **log_ticks(budgets))
    else:
        figure.update_xaxes(**budget_ticks(budgets))
    figure.update_xaxes(
        title="Thinking budget (tokens)",
        hoverformat=",d",
        unifiedhovertitle={"text": "%{x} tokens of thinking"},
    )
    return figure


def _layout(figure: go.Figure, title: str | None, template: str, height: int) -> None:
    figure.update_layout(
        template=template,
        title={"text": title, "x": 0, "xref": "paper", "xanchor": "left"} if title else None,
        height=height,
        hovermode="x unified",
        modebar={"remove": ["sendChartToCloud", "lasso2d", "select2d"]},  # nothing leaves the page
        margin={"l": 64, "r": 24, "t": 56 if title else 36, "b": 56},
        font={"size": 13},
    )


def _legend_above(figure: go.Figure, top: int) -> go.Figure:
    figure.update_layout(
        margin={"t": top},
        legend={"orientation": "h", "x": 0, "xanchor": "left", "y": 1.13, "yanchor": "bottom"},
    )
    return figure
