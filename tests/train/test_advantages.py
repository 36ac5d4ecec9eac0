"""Advantages against tables worked by hand."""

import math

import pytest
import torch

from anytime_lab.train.advantages import (
    BASELINES,
    PENALTIES,
    group_baseline,
    progress_baseline,
    reaches_budgets,
    returns,
    summary_advantages,
    thinking_advantages,
    token_advantages,
    variance_diagnostics,
)

NAN = math.nan
UNIFORM = torch.full((4,), 0.25)
# One problem, two thinkings, four budgets.
EVEN = [24, 48, 72, 96]
SCORES = torch.tensor([[[0.0, 1.0, 0.5, 1.0], [0.0, 0.0, 0.0, 1.0]]])


def close(actual, expected):
    torch.testing.assert_close(
        actual, torch.as_tensor(expected, dtype=actual.dtype), equal_nan=True
    )


def test_returns_sum_the_weighted_scores_from_a_budget_on():
    close(returns(SCORES, UNIFORM), [[[0.625, 0.625, 0.375, 0.25], [0.25, 0.25, 0.25, 0.25]]])


def test_progress_baseline_discounts_earlier_scores():
    # j=2: r1 = 0. j=3: (.25*0 + .5*1) / .75 * .5. j=4: (.125*0 + .25*1 + .5*.5) / .875 * .25.
    close(
        progress_baseline(SCORES, UNIFORM, 0.5)[0, 0],
        [0.0, 0.0, (0.5 / 0.75) * 0.5, (0.5 / 0.875) * 0.25],
    )


def test_without_discount_the_progress_baseline_is_the_plain_mean():
    close(progress_baseline(SCORES, UNIFORM, 1.0)[0, 0], [0.0, 0.0, 0.25, 0.125])


def test_a_discount_of_zero_is_the_limit_the_latest_score_alone():
    scores = SCORES.clone()
    scores[0, 0, 2] = NAN  # its latest score at the last budget is then the second
    close(
        progress_baseline(scores, UNIFORM, 0.0),
        [[[0.0, 0.0, 1.0 * 0.25, 1.0 * 0.25], [0.0, 0.0, 0.0, 0.0]]],
    )
    close(progress_baseline(scores, UNIFORM, 0.0), progress_baseline(scores, UNIFORM, 1e-7))


def test_group_baseline_includes_the_thinking_itself():
    close(group_baseline(SCORES, UNIFORM)[0, 1], [0.4375, 0.4375, 0.3125, 0.25])


def test_brpo_mixes_by_index():
    v1 = [0.0, 0.0, 1 / 3, 1 / 7]
    v2 = [0.4375, 0.4375, 0.3125, 0.25]
    returned = [0.625, 0.625, 0.375, 0.25]
    mixed = [j / 4 * v1[j] + (4 - j) / 4 * v2[j] for j in range(4)]
    expected = [r - v for r, v in zip(returned, mixed, strict=True)]
    close(thinking_advantages(SCORES, UNIFORM, EVEN, "brpo", 0.5)[0, 0], expected)


@pytest.mark.parametrize(
    ("baseline", "progress", "group"),
    [
        ("brpo", [0, 0.25, 0.5, 0.75], [1, 0.75, 0.5, 0.25]),
        ("brpo_tokens", [0, 0.1, 0.2, 0.4], [1, 0.9, 0.8, 0.6]),
        ("progress", [1, 1, 1, 1], [0, 0, 0, 0]),
        ("group", [0, 0, 0, 0], [1, 1, 1, 1]),
        ("none", [0, 0, 0, 0], [0, 0, 0, 0]),
    ],
)
def test_a_baseline_weighs_progress_and_group_at_each_budget(baseline, progress, group):
    prior = torch.tensor([0.1, 0.2, 0.3, 0.4])
    v1, v2 = progress_baseline(SCORES, prior, 0.5), group_baseline(SCORES, prior)
    expected = torch.tensor(progress) * v1 + torch.tensor(group) * v2
    got = thinking_advantages(SCORES, prior, [10, 20, 40, 100], baseline, 0.5)
    close(got, returns(SCORES, prior) - expected)


def test_index_and_token_weights_agree_on_even_grids():
    one, two = (BASELINES[name][1](SCORES, UNIFORM, EVEN, 0.5) for name in ("brpo", "brpo_tokens"))
    close(one, two)


def test_one_budget_is_the_centred_reward_of_grpo():
    rewards = torch.tensor([[[1.0], [0.0], [0.0], [1.0]], [[-2.0], [0.5], [3.0], [0.0]]])
    centred = rewards - rewards.mean(1, keepdim=True)
    close(thinking_advantages(rewards, torch.ones(1), [8], "brpo", 0.5), centred)
    close(
        summary_advantages(rewards[..., None], torch.ones(2, 4, 1), torch.ones(1)),
        centred[..., None],
    )


def test_ties_in_a_group_give_no_advantage_to_the_group_baseline():
    tied = torch.tensor([[[0.0, 1.0], [0.0, 1.0]]])
    close(
        thinking_advantages(tied, torch.tensor([0.5, 0.5]), [4, 8], "group", 0.5),
        torch.zeros(1, 2, 2),
    )


def test_a_missing_score_leaves_returns_and_means():
    scores = torch.tensor([[[1.0, NAN], [0.0, 1.0], [NAN, 0.0]]])
    prior = torch.tensor([0.5, 0.5])
    close(returns(scores, prior), [[[0.5, 0.0], [0.5, 0.5], [0.0, 0.0]]])
    # Means over who has a score: 1/2 at the first budget, 1/2 at the second.
    close(group_baseline(scores, prior), [[[0.25, 0.0], [0.5, 0.25], [0.25, 0.25]]])
    close(progress_baseline(scores, prior, 0.5), [[[0.0, 0.0], [0.0, 0.0], [0.0, 0.0]]])
    late = torch.tensor([[[0.5, NAN, 1.0]]])
    close(progress_baseline(late, torch.full((3,), 1 / 3), 0.5)[0, 0], [0.0, 1 / 6, 1 / 6])
    # Discounted by how far back it lies, whatever lies between: (.125*1 + .5*0) / .625 * .25.
    between = torch.tensor([[[1.0, NAN, 0.0, 1.0]]])
    close(progress_baseline(between, UNIFORM, 0.5)[0, 0], [0.0, 0.5, 0.5, 0.05])


def test_summaries_are_compared_on_the_same_truncated_thinking():
    scores = torch.tensor([[[[1.0, 0.0], [1.0, 1.0], [0.0, 1.0]]]])
    own = summary_advantages(scores, torch.tensor([[[2, 4, 6]]]), torch.full((3,), 1 / 3))
    close(own[0, 0] * 6, [[0.5, -0.5], [0.0, 0.0], [-0.5, 0.5]])


def test_budgets_after_the_end_of_thinking_share_one_group():
    scores = torch.tensor([[[[1.0, 0.0], [1.0, 1.0], [0.0, 1.0]]]])
    shared = summary_advantages(scores, torch.tensor([[[2, 3, 3]]]), torch.full((3,), 1 / 3))
    close(shared[0, 0] * 6, [[0.5, -0.5], [0.25, 0.25], [-0.75, 0.25]])


def test_single_summaries_are_compared_with_the_group_at_the_same_budget():
    scores = torch.tensor([[[[1.0], [0.0]], [[0.0], [0.0]], [[1.0], [1.0]]]])
    got = summary_advantages(scores, torch.zeros(1, 3, 2), torch.tensor([0.25, 0.75]))
    close(got[0, :, 0, 0] * 4, [1 / 3, -2 / 3, 1 / 3])
    close(got[0, :, 1, 0] / 0.75, [-1 / 3, -1 / 3, 2 / 3])


def test_summaries_weighted_as_in_the_paper_and_as_in_the_authors_code_by_hand():
    # two thinkings, two budgets, two summaries; each node's mean is 1/2, 1, 0 and 1/2
    scores = torch.tensor([[[[1.0, 0.0], [1.0, 1.0]], [[0.0, 0.0], [0.0, 1.0]]]])
    cuts, prior = torch.tensor([[[2, 4], [2, 3]]]), torch.tensor([0.25, 0.75])
    apart = torch.tensor([[[0.5, -0.5], [0.0, 0.0]], [[0.0, 0.0], [-0.5, 0.5]]])
    close(summary_advantages(scores, cuts, prior, "eq10")[0, 0, 0], [0.25 / 4, -0.25 / 4])
    close(summary_advantages(scores, cuts, prior, "eq10")[0, 1, 1], [-0.75 / 4, 0.75 / 4])
    close(summary_advantages(scores, cuts, prior, "authors")[0], apart.tolist())
    last = summary_advantages(scores, cuts, torch.tensor([0.0, 1.0]), "authors")  # trained alone
    close(last[0], [[[0.0, 0.0]] * 2, [[0.0, 0.0], [-0.5, 0.5]]])
    uniform = [
        summary_advantages(scores, cuts, torch.full((2,), 0.5), w) for w in ("eq10", "authors")
    ]
    close(uniform[1], (uniform[0] * 4).tolist())  # J S


def test_an_abstained_summary_has_no_advantage_and_leaves_the_mean():
    scores = torch.tensor([[[[1.0, NAN, 0.0], [NAN, NAN, NAN]]]])
    got = summary_advantages(scores, torch.tensor([[[1, 2]]]), torch.tensor([1.0, 0.0]))
    close(got[0, 0] * 3, [[0.5, 0.0, -0.5], [0.0, 0.0, 0.0]])


def test_negative_scores_are_scores_like_any_other():
    shifted = SCORES - 3
    # A constant cancels wherever both baselines see it: everywhere but the first budget's V1 = 0,
    # whose weight is 0.
    close(
        thinking_advantages(shifted, UNIFORM, EVEN, "brpo", 0.5),
        thinking_advantages(SCORES, UNIFORM, EVEN, "brpo", 0.5),
    )


def test_tokens_take_the_advantage_of_the_budget_they_lead_to():
    thinking = torch.tensor([[10.0, 20.0, 30.0]])
    summary = torch.tensor([[[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]]])
    # Budgets 2, 3, 6; a thinking of 4 tokens; leaves 0 (cut 2), 3 (cut 3), 4 (cut 4); padding.
    leaf = torch.tensor([[-1, -1, -1, -1, 0, 0, 3, 4, 4, -2]])
    branch = torch.tensor([[0, 1, 2, 3, 2, 2, 3, 4, 4, 0]])
    close(
        token_advantages(thinking, summary, leaf, branch, [2, 3, 6]),
        [[10.0, 10.0, 20.0, 30.0, 1.0, 1.0, 4.0, 5.0, 5.0, 0.0]],
    )


def test_variance_diagnostics_are_those_of_numpy():
    import numpy as np

    torch.manual_seed(0)
    scores = torch.rand(6, 4, 3)
    prior = torch.tensor([0.2, 0.3, 0.5])
    everyone = torch.ones_like(scores, dtype=torch.bool)
    found = variance_diagnostics(scores, prior, [4, 8, 12], 0.5, everyone)
    target = returns(scores, prior).flatten(0, 1).numpy()
    for name, baseline in (
        ("progress", progress_baseline(scores, prior, 0.5)),
        ("group", group_baseline(scores, prior)),
    ):
        value = baseline.flatten(0, 1).numpy()
        correlation, ratio = found[name]
        for j in range(3):
            left = np.var(target[:, j] - value[:, j]) / np.var(target[:, j])
            assert ratio[j] == pytest.approx(left, rel=1e-4)
            if np.var(value[:, j]) > 0:
                expected = np.corrcoef(target[:, j], value[:, j])[0, 1]
                assert correlation[j] == pytest.approx(expected, abs=1e-4)
    assert math.isnan(found["progress"][0][0])  # V1 is 0 at the first budget
    close(found["brpo"][1][0], found["group"][1][0])


def test_variance_is_taken_over_the_thinkings_that_reach_a_budget():
    # Budgets 4, 8. The third thinking ends at 3 tokens, the fourth at exactly 4: both train no
    # token for budget 8, and their scores must not count there.
    scores = torch.tensor([[[0.0, 0.0], [1.0, 1.0], [1.0, 9.0], [0.0, -9.0], [0.0, 1.0]]])
    cuts = torch.tensor([[[4, 8], [4, 6], [3, 3], [4, 4], [4, 5]]])
    reached = reaches_budgets(cuts)
    assert reached[0, :, 1].tolist() == [True, True, False, False, True] and reached[..., 0].all()
    found = variance_diagnostics(scores, torch.tensor([0.0, 1.0]), [4, 8], 1.0, reached)
    correlation, ratio = found["progress"]
    # R 0, 1, 1 against V1 0, 1, 0 (the score at budget 4): R - V1 = 0, 0, 1.
    # Var[R] = 2/9, Var[R - V1] = 2/9; covariance 1/9, Var[V1] = 2/9.
    assert ratio[1] == pytest.approx(1.0)
    assert correlation[1] == pytest.approx(0.5)
    nobody = variance_diagnostics(scores, torch.tensor([0.0, 1.0]), [4, 8], 1.0, reached & False)
    assert all(value.isnan().all() for pair in nobody.values() for value in pair)


def test_the_linear_length_penalty_lowers_what_is_right():
    scores = torch.tensor([[[[1.0], [0.0]], [[-1.0], [0.5]]]])
    cuts = torch.tensor([[[50, 100], [50, 100]]])
    linear = PENALTIES["linear"][1]
    close(linear(scores, cuts, [50, 100], 0.2)[0, :, :, 0], [[0.9, 0.0], [-1.0, 0.4]])


def test_the_overlong_penalty_falls_over_the_last_tokens_right_or_wrong():
    # 100 tokens with a cache of 20: nothing up to 80, a half at 90, a whole one at 100
    scores = torch.tensor([[[[1.0, 0.0]], [[1.0, 0.0]], [[1.0, 0.0]], [[torch.nan, 1.0]]]])
    cuts = torch.tensor([[[80], [90], [100], [30]]])
    overlong = PENALTIES["overlong"][1]
    got = overlong(scores, cuts, [100], 0.2)[0, :, 0]
    close(got[:3], [[1.0, 0.0], [0.5, -0.5], [0.0, -1.0]])
    assert got[3, 0].isnan() and got[3, 1] == 1.0
    assert overlong(scores, cuts, [100], 0.0) is scores


def test_the_group_length_penalty_compares_with_the_right_thinkings():
    scores = torch.tensor([[[[1.0]], [[1.0]], [[0.0]]]])
    cuts = torch.tensor([[[40], [60], [1000]]])
    group = PENALTIES["group"][1]
    # mean 50, std 10: one deviation below and above.
    below, above = 1 / (1 + math.e), 1 / (1 + math.exp(-1))
    close(
        group(scores, cuts, [2000], 0.2)[0, :, 0, 0],
        [1 - 0.2 * below, 1 - 0.2 * above, 0.0],
    )
    alone = group(torch.tensor([[[[1.0]], [[0.0]]]]), cuts[:, :2], [2000], 0.2)
    close(alone[0, :, 0, 0], [0.9, 0.0])


def test_the_limit_takes_the_scores_of_longer_thinkings_and_of_those_that_were_stopped():
    scores = torch.tensor([[[[1.0, 0.0]], [[1.0, -1.0]], [[0.5, torch.nan]]]])
    cuts = torch.tensor([[[80], [81], [100]]])
    limit = PENALTIES["limit"][1]
    close(limit(scores, cuts, [100], 0.2)[0, :, 0], [[1.0, 0.0], [0.0, -1.0], [0.0, NAN]])
    # without a lower limit, what sampling stopped at b_m has no answer of its own
    close(limit(scores, cuts, [100], 0.0)[0, :, 0], [[1.0, 0.0], [1.0, -1.0], [0.0, NAN]])


def test_s_grpo_halves_the_score_of_each_further_right_exit():
    # the paper's figure: exits right, wrong, right, right; the second thinking ends at 48 tokens
    scores = torch.tensor([[[[1.0], [0.0], [1.0], [1.0]], [[0.0], [1.0], [1.0], [0.0]]]])
    cuts = torch.tensor([[[24, 48, 72, 96], [24, 48, 48, 48]]])
    decayed = PENALTIES["decay"][1](scores, cuts, EVEN, 0.2)
    close(decayed[0, :, :, 0], [[1.0, 0.0, 0.5, 0.25], [0.0, 1.0, NAN, NAN]])
    # its own exits' mean is 7/16 and 1/2: r - mean is 9/16, -7/16, 1/16, -3/16 and -1/2, 1/2;
    # a token has a quarter of those of all exits behind it
    means = decayed[..., 0]
    made = thinking_advantages(means, UNIFORM, EVEN, "serial", 0.5)
    close(made[0], [[0.0, -9 / 64, -2 / 64, -3 / 64], [0.0, 1 / 8, 0.0, 0.0]])
    close(
        summary_advantages(decayed, cuts, UNIFORM, "eq10", "serial")[0, :, :, 0] * 64,
        [[9.0, -7.0, 1.0, -3.0], [-8.0, 8.0, 0.0, 0.0]],
    )


@pytest.mark.parametrize(
    "call",
    [
        lambda: returns(SCORES[0], UNIFORM),
        lambda: returns(SCORES, UNIFORM[:3]),
        lambda: thinking_advantages(SCORES, UNIFORM, EVEN[:3], "brpo", 0.5),
        lambda: summary_advantages(SCORES, torch.zeros(1, 2, 4), UNIFORM),
    ],
)
def test_shapes_that_do_not_fit_are_refused(call):
    with pytest.raises(ValueError):
        call()
