"""Traces and static figures of the training view: scores by budget, variance beside each other."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from anytime_lab.look.plot_style import BAND_OPACITY, RunStyle, budget_ticks, run_styles, safe_text
from anytime_lab.look.plots import BASELINE_NAMES

MOST = 1_500  # points of a line; more are thinned evenly, the last one always drawn
MEASURES = {"corr": "Correlation with the return", "ratio": "Variance left: Var[R−V] / Var[R]"}


def thinned(count: int) -> np.ndarray:
    """Which of `count` points are drawn."""
    step = -(-count // MOST)
    return np.arange(count - 1, -1, -step)[::-1]


def panel_traces(part: pd.DataFrame, over: str, measure: str) -> tuple[dict, dict]:
    """Data of the faint and of the strong line of one run in one panel."""
    part = part.iloc[thinned(len(part))] if len(part) else part
    x = part[over].to_numpy(float)
    shown = "%{y:.1%}" if "accuracy" in measure else "%{y:.1f} tokens"
    return (
        {"x": x, "y": part["value"].to_numpy(float)},
        {"x": x, "y": part["smooth"].to_numpy(float), "hovertemplate": shown},
    )


def panel_lines(name: str, style: RunStyle, axis: int, first: bool) -> list[dict]:
    """The faint and the strong line of one run in panel `axis`, without data yet."""
    where = {"xaxis": f"x{axis or ''}", "yaxis": f"y{axis or ''}"}
    common = {"mode": "lines", "legendgroup": safe_text(name), "x": [], "y": [], **where}
    return [
        {
            **common,
            "name": f"{safe_text(name)}, each step",
            "line": {"color": style.band.replace(str(BAND_OPACITY), "0.3"), "width": 1},
            "hoverinfo": "skip",
            "showlegend": False,
        },
        {
            **common,
            "name": safe_text(name),
            "line": {"color": style.colour, "dash": style.dash, "width": 2.2},
            "showlegend": first,
        },
    ]


def score_traces(scores: Mapping[str, pd.DataFrame], names: list[str]) -> list[dict]:
    """Per run, the latest score at each budget (mean of the window): one trace a run."""
    traces = []
    for name, style in run_styles(names).items():
        frame = scores.get(name)
        last = (
            frame.groupby("budget", as_index=False).last()
            if frame is not None and len(frame)
            else pd.DataFrame({"budget": [], "smooth": []})
        )
        traces.append(
            {
                "type": "scatter",
                "x": last["budget"].to_numpy(float),
                "y": last["smooth"].to_numpy(float),
                "mode": "lines+markers",
                "name": safe_text(name),
                "line": {"color": style.colour, "dash": style.dash, "width": 2.2},
                "marker": {"symbol": style.marker, "size": 8},
                "hovertemplate": f"{safe_text(name)} at %{{x:,d}} tokens: %{{y:.1%}}"
                "<extra></extra>",
            }
        )
    return traces


def history_traces(frame: pd.DataFrame, most: int) -> list[dict]:
    """One run's score at each budget over its updates: always `most` traces."""
    budgets = sorted(set(frame["budget"]))[:most]
    traces = []
    for budget, style in run_styles(budgets).items():
        part = frame[frame["budget"] == budget]
        part = part.iloc[thinned(len(part))]
        traces.append(
            {
                "type": "scatter",
                "x": part["step"].to_numpy(float),
                "y": part["smooth"].to_numpy(float),
                "mode": "lines",
                "name": f"{budget:,} tokens",
                "line": {"color": style.colour, "dash": style.dash, "width": 2.2},
                "hovertemplate": f"{budget:,} tokens: %{{y:.1%}}<extra></extra>",
                "visible": True,
            }
        )
    return traces + [{"x": [], "y": [], "visible": False}] * (most - len(budgets))


def variance_traces(frame: pd.DataFrame) -> list[dict]:
    """Six traces of one run: three baselines in two panels; empty where it has none."""
    traces = []
    for measure, axis in zip(MEASURES, ("", "2"), strict=True):
        for baseline, style in run_styles(list(BASELINE_NAMES)).items():
            part = frame[(frame["baseline"] == baseline) & (frame["measure"] == measure)]
            part = part.sort_values("budget")
            label = BASELINE_NAMES[baseline]
            traces.append(
                {
                    "type": "scatter",
                    "x": part["budget"].to_numpy(float),
                    "y": part["value"].to_numpy(float),
                    "xaxis": f"x{axis}",
                    "yaxis": f"y{axis}",
                    "mode": "lines+markers",
                    "name": label,
                    "legendgroup": baseline,
                    "showlegend": not axis,
                    "line": {"color": style.colour, "dash": style.dash, "width": 2.2},
                    "marker": {"symbol": style.marker, "size": 8},
                    "hovertemplate": f"{label} at %{{x:,d}} tokens: %{{y:.2f}}<extra></extra>",
                }
            )
    return traces


def plot_scores(
    scores: Mapping[str, pd.DataFrame],
    names: list[str],
    window: int,
    template: str = "plotly_white",
) -> go.Figure:
    """Score of the rollouts at each budget, mean of the last updates, all runs.

    Args:
        scores: run → frame of score_frame().
        names: all runs in order, which gives their colours.
        window: updates that the mean is over, for the title.
    """
    figure = go.Figure(score_traces(scores, names))
    budgets = [b for frame in scores.values() for b in frame["budget"]]
    _layout(figure, f"Score by budget, mean of the last {window} updates", template, 380)
    figure.update_xaxes(title="Thinking budget (tokens)", **budget_ticks(budgets))
    return figure.update_yaxes(title="Score of the rollouts", tickformat=".0%")


def plot_variances(
    variances: Mapping[str, pd.DataFrame], last: int, template: str = "plotly_white"
) -> go.Figure:
    """The variance figure of several runs, one above the other.

    Args:
        variances: run → frame of variance_frame().
        last: updates that the means are over, for the title.
    """
    titles = [f"{safe_text(run)}: {word}" for run in variances for word in MEASURES.values()]
    height = 172 + 300 * len(variances)
    figure = make_subplots(
        rows=len(variances), cols=2, subplot_titles=titles, horizontal_spacing=0.1,
        vertical_spacing=min(100 / height, 0.9 / max(len(variances) - 1, 1)),
    )  # fmt: skip
    for place, frame in enumerate(variances.values(), start=1):
        for number, trace in enumerate(variance_traces(frame)):
            kept = {k: v for k, v in trace.items() if k not in ("xaxis", "yaxis")}
            kept["showlegend"] = place == 1 and number < 3
            figure.add_trace(kept, row=place, col=1 + number // 3)
        figure.add_hline(y=1, row=place, col=2, line={"color": "#888", "width": 1.5}, layer="below")
    _layout(figure, f"Mean of the last {last} updates", template, height)
    figure.update_xaxes(title="Thinking budget (tokens)", tickformat=",d")
    return figure.update_layout(margin={"t": 116}, legend={"y": 1 + 30 / height})


def _layout(figure: go.Figure, title: str, template: str, height: int) -> None:
    figure.update_layout(
        template=template,
        title={"text": title, "x": 0, "xref": "paper", "xanchor": "left"},
        height=height,
        hovermode="closest",
        modebar={"remove": ["sendChartToCloud", "lasso2d", "select2d"]},
        margin={"l": 64, "r": 24, "t": 84, "b": 56},
        font={"size": 13},
        legend={"orientation": "h", "x": 0, "xanchor": "left", "y": 1.06, "yanchor": "bottom"},
    )
