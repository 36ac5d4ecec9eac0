"""Advantages against tables worked by hand."""

import math

import pytest
import torch

from anytime_lab.train.advantages import (
    BaselineMix,
    group_baseline,
    group_length_penalty,
    linear_length_penalty,
    progress_baseline,
    returns,
    summary_advantages,
    thinking_advantages,
    token_advantages,
    variance_diagnostics,
)

NAN = math.nan
UNIFORM = torch.full((4,), 0.25)
# One problem, two thinkings, four budgets.
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
    close(thinking_advantages(SCORES, UNIFORM, BaselineMix.brpo(4), 0.5)[0, 0], expected)


def test_index_and_token_weights_agree_on_even_grids_only():
    assert BaselineMix.brpo(4) == BaselineMix.brpo_tokens([24, 48, 72, 96])
    uneven = BaselineMix.brpo_tokens([10, 20, 40, 100])
    assert uneven.progress == pytest.approx((0.0, 0.1, 0.2, 0.4))
    assert uneven.group == pytest.approx((1.0, 0.9, 0.8, 0.6))


def test_on_an_uneven_grid_tokens_weigh_the_baselines():
    # Budgets 10, 20, 40, 100: progress weighs 0, .1, .2, .4, and the group the rest.
    mix = BaselineMix.brpo_tokens([10, 20, 40, 100])
    # R - V with V = [.4375, .9 * .4375, .2 / 3 + .8 * .3125, .4 / 7 + .6 * .25]
    close(
        thinking_advantages(SCORES, UNIFORM, mix, 0.5)[0, 0],
        [0.1875, 0.23125, 0.375 - 0.2 / 3 - 0.25, 0.25 - 0.4 / 7 - 0.15],
    )


def test_the_other_mixes_are_one_baseline_or_none():
    prior = torch.tensor([0.1, 0.2, 0.3, 0.4])
    one = thinking_advantages(SCORES, prior, BaselineMix.progress_only(4), 0.5)
    close(one, returns(SCORES, prior) - progress_baseline(SCORES, prior, 0.5))
    two = thinking_advantages(SCORES, prior, BaselineMix.group_only(4), 0.5)
    close(two, returns(SCORES, prior) - group_baseline(SCORES, prior))
    close(thinking_advantages(SCORES, prior, BaselineMix.none(4), 0.5), returns(SCORES, prior))


def test_one_budget_is_the_centred_reward_of_grpo():
    rewards = torch.tensor([[[1.0], [0.0], [0.0], [1.0]], [[-2.0], [0.5], [3.0], [0.0]]])
    centred = rewards - rewards.mean(1, keepdim=True)
    close(thinking_advantages(rewards, torch.ones(1), BaselineMix.brpo(1), 0.5), centred)
    close(
        summary_advantages(rewards[..., None], torch.ones(2, 4, 1), torch.ones(1)),
        centred[..., None],
    )


def test_ties_in_a_group_give_no_advantage_to_the_group_baseline():
    tied = torch.tensor([[[0.0, 1.0], [0.0, 1.0]]])
    close(
        thinking_advantages(tied, torch.tensor([0.5, 0.5]), BaselineMix.group_only(2), 0.5),
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


def test_an_abstained_summary_has_no_advantage_and_leaves_the_mean():
    scores = torch.tensor([[[[1.0, NAN, 0.0], [NAN, NAN, NAN]]]])
    got = summary_advantages(scores, torch.tensor([[[1, 2]]]), torch.tensor([1.0, 0.0]))
    close(got[0, 0] * 3, [[0.5, 0.0, -0.5], [0.0, 0.0, 0.0]])


def test_negative_scores_are_scores_like_any_other():
    shifted = SCORES - 3
    prior = UNIFORM
    mix = BaselineMix.brpo(4)
    # A constant cancels wherever both baselines see it: everywhere but the first budget's V1 = 0,
    # whose weight is 0.
    close(
        thinking_advantages(shifted, prior, mix, 0.5), thinking_advantages(SCORES, prior, mix, 0.5)
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
    found = variance_diagnostics(scores, prior, 0.5)
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


def test_the_linear_length_penalty_lowers_what_is_right():
    scores = torch.tensor([[[[1.0], [0.0]], [[-1.0], [0.5]]]])
    cuts = torch.tensor([[[50, 100], [50, 100]]])
    close(linear_length_penalty(scores, cuts, 100, 0.2)[0, :, :, 0], [[0.9, 0.0], [-1.0, 0.4]])


def test_the_group_length_penalty_compares_with_the_right_thinkings():
    scores = torch.tensor([[[[1.0]], [[1.0]], [[0.0]]]])
    cuts = torch.tensor([[[40], [60], [1000]]])
    # mean 50, std 10: one deviation below and above.
    below, above = 1 / (1 + math.e), 1 / (1 + math.exp(-1))
    close(
        group_length_penalty(scores, cuts, 0.2)[0, :, 0, 0],
        [1 - 0.2 * below, 1 - 0.2 * above, 0.0],
    )
    alone = group_length_penalty(torch.tensor([[[[1.0]], [[0.0]]]]), cuts[:, :2], 0.2)
    close(alone[0, :, 0, 0], [0.9, 0.0])


@pytest.mark.parametrize(
    "call",
    [
        lambda: returns(SCORES[0], UNIFORM),
        lambda: returns(SCORES, UNIFORM[:3]),
        lambda: thinking_advantages(SCORES, UNIFORM, BaselineMix.brpo(3), 0.5),
        lambda: summary_advantages(SCORES, torch.zeros(1, 2, 4), UNIFORM),
        lambda: BaselineMix((0.0,), (1.0, 1.0)),
    ],
)
def test_shapes_that_do_not_fit_are_refused(call):
    with pytest.raises(ValueError):
        call()
