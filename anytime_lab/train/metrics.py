"""Numbers of one generation, for the logger and `metrics.jsonl`. Pure functions of tensors."""

from collections.abc import Sequence

import torch
from torch import Tensor

from anytime_lab.train.rollouts import ENDS, TreeNumbers

# TRL reads these off the last token of a row, which in a tree is the last summary's.
MISLEADING = (
    "completions/clipped_ratio",
    "completions/mean_terminated_length",
    "completions/min_terminated_length",
    "completions/max_terminated_length",
)


def combine_rewards(rewards: Tensor, weights: Tensor) -> Tensor:
    """Weighted sum over reward functions; NaN where all of them abstained.

    Args:
        rewards: (..., F), NaN where a function returned None.
        weights: (F,).

    Returns:
        (...) scores.
    """
    scores = (rewards * weights.to(rewards)).nansum(dim=-1)
    return scores.masked_fill(rewards.isnan().all(dim=-1), torch.nan)


def prior_mean(scores: Tensor, prior: Tensor) -> Tensor:
    """Sum of P_j r_j over the budgets that have a score, their weights scaled to sum to 1.

    Args:
        scores: (..., J), NaN where every verifier abstained.
        prior: (J,).

    Returns:
        (...), NaN where no budget with a weight has a score.
    """
    weights = prior.to(scores).expand_as(scores).masked_fill(scores.isnan(), 0.0)
    total = weights.sum(-1)
    return (weights * scores.nan_to_num(0.0)).sum(-1) / total.masked_fill(total == 0, torch.nan)


def overthinking(scores: Tensor) -> Tensor:
    """Whether an earlier budget scored higher than the last, (N,) bool, for scores (N, J)."""
    known = scores.nan_to_num(-torch.inf)
    return (known.max(dim=1).values > known[:, -1]) & ~scores[:, -1].isnan()


def generation_metrics(
    leaf_scores: Tensor, numbers: TreeNumbers, prior: Tensor, budgets: Sequence[int]
) -> dict[str, float]:
    """Scores, lengths, format and overthinking of N thinkings.

    Args:
        leaf_scores: (N, J, S) before any length penalty, NaN where the verifiers abstained.
        numbers: what was counted on the same trees.
        prior: (J,) P_j.
        budgets: J token budgets, the names of the per-budget metrics.

    Returns:
        name -> value; NaN where nothing was scored.
    """
    scores = leaf_scores.nanmean(dim=2)
    lengths = numbers.lengths.double()
    over = overthinking(scores)
    metrics = {
        "anytime_accuracy": prior_mean(scores, prior).nanmean(),
        "uniform_accuracy": prior_mean(scores, torch.ones_like(prior)).nanmean(),
        "final_accuracy": scores[:, -1].nanmean(),
        "format_rate": numbers.formatted.double().mean(),
        "abstained": leaf_scores.isnan().double().mean(),
        "thinking/length": lengths.mean(),
        "thinking/length_max": lengths.max(),
        "thinking/unfinished": (numbers.ends == ENDS.index("length")).double().mean(),
        "thinking/eos": (numbers.ends == ENDS.index("eos")).double().mean(),
        "thinking/overthinking": over.double().mean(),
        "thinking/overthinking_count": over.sum(),
        "summary/length": numbers.summary_tokens.double().mean(),
        "summary/finished": numbers.finished.double().mean(),
        "tokens/thinking": numbers.lengths.sum(),
        "tokens/summary": numbers.summary_tokens.sum(),
    }
    per_budget = scores.nanmean(dim=0)
    metrics |= {f"score/{b}": per_budget[j] for j, b in enumerate(budgets)}
    names, values = list(metrics), torch.stack([v.double() for v in metrics.values()])
    return dict(zip(names, values.tolist(), strict=True))  # one transfer from the device


def variance_metrics(
    explained: dict[str, tuple[Tensor, Tensor]], budgets: Sequence[int]
) -> dict[str, float]:
    """`variance/corr/BASELINE/BUDGET` and `variance/ratio/BASELINE/BUDGET` (the paper's figure 3).

    Args:
        explained: as `variance_diagnostics` returns it.
        budgets: J token budgets.
    """
    rows = {
        f"variance/{measure}/{name}": values
        for name, pair in explained.items()
        for measure, values in zip(("corr", "ratio"), pair, strict=True)
    }
    numbers = torch.stack(list(rows.values())).tolist()  # one transfer from the device
    return {
        f"{name}/{budget}": value
        for name, row in zip(rows, numbers, strict=True)
        for budget, value in zip(budgets, row, strict=True)
    }
