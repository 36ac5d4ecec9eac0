"""A live plotly figure for a page that is slow, comes late or comes again.

plotly's own FigureWidget brings five megabytes with every figure, and what is to become a figure is
given two seconds by anywidget to read them; then it is dead. It forgets what happens to a figure
before a page has drawn it, shows a page that is opened again the figure as it was at first, and
takes no other width than 700 pixels inside of a box.
"""

from __future__ import annotations

from copy import deepcopy
from functools import cache, wraps

import ipywidgets as widgets
import traitlets
from plotly.graph_objects import FigureWidget

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
