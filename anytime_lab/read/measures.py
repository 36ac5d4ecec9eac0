"""Measures beside accuracy: overthinking, flips, format, pass@k, maj@k, regret, the Anytime Index.

Those of single thinkings need the records; those of a curve need only its numbers and take arrays
with budgets on the last axis, so that bootstrapped curves go through in one call.

Dimensions: N thinkings, P problems, J budgets, S summaries.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import pandas as pd

from anytime_lab.read.curves import (
    Estimate,
    ProblemTable,
    Records,
    bootstrap_means,
    mean_curve,
    problem_table,
    row_codes,
    weighted_mean,
)

THINKING_COLUMNS = ["problem_id", "sample", "budget", "summary", "cut", "thinking_tokens", "score"]
BAD_FORMAT = ("format", "no answer")


@dataclass(frozen=True, eq=False)
class ThinkingGrid:
    """The records of a run as arrays, one row per thinking.

    problem: (N,) number of the problem. problems: (P,) ids, sorted. budgets: (J,) tokens.
    order: (N, J, S) position of each record in the frame, to lay out any column of it.
    """

    problem: np.ndarray
    problems: np.ndarray
    budgets: tuple[int, ...]
    order: np.ndarray

    def lay(self, column: pd.Series | np.ndarray) -> np.ndarray:
        """A column of the records as (N, J, S)."""
        return np.asarray(column)[self.order]

    def table(self, values: np.ndarray) -> ProblemTable:
        """Means over the thinkings of each problem. values: (N, K), NaN where unknown."""
        known = np.isfinite(values)
        filled = np.where(known, values, 0.0)
        sums = np.zeros((len(self.problems), values.shape[1]))
        counts = np.zeros_like(sums)
        np.add.at(sums, self.problem, filled)
        np.add.at(counts, self.problem, known)
        with np.errstate(invalid="ignore"):
            means = sums / counts
        budgets = self.budgets[-values.shape[1] :]
        return ProblemTable(self.problems, budgets, means, np.zeros_like(means))


def thinking_grid(records: pd.DataFrame) -> ThinkingGrid:
    """Lays the records out by thinking, budget and summary.

    Raises:
        ValueError: a column is missing, or a thinking lacks a (budget, summary) others have.
    """
    if missing := [c for c in THINKING_COLUMNS if c not in records.columns]:
        raise ValueError(f"records lack the columns {missing}; give the frame of read_records().")
    if not len(records):
        raise ValueError("records are empty; evaluate at least one problem first.")
    problem, problems = row_codes(records["problem_id"])
    budgets, j = np.unique(records["budget"].to_numpy(), return_inverse=True)
    summaries, s = np.unique(records["summary"].to_numpy(), return_inverse=True)
    sample = records["sample"].to_numpy(dtype=np.int64)
    thinking = problem * (sample.max() + 1) + sample
    order = np.lexsort((s, j, thinking))
    per = len(budgets) * len(summaries)
    whole = (
        len(order) % per == 0
        and (
            (thinking[order].reshape(-1, per) == thinking[order][::per, None]).all()
            and (j[order] * len(summaries) + s[order] == np.tile(np.arange(per), len(order) // per))
        ).all()
    )
    if not whole:
        raise ValueError(
            "records are ragged or doubled: not every thinking has each (budget, summary) exactly "
            "once. Read one run folder, and do not filter its rows by budget of a problem."
        )
    order = order.reshape(-1, len(budgets), len(summaries))
    return ThinkingGrid(problem[order[:, 0, 0]], problems, tuple(int(b) for b in budgets), order)


def _thinking_scores(grid: ThinkingGrid, records: pd.DataFrame) -> np.ndarray:
    """(N, J) mean score of the graded summaries of a thinking at a budget; NaN if none."""
    scores = grid.lay(records["score"].to_numpy(dtype=float, na_value=np.nan))
    known = np.isfinite(scores)
    with np.errstate(invalid="ignore"):
        return np.where(known, scores, 0.0).sum(axis=2) / known.sum(axis=2)


def overthinking(records: pd.DataFrame) -> pd.DataFrame:
    """Share of thinkings that scored higher at an earlier budget: max_{i≤j} s_i > s_j.

    Returns columns budget, overthinking, se, low, high, n_problems.
    """
    grid = thinking_grid(records)
    scores = _thinking_scores(grid, records)
    best = np.fmax.accumulate(scores, axis=1)
    lost = np.where(np.isfinite(scores), best > scores, np.nan)
    return mean_curve(grid.table(lost), "overthinking")


def oracle_gap(records: pd.DataFrame) -> Estimate:
    """E[max_j s_j] − E[s_m]: what stopping each thinking at its best budget would add.

    Biased upward by sampling noise (the maximum of noisy scores exceeds the score of the best
    budget), the more so with few summaries per budget. Compare runs at equal budgets and S only.
    """
    grid = thinking_grid(records)
    scores = _thinking_scores(grid, records)
    gap = np.fmax.reduce(scores, axis=1) - scores[:, -1]
    table = grid.table(gap[:, None])
    return weighted_mean(table.values, np.ones(1), (0.0, math.inf))


def answer_flips(records: pd.DataFrame) -> pd.DataFrame:
    """Share of answers that differ from the answer at the budget before, summary by summary.

    Answers are compared as the verifier wrote them; "no answer" is an answer of its own. With
    temperature above 0 part of it is sampling noise of the summary.
    Returns columns budget (from the second on), flips, se, low, high, n_problems.
    """
    grid = thinking_grid(records)
    if len(grid.budgets) < 2:
        raise ValueError("one budget was measured; flips need two. Evaluate at more budgets.")
    answers = grid.lay(pd.factorize(records["answer"])[0])
    flips = (answers[:, 1:] != answers[:, :-1]).mean(axis=2)
    return mean_curve(grid.table(flips), "flips")


def format_rates(records: pd.DataFrame) -> pd.DataFrame:
    """How well-formed and how finished things are at each budget.

    Returns columns budget; format_rate: share of summaries in which an answer was found after
    exactly one think-end marker; thinking_unfinished: share of thinkings cut by the budget;
    summary_unfinished: share of summaries cut by their own limit.
    """
    cut_off = (records["cut"] < records["thinking_tokens"]) | (
        (records["thinking_end"].astype(str) == "length")
        & (records["cut"] == records["thinking_tokens"])
    )
    shares = {
        "format_rate": ~records["reason"].astype(str).isin(BAD_FORMAT),
        "thinking_unfinished": cut_off,
        "summary_unfinished": records["finish"].astype(str) == "length",
    }
    frame = pd.DataFrame({"budget": records["budget"].to_numpy(), **shares})
    by_problem = frame.groupby([row_codes(records["problem_id"])[0], "budget"]).mean()
    return by_problem.groupby(level="budget").mean().reset_index()


# --- several samples -----------------------------------------------------------------------------


def pass_at_k(n: np.ndarray | int, c: np.ndarray | int, k: int) -> np.ndarray:
    """1 − C(n−c, k) / C(n, k), the chance that k of n samples hold one of the c right ones.

    n, c: any shapes that broadcast. Raises ValueError if k is not in 1 … min(n).
    """
    n, c = np.broadcast_arrays(np.asarray(n, dtype=float), np.asarray(c, dtype=float))
    if k < 1 or (n < k).any():
        raise ValueError(f"k must be in 1 … {int(n.min())} (the samples per problem); got {k}.")
    missed = np.ones(n.shape)
    for i in range(k):
        missed = missed * np.clip(n - c - i, 0, None) / (n - i)
    return 1 - missed


def _samples(grid: ThinkingGrid, column: np.ndarray) -> np.ndarray:
    """(P, n, J, S) of a column, where every problem has the same n samples."""
    counts = np.bincount(grid.problem, minlength=len(grid.problems))
    if counts.min() != counts.max():
        raise ValueError(
            f"problems have {counts.min()} to {counts.max()} samples; this needs equally many. "
            "Wait until the evaluation is finished."
        )
    laid = grid.lay(column)  # thinkings are sorted by problem
    return laid.reshape(len(grid.problems), counts[0], *laid.shape[1:])


def pass_curve(records: pd.DataFrame, ks: Sequence[int]) -> pd.DataFrame:
    """pass@k at each budget: the chance that one of k thinkings is right, drawn without return.

    The S summaries of a thinking are not independent samples, so pass@k is taken over the first,
    the second, … summary of all thinkings, and averaged.
    Returns columns k, budget, tokens (k · budget), accuracy, se, low, high, n_problems.
    """
    grid = thinking_grid(records)
    right = _samples(grid, records["correct"].to_numpy(dtype=float))
    frames = []
    for k in ks:
        values = pass_at_k(right.shape[1], right.sum(axis=1), k).mean(axis=2)
        frames.append(_by_tokens(grid, values, k))
    return pd.concat(frames, ignore_index=True)


def majority_curve(
    records: pd.DataFrame, ks: Sequence[int], draws: int = 200, seed: int = 0
) -> pd.DataFrame:
    """maj@k at each budget: accuracy of the most frequent answer of k thinkings.

    Ties are broken evenly, a missing answer has no vote. All C(n, k) subsets are used where they
    are at most `draws`, else that many random ones (the same for all problems and budgets).
    Returns columns k, budget, tokens (k · budget), accuracy, se, low, high, n_problems.
    """
    grid = thinking_grid(records)
    right = _samples(grid, records["correct"].to_numpy(dtype=np.float32))
    answers = _samples(grid, pd.factorize(records["answer"])[0])
    n = right.shape[1]
    frames = []
    for k in ks:
        if not 1 <= k <= n:
            raise ValueError(f"k must be in 1 … {n} (the samples per problem); got {k}.")
        if math.comb(n, k) <= draws:
            subsets = np.array(list(combinations(range(n), k)))
        else:
            rng = np.random.default_rng(seed)
            subsets = rng.permuted(np.tile(np.arange(n), (draws, 1)), axis=1)[:, :k]
        values = np.mean([_majority(answers[:, s], right[:, s]) for s in subsets], axis=0)
        frames.append(_by_tokens(grid, values.mean(axis=2), k))
    return pd.concat(frames, ignore_index=True)


def _majority(answers: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Accuracy of the most frequent answer; (P, k, J, S) numbers (−1: none) → (P, J, S)."""
    votes = np.stack(
        [
            (answers == answers[:, i : i + 1]).sum(axis=1) * (answers[:, i] >= 0)
            for i in range(answers.shape[1])
        ],
        axis=1,
    )
    most = votes.max(axis=1, keepdims=True)
    winners = (votes == most) & (most > 0)
    # every tied answer has equally many votes, so the mean over votes is the mean over answers
    return (winners * right).sum(axis=1) / np.maximum(winners.sum(axis=1), 1)


def _by_tokens(grid: ThinkingGrid, values: np.ndarray, k: int) -> pd.DataFrame:
    table = ProblemTable(grid.problems, grid.budgets, values, np.zeros_like(values))
    curve = mean_curve(table, "accuracy")
    return curve.assign(k=k, tokens=k * curve["budget"])[
        ["k", "budget", "tokens", "accuracy", "se", "low", "high", "n_problems"]
    ]


# --- one number for a curve ----------------------------------------------------------------------


def regret(accuracy: np.ndarray, budgets: Sequence[int]) -> np.ndarray:
    """1 − (1/b_m) ∫_0^{b_m} acc(b) db (MRT); trapezoids, from accuracy 0 at 0 tokens.

    accuracy: (…, J). Returns (…).
    """
    accuracy = _curve_values(accuracy, budgets)
    edges = np.concatenate([[0], np.asarray(budgets, dtype=float)])
    heights = np.concatenate([np.zeros_like(accuracy[..., :1]), accuracy], axis=-1)
    return 1 - np.trapezoid(heights, edges, axis=-1) / edges[-1]


def anytime_index(accuracy: np.ndarray, budgets: Sequence[int]) -> np.ndarray:
    """Area under the best accuracy so far over its greatest possible area (arXiv 2601.11038).

    AI = Σ ½ (Q*_t + Q*_{t+1}) (b_{t+1} − b_t) / ((b_T − b_1) max Q), Q*_t = max_{i≤t} Q_i.
    A flat bad curve scores 1: show the final accuracy beside it. NaN where accuracy is 0
    everywhere. accuracy: (…, J ≥ 2). Returns (…).
    """
    accuracy = _curve_values(accuracy, budgets)
    if len(budgets) < 2:
        raise ValueError("one budget was given; the Anytime Index needs two.")
    best = np.maximum.accumulate(accuracy, axis=-1)
    area = np.trapezoid(best, np.asarray(budgets, dtype=float), axis=-1)
    with np.errstate(invalid="ignore"):
        return area / ((budgets[-1] - budgets[0]) * best[..., -1])


def _curve_values(accuracy: np.ndarray, budgets: Sequence[int]) -> np.ndarray:
    accuracy = np.asarray(accuracy, dtype=float)
    if accuracy.shape[-1] != len(budgets):
        raise ValueError(
            f"accuracy has {accuracy.shape[-1]} values and there are {len(budgets)} budgets; "
            "give one value per budget on the last axis."
        )
    if any(b <= a for a, b in zip(budgets, budgets[1:], strict=False)):
        raise ValueError(f"budgets must increase; got {list(budgets)}. Sort them, shortest first.")
    return accuracy


def curve_measures(records: Records, resamples: int = 2000, seed: int = 0) -> pd.DataFrame:
    """Regret and Anytime Index of a run with bootstrap 95 % intervals over problems.

    Returns columns measure, value, low, high.
    """
    table = problem_table(records)
    mean = np.nanmean(table.values, axis=0)
    boot = bootstrap_means(table.values, resamples, seed)
    rows = []
    for name, measure in (("regret", regret), ("anytime index", anytime_index)):
        low, high = np.nanpercentile(measure(boot, table.budgets), [2.5, 97.5])
        rows.append((name, float(measure(mean, table.budgets)), low, high))
    return pd.DataFrame(rows, columns=["measure", "value", "low", "high"])
