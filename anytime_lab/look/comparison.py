"""Problem tables → what a view reads out at a budget, under a prior, against a reference.

Only Student's t, no bootstrap: it is a few matrix rows, so a slider may ask for it at each step.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from anytime_lab.priors import Prior
from anytime_lab.read.curves import (
    Estimate,
    ProblemTable,
    mean_curve,
    tokens_to_accuracy,
    weighted_mean,
)
from anytime_lab.read.summary import told_percent, told_points

NOTHING = Estimate(math.nan, math.nan, math.nan, math.nan, 0)


def common_budgets(tables: Sequence[ProblemTable]) -> list[int]:
    """The budgets that all tables were measured at."""
    return sorted(set.intersection(*(set(t.budgets) for t in tables))) if tables else []


def all_budgets(tables: Sequence[ProblemTable]) -> list[int]:
    """The budgets that any table was measured at."""
    return sorted(set().union(*(t.budgets for t in tables)))


def difference_table(a: ProblemTable, b: ProblemTable) -> ProblemTable | None:
    """`a` minus `b` on the problems and at the budgets that both have; None if there are none."""
    budgets = [x for x in a.budgets if x in b.budgets]
    names, rows_a, rows_b = np.intersect1d(
        a.problems.astype(str), b.problems.astype(str), assume_unique=True, return_indices=True
    )
    if not budgets or not len(names):
        return None
    sides = [
        table.values[np.ix_(rows, [table.budgets.index(x) for x in budgets])]
        for table, rows in ((a, rows_a), (b, rows_b))
    ]
    values = sides[0] - sides[1]
    return ProblemTable(names, tuple(budgets), values, np.zeros_like(values), (-1.0, 1.0))


def at_budget(table: ProblemTable, budget: int) -> Estimate:
    """The mean at one budget; nothing where it was not measured."""
    if budget not in table.budgets:
        return NOTHING
    row = np.eye(len(table.budgets))[table.budgets.index(budget)]
    return weighted_mean(table.values, row, table.bounds)


def under_prior(table: ProblemTable, prior: Prior) -> Estimate:
    """The mean weighted by a prior; nothing where one of its budgets was not measured."""
    if any(b not in table.budgets for b, w in zip(prior.budgets, prior.weights, strict=True) if w):
        return NOTHING
    weights = np.zeros(len(table.budgets))
    for budget, weight in zip(prior.budgets, prior.weights, strict=True):
        if weight:
            weights[table.budgets.index(budget)] = weight
    return weighted_mean(table.values, weights, table.bounds)


def told_value(estimate: Estimate) -> str:
    """An accuracy with its interval for a reader."""
    return told_percent(estimate.value, estimate.low, estimate.high)


def told_difference(estimate: Estimate) -> str:
    """A difference in points with its interval, and whether it can be told from nothing."""
    if math.isnan(estimate.value):
        return "—"
    points = told_points(estimate.value, estimate.low, estimate.high)
    return f"{points} {told_side(estimate.low, estimate.high)}"


def told_side(low: float, high: float) -> str:
    """On which side of 0 an interval lies, in words."""
    if math.isnan(low):
        return "too few problems to tell"
    if low > 0:
        return "above"
    return "below" if high < 0 else "not distinguishable"


def tidy_curves(
    tables: Mapping[str, ProblemTable], differences: Mapping[str, ProblemTable | None]
) -> pd.DataFrame:
    """Accuracy by budget of several runs and the paired difference to the reference.

    Returns columns run, budget, accuracy, se, low, high, n_problems, difference, difference_low,
    difference_high (missing for the reference and where the runs share nothing).
    """
    frames = []
    for name, table in tables.items():
        frame = mean_curve(table, "accuracy").assign(run=name)
        pair = differences.get(name)
        if pair is not None:
            told = mean_curve(pair, "difference")[["budget", "difference", "low", "high"]]
            told = told.rename(columns={"low": "difference_low", "high": "difference_high"})
            frame = frame.merge(told, on="budget", how="left")
        frames.append(frame)
    columns = "run budget accuracy se low high n_problems difference difference_low difference_high"
    if not frames:
        return pd.DataFrame(columns=columns.split())
    return pd.concat(frames, ignore_index=True).reindex(columns=columns.split())


def told_reach(table: ProblemTable, level: float) -> str:
    """The least budget at which the mean accuracy is at least `level`, for a reader."""
    budget = tokens_to_accuracy(mean_curve(table, "accuracy"), level)
    return "not reached" if budget is None else f"{budget:,}"
