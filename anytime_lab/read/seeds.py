"""Runs of several seeds → one table each, and how far the seeds are apart."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from anytime_lab.priors import Prior
from anytime_lab.read.curves import ProblemTable, anytime_accuracy, final_accuracy, read_tables
from anytime_lab.read.training_curves import read_metrics

ABOUT_SEEDS = (
    "Curves and tables above are means over the seeds of each run. Their intervals hold what "
    "another draw of problems would change; what another seed would is in the spread below."
)
Folders = str | Path | Sequence[str | Path]


def folders_of(run: Folders) -> list[Path]:
    """The folders of a run, one for each seed."""
    return [Path(run)] if isinstance(run, str | Path) else [Path(folder) for folder in run]


def read_seed_tables(
    runs: Mapping[str, Folders], allow_partial: bool = False
) -> dict[str, list[ProblemTable]]:
    """Reads evaluations, name → folder or folders, one table for each seed.

    Raises:
        RunFolderError: as `read_records`.
        ValueError: a run has no folder.
    """
    tables = {}
    for name, run in runs.items():
        folders = folders_of(run)
        if not folders:
            raise ValueError(f"{name!r} has no folder; give one for each seed.")
        numbered = {str(number): folder for number, folder in enumerate(folders)}
        tables[name] = list(read_tables(numbered, allow_partial).values())
    return tables


def mean_table(tables: Sequence[ProblemTable]) -> ProblemTable:
    """The mean over seeds for each problem and budget, so that every seed counts the same.

    Raises:
        ValueError: the seeds were evaluated on other problems or at other budgets.
    """
    first, *others = tables
    for other in others:
        same = np.array_equal(first.problems, other.problems)
        if not same or first.budgets != other.budgets:
            raise ValueError(
                "the seeds of a run were evaluated on different problems or budgets; a mean over "
                "them would be of nothing. Evaluate them alike, or compare them as runs."
            )
    if not others:
        return first
    values = np.stack([table.values for table in tables])
    graded = np.isfinite(values)
    count = graded.sum(axis=0)
    with np.errstate(invalid="ignore"):
        means = np.where(graded, values, 0.0).sum(axis=0) / count
    tokens = np.mean([table.tokens for table in tables], axis=0)
    return ProblemTable(first.problems, first.budgets, means, tokens, first.bounds)


def mean_tables(tables: Mapping[str, Sequence[ProblemTable]]) -> dict[str, ProblemTable]:
    """`mean_table` of every run."""
    means = {}
    for name, seeds in tables.items():
        try:
            means[name] = mean_table(seeds)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from error
    return means


def seed_frame(
    tables: Mapping[str, Sequence[ProblemTable]], prior: Prior | None = None
) -> pd.DataFrame:
    """Anytime and final accuracy of every seed.

    Returns columns run, number (of the seed, from 0), anytime, final. Fractions.
    """
    rows = [
        (name, number, anytime_accuracy(table, prior).value, final_accuracy(table).value)
        for name, seeds in tables.items()
        for number, table in enumerate(seeds)
    ]
    return pd.DataFrame(rows, columns=["run", "number", "anytime", "final"])


def told_seeds(frame: pd.DataFrame) -> pd.DataFrame:
    """Mean, standard deviation over seeds and each seed's number, for a reader; in percent."""
    rows = []
    for run, part in frame.groupby("run", sort=False):
        row = {"run": str(run), "seeds": str(len(part))}
        for measure in ("anytime", "final"):
            values = 100 * part[measure].to_numpy()
            spread = f" ± {values.std(ddof=1):.1f}" if len(values) > 1 else ""
            row[f"{measure} accuracy"] = f"{values.mean():.1f}{spread}"
            row[f"{measure}, each seed"] = ", ".join(f"{value:.1f}" for value in values)
        rows.append(row)
    return pd.DataFrame(rows)


def mean_metrics(run: Folders) -> pd.DataFrame:
    """Training metrics averaged over seeds, at the steps that all of them have logged.

    Raises:
        RunFolderError: as `read_metrics`.
    """
    frames = [read_metrics(folder) for folder in folders_of(run)]
    if len(frames) == 1:
        return frames[0]
    steps = set.intersection(*(set(frame["step"]) for frame in frames))
    whole = pd.concat(frames)
    whole = whole[whole["step"].isin(steps)].select_dtypes("number")
    return whole.groupby("step", as_index=False).mean()
