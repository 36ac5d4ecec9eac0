"""A budget prior chosen from a list, tuned by a slider, or drawn by hand."""

from collections.abc import Sequence

import ipywidgets as widgets
import numpy as np
import traitlets

from anytime_lab.look.live import described
from anytime_lab.look.view import View
from anytime_lab.priors import PRIORS, Prior

HAND, GEOMETRIC = "by hand", "geometric"
KINDS = {name: words for name, (words, _) in PRIORS.items()}
KINDS[HAND] = "drawn over the bars, or set below"


class PriorEditor(View):
    """Controls for a prior over budgets; observe `prior`, which is None without budgets.

    The bars are drawn elsewhere: `draw` takes what was drawn over them by hand, and `stand_at`
    chooses the budget whose weight the slider sets.
    """

    prior = traitlets.Instance(Prior, allow_none=True)

    def __init__(self, budgets: Sequence[int]) -> None:
        super().__init__(style=False)
        self.budgets: tuple[int, ...] = ()
        self._weights = np.zeros(0)  # as they are shown, the greatest 1
        self._place = 0  # of the budget whose weight the slider sets
        kinds = [(f"{name}: {words}", name) for name, words in KINDS.items()]
        self.kind = described(widgets.Dropdown, "Prior", "100%", options=kinds, value="uniform")
        self.ratio = described(
            widgets.FloatLogSlider, "Ratio", value=0.8, base=2, min=-2, max=2, step=0.05
        )
        self.weight = described(
            widgets.FloatSlider, "Weight here", "100%", value=1, min=0, max=1, step=0.01
        )
        self.children = [self.kind, self.ratio, self.weight, self.notes]
        self.on((self.kind, self.ratio), self._changed)
        self.on(self.weight, self._weight_set)
        self._changed()
        self.set_budgets(budgets)

    def set_budgets(self, budgets: Sequence[int]) -> None:
        """Takes other budgets; weights drawn by hand are kept by their place in the grid."""
        budgets, old = tuple(budgets), self._weights
        if budgets == self.budgets:
            return
        self.budgets, self._weights = budgets, np.ones(len(budgets))
        if len(old) and len(budgets):
            places, before = (np.linspace(0, 1, n) for n in (len(budgets), len(old)))
            kept = np.interp(places, before, old)
            self._weights = kept if kept.max() > 0 else self._weights
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
            return self.say("At least one weight must be above 0; the prior is left as it was.")
        self._weights = weights / weights.max()
        with self.quiet():
            self.kind.value = HAND
        self._changed()

    def _weight_set(self) -> None:
        if self.prior is not None:
            weights = self._weights.copy()
            weights[self._place] = self.weight.value
            self._set_hand(weights)

    def _show_weight(self) -> None:
        if self.prior is not None:
            with self.quiet():
                self.weight.description = f"Weight of {self.budgets[self._place]:,}"
                self.weight.value = round(self._weights[self._place], 2)

    def _changed(self) -> None:
        kind = self.kind.value
        for control in (self.kind, self.ratio, self.weight):
            control.disabled = not self.budgets
        self.ratio.layout.display = None if kind == GEOMETRIC else "none"
        self.weight.layout.display = None if kind == HAND else "none"
        said = "Draw over the bars below the curves to set it by hand."
        if not self.budgets:
            said = "No budget is common to the runs shown, so there is no prior to set."
        self.notes.say(said, kind="note")
        if not self.budgets:
            self.prior = None
        elif kind == HAND:  # goes on from what is shown
            self.prior = Prior(self.budgets, self._weights / self._weights.sum())
        else:
            prior = PRIORS[kind][1](self.budgets, self.ratio.value)
            self._weights = np.asarray(prior.weights) / max(prior.weights)
            self.prior = prior
        self._show_weight()
