"""A budget prior chosen from a list, tuned by a slider, or drawn by hand."""

from __future__ import annotations

from collections.abc import Sequence

import ipywidgets as widgets
import numpy as np
import traitlets

from anytime_lab.look.live import described, text
from anytime_lab.page import block, paragraph
from anytime_lab.priors import PRIORS, Prior

HAND, GEOMETRIC = "by hand", "geometric"
KINDS = {name: words for name, (words, _) in PRIORS.items()}
KINDS[HAND] = "drawn over the bars, or set below"


class PriorEditor(widgets.VBox):
    """Controls for a prior over budgets; observe `prior`, which is None without budgets.

    The bars are drawn elsewhere: `draw` takes what was drawn over them by hand, and `stand_at`
    chooses the budget whose weight the slider sets.
    """

    prior = traitlets.Instance(Prior, allow_none=True)

    def __init__(self, budgets: Sequence[int]) -> None:
        super().__init__()
        self.budgets: tuple[int, ...] = ()
        self._hand = np.zeros(0)  # relative weights, the greatest 1
        self._place = 0  # of the budget whose weight the slider sets
        self._setting = False  # controls are being set by the editor itself
        kinds = [(f"{name}: {words}", name) for name, words in KINDS.items()]
        self.kind = described(widgets.Dropdown, "Prior", "100%", options=kinds, value="uniform")
        self.ratio = described(
            widgets.FloatLogSlider, "Ratio", value=0.8, base=2, min=-2, max=2, step=0.05
        )
        self.weight = described(
            widgets.FloatSlider, "Weight here", "100%", value=1, min=0, max=1, step=0.01
        )
        self.told = text(live=True)
        self.kind.observe(self._kind_chosen, "value")
        self.ratio.observe(self._changed, "value")
        self.weight.observe(self._weight_set, "value")
        self.children = [self.kind, self.ratio, self.weight, self.told]
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
        self._place = min(self._place, max(len(budgets) - 1, 0))
        self._changed()

    def stand_at(self, budget: float | None) -> None:
        """Has the slider set the weight of this budget."""
        if budget in self.budgets:
            self._place = self.budgets.index(budget)
        self._show_weight()

    def draw(self, weights: Sequence[float]) -> None:
        """Takes bars drawn by hand, one height for each budget, as relative weights."""
        heights = np.asarray(weights, dtype=float)
        if len(heights) != len(self.budgets) or not len(heights) or not np.isfinite(heights).all():
            return
        self._set_hand(np.maximum(heights, 0.0))

    def _set_hand(self, weights: np.ndarray) -> None:
        if not weights.max() > 0:
            said = "At least one weight must be above 0; the prior is left as it was."
            self.told.value = block(paragraph(said), live=True)
            return
        self._hand = weights / weights.max()
        self._setting = True
        self.kind.value = HAND
        self._setting = False
        self._changed()

    def _kind_chosen(self, _change: object) -> None:
        if not self._setting and self.kind.value == HAND and self.prior is not None:
            weights = np.asarray(self.prior.weights)  # go on from what is shown
            self._hand = weights / weights.max()
        self._changed()

    def _weight_set(self, _change: object) -> None:
        if self._setting or self.prior is None:
            return
        weights = np.asarray(self.prior.weights) / max(self.prior.weights)
        weights[self._place] = self.weight.value
        self._set_hand(weights)

    def _show_weight(self) -> None:
        if self.prior is None:
            return
        self._setting = True
        weights = self.prior.weights
        self.weight.description = f"Weight of {self.budgets[self._place]:,}"
        self.weight.value = round(weights[self._place] / max(weights), 2)
        self._setting = False

    def _changed(self, _change: object = None) -> None:
        if self._setting:
            return
        for control in (self.kind, self.ratio, self.weight):
            control.disabled = not self.budgets
        self.ratio.layout.display = None if self.kind.value == GEOMETRIC else "none"
        self.weight.layout.display = None if self.kind.value == HAND else "none"
        self.told.value = block(paragraph(self._words(), "note"), live=True)
        self.prior = self._made() if self.budgets else None
        self._show_weight()

    def _made(self) -> Prior:
        if self.kind.value == HAND:
            return Prior.of(self.budgets, self._hand / self._hand.sum())
        return PRIORS[self.kind.value][1](self.budgets, self.ratio.value)

    def _words(self) -> str:
        if not self.budgets:
            return "No budget is common to the runs shown, so there is no prior to set."
        return "Draw over the bars below the curves to set it by hand."
