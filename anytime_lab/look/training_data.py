"""Training runs read while they write: only what is new is read, torn lines wait for their end."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from anytime_lab.look.catalogue import Runs, named_runs, told_error
from anytime_lab.look.credit_data import folder_name, run_folders
from anytime_lab.read.training_curves import PANELS, SCORE
from anytime_lab.store.records import METRICS, PROGRESS, RunFolderError, read_json


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
