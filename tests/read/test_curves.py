"""Curves and measures against tables worked by hand, direct formulas and brute force."""

import math
import time
from statistics import NormalDist

import numpy as np
import pandas as pd
import pytest
from made_runs import SMALL, random_records, records
from scipy.stats import beta

from anytime_lab.priors import Prior
from anytime_lab.read.curves import (
    ProblemTable,
    accuracy_curve,
    accuracy_curves,
    anytime_accuracy,
    final_accuracy,
    least_difference,
    mean_interval,
    paired_difference,
    paired_differences,
    problem_table,
)

# --- one run -------------------------------------------------------------------------------------


def test_a_curve_worked_by_hand():
    curve = accuracy_curve(records(SMALL))
    # problem means: budget 10: (0, ½); budget 20: (1, ½)
    assert curve["budget"].tolist() == [10, 20]
    assert curve["accuracy"].tolist() == [0.25, 0.75]
    assert curve["se"].tolist() == pytest.approx([0.25, 0.25])  # sqrt(Var 0.125 / 2)
    # Half a problem at 0 and at 3/4, half-way to the bounds: middle 7/24, spread
    # (49 + 25 + (49 + 121) / 2) / 576 / 3 = 0.0920, and t_1 is 12.706, so the two say as much as
    # 2 · 7/24 · 17/24 / 0.0920 · (1.96 / 12.706)² = 0.1069 answers.
    low, high = beta.ppf([0.025, 0.975], 0.1069 / 4 + 0.5, 0.1069 * 3 / 4 + 0.5)
    assert curve["low"].tolist() == pytest.approx([low, 1 - high], rel=1e-2)
    assert curve["high"].tolist() == pytest.approx([high, 1 - low], rel=1e-2)
    assert curve["n_problems"].tolist() == [2, 2]


def test_anytime_and_final_accuracy_worked_by_hand():
    frame = records(SMALL)
    assert anytime_accuracy(frame).value == 0.5
    assert anytime_accuracy(frame).se == 0  # both problems have ½ over the two budgets
    weighted = anytime_accuracy(frame, Prior((10, 20), (0.2, 0.8)))
    assert weighted.value == pytest.approx(0.2 * 0.25 + 0.8 * 0.75)
    assert weighted.se == pytest.approx(np.std([0.8, 0.5], ddof=1) / math.sqrt(2))
    assert final_accuracy(frame).value == 0.75


def test_the_base_prior_gives_final_accuracy():
    frame = random_records()
    base = Prior.base((10, 20, 30, 40))
    assert anytime_accuracy(frame, base) == final_accuracy(frame)


def test_a_prior_on_fewer_budgets_uses_those():
    frame = random_records()
    curve = accuracy_curve(frame)
    told = anytime_accuracy(frame, Prior.uniform((20, 40)))
    assert told.value == pytest.approx(curve["accuracy"].iloc[[1, 3]].mean())


def test_a_prior_on_a_budget_that_was_not_measured_is_refused():
    with pytest.raises(ValueError, match=r"not measured: \[15\]"):
        anytime_accuracy(random_records(), Prior.uniform((10, 15)))


def test_standard_errors_equal_the_direct_formula():
    frame = random_records()
    by_problem = frame.groupby(["problem_id", "budget"])["correct"].mean().unstack()
    curve = accuracy_curve(frame)
    assert curve["se"].to_numpy() == pytest.approx(
        (by_problem.std(ddof=1) / math.sqrt(len(by_problem))).to_numpy()
    )
    anytime = by_problem.mean(axis=1)
    assert anytime_accuracy(frame).se == pytest.approx(anytime.std(ddof=1) / math.sqrt(20))
    # 95 % of Jeffreys' interval for as many answers as spread like the 20 problems and one more
    ends = np.array([anytime.min() / 2, (1 + anytime.max()) / 2])
    middle = (anytime.sum() + ends.mean()) / 21
    spread = (((anytime - middle) ** 2).sum() + 0.5 * ((ends - middle) ** 2).sum()) / 21
    answers = 20 * middle * (1 - middle) / spread * (1.959964 / 2.093024) ** 2
    high = beta.ppf(0.975, answers * anytime.mean() + 0.5, answers * (1 - anytime.mean()) + 0.5)
    assert anytime_accuracy(frame).high == pytest.approx(high)


def test_abstained_summaries_leave_the_means():
    scores = np.array([[[[1, np.nan]]], [[[0, 0]]], [[[np.nan, np.nan]]]])
    curve = accuracy_curve(records(scores))
    assert curve["accuracy"].tolist() == [0.5]
    assert curve["n_problems"].tolist() == [2]
    assert anytime_accuracy(records(scores)).n_problems == 2


def test_one_problem_has_no_interval():
    told = anytime_accuracy(records(SMALL[:1]))
    assert told.value == 0.5
    assert math.isnan(told.se) and math.isnan(told.low)


def test_categories_and_strings_give_the_same_table():
    frame = random_records()
    shuffled = frame.sample(frac=1, random_state=0)
    as_category = shuffled.assign(problem_id=shuffled["problem_id"].astype("category"))
    a, b = problem_table(frame), problem_table(as_category)
    assert a.problems.tolist() == b.problems.tolist()
    assert np.array_equal(a.values, b.values)


def test_mixed_records_are_refused():
    frame = random_records()
    with pytest.raises(ValueError, match="has no record at budget 40"):
        accuracy_curve(frame[(frame["problem_id"] != "p3") | (frame["budget"] != 40)])
    with pytest.raises(ValueError, match="lack the columns"):
        accuracy_curve(frame.drop(columns="score"))
    with pytest.raises(ValueError, match="empty"):
        accuracy_curve(frame.iloc[:0])


@pytest.mark.parametrize("samples", [1, 4])
@pytest.mark.parametrize("accuracy", [0.5, 0.95, 0.99])
def test_intervals_hold_the_truth_with_few_problems_and_near_the_bounds(accuracy, samples):
    rng, size = np.random.default_rng(0), 3  # problems differ: beta with a + b = 3
    chances = rng.beta(accuracy * size, (1 - accuracy) * size, (30, 4000))
    told = mean_interval(rng.binomial(samples, chances) / samples, (0.0, 1.0))
    held = ((told.low <= accuracy) & (accuracy <= told.high)).mean()
    assert 0.94 < held < 0.995


@pytest.mark.parametrize(("accuracy", "gain"), [(0.5, 0.2), (0.9, 0.5), (0.97, 0.7)])
def test_intervals_of_differences_hold_the_truth_near_the_bounds(accuracy, gain):
    rng = np.random.default_rng(0)
    base = rng.beta(accuracy * 2, (1 - accuracy) * 2, (30, 4000))
    pair = [rng.random(base.shape) < chances for chances in (base + gain * (1 - base), base)]
    told = mean_interval(pair[0] * 1.0 - pair[1], (-1.0, 1.0))
    truth = gain * (1 - accuracy)
    assert ((told.low <= truth) & (truth <= told.high)).mean() > 0.94


def test_no_interval_is_without_width_where_all_agree():
    ones = np.ones((30, 1))
    told = mean_interval(ones, (0.0, 1.0))
    assert 0.85 < told.low[0] < 0.95 and told.high[0] == 1.0  # 3 / 30 is the rule of three
    told = mean_interval(ones - 1, (-1.0, 1.0))
    assert told.high[0] == -told.low[0] == pytest.approx(0.086, abs=1e-3)


# --- two runs ------------------------------------------------------------------------------------


def test_paired_differences_equal_the_direct_formula():
    a, b = random_records(seed=1), random_records(seed=2)
    means = [f.groupby(["problem_id", "budget"])["correct"].mean().unstack() for f in (a, b)]
    gap = means[0] - means[1]
    told = paired_difference(a, b)
    rows = told[told["measure"] == "accuracy"]
    assert rows["difference"].to_numpy() == pytest.approx(gap.mean().to_numpy())
    assert rows["se"].to_numpy() == pytest.approx((gap.std(ddof=1) / math.sqrt(20)).to_numpy())
    anytime = told[told["measure"] == "anytime"].iloc[0]
    area = gap.mean(axis=1)
    assert anytime["difference"] == pytest.approx(area.mean())
    assert anytime["se"] == pytest.approx(area.std(ddof=1) / math.sqrt(20))
    assert anytime["accuracy_a"] - anytime["accuracy_b"] == pytest.approx(anytime["difference"])
    final = told[told["measure"] == "final"].iloc[0]
    assert final["difference"] == rows["difference"].iloc[-1]


def test_a_run_does_not_differ_from_itself():
    a = random_records()
    told = paired_difference(a, a)
    assert (told[["difference", "se"]] == 0).all().all() and (told["p"] == 1).all()
    assert (told["low"] == -told["high"]).all() and (told["high"] > 0).all()


def test_pairing_uses_the_problems_that_both_have():
    a, b = random_records(seed=1), random_records(seed=2)
    fewer = b[~b["problem_id"].isin(["p0", "p7"])]
    same = a[~a["problem_id"].isin(["p0", "p7"])]
    assert paired_difference(a, fewer).equals(paired_difference(same, fewer))
    assert (paired_difference(a, fewer)["n_problems"] == 18).all()


def test_a_budget_that_is_hardly_graded_leaves_the_intervals_of_the_others():
    # four problems; at the first budget one of them is graded in both runs, at the last all
    values = np.random.default_rng(5).random((2, 4, 3))
    values[0, :2, 0] = values[1, 1:3, 0] = np.nan
    a, b = (
        ProblemTable(np.array(list("pqrs")), (10, 20, 30), side, np.ones((4, 3))) for side in values
    )
    told = paired_difference(a, b).set_index("budget")
    apart = [table.take(table.problems, (20, 30)) for table in (a, b)]
    wanted = paired_difference(*apart).set_index("budget")
    columns = ["difference", "low", "high", "n_problems", "p"]
    assert told.loc[[20, 30], columns].equals(wanted.loc[[20, 30], columns])
    assert told.loc[10, "n_problems"] == 1 and np.isnan(told.loc[10, "p"])


def test_runs_that_cannot_be_compared_are_refused():
    a = random_records()
    with pytest.raises(ValueError, match="share no problem"):
        paired_difference(a, a.assign(problem_id=a["problem_id"] + "x"))
    with pytest.raises(ValueError, match="different budgets"):
        paired_difference(a, a[a["budget"] < 40])
    with pytest.raises(ValueError, match="not one of the runs"):
        paired_differences({"a": a}, "b")
    with pytest.raises(ValueError, match="only run"):
        paired_differences({"a": a}, "a")


def made(values):
    values = np.asarray(values, dtype=float)
    problems = np.array([f"p{i:03d}" for i in range(len(values))], dtype=object)
    budgets = tuple(range(10, 10 * values.shape[1] + 1, 10))
    return ProblemTable(problems, budgets, values, np.ones_like(values))


def test_a_band_holds_at_all_budgets_at_once_95_times_in_100():
    rng = np.random.default_rng(1)
    trials, held, pointwise = 400, 0, 0
    for _ in range(trials):  # problems that agree over budgets in part
        values = 0.5 + 0.1 * (rng.normal(size=(40, 1)) + rng.normal(size=(40, 6)))
        told = accuracy_curve(made(values))
        held += ((told["band_low"] <= 0.5) & (told["band_high"] >= 0.5)).all()
        pointwise += ((told["low"] <= 0.5) & (told["high"] >= 0.5)).all()
    assert held / trials == pytest.approx(0.95, abs=3 * math.sqrt(0.95 * 0.05 / trials))
    assert pointwise / trials < 0.88


def test_a_band_of_budgets_that_are_alike_is_the_interval():
    one = np.random.default_rng(0).random((50, 1))
    told = accuracy_curve(made(np.repeat(one, 5, axis=1)))
    assert told["band_low"].to_numpy() == pytest.approx(told["low"].to_numpy(), abs=0.003)
    for budgets in (1, 12):  # 12 independent ones: t at (1 - 0.95^(1/12)) / 2
        wide = made(np.random.default_rng(2).normal(size=(4000, budgets))).widening
        wanted = NormalDist().inv_cdf(0.5 + 0.5 * 0.95 ** (1 / budgets)) / 1.96
        assert wide == pytest.approx(wanted, abs=0.03)


def test_one_sample_a_problem_is_tested_by_mcnemar():
    # 12 solved by a alone, 4 by b alone: 2 · P(X ≤ 4 | 16, ½) = 2 · 2517 / 65536
    a = np.array([1] * 12 + [0] * 4 + [1] * 20 + [0] * 14)[:, None]
    b = np.array([0] * 12 + [1] * 4 + [1] * 20 + [0] * 14)[:, None]
    told = paired_difference(made(a), made(b))
    assert told["p"].to_numpy() == pytest.approx(3 * [2 * 2517 / 65536])
    assert paired_difference(made(a), made(a))["p"].tolist() == [1, 1, 1]


def test_a_p_below_5_percent_is_an_interval_without_0():
    for seed in range(40):
        rng = np.random.default_rng(seed)
        base = rng.random((25, 3))
        told = paired_difference(made(base + rng.normal(0.05, 0.1, (25, 3))), made(base))
        without = (told["low"] > 0) | (told["high"] < 0)
        assert ((told["p"] < 0.05) == without).all()


def test_several_runs_are_tested_after_holm():
    rng = np.random.default_rng(4)
    base = (rng.random((200, 1)) < 0.5) * 1.0
    runs = {name: made(np.where(rng.random((200, 1)) < share, 1, base))
            for name, share in (("much", 0.1), ("some", 0.04), ("little", 0.01))}  # fmt: skip
    told = paired_differences({"base": made(base), **runs}, "base")
    told = told[told["measure"] == "final"].set_index("run")
    p = told["p"].to_dict()
    assert p["much"] < p["some"] < p["little"]
    holm = [3 * p["much"], 2 * p["some"], p["little"]]
    holm = [holm[0], max(holm[:2]), max(holm)]
    assert told["p_holm"].to_dict() == pytest.approx(dict(zip(p, holm, strict=True)))


@pytest.mark.parametrize(("problems", "samples", "alike"), [(60, 1, 0.0), (400, 4, 0.3)])
def test_the_least_difference_is_found_4_times_in_5(problems, samples, alike):
    gain = least_difference(problems, samples, alike=alike)
    rng, trials = np.random.default_rng(0), 4000
    size = (1 - alike) / alike if alike else 1e9
    chances = np.clip(rng.beta(size / 2, size / 2, (problems, trials)), gain / 2, 1 - gain / 2)
    a, b = (rng.binomial(samples, chances + side * gain / 2) / samples for side in (1, -1))
    told = mean_interval(a - b, (-1.0, 1.0))
    assert (told.low > 0).mean() == pytest.approx(0.8, abs=0.04)
    assert least_difference(4 * problems, samples) == pytest.approx(
        least_difference(problems, 4 * samples), rel=0.03
    )
    with pytest.raises(ValueError, match="1 problems, 1 samples"):
        least_difference(1)


def test_correlated_budgets_keep_their_area_uncertain():
    # a problem is right at all budgets or at none: averaging over budgets must not shrink the error
    rng = np.random.default_rng(0)
    scores = np.repeat((rng.random((100, 1, 1, 1)) > 0.5).astype(float), 8, axis=2)
    a, b = records(scores), records(np.zeros_like(scores))
    told = paired_difference(a, b).set_index("measure")
    assert told.loc["anytime", "low"] == pytest.approx(told.loc["final", "low"])
    assert told.loc["anytime", "se"] == pytest.approx(told.loc["final", "se"])


def test_many_curves_keep_their_names_and_order():
    frame = accuracy_curves({"b": random_records(seed=1), "a": random_records(seed=2)})
    assert frame["run"].tolist() == ["b"] * 4 + ["a"] * 4


def test_a_large_study_is_aggregated_quickly():
    rng = np.random.default_rng(0)
    rows = 1000 * 32 * 16
    k = np.arange(rows)
    frame = pd.DataFrame(
        {
            "problem_id": pd.Categorical.from_codes(k // 512, [f"p{i}" for i in range(1000)]),
            "sample": k // 32 % 16,
            "budget": 250 * (k % 32 + 1),
            "cut": 250 * (k % 32 + 1),
            "score": (rng.random(rows) > 0.5).astype(float),
        }
    )
    frame["correct"] = frame["score"] >= 1
    started = time.perf_counter()
    table = problem_table(frame)
    tables = {name: table for name in "abcdef"}
    paired_differences(tables, "a")
    accuracy_curves(tables)
    assert time.perf_counter() - started < 30  # about half a second on an idle core


def test_a_table_is_taken_as_it_is():
    table = problem_table(random_records())
    assert problem_table(table) is table
    assert isinstance(table, ProblemTable)
