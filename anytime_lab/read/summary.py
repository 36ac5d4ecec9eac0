"""Runs → the table a reader wants first, and what it says in words."""

from __future__ import annotations

from collections.abc import Mapping
from textwrap import fill

import pandas as pd
from rich.box import SIMPLE_HEAD
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from anytime_lab.page import plain
from anytime_lab.priors import Prior
from anytime_lab.read.curves import (
    ProblemTable,
    Records,
    anytime_accuracy,
    final_accuracy,
    paired_differences,
    problem_table,
    thinking_length,
)

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
