"""Advantages of thinking and summary tokens (BRPO, arXiv 2505.13438, §3 and §4), as pure functions.

P problems, G thinkings per problem (the group), J budgets, S summaries per budget, B packed rows,
C completion length. A score is any real number; NaN means that the verifier abstained, and such a
summary leaves every mean.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor


def _check_scores(scores: Tensor, prior: Tensor) -> None:
    if scores.ndim != 3 or prior.shape != scores.shape[-1:]:
        raise ValueError(
            f"scores {tuple(scores.shape)} and prior {tuple(prior.shape)}; expected (P, G, J) and "
            "(J,)."
        )


def _from_here_on(values: Tensor) -> Tensor:
    """Sum over k >= j along the last dimension."""
    return values.flip(-1).cumsum(-1).flip(-1)


def returns(scores: Tensor, prior: Tensor) -> Tensor:
    """Prior-weighted return from each budget on, R_j = sum over k >= j of P_k r_k (BRPO §3).

    Args:
        scores: (P, G, J) mean score of the summaries at each budget; NaN counts nothing.
        prior: (J,) P_j.

    Returns:
        (P, G, J), in reward units.
    """
    _check_scores(scores, prior)
    return _from_here_on((scores * prior).nan_to_num(0.0))


def progress_baseline(scores: Tensor, prior: Tensor, discount: float) -> Tensor:
    """What this thinking's own earlier budgets lead one to expect, V1 (BRPO eq. 7).

    The mean of the earlier scores, weighted by discount**(j - i), times the prior that is left.
    0 at the first budget, and where no earlier budget has a score. A discount of 0 is the limit:
    the latest earlier score alone.

    Args:
        scores: (P, G, J), NaN where nothing was scored.
        prior: (J,) P_j.
        discount: lambda, in 0…1.

    Returns:
        (P, G, J).
    """
    _check_scores(scores, prior)
    missing = scores.isnan()
    known, filled = (~missing).to(scores), scores.nan_to_num(0.0)
    left = _from_here_on(prior * known)
    total = torch.zeros_like(filled[..., 0])
    weight, decay = torch.zeros_like(total), torch.ones_like(total)
    columns = []
    for j in range(scores.shape[-1]):
        columns.append(torch.where(weight > 0, total / weight.clamp_min(1.0), 0.0))
        # Weights count up to a common factor: the latest score has 1, so that a discount of 0
        # leaves it, and what lies before a missing score is discounted when the next one comes.
        decay = discount * decay
        total = torch.where(missing[..., j], total, decay * total + filled[..., j])
        weight = torch.where(missing[..., j], weight, decay * weight + 1)
        decay = torch.where(missing[..., j], decay, 1.0)
    return torch.stack(columns, dim=-1) * left


def group_baseline(scores: Tensor, prior: Tensor) -> Tensor:
    """Mean return of the group, V2 (BRPO eq. 8; includes the thinking itself).

    Where a thinking lacks the score of a budget, that budget leaves its baseline as it leaves its
    return, and leaves the mean of the others.

    Args:
        scores: (P, G, J), NaN where nothing was scored.
        prior: (J,) P_j.

    Returns:
        (P, G, J); the same for all thinkings of a group unless scores are missing.
    """
    _check_scores(scores, prior)
    mean = scores.nanmean(dim=1, keepdim=True)
    return returns(mean.expand_as(scores).masked_fill(scores.isnan(), torch.nan), prior)


def _serial(scores: Tensor, prior: Tensor, budgets: Sequence[int], discount: float) -> Tensor:
    """Mean score of the thinking's own exits, for the prior that is left (S-GRPO, 2505.07686).

    S-GRPO compares each exit with the mean of its serial group, r_k - mean r, and a token has the
    advantage of every exit behind it: sum over k >= j of P_k (r_k - mean r) = R_j - V_j. The mean
    takes later scores, too, so that V_j is no prediction. Budgets and discount play no part.
    """
    mean = scores.nanmean(dim=2, keepdim=True).expand_as(scores)
    return returns(mean.masked_fill(scores.isnan(), torch.nan), prior)


def _mixed(progress_weights: Callable[[Tensor], Tensor]) -> Callable[..., Tensor]:
    """A baseline w V1 + (1 - w) V2; w (J,) made of the budgets."""

    def baseline(scores: Tensor, prior: Tensor, budgets: Sequence[int], discount: float) -> Tensor:
        weights = progress_weights(scores.new_tensor(list(budgets)))
        progress, group = progress_baseline(scores, prior, discount), group_baseline(scores, prior)
        return weights * progress + (1 - weights) * group

    return baseline


# Name → (words, function of scores (P, G, J), prior (J,), J budgets and discount → V (P, G, J)).
BASELINES: dict[str, tuple[str, Callable[..., Tensor]]] = {
    "brpo": (
        "BRPO: progress and group mixed by budget index, (j-1)/m and (m-j+1)/m (eq. 9)",
        _mixed(lambda budgets: torch.arange(len(budgets)).to(budgets) / len(budgets)),
    ),
    "brpo_tokens": (
        "BRPO mixed by tokens, b_{j-1}/b_m and the rest (the paper's figure 1)",
        _mixed(lambda budgets: (budgets / budgets[-1]).roll(1) * (budgets > budgets[0])),
    ),
    "progress": ("progress baseline V1 alone (eq. 7)", _mixed(torch.ones_like)),
    "group": ("group baseline V2 alone, as in GRPO (eq. 8)", _mixed(torch.zeros_like)),
    "serial": ("mean of the thinking's own exits, as in S-GRPO", _serial),
    "none": ("no baseline, plain REINFORCE", lambda scores, *_: torch.zeros_like(scores)),
}


def thinking_advantages(
    scores: Tensor, prior: Tensor, budgets: Sequence[int], baseline: str, discount: float
) -> Tensor:
    """Advantage of the thinking tokens that lead to each budget, R_j - V_j (BRPO eq. 6 and 9).

    No division by a standard deviation: it over-weights nearly solved problems.

    Args:
        scores: (P, G, J) mean score of the summaries at each budget, NaN where nothing was scored.
        prior: (J,) P_j.
        budgets: J.
        baseline: One of `BASELINES`.
        discount: lambda of the progress baseline.

    Returns:
        (P, G, J).
    """
    _check_scores(scores, prior)
    if len(budgets) != scores.shape[-1]:
        raise ValueError(f"scores {tuple(scores.shape)} are not for {len(budgets)} budgets.")
    return returns(scores, prior) - BASELINES[baseline][1](scores, prior, budgets, discount)


# Name → (words, function of the prior (J,) and S → the weight of a summary at each budget (J,)).
SUMMARY_WEIGHTINGS: dict[str, tuple[str, Callable[[Tensor, int], Tensor]]] = {
    "eq10": (
        "P'_j times the mean over a budget's summaries (eq. 10)",
        lambda prior, summaries: prior / summaries,
    ),
    "authors": (
        "each whole, in one sum with the thinking (the authors' code, and so the published runs)",
        lambda prior, summaries: (prior > 0).to(prior),
    ),
}


def summary_advantages(
    leaf_scores: Tensor,
    cuts: Tensor,
    summary_prior: Tensor,
    weighting: str = "eq10",
    baseline: str = "brpo",
) -> Tensor:
    """Advantage of each summary, decoupled from the thinking (BRPO eq. 10).

    With S > 1 the baseline is the mean score of the summaries on the same truncated thinking:
    budgets at or past its end share it, so theirs form one group. With S = 1 it is the mean over
    the group's thinkings at the same budget, or, where the thinking's baseline is `serial`, over
    the thinking's own exits, as in S-GRPO. By eq. 10 it is weighted by P'_j / S, since the
    gradient takes the mean over summaries; the authors' code sums score - mean as it stands, which
    is J S times as much under a uniform P'.

    Args:
        leaf_scores: (P, G, J, S), NaN where the verifier abstained.
        cuts: (P, G, J) thinking tokens that the summaries at a budget stand on.
        summary_prior: (J,) P'_j; 0 where no summary is trained.
        weighting: One of `SUMMARY_WEIGHTINGS`.
        baseline: One of `BASELINES`, of the thinking.

    Returns:
        (P, G, J, S); 0 where the verifier abstained.
    """
    if leaf_scores.ndim != 4 or cuts.shape != leaf_scores.shape[:3]:
        raise ValueError(
            f"leaf_scores {tuple(leaf_scores.shape)} and cuts {tuple(cuts.shape)}; expected "
            "(P, G, J, S) and (P, G, J)."
        )
    summaries = leaf_scores.shape[-1]
    if summaries == 1:
        expected = leaf_scores.nanmean(dim=2 if baseline == "serial" else 1, keepdim=True)
    else:
        same = (cuts[..., :, None] == cuts[..., None, :]).to(leaf_scores)  # (P, G, J, J)
        known = (~leaf_scores.isnan()).to(leaf_scores).sum(-1)
        total = leaf_scores.nan_to_num(0.0).sum(-1)
        expected = (same @ total[..., None]) / (same @ known[..., None])
    weight = SUMMARY_WEIGHTINGS[weighting][1](summary_prior.to(leaf_scores), summaries)
    return ((leaf_scores - expected) * weight[:, None]).nan_to_num(0.0)


def token_advantages(
    thinking: Tensor, summary: Tensor, leaf: Tensor, branch: Tensor, budgets: Sequence[int]
) -> Tensor:
    """Lay advantages out over the tokens of packed trees.

    A thinking token at position t (from 1) gets the advantage of the smallest budget >= t; a leaf
    token that of its summary. Forced tokens get their leaf's, too: the loss masks them.

    Args:
        thinking: (B, J).
        summary: (B, J, S).
        leaf: (B, C) leaf number j·S + s; -1 on the trunk, -2 on padding.
        branch: (B, C) t - 1 on trunk token t.
        budgets: J increasing budgets; the last one bounds every thinking.

    Returns:
        (B, C); 0 on padding.
    """
    grid = torch.as_tensor(list(budgets), device=branch.device, dtype=branch.dtype)
    serves = torch.searchsorted(grid, branch + 1).clamp(max=len(grid) - 1)
    on_trunk = thinking.gather(1, serves)
    on_leaf = summary.flatten(1).gather(1, leaf.clamp(min=0))
    return torch.where(leaf >= 0, on_leaf, on_trunk).masked_fill(leaf < -1, 0.0)


def reaches_budgets(cuts: Tensor) -> Tensor:
    """Which thinkings have tokens between the budget before and this one, (..., J) bool.

    Args:
        cuts: (..., J) thinking tokens that the summaries at a budget stand on.
    """
    return cuts.diff(dim=-1, prepend=torch.zeros_like(cuts[..., :1])) > 0


def variance_diagnostics(
    scores: Tensor, prior: Tensor, budgets: Sequence[int], discount: float, reached: Tensor
) -> dict[str, tuple[Tensor, Tensor]]:
    """How much of the return's variance each baseline explains (the paper's figure 3).

    As in the authors' code, each budget takes the thinkings that reach it: those that ended before
    have no token that its advantage trains.

    Args:
        scores: (P, G, J), NaN where nothing was scored.
        prior: (J,).
        budgets: J.
        discount: lambda.
        reached: (P, G, J) bool, of `reaches_budgets`.

    Returns:
        For each of `BASELINES` that predicts: corr(V, R) and Var[R - V] / Var[R], both (J,), over
        the thinkings of all groups; NaN where R, or for the correlation V, does not vary. The ratio
        is 1 + s**2 - 2 corr s with s = sd(V) / sd(R): above 1 where V varies more than it predicts.
    """
    target = returns(scores, prior).flatten(0, 1)
    counted = reached.flatten(0, 1)
    return {
        name: _explained(baseline(scores, prior, budgets, discount).flatten(0, 1), target, counted)
        for name, (_, baseline) in BASELINES.items()
        if name != "serial"
    }


def _explained(baseline: Tensor, target: Tensor, counted: Tensor) -> tuple[Tensor, Tensor]:
    def mean(values: Tensor) -> Tensor:
        return torch.where(counted, values, 0.0).sum(0) / counted.sum(0)

    centred, wanted = baseline - mean(baseline), target - mean(target)
    spread, variance = mean(centred.square()), mean(wanted.square())
    # Rounding leaves a trace of variance in what is constant.
    spread, variance = (x.where(x > 1e-12, torch.nan) for x in (spread, variance))
    correlation = mean(centred * wanted) / (spread * variance).sqrt()
    return correlation, mean((wanted - centred).square()) / variance


# --- reward rules: each takes scores (P, G, J, S), the thinking tokens |z| (P, G, J) below them, J
# budgets, of which the last is b_m, and a strength alpha; and gives scores (P, G, J, S).


def _linear(scores: Tensor, cuts: Tensor, budgets: Sequence[int], alpha: float) -> Tensor:
    """r (1 - alpha |z| / b_m), alpha 0.2 as published (L1).

    Only positive scores fall; a wrong answer is no better for being short.
    """
    factor = 1 - alpha * cuts.to(scores) / budgets[-1]
    return torch.where(scores > 0, scores * factor[..., None], scores)


def _group(scores: Tensor, cuts: Tensor, budgets: Sequence[int], alpha: float) -> Tensor:
    """r (1 - alpha sigmoid((|z| - mean) / std)), alpha 0.2 as published.

    Mean and (population) std are over the lengths of the thinkings of the same problem and budget
    whose score is positive (Arora & Zanette, 2502.04463).
    """
    right = scores > 0
    lengths = cuts.to(scores)[..., None].expand_as(scores)
    count = right.sum(dim=(1, 3), keepdim=True).clamp(min=1)
    mean = (lengths * right).sum(dim=(1, 3), keepdim=True) / count
    variance = ((lengths - mean).square() * right).sum(dim=(1, 3), keepdim=True) / count
    relative = (lengths - mean) / variance.sqrt().clamp_min(1e-6)
    return torch.where(right, scores * (1 - alpha * relative.sigmoid()), scores)


def _overlong(scores: Tensor, cuts: Tensor, budgets: Sequence[int], alpha: float) -> Tensor:
    """Scores less what a thinking takes of the last c = alpha b_m tokens, as a share of them.

    DAPO's soft overlong punishment (2503.14476, eq. 13), r + min(0, (b_m - c - |z|) / c): nothing
    up to b_m - c, then falling to -1 at b_m, right or wrong. alpha is 0.2 as published (4,096 of
    20,480); 0 takes nothing.
    """
    cache = alpha * budgets[-1]
    if not cache:
        return scores
    return scores + ((budgets[-1] - cache - cuts) / cache).clamp(max=0)[..., None]


def _limit(scores: Tensor, cuts: Tensor, budgets: Sequence[int], alpha: float) -> Tensor:
    """Scores of thinkings within (1 - alpha) b_m tokens; of a longer one nothing above 0.

    ThinkPrune (2504.01296) clips responses at the limit, so that a long one has no answer and
    scores 0. A thinking that closes with the limit's last token is within. One of b_m tokens is
    not, whatever alpha: sampling stopped it there, and only our forced text gives it an answer.
    ThinkPrune's shrinking limit is a chain of trainings, each from the model before with a larger
    alpha (or a smaller b_m and alpha 0).
    """
    within = (cuts <= round((1 - alpha) * budgets[-1])) & (cuts < budgets[-1])
    return scores.where(within[..., None], scores.clamp(max=0))


def _decay(scores: Tensor, cuts: Tensor, budgets: Sequence[int], alpha: float) -> Tensor:
    """r / 2^(k-1) for the k-th right exit of a thinking (S-GRPO, 2505.07686); alpha is not used.

    An exit is a budget that the thinking reaches; S-GRPO has none behind its end, so that the
    summaries of further budgets have no score, as where a verifier abstains. With several summaries
    the first of each budget make one series, and so on.
    """
    exits = scores.masked_fill(~reaches_budgets(cuts)[..., None], torch.nan)
    right = exits > 0
    return torch.where(right, exits * 0.5 ** (right.cumsum(dim=2) - 1), exits)


# Name → (words, function).
PENALTIES: dict[str, tuple[str, Callable[..., Tensor]]] = {
    "linear": ("L1: 1 - alpha |z| / b_m where right", _linear),
    "group": ("Arora & Zanette: by the length relative to the group's right thinkings", _group),
    "overlong": (
        "DAPO: less by up to 1 within the last alpha b_m tokens, right or wrong",
        _overlong,
    ),
    "limit": ("ThinkPrune: 0 where longer than (1 - alpha) b_m", _limit),
    "decay": ("S-GRPO: halved for each right exit of the thinking before", _decay),
}
