"""A live figure that takes its colours from the page, and labelled controls."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from functools import wraps

import ipywidgets as widgets
from plotly.graph_objects import FigureWidget  # here, so that it is loaded before a view

from anytime_lab.plot_style import RunStyle, safe_text
from anytime_lab.widgets.html import STYLE, block

EDITS = ("relayout", "restyle", "update", "addTraces", "moveTraces", "deleteTraces")
LABEL = {"description_width": "initial"}
CLEAR = "rgba(0,0,0,0)"


class LiveFigure(FigureWidget):
    """A FigureWidget that is whole when it is first shown inside of another widget.

    plotly sends edits as messages, which are lost before a page has drawn the figure; it sends the
    whole only where the figure itself is displayed, not where a box around it is.
    """

    def _whole(self) -> None:
        if not self._view_count:  # a page that draws it later draws this
            self._widget_layout = deepcopy(self._layout_obj._props)
            self._widget_data = deepcopy(self._data)


def _then_whole(name: str):
    send = getattr(FigureWidget, name)

    @wraps(send)
    def sent(self, *args, **kwargs):
        send(self, *args, **kwargs)
        self._whole()

    return sent


for _edit in EDITS:
    setattr(LiveFigure, f"_send_{_edit}_msg", _then_whole(f"_send_{_edit}_msg"))


def live_figure(traces: Sequence[dict], height: int, title: str = "") -> LiveFigure:
    """An empty figure without a background of its own, whose traces are updated in place."""
    figure = LiveFigure(
        data=[{"type": "scatter", **trace} for trace in traces],
        layout={
            "template": "none",
            "height": height,
            "paper_bgcolor": CLEAR,
            "plot_bgcolor": CLEAR,
            "hovermode": "closest",
            "modebar": {
                "remove": ["sendChartToCloud", "lasso2d", "select2d"],
                "bgcolor": CLEAR,
                "color": "#888",
            },
            "margin": {"l": 64, "r": 24, "t": 72, "b": 56},
            "font": {"size": 13, "color": "#777"},  # the page's style sheet sets the final colour
            "legend": {
                "orientation": "h",
                "x": 0,
                "xanchor": "left",
                "y": 1.02,
                "yanchor": "bottom",
                "bgcolor": CLEAR,
            },
            "xaxis": {"gridcolor": "#8883", "zeroline": False, "automargin": True},
            "yaxis": {"gridcolor": "#8883", "zeroline": False, "automargin": True},
        },
    )
    if title:
        figure.layout.yaxis.title = safe_text(title)
    return figure


def framed(figure: FigureWidget) -> widgets.Box:
    """The figure in a box by which the style sheet finds it."""
    box = widgets.Box([figure], layout={"width": "100%", "overflow": "hidden"})
    box.add_class("anytime-lab-figure")
    return box


def style_sheet() -> widgets.HTML:
    """The views' style sheet; each view shows it once."""
    return widgets.HTML(STYLE, layout={"display": "none"})


def row(*controls: widgets.Widget) -> widgets.HBox:
    """Controls beside each other, wrapping on a narrow page."""
    return widgets.HBox(list(controls), layout={"flex_flow": "row wrap", "grid_gap": "4px 16px"})


def text(*parts: str, live: bool = False) -> widgets.HTML:
    """Finished HTML in the views' style."""
    return widgets.HTML(block(*parts, live=live), layout={"width": "100%"})


def line_traces(name: str, style: RunStyle) -> list[dict]:
    """A band and a line without data yet, for one run."""
    return [
        {
            "name": f"{safe_text(name)} 95 %",
            "legendgroup": name,
            "fill": "toself",
            "fillcolor": style.band,
            "line": {"width": 0},
            "mode": "lines",
            "showlegend": False,
            "hoverinfo": "skip",
        },
        {
            "name": safe_text(name),
            "legendgroup": name,
            "mode": "lines+markers",
            "line": {"color": style.colour, "dash": style.dash, "width": 2.4},
            "marker": {"symbol": style.marker, "size": 6},
        },
    ]
