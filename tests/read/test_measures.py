"""Measures beside accuracy against tables worked by hand and brute force over all subsets."""

import itertools
import math

import numpy as np
import pandas as pd
import pytest
from made_runs import SMALL, random_records, records

from anytime_lab.read.curves import (
    accuracy_curve,
    anytime_index,
    curve_measures,
    measure_curve,
    pass_at_k,
    pass_curve,
    regret,
)


def test_overthinking_counts_scores_that_were_higher_before():
    scores = [[[1, 0, 1], [0, 0, 0]], [[0, 1, 0], [0, 1, 1]]]
    told = measure_curve(records(np.array(scores)[..., None]), "overthinking")
    assert told["overthinking"].tolist() == [0, 0.25, 0.25]


def test_the_oracle_gap_is_best_minus_last():
    scores = [[[1, 0, 0.5]], [[0, 1, 1]]]
    told = measure_curve(records(np.array(scores)[..., None]), "oracle_gap")
    assert told["budget"].tolist() == [30]
    assert told["oracle_gap"].tolist() == pytest.approx([0.25])


def test_flips_compare_neighbouring_budgets():
    answers = np.array([[["3", "3", None], ["4", "3", "3"]]])[..., None]
    told = measure_curve(records(np.zeros((1, 2, 3, 1)), answers), "flips")
    assert told["budget"].tolist() == [20, 30]
    assert told["flips"].tolist() == [0.5, 0.5]
    with pytest.raises(ValueError, match="flips need two"):
        measure_curve(records(np.zeros((1, 1, 1, 1))), "flips")


def test_format_shares_and_unknown_measures():
    frame = records(SMALL, lengths=[[5, 20], [10, 20]])
    frame.loc[frame["budget"] == 10, "reason"] = ["format", "wrong", "no answer", "correct"]
    frame.loc[frame["budget"] == 20, "finish"] = ["eos", "eos", "eos", "length"]
    shares = {
        "format_rate": [0.5, 1],
        "thinking_unfinished": [0.5, 0.5],  # 20 tokens of 20: cut by its limit
        "summary_unfinished": [0, 0.25],
    }
    for name, wanted in shares.items():
        assert measure_curve(frame, name)[name].tolist() == wanted
    with pytest.raises(ValueError, match="no measure 'luck'; choose from .'overthinking'"):
        measure_curve(frame, "luck")


@pytest.mark.parametrize(("n", "c"), [(6, 0), (6, 1), (6, 3), (6, 6)])
@pytest.mark.parametrize("k", [1, 2, 5, 6])
def test_pass_at_k_equals_counting_all_subsets(n, c, k):
    subsets = list(itertools.combinations([1] * c + [0] * (n - c), k))
    assert pass_at_k(n, c, k) == pytest.approx(np.mean([any(s) for s in subsets]))


def test_pass_curve_averages_over_problems_and_tells_tokens():
    frame = records(np.array([[1, 0, 0], [0, 0, 0]], dtype=float)[..., None, None])
    told = pass_curve(frame, [1, 2, 3])
    assert told["accuracy"].tolist() == pytest.approx([1 / 6, 1 / 3, 1 / 2])
    assert told["tokens"].tolist() == [10, 20, 30]
    with pytest.raises(ValueError, match="1 … 3"):
        pass_curve(frame, [4])


def test_uneven_samples_are_refused_where_they_cannot_be_counted():
    frame = random_records()
    fewer = frame[(frame["problem_id"] != "p1") | (frame["sample"] < 2)]
    with pytest.raises(ValueError, match="2 to 3 samples"):
        pass_curve(fewer, [1])


def test_doubled_rows_are_refused():
    frame = random_records()
    with pytest.raises(ValueError, match="ragged or doubled"):
        measure_curve(pd.concat([frame, frame.iloc[:8]]), "flips")
    with pytest.raises(ValueError, match="ragged or doubled"):
        measure_curve(frame.iloc[1:], "flips")


def test_regret_worked_by_hand():
    # triangle to (10, ½), then a trapezoid to (30, 1): 2.5 + 15 of 30
    assert regret(np.array([0.5, 1.0]), [10, 30]) == pytest.approx(1 - 17.5 / 30)


def test_anytime_index_worked_by_hand():
    # best so far 0.2, 0.6, 0.6 at 10, 20, 40: 4 + 12 of 30 · 0.6
    assert anytime_index(np.array([0.2, 0.6, 0.4]), [10, 20, 40]) == pytest.approx(16 / 18)
    assert anytime_index(np.array([0.1, 0.1]), [10, 20]) == pytest.approx(1)  # flat and bad
    assert math.isnan(anytime_index(np.zeros(2), [10, 20]))


def test_curve_measures_hold_their_value_inside_the_interval():
    told = curve_measures(random_records(p=100)).set_index("measure")
    assert (told["low"] < told["value"]).all() and (told["value"] < told["high"]).all()
    assert told.loc["regret", "value"] == pytest.approx(
        float(
            regret(accuracy_curve(random_records(p=100))["accuracy"].to_numpy(), [10, 20, 30, 40])
        )
    )
