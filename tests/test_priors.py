"""Budget priors, by hand."""

import pytest

from anytime_lab.priors import Prior


def test_the_named_priors():
    budgets = [10, 20, 70]
    assert Prior.base(budgets).weights == (0, 0, 1)
    assert Prior.uniform(budgets).weights == pytest.approx((1 / 3,) * 3)
    assert Prior.linear(budgets).weights == pytest.approx((0.1, 0.2, 0.7))
    assert Prior.geometric(budgets, 0.5).weights == pytest.approx((4 / 7, 2 / 7, 1 / 7))
    assert Prior.geometric(budgets, 2).weights == pytest.approx((1 / 7, 2 / 7, 4 / 7))
    assert Prior(budgets, [0.2, 0.3, 0.5]).weights == (0.2, 0.3, 0.5)


@pytest.mark.parametrize("make", [Prior.base, Prior.uniform, Prior.linear, Prior.geometric])
def test_one_budget_holds_everything(make):
    assert make([7]).weights == (1.0,)


def test_long_grids_neither_overflow_nor_vanish():
    weights = Prior.geometric(range(1, 3000), 2.0).weights
    assert sum(weights) == pytest.approx(1)
    assert weights[-1] == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("budgets", "weights", "says"),
    [
        ((), (), "empty"),
        ((3, 2), (0.5, 0.5), "increase"),
        ((2, 2), (0.5, 0.5), "increase"),
        ((0, 2), (0.5, 0.5), "1 or more"),
        ((1, 2), (0.5, 0.6), "sum to 1.1"),
        ((1, 2), (1.5, -0.5), "0 or more"),
        ((1, 2), (1.0,), "1 weights for 2 budgets"),
        ((1, 2), (float("nan"), 1.0), "finite"),
    ],
)
def test_bad_priors_are_refused_with_the_fix(budgets, weights, says):
    with pytest.raises(ValueError, match=says):
        Prior(budgets, weights)


@pytest.mark.parametrize("budget", [1.5, True, "8"])
def test_a_budget_is_a_whole_number(budget):
    with pytest.raises(TypeError, match="whole tokens"):
        Prior((budget,), (1.0,))


@pytest.mark.parametrize("made", [Prior.base, Prior.uniform, Prior.linear, Prior.geometric])
@pytest.mark.parametrize("budgets", [16, None, "8, 16"])
def test_budgets_are_a_list(made, budgets):
    with pytest.raises(TypeError, match="expected a list of tokens"):
        made(budgets)


@pytest.mark.parametrize("ratio", [0, -1, float("inf")])
def test_a_ratio_is_positive(ratio):
    with pytest.raises(ValueError, match="ratio"):
        Prior.geometric([1, 2], ratio)
