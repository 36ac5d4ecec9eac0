"""Measures beside accuracy against tables worked by hand and brute force over all subsets."""

import itertools
import math

import numpy as np
import pandas as pd
import pytest
from made_runs import SMALL, random_records, records

from anytime_lab.read.curves import (
    accuracy_curve,
    answer_flips,
    anytime_index,
    curve_measures,
    format_rates,
    majority_curve,
    oracle_gap,
    overthinking,
    pass_at_k,
    pass_curve,
    regret,
)


def test_overthinking_counts_scores_that_were_higher_before():
    scores = [[[1, 0, 1], [0, 0, 0]], [[0, 1, 0], [0, 1, 1]]]
    told = overthinking(records(np.array(scores)[..., None]))
    assert told["overthinking"].tolist() == [0, 0.25, 0.25]


def test_the_oracle_gap_is_best_minus_last():
    scores = [[[1, 0, 0.5]], [[0, 1, 1]]]
    assert oracle_gap(records(np.array(scores)[..., None])).value == pytest.approx(0.25)


def test_flips_compare_neighbouring_budgets():
    answers = np.array([[["3", "3", None], ["4", "3", "3"]]])[..., None]
    told = answer_flips(records(np.zeros((1, 2, 3, 1)), answers))
    assert told["budget"].tolist() == [20, 30]
    assert told["flips"].tolist() == [0.5, 0.5]
    with pytest.raises(ValueError, match="flips need two"):
        answer_flips(records(np.zeros((1, 1, 1, 1))))


def test_format_and_unfinished_shares():
    frame = records(SMALL, lengths=[[5, 20], [10, 20]])
    frame.loc[frame["budget"] == 10, "reason"] = ["format", "wrong", "no answer", "correct"]
    frame.loc[frame["budget"] == 20, "finish"] = ["eos", "eos", "eos", "length"]
    told = format_rates(frame)
    assert told["format_rate"].tolist() == [0.5, 1]
    assert told["thinking_unfinished"].tolist() == [0.5, 0.5]  # 20 tokens of 20: cut by its limit
    assert told["summary_unfinished"].tolist() == [0, 0.25]


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


def _majority_by_hand(answers, right):
    votes = {a: answers.count(a) for a in answers if a is not None}
    if not votes:
        return 0.0
    winners = [a for a in votes if votes[a] == max(votes.values())]
    return np.mean([right[a] for a in winners])


@pytest.mark.parametrize("k", [1, 2, 3, 5])
def test_majorities_equal_counting_all_subsets(k):
    rng = np.random.default_rng(k)
    answers = rng.choice(np.array(["a", "b", "c", None], dtype=object), size=(4, 5, 2, 1))
    right = {"a": 1.0, "b": 0.0, "c": 0.0}
    scores = np.vectorize(lambda a: right.get(a, 0.0), otypes=[float])(answers)
    told = majority_curve(records(scores, answers), [k])
    wanted = [
        np.mean(
            [
                _majority_by_hand(list(subset), right)
                for p in range(4)
                for subset in itertools.combinations(answers[p, :, j, 0], k)
            ]
        )
        for j in range(2)
    ]
    assert told["accuracy"].tolist() == pytest.approx(wanted)


def test_drawn_majorities_come_near_the_full_count():
    rng = np.random.default_rng(0)
    answers = rng.choice(
        np.array(["a", "b", "c"], dtype=object), size=(30, 10, 1, 1), p=[0.5, 0.3, 0.2]
    )
    frame = records((answers == "a").astype(float), answers)
    full = majority_curve(frame, [5], draws=252)["accuracy"]
    drawn = majority_curve(frame, [5], draws=150, seed=1)["accuracy"]
    assert drawn.to_numpy() == pytest.approx(full.to_numpy(), abs=0.03)
    assert not drawn.equals(full)


def test_uneven_samples_are_refused_where_they_cannot_be_counted():
    frame = random_records()
    fewer = frame[(frame["problem_id"] != "p1") | (frame["sample"] < 2)]
    with pytest.raises(ValueError, match="2 to 3 samples"):
        pass_curve(fewer, [1])


def test_doubled_rows_are_refused():
    frame = random_records()
    with pytest.raises(ValueError, match="ragged or doubled"):
        overthinking(pd.concat([frame, frame.iloc[:8]]))
    with pytest.raises(ValueError, match="ragged or doubled"):
        overthinking(frame.iloc[1:])


def test_regret_worked_by_hand():
    # triangle to (10, ½), then a trapezoid to (30, 1): 2.5 + 15 of 30
    assert regret(np.array([0.5, 1.0]), [10, 30]) == pytest.approx(1 - 17.5 / 30)


def test_anytime_index_worked_by_hand():
    # best so far 0.2, 0.6, 0.6 at 10, 20, 40: 4 + 12 of 30 · 0.6
    assert anytime_index(np.array([0.2, 0.6, 0.4]), [10, 20, 40]) == pytest.approx(16 / 18)
    assert anytime_index(np.array([0.1, 0.1]), [10, 20]) == pytest.approx(1)  # flat and bad
    assert math.isnan(anytime_index(np.zeros(2), [10, 20]))
    with pytest.raises(ValueError, match="must increase"):
        regret(np.zeros(2), [20, 10])
    with pytest.raises(ValueError, match="one value per budget"):
        regret(np.zeros(3), [10, 20])


def test_curve_measures_hold_their_value_inside_the_interval():
    told = curve_measures(random_records(p=100)).set_index("measure")
    assert (told["low"] < told["value"]).all() and (told["value"] < told["high"]).all()
    assert told.loc["regret", "value"] == pytest.approx(
        float(
            regret(accuracy_curve(random_records(p=100))["accuracy"].to_numpy(), [10, 20, 30, 40])
        )
    )
