"""Live figures that take colours and width from the page, and labelled controls."""

from __future__ import annotations

from collections.abc import Sequence

import anywidget
import ipywidgets as widgets

from anytime_lab.look.live import LiveFigure
from anytime_lab.look.plot_style import RunStyle, safe_text
from anytime_lab.page import STYLE, block

LABEL = {"description_width": "initial"}
CLEAR = "rgba(0,0,0,0)"
_ESM = """
const PLAY = ["Play or pause", "Back to the beginning", "Repeat"];
let count = 0;
function name(view) {  // sliders and play buttons have no name for a screen reader of their own
  for (const handle of view.querySelectorAll(".noUi-handle")) {
    const slider = handle.closest(".widget-inline-hbox");
    const [label, value] = [".widget-label", ".widget-readout"].map((c) => slider.querySelector(c));
    if (label) handle.setAttribute("aria-label", label.textContent);
    if (!value) continue;
    value.id ||= `anytime-lab-value-${count++}`;
    handle.setAttribute("aria-describedby", value.id);
  }
  for (const play of view.querySelectorAll(".widget-play"))
    play.querySelectorAll("button").forEach((button, i) => {
      button.title = PLAY[i];
      button.setAttribute("aria-label", PLAY[i]);
    });
}
function toEnd(event) {  // a slider's own End goes to the end of the range that it began with
  const handle = event.target;
  if (event.key !== "End" || !handle.matches(".noUi-handle")) return;
  handle.closest(".noUi-target").noUiSlider.set(Number(handle.getAttribute("aria-valuemax")));
  event.preventDefault();
  event.stopPropagation();
}
function render({ el }) {
  let view = null, gone = false;
  const keep = ({ target }) => {
    name(view);
    if (target.matches("select, .noUi-handle")) target.dataset.lmSuppressShortcuts = "true"; };
  const begin = () => {
    view = el.closest(".widget-vbox");
    if (view) {
      view.classList.add("anytime-lab-view");
      view.addEventListener("focusin", keep);
      view.addEventListener("keydown", toEnd, true);
      setTimeout(() => name(view), 500);  // when its controls are there
    } else if (!gone) requestAnimationFrame(begin);
  };
  begin();
  return () => {
    gone = true;
    view?.removeEventListener("focusin", keep);
    view?.removeEventListener("keydown", toEnd, true);
  };
}
export default { render };
"""


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
            "margin": {"l": 64, "r": 24, "t": 48, "b": 56},
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


def framed(figure: LiveFigure) -> widgets.Box:
    """The figure in a box by which the style sheet finds it, as wide as the page."""
    box = widgets.Box([figure], layout={"width": "100%", "height": f"{figure.layout.height}px"})
    box.add_class("anytime-lab-figure")
    return box


class StyleSheet(anywidget.AnyWidget):
    """The look of a view, and its keys: JupyterLab takes the arrow keys of lists for its own."""

    _esm = _ESM
    _css = STYLE


def style_sheet() -> StyleSheet:
    """The views' style sheet; each view shows it once."""
    return StyleSheet(layout={"display": "none"})


def row(*controls: widgets.Widget) -> widgets.HBox:
    """Controls beside each other, wrapping on a narrow page."""
    return widgets.HBox(list(controls), layout={"flex_flow": "row wrap", "grid_gap": "4px 16px"})


def text(*parts: str, live: bool = False) -> widgets.HTML:
    """Finished HTML in the views' style."""
    return widgets.HTML(block(*parts, live=live), layout={"width": "auto"})


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
