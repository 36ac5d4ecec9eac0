"""How runs look in every figure: colours, dashes, markers, axis ticks, names at curves' ends."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd
import plotly.graph_objects as go

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7F7F7F")
DASHES = ("solid", "dash", "dashdot", "dot", "longdash", "longdashdot")
MARKERS = ("circle", "square", "diamond", "triangle-up", "cross", "x", "triangle-down", "star")
BAND_OPACITY = 0.16
LABEL_CHARACTERS = 24


@dataclass(frozen=True)
class RunStyle:
    """How one run is drawn."""

    colour: str
    dash: str
    marker: str

    @property
    def band(self) -> str:
        """The colour of the run's interval band."""
        r, g, b = (int(self.colour[i : i + 2], 16) for i in (1, 3, 5))
        return f"rgba({r},{g},{b},{BAND_OPACITY})"


def run_styles(runs: Sequence[str]) -> dict[str, RunStyle]:
    """A style for each run, by its place; colours, dashes and markers have different periods."""
    return {
        run: RunStyle(COLOURS[i % 7], DASHES[i % 6], MARKERS[i % 8]) for i, run in enumerate(runs)
    }


def safe_text(text: str) -> str:
    """Text that plotly shows as it is: no pseudo-HTML, no LaTeX."""
    return html.escape(str(text)).replace("$", "&#36;")


def short_text(name: str) -> str:
    name = str(name)
    cut = len(name) > LABEL_CHARACTERS
    return safe_text(name[: LABEL_CHARACTERS - 1] + "…" if cut else name)


def budget_ticks(budgets: Sequence[int], most: int = 12) -> dict:
    """The budgets themselves as ticks where they are few; else plotly's round numbers."""
    budgets = sorted(set(budgets))
    if len(budgets) > most:
        return {"tickformat": ",d"}
    return {"tickmode": "array", "tickvals": budgets, "tickformat": ",d"}


def log_ticks(budgets: Sequence[int], ratio: float = 1.5) -> dict:
    """Budgets far enough apart that their labels do not touch; the first and last among them."""
    ticks = [budgets[0]]
    for budget in budgets[1:]:
        if budget >= ticks[-1] * ratio:
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


def label_ends(
    figure: go.Figure, frame: pd.DataFrame, value: str, styles: dict[str, RunStyle]
) -> go.Figure:
    """Names each curve at its right end, pushed apart so that the names do not overlap."""
    if frame["run"].nunique() == 1 and (frame["run"] == "accuracy").all():
        return figure
    ends = frame.sort_values("budget").groupby("run", sort=False)[value].last().dropna()
    low, high = figure.layout.yaxis.range
    plot_pixels = figure.layout.height - figure.layout.margin.t - figure.layout.margin.b
    gap = 18 / plot_pixels * (high - low)
    places = _apart(ends.sort_values(), gap, low, high)
    longest = 0
    for run, y in places.items():
        text = short_text(run)
        longest = max(longest, len(html.unescape(text)))
        figure.add_annotation(
            x=1,
            xref="paper",
            xanchor="left",
            xshift=8,
            y=y,
            yanchor="middle",
            text=f"<b>{text}</b>",
            font={"color": styles[run].colour},
            hovertext=safe_text(run),
            showarrow=False,
        )
    figure.update_layout(margin={"r": 20 + round(7.8 * longest)})
    least, most = frame["budget"].min(), frame["budget"].max()  # curves end where names begin
    if figure.layout.xaxis.type == "log":
        least, most = math.log10(least), math.log10(most)
    room = 0.02 * (most - least or most)
    return figure.update_xaxes(range=[least - room, most + room])


def _apart(ends: pd.Series, gap: float, low: float, high: float) -> dict[str, float]:
    """Heights of the labels of sorted curve ends, at least `gap` apart and inside the axis."""
    clusters: list[tuple[list[str], float]] = []  # names from below, mean height
    for run, y in ends.items():
        clusters.append(([run], float(y)))
        while len(clusters) > 1:
            (below, mean_below), (above, mean_above) = clusters[-2:]
            if mean_above - mean_below >= gap * (len(below) + len(above)) / 2:
                break
            size = len(below) + len(above)
            mean = (mean_below * len(below) + mean_above * len(above)) / size
            reach = gap * (size - 1) / 2
            mean = min(max(mean, low + reach), high - reach)
            clusters[-2:] = [(below + above, mean)]
    return {
        run: mean + gap * (i - (len(names) - 1) / 2)
        for names, mean in clusters
        for i, run in enumerate(names)
    }
