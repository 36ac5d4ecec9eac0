"""Curves → what is said of them: summary tables, verdicts in words, read-outs at a budget."""

from collections.abc import Mapping, Sequence
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
    NOTHING,
    Estimate,
    ProblemTable,
    Records,
    accuracy_curve,
    anytime_accuracy,
    final_accuracy,
    paired_differences,
    problem_table,
)

# --- what is published ---------------------------------------------------------------------------

SOURCE = "BRPO, arXiv 2505.13438v3"
BUDGETS = tuple(range(250, 8001, 250))
DATASETS = {
    "amc22_23": "AMC22",
    "aime24": "AIME24",
    "math500": "MATH500",
    "minerva": "Minerva",
    "olympiad_bench": "Olympiad",
}
BENCHMARKS = tuple(DATASETS.values())
# Run → its final accuracy (at 8,000 tokens) and its anytime accuracy (mean over BUDGETS) on each.
PUBLISHED = {
    "R1-Distill-1.5B": ((56.4, 22.3, 81.1, 26.3, 42.0), (48.2, 16.3, 74.5, 24.1, 36.0)),
    "GRPO": ((65.0, 28.9, 84.7, 28.9, 45.9), (53.4, 19.0, 77.2, 26.6, 38.8)),
    "AR-base": ((68.4, 32.7, 85.5, 29.6, 47.3), (57.0, 21.9, 78.2, 27.3, 40.2)),
    "AR-linear": ((68.6, 32.1, 85.6, 29.6, 47.3), (58.2, 22.3, 79.0, 27.7, 40.9)),
    "AR-uniform": ((68.5, 32.2, 85.6, 29.2, 47.2), (58.8, 22.9, 79.4, 27.5, 41.2)),
}


def published_table(benchmark: str) -> pd.DataFrame:
    """The published accuracies as fractions.

    Args:
        benchmark: one of BENCHMARKS, or a dataset name of DATASETS.

    Returns columns run, benchmark, final, anytime.

    Raises:
        ValueError: the paper has no such benchmark.
    """
    name = DATASETS.get(benchmark, benchmark)
    if name not in BENCHMARKS:
        raise ValueError(f"the paper has no benchmark {name!r}; it has {list(BENCHMARKS)}.")
    at = BENCHMARKS.index(name)
    rows = [(run, name, final[at], anytime[at]) for run, (final, anytime) in PUBLISHED.items()]
    told = pd.DataFrame(rows, columns=["run", "benchmark", "final", "anytime"])
    return told.assign(final=told["final"] / 100, anytime=told["anytime"] / 100)


# --- seeds ---------------------------------------------------------------------------------------

ABOUT_SEEDS = (
    "Curves and tables above are means over the seeds of each run. Their intervals hold what "
    "another draw of problems would change; what another seed would is in the spread below."
)


def seed_frame(tables: Mapping[str, Sequence[ProblemTable]]) -> pd.DataFrame:
    """Anytime and final accuracy of every seed.

    Returns columns run, number (of the seed, from 0), anytime, final. Fractions.
    """
    rows = [
        (name, number, anytime_accuracy(table).value, final_accuracy(table).value)
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
            values = 100 * part[measure]
            spread = f" ± {values.std():.1f}" if len(values) > 1 else ""
            row[f"{measure} accuracy"] = f"{values.mean():.1f}{spread}"
            row[f"{measure}, each seed"] = ", ".join(f"{value:.1f}" for value in values)
        rows.append(row)
    return pd.DataFrame(rows)


# --- the summary ---------------------------------------------------------------------------------

NBSP = "\u00a0"  # a value and its interval may part, an interval may not


def summary_table(runs: Mapping[str, Records], reference: str | None = None) -> pd.DataFrame:
    """Anytime and final accuracy of each run, and their paired differences to the reference.

    Args:
        runs: name → records, problem table, or tables of its seeds.
        reference: the run that the others are compared with; no differences if None.

    Returns one row per run; columns run, n_problems, thinking_length (tokens), and anytime,
    final, anytime_difference, final_difference, each with _low and _high (95 %), and of the
    differences _p (after Holm). The reference's own differences are missing. Fractions.
    """
    rows = []
    for name, records in runs.items():
        table = problem_table(records)
        length = np.nanmean(table.tokens[:, -1])
        row = {"run": name, "n_problems": len(table.problems), "thinking_length": length}
        told = {"anytime": anytime_accuracy(table), "final": final_accuracy(table)}
        for measure, (value, low, high, *_) in told.items():
            row |= {measure: value, f"{measure}_low": low, f"{measure}_high": high}
        rows.append(row)
    summary = pd.DataFrame(rows)
    if reference is None or len(runs) < 2:
        return summary
    pairs = paired_differences(runs, reference).set_index("run")
    for measure in told:
        pair = pairs.loc[pairs["measure"] == measure, ["difference", "low", "high", "p_holm"]]
        names = [f"{measure}_difference{end}" for end in ("", "_low", "_high", "_p")]
        summary = summary.join(pair.set_axis(names, axis=1), on="run")
    return summary


def told_table(summary: pd.DataFrame) -> pd.DataFrame:
    """The summary as strings for a reader: percents with their intervals, differences in points."""
    out = {"run": summary["run"].astype(str)}
    titles = {"anytime": "anytime accuracy", "final": "final accuracy"}
    titles |= {f"{name}_difference": f"{name} difference" for name in titles}
    for column, title in titles.items():
        if column in summary:
            words = told_points if column.endswith("difference") else told_percent
            numbers = summary.filter(regex=f"^{column}(_low|_high|_p)?$").to_numpy(dtype=float)
            out[title] = [words(*row) for row in numbers]
    out["thinking tokens"] = [f"{tokens:,.0f}" for tokens in summary["thinking_length"]]
    return pd.DataFrame(out)


def told_percent(value: float, low: float = np.nan, high: float = np.nan) -> str:
    """A fraction with its interval, e.g. "71.2 % [68.0, 74.4]"."""
    if pd.isna(value):
        return "—"
    bounds = "" if pd.isna(low) else f" [{100 * low:.1f},{NBSP}{100 * high:.1f}]"
    return f"{100 * value:.1f}{NBSP}%{bounds}"


def told_curve(records: pd.DataFrame, task: str) -> str:
    """The curve of a run as markdown, for a model's card."""
    curve, anytime = accuracy_curve(records), anytime_accuracy(records)
    rows = [
        f"| {row.budget} | {told_percent(row.accuracy, row.low, row.high)} |\n"
        for row in curve.itertuples()
    ]
    return (
        f"Measured on {anytime.n_problems} problems of {task}, with 95 % intervals clustered by "
        f"problem. Mean over the budgets: "
        f"{told_percent(anytime.value, anytime.low, anytime.high)}.\n\n"
        f"| thinking tokens | accuracy |\n|---|---|\n{''.join(rows)}"
    )


def told_points(value: float, low: float, high: float, p: float = np.nan) -> str:
    """A difference of fractions in points with its interval, e.g. "+4.0 [+1.2, +6.8] p=.002"."""
    if pd.isna(value):
        return "—"
    bounds = "" if pd.isna(low) else f" [{_points(low)},{NBSP}{_points(high)}]"
    return _points(value) + bounds + ("" if pd.isna(p) else f" {told_p(p)}")


def told_p(p: float) -> str:
    """A p value to three places, e.g. "p=.012"; below them "p<.001"."""
    if pd.isna(p):
        return "—"
    return "p<.001" if p < 0.001 else "p=" + f"{p:.3f}".removeprefix("0")


def signed(value: float, digits: int = 2) -> str:
    """A number with its sign, the true minus, and none on zero."""
    told = f"{value:+.{digits}f}"
    return told[1:] if float(told) == 0 else told.replace("-", "−")


def _points(fraction: float) -> str:
    return signed(100 * fraction, 1)


def terminal_table(summary: pd.DataFrame, title: str = "") -> Padding:
    """The summary as a table that `rich.print` shows, between two empty lines."""
    told = told_table(summary)
    # the box parts the columns by a space
    table = Table(title=title or None, title_justify="left", box=SIMPLE_HEAD, padding=0,
                  show_edge=False)  # fmt: skip
    for column in told.columns:  # the interval below the value, so that 80 columns are enough
        side = "left" if column == "run" else "right"
        # where even 80 columns are not there, no digit is cut off
        table.add_column(column.replace(" ", "\n"), justify=side, overflow="fold")
    for run, *cells in told.itertuples(index=False):
        # Long names break before hyphens, in the 15 places that 80 columns leave them.
        name = fill(plain(run).replace("-", " -"), 15, break_on_hyphens=False).replace(" -", "-")
        stacked = [cell.replace(f",{NBSP}", ",").replace(" ", "\n") for cell in cells]
        table.add_row(Text(name), *map(Text, stacked))
    return Padding(table, (1, 0), expand=False)


# --- the result in words -------------------------------------------------------------------------


def told_side(low: float, high: float) -> str:
    """On which side of 0 an interval lies, in words."""
    if pd.isna(low):
        return "too few problems to tell"
    if low > 0:
        return "above"
    return "below" if high < 0 else "not distinguishable"


def verdicts(differences: pd.DataFrame) -> list[str]:
    """What the paired differences say in words, one paragraph per run.

    Args:
        differences: the frame of `paired_differences`.
    """
    sentences = []
    for (run, reference), part in differences.groupby(["run", "reference"], sort=False):
        curve = part[part["measure"] == "accuracy"]
        anytime, final = (part[part["measure"] == m].iloc[0] for m in ("anytime", "final"))
        if pd.isna(anytime["low"]):
            sentences.append(
                f"{run} and {reference} share one problem with a score: a difference of "
                f"{_points(anytime['difference'])} points of anytime accuracy, without an interval."
            )
            continue
        side, points = told_side(anytime["low"], anytime["high"]), abs(100 * anytime["difference"])
        says = f"{side} {reference} by {points:.1f} points of anytime accuracy"
        if side == "not distinguishable":
            says = f"{side} from {reference} in anytime accuracy"
        counts = {"above 0": curve["band_low"] > 0, "below 0": curve["band_high"] < 0}
        places = [f"{where} at {held.sum()}" for where, held in counts.items() if held.any()]
        sentences.append(
            f"{run} is {says} (95 % interval {_points(anytime['low'])} to "
            f"{_points(anytime['high'])}, {told_p(anytime['p'])}, {anytime['n_problems']:,} "
            "problems). By a band that holds at all budgets at once, it is "
            f"{' and '.join(places) or 'above or below 0 at none'} of {len(curve)}. Final accuracy "
            f"differs by {_points(final['difference'])} points ({_points(final['low'])} to "
            f"{_points(final['high'])}, {told_p(final['p'])})."
        )
    return sentences


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
        scores = [f"{n} {told_percent(*under_prior(t, prior)[:3])}" for n, t in tables.items()]
        return f"Anytime score, over {len(prior.budgets)} budgets: {', '.join(scores)}"
    scores = {name: under_prior(pair, prior) for name, pair in known.items()}
    # the furthest above; where none is above, the furthest below
    best = max(scores, key=lambda n: (scores[n].value > 0, abs(scores[n].value)))
    score, curve = scores[best], accuracy_curve(known[best], "difference")
    side = told_side(score.low, score.high)
    points = f"{told_points(*score[:3])} points of anytime score"
    if side not in ("above", "below"):
        return f"{best} is {side} from {reference}: {points}"
    clear = int(((curve["band_low"] > 0) if side == "above" else (curve["band_high"] < 0)).sum())
    return f"{best} is {side} {reference} at {clear} of {len(curve)} budgets at once: {points}"


# --- read-outs -----------------------------------------------------------------------------------


def common_budgets(tables: Sequence[ProblemTable]) -> list[int]:
    """The budgets that all tables were measured at."""
    return sorted(set.intersection(*(set(t.budgets) for t in tables))) if tables else []


def under_prior(table: ProblemTable | None, prior: Prior | None) -> Estimate:
    """The mean weighted by a prior; nothing without them, or where a budget was not measured."""
    if not table or not prior:
        return NOTHING
    weighted = {b for b, weight in zip(prior.budgets, prior.weights, strict=True) if weight}
    return anytime_accuracy(table, prior) if weighted <= {*table.budgets} else NOTHING


def told_difference(estimate: Estimate) -> str:
    """A difference in points with its interval, and whether it can be told from nothing."""
    if pd.isna(estimate.value):
        return "—"
    return f"{told_points(*estimate[:3])} {told_side(estimate.low, estimate.high)}"


def told_reach(table: ProblemTable, level: float) -> str:
    """The least budget at which the mean accuracy is at least `level`, for a reader."""
    reached = [b for b, mean in zip(table.budgets, table.means.value, strict=True) if mean >= level]
    return f"{reached[0]:,}" if reached else "not reached"


def tidy_curves(
    tables: Mapping[str, ProblemTable], differences: Mapping[str, ProblemTable | None]
) -> pd.DataFrame:
    """Accuracy by budget of several runs and the paired difference to the reference.

    Returns columns run, budget, spent (mean tokens of thinking), accuracy, se, low, high,
    n_problems, difference, difference_low, difference_high, difference_band_low,
    difference_band_high (at all budgets at once); missing for the reference and where the runs
    share nothing.
    """
    frames = []
    for name, table in tables.items():
        frame = accuracy_curve(table).assign(run=name, spent=np.nanmean(table.tokens, axis=0))
        if differences.get(name) is not None:
            apart = accuracy_curve(differences[name], "difference").set_index("budget")
            apart.columns = ["difference", *(f"difference_{end}" for end in apart.columns[1:])]
            frame = frame.join(apart, on="budget")
        frames.append(frame)
    columns = "run budget spent accuracy se low high n_problems difference difference_low "
    columns += "difference_high difference_band_low difference_band_high"
    whole = pd.concat(frames, ignore_index=True) if frames else pd.DataFrame()
    return whole.reindex(columns=columns.split())
