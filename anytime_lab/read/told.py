"""Curves → what is said of them: summary tables, verdicts in words, read-outs at a budget.

Only Student's t, no bootstrap: it is a few matrix rows, so a slider may ask for it at each step.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import astuple, replace
from pathlib import Path
from textwrap import fill

import numpy as np
import pandas as pd
from rich.box import SIMPLE_HEAD
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from anytime_lab.page import plain
from anytime_lab.priors import Prior
from anytime_lab.read.curves import (
    Estimate,
    ProblemTable,
    Records,
    anytime_accuracy,
    common_tables,
    final_accuracy,
    known_mean,
    mean_curve,
    paired_differences,
    problem_table,
    read_tables,
    thinking_length,
    tokens_to_accuracy,
)
from anytime_lab.read.training import read_metrics

SOURCE = "BRPO, arXiv 2505.13438v3"
BUDGETS = tuple(range(250, 8001, 250))
BENCHMARKS = ("AMC22", "AIME24", "MATH500", "Minerva", "Olympiad")
DATASETS = {
    "amc22_23": "AMC22",
    "aime24": "AIME24",
    "math500": "MATH500",
    "minerva": "Minerva",
    "olympiad_bench": "Olympiad",
}
FINAL = {
    "R1-Distill-1.5B": (56.4, 22.3, 81.1, 26.3, 42.0),
    "GRPO": (65.0, 28.9, 84.7, 28.9, 45.9),
    "AR-base": (68.4, 32.7, 85.5, 29.6, 47.3),
    "AR-linear": (68.6, 32.1, 85.6, 29.6, 47.3),
    "AR-uniform": (68.5, 32.2, 85.6, 29.2, 47.2),
}
ANYTIME = {
    "R1-Distill-1.5B": (48.2, 16.3, 74.5, 24.1, 36.0),
    "GRPO": (53.4, 19.0, 77.2, 26.6, 38.8),
    "AR-base": (57.0, 21.9, 78.2, 27.3, 40.2),
    "AR-linear": (58.2, 22.3, 79.0, 27.7, 40.9),
    "AR-uniform": (58.8, 22.9, 79.4, 27.5, 41.2),
}


def published_table(benchmark: str | None = None) -> pd.DataFrame:
    """The published accuracies as fractions.

    Args:
        benchmark: one of BENCHMARKS, or a dataset name of DATASETS; all of them if None.

    Returns columns run, benchmark, final (at 8,000 tokens), anytime (mean over BUDGETS).

    Raises:
        ValueError: the paper has no such benchmark.
    """
    wanted = BENCHMARKS if benchmark is None else (DATASETS.get(benchmark, benchmark),)
    if unknown := [name for name in wanted if name not in BENCHMARKS]:
        raise ValueError(f"the paper has no benchmark {unknown[0]!r}; it has {list(BENCHMARKS)}.")
    rows = [
        (run, name, FINAL[run][i] / 100, ANYTIME[run][i] / 100)
        for i, name in enumerate(BENCHMARKS)
        if name in wanted
        for run in FINAL
    ]
    return pd.DataFrame(rows, columns=["run", "benchmark", "final", "anytime"])


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
    means = known_mean(np.stack([table.values for table in tables]), axis=0)
    tokens = np.mean([table.tokens for table in tables], axis=0)
    return replace(first, values=means, tokens=tokens)


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


MINUS, NBSP = "−", "\u00a0"  # a value and its interval may part, an interval may not


def summary_table(
    runs: Mapping[str, Records],
    reference: str | None = None,
    prior: Prior | None = None,
    resamples: int = 2000,
    seed: int = 0,
) -> pd.DataFrame:
    """Anytime and final accuracy of each run, and their paired differences to the reference.

    Args:
        runs: name → records or problem table.
        reference: the run that the others are compared with; no differences if None.
        prior: weights of the anytime accuracy; None is the plain mean over the budgets.

    Returns one row per run; columns run, n_problems, thinking_length (tokens), and anytime,
    final, anytime_difference, final_difference, each with _low and _high (95 %). The reference's
    own differences are missing. Fractions, not percent.
    """
    tables = {name: problem_table(records) for name, records in runs.items()}
    rows = [_row(name, table, prior) for name, table in tables.items()]
    frame = pd.DataFrame(rows).set_index("run", drop=False)
    if reference is not None and len(tables) > 1:
        pairs = paired_differences(tables, reference, prior, resamples, seed)
        for measure in ("anytime", "final"):
            part = pairs[pairs["measure"] == measure].set_index("run")
            for column, source in (("", "difference"), ("_low", "low"), ("_high", "high")):
                frame[f"{measure}_difference{column}"] = part[source].reindex(frame.index)
    return frame.reset_index(drop=True)


def _row(name: str, table: ProblemTable, prior: Prior | None) -> dict:
    row = {"run": name, "n_problems": len(table.problems)}
    row["thinking_length"] = thinking_length(table).value
    for measure, told in (
        ("anytime", anytime_accuracy(table, prior)),
        ("final", final_accuracy(table)),
    ):
        row |= {measure: told.value, f"{measure}_low": told.low, f"{measure}_high": told.high}
    return row


def told_table(summary: pd.DataFrame) -> pd.DataFrame:
    """The summary as strings for a reader: percents with their intervals, differences in points."""
    out = {"run": summary["run"].astype(str)}
    for measure, title in (("anytime", "anytime accuracy"), ("final", "final accuracy")):
        out[title] = [
            told_percent(*values)
            for values in summary[[measure, f"{measure}_low", f"{measure}_high"]].to_numpy()
        ]
    for measure in ("anytime", "final"):
        column = f"{measure}_difference"
        if column in summary:
            out[f"{measure} difference"] = [
                told_points(*values)
                for values in summary[[column, f"{column}_low", f"{column}_high"]].to_numpy()
            ]
    out["thinking tokens"] = [f"{tokens:,.0f}" for tokens in summary["thinking_length"]]
    return pd.DataFrame(out)


def told_percent(value: float, low: float, high: float) -> str:
    """A fraction with its interval, e.g. "71.2 % [68.0, 74.4]"."""
    if pd.isna(value):
        return "—"
    bounds = "" if pd.isna(low) else f" [{100 * low:.1f},{NBSP}{100 * high:.1f}]"
    return f"{100 * value:.1f}{NBSP}%{bounds}"


def told_points(value: float, low: float, high: float) -> str:
    """A difference of fractions in points with its interval, e.g. "+4.0 [+1.2, +6.8]"."""
    if pd.isna(value):
        return "—"
    bounds = "" if pd.isna(low) else f" [{_points(low)},{NBSP}{_points(high)}]"
    return _points(value) + bounds


def _points(fraction: float) -> str:
    told = f"{100 * fraction:+.1f}"
    return "0.0" if told in ("+0.0", "-0.0") else told.replace("-", MINUS)


def terminal_table(summary: pd.DataFrame, title: str = "") -> Padding:
    """The summary as a table that `rich.print` shows, between two empty lines."""
    told = told_table(summary)
    table = Table(
        title=title or None,
        title_justify="left",
        box=SIMPLE_HEAD,
        padding=0,  # the box parts the columns by a space
        show_edge=False,
    )
    for column in told.columns:
        left = column == "run"  # the interval below the value, so that 80 columns are enough
        table.add_column(
            column.replace(" ", "\n"),
            justify="left" if left else "right",
            overflow="fold",  # where even 80 columns are not there, no digit is cut off
        )
    for run, *cells in told.itertuples(index=False):
        # Long names break before hyphens, in the 15 places that 80 columns leave them.
        name = fill(plain(run).replace("-", " -"), 15, break_on_hyphens=False).replace(" -", "-")
        stacked = [cell.replace(" [", "\n[").replace(f",{NBSP}", ",") for cell in cells]
        table.add_row(Text(name), *map(Text, stacked))
    return Padding(table, (1, 0), expand=False)


def verdicts(differences: pd.DataFrame) -> list[str]:
    """What the paired differences say in words, one paragraph per run.

    Args:
        differences: the frame of `paired_differences`.
    """
    sentences = []
    for (run, reference), part in differences.groupby(["run", "reference"], sort=False):
        anytime = part[part["measure"] == "anytime"].iloc[0]
        curve = part[part["measure"] == "accuracy"]
        points = f"{100 * abs(anytime['difference']):.1f} points of anytime accuracy"
        bounds = (
            f"95 % interval {_points(anytime['low'])} to {_points(anytime['high'])}, "
            f"{anytime['n_problems']:,} problems"
        )
        if pd.isna(anytime["low"]):
            sentences.append(
                f"{run} and {reference} share one problem with a score: a difference of "
                f"{_points(anytime['difference'])} points of anytime accuracy, without an interval."
            )
            continue
        final = part[part["measure"] == "final"].iloc[0]
        if anytime["low"] > 0:
            says = f"{run} is above {reference} by {points} ({bounds})"
        elif anytime["high"] < 0:
            says = f"{run} is below {reference} by {points} ({bounds})"
        else:
            says = f"{run} is not distinguishable from {reference} in anytime accuracy ({bounds})"
        above, below = int((curve["low"] > 0).sum()), int((curve["high"] < 0).sum())
        places = [f"above 0 at {above}" if above else "", f"below 0 at {below}" if below else ""]
        where = " and ".join(filter(None, places)) or "above or below 0 at none"
        sentences.append(
            f"{says}. Budget by budget, the interval is {where} of {len(curve)}. Final accuracy "
            f"differs by {_points(final['difference'])} points ({_points(final['low'])} to "
            f"{_points(final['high'])})."
        )
    return sentences


NOTHING = Estimate(math.nan, math.nan, math.nan, math.nan, 0)


def common_budgets(tables: Sequence[ProblemTable]) -> list[int]:
    """The budgets that all tables were measured at."""
    return sorted(set.intersection(*(set(t.budgets) for t in tables))) if tables else []


def all_budgets(tables: Sequence[ProblemTable]) -> list[int]:
    """The budgets that any table was measured at."""
    return sorted(set().union(*(t.budgets for t in tables)))


def difference_table(a: ProblemTable, b: ProblemTable) -> ProblemTable | None:
    """`a` minus `b` on the problems and at the budgets that both have; None if there are none."""
    pair = common_tables(a, b)
    if pair is None:
        return None
    values = pair[0].values - pair[1].values
    return replace(pair[0], values=values, tokens=np.zeros_like(values), bounds=(-1.0, 1.0))


def at_budget(table: ProblemTable, budget: int) -> Estimate:
    """The mean at one budget; nothing where it was not measured."""
    return under_prior(table, Prior((budget,), (1.0,)))


def under_prior(table: ProblemTable, prior: Prior) -> Estimate:
    """The mean weighted by a prior; nothing where one of its budgets was not measured."""
    measured = all(b in table.budgets or not w for b, w in zip(*astuple(prior), strict=True))
    return anytime_accuracy(table, prior) if measured else NOTHING


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


def told_story(
    tables: Mapping[str, ProblemTable],
    differences: Mapping[str, ProblemTable | None],
    reference: str,
    prior: Prior | None,
) -> str:
    """The result in one sentence: the run that differs most from the reference under the prior.

    Args:
        differences: `difference_table` of each other run to the reference.
        prior: None where no budget is common to all.
    """
    known = {name: pair for name, pair in differences.items() if pair is not None}
    if prior is None or (differences and not known):
        return "The runs share no problem or no budget, so they cannot be compared"
    if not known:
        scores = [f"{n} {told_value(under_prior(t, prior))}" for n, t in tables.items()]
        return f"Anytime score, over {len(prior.budgets)} budgets: {', '.join(scores)}"
    scores = {name: under_prior(pair, prior) for name, pair in known.items()}
    best = max(scores, key=lambda n: abs(scores[n].value) if scores[n].value > 0 else -1)
    if not scores[best].value > 0:
        best = min(scores, key=lambda n: scores[n].value)
    score, curve = scores[best], mean_curve(known[best], "difference")
    side = told_side(score.low, score.high)
    points = f"{told_points(score.value, score.low, score.high)} points of anytime score"
    if side not in ("above", "below"):
        return f"{best} is {side} from {reference}: {points}".replace("tell from", "tell beside")
    clear = int(((curve["low"] > 0) if side == "above" else (curve["high"] < 0)).sum())
    return f"{best} is {side} {reference} at {clear} of {len(curve)} budgets: {points}"


def tidy_curves(
    tables: Mapping[str, ProblemTable], differences: Mapping[str, ProblemTable | None]
) -> pd.DataFrame:
    """Accuracy by budget of several runs and the paired difference to the reference.

    Returns columns run, budget, spent (mean tokens of thinking), accuracy, se, low, high,
    n_problems, difference, difference_low, difference_high (missing for the reference and where
    the runs share nothing).
    """
    frames = []
    for name, run_table in tables.items():
        spent = np.nanmean(run_table.tokens, axis=0)
        frame = mean_curve(run_table, "accuracy").assign(run=name, spent=spent)
        pair = differences.get(name)
        if pair is not None:
            told = mean_curve(pair, "difference")[["budget", "difference", "low", "high"]]
            told = told.rename(columns={"low": "difference_low", "high": "difference_high"})
            frame = frame.merge(told, on="budget", how="left")
        frames.append(frame)
    columns = "run budget spent accuracy se low high n_problems difference difference_low "
    columns += "difference_high"
    if not frames:
        return pd.DataFrame(columns=columns.split())
    return pd.concat(frames, ignore_index=True).reindex(columns=columns.split())


def told_reach(table: ProblemTable, level: float) -> str:
    """The least budget at which the mean accuracy is at least `level`, for a reader."""
    budget = tokens_to_accuracy(mean_curve(table, "accuracy"), level)
    return "not reached" if budget is None else f"{budget:,}"
