"""Figures of a thinking that was asked: the spread of its answers, and its own anytime curve."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from anytime_lab.look.answer_data import (
    NO_GOLD,
    Asked,
    history,
    told_answer,
    told_probability,
)
from anytime_lab.look.plot_style import COLOURS, safe_text, short_text

RIGHT, WRONG, OTHER = COLOURS[2], COLOURS[1], COLOURS[0]
VERDICTS = {"right": (RIGHT, ""), "wrong": (WRONG, "/")}  # colour, and hatching beside it
BARS = 8  # distinct answers drawn; the rest are one bar
SHARE = [-0.03, 1.05]


def bar_trace(spread: pd.DataFrame) -> dict:
    """The distinct answers as bars, the most frequent on top.

    Args:
        spread: of Asked.spread.
    """
    shown = spread.head(BARS)
    rest = spread.iloc[BARS:]
    names = [short_text(told_answer(a), 28) for a in shown["answer"]]
    shares, verdicts = shown["share"].tolist(), shown["verdict"].tolist()
    words = [_bar_words(row) for row in shown.itertuples()]
    if len(rest):
        names.append(f"{len(rest)} other answers")
        shares.append(float(rest["share"].sum()))
        verdicts.append("")
        words.append(f"{shares[-1]:.0%}")
    # two answers may be alike in their first characters; places, not names, tell bars apart
    return {
        "type": "bar",
        "orientation": "h",
        "x": shares,
        "y": list(range(len(names))),
        "customdata": [[name] for name in names],
        "text": words,
        "textposition": "outside",
        "cliponaxis": False,
        "marker": _colours(verdicts),
        "name": "answers",
        "showlegend": False,
        "hovertemplate": "%{customdata[0]}: %{text}<extra></extra>",
    }


def _colours(verdicts: Sequence[str]) -> dict:
    """Colour and hatching of bars by their verdicts."""
    kinds = [VERDICTS.get(v, (OTHER, "")) for v in verdicts]
    return {
        "color": [colour for colour, _ in kinds],
        "pattern": {
            "shape": [hatching for _, hatching in kinds],
            "fillmode": "overlay",
            "fgcolor": "rgba(255,255,255,.5)",
            "fgopacity": 1,
            "solidity": 0.12,
        },
    }


def _bar_words(row) -> str:
    verdict = "" if row.verdict == NO_GOLD else f", {row.verdict}"
    told = told_probability(row.probability)
    probability = "" if told == "not told" else f", p {told}"
    return safe_text(f"{row.share:.0%}{verdict}{probability}")


def bar_axis(spread: pd.DataFrame) -> dict:
    """The axis that names the bars of `bar_trace`."""
    names = [row[0] for row in bar_trace(spread)["customdata"]] if len(spread) else []
    return {
        "tickmode": "array",
        "tickvals": list(range(len(names))),
        "ticktext": names,
        "range": [max(len(names), 3) - 0.5, -0.5],
    }


def live_asked(figure: go.Figure) -> None:
    """Makes a live figure of three traces ready: the curve on the left, the bars on the right."""
    figure.update_traces(xaxis="x2", yaxis="y2", selector={"type": "bar"})
    figure.update_layout(
        margin={"t": 48},
        xaxis={
            "domain": [0, 0.48],
            "title": "Thinking (tokens)",
            "tickformat": ",d",
            "rangemode": "tozero",
        },
        yaxis={"title": "Summaries", "tickformat": ".0%", "range": SHARE},
        xaxis2={
            "domain": [0.64, 1],
            "anchor": "y2",
            "title": "Summaries, by answer",
            "range": [0, 1.8],  # room for words beside a bar of 100 %
            "tickvals": [0, 0.5, 1],
            "tickformat": ".0%",
            "gridcolor": "#8883",
            "zeroline": False,
        },
        yaxis2={"anchor": "x2", "zeroline": False, "showgrid": False},
    )
    draw_asked(figure, [])


def draw_asked(figure: go.Figure, asked: Sequence[Asked]) -> None:
    """Shows these questions in a figure of `live_asked`."""
    spread = asked[-1].spread if asked else None
    bars = {"x": [], "y": [], "text": []} if spread is None else bar_trace(spread)
    axis = {"tickvals": [], "ticktext": []} if spread is None else bar_axis(spread)
    with figure.batch_update():
        for trace, new in zip(figure.data, [*history_traces(history(asked)), bars], strict=True):
            trace.update(new)
        figure.layout.yaxis2.update(axis)


def history_traces(points: pd.DataFrame) -> list[dict]:
    """The share of the leading answer at each point asked at, and of right summaries.

    Args:
        points: the frame of history(). Always two traces; the second is empty where nothing was
            graded.
    """
    tokens = points["tokens"].tolist()
    answers = [short_text(told_answer(a)) for a in points["answer"]]
    right = points["right"].tolist()
    told = ["" if r is None else (", right" if r else ", wrong") for r in right]
    graded = points[points["share_right"].notna()]
    lead = {
        "type": "scatter",
        "x": tokens,
        "y": points["share"].tolist(),
        "customdata": [[a + t] for a, t in zip(answers, told, strict=True)],
        "mode": "lines+markers",
        "name": "leading answer",
        "line": {"color": OTHER, "width": 2},
        "marker": {
            "size": 11,
            "color": [OTHER if r is None else (RIGHT if r else WRONG) for r in right],
            "symbol": ["circle" if r is None else ("circle" if r else "x") for r in right],
        },
        "hovertemplate": "%{x:,d} tokens: %{customdata[0]} (%{y:.0%} of summaries)<extra></extra>",
    }
    share = {
        "type": "scatter",
        "x": graded["tokens"].tolist(),
        "y": graded["share_right"].tolist(),
        "mode": "lines+markers",
        "name": "right summaries",
        "line": {"color": RIGHT, "width": 2, "dash": "dash"},
        "marker": {"size": 7, "symbol": "diamond-open", "color": RIGHT},
        "hovertemplate": "%{x:,d} tokens: %{y:.0%} of summaries right<extra></extra>",
    }
    return [lead, share]


def column_traces(asked: Sequence[Asked]) -> list[dict]:
    """The spread at each point as a column, its answers stacked, the most frequent below.

    Returns a trace for each place in the order of frequency.
    """
    spreads = {point.tokens: point.spread for point in asked}
    labels = [f"{tokens:,}" for tokens in spreads]
    traces = []
    for place in range(max(map(len, spreads.values()))):
        rows = [s.iloc[place] if place < len(s) else None for s in spreads.values()]
        names = [None if r is None else short_text(told_answer(r["answer"]), 28) for r in rows]
        verdicts = ["" if r is None else r["verdict"] for r in rows]
        shares = [0.0 if r is None else r["share"] for r in rows]
        words = ["" if r is None else _bar_words(r) for r in rows]
        wide = 1 / len(labels) > 0.12  # the answer fits into the column
        shown = [n if n and s >= 0.1 and wide else "" for n, s in zip(names, shares, strict=True)]
        traces.append(
            {
                "type": "bar",
                "x": labels,
                "y": shares,
                "customdata": [[n, w] for n, w in zip(names, words, strict=True)],
                "text": shown,
                "textposition": "inside",
                "textangle": 0,
                "insidetextanchor": "middle",
                "marker": {**_colours(verdicts), "line": {"color": "white", "width": 1.5}},
                "showlegend": False,
                "hovertemplate": "%{x} tokens: %{customdata[0]}: %{customdata[1]}<extra></extra>",
            }
        )
    return traces


def plot_asked(
    asked: Sequence[Asked], title: str = "", template: str = "plotly_white"
) -> go.Figure:
    """One thinking's own anytime curve, and the spread of its answers at each point.

    Args:
        asked: Questions put to the thinking, shortest first.
    """
    if not asked:
        raise ValueError("the thinking was not asked yet; there is nothing to draw.")
    figure = make_subplots(
        rows=1,
        cols=2,
        column_widths=[0.42, 0.58],
        horizontal_spacing=0.1,
        subplot_titles=["Asked along the thinking", "Spread of the answers"],
    )
    figure.add_traces(history_traces(history(asked)), rows=1, cols=1)
    columns = column_traces(asked)
    figure.add_traces(columns, rows=[1] * len(columns), cols=[2] * len(columns))
    figure.update_xaxes(
        title="Thinking (tokens)", tickformat=",d", rangemode="tozero", row=1, col=1
    )
    figure.update_yaxes(title="Summaries", tickformat=".0%", range=SHARE, row=1, col=1)
    figure.update_xaxes(type="category", row=1, col=2)
    figure.update_yaxes(tickformat=".0%", range=[0, 1.02], row=1, col=2)
    figure.update_layout(
        template=template,
        height=400,
        barmode="stack",
        bargap=0.12,
        title={"text": safe_text(title), "x": 0, "xref": "paper", "xanchor": "left"},
        hovermode="closest",
        modebar={"remove": ["sendChartToCloud", "lasso2d", "select2d"]},
        margin={"l": 64, "r": 24, "t": 84 if title else 48, "b": 92},
        font={"size": 13},
        uniformtext={"minsize": 9, "mode": "hide"},
        legend={"orientation": "h", "x": 0, "xanchor": "left", "y": -0.22, "yanchor": "top"},
    )
    return figure
