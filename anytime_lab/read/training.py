"""metrics.jsonl → tidy frames: the paper's three training panels and its variance figure."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd

from anytime_lab.store.records import METRICS, RunFolderError, read_jsonl

ANYTIME = "anytime accuracy"
PANELS = {
    "anytime_accuracy": ANYTIME,
    "final_accuracy": "final accuracy",
    "thinking/length": "thinking length",
}
SCORE = re.compile(r"score/(?P<budget>\d+)$")
VARIANCE = re.compile(r"variance/(?P<measure>corr|ratio)/(?P<baseline>\w+)/(?P<budget>\d+)$")


def read_metrics(run_dir: str | Path) -> pd.DataFrame:
    """The logged steps of a training run, one row per step; a run that still writes is fine.

    Raises:
        RunFolderError: there is no metrics.jsonl, or it holds no step yet.
    """
    path = Path(run_dir) / METRICS
    rows = [r for r in read_jsonl(path) if isinstance(r, dict) and isinstance(r.get("step"), int)]
    if not rows:
        found = "holds no step yet" if path.exists() else "does not exist"
        raise RunFolderError(f"{path} {found}; give the output folder of a training run.")
    return pd.DataFrame(rows).drop_duplicates("step", keep="last").sort_values("step")


def training_frame(runs: Mapping[str, pd.DataFrame], window: int = 10) -> pd.DataFrame:
    """The three panels of several runs: anytime accuracy, final accuracy, thinking length.

    Anytime accuracy is the plain mean over the budgets of training, whatever prior a run was
    trained under, so that runs can be compared. The runs of `trained_at_fewer` are left out of that
    panel: where only the largest budget is scored, its mean is the final accuracy.

    Args:
        runs: name → metrics, one row per step.
        window: steps of the running mean (fewer at the start).

    Returns columns run, step, seconds (NaN where not logged), measure, value, smooth.
    """
    if window < 1:
        raise ValueError(f"window must be at least 1 step; got {window}.")
    frames, left_out = [], trained_at_fewer(runs)
    for name, metrics in runs.items():
        if missing := [c for c in ("step", *PANELS) if c not in metrics]:
            raise ValueError(
                f"the metrics of run {name!r} lack {missing}; give the frame of read_metrics()."
            )
        seconds = metrics.get("seconds", np.nan)
        for column, measure in PANELS.items():
            if measure == ANYTIME and name in left_out:
                continue
            if measure == ANYTIME and "uniform_accuracy" in metrics:
                column = "uniform_accuracy"
            value = metrics[column].astype(float)
            smooth = value.rolling(window, min_periods=1).mean()
            frames.append(
                pd.DataFrame({"step": metrics["step"], "value": value, "smooth": smooth}).assign(
                    run=name, seconds=seconds, measure=measure
                )
            )
    whole = pd.concat(frames, ignore_index=True)
    return whole[["run", "step", "seconds", "measure", "value", "smooth"]]


def trained_at_fewer(runs: Mapping[str, pd.DataFrame]) -> list[str]:
    """The runs whose rollouts were not scored at the budgets of the run that has most of them."""
    budgets = {
        name: {int(m["budget"]) for column in metrics.columns if (m := SCORE.match(column))}
        for name, metrics in runs.items()
    }
    most = max(budgets.values(), key=len, default=set())
    return [name for name, own in budgets.items() if own != most]


def variance_frame(metrics: pd.DataFrame, last: int = 50) -> pd.DataFrame:
    """How much of the return's variance each baseline takes away, mean of the last steps.

    Args:
        metrics: one row per step, with columns variance/corr/BASELINE/BUDGET and
            variance/ratio/BASELINE/BUDGET.
        last: steps, from the end, that are averaged.

    Returns columns budget, baseline, measure ("corr": corr(V, R); "ratio": Var[R−V]/Var[R]),
    value, steps (how many had a value).
    """
    named = [(column, VARIANCE.match(column)) for column in metrics.columns]
    rows = []
    for column, match in named:
        if match is None:
            continue
        values = metrics[column].astype(float).iloc[-last:]
        rows.append(
            (
                int(match["budget"]),
                match["baseline"],
                match["measure"],
                values.mean(),
                values.notna().sum(),
            )
        )
    if not rows:
        raise ValueError(
            "the metrics hold no variance diagnostics (columns variance/corr/…, variance/ratio/…); "
            "train with more than one budget to get them."
        )
    frame = pd.DataFrame(rows, columns=["budget", "baseline", "measure", "value", "steps"])
    return frame.sort_values(["measure", "baseline", "budget"], ignore_index=True)
