"""The live figure of budget curves: traces are made once and filled in place."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial

import pandas as pd

from anytime_lab.look.canvas import line_traces, live_figure
from anytime_lab.look.figures import band, published_traces
from anytime_lab.look.plot_style import axis_span, budget_ticks, log_ticks, run_styles, short_text
from anytime_lab.read.curves import ProblemTable, mean_curve

LINE = {"type": "line", "line": {"color": "#888", "width": 1.5, "dash": "dot"}}
CURSOR = {**LINE, "xref": "x", "yref": "paper", "x0": 0, "x1": 0, "y0": 0, "y1": 1}
LEVEL = {**LINE, "xref": "paper", "yref": "y", "x0": 0, "x1": 1, "y0": 0, "y1": 0}


class CurveFigure:
    """A figure with a band and a line per run, a cursor, and room for published values.

    Args:
        on_point: called with the run's name and the budget of a point that was clicked.
    """

    def __init__(self, on_point: Callable[[str, int], None]) -> None:
        self.live = live_figure([], 440, "Accuracy")
        self.live.update_xaxes(title="Thinking budget (tokens)", hoverformat=",d")
        self.live.update_yaxes(tickformat=".0%")
        self.live.update_layout(hovermode="x unified", shapes=[CURSOR, LEVEL])
        self._on_point = on_point
        self._names: list[str] = []
        self._slots: list[tuple] = []  # a band and a line for each run shown
        self._published: tuple = ()
        self._span = (0.0, 1.0)

    def draw(self, shown: Mapping[str, ProblemTable], names: Sequence[str]) -> None:
        """Fills the traces with the runs shown; `names` are all runs, which gives the colours."""
        self._names = list(shown)
        styles = run_styles(names)
        while len(self._slots) < len(shown):
            before = len(self.live.data)
            self.live.add_traces(line_traces("", styles[names[0]]))
            fill, line = self.live.data[before:]
            line.on_click(partial(self._clicked, len(self._slots)))
            self._slots.append((fill, line))
        parts = {name: mean_curve(table, "accuracy") for name, table in shown.items()}
        with self.live.batch_update():
            for (fill, line), (name, part) in zip(self._slots, parts.items(), strict=False):
                style = styles[name]
                fill.update(band(part, "budget", style, name) | {"visible": True})
                line.update(line_traces(name, style)[1] | {"visible": True})
                line.x, line.y = part["budget"].tolist(), part["accuracy"].tolist()
                line.customdata = (100 * part[["accuracy", "low", "high"]]).to_numpy().tolist()
                line.hovertemplate = (
                    f"{short_text(name)}: <b>%{{customdata[0]:.1f}}%</b> "
                    "[%{customdata[1]:.1f}, %{customdata[2]:.1f}]<extra></extra>"
                )
            for pair in self._slots[len(shown) :]:
                for trace in pair:
                    trace.visible = False
            if parts:
                values = pd.concat(parts.values())[["accuracy", "low", "high"]]
                self._span = axis_span(values, 0.0, 1.0)
                self.live.layout.yaxis.range = self._span

    def set_axis(self, budgets: Sequence[int], log: bool) -> None:
        """A linear or logarithmic budget axis with ticks at the budgets."""
        ticks = {"tickangle": None, "tickmode": "auto", **budget_ticks(budgets)}
        if log:
            ticks = log_ticks(budgets)
        self.live.update_xaxes(type="log" if log else "linear", autorange=True, **ticks)

    def overlay(self, published: pd.DataFrame | None, names: Sequence[str]) -> None:
        """Shows a benchmark's published values, or none."""
        told = [] if published is None else published_traces(published, names)
        if told and not self._published:
            before = len(self.live.data)
            self.live.add_traces(told)
            self._published = self.live.data[before:]
        low, high = self._span
        with self.live.batch_update():
            for trace in self._published:
                trace.visible = bool(told)
            for trace, new in zip(self._published, told, strict=False):
                trace.update(new)
            if told:
                values = published[["final", "anytime"]]
                low = min(low, values.min().min() - 0.02)
                high = max(high, values.max().max() + 0.02)
            self.live.layout.yaxis.range = (low, high)

    def set_cursor(self, budget: int, level: float, visible: bool) -> None:
        """Moves the line at the budget and that at the accuracy wanted."""
        with self.live.batch_update():
            cursor, reach = self.live.layout.shapes
            cursor.update(x0=budget, x1=budget, visible=visible)
            reach.update(y0=level, y1=level, visible=visible)

    def _clicked(self, slot: int, _trace, points, _state) -> None:
        if points.xs and slot < len(self._names):
            self._on_point(self._names[slot], round(points.xs[0]))
