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
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import pandas as pd

from anytime_lab.read.curves import NOTHING, Estimate, mean_interval

REPLAY_COLUMNS = [
    "problem_id",
    "sample",
    "budget",
    "summary",
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
    """The records of a run, laid out for replaying; all arrays (N, J, S) unless said otherwise.

    problem: (N,) number of the problem, rising. budgets: (J,) tokens. answers: a number per
    different answer, −1 where there is none. correct: 1, 0, or NaN where the verifier abstained.
    whole, per_token: confidence, exp(log-prob) of the summary, and of its mean token. cut: tokens
    of thinking kept. asked: tokens of the summary. ended: (N, J) whether the thinking had ended by
    itself at this budget.
    """

    problem: np.ndarray
    budgets: tuple[int, ...]
    answers: np.ndarray
    correct: np.ndarray
    whole: np.ndarray
    per_token: np.ndarray
    cut: np.ndarray
    asked: np.ndarray
    ended: np.ndarray

    def by_problem(self, values: np.ndarray) -> np.ndarray:
        """Means over the thinkings and summaries of each problem; (N, …) → (P,), NaN if none."""
        flat = values.reshape(len(self.problem), -1)
        known = np.isfinite(flat)
        sums, counts = (
            np.bincount(self.problem, numbers.sum(axis=1))
            for numbers in (np.where(known, flat, 0.0), known)
        )
        with np.errstate(invalid="ignore"):
            return sums / counts

    def by_sample(self, values: np.ndarray) -> np.ndarray:
        """(N, …) as (P, n, …), where every problem has the same n samples."""
        counts = np.bincount(self.problem)
        if counts.min() != counts.max():
            raise ValueError(
                f"problems have {counts.min()} to {counts.max()} samples; this needs equally many. "
                "Wait until the evaluation is finished."
            )
        return values.reshape(len(counts), counts[0], *values.shape[1:])


@dataclass(frozen=True, eq=False)
class Outcome:
    """What a rule at one setting would have scored and spent.

    policy: FIXED, AGREEMENT, CONFIDENCE or MAJORITY. setting: the setting in words.
    value: the setting as a number. accuracy: (P,) per problem. The counts are means over problems.
    """

    policy: str
    setting: str
    value: float
    accuracy: np.ndarray
    spent: float
    allowed: float
    with_summaries: float


def lay_out(records: pd.DataFrame) -> Replay:
    """Lays the records of one run out for replaying.

    Raises:
        ValueError: a column is missing, or the records are ragged.
    """
    if missing := [c for c in REPLAY_COLUMNS if c not in records.columns]:
        raise ValueError(f"records lack the columns {missing}; give the frame of read_records().")
    if not len(records):
        raise ValueError("records are empty; evaluate at least one problem first.")
    if records["problem_id"].isna().any():
        raise ValueError("records hold rows without a problem_id; every row needs one.")
    problem = pd.factorize(records["problem_id"], sort=True)[0]
    budgets, budget = np.unique(records["budget"].to_numpy(), return_inverse=True)
    summaries, summary = np.unique(records["summary"].to_numpy(), return_inverse=True)
    sample = records["sample"].to_numpy(dtype=np.int64)
    thinking = problem * (sample.max() + 1) + sample
    place = budget * len(summaries) + summary
    order = np.lexsort((place, thinking))
    shape = (-1, len(budgets), len(summaries))
    per = len(budgets) * len(summaries)
    whole = (
        len(order) % per == 0
        and (
            (thinking[order].reshape(-1, per) == thinking[order][::per, None])
            & (place[order].reshape(-1, per) == np.arange(per))
        ).all()
    )
    if not whole:
        raise ValueError(
            "records are ragged or doubled: not every thinking has each (budget, summary) exactly "
            "once. Read one run folder, and do not filter its rows by budget of a problem."
        )

    def numbers(column: str) -> np.ndarray:
        return records[column].to_numpy(dtype=float, na_value=np.nan)[order].reshape(shape)

    logprob, asked, cut = numbers("logprob"), numbers("summary_tokens"), numbers("cut")
    closed = (records["thinking_end"].astype(str) != "length").to_numpy()[order].reshape(shape)
    return Replay(
        problem=problem[order][::per],
        budgets=tuple(int(b) for b in budgets),
        answers=pd.factorize(records["answer"])[0][order].reshape(shape),
        correct=np.where(np.isnan(numbers("score")), np.nan, numbers("correct")),
        whole=np.exp(logprob),
        per_token=np.exp(logprob / np.maximum(asked, 1)),
        cut=cut,
        asked=asked,
        ended=(closed & (cut >= numbers("thinking_tokens")))[:, :, 0],
    )


# --- rules ---------------------------------------------------------------------------------------


def fixed_budgets(replay: Replay) -> list[Outcome]:
    """The plain budget curve: think up to the budget, ask once."""
    return [
        Outcome(
            FIXED,
            f"{budget:,} tokens",
            budget,
            replay.by_problem(replay.correct[:, j]),
            _mean(replay, replay.cut[:, j]),
            float(budget),
            _mean(replay, replay.cut[:, j] + replay.asked[:, j]),
        )
        for j, budget in enumerate(replay.budgets)
    ]


def stop_on_agreement(replay: Replay, ks: Sequence[int]) -> list[Outcome]:
    """Stop at the first budget whose answer equals those of the k − 1 budgets before it.

    A missing answer agrees with nothing; k = 1 stops at the first answer. Ks above J never stop.
    """
    if bad := [k for k in ks if k < 1]:
        raise ValueError(f"k must be at least 1 budget; got {bad[0]}.")
    same = np.zeros(replay.answers.shape, dtype=int)  # how many budgets in a row agree, up to here
    for j in range(len(replay.budgets)):
        here = replay.answers[:, j]
        again = same[:, j - 1] * (here == replay.answers[:, j - 1]) if j else 0
        same[:, j] = np.where(here >= 0, again + 1, 0)
    return [_stopped(replay, same >= k, AGREEMENT, f"{k} budgets agree", k) for k in ks]


def stop_on_confidence(
    replay: Replay, thresholds: Sequence[float], per_token: bool = False
) -> list[Outcome]:
    """Stop at the first budget with an answer whose confidence is at least the threshold."""
    confidence = replay.per_token if per_token else replay.whole
    return [
        _stopped(
            replay,
            (confidence >= threshold) & (replay.answers >= 0),
            CONFIDENCE,
            f"confidence ≥ {threshold:.3g}",
            threshold,
        )
        for threshold in thresholds
    ]


def spread_thresholds(replay: Replay, per_token: bool = False, count: int = 16) -> list[float]:
    """Thresholds at even quantiles of the confidences there are, so that a curve spans them."""
    confidence = replay.per_token if per_token else replay.whole
    known = confidence[np.isfinite(confidence)]
    if not len(known):
        return []
    cuts = np.unique(np.quantile(known, np.linspace(0, 1, count)))
    return [float(f"{cut:.3g}") for cut in cuts]


def majority_votes(
    replay: Replay, ks: Sequence[int], draws: int = 30, seed: int = 0
) -> list[Outcome]:
    """The most frequent answer of k thinkings at each budget (ties evenly, no answer no vote).

    All subsets of k samples where they are at most `draws`, else that many random ones. An
    abstention counts as wrong. Majorities of one are the fixed budgets.

    Raises:
        ValueError: problems have different numbers of samples, or fewer than a k.
    """
    answers = replay.by_sample(replay.answers).astype(np.int32)
    right = replay.by_sample(np.nan_to_num(replay.correct)).astype(np.float32)
    n = right.shape[1]
    if bad := [k for k in ks if not 1 <= k <= n]:
        raise ValueError(f"k must be in 1 … {n} (the samples per problem); got {bad[0]}.")
    outcomes = []
    for k in ks:
        subsets = _subsets(n, k, draws, seed)
        accuracy = np.mean([_vote(answers[:, s], right[:, s]) for s in subsets], axis=0)
        for j, (budget, one) in enumerate(zip(replay.budgets, fixed_budgets(replay), strict=True)):
            tokens = (k * one.spent, k * one.allowed, k * one.with_summaries)
            setting = f"majority of {k} at {budget:,} tokens"
            told = accuracy[:, j].mean(axis=1)
            outcomes.append(Outcome(MAJORITY, setting, k, told, *tokens))
    return outcomes


def _stopped(replay: Replay, stop: np.ndarray, policy: str, setting: str, value) -> Outcome:
    """stop: (N, J, S) whether the rule would stop here. The last budget stops all."""
    stop = stop | replay.ended[:, :, None]
    stop[:, -1] = True
    at = stop.argmax(axis=1)[:, None]  # (N, 1, S), the first place

    def there(values: np.ndarray) -> np.ndarray:
        return np.take_along_axis(values, at, axis=1)[:, 0]

    spent = there(replay.cut)
    asked = there(np.cumsum(replay.asked, axis=1))
    allowed = np.asarray(replay.budgets, dtype=float)[at[:, 0]]
    return Outcome(
        policy,
        setting,
        value,
        replay.by_problem(there(replay.correct)),
        _mean(replay, spent),
        _mean(replay, allowed),
        _mean(replay, spent + asked),
    )


def _mean(replay: Replay, values: np.ndarray) -> float:
    return float(replay.by_problem(values).mean())


def _subsets(n: int, k: int, draws: int, seed: int) -> np.ndarray:
    if math.comb(n, k) <= draws:
        return np.array(list(combinations(range(n), k)))
    rng = np.random.default_rng(seed)
    return rng.permuted(np.tile(np.arange(n), (draws, 1)), axis=1)[:, :k]


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
        if samples.min() != samples.max():
            return []
        return [k for k in self.majorities if 2 <= k <= samples.min()]


# A rule: its words, how it is replayed at all its settings, and whether confidence matters to it.
RULES: dict[str, tuple[str, Callable[[Replay, RuleSettings], list[Outcome]], bool]] = {
    FIXED: ("fixed budget", lambda replay, _: fixed_budgets(replay), False),
    AGREEMENT: (
        "stop when k budgets agree",
        lambda replay, s: stop_on_agreement(
            replay, [k for k in s.agreements if k <= len(replay.budgets)]
        ),
        False,
    ),
    MAJORITY: ("majority of k", lambda replay, s: majority_votes(replay, s.votes(replay)), False),
    CONFIDENCE: (
        "stop when confident",
        lambda replay, s: stop_on_confidence(
            replay, spread_thresholds(replay, s.per_token), s.per_token
        ),
        True,
    ),
}


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
    fixed = sorted((getattr(o, count), i) for i, o in enumerate(outcomes) if o.policy == FIXED)
    if not fixed:
        raise ValueError("no fixed budgets among the outcomes; add those of fixed_budgets().")
    costs = np.array([cost for cost, _ in fixed])
    plain = np.stack([outcomes[i].accuracy for _, i in fixed], axis=1)
    rows = []
    for o in outcomes:
        tokens = getattr(o, count)
        told = _estimate(o.accuracy, (0.0, 1.0))
        pair = NOTHING
        if o.policy != FIXED and tokens >= costs[0] * (1 - 1e-9):
            pair = _estimate(o.accuracy - _at_cost(plain, costs, tokens), (-1.0, 1.0))
        rows.append(
            (o.policy, o.setting, o.value, tokens)
            + (told.value, told.se, told.low, told.high, told.n_problems)
            + (pair.value, pair.low, pair.high)
        )
    columns = (
        "policy setting value tokens accuracy se low high n_problems difference difference_low "
        "difference_high"
    )
    return pd.DataFrame(rows, columns=columns.split())


def _at_cost(plain: np.ndarray, costs: np.ndarray, tokens: float) -> np.ndarray:
    """(P,) accuracy of the plain curve at a cost; plain: (P, J), costs: (J,) increasing."""
    upper = min(int(np.searchsorted(costs, tokens)), len(costs) - 1)
    lower = max(upper - 1, 0)
    gap = costs[upper] - costs[lower]
    part = min((tokens - costs[lower]) / gap, 1.0) if gap > 0 else 1.0
    return (1 - part) * plain[:, lower] + part * plain[:, upper]


def _estimate(values: np.ndarray, bounds: tuple[float, float]) -> Estimate:
    return Estimate(*(numbers[0].item() for numbers in mean_interval(values[:, None], bounds)))


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
    confidence, right, problem = _judged(replay, budget, per_token)
    rows = []
    edges = np.unique(np.quantile(confidence, np.linspace(0, 1, bins + 1))) if len(right) else []
    places = np.searchsorted(edges[1:-1], confidence, side="right") if len(right) else right
    for place in np.unique(places):
        inside = places == place
        mean, n = right[inside].mean(), int(inside.sum())
        off = np.bincount(problem[inside], right[inside] - mean)  # summed within each problem
        clusters = len(np.unique(problem[inside]))
        known = clusters > 1
        se = math.sqrt((off**2).sum() * clusters / (clusters - 1)) / n if known else math.nan
        low, high = max(mean - 1.96 * se, 0.0), min(mean + 1.96 * se, 1.0)
        if not known:
            low = high = math.nan
        rows.append((float(confidence[inside].mean()), float(mean), se, low, high, n))
    return pd.DataFrame(rows, columns=["confidence", "accuracy", "se", "low", "high", "answers"])


def calibration_error(calibration: pd.DataFrame) -> float:
    """Mean distance of confidence and accuracy over the answers in the bins; NaN without any."""
    answers = calibration["answers"]
    distance = (calibration["confidence"] - calibration["accuracy"]).abs()
    return float((distance * answers).sum() / answers.sum()) if len(calibration) else math.nan


def confidence_auroc(replay: Replay, budget: int | None = None, per_token: bool = False) -> float:
    """The chance that a right answer is more confident than a wrong one (ties half).

    NaN where all answers are right, or all wrong. Budgets as in `calibration`.
    """
    confidence, right, _ = _judged(replay, budget, per_token)
    good, bad = right.sum(), (1 - right).sum()
    if not good or not bad:
        return math.nan
    ranks = pd.Series(confidence).rank().to_numpy()
    return float((ranks[right == 1].sum() - good * (good + 1) / 2) / (good * bad))


def _judged(
    replay: Replay, budget: int | None, per_token: bool
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Confidence, correctness and problem of every summary with an answer and a verdict."""
    if budget is not None and budget not in replay.budgets:
        raise ValueError(f"budget {budget} was not measured; choose from {list(replay.budgets)}.")
    places = slice(None) if budget is None else [replay.budgets.index(budget)]
    confidence = (replay.per_token if per_token else replay.whole)[:, places]
    right = replay.correct[:, places]
    problem = np.broadcast_to(replay.problem[:, None, None], right.shape)
    kept = np.isfinite(right) & np.isfinite(confidence) & (replay.answers[:, places] >= 0)
    return confidence[kept], right[kept], problem[kept]
