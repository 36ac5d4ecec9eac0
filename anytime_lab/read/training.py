"""metrics.jsonl → tidy frames: the paper's three training panels and its variance figure."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from anytime_lab.read.runs import Runs, folder_name, named_runs, run_folders, told_error
from anytime_lab.store.files import METRICS, PROGRESS, RunFolderError, read_json, read_jsonl

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


@dataclass
class MetricsTail:
    """The metrics of one run, read bit by bit.

    Attributes:
        folder: of the run; it need not exist yet.
        rows: one per step; a step that was written twice counts once, the later one.
        complaint: what is wrong with the file, in a sentence; "" if nothing.
    """

    folder: Path
    rows: dict[int, dict[str, Any]] = field(default_factory=dict)
    complaint: str = ""
    _offset: int = 0
    _file: int = 0  # which file was read: a resumed run puts a shorter one in its place
    _bad: int = 0

    def read(self) -> bool:
        """Reads what was added since; says whether anything changed."""
        before = self.complaint
        try:
            new = self._read()
            self.complaint = self._told_bad()
        except FileNotFoundError:
            new = bool(self.rows)
            self._begin_anew(0)
            self.complaint = f"{self.folder} has no {METRICS} yet."
        except Exception as error:  # whatever is on that disk, the view goes on
            new, self.complaint = False, told_error(self.folder, error)
        return new or self.complaint != before

    def _begin_anew(self, file: int) -> None:
        self.rows, self._offset, self._file, self._bad = {}, 0, file, 0

    def _read(self) -> bool:
        with open(self.folder / METRICS, "rb") as file:
            about = (self.folder / METRICS).stat()
            anew = about.st_ino != self._file or about.st_size < self._offset
            if anew:
                self._begin_anew(about.st_ino)
            if about.st_size == self._offset:
                return anew
            file.seek(self._offset)
            new = file.read()
        whole = new.rfind(b"\n") + 1  # what follows the last newline is still being written
        self._offset += whole
        for line in new[:whole].splitlines():
            try:
                row = json.loads(line)
            except ValueError:
                self._bad += 1
                continue
            if isinstance(row, dict) and type(row.get("step")) is int:
                self.rows[row["step"]] = row
        return anew or whole > 0

    def _told_bad(self) -> str:
        if self._bad:
            return f"{self.folder / METRICS}: {self._bad} lines are not JSON and are left out."
        return "" if self.rows else f"{self.folder / METRICS} holds no step yet."

    def frame(self) -> pd.DataFrame:
        """One row per step, in order, with the columns of the panels."""
        frame = pd.DataFrame([self.rows[step] for step in sorted(self.rows)])
        for column in PANELS:
            if column not in frame:
                frame[column] = np.nan
        numbers = frame.columns.difference(["step"])
        frame[numbers] = frame[numbers].apply(pd.to_numeric, errors="coerce")
        return frame


@dataclass(frozen=True)
class Progress:
    """How far a run says that it is."""

    done: int = 0
    total: int = 0
    seconds_left: float | None = None
    updated: float = 0.0

    @property
    def finished(self) -> bool:
        """Whether nothing more will come."""
        return 0 < self.total <= self.done


def read_progress(folder: Path) -> Progress:
    """The progress of a training run; nothing known where there is none or it is no progress."""
    try:
        told = read_json(folder / PROGRESS)
        if told.get("stage") != "train":
            return Progress()
        left = told.get("seconds_left")
        return Progress(
            int(told["done"]), int(told["total"]), None if left is None else float(left),
            float(told["updated"]),
        )  # fmt: skip
    except (RunFolderError, AttributeError, KeyError, TypeError, ValueError):
        return Progress()


def find_training(runs: Runs) -> dict[str, MetricsTail]:
    """The training runs in the folders given, or below them; a given one may not exist yet."""
    found: dict[str, MetricsTail] = {}
    for name, path in named_runs(runs):
        try:
            folders = run_folders(path, METRICS) or [path]
        except OSError:
            folders = [path]
        for folder in folders:
            found[folder_name(name, path, folder)] = MetricsTail(folder)
    return found


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


def told_run(name: str, tail: MetricsTail, progress: Progress, fewer: bool = False) -> list[str]:
    """A row of the table: how far a run is and its last numbers.

    Args:
        fewer: it was scored at fewer budgets than others, so its anytime accuracy is none beside
            theirs.
    """
    rows = tail.rows
    if not rows:
        return [name, "no step yet", "—", "—", "—"]
    last = rows[max(rows)]
    done = f"{max(rows):,}" + (f" of {progress.total:,}" if progress.total else "")
    if progress.finished:
        done += ", finished"
    elif progress.seconds_left is not None:
        done += f", about {progress.seconds_left / 60:,.0f} min left"
    values = [last.get(column) for column in PANELS]
    told = [
        "—" if not isinstance(v, int | float) or v != v else (f"{v:.1%}" if i < 2 else f"{v:,.1f}")
        for i, v in enumerate(values)
    ]
    if fewer:
        told[0] = "—"
    return [name, done, *told]


def score_frame(metrics: pd.DataFrame, window: int) -> pd.DataFrame:
    """Score of the rollouts at each budget: columns budget, step, value, smooth."""
    parts = []
    for column in metrics.columns:
        if match := SCORE.match(column):
            value = metrics[column].astype(float)
            smooth = value.rolling(window, min_periods=1).mean()
            parts.append(
                pd.DataFrame({"step": metrics["step"], "value": value, "smooth": smooth}).assign(
                    budget=int(match["budget"])
                )
            )
    if not parts:
        return pd.DataFrame(columns=["step", "value", "smooth", "budget"])
    return pd.concat(parts, ignore_index=True).sort_values(["budget", "step"], ignore_index=True)
