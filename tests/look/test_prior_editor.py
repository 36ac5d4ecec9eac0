"""The prior editor: chosen, tuned, set by key, drawn."""

import numpy as np
import pytest

from anytime_lab.look.prior_editor import PriorEditor
from anytime_lab.priors import Prior


def test_a_ratio_makes_the_geometric_prior():
    editor = PriorEditor([10, 20, 30])
    editor.kind.value = "geometric"
    editor.ratio.value = 0.5
    assert editor.prior.weights == pytest.approx((4 / 7, 2 / 7, 1 / 7))
    assert editor.ratio.layout.display is None
    assert list(editor.panel.data[0].y) == pytest.approx(list(editor.prior.weights))


def test_a_drawn_line_becomes_the_prior():
    editor = PriorEditor([10, 20, 30, 40])
    editor.draw("M-0.2,0.4L1,0.2L3.2,0.2")
    assert editor.kind.value == "by hand"
    # at the places 0 1 2 3 the line is 0.3667, 0.2, 0.2, 0.2
    assert editor.prior.weights == pytest.approx(
        np.array([0.4 - 1 / 30, 0.2, 0.2, 0.2]) / 0.96667, 1e-4
    )


def test_the_panel_takes_a_shape_that_the_reader_drew():
    editor = PriorEditor([10, 20])
    shape = {"type": "path", "path": "M0,0.3L0.5,0.2L1,0.1"}
    editor.panel._handler_js2py_relayout(
        {"new": {"relayout_data": {"shapes": [shape]}, "source_view_id": "view"}}
    )
    assert editor.prior.weights == pytest.approx((0.75, 0.25))
    assert not editor.panel.to_dict()["layout"].get("shapes")


def test_half_a_line_leaves_the_other_weights():
    editor = PriorEditor([10, 20, 30, 40])
    editor.draw("M2,0.5L3,0.5")
    assert editor.prior.weights == pytest.approx(np.array([0.25, 0.25, 0.5, 0.5]) / 1.5)


def test_weights_are_set_by_key_too():
    editor = PriorEditor([10, 20, 30])
    editor.place.value = 2
    editor.weight.value = 0.0
    assert editor.kind.value == "by hand" and editor.prior.weights == pytest.approx((0.5, 0.5, 0))
    editor.place.value = 1
    editor.weight.value = 0.0
    editor.place.value = 0
    editor.weight.value = 0.0
    assert editor.prior.weights == pytest.approx((1, 0, 0))
    assert "At least one weight" in editor.told.value


@pytest.mark.parametrize(
    "path", ["", "M", "Mx,yL", "M0,-1L3,-2", "M1e999,3", "Mnan,1", "M..,.L-,-"]
)
def test_a_line_that_says_nothing_changes_nothing(path):
    editor = PriorEditor([10, 20, 30, 40])
    editor.draw(path)
    assert editor.prior == Prior.uniform([10, 20, 30, 40])


def test_weights_drawn_by_hand_follow_to_another_grid():
    editor = PriorEditor([10, 20, 30])
    editor.draw("M0,0.4L2,0")
    assert editor.prior.weights == pytest.approx((2 / 3, 1 / 3, 0))
    editor.set_budgets([5, 10, 15, 20, 25])
    assert editor.prior.budgets == (5, 10, 15, 20, 25)
    assert editor.prior.weights == pytest.approx((0.4, 0.3, 0.2, 0.1, 0))


def test_no_budgets_leave_no_prior():
    editor = PriorEditor([])
    assert editor.prior is None and editor.kind.disabled
    editor.draw("M0,1L1,1")
    editor.kind.value = "base"
    assert "No budget" in editor.told.value
    editor.set_budgets([10, 20])
    assert editor.prior.weights == (0, 1) and not editor.kind.disabled
