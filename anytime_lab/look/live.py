"""Figures on a page: the static figure drawn alive, in the page's colours, with a line to move."""

from collections.abc import Callable, Iterable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import anywidget
import ipywidgets as widgets
import plotly.graph_objects as go
import traitlets
from plotly.io.json import to_json_plotly
from plotly.offline import get_plotlyjs

from anytime_lab.page import block, paragraph, short

JS = Path(__file__).parent / "js"


def esm(name: str) -> str:
    """A widget's module, which hears its kernel however late a busy page loads it."""
    return (JS / "heard.js").read_text() + (JS / name).read_text()


class LiveFigure(anywidget.AnyWidget):
    """A plotly figure on a page, updated in place; it looks as the page does, light or dark.

    Mouse and arrow keys move the line on the page, `at` tells where it is.

    Args:
        moves: what the line moves along, as its name.
    """

    _esm = esm("figure.js")
    label = traitlets.Unicode().tag(sync=True)
    at = traitlets.Int(0).tag(sync=True)
    over = traitlets.Unicode().tag(sync=True)  # of whose traces the others are faint
    playing = traitlets.Bool(False).tag(sync=True)  # the page moves the line to the last stop
    _figure = traitlets.Unicode().tag(sync=True)
    _stops = traitlets.List().tag(sync=True)
    _moves = traitlets.Unicode().tag(sync=True)
    _source = traitlets.Unicode().tag(sync=True)  # the widget that holds plotly

    def __init__(self, moves: str = "Thinking budget") -> None:
        super().__init__(_source=_plotly().model_id, _moves=moves)
        self.update_from(go.Figure(layout={"height": 200}), stops=[])

    def update_from(
        self,
        figure: go.Figure,
        label: str | None = None,
        stops: Sequence[tuple[float, str]] | None = None,
    ) -> None:
        """Shows this figure instead. The line stays at its x where that is still a stop.

        Args:
            figure: what any of the figure functions returns; its layout has a height.
            label: what it shows, in a sentence, for those who do not see it.
            stops: (x, words) of the places where the line can stand; no line without.
        """
        before = self.stop
        with self.hold_sync():
            self.figure = figure
            self._figure = to_json_plotly(figure)
            if label is not None:
                self.label = label
            if stops is not None:
                self._stops = [[x, words] for x, words in stops]
                self.move_to(before)

    @property
    def stop(self) -> float | None:
        """The x at which the line stands; None without stops."""
        return self._stops[self.at][0] if self.at < len(self._stops) else None

    def move_to(self, x: float | None) -> None:
        """Moves the line to the stop at x; to the middle one if there is none."""
        places = [stop for stop, _ in self._stops]
        self.at = places.index(x) if x in places else len(places) // 2

    def hear(self, kind: str, then: Callable[[list], None]) -> None:
        """Has `then` called with what the page tells of this kind.

        "click": the name of a trace, x and y of the point of it that was clicked. "painted": the
        heights of bars that were drawn by hand (of a trace with meta "paint").
        """

        def told(_widget: object, message: object, _buffers: object) -> None:
            if isinstance(message, dict) and isinstance(message.get(kind), list):
                then(message[kind])

        self.on_msg(told)


@cache
def _plotly() -> widgets.Label:
    """plotly for the page, held once for all figures of this process."""
    return widgets.Label(get_plotlyjs())


class StyleSheet(anywidget.AnyWidget):
    """The look of a view, and what it needs of its page."""

    _esm = esm("view.js")
    _css = JS / "view.css"
    _pictured = traitlets.Bool(False).tag(sync=True)  # the output before it is its picture


def row(*controls: widgets.Widget) -> widgets.HBox:
    """Controls beside each other, wrapping on a narrow page."""
    return widgets.HBox(list(controls), layout={"flex_flow": "row wrap", "grid_gap": "4px 16px"})


def beside(left: Sequence[widgets.Widget], right: widgets.VBox, share: str) -> widgets.HBox:
    """A figure and what stands beside it, below it on a narrow page; share: of it, to 1."""
    left = widgets.VBox(list(left), layout={"flex": f"{share} 1 480px", "min_width": "0"})
    right.layout = {"flex": "1 1 320px", "min_width": "0"}
    both = widgets.HBox([left, right], layout={"flex_flow": "row wrap"})
    return both.add_class("beside-figure")


class Text(widgets.HTML):
    """Finished HTML in the views' style; of a live one screen readers tell its changes."""

    def __init__(self, *parts: str, live: bool = False) -> None:
        super().__init__(layout={"width": "auto"})
        self._live = live
        self.show(*parts)

    def show(self, *parts: str) -> None:
        """Shows these parts instead."""
        self.value = block(*parts, live=self._live)

    def say(self, *sentences: str, kind: str = "") -> None:
        """Shows these sentences instead, each a paragraph."""
        self.show(*(paragraph(sentence, kind) for sentence in sentences))


def described(
    kind: type[widgets.Widget], description: str, width: str = "", **settings: Any
) -> widgets.Widget:
    """A control with its whole description beside it; `width` is that of both."""
    if width:
        settings["layout"] = {"width": f"min({width}, 100% - 4px)"}  # of its margins
    return kind(description=description, style={"description_width": "initial"}, **settings)


def chooser(description: str, names: Iterable[str], width: str = "", **settings: Any):
    """A menu of names, which may be long."""
    options = [(short(name), name) for name in names]
    return described(widgets.Dropdown, description, width, options=options, **settings)


def ticked(description: str, value: bool = False) -> widgets.Checkbox:
    """A box to tick, with its whole description beside it."""
    return widgets.Checkbox(value, description=description, indent=False, layout={"width": "auto"})


def button(
    description: str, then: Callable[[], object], tooltip: str = "", **settings: Any
) -> widgets.Button:
    """A button as wide as its words, which calls `then()`."""
    settings |= {"description": description, "tooltip": tooltip}
    made = widgets.Button(layout={"width": "auto"}, **settings)
    made.on_click(lambda _button: then())
    return made
