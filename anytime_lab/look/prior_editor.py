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
        self.set_budgets(budgets)

    def set_budgets(self, budgets: Sequence[int]) -> None:
        """Takes other budgets; weights drawn by hand are kept by their place in the grid."""
        self.budgets = tuple(budgets)
        self._changed()

    def stand_at(self, budget: float | None) -> None:
        """Has the slider set the weight of this budget."""
        if budget in self.budgets:
            self._place = self.budgets.index(budget)
        self._show_weight()

    def draw(self, weights: Sequence[float]) -> None:
        """Takes bars drawn by hand, one height for each budget, as relative weights."""
        heights = np.maximum(np.asarray(weights, dtype=float), 0.0)
        if not self.prior or len(heights) != len(self.budgets) or not np.isfinite(heights).all():
            return
        if not heights.any():
            return self.say("At least one weight must be above 0; the prior is left as it was.")
        with self.quiet():
            self.kind.value = HAND
        self.prior = Prior(self.budgets, heights / heights.sum())
        self._changed()

    @property
    def _heights(self) -> np.ndarray:
        """The weights as they are shown, the greatest 1."""
        return np.asarray(self.prior.weights) / max(self.prior.weights)

    def _weight_set(self) -> None:
        if self.prior is not None:
            heights = self._heights
            heights[self._place] = self.weight.value
            self.draw(heights)

    def _show_weight(self) -> None:
        if self.prior is not None:
            self._place = min(self._place, len(self.budgets) - 1)
            with self.quiet():
                self.weight.description = f"Weight of {self.budgets[self._place]:,}"
                self.weight.value = round(self._heights[self._place], 2)

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
        elif kind != HAND:
            self.prior = PRIORS[kind][1](self.budgets, self.ratio.value)
        elif self.prior is None or self.prior.budgets != self.budgets:  # goes on from what is shown
            shown = self.prior.weights if self.prior else [1.0]
            places, before = (np.linspace(0, 1, len(of)) for of in (self.budgets, shown))
            kept = np.interp(places, before, shown)
            kept = kept if kept.any() else np.ones(len(kept))
            self.prior = Prior(self.budgets, kept / kept.sum())
        self._show_weight()
