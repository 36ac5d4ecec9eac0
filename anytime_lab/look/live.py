"""Live figures that take colours and width from the page, and labelled controls."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from functools import cache, wraps

import anywidget
import ipywidgets as widgets
import traitlets
from plotly.graph_objects import FigureWidget

from anytime_lab.look.style import RunStyle, safe_text
from anytime_lab.page import STYLE, block

EDITS = ("relayout", "restyle", "update", "addTraces", "moveTraces", "deleteTraces")
_ESM = """
async function find(model, source, tries = 100) {  // a page may be told of it after the figure
  try { return await model.widget_manager.get_model(source); } catch (error) {
    if (tries < 1) throw error;
    await new Promise((again) => setTimeout(again, 100));
    return find(model, source, tries - 1);
  }
}
async function read(model) {  // once for all figures of a page
  const known = (globalThis.anytimeLabPlotly ??= {}), source = model.get("_source");
  known[source] ??= find(model, source).then(async (held) => {
    const blob = new Blob([held.get("value")], { type: "text/javascript" });
    const url = URL.createObjectURL(blob);
    try { return (await import(url)).default; } finally { URL.revokeObjectURL(url); }
  });
  return known[source];
}
const tellDrawn = (model, drawn) => {
  if (model.get("_drawn") !== drawn) { model.set("_drawn", drawn); model.save_changes(); }
};
export default () => {
  let model, figure;
  return {
    initialize(given) { model = given.model; tellDrawn(model, false); },
    async render({ el }) {
      figure ??= read(model).then((make) => {
        const made = make();
        made.initialize({ model });
        return made;
      });
      const made = await figure;
      const drawn = ({ detail }) => { if (detail.element === el) tellDrawn(model, true); };
      document.addEventListener("plotlywidget-after-render", drawn);
      const gone = await made.render({ el });
      // plotly looks at its width when the window is resized, and never else
      const sized = new ResizeObserver(() => el._responsiveChartHandler?.());
      sized.observe(el.parentElement ?? el);
      return () => {
        sized.disconnect();
        document.removeEventListener("plotlywidget-after-render", drawn);
        gone?.();
      };
    },
  };
};
"""


class LiveFigure(FigureWidget):
    """A FigureWidget that is whole on every page that draws it, and as wide as its box.

    Its layout needs a height, and so does its box.
    """

    _esm = _ESM
    _source = traitlets.Unicode().tag(sync=True)  # the widget that holds plotly
    _drawn = traitlets.Bool(False).tag(sync=True)  # told by the page: it hears edits now

    def __init__(self, *args: object, **settings: object) -> None:
        super().__init__(*args, **settings)
        self._config = {"responsive": True, "displaylogo": False}
        self._source = _plotly().model_id

    def get_state(self, key: object = None, drop_defaults: bool = False) -> dict:
        """What a page is told that opens, or opens again: the figure as it is now."""
        if key is None and self._source:  # not while it is being made
            self._trait_values |= self._now()
        return super().get_state(key, drop_defaults)

    def _now(self) -> dict:
        return {
            "_widget_layout": deepcopy(self._layout_obj._props),
            "_widget_data": deepcopy(self._data),
        }

    def _whole(self) -> None:
        if not self._drawn:  # edits are lost on a page that has not drawn yet; the whole is not
            for name, value in self._now().items():
                setattr(self, name, value)


@cache
def _plotly() -> widgets.Label:
    """plotly for the page, held once for all figures of this process."""
    return widgets.Label(str(FigureWidget._esm))


def _then_whole(name: str):
    send = getattr(FigureWidget, name)

    @wraps(send)
    def sent(self, *args, **kwargs):
        send(self, *args, **kwargs)
        self._whole()

    return sent


for _edit in EDITS:
    setattr(LiveFigure, f"_send_{_edit}_msg", _then_whole(f"_send_{_edit}_msg"))


LABEL = {"description_width": "initial"}
CLEAR = "rgba(0,0,0,0)"
_VIEW_ESM = """
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

    _esm = _VIEW_ESM
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
