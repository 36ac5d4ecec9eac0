"""The prior editor: chosen, tuned, set by key, drawn."""

import pytest

from anytime_lab.look.prior_editor import PriorEditor
from anytime_lab.priors import Prior


def test_a_ratio_makes_the_geometric_prior():
    editor = PriorEditor([10, 20, 30])
    editor.kind.value = "geometric"
    editor.ratio.value = 0.5
    assert editor.prior.weights == pytest.approx((4 / 7, 2 / 7, 1 / 7))
    assert editor.ratio.layout.display is None


def test_bars_drawn_by_hand_become_the_prior():
    editor = PriorEditor([10, 20, 30, 40])
    editor.draw([0.4, 0.2, -0.1, 0.2])
    assert editor.kind.value == "by hand"
    assert editor.prior.weights == pytest.approx((0.5, 0.25, 0, 0.25))


def test_weights_are_set_by_key_where_the_line_stands():
    editor = PriorEditor([10, 20, 30])
    editor.kind.value = "by hand"
    for budget in (30, 20, 10):
        editor.stand_at(budget)
        assert editor.weight.description == f"Weight of {budget}"
        editor.weight.value = 0.0
    assert editor.prior.weights == pytest.approx((1, 0, 0))
    assert "At least one weight" in editor.notes.value


@pytest.mark.parametrize("bars", [[], [0, 0, 0], [1, 2], [float("nan"), 1, 1], [-1, -2, 0]])
def test_bars_that_say_nothing_change_nothing(bars):
    editor = PriorEditor([10, 20, 30])
    editor.draw(bars)
    assert editor.prior == Prior.uniform([10, 20, 30])


def test_weights_drawn_by_hand_follow_to_another_grid():
    editor = PriorEditor([10, 20, 30])
    editor.draw([2, 1, 0])
    editor.set_budgets([5, 10, 15, 20, 25])
    assert editor.prior.budgets == (5, 10, 15, 20, 25)
    assert editor.prior.weights == pytest.approx((0.4, 0.3, 0.2, 0.1, 0))


def test_no_budgets_leave_no_prior():
    editor = PriorEditor([])
    assert editor.prior is None and editor.kind.disabled
    editor.draw([])
    editor.kind.value = "base"
    assert "No budget" in editor.notes.value
    editor.set_budgets([10, 20])
    assert editor.prior.weights == (0, 1) and not editor.kind.disabled
