"""Early-exit rules replayed offline on stored records, and how well confidence is calibrated.

A rule looks at a thinking budget by budget and stops it; what it would have answered there, and
what it would have spent, is in the records. A thinking that ended by itself is answered where it
ended, under every rule. Each of the S summaries of a thinking is a replay of its own, since a rule
that is used asks once per budget.

Tokens are counted in three ways: `spent`, the thinking tokens that were generated; `allowed`, the
budgets they were generated under (k·b for a majority); `with_summaries`, spent and the tokens of
every summary that the rule had to ask for.

Dimensions: P problems, n thinkings of each, S summaries, J budgets, K settings.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations

import numpy as np
import pandas as pd

from anytime_lab.read.curves import checked, mean_interval

KEYS = ["problem_id", "sample", "summary", "budget"]  # tell records apart
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
    """The records of a run, laid out for replaying.

    budgets: J, in tokens. summaries: S. rows: J after one another for each summary of a thinking,
    columns problem (its number, rising), budget, cut (tokens of thinking kept), answer (a number
    per different one, −1 where there is none), correct (1, 0, or NaN where the verifier abstained),
    logprob, confidence (its exp) and asked (tokens) of the summary, asked_so_far (with those of the
    budgets before), over (where every rule stops: the thinking had ended by itself at this budget,
    or it is the last).
    """

    budgets: tuple[int, ...]
    summaries: int
    rows: pd.DataFrame

    @property
    def samples(self) -> np.ndarray:
        """(P,) thinkings of each problem."""
        return np.bincount(self.rows["problem"]) // (self.summaries * len(self.budgets))

    def per_token(self) -> Replay:
        """The same with the confidence of a summary's mean token."""
        nats = self.rows["logprob"] / self.rows["asked"].clip(lower=1)
        return replace(self, rows=self.rows.assign(confidence=np.exp(nats)))


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
    rows = checked(records, REPLAY_COLUMNS).sort_values(KEYS, ignore_index=True)
    budgets, summaries = rows["budget"].unique(), rows["summary"].nunique()
    each = len(budgets) * summaries
    if rows.duplicated(KEYS).any() or len(rows) != each * len(rows[KEYS[:2]].drop_duplicates()):
        raise ValueError(
            "records are ragged or doubled: not every thinking has each (budget, summary) exactly "
            "once. Read one run folder, and do not filter its rows by budget of a problem."
        )
    numbers = {"logprob": "logprob", "summary_tokens": "asked", "cut": "cut", "correct": "correct"}
    told = rows[[*numbers]].astype(float).rename(columns=numbers)
    ended = (rows["thinking_end"] != "length") & (rows["cut"] >= rows["thinking_tokens"])
    told = told.assign(
        problem=pd.factorize(rows["problem_id"])[0],
        budget=rows["budget"],
        answer=pd.factorize(rows["answer"])[0],
        correct=told["correct"].where(rows["score"].notna()),
        confidence=np.exp(told["logprob"]),
        asked_so_far=told["asked"].to_numpy().reshape(-1, len(budgets)).cumsum(axis=1).ravel(),
        over=ended | (rows["budget"] == budgets[-1]),
    )
    return Replay(tuple(int(b) for b in budgets), summaries, told)


# --- rules ---------------------------------------------------------------------------------------


def _answered(
    replay: Replay, policy: str, words: str, value: float, stop: pd.Series, asked="asked_so_far"
) -> Outcome:
    """Answers where each summary of a thinking first stops, by the column of what that asked for.

    stop: of each row; the last budget's stops all.
    """
    size = len(replay.budgets)
    at = stop.to_numpy().reshape(-1, size).argmax(axis=1) + np.arange(0, len(stop), size)
    names = ["problem", "correct", "cut", "budget", asked]
    problem, correct, spent, allowed, said = (replay.rows[name].to_numpy()[at] for name in names)
    values = np.column_stack([correct, spent, allowed, spent + said])
    means = pd.DataFrame(values).groupby(problem).mean()
    accuracy, *costs = (means[column].to_numpy() for column in means)
    return Outcome(policy, words, value, accuracy, *(float(cost.mean()) for cost in costs))


def fixed_budgets(replay: Replay) -> list[Outcome]:
    """The plain budget curve: think up to the budget, ask once."""
    at = replay.rows["budget"]
    return [_answered(replay, FIXED, f"{b:,} tokens", b, at == b, "asked") for b in replay.budgets]


def stop_on_agreement(replay: Replay, ks: Sequence[int]) -> list[Outcome]:
    """Stop at the first budget whose answer equals those of the k − 1 budgets before it.

    A missing answer agrees with nothing; k = 1 stops at the first answer. Ks above J never stop.
    """
    if bad := [k for k in ks if k < 1]:
        raise ValueError(f"k must be at least 1 budget; got {bad[0]}.")
    answers = replay.rows["answer"].to_numpy().reshape(-1, len(replay.budgets)).T.copy()
    agreeing = (answers >= 0).astype(int)  # budgets in a row, up to this one
    for j in range(1, len(answers)):
        agreeing[j] *= 1 + agreeing[j - 1] * (answers[j] == answers[j - 1])
    row, over = agreeing.T.ravel(), replay.rows["over"]
    return [_answered(replay, AGREEMENT, f"{k} budgets agree", k, over | (row >= k)) for k in ks]


def stop_on_confidence(replay: Replay, thresholds: Sequence[float]) -> list[Outcome]:
    """Stop at the first budget with an answer whose confidence is at least the threshold."""
    sure = replay.rows["confidence"].where(replay.rows["answer"] >= 0, -1.0)
    over = replay.rows["over"]
    return [
        _answered(replay, CONFIDENCE, f"confidence ≥ {x:.3g}", x, over | (sure >= x))
        for x in thresholds
    ]


def spread_thresholds(replay: Replay, count: int = 16) -> list[float]:
    """Thresholds at even quantiles of the confidences there are, so that a curve spans them."""
    known = replay.rows["confidence"].dropna()
    cuts = np.quantile(known, np.linspace(0, 1, count)) if len(known) else []
    return list(dict.fromkeys(float(f"{cut:.3g}") for cut in cuts))


def majority_votes(
    replay: Replay, ks: Sequence[int], draws: int = 30, seed: int = 0
) -> list[Outcome]:
    """The most frequent answer of k thinkings at each budget (ties evenly, no answer no vote).

    All subsets of k samples where they are at most `draws`, else that many random ones. An
    abstention counts as wrong. Majorities of one are the fixed budgets.

    Raises:
        ValueError: problems have different numbers of samples, or fewer than a k.
    """
    if not ks:
        return []
    n = replay.samples.max()
    if replay.samples.min() != n:
        raise ValueError(
            f"problems have {replay.samples.min()} to {n} samples; this needs equally many. Wait "
            "until the evaluation is finished."
        )
    if bad := [k for k in ks if not 1 <= k <= n]:
        raise ValueError(f"k must be in 1 … {n} (the samples per problem); got {bad[0]}.")
    shape = (len(replay.samples), n, replay.summaries, len(replay.budgets))
    answers = replay.rows["answer"].to_numpy(np.int32).reshape(shape)
    right = replay.rows["correct"].fillna(0.0).to_numpy(np.float32).reshape(shape)
    fixed, outcomes = fixed_budgets(replay), []
    for k in ks:
        subsets = np.random.default_rng(seed).permuted([range(n)] * draws, axis=1)[:, :k]
        if math.comb(n, k) <= draws:
            subsets = np.array(list(combinations(range(n), k)))
        accuracy = np.mean([_vote(answers[:, s], right[:, s]) for s in subsets], axis=0)
        for one, told in zip(fixed, accuracy.mean(axis=1).T, strict=True):
            words = f"majority of {k} at {one.setting}"
            tokens = (k * getattr(one, count) for count in COUNTS)
            outcomes.append(Outcome(MAJORITY, words, k, told, *tokens))
    return outcomes


def _vote(answers: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Accuracy of the most frequent answer; (P, k, S, J) → (P, S, J)."""
    votes = ((answers[:, :, None] == answers[:, None]) & (answers[:, None] >= 0)).sum(axis=2)
    most = votes.max(axis=1, keepdims=True)
    winners = (votes == most) & (most > 0)
    # tied answers have equally many votes each, so the mean over votes breaks ties evenly
    return (winners * right).sum(axis=1) / np.maximum(winners.sum(axis=1), 1)


def votes(replay: Replay, ks: Sequence[int]) -> list[int]:
    """The majorities that a run has samples for; none where problems have unequally many."""
    return [k for k in ks if 2 <= k <= replay.samples.min() == replay.samples.max()]


# Successive budgets that must agree, and thinkings that vote, unless others are asked for.
SETTINGS = {AGREEMENT: (2, 3, 4, 5, 6, 8), MAJORITY: (2, 4, 8, 16)}
# A rule: its words; the settings that a run has for it, of those asked for; its replay at them.
RULES: dict[str, tuple[str, Callable[..., Sequence[float]], Callable[..., list[Outcome]]]] = {
    FIXED: ("fixed budget", lambda *_: (), lambda replay, _: fixed_budgets(replay)),
    AGREEMENT: (
        "stop when k budgets agree",
        lambda replay, ks: [k for k in ks if k <= len(replay.budgets)],
        stop_on_agreement,
    ),
    MAJORITY: ("majority of k", votes, majority_votes),
    CONFIDENCE: (
        "stop when confident",
        lambda replay, _: spread_thresholds(replay),
        stop_on_confidence,
    ),
}


def replay_all(replay: Replay, asked: Mapping[str, Sequence[int]] = SETTINGS) -> list[Outcome]:
    """Every rule at all its settings."""
    return [
        outcome
        for policy, (_, settings, rule) in RULES.items()
        for outcome in rule(replay, settings(replay, asked.get(policy, ())))
    ]


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
    frame = pd.DataFrame([vars(o) for o in outcomes], columns=["policy", "setting", "value"])
    columns = {"tokens": tokens, "accuracy": told.value, "se": told.se, "low": told.low}
    columns |= {"high": told.high, "n_problems": told.n_problems, "difference": pair.value}
    columns |= {"difference_low": pair.low, "difference_high": pair.high}
    return frame.assign(**columns)


def calibration(replay: Replay, budget: int | None = None, bins: int = 10) -> pd.DataFrame:
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
    judged = _judged(replay, budget)
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


def confidence_auroc(replay: Replay, budget: int | None = None) -> float:
    """The chance that a right answer is more confident than a wrong one (ties half).

    NaN where all answers are right, or all wrong. Budgets as in `calibration`.
    """
    judged = _judged(replay, budget)
    right = judged["right"] == 1
    if right.all() or not right.any():
        return math.nan
    good, bad = right.sum(), (~right).sum()
    ranks = judged["confidence"].rank()[right].sum()
    return float((ranks - good * (good + 1) / 2) / (good * bad))


def _judged(replay: Replay, budget: int | None) -> pd.DataFrame:
    """Columns confidence, right and problem of every summary with an answer and a verdict."""
    if budget is not None and budget not in replay.budgets:
        raise ValueError(f"budget {budget} was not measured; choose from {list(replay.budgets)}.")
    rows = replay.rows[["confidence", "correct", "problem"]].rename(columns={"correct": "right"})
    known = (replay.rows["answer"] >= 0) & rows.notna().all(axis=1)
    return rows[known & (True if budget is None else replay.rows["budget"] == budget)]
