"""Records → accuracy by budget and paired differences, each with its interval.

Dimensions: P problems, J budgets, K means.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import NamedTuple, Self

import numpy as np
import pandas as pd
from scipy.special import bdtr, betaincinv, ndtr, ndtri, stdtr, stdtrit

from anytime_lab.priors import Prior
from anytime_lab.store.records import read_records

CONFIDENCE, DRAWS = 0.95, 20_000
CURVE_COLUMNS = ["problem_id", "budget", "correct", "score", "cut"]
TABLE_COLUMNS = [*CURVE_COLUMNS, "thinking_tokens", "thinking_end", "reason"]  # endings, too


class Estimate(NamedTuple):
    """A mean over problems with its 95 % interval and standard error; numbers, or (K,) of each."""

    value: float
    low: float
    high: float
    se: float
    n_problems: int


NOTHING = Estimate(np.nan, np.nan, np.nan, np.nan, 0)


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

    def take(self, problems: np.ndarray, budgets: Sequence[int]) -> Self:
        """Of these problems at these budgets, all of which it has."""
        rows = np.searchsorted(self.problems, problems)
        cells = np.ix_(rows, [self.budgets.index(budget) for budget in budgets])
        told = {"values": self.values[cells], "tokens": self.tokens[cells]}
        return replace(self, problems=problems, budgets=tuple(budgets), **told)

    @cached_property
    def means(self) -> Estimate:
        """The mean over problems at each budget, (J,)."""
        return weighted_means(self, np.eye(len(self.budgets)))

    @cached_property
    def widening(self) -> float:
        """How much longer the intervals of all budgets must be to hold together, 95 times in 100.

        By a bootstrap that weighs each problem once for all budgets, of the greatest error over
        the budgets in standard errors (Chernozhukov et al. 2013, doi 10.1214/13-AOS1161).
        """
        off = np.nan_to_num(self.values - known_mean(self.values, axis=0))
        off = off / np.maximum(np.linalg.norm(off, axis=0), 1e-12)
        # the problems' sum, weighed by normal draws, is normal itself: drawn by its correlations
        normal = np.random.default_rng(0).multivariate_normal
        drawn = normal(np.zeros(off.shape[1]), off.T @ off, DRAWS, "ignore", method="eigh")
        reach = np.quantile(np.abs(drawn).max(axis=1), CONFIDENCE)
        longer = stdtrit(len(off) - 1, ndtr(reach)) / stdtrit(len(off) - 1, (1 + CONFIDENCE) / 2)
        return float(np.fmax(longer, 1.0))


# A run: its records, its table, or the tables of its seeds, which count by their mean.
Records = pd.DataFrame | ProblemTable | Sequence[ProblemTable]
Folders = str | Path | Sequence[str | Path]


def problem_table(records: Records) -> ProblemTable:
    """Averages the records of a run to one number per problem and budget.

    Args:
        records: rows with problem_id, budget, correct, score, cut. Summaries on which the verifier
            abstained (score null) are left out. A table is returned as it is.

    Raises:
        ValueError: no rows, a missing column, or problems that lack a budget others have.
    """
    if isinstance(records, ProblemTable):
        return records
    if not isinstance(records, pd.DataFrame):
        values = known_mean(np.stack([table.values for table in records]), axis=0)
        tokens = np.mean([table.tokens for table in records], axis=0)
        return replace(records[0], values=values, tokens=tokens)
    records = checked(records, CURVE_COLUMNS)
    graded = records["correct"].astype(float).where(records["score"].notna())
    rows = records[["problem_id", "budget", "cut"]].assign(correct=graded)
    cells = rows.groupby(["problem_id", "budget"], observed=True).mean().unstack()
    cells = cells.set_axis(cells.index.astype(str)).sort_index()
    values, tokens = (cells[column].to_numpy(dtype=float) for column in ("correct", "cut"))
    budgets = tuple(int(budget) for budget in cells["cut"].columns)
    for p, j in np.argwhere(np.isnan(tokens))[:1]:
        raise ValueError(
            f"problem {cells.index[p]!r} has no record at budget {budgets[j]}, others have; "
            "records of different evaluations were mixed. Read one run folder."
        )
    return ProblemTable(cells.index.to_numpy(dtype=object), budgets, values, tokens)


def checked(records: pd.DataFrame, columns: Sequence[str]) -> pd.DataFrame:
    """The records, which have these columns, rows, and a problem in each.

    Raises:
        ValueError: they do not.
    """
    if missing := [c for c in columns if c not in records.columns]:
        raise ValueError(f"records lack the columns {missing}; give the frame of read_records().")
    if not len(records):
        raise ValueError("records are empty; evaluate at least one problem first.")
    if records["problem_id"].isna().any():
        raise ValueError("records hold rows without a problem_id; every row needs one.")
    return records


def folders_of(run: Folders) -> list[Path]:
    """The folders of a run, one for each seed."""
    return [Path(run)] if isinstance(run, str | Path) else [Path(folder) for folder in run]


def read_tables(runs: Mapping[str, Folders]) -> dict[str, list[ProblemTable]]:
    """Reads evaluations, name → folder or folders, one table for each seed.

    Raises:
        RunFolderError: as `read_records`.
        ValueError: a run has no folder, or seeds on other problems or at other budgets.
    """
    tables = {}
    for name, run in runs.items():
        folders = folders_of(run)
        tables[name] = seeds = [problem_table(read_records(f, CURVE_COLUMNS)) for f in folders]
        if not seeds:
            raise ValueError(f"{name!r} has no folder; give one for each seed.")
        if len({(table.budgets, *table.problems) for table in seeds}) > 1:
            raise ValueError(
                f"{name}: the seeds of a run were evaluated on different problems or budgets; a "
                "mean over them would be of nothing. Evaluate them alike, or compare them as runs."
            )
    return tables


# --- one run -------------------------------------------------------------------------------------


def accuracy_curve(records: Records, measure: str = "accuracy") -> pd.DataFrame:
    """The mean at each budget with its clustered 95 % interval.

    Args:
        measure: what the mean of it is called.

    Returns columns budget (tokens), `measure`, se, low, high, band_low, band_high (which hold at
    all budgets at once), n_problems.
    """
    table = problem_table(records)
    intervals = _interval_columns(table, table.means)
    return pd.DataFrame({"budget": table.budgets, measure: table.means.value, **intervals})


def _interval_columns(table: ProblemTable, told: Estimate) -> dict[str, np.ndarray]:
    ends = [told.value + table.widening * (end - told.value) for end in (told.low, told.high)]
    low, high = (np.clip(end, *table.bounds) for end in ends)
    columns = {"se": told.se, "low": told.low, "high": told.high}
    return columns | {"band_low": low, "band_high": high, "n_problems": told.n_problems}


def accuracy_curves(runs: Mapping[str, Records]) -> pd.DataFrame:
    """The accuracy curves of several runs, one below the other, with a first column run."""
    if not runs:
        raise ValueError("no runs were given; expected a mapping from a name to its records.")
    curves = {name: accuracy_curve(records) for name, records in runs.items()}
    return pd.concat(curves, names=["run"]).reset_index("run").reset_index(drop=True)


def anytime_accuracy(records: Records, prior: Prior | None = None) -> Estimate:
    """Σ_j P_j acc(b_j) (BRPO eq. 3); prior None is the plain mean over the measured budgets.

    Raises:
        ValueError: the prior weights a budget that was not measured.
    """
    table = problem_table(records)
    told = weighted_means(table, _weights(table.budgets, prior)[:, None])
    return Estimate(*(numbers[0].item() for numbers in told))


def final_accuracy(records: Records) -> Estimate:
    """Accuracy at the largest budget."""
    table = problem_table(records)
    return anytime_accuracy(table, Prior(table.budgets[-1:], (1.0,)))


def endings(records: pd.DataFrame) -> pd.DataFrame:
    """What is censored at each budget: columns budget, cut, unanswered.

    cut: share of thinkings that the budget, or their own limit, ended. unanswered: share of
    summaries in which no answer was found. Fractions.
    """
    cut = records["cut"] < records["thinking_tokens"]
    rows = {
        "budget": records["budget"],
        "cut": cut | (records["thinking_end"] == "length"),
        "unanswered": records["reason"].isin(["format", "no answer"]),
    }
    return pd.DataFrame(rows).groupby("budget", as_index=False).mean()


# --- two runs ------------------------------------------------------------------------------------


def difference_table(a: ProblemTable, b: ProblemTable) -> ProblemTable | None:
    """`a` minus `b` on the problems and at the budgets that both have; None if there are none."""
    problems = np.intersect1d(a.problems, b.problems, assume_unique=True)
    budgets = [budget for budget in a.budgets if budget in b.budgets]
    if not budgets or not len(problems):
        return None
    a, b = a.take(problems, budgets), b.take(problems, budgets)
    return replace(a, values=a.values - b.values, tokens=a.tokens - b.tokens, bounds=(-1.0, 1.0))


def paired_difference(a: Records, b: Records) -> pd.DataFrame:
    """Accuracy of `a` minus that of `b`, paired over the problems both have.

    Returns one row per budget (measure "accuracy"), then one each for "anytime" and "final";
    columns measure, budget (tokens; missing for anytime), accuracy_a, accuracy_b, difference,
    se, low, high, band_low, band_high (which hold at all budgets at once; missing for "anytime"
    and "final"), n_problems (graded in both runs), p (as `chance_of`).

    Raises:
        ValueError: the runs share no problem, or were measured at different budgets.
    """
    a, b = problem_table(a), problem_table(b)
    if a.budgets != b.budgets:
        raise ValueError(
            f"the runs were measured at different budgets, {list(a.budgets)} and "
            f"{list(b.budgets)}; evaluate both at the same ones."
        )
    pair = difference_table(a, b)
    if pair is None:
        raise ValueError(
            f"the runs share no problem ({a.problems[0]!r} … against {b.problems[0]!r} …); "
            "evaluate both on the same dataset."
        )
    each = np.eye(len(a.budgets))
    weights = np.column_stack([each, each.mean(axis=0), each[-1]])
    values = weighted_values(pair, weights)
    told = mean_interval(values, pair.bounds)
    base = b.take(pair.problems, pair.budgets)
    base = replace(base, values=np.where(np.isfinite(pair.values), base.values, np.nan))
    theirs = weighted_means(base, weights).value
    frame = pd.DataFrame(
        {
            "measure": ["accuracy"] * len(a.budgets) + ["anytime", "final"],
            "budget": pd.array([*a.budgets, None, a.budgets[-1]], dtype="Int64"),
            "accuracy_a": theirs + told.value,
            "accuracy_b": theirs,
            "difference": told.value,
            **_interval_columns(pair, told),
            "p": chance_of(values, told),
        }
    )
    frame.loc[len(a.budgets) :, ["band_low", "band_high"]] = np.nan
    return frame


def paired_differences(runs: Mapping[str, Records], reference: str) -> pd.DataFrame:
    """`paired_difference` of every run to `reference`, with first columns run and reference.

    A last column p_holm is p after Holm (1979): of so many runs compared, by so small a chance one
    or more would differ from a reference that is their like.

    Raises:
        ValueError: the reference is not among the runs, or is the only one; two runs cannot be
            compared.
    """
    if reference not in runs:
        raise ValueError(f"reference {reference!r} is not one of the runs {list(runs)}.")
    frames = {}
    for name in [name for name in runs if name != reference]:
        try:
            frames[name, reference] = paired_difference(runs[name], runs[reference])
        except ValueError as error:
            raise ValueError(f"{name!r} against {reference!r}: {error}") from error
    if not frames:
        raise ValueError(f"{reference!r} is the only run; give one more to compare it with.")
    frame = pd.concat(frames, names=["run", "reference"]).reset_index([0, 1]).reset_index(drop=True)
    alike = frame.groupby(["measure", "budget"], dropna=False)["p"]
    return frame.assign(p_holm=alike.transform(_holm))


def _holm(p: pd.Series) -> pd.Series:
    rising = p.dropna().sort_values()
    stepped = rising * np.arange(len(rising), 0, -1)
    return stepped.cummax().clip(upper=1.0).reindex(p.index)


# --- statistics ----------------------------------------------------------------------------------


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


def chance_of(values: np.ndarray, told: Estimate) -> np.ndarray:
    """Two-sided p of no difference: how often one as great would come about by chance.

    McNemar's exact test where the problems that differ do so by the same amount, as with one
    sample a problem; else that of the interval (Student's t).

    values: (P, K) differences, NaN where unknown. told: their mean_interval(). Returns (K,).
    """
    known = np.nan_to_num(values).round(9)
    size = np.abs(known).max(axis=0)
    alike = np.isin(np.abs(known) / np.where(size > 0, size, 1.0), (0.0, 1.0)).all(axis=0)
    better, worse = (known > 0).sum(axis=0), (known < 0).sum(axis=0)
    exact = np.minimum(2 * bdtr(np.minimum(better, worse), better + worse, 0.5), 1.0)
    quantile = stdtrit(told.n_problems - 1, (1 + CONFIDENCE) / 2)
    reach = np.where(told.value > 0, told.value - told.low, told.high - told.value)  # towards 0
    with np.errstate(invalid="ignore", divide="ignore"):
        by_t = 2 * stdtr(told.n_problems - 1, -np.abs(told.value) / reach * quantile)
    return np.where(np.isnan(reach), np.nan, np.where(alike, exact, by_t))


def weighted_means(table: ProblemTable, weights: np.ndarray) -> Estimate:
    """Σ_j w_jk mean_q(x_qj) for each k, with its interval; weights: (J, K)."""
    return mean_interval(weighted_values(table, weights), table.bounds)


def weighted_values(table: ProblemTable, weights: np.ndarray) -> np.ndarray:
    """Each problem's part in Σ_j w_jk mean_q(x_qj), so that their mean is that sum.

    weights: (J, K). Returns (P, K); a problem that is known at no budget with a weight is NaN.
    """
    known = np.isfinite(table.values)
    means = known_mean(table.values, axis=0)
    unknown = np.isnan(means) @ (weights != 0)
    counts = (known @ (weights != 0)).astype(bool)  # (P, K)
    # a problem known at every budget contributes Σ_j w_j (x_qj − mean_j); the ratio is 1 then
    off = np.where(known, table.values - means, 0.0) / np.maximum(known.sum(axis=0), 1)
    parts = np.nan_to_num(means) @ weights + off @ weights * counts.sum(axis=0)
    return np.where(counts & ~unknown, parts, np.nan)


@np.errstate(invalid="ignore", divide="ignore")  # few problems, or all alike
def mean_interval(values: np.ndarray, bounds: tuple[float, float]) -> Estimate:
    """Means over problems with 95 % intervals that hold for few problems and near the bounds, too.

    values: (P, K), NaN where unknown. The standard error is sqrt(Var_q / n).

    A share (bounds 0 and 1) has Jeffreys' interval at the number of independent answers that would
    spread as much as the problems do (Franco et al. 2019, doi 10.1093/jssam/smy019) and half a
    made-up one at either end: half-way from the furthest problem to the bound, and at the bound
    where all agree, which is not certain. A difference (bounds -1 and 1) is what is gained less
    what is lost: two such shares, joined by how they go together over the problems (Newcombe 1998,
    Statistics in Medicine 17:2635; Zou and Donner 2008, 27:1693). `benchmarks/coverage.py`
    measures both.
    """
    n, mean = np.isfinite(values).sum(axis=0), known_mean(values, axis=0)
    quantile = stdtrit(n - 1, (1 + CONFIDENCE) / 2)
    se = np.sqrt(np.nansum((values - mean) ** 2, axis=0) / (n - 1) / n)
    if bounds[0] < 0:
        sides = [np.maximum(values, 0.0), np.maximum(-values, 0.0)]
        gain, loss = (mean_interval(side, (0.0, 1.0)) for side in sides)
        # sums of products over sqrt of products of sums of squares, which are n (n - 1) se²
        products = np.nansum((sides[0] - gain.value) * (sides[1] - loss.value), axis=0)
        scale = n * (n - 1) * gain.se * loss.se
        alike = np.divide(products, scale, out=np.zeros_like(mean), where=scale > 0)
        low, high = (
            mean + sign * np.sqrt(np.maximum(a**2 + b**2 - 2 * alike * a * b, 0.0))
            for sign, a, b in (
                (-1, gain.value - gain.low, loss.high - loss.value),
                (1, gain.high - gain.value, loss.value - loss.low),
            )
        )
        return Estimate(mean, np.maximum(low, -1.0), np.minimum(high, 1.0), se, n)
    least, most = np.fmin.reduce(values), np.fmax.reduce(values)
    ends = np.where(least < most, [least / 2, (1 + most) / 2], [[0.0], [1.0]])
    middle = (n * mean + ends.mean(axis=0)) / (n + 1)
    off = np.nansum((values - middle) ** 2, axis=0) + ((ends - middle) ** 2).mean(axis=0)
    spread = off / (n + 1)
    answers = n * middle * (1 - middle) / spread * (ndtri((1 + CONFIDENCE) / 2) / quantile) ** 2
    right, wrong, tail = answers * mean + 0.5, answers * (1 - mean) + 0.5, (1 - CONFIDENCE) / 2
    low, high = (betaincinv(right, wrong, share) for share in (tail, 1 - tail))
    known = ~np.isnan(quantile)
    low, high = np.where(known & (mean <= 0), 0.0, low), np.where(known & (mean >= 1), 1.0, high)
    return Estimate(mean, low, high, se, n)


def least_difference(problems: int, samples: int = 1, alike: float = 0.0) -> float:
    """The smallest difference of two runs at a budget that an evaluation is likely to tell from 0.

    Likely: 4 times in 5 its interval leaves out 0, at an accuracy of about 1/2, where most problems
    are needed.

    Args:
        problems: that both are asked.
        samples: thinkings for each problem, of each run.
        alike: share of the variance of answers that lies between problems, which pairing takes
            away: 0 where all are as hard, 1 where each is always solved or never.

    Returns a fraction: (t at 97.5 % + t at 80 %) · sqrt((1 − alike) / (2 S P)).

    Raises:
        ValueError: fewer than two problems or one sample, or a share outside 0 … 1.
    """
    if problems < 2 or samples < 1 or not 0 <= alike <= 1:
        raise ValueError(
            f"{problems} problems, {samples} samples, alike {alike}; expected 2 problems, 1 sample "
            "or more, and a share of 0 to 1."
        )
    reach = stdtrit(problems - 1, (1 + CONFIDENCE) / 2) + stdtrit(problems - 1, 0.8)
    return float(reach * np.sqrt((1 - alike) / (2 * samples * problems)))
