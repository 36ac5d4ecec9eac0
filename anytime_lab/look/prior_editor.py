"""A budget prior chosen from a list, tuned by a slider, or drawn by hand."""

from __future__ import annotations

import re
from collections.abc import Sequence

import ipywidgets as widgets
import numpy as np
import traitlets

from anytime_lab.look.live import LABEL, framed, live_figure, row, text
from anytime_lab.look.style import COLOURS
from anytime_lab.page import block, paragraph
from anytime_lab.priors import Prior

UNIFORM, BASE, LINEAR, GEOMETRIC, HAND = "uniform", "base", "linear", "geometric", "by hand"
KINDS = [
    ("base: the largest budget only", BASE),
    ("uniform: every budget the same", UNIFORM),
    ("linear: in proportion to the budget", LINEAR),
    ("geometric: a ratio from budget to budget", GEOMETRIC),
    ("by hand: drawn, or set below", HAND),
]
NUMBER = r"(-?\d*\.?\d+(?:e[+-]?\d+)?)"
PAIR = re.compile(NUMBER + "[ ,]+" + NUMBER, re.IGNORECASE)
TOLD = 12  # weights told in words; more are read from the bars


class PriorEditor(widgets.VBox):
    """Controls for a prior over budgets; observe `prior`, which is None without budgets."""

    prior = traitlets.Instance(Prior, allow_none=True)

    def __init__(self, budgets: Sequence[int]) -> None:
        super().__init__()
        self.budgets: tuple[int, ...] = ()
        self._hand = np.zeros(0)  # relative weights, the greatest 1
        self._setting = False  # controls are being set by the editor itself
        self.kind = widgets.Dropdown(options=KINDS, value=UNIFORM, description="Prior", style=LABEL)
        self.ratio = widgets.FloatLogSlider(
            value=0.8, base=2, min=-2, max=2, step=0.05, description="Ratio", style=LABEL
        )
        self.place = widgets.Dropdown(options=[], description="Weight at budget", style=LABEL)
        self.weight = widgets.FloatSlider(
            value=1, min=0, max=1, step=0.01, description="Relative weight", style=LABEL
        )
        self.panel = live_figure([], 170, "Weight")
        self.panel.add_bar(
            x=[], y=[], marker={"color": COLOURS[0]}, hovertemplate="%{y:.1%}<extra></extra>"
        )
        self.panel.update_layout(
            dragmode="drawopenpath",
            newshape={"line": {"color": COLOURS[1], "width": 3}},
            margin={"t": 28, "b": 40},
            bargap=0.25,
            showlegend=False,
        )
        self.panel.update_yaxes(tickformat=".0%", rangemode="tozero", fixedrange=True)
        self.panel.update_xaxes(fixedrange=True)
        self.told = text(live=True)
        self.kind.observe(self._kind_chosen, "value")
        self.ratio.observe(self._changed, "value")
        self.place.observe(self._place_chosen, "value")
        self.weight.observe(self._weight_set, "value")
        self.panel.layout.on_change(self._drawn, "shapes")
        self.children = [
            row(self.kind, self.ratio, self.place, self.weight),
            framed(self.panel),
            self.told,
        ]
        self._changed()
        self.set_budgets(budgets)

    def set_budgets(self, budgets: Sequence[int]) -> None:
        """Takes other budgets; weights drawn by hand are kept by their place in the grid."""
        budgets = tuple(budgets)
        if budgets == self.budgets:
            return
        old, self.budgets = self._hand, budgets
        if len(old) and len(budgets):
            places = np.linspace(0, 1, len(budgets))
            self._hand = np.interp(places, np.linspace(0, 1, len(old)), old)
        else:
            self._hand = np.ones(len(budgets))
        if len(budgets) and not self._hand.max() > 0:
            self._hand = np.ones(len(budgets))
        self._setting = True
        self.place.options = [(f"{b:,}", j) for j, b in enumerate(budgets)]
        self.place.value = 0 if budgets else None
        self._setting = False
        spaced = range(0, len(budgets), max(1, len(budgets) // 12))
        self.panel.update_xaxes(
            tickvals=list(spaced),
            ticktext=[f"{budgets[j]:,}" for j in spaced],
            range=[-0.6, len(budgets) - 0.4],
        )
        self._changed()

    def draw(self, path: str) -> None:
        """Takes a line drawn over the bars as relative weights.

        path: an SVG path in the panel's coordinates, place of the budget against weight. Budgets
        left and right of the line keep the weights they had.
        """
        points = np.array([(float(x), float(y)) for x, y in PAIR.findall(path)])
        points = points.reshape(-1, 2)[np.isfinite(points.reshape(-1, 2)).all(axis=1)]
        if not len(points) or not self.budgets:
            return
        points = points[np.argsort(points[:, 0], kind="stable")]
        places = np.arange(len(self.budgets))
        before = np.asarray(self.prior.weights)
        under = (places >= points[0, 0] - 0.5) & (places <= points[-1, 0] + 0.5)
        drawn = np.interp(places, points[:, 0], np.maximum(points[:, 1], 0.0))
        self._set_hand(np.where(under, drawn, before))

    def _set_hand(self, weights: np.ndarray) -> None:
        if not weights.max() > 0:
            self.told.value = block(
                paragraph("At least one weight must be above 0; the prior is left as it was.")
            )
            return
        self._hand = weights / weights.max()
        self._setting = True
        self.kind.value = HAND
        self._setting = False
        self._changed()

    def _drawn(self, layout, _shapes) -> None:
        # plotly hands over the shapes it knew before; those just drawn are in the layout's JSON
        shapes = layout.to_plotly_json().get("shapes") or ()
        paths = [shape["path"] for shape in shapes if shape.get("path")]
        if paths:
            self.panel.plotly_relayout({"shapes": []})
            self.draw(paths[-1])

    def _kind_chosen(self, _change) -> None:
        if not self._setting and self.kind.value == HAND and self.prior is not None:
            weights = np.asarray(self.prior.weights)  # go on from what is shown
            self._hand = weights / weights.max()
        self._changed()

    def _place_chosen(self, _change) -> None:
        if not self._setting:
            self._show_weight()

    def _weight_set(self, _change) -> None:
        if self._setting or self.place.value is None:
            return
        weights = np.asarray(self.prior.weights) / max(self.prior.weights)
        weights[self.place.value] = self.weight.value
        self._set_hand(weights)

    def _show_weight(self) -> None:
        if self.prior is None or self.place.value is None:
            return
        self._setting = True
        top = max(self.prior.weights)
        self.weight.value = round(self.prior.weights[self.place.value] / top, 2)
        self._setting = False

    def _changed(self, _change=None) -> None:
        if self._setting:
            return
        for control in (self.kind, self.ratio, self.place, self.weight):
            control.disabled = not self.budgets
        self.ratio.layout.display = None if self.kind.value == GEOMETRIC else "none"
        prior = self._made() if self.budgets else None
        weights = prior.weights if prior else ()
        with self.panel.batch_update():
            self.panel.data[0].x = list(range(len(weights)))
            self.panel.data[0].y = list(weights)
        self.told.value = block(paragraph(self._words(prior), "note"), live=True)
        self.prior = prior
        self._show_weight()

    def _made(self) -> Prior:
        if self.kind.value == HAND:
            return Prior.of(self.budgets, self._hand / self._hand.sum())
        if self.kind.value == GEOMETRIC:
            return Prior.geometric(self.budgets, self.ratio.value)
        return {BASE: Prior.base, LINEAR: Prior.linear, UNIFORM: Prior.uniform}[self.kind.value](
            self.budgets
        )

    def _words(self, prior: Prior | None) -> str:
        if prior is None:
            return "No budget is common to the runs shown, so there is no prior to set."
        pairs = [
            f"{b:,}: {100 * w:.1f} %" for b, w in zip(prior.budgets, prior.weights, strict=True)
        ]
        if len(pairs) > TOLD:
            mean = sum(b * w for b, w in zip(prior.budgets, prior.weights, strict=True))
            return (
                f"Prior {self.kind.value} over {len(pairs)} budgets; mean budget {mean:,.0f} "
                "tokens. Draw over the bars, or choose a budget and set its weight."
            )
        return (
            f"Prior {self.kind.value}: {', '.join(pairs)}. Draw over the bars, or choose a budget "
            "and set its weight."
        )
