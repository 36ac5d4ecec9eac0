"""How everything is drawn: colours, names at line ends, ticks, and a frame as LaTeX."""

import html
import textwrap
from collections.abc import Mapping, Sequence
from itertools import cycle
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from anytime_lab.page import plain

# Okabe–Ito; its orange and sky are darkened, so that every line has 3:1 on white and on black.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#C86FA0", "#B37A00", "#2B93C8", "#7F7F7F")
GLYPHS = "●■◆▲✚✖▼★"  # of MARKERS, for text
QUIET = "#888"  # of lines that are no data: zero, an end, a diagonal
DASHES = ("solid", "dash", "dashdot", "dot", "longdash", "longdashdot")
MARKERS = ("circle", "square", "diamond", "triangle-up", "cross", "x", "triangle-down", "star")
BAND_OPACITY = 0.16
LABEL_CHARACTERS = 24
LINE_PIXELS = 16


class RunStyle(NamedTuple):
    """How one run is drawn; glyph is its marker as a character."""

    colour: str
    dash: str
    marker: str
    glyph: str = ""


def faded(colour: str, opacity: float) -> str:
    """A colour `#rrggbb` that lets the page through."""
    shade = ",".join(str(int(colour[i : i + 2], 16)) for i in (1, 3, 5))
    return f"rgba({shade},{opacity:.3g})"


def run_styles(runs: Sequence[str]) -> dict[str, RunStyle]:
    """A style for each run, by its place; colours, dashes and markers have different periods."""
    styles = map(RunStyle, *map(cycle, (COLOURS, DASHES, MARKERS, GLYPHS)))
    return dict(zip(runs, styles, strict=False))


def safe_text(text: str) -> str:
    """Text that plotly shows as it is: no pseudo-HTML, no LaTeX, no hover template, no controls."""
    return html.escape(plain(text)).replace("$", "&#36;").replace("%{", "&#37;{")


def short_text(name: str, limit: int = 2 * LABEL_CHARACTERS) -> str:
    """A name in one line, safe for plotly; a long one keeps its beginning and its end."""
    return safe_text(_shortened(name, limit))


def _shortened(name: str, limit: int) -> str:
    # the middle goes: names of runs often differ in their last words only
    name = " ".join(plain(name).split())
    head = (limit - 1) // 2
    return name if len(name) <= limit else name[:head] + "…" + name[head + 1 - limit :]


def label_lines(name: str) -> list[str]:
    """A name as one or two lines of at most LABEL_CHARACTERS, as plain text."""
    lines = textwrap.wrap(_shortened(name, 2 * LABEL_CHARACTERS), LABEL_CHARACTERS)
    if len(lines) > 2:  # names of runs often differ in their last words only
        lines = [lines[0], "…" + _shortened(name, len(name))[1 - LABEL_CHARACTERS :]]
    return lines or [""]


def budget_ticks(budgets: Sequence[int], most: int = 12) -> dict:
    """The budgets themselves as ticks where they are few; else plotly's round numbers."""
    ticks = sorted(set(budgets))
    return {"tickformat": ",d", **({"tickvals": ticks} if len(ticks) <= most else {})}


def log_ticks(budgets: Sequence[int]) -> dict:
    """Budgets far enough apart that their labels do not touch; the first and last among them."""
    ticks = [budgets[0]]
    for budget in budgets[1:]:
        if budget >= ticks[-1] * 1.5:
            ticks.append(budget)
    if ticks[-1] != budgets[-1]:
        ticks[max(len(ticks) - 1, 1) :] = [budgets[-1]]
    return {"tickmode": "array", "tickvals": ticks, "tickformat": ",d", "tickangle": 0}


def point_ticks(low: float, high: float) -> dict:
    """Ticks of a difference in percentage points, with their sign."""
    steps = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5)
    step = next((s for s in steps if (high - low) / s <= 9), 0.5)
    ticks = [k * step for k in range(int(low // step), int(high // step) + 2)]
    digits = 1 if step < 0.01 else 0
    texts = [f"{100 * t:+.{digits}f}" if abs(t) > step / 2 else "0" for t in ticks]
    texts = [text.replace("-", "−") for text in texts]
    return {"tickmode": "array", "tickvals": ticks, "ticktext": texts}


def axis_span(values: pd.DataFrame, least: float, greatest: float) -> tuple[float, float]:
    """The range of an axis: all values with a margin, not far past what is possible."""
    low, high = float(values.min().min()), float(values.max().max())
    margin = 0.06 * (high - low) or 0.02
    return max(low - margin, least - margin / 2), min(high + margin, greatest + margin / 2)


def end_names(
    ends: pd.Series, styles: Mapping[str, RunStyle], span: tuple[float, float], pixels: float
) -> list[dict]:
    """Annotations that name each curve at its right end, pushed apart so that none overlap.

    Args:
        ends: the last value of each run, by its name.
        span: of the axis.
        pixels: its height.
    """
    ends = ends.dropna().sort_values()
    low, high = span
    lines = {run: label_lines(run) for run in ends.index}
    sizes = [(2 + LINE_PIXELS * len(lines[run])) / pixels * (high - low) for run in ends.index]
    return [
        {
            "x": 1, "xref": "paper", "xanchor": "left", "xshift": 8, "align": "left",
            "y": y, "yref": "y", "yanchor": "middle", "showarrow": False,
            "text": f'<span style="color:{styles[run].colour}">{styles[run].glyph}</span> '
            + "<br>".join(safe_text(line) for line in lines[run]),
            "hovertext": safe_text(run),
        }
        for run, y in zip(ends.index, apart(ends.tolist(), sizes, low, high), strict=True)
    ]  # fmt: skip


def apart(wanted: Sequence[float], sizes: Sequence[float], low: float, high: float) -> list[float]:
    """Centres near the wanted ones for blocks of the given sizes that must not overlap.

    Args:
        wanted: centres, increasing.
        sizes: height of each block, in the same unit.
        low, high: what the blocks stay inside, if they fit.
    """
    sizes = np.asarray(sizes, dtype=float)
    below = np.cumsum(sizes) - sizes  # heights of the blocks before
    edges = np.maximum(np.asarray(wanted) - sizes / 2, low) - below
    edges = np.maximum.accumulate(edges)  # each above the one before
    edges = np.minimum(edges, high - sizes - below)
    edges = np.minimum.accumulate(edges[::-1])[::-1]  # and below the one after
    return (edges + below + sizes / 2).tolist()


def base(figure: go.Figure, height: int, title: str = "", **layout: Any) -> go.Figure:
    """What all figures share: size, margins, a heading, a legend above; `layout` goes last."""
    heading = {"text": safe_text(title), "x": 0, "xref": "paper", "xanchor": "left"}
    return figure.update_layout(
        template="plotly_white",
        title=heading if title else None,
        height=height,
        hovermode="closest",
        modebar={"remove": ["sendChartToCloud", "lasso2d", "select2d"]},  # nothing leaves the page
        margin={"l": 64, "r": 24, "t": 84 if title else 40, "b": 56},
        font={"size": 13},
        legend={"orientation": "h", "x": 0, "xanchor": "left", "y": 1.02, "yanchor": "bottom"},
    ).update_layout(layout)


def told_figure(sentence: str) -> go.Figure:
    """A figure that says why there is nothing to draw, where a notebook shows a figure."""
    lines = "<br>".join(safe_text(line) for line in textwrap.wrap(plain(sentence)[:600], 90))
    unseen = {"xaxis_visible": False, "yaxis_visible": False}
    figure = base(go.Figure(), 160, margin={"t": 24, "b": 24}, **unseen)
    return figure.add_annotation(
        text=lines, showarrow=False, font={"size": 14}, align="left",
        x=0, xanchor="left", xref="paper", y=0.5, yref="paper",
    )  # fmt: skip


def latex_table(frame: pd.DataFrame) -> str:
    """The frame as a booktabs tabular; numbers rounded, text escaped, missing values a dash."""
    numbers = dict.fromkeys(frame.select_dtypes("float"), "${:.3f}$".format)
    styled = frame.style.format(numbers, na_rep="--", escape="latex").hide(axis="index")
    return styled.format_index(escape="latex", axis=1).to_latex(hrules=True)
