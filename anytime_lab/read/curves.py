"""Records → accuracy by budget, paired differences and other measures, each with its interval.

Measures of a curve need only its numbers and take arrays with budgets on the last axis, so that
bootstrapped curves go through in one call.

Dimensions: N thinkings, P problems, J budgets, S summaries.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import NormalDist

import numpy as np
import pandas as pd

from anytime_lab.priors import Prior
from anytime_lab.store.records import read_records

CONFIDENCE = 0.95
CURVE_COLUMNS = ["problem_id", "budget", "correct", "score", "cut"]
END_COLUMNS = ["budget", "cut", "thinking_tokens", "thinking_end", "reason"]


@dataclass(frozen=True, eq=False)
class ProblemTable:
    """One number per problem and budget.

    problems: (P,) ids, sorted.
    budgets: (J,) tokens, increasing.
    values: (P, J) mean over the samples and summaries of a problem; NaN where none was graded.
    tokens: (P, J) mean thinking tokens spent at a budget (a thinking that ended early spends less).
    bounds: least and greatest possible value; intervals are kept inside.
    """

    problems: np.ndarray
    budgets: tuple[int, ...]
    values: np.ndarray
    tokens: np.ndarray
    bounds: tuple[float, float] = (0.0, 1.0)


Records = pd.DataFrame | ProblemTable


@dataclass(frozen=True)
class Estimate:
    """A mean over problems with its standard error and 95 % interval."""

    value: float
    se: float
    low: float
    high: float
    n_problems: int


def problem_table(records: Records, value: str = "correct") -> ProblemTable:
    """Averages the records of a run to one number per problem and budget.

    Args:
        records: rows with problem_id, budget, correct, score, cut; a table is returned as it is.
        value: "correct" for accuracy, "score" for the verifier's own scale. Summaries on which
            the verifier abstained (score null) are left out of both.

    Raises:
        ValueError: no rows, a missing column, or problems that lack a budget others have.
    """
    if isinstance(records, ProblemTable):
        return records
    if missing := [c for c in {*CURVE_COLUMNS, value} if c not in records.columns]:
        raise ValueError(
            f"records lack the columns {sorted(missing)}; give the frame of read_records()."
        )
    if not len(records):
        raise ValueError("records are empty; evaluate at least one problem first.")
    graded = records["score"].notna().to_numpy()
    values = np.where(graded, records[value].to_numpy(dtype=float, na_value=np.nan), 0.0)
    codes, problems = row_codes(records["problem_id"])
    budgets, columns = np.unique(records["budget"].to_numpy(), return_inverse=True)
    shape = (len(problems), len(budgets))
    cells = codes * len(budgets) + columns

    def total(weights: np.ndarray) -> np.ndarray:
        return np.bincount(cells, weights=weights, minlength=math.prod(shape)).reshape(shape)

    rows = total(np.ones(len(cells)))
    if (rows == 0).any():
        p, j = np.argwhere(rows == 0)[0]
        raise ValueError(
            f"problem {problems[p]!r} has no record at budget {budgets[j]}, others have; records "
            "of different evaluations were mixed. Read one run folder."
        )
    with np.errstate(invalid="ignore"):
        means = total(values) / total(graded.astype(float))
    tokens = total(records["cut"].to_numpy(dtype=float)) / rows
    bounds = (0.0, 1.0) if value == "correct" else (-math.inf, math.inf)
    return ProblemTable(problems, tuple(int(b) for b in budgets), means, tokens, bounds)


def row_codes(labels: pd.Series) -> tuple[np.ndarray, np.ndarray]:
    """A number per row and the labels, sorted, that the numbers stand for."""
    if isinstance(labels.dtype, pd.CategoricalDtype):
        raw = labels.cat.codes.to_numpy().astype(np.int64)
        names = labels.cat.categories.to_numpy(dtype=object)
    else:
        raw, names = pd.factorize(labels.to_numpy(dtype=object))
    if (raw < 0).any():
        raise ValueError("records hold rows without a problem_id; every row needs one.")
    used = np.flatnonzero(np.bincount(raw, minlength=len(names)))
    used = used[np.argsort(names[used].astype(str), kind="stable")]
    place = np.empty(len(names), dtype=np.int64)
    place[used] = np.arange(len(used))
    return place[raw], names[used]


def read_tables(
    runs: Mapping[str, str | Path], allow_partial: bool = False
) -> dict[str, ProblemTable]:
    """Reads run folders, name → folder, and aggregates each once.

    Raises:
        RunFolderError: as `read_records`.
    """
    return {
        name: problem_table(read_records(run_dir, CURVE_COLUMNS, allow_partial))
        for name, run_dir in runs.items()
    }


# --- one run -------------------------------------------------------------------------------------


def accuracy_curve(records: Records) -> pd.DataFrame:
    """Accuracy at each budget with its clustered 95 % interval.

    Returns columns budget (tokens), accuracy, se, low, high, n_problems.
    """
    return mean_curve(problem_table(records), "accuracy")


def accuracy_curves(runs: Mapping[str, Records]) -> pd.DataFrame:
    """The accuracy curves of several runs, one below the other, with a first column run."""
    if not runs:
        raise ValueError("no runs were given; expected a mapping from a name to its records.")
    return pd.concat([accuracy_curve(r).assign(run=n) for n, r in runs.items()]).loc[
        :, ["run", "budget", "accuracy", "se", "low", "high", "n_problems"]
    ]


def mean_curve(table: ProblemTable, name: str) -> pd.DataFrame:
    """Mean over problems at each budget; columns budget, `name`, se, low, high, n_problems."""
    mean, se, n = _means(table.values)
    low, high = interval(mean, se, n, table.bounds)
    return pd.DataFrame(
        {"budget": table.budgets, name: mean, "se": se, "low": low, "high": high, "n_problems": n}
    )


def anytime_accuracy(records: Records, prior: Prior | None = None) -> Estimate:
    """Σ_j P_j acc(b_j) (BRPO eq. 3); prior None is the plain mean over the measured budgets.

    Raises:
        ValueError: the prior weights a budget that was not measured.
    """
    table = problem_table(records)
    return weighted_mean(table.values, _weights(table.budgets, prior), table.bounds)


def final_accuracy(records: Records) -> Estimate:
    """Accuracy at the largest budget."""
    table = problem_table(records)
    return anytime_accuracy(table, Prior(table.budgets[-1:], (1.0,)))


def thinking_length(records: Records) -> Estimate:
    """Mean tokens of a thinking at the largest budget."""
    table = problem_table(records)
    return weighted_mean(table.tokens[:, -1:], np.ones(1), (0.0, math.inf))


def tokens_to_accuracy(curve: pd.DataFrame, level: float) -> int | None:
    """The least measured budget with accuracy ≥ `level` (a fraction); None if there is none."""
    reached = curve.loc[curve["accuracy"] >= level, "budget"]
    return int(reached.min()) if len(reached) else None


# --- two runs ------------------------------------------------------------------------------------


def paired_difference(
    a: Records,
    b: Records,
    prior: Prior | None = None,
    resamples: int = 2000,
    seed: int = 0,
) -> pd.DataFrame:
    """Accuracy of `a` minus that of `b`, paired over the problems both have.

    Args:
        prior: weights of the anytime difference; None is the plain mean over the budgets.
        resamples: bootstrap resamples; each draws problems once for all budgets, so that
            budgets and areas stay correlated.

    Returns one row per budget (measure "accuracy"), then one each for "anytime" and "final";
    columns measure, budget (tokens; missing for anytime), accuracy_a, accuracy_b, difference,
    se, low, high (paired over problems, Student t), boot_low, boot_high (bootstrap percentiles),
    n_problems (graded in both runs).

    Raises:
        ValueError: the runs share no problem, or were measured at different budgets.
    """
    a, b = problem_table(a), problem_table(b)
    if a.budgets != b.budgets:
        raise ValueError(
            f"the runs were measured at different budgets, {list(a.budgets)} and "
            f"{list(b.budgets)}; evaluate both at the same ones."
        )
    pair = common_tables(a, b)
    if pair is None:
        raise ValueError(
            f"the runs share no problem ({a.problems[0]!r} … against {b.problems[0]!r} …); "
            "evaluate both on the same dataset."
        )
    difference = pair[0].values - pair[1].values  # NaN where either is missing
    sides = [np.where(np.isfinite(difference), t.values, np.nan) for t in pair]
    width = a.bounds[1] - a.bounds[0]
    boot = bootstrap_means(difference, resamples, seed)
    j = len(a.budgets)
    parts = [("accuracy", budget, row) for budget, row in zip(a.budgets, np.eye(j), strict=True)]
    parts.append(("anytime", None, _weights(a.budgets, prior)))
    parts.append(("final", a.budgets[-1], np.eye(j)[-1]))
    tail = 100 * (1 - CONFIDENCE) / 2
    frame = []
    for measure, budget, weights in parts:
        told = weighted_mean(difference, weights, (-width, width))
        used = weights != 0  # a budget without weight may lack every problem of a resample
        drawn = boot[:, used] @ weights[used]
        drawn = drawn[np.isfinite(drawn)]
        low, high = np.percentile(drawn, [tail, 100 - tail]) if len(drawn) else (math.nan,) * 2
        means = [weighted_mean(side, weights, a.bounds).value for side in sides]
        numbers = (told.value, told.se, told.low, told.high, low, high, told.n_problems)
        frame.append((measure, budget, *means, *numbers))
    columns = (
        "measure budget accuracy_a accuracy_b difference se low high boot_low boot_high n_problems"
    )
    out = pd.DataFrame(frame, columns=columns.split())
    out["budget"] = out["budget"].astype("Int64")
    return out


def common_tables(a: ProblemTable, b: ProblemTable) -> tuple[ProblemTable, ProblemTable] | None:
    """Both on the problems and at the budgets that they share; None if there are none."""
    budgets = tuple(x for x in a.budgets if x in b.budgets)
    names, *rows = np.intersect1d(
        a.problems.astype(str), b.problems.astype(str), assume_unique=True, return_indices=True
    )
    if not budgets or not len(names):
        return None
    sides = []
    for table, its in zip((a, b), rows, strict=True):
        cells = np.ix_(its, [table.budgets.index(x) for x in budgets])
        sides.append(replace(
            table, problems=names, budgets=budgets, values=table.values[cells],
            tokens=table.tokens[cells],
        ))  # fmt: skip
    return sides[0], sides[1]


def paired_differences(
    runs: Mapping[str, Records],
    reference: str,
    prior: Prior | None = None,
    resamples: int = 2000,
    seed: int = 0,
) -> pd.DataFrame:
    """`paired_difference` of every run to `reference`, with first columns run and reference.

    Raises:
        ValueError: the reference is not among the runs, or is the only one; two runs cannot be
            compared.
    """
    if reference not in runs:
        raise ValueError(f"reference {reference!r} is not one of the runs {list(runs)}.")
    tables = {name: problem_table(records) for name, records in runs.items()}
    frames = []
    for name, table in tables.items():
        if name == reference:
            continue
        try:
            pair = paired_difference(table, tables[reference], prior, resamples, seed)
        except ValueError as error:
            raise ValueError(f"{name!r} against {reference!r}: {error}") from error
        frames.append(pair.assign(run=name))
    if not frames:
        raise ValueError(f"{reference!r} is the only run; give one more to compare it with.")
    whole = pd.concat(frames, ignore_index=True).assign(reference=reference)
    return whole[["run", "reference", *(c for c in frames[0].columns if c != "run")]]


# --- statistics ----------------------------------------------------------------------------------


def bootstrap_means(values: np.ndarray, resamples: int = 2000, seed: int = 0) -> np.ndarray:
    """Means at every budget over problems drawn with replacement, all budgets together.

    values: (P, J), NaN where missing. Returns (R, J).
    """
    if resamples < 1:
        raise ValueError(f"resamples must be at least 1; got {resamples}.")
    rng, n = np.random.default_rng(seed), len(values)
    known = np.isfinite(values)
    filled = np.where(known, values, 0.0)
    at_once = max(1, 4_000_000 // n)  # bounds the memory at 32 MB
    means = []
    for first in range(0, resamples, at_once):
        rows = min(at_once, resamples - first)
        drawn = rng.integers(n, size=(rows, n)) + n * np.arange(rows)[:, None]
        times = np.bincount(drawn.ravel(), minlength=rows * n).reshape(rows, n).astype(float)
        with np.errstate(invalid="ignore"):
            means.append((times @ filled) / (times @ known))
    return np.concatenate(means)


def _weights(budgets: tuple[int, ...], prior: Prior | None) -> np.ndarray:
    if prior is None:
        return np.full(len(budgets), 1 / len(budgets))
    weighted = {b: w for b, w in zip(prior.budgets, prior.weights, strict=True) if w}
    if missing := [b for b in weighted if b not in budgets]:
        raise ValueError(
            f"the prior weights budgets that were not measured: {missing}; measured are "
            f"{list(budgets)}. Use a prior over those."
        )
    return np.array([weighted.get(b, 0.0) for b in budgets])


def known_mean(values: np.ndarray, axis: int) -> np.ndarray:
    """Mean over what is known (finite) along an axis; NaN where nothing is."""
    known = np.isfinite(values)
    with np.errstate(invalid="ignore"):
        return np.where(known, values, 0.0).sum(axis=axis) / known.sum(axis=axis)


def _means(values: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean, standard error sqrt(Var_q / n) and n of each column, over its known rows."""
    known = np.isfinite(values)
    n = known.sum(axis=0)
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = np.where(known, values, 0.0).sum(axis=0) / n
        spread = np.where(known, values - mean, 0.0)
        se = np.sqrt((spread**2).sum(axis=0) / (n - 1) / n)
    return mean, np.where(n > 1, se, np.nan), n


def weighted_mean(values: np.ndarray, weights: np.ndarray, bounds: tuple[float, float]) -> Estimate:
    """Σ_j w_j mean_q(values_qj) with its interval, by each problem's part in the sum."""
    used = weights != 0
    values, weights = values[:, used], weights[used]
    mean, _, n = _means(values)
    known = np.isfinite(values)
    rows = known.any(axis=1)
    p = int(rows.sum())
    # a problem known at every budget contributes Σ_j w_j (x_qj − mean_j); n / p is 1 then
    parts = (np.where(known, values - mean, 0.0) * p / np.maximum(n, 1)) @ weights
    se = math.sqrt(float((parts**2).sum()) / (p - 1) / p) if p > 1 else math.nan
    value = float(mean @ weights)
    low, high = interval(np.array([value]), np.array([se]), np.array([p]), bounds)
    return Estimate(value, se, float(low[0]), float(high[0]), p)


def interval(
    mean: np.ndarray, se: np.ndarray, n: np.ndarray, bounds: tuple[float, float]
) -> tuple[np.ndarray, np.ndarray]:
    """95 % interval of means over n problems by Student's t, kept inside `bounds`."""
    reach = np.array([t_quantile(int(k) - 1) if k > 1 else math.nan for k in n]) * se
    return np.maximum(mean - reach, bounds[0]), np.minimum(mean + reach, bounds[1])


def t_quantile(df: int, confidence: float = CONFIDENCE) -> float:
    """Two-sided quantile of Student's t (Abramowitz & Stegun 26.7.5; exact for df 1 and 2)."""
    if df < 1:
        raise ValueError(f"degrees of freedom must be at least 1; got {df}.")
    p = (1 + confidence) / 2
    if df == 1:
        return math.tan(math.pi * (p - 0.5))
    if df == 2:
        return (2 * p - 1) * math.sqrt(1 / (2 * p * (1 - p)))
    z = NormalDist().inv_cdf(p)
    terms = (
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160,
    )
    return z + sum(term / df ** (power + 1) for power, term in enumerate(terms))


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
        means = self.by_problem(values)
        budgets = self.budgets[-values.shape[1] :]
        return ProblemTable(self.problems, budgets, means, np.zeros_like(means))

    def by_problem(self, values: np.ndarray) -> np.ndarray:
        """Means over the thinkings of each problem, NaN where none is known.

        values: (N, K), or (N, K, S) of which all S count. Returns (P, K).
        """
        known = np.isfinite(values)
        pooled = tuple(range(2, values.ndim))
        sums, counts = np.zeros((2, len(self.problems), values.shape[1]))
        np.add.at(sums, self.problem, np.where(known, values, 0.0).sum(axis=pooled))
        np.add.at(counts, self.problem, known.sum(axis=pooled))
        with np.errstate(invalid="ignore"):
            return sums / counts

    def by_sample(self, values: np.ndarray) -> np.ndarray:
        """(N, …) as (P, n, …), where every problem has the same n samples."""
        counts = np.bincount(self.problem, minlength=len(self.problems))
        if counts.min() != counts.max():
            raise ValueError(
                f"problems have {counts.min()} to {counts.max()} samples; this needs equally many. "
                "Wait until the evaluation is finished."
            )
        return values.reshape(len(counts), counts[0], *values.shape[1:])  # sorted by problem


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


# --- measures beside accuracy --------------------------------------------------------------------


def _scores(grid: ThinkingGrid, records: pd.DataFrame) -> np.ndarray:
    """(N, J) mean score of the graded summaries of a thinking at a budget; NaN if none."""
    return known_mean(grid.lay(records["score"].to_numpy(dtype=float, na_value=np.nan)), axis=2)


def _overthinking(grid: ThinkingGrid, records: pd.DataFrame) -> np.ndarray:
    scores = _scores(grid, records)
    best = np.fmax.accumulate(scores, axis=1)
    return np.where(np.isfinite(scores), best > scores, np.nan)


def _oracle_gap(grid: ThinkingGrid, records: pd.DataFrame) -> np.ndarray:
    scores = _scores(grid, records)
    return np.fmax.reduce(scores, axis=1, keepdims=True) - scores[:, -1:]


def _flips(grid: ThinkingGrid, records: pd.DataFrame) -> np.ndarray:
    if len(grid.budgets) < 2:
        raise ValueError("one budget was measured; flips need two. Evaluate at more budgets.")
    answers = grid.lay(pd.factorize(records["answer"])[0])
    return (answers[:, 1:] != answers[:, :-1]).mean(axis=2)


def _share(
    holds: Callable[[pd.DataFrame], pd.Series],
) -> Callable[[ThinkingGrid, pd.DataFrame], np.ndarray]:
    """Of the summaries of a thinking, how many something holds for."""
    return lambda grid, records: grid.lay(holds(records).to_numpy(dtype=float)).mean(axis=2)


def _cut_short(records: pd.DataFrame) -> pd.Series:
    return (records["cut"] < records["thinking_tokens"]) | (records["thinking_end"] == "length")


# Measure → what it is, and its value for each thinking: (N, K) at the last K budgets.
MEASURES: Mapping[str, tuple[str, Callable[[ThinkingGrid, pd.DataFrame], np.ndarray]]] = {
    "overthinking": ("scored higher at an earlier budget: max_{i≤j} s_i > s_j", _overthinking),
    # Biased upward by sampling noise, the more so with few summaries per budget: compare runs at
    # equal budgets and S only.
    "oracle_gap": (
        "what stopping each thinking at its best budget would add: max_j s_j − s_m",
        _oracle_gap,
    ),
    # With temperature above 0 part of it is sampling noise of the summary.
    "flips": ("the answer is another one than at the budget before (none is one, too)", _flips),
    "format_rate": (
        "an answer was found after exactly one think-end marker",
        _share(lambda records: ~records["reason"].isin(BAD_FORMAT)),
    ),
    "thinking_unfinished": ("the budget, or its own limit, ended the thinking", _share(_cut_short)),
    "summary_unfinished": (
        "its own limit ended the summary",
        _share(lambda records: records["finish"] == "length"),
    ),
}


def measure_curve(records: pd.DataFrame, measure: str) -> pd.DataFrame:
    """The mean over problems of one of MEASURES at each budget that it has.

    Returns columns budget, the measure's name, se, low, high, n_problems.
    """
    if measure not in MEASURES:
        raise ValueError(f"there is no measure {measure!r}; choose from {list(MEASURES)}.")
    grid = thinking_grid(records)
    return mean_curve(grid.table(MEASURES[measure][1](grid, records)), measure)


def endings(records: pd.DataFrame) -> pd.DataFrame:
    """What is censored at each budget: columns budget, cut, unanswered.

    cut: share of thinkings that the budget, or their own limit, ended. unanswered: share of
    summaries in which no answer was found. Fractions.
    """
    budgets, places = np.unique(records["budget"].to_numpy(), return_inverse=True)
    count = np.bincount(places)

    def share(rows: pd.Series | np.ndarray) -> np.ndarray:
        return np.bincount(places, weights=np.asarray(rows, dtype=float)) / count

    unanswered = records["reason"].isin(BAD_FORMAT)
    return pd.DataFrame(
        {"budget": budgets, "cut": share(_cut_short(records)), "unanswered": share(unanswered)}
    )


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


def pass_curve(records: pd.DataFrame, ks: Sequence[int]) -> pd.DataFrame:
    """pass@k at each budget: the chance that one of k thinkings is right, drawn without return.

    The S summaries of a thinking are not independent samples, so pass@k is taken over the first,
    the second, … summary of all thinkings, and averaged.
    Returns columns k, tokens (k · budget), budget, accuracy, se, low, high, n_problems.
    """
    grid = thinking_grid(records)
    right = grid.by_sample(grid.lay(records["correct"].to_numpy(dtype=float)))
    frames = []
    for k in ks:
        values = pass_at_k(right.shape[1], right.sum(axis=1), k).mean(axis=2)
        table = ProblemTable(grid.problems, grid.budgets, values, np.zeros_like(values))
        curve = mean_curve(table, "accuracy")
        frames.append(curve.assign(k=k, tokens=k * curve["budget"]))
    whole = pd.concat(frames, ignore_index=True)
    return whole[["k", "tokens", *(c for c in whole.columns if c not in ("k", "tokens"))]]


# --- one number for a curve ----------------------------------------------------------------------


def regret(accuracy: np.ndarray, budgets: Sequence[int]) -> np.ndarray:
    """1 − (1/b_m) ∫_0^{b_m} acc(b) db (MRT); trapezoids, from accuracy 0 at 0 tokens.

    accuracy: (…, J). Returns (…).
    """
    accuracy = np.asarray(accuracy, dtype=float)
    heights = np.concatenate([np.zeros_like(accuracy[..., :1]), accuracy], axis=-1)
    return 1 - np.trapezoid(heights, [0, *budgets], axis=-1) / budgets[-1]


def anytime_index(accuracy: np.ndarray, budgets: Sequence[int]) -> np.ndarray:
    """Area under the best accuracy so far over its greatest possible area (arXiv 2601.11038).

    AI = Σ ½ (Q*_t + Q*_{t+1}) (b_{t+1} − b_t) / ((b_T − b_1) max Q), Q*_t = max_{i≤t} Q_i.
    A flat bad curve scores 1: show the final accuracy beside it. NaN where accuracy is 0
    everywhere. accuracy: (…, J ≥ 2). Returns (…).
    """
    best = np.maximum.accumulate(np.asarray(accuracy, dtype=float), axis=-1)
    area = np.trapezoid(best, budgets, axis=-1)
    with np.errstate(invalid="ignore", divide="ignore"):
        return area / ((budgets[-1] - budgets[0]) * best[..., -1])


def curve_measures(records: Records, resamples: int = 2000, seed: int = 0) -> pd.DataFrame:
    """Regret and Anytime Index of a run with bootstrap 95 % intervals over problems.

    Returns columns measure, value, low, high.
    """
    table = problem_table(records)
    if len(table.budgets) < 2:
        raise ValueError("one budget was measured; these need two. Evaluate at more budgets.")
    mean = np.nanmean(table.values, axis=0)
    boot = bootstrap_means(table.values, resamples, seed)
    rows = []
    for name, measure in (("regret", regret), ("anytime index", anytime_index)):
        low, high = np.nanpercentile(measure(boot, table.budgets), [2.5, 97.5])
        rows.append((name, float(measure(mean, table.budgets)), low, high))
    return pd.DataFrame(rows, columns=["measure", "value", "low", "high"])
