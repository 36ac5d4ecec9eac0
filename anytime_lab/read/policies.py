"""Early-exit rules replayed offline on stored records, and how well confidence is calibrated.

A rule looks at a thinking budget by budget and stops it; what it would have answered there, and
what it would have spent, is in the records. A thinking that ended by itself is answered where it
ended, under every rule. Each of the S summaries of a thinking is a replay of its own, since a rule
that is used asks once per budget.

Tokens are counted in three ways: `spent`, the thinking tokens that were generated; `allowed`, the
budgets they were generated under (k·b for a majority); `with_summaries`, spent and the tokens of
every summary that the rule had to ask for.

Dimensions: N thinkings, P problems, J budgets, S summaries.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import pandas as pd
from numpy.lib.stride_tricks import sliding_window_view

from anytime_lab.read.curves import checked, mean_interval

KEYS = ["problem_id", "sample", "budget", "summary"]  # tell records apart
REPLAY_COLUMNS = [
    *KEYS,
    "cut",
    "thinking_tokens",
    "thinking_end",
    "summary_tokens",
    "answer",
    "score",
    "correct",
    "logprob",
]
COUNTS = ("spent", "allowed", "with_summaries")
FIXED, AGREEMENT, CONFIDENCE, MAJORITY = "fixed budget", "agreement", "confidence", "majority"


@dataclass(frozen=True, eq=False)
class Replay:
    """The records of a run, laid out for replaying; all arrays (N, J, S) unless said otherwise."""

    problem: np.ndarray  # (N,) number of the problem, rising
    budgets: tuple[int, ...]  # (J,) tokens
    answers: np.ndarray  # a number per different answer, −1 where there is none
    correct: np.ndarray  # 1, 0, or NaN where the verifier abstained
    whole: np.ndarray  # confidence, exp(log-prob) of the summary
    per_token: np.ndarray  # the same of its mean token
    cut: np.ndarray  # tokens of thinking kept
    asked: np.ndarray  # tokens of the summary
    ended: np.ndarray  # (N, J) whether the thinking had ended by itself at this budget

    def by_problem(self, values: np.ndarray) -> np.ndarray:
        """Means over the thinkings and summaries of each problem; (N, S) → (P,), NaN if none."""
        problems = np.repeat(self.problem, values.shape[1])
        return pd.Series(values.ravel()).groupby(problems).mean().to_numpy()


@dataclass(frozen=True, eq=False)
class Outcome:
    """What a rule at one setting would have scored and spent; counts are means over problems."""

    policy: str  # FIXED, AGREEMENT, CONFIDENCE or MAJORITY
    setting: str  # in words
    value: float  # the setting as a number
    accuracy: np.ndarray  # (P,) per problem
    spent: float
    allowed: float
    with_summaries: float


def lay_out(records: pd.DataFrame) -> Replay:
    """Lays the records of one run out for replaying.

    Raises:
        ValueError: a column is missing, or the records are ragged.
    """
    rows = checked(records, REPLAY_COLUMNS).sort_values(KEYS)
    sizes = rows["budget"].nunique(), rows["summary"].nunique()
    thinkings = len(rows[KEYS[:2]].drop_duplicates())
    if rows.duplicated(KEYS).any() or len(rows) != thinkings * math.prod(sizes):
        raise ValueError(
            "records are ragged or doubled: not every thinking has each (budget, summary) exactly "
            "once. Read one run folder, and do not filter its rows by budget of a problem."
        )
    numbers = ["logprob", "summary_tokens", "cut", "thinking_tokens", "correct"]
    of = rows[numbers].astype(float)
    told = {
        "problem": pd.factorize(rows["problem_id"])[0],
        "answers": pd.factorize(rows["answer"])[0],
        "correct": of["correct"].where(rows["score"].notna()),
        "whole": np.exp(of["logprob"]),
        "per_token": np.exp(of["logprob"] / of["summary_tokens"].clip(lower=1)),
        "cut": of["cut"],
        "asked": of["summary_tokens"],
        "ended": (rows["thinking_end"] != "length") & (of["cut"] >= of["thinking_tokens"]),
    }
    laid = {name: np.asarray(column).reshape(thinkings, *sizes) for name, column in told.items()}
    laid |= {"problem": laid["problem"][:, 0, 0], "ended": laid["ended"][:, :, 0]}
    return Replay(budgets=tuple(int(b) for b in rows["budget"].unique()), **laid)


# --- rules ---------------------------------------------------------------------------------------


def _answered(
    replay: Replay, policy: str, settings: Mapping[float, str], at: np.ndarray, asked: np.ndarray
) -> list[Outcome]:
    """Each replay is answered at one budget under each of K settings, value → words.

    at: (K, N, S) number of the budget. asked: (N, J, S) summary tokens that this costs.
    """
    outcomes = []
    for (value, words), place in zip(settings.items(), at, strict=True):
        correct, spent, said = (
            np.take_along_axis(values, place[:, None], axis=1)[:, 0]
            for values in (replay.correct, replay.cut, asked)
        )
        costs = spent, np.asarray(replay.budgets, dtype=float)[place], spent + said
        means = [float(replay.by_problem(cost).mean()) for cost in costs]
        outcomes.append(Outcome(policy, words, value, replay.by_problem(correct), *means))
    return outcomes


def fixed_budgets(replay: Replay) -> list[Outcome]:
    """The plain budget curve: think up to the budget, ask once."""
    settings = {budget: f"{budget:,} tokens" for budget in replay.budgets}
    at = [np.full_like(replay.answers[:, 0], j) for j in range(len(settings))]
    return _answered(replay, FIXED, settings, at, replay.asked)


def _stopped(
    replay: Replay, policy: str, settings: Mapping[float, str], stops: Iterable[np.ndarray]
) -> list[Outcome]:
    """stops: for each setting (N, J, S), whether the rule would stop. The last budget stops all."""
    last = np.arange(len(replay.budgets))[:, None] == len(replay.budgets) - 1
    forced = replay.ended[:, :, None] | last
    at = [(stop | forced).argmax(axis=1) for stop in stops]
    return _answered(replay, policy, settings, at, np.cumsum(replay.asked, axis=1))


def stop_on_agreement(replay: Replay, ks: Sequence[int]) -> list[Outcome]:
    """Stop at the first budget whose answer equals those of the k − 1 budgets before it.

    A missing answer agrees with nothing; k = 1 stops at the first answer. Ks above J never stop.
    """
    if bad := [k for k in ks if k < 1]:
        raise ValueError(f"k must be at least 1 budget; got {bad[0]}.")
    settings, stops = {k: f"{k} budgets agree" for k in ks}, []
    for k in settings:  # before the first budget there is no answer
        padded = np.pad(replay.answers, ((0, 0), (k - 1, 0), (0, 0)), constant_values=-1)
        runs = sliding_window_view(padded, k, axis=1)
        stops.append((runs == runs[..., -1:]).all(axis=-1) & (replay.answers >= 0))
    return _stopped(replay, AGREEMENT, settings, stops)


def stop_on_confidence(
    replay: Replay, thresholds: Sequence[float], per_token: bool = False
) -> list[Outcome]:
    """Stop at the first budget with an answer whose confidence is at least the threshold."""
    sure = np.where(replay.answers >= 0, replay.per_token if per_token else replay.whole, -1.0)
    settings = {least: f"confidence ≥ {least:.3g}" for least in thresholds}
    return _stopped(replay, CONFIDENCE, settings, (sure >= least for least in settings))


def spread_thresholds(replay: Replay, per_token: bool = False, count: int = 16) -> list[float]:
    """Thresholds at even quantiles of the confidences there are, so that a curve spans them."""
    confidence = replay.per_token if per_token else replay.whole
    known = confidence[np.isfinite(confidence)]
    cuts = np.quantile(known, np.linspace(0, 1, count)) if len(known) else []
    return [float(f"{cut:.3g}") for cut in np.unique(cuts)]


def majority_votes(
    replay: Replay, ks: Sequence[int], draws: int = 30, seed: int = 0
) -> list[Outcome]:
    """The most frequent answer of k thinkings at each budget (ties evenly, no answer no vote).

    All subsets of k samples where they are at most `draws`, else that many random ones. An
    abstention counts as wrong. Majorities of one are the fixed budgets.

    Raises:
        ValueError: problems have different numbers of samples, or fewer than a k.
    """
    counts = np.bincount(replay.problem)
    if counts.min() != (n := counts.max()):
        raise ValueError(
            f"problems have {counts.min()} to {n} samples; this needs equally many. Wait until "
            "the evaluation is finished."
        )
    if bad := [k for k in ks if not 1 <= k <= n]:
        raise ValueError(f"k must be in 1 … {n} (the samples per problem); got {bad[0]}.")
    shape = (len(counts), n, *replay.answers.shape[1:])
    answers = replay.answers.astype(np.int32).reshape(shape)
    right = np.nan_to_num(replay.correct).astype(np.float32).reshape(shape)
    fixed, outcomes = fixed_budgets(replay), []
    for k in ks:
        subsets = np.random.default_rng(seed).permuted([range(n)] * draws, axis=1)[:, :k]
        if math.comb(n, k) <= draws:
            subsets = np.array(list(combinations(range(n), k)))
        accuracy = np.mean([_vote(answers[:, s], right[:, s]) for s in subsets], axis=0)
        for one, told in zip(fixed, accuracy.mean(axis=2).T, strict=True):
            words = f"majority of {k} at {one.setting}"
            tokens = (k * getattr(one, count) for count in COUNTS)
            outcomes.append(Outcome(MAJORITY, words, k, told, *tokens))
    return outcomes


def _vote(answers: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Accuracy of the most frequent answer; (P, k, J, S) → (P, J, S)."""
    votes = ((answers[:, :, None] == answers[:, None]) & (answers[:, None] >= 0)).sum(axis=2)
    most = votes.max(axis=1, keepdims=True)
    winners = (votes == most) & (most > 0)
    # tied answers have equally many votes each, so the mean over votes breaks ties evenly
    return (winners * right).sum(axis=1) / np.maximum(winners.sum(axis=1), 1)


@dataclass(frozen=True)
class RuleSettings:
    """Which settings of the rules are replayed.

    agreements: successive budgets that must agree. majorities: thinkings that vote. per_token:
    whether confidence is that of a summary's mean token, or of the whole.
    """

    agreements: Sequence[int] = (2, 3, 4, 5, 6, 8)
    majorities: Sequence[int] = (2, 4, 8, 16)
    per_token: bool = False

    def votes(self, replay: Replay) -> list[int]:
        """The majorities that a run has samples for; none where problems have unequally many."""
        samples = np.bincount(replay.problem)
        each = samples.min() if samples.min() == samples.max() else 0
        return [k for k in self.majorities if 2 <= k <= each]


# A rule: its words, and how it is replayed at all its settings.
RULES: dict[str, tuple[str, Callable[[Replay, RuleSettings], list[Outcome]]]] = {
    FIXED: ("fixed budget", lambda replay, _: fixed_budgets(replay)),
    AGREEMENT: (
        "stop when k budgets agree",
        lambda replay, s: stop_on_agreement(
            replay, [k for k in s.agreements if k <= len(replay.budgets)]
        ),
    ),
    MAJORITY: ("majority of k", lambda replay, s: majority_votes(replay, s.votes(replay))),
    CONFIDENCE: (
        "stop when confident",
        lambda replay, s: stop_on_confidence(
            replay, spread_thresholds(replay, s.per_token), s.per_token
        ),
    ),
}


def replay_all(replay: Replay, settings: RuleSettings) -> list[Outcome]:
    """Every rule at all its settings."""
    return [outcome for _, rule in RULES.values() for outcome in rule(replay, settings)]


# --- frames --------------------------------------------------------------------------------------


def policy_frame(outcomes: Sequence[Outcome], count: str = "spent") -> pd.DataFrame:
    """Accuracy against tokens, one row per rule and setting, and the pair with the plain curve.

    Args:
        outcomes: of one run, the fixed budgets among them.
        count: how tokens are counted, one of COUNTS.

    Returns columns policy, setting, value, tokens, accuracy, se, low, high, n_problems, and
    difference, difference_low, difference_high: accuracy minus that of a fixed budget which costs
    the same (interpolated between the two nearest, paired over problems; past the largest budget
    that is the largest). They are missing for fixed budgets, and below the smallest.

    Raises:
        ValueError: no fixed budgets among the outcomes, or an unknown count.
    """
    if count not in COUNTS:
        raise ValueError(f"tokens cannot be counted as {count!r}; choose from {list(COUNTS)}.")
    tokens = np.array([getattr(o, count) for o in outcomes])
    fixed = np.array([o.policy == FIXED for o in outcomes], dtype=bool)
    if not fixed.any():
        raise ValueError("no fixed budgets among the outcomes; add those of fixed_budgets().")
    scores = np.stack([o.accuracy for o in outcomes], axis=1)  # (P, K)
    order = np.flatnonzero(fixed)[np.argsort(tokens[fixed], kind="stable")]
    costs, plain = tokens[order], scores[:, order]
    parts = np.array([np.interp(tokens, costs, each) for each in np.eye(len(costs))])  # (J, K)
    at_cost = np.where(np.isnan(plain) @ (parts > 0), np.nan, np.nan_to_num(plain) @ parts)
    matched = ~fixed & (tokens >= costs[0] * (1 - 1e-9))
    told = mean_interval(scores, (0.0, 1.0))
    pair = mean_interval(np.where(matched, scores - at_cost, np.nan), (-1.0, 1.0))
    frame = pd.DataFrame([(o.policy, o.setting, o.value) for o in outcomes])
    columns = {"tokens": tokens, "accuracy": told.value, "se": told.se, "low": told.low}
    columns |= {"high": told.high, "n_problems": told.n_problems, "difference": pair.value}
    columns |= {"difference_low": pair.low, "difference_high": pair.high}
    return frame.set_axis(["policy", "setting", "value"], axis=1).assign(**columns)


def calibration(
    replay: Replay, budget: int | None = None, per_token: bool = False, bins: int = 10
) -> pd.DataFrame:
    """How often answers of a confidence are right, in bins of equally many answers.

    Args:
        budget: one of the budgets; all of them if None.

    Returns columns confidence (mean in the bin), accuracy, se, low, high (95 %, clustered by
    problem), answers. Summaries without an answer or a verdict are left out; the frame is empty
    where none is left.

    Raises:
        ValueError: the budget was not measured, or bins < 1.
    """
    if bins < 1:
        raise ValueError(f"bins must be at least 1; got {bins}.")
    judged = _judged(replay, budget, per_token)
    if judged.empty:
        return judged.reindex(columns=["confidence", "accuracy", "se", "low", "high", "answers"])
    place = pd.qcut(judged["confidence"], bins, labels=False, duplicates="drop").fillna(0)
    means, answers = judged.groupby(place).mean(), place.groupby(place).size()
    off = judged["right"] - place.map(means["right"])
    off = off.groupby([judged["problem"], place]).sum().unstack()  # (P, bins)
    values = means["right"] + off * off.count() / answers
    told = mean_interval(values.to_numpy(), (0.0, 1.0))
    frame = means[["confidence"]].assign(accuracy=means["right"], se=told.se)
    return frame.assign(low=told.low, high=told.high, answers=answers).reset_index(drop=True)


def calibration_error(calibration: pd.DataFrame) -> float:
    """Mean distance of confidence and accuracy over the answers in the bins; NaN without any."""
    answers = calibration["answers"]
    distance = (calibration["confidence"] - calibration["accuracy"]).abs()
    return float((distance * answers).sum() / answers.sum()) if len(calibration) else math.nan


def confidence_auroc(replay: Replay, budget: int | None = None, per_token: bool = False) -> float:
    """The chance that a right answer is more confident than a wrong one (ties half).

    NaN where all answers are right, or all wrong. Budgets as in `calibration`.
    """
    judged = _judged(replay, budget, per_token)
    right = judged["right"] == 1
    if right.all() or not right.any():
        return math.nan
    good, bad = right.sum(), (~right).sum()
    ranks = judged["confidence"].rank()[right].sum()
    return float((ranks - good * (good + 1) / 2) / (good * bad))


def _judged(replay: Replay, budget: int | None, per_token: bool) -> pd.DataFrame:
    """Columns confidence, right and problem of every summary with an answer and a verdict."""
    if budget is not None and budget not in replay.budgets:
        raise ValueError(f"budget {budget} was not measured; choose from {list(replay.budgets)}.")
    wanted = np.isin(replay.budgets, replay.budgets if budget is None else budget)[:, None]
    confidence = replay.per_token if per_token else replay.whole
    kept = np.isfinite(replay.correct) & np.isfinite(confidence) & (replay.answers >= 0) & wanted
    problem = np.broadcast_to(replay.problem[:, None, None], kept.shape)
    columns = {"confidence": confidence, "right": replay.correct, "problem": problem}
    return pd.DataFrame({name: values[kept] for name, values in columns.items()})
