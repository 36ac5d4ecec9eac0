"""Exit rules replayed on tables worked by hand, calibration."""

import itertools
import math

import numpy as np
import pandas as pd
import pytest

from anytime_lab.read.policies import (
    calibration,
    calibration_error,
    confidence_auroc,
    fixed_budgets,
    lay_out,
    majority_votes,
    policy_frame,
    replay_all,
    spread_thresholds,
    stop_on_agreement,
    stop_on_confidence,
)

BUDGETS = [10, 20, 30, 40]


def records(answers, golds, confidence=None, lengths=None, ends=None, asked=2):
    """answers: (P, n, J) strings or None; golds: P strings; one summary per budget."""
    answers = np.array(answers, dtype=object)
    shape = answers.shape
    confidence = np.full(shape, 0.5) if confidence is None else np.array(confidence, dtype=float)
    lengths = np.full(shape[:2], 40) if lengths is None else np.array(lengths)
    ends = np.full(shape[:2], "length") if ends is None else np.array(ends)
    rows = []
    for p, n, j in np.ndindex(shape):
        right = answers[p, n, j] == golds[p]
        rows.append(
            {
                "problem_id": f"p{p}",
                "sample": n,
                "budget": BUDGETS[j],
                "summary": 0,
                "cut": min(BUDGETS[j], lengths[p, n]),
                "thinking_tokens": lengths[p, n],
                "thinking_end": ends[p, n],
                "summary_tokens": asked,
                "answer": answers[p, n, j],
                "score": float(right),
                "correct": right,
                "logprob": math.log(confidence[p, n, j]),
            }
        )
    return pd.DataFrame(rows)


# Two problems, one sample: the first settles on the right answer, the second loses it.
TWO = records([[["1", "2", "2", "2"]], [["5", "5", "6", "6"]]], ["2", "5"])


def by_setting(frame):
    return frame.set_index("setting")


def test_agreement_stops_where_k_budgets_say_the_same():
    one, two, three = stop_on_agreement(lay_out(TWO), [1, 2, 3])
    # k=1: both stop at 10 ("1" wrong, "5" right). k=2: at 30 ("2") and at 20 ("5"), both right.
    assert one.accuracy.tolist() == [0, 1] and one.spent == 10
    assert two.accuracy.tolist() == [1, 1] and two.spent == 25
    # k=3: the first at 40 with "2"; the second never agrees, so the largest budget stops it
    assert three.accuracy.tolist() == [1, 0] and three.spent == 40


def test_a_rule_pays_for_every_summary_it_asked_for():
    (two,) = stop_on_agreement(lay_out(TWO), [2])
    assert two.with_summaries == 25 + np.mean([3 * 2, 2 * 2])
    assert [o.with_summaries for o in fixed_budgets(lay_out(TWO))] == [12, 22, 32, 42]


def test_a_missing_answer_agrees_with_nothing():
    replay = lay_out(records([[[None, None, "2", "2"]]], ["2"]))
    (two,) = stop_on_agreement(replay, [2])
    assert two.spent == 40 and two.accuracy.tolist() == [1]


def test_a_thinking_that_ended_by_itself_is_answered_where_it_ended():
    frame = records([[["1", "2", "3", "4"]]], ["2"], lengths=[[15]], ends=[["closed"]])
    (never,) = stop_on_agreement(lay_out(frame), [9])
    assert never.accuracy.tolist() == [1]  # the summary asked at 20, the first past the end
    assert (never.spent, never.allowed, never.with_summaries) == (15, 20, 15 + 4)
    cut = frame.assign(thinking_end="length")  # cut at 15 by a limit of its own: no end
    (never,) = stop_on_agreement(lay_out(cut), [9])
    assert never.allowed == 40


def test_confidence_stops_at_the_first_answer_that_passes():
    confidence = [[[0.2, 0.9, 0.3, 0.3]], [[0.4, 0.6, 0.7, 0.8]]]
    frame = records([[["1", "2", "2", "3"]], [["5", "6", "5", "6"]]], ["2", "5"], confidence)
    replay = lay_out(frame)
    low, high, never = stop_on_confidence(replay, [0.3, 0.65, 0.99])
    assert low.accuracy.tolist() == [1, 1] and low.spent == 15
    assert high.accuracy.tolist() == [1, 1] and high.spent == 25
    assert never.accuracy.tolist() == [0, 0] and never.spent == 40
    # the same per token: two tokens a summary, so the square root
    (root,) = stop_on_confidence(replay.per_token(), [0.8])
    assert root.spent == 25


def test_an_abstained_verdict_leaves_the_mean():
    frame = TWO.copy()
    frame.loc[(frame["problem_id"] == "p1") & (frame["budget"] == 20), "score"] = np.nan
    (two,) = stop_on_agreement(lay_out(frame), [2])
    assert two.accuracy[0] == 1 and math.isnan(two.accuracy[1])
    row = by_setting(policy_frame([two, *fixed_budgets(lay_out(frame))])).loc["2 budgets agree"]
    assert row["accuracy"] == 1 and row["n_problems"] == 1


def random_run(p=12, n=6, seed=0):
    rng = np.random.default_rng(seed)
    answers = rng.choice(["1", "2", "3", None], size=(p, n, 4), p=[0.5, 0.25, 0.15, 0.1])
    return records(answers, ["1"] * p, rng.uniform(0.05, 1, size=(p, n, 4)))


def _majority_by_hand(answers):
    votes = {a: answers.count(a) for a in answers if a is not None}
    winners = [a for a in votes if votes[a] == max(votes.values())]
    return np.mean([a == "1" for a in winners]) if winners else 0.0


@pytest.mark.parametrize("k", [1, 2, 3, 5])
def test_majorities_equal_counting_all_subsets(k):
    rng = np.random.default_rng(k)
    answers = rng.choice(np.array(["1", "2", "3", None], dtype=object), size=(4, 5, 4))
    replay = lay_out(records(answers, ["1"] * 4))
    frame = policy_frame([*fixed_budgets(replay), *majority_votes(replay, [k])], "allowed")
    told = frame[frame["policy"] == "majority"]
    wanted = [
        np.mean(
            [
                _majority_by_hand(list(subset))
                for p in range(4)
                for subset in itertools.combinations(answers[p, :, j], k)
            ]
        )
        for j in range(4)
    ]
    assert told["accuracy"].tolist() == pytest.approx(wanted)
    assert told["tokens"].tolist() == [k * budget for budget in BUDGETS]


def test_drawn_majorities_come_near_the_full_count():
    replay = lay_out(random_run())
    full, drawn = (majority_votes(replay, [3], draws=d, seed=1) for d in (20, 15))
    for one, other in zip(full, drawn, strict=True):
        assert one.accuracy.mean() == pytest.approx(other.accuracy.mean(), abs=0.05)
    assert any((a.accuracy != b.accuracy).any() for a, b in zip(full, drawn, strict=True))


def test_a_majority_needs_equally_many_samples():
    frame = random_run().query("not (problem_id == 'p3' and sample == 5)")
    with pytest.raises(ValueError, match="5 to 6 samples"):
        majority_votes(lay_out(frame), [2])
    with pytest.raises(ValueError, match="1 … 6"):
        majority_votes(lay_out(random_run()), [7])


def test_unequal_samples_leave_the_other_rules():
    frame = random_run().query("not (problem_id == 'p3' and sample == 5)")
    told = policy_frame(replay_all(lay_out(frame)))
    assert set(told["policy"]) == {"fixed budget", "agreement", "confidence"}


def test_a_rule_is_paired_with_the_fixed_budget_of_the_same_cost():
    frame = by_setting(
        policy_frame([*fixed_budgets(lay_out(TWO)), *stop_on_agreement(lay_out(TWO), [1, 2, 3])])
    )
    # fixed: p0 0 1 1 1, p1 1 1 0 0. k=2 costs 25: halfway between (1, 1) and (1, 0).
    row = frame.loc["2 budgets agree"]
    assert row["tokens"] == 25 and row["difference"] == pytest.approx(0.25)
    # two problems, differences 0 and 0.5, say next to nothing
    assert row["difference_low"] < -0.5 and row["difference_high"] > 0.9
    assert frame.loc["1 budgets agree", "difference"] == 0
    assert frame.loc["3 budgets agree", "difference"] == 0
    assert frame.loc["20 tokens", "difference"] != frame.loc["20 tokens", "difference"]  # missing


def test_past_the_largest_budget_the_largest_is_the_match():
    replay = lay_out(random_run())
    outcomes = [*fixed_budgets(replay), *majority_votes(replay, [6])]
    frame = policy_frame(outcomes)
    last = frame[frame["policy"] == "fixed budget"]["accuracy"].iloc[-1]
    row = frame.iloc[-1]
    assert row["tokens"] == 240
    assert row["difference"] == pytest.approx(row["accuracy"] - last)


def test_a_fixed_budget_differs_from_itself_by_nothing():
    replay = lay_out(random_run())
    frame = policy_frame([*fixed_budgets(replay), *majority_votes(replay, [1])])
    assert frame["difference"].dropna().tolist() == pytest.approx([0] * 4)


def test_wrong_counts_and_missing_fixed_budgets_are_refused():
    replay = lay_out(TWO)
    with pytest.raises(ValueError, match="'dollars'.*spent"):
        policy_frame(fixed_budgets(replay), "dollars")
    with pytest.raises(ValueError, match="no fixed budgets"):
        policy_frame(stop_on_agreement(replay, [2]))
    with pytest.raises(ValueError, match="at least 1"):
        stop_on_agreement(replay, [0])
    with pytest.raises(ValueError, match="logprob"):
        lay_out(TWO.drop(columns="logprob"))


def test_calibration_bins_hold_confidence_beside_accuracy():
    confidence = [[[0.1, 0.2, 0.8, 0.9]], [[0.1, 0.2, 0.8, 0.9]]]
    frame = records([[["0", "1", "1", "1"]], [["0", "0", "0", "1"]]], ["1", "1"], confidence)
    replay = lay_out(frame)
    told = calibration(replay, bins=2)
    assert told["confidence"].tolist() == pytest.approx([0.15, 0.85])
    assert told["accuracy"].tolist() == [0.25, 0.75]
    assert told["answers"].tolist() == [4, 4]
    # low bin: p0 has 0, 1 (off by 0.5 in sum), p1 has 0, 0 (−0.5): sqrt(0.5 · 2) / 4
    assert told["se"].iloc[0] == pytest.approx(math.sqrt(0.5 * 2) / 4)
    assert calibration_error(told) == pytest.approx(0.1)
    # right: 0.2 0.8 0.9 0.9; wrong: 0.1 0.1 0.2 0.8 → 16 pairs, 13 won, 2 tied
    assert confidence_auroc(replay) == pytest.approx((13 + 2 * 0.5) / 16)


def test_calibration_at_one_budget_reads_that_budget_alone():
    replay = lay_out(random_run())
    told = calibration(replay, budget=20, bins=3)
    answered = random_run().query("budget == 20")["answer"].notna().sum()
    assert told["answers"].sum() == answered
    with pytest.raises(ValueError, match="25 was not measured"):
        calibration(replay, budget=25)


def test_calibration_of_nothing_is_an_empty_frame():
    replay = lay_out(records([[[None] * 4]], ["1"]))
    assert calibration(replay).empty
    assert math.isnan(calibration_error(calibration(replay)))
    assert math.isnan(confidence_auroc(replay))


def test_thresholds_span_the_confidences():
    replay = lay_out(random_run())
    cuts = spread_thresholds(replay, count=5)
    assert cuts == sorted(cuts) and len(cuts) == 5
    first, *_, last = stop_on_confidence(replay, cuts)
    assert first.spent < last.spent
