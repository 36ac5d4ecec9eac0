"""metrics.jsonl → tidy frames: the paper's three training panels and its variance figure."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
from pydantic import BaseModel

from anytime_lab.read.curves import Folders, folders_of
from anytime_lab.read.runs import Runs, folder_name, found_folders, told_error
from anytime_lab.store import files
from anytime_lab.store.files import METRICS, RunFolderError

ANYTIME = "anytime accuracy"
PANELS = {
    "anytime_accuracy": ANYTIME,
    "final_accuracy": "final accuracy",
    "thinking/length": "thinking length",
}
BASELINE_NAMES = {  # the paper's order; what else a run tells of comes after, as it is named
    "progress": "progress (V1)",
    "group": "group (V2)",
    "brpo": "BRPO (V)",
    "brpo_tokens": "BRPO by tokens",
}
STOPPED = "training stopped: "  # how the message of a run begins that was interrupted or failed
SILENCE = 120.0  # seconds
WORSE = 1.01  # of the variance: what is above is no rounding
SCORE = re.compile(r"score/(?P<budget>\d+)$")
VARIANCE = re.compile(r"variance/(?P<measure>corr|ratio)/(?P<baseline>\w+)/(?P<budget>\d+)$")


class Progress(BaseModel, frozen=True):
    """How far a run says that it is; the fields of `write_progress` that a reader needs."""

    stage: Literal["train"] = "train"
    done: int = 0
    total: int = 0
    seconds_left: float | None = None
    updated: float = 0.0
    message: str = ""

    @property
    def ended(self) -> bool:
        """Whether nothing more will come, as far as the run says."""
        return self.message.startswith(STOPPED) or 0 < self.total <= self.done


@dataclass
class MetricsTail:
    """The metrics of one run, read bit by bit."""

    folder: Path  # of the run; it need not exist yet
    # one per step, in order; a step that was written twice counts once, the later one
    rows: dict[int, dict[str, Any]] = field(default_factory=dict)
    complaint: str = ""  # what is wrong with the file, in a sentence; "" if nothing
    progress: Progress = Progress()  # how far the run says that it is
    _offset: int = 0
    _file: int = 0  # which file was read: a resumed run puts a shorter one in its place
    _bad: int = 0

    def read(self) -> bool:
        """Reads what was added since; says whether anything changed."""
        before = self.rows, self.complaint, self.progress
        path, told = self.folder / METRICS, self.folder / files.PROGRESS
        try:
            self.progress = Progress.model_validate_json(told.read_bytes())
        except (OSError, ValueError):  # none, or no progress of a training
            self.progress = Progress()
        try:
            about = path.stat()
            if about.st_ino != self._file or about.st_size < self._offset:
                self.rows, self._offset, self._file, self._bad = {}, 0, about.st_ino, 0
            lines, bad, self._offset = files.parse_jsonl(path, self._offset)
            self.rows = _steps([*self.rows.values(), *lines]) if lines else self.rows
            self._bad += len(bad)
            self.complaint = "" if self.rows else f"{path} holds no step yet."
            if self._bad:
                self.complaint = f"{path}: {self._bad} lines are not JSON and are left out."
        except FileNotFoundError:
            self.rows, self._file = {}, 0
            self.complaint = f"{self.folder} has no {METRICS} yet."
        except Exception as error:  # whatever is on that disk, the view goes on
            self.complaint = told_error(self.folder, error)
        return (self.rows, self.complaint, self.progress) != before

    def frame(self) -> pd.DataFrame:
        """One row per step, in order, with the columns of the panels."""
        frame = pd.DataFrame([*self.rows.values()])
        frame = frame.reindex(columns=frame.columns.union([*PANELS], sort=False))
        return frame.apply(pd.to_numeric, errors="coerce")

    def told(self, now: float) -> str:
        """How far the run is, in words.

        Args:
            now: time.time(); a run that was killed can be told by its silence only.
        """
        if not self.rows:
            return "no step yet"
        step, said = max(self.rows), self.progress
        took = pd.to_numeric(self.rows[step].get("time/step"), errors="coerce")
        far = f"{step:,} of {said.total:,}" if said.total else f"{step:,}"
        silent = now - said.updated
        if said.message.startswith(STOPPED):
            return f"{far}, stopped ({said.message.removeprefix(STOPPED)})"
        if said.ended:
            return f"{far}, finished"
        if said.total and silent > max(SILENCE, 10 * (took if took > 0 else 30)):
            return f"{far}, no update for {silent / 60:,.0f} min: it seems to have stopped"
        if said.seconds_left is not None:
            return f"{far}, about {max(said.seconds_left / 60, 1):,.0f} min left"
        return far


def read_metrics(run_dir: str | Path) -> pd.DataFrame:
    """The logged steps of a training run, one row per step; a run that still writes is fine.

    Raises:
        RunFolderError: there is no metrics.jsonl, it holds no step yet, or lines that are no JSON.
    """
    path = files.run_folder(run_dir) / METRICS
    rows = _steps(files.read_jsonl(path))
    if not rows:
        found = "holds no step yet" if path.exists() else "does not exist"
        raise RunFolderError(f"{path} {found}; give the output folder of a training run.")
    return pd.DataFrame([*rows.values()])


def _steps(lines: Iterable[Any]) -> dict[int, dict[str, Any]]:
    """The lines that are steps, by their numbers, in order."""
    steps = (line for line in lines if isinstance(line, dict) and type(line.get("step")) is int)
    return dict(sorted({line["step"]: line for line in steps}.items()))


def find_training(runs: Runs) -> dict[str, MetricsTail]:
    """The training runs in the folders given, or below them; a given one may not exist yet."""
    return {folder_name(*found): MetricsTail(found[-1]) for found in found_folders(runs, METRICS)}


def compared_at(runs: Mapping[str, pd.DataFrame]) -> tuple[list[int], list[str]]:
    """The budgets over which anytime accuracy compares runs, and the runs that it leaves out.

    The budgets that all runs were scored at. Where they share one only, its mean is no anytime
    accuracy: then those of the run that has most, without the runs that were scored at others.

    Args:
        runs: name → metrics, one row per step.
    """
    scored = {name: _scored_at(metrics) for name, metrics in runs.items()}
    shared = set.intersection(*scored.values()) if scored else set()
    if len(shared) > 1:
        return sorted(shared), []
    most = max(scored.values(), key=len, default=set())
    return sorted(most), [name for name, own in scored.items() if own != most]


def told_compared(runs: Mapping[str, pd.DataFrame]) -> str:
    """What anytime accuracy is the mean of, where that is not the budgets of every run."""
    budgets, left_out = compared_at(runs)
    told = ", ".join(f"{b:,}" for b in budgets)
    if left_out:
        return (
            f"Final accuracy compares all runs. {', '.join(left_out)}: not scored at {told} "
            "tokens, so left out of anytime accuracy."
        )
    if any(_scored_at(metrics) != set(budgets) for metrics in runs.values()):
        return f"Anytime accuracy is the mean at {told} tokens, which all runs were scored at."
    return ""


def _scored_at(metrics: pd.DataFrame) -> set[int]:
    return {int(match["budget"]) for column in metrics.columns if (match := SCORE.match(column))}


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


def training_frame(runs: Mapping[str, pd.DataFrame], window: int = 10) -> pd.DataFrame:
    """The three panels of several runs: anytime accuracy, final accuracy, thinking length.

    Anytime accuracy is the plain mean over the budgets of `compared_at`, whatever prior a run was
    trained under, so that runs can be compared. What all runs have comes first: where anytime
    accuracy leaves some out, final accuracy.

    Args:
        runs: name → metrics, one row per step.
        window: steps of the running mean (fewer at the start).

    Returns columns run, step, seconds (NaN where not logged), measure, value, smooth.
    """
    if window < 1:
        raise ValueError(f"window must be at least 1 step; got {window}.")
    for name, metrics in runs.items():
        if missing := [c for c in ("step", *PANELS) if c not in metrics]:
            raise ValueError(
                f"the metrics of run {name!r} lack {missing}; give the frame of read_metrics()."
            )
    budgets, left_out = compared_at(runs)
    anytime, final, *rest = PANELS.items()
    frames = []
    for column, measure in [final, anytime, *rest] if left_out else PANELS.items():
        for name, metrics in runs.items():
            if measure == ANYTIME and name in left_out:
                continue
            value = _anytime(metrics, budgets) if measure == ANYTIME else metrics[column]
            frames.append(_smoothed(metrics, value, window).assign(run=name, measure=measure))
    frame = pd.concat(frames, ignore_index=True)
    return frame[["run", "step", "seconds", "measure", "value", "smooth"]]


def _anytime(metrics: pd.DataFrame, budgets: Sequence[int]) -> pd.Series:
    if set(budgets) != _scored_at(metrics):
        return metrics[[f"score/{b}" for b in budgets]].mean(axis=1)
    return metrics["uniform_accuracy" if "uniform_accuracy" in metrics else "anytime_accuracy"]


def _smoothed(metrics: pd.DataFrame, value: pd.Series, window: int) -> pd.DataFrame:
    seconds, value = metrics.get("seconds", np.nan), value.astype(float)
    smooth = value.rolling(window, min_periods=1).mean()
    columns = {"step": metrics["step"], "seconds": seconds, "value": value, "smooth": smooth}
    return pd.DataFrame(columns)


def score_frame(metrics: pd.DataFrame, window: int) -> pd.DataFrame:
    """Score of the rollouts at each budget: columns budget, step, seconds, value, smooth."""
    budgets = sorted(_scored_at(metrics))
    parts = {b: _smoothed(metrics, metrics[f"score/{b}"], window) for b in budgets}
    if not parts:
        return pd.DataFrame(columns=["budget", "step", "seconds", "value", "smooth"])
    return pd.concat(parts, names=["budget"]).reset_index("budget").reset_index(drop=True)


def told_runs(
    tails: Mapping[str, MetricsTail], frame: pd.DataFrame | None, now: float
) -> list[list[str]]:
    """A row for each run: its name, how far it is, and its last running means by measure.

    Args:
        frame: of training_frame(); None while no run has a step.
        now: time.time().
    """
    means = {} if frame is None else frame.groupby(["run", "measure"])["smooth"].last().dropna()
    told = {}
    for (name, measure), mean in means.items():
        told[name, measure] = f"{mean:.1%}" if "accuracy" in measure else f"{mean:,.1f}"
    return [
        [name, tail.told(now), *(told.get((name, measure), "—") for measure in PANELS.values())]
        for name, tail in tails.items()
    ]


def variance_frame(metrics: pd.DataFrame, last: int = 50) -> pd.DataFrame:
    """How much of the return's variance each baseline takes away, medians of the last steps.

    Medians: near the accuracy ceiling a single step, whose returns hardly vary, reaches ratios
    above 100.

    Args:
        metrics: one row per step, with columns variance/corr/BASELINE/BUDGET and
            variance/ratio/BASELINE/BUDGET; variance/reached/BUDGET in runs that take them over the
            thinkings that reach the budget.
        last: steps, from the end.

    Returns columns budget, baseline, measure ("corr": corr(V, R); "ratio": Var[R−V]/Var[R]),
    value, steps (how many had a value), reached (the share of thinkings that reach the budget; NaN
    where an older run took all). No row where the run has one budget, which needs no diagnostics.
    """
    recent = metrics.iloc[-last:].filter(like="variance/").astype(float)
    told = pd.DataFrame({"value": recent.median(), "steps": recent.count()})
    frame = told.index.to_series().str.extract(VARIANCE).join(told).dropna(subset=["baseline"])
    frame = frame[frame["baseline"] != "none"].astype({"budget": int})
    reached = [told["value"].get(f"variance/reached/{b}", np.nan) for b in frame["budget"]]
    frame = frame.assign(reached=reached).sort_values(["measure", "budget"])
    values = {name: part["value"].to_numpy() for name, part in frame.groupby("baseline")}
    if {"brpo", "brpo_tokens"} <= set(values) and np.allclose(
        values["brpo"], values["brpo_tokens"], equal_nan=True
    ):
        frame = frame[frame["baseline"] != "brpo_tokens"]  # the same at even budgets
    order = [*BASELINE_NAMES, *frame["baseline"]]
    frame = frame.sort_values("baseline", key=lambda b: b.map(order.index), kind="stable")
    columns = ["budget", "baseline", "measure", "value", "steps", "reached"]
    return frame[columns].reset_index(drop=True)


def told_variance(frame: pd.DataFrame) -> list[str]:
    """Over which thinkings a variance frame was taken, and which baselines are worse than none."""
    if frame["value"].isna().all():
        return ["No variance to show: it needs more than one budget, and returns that vary."]
    if frame["reached"].isna().all():
        said = ["Over all thinkings, those too that ended before a budget: an older run."]
    else:
        shares = frame.drop_duplicates("budget").sort_values("budget")
        told = ", ".join(f"{r.reached:.0%} at {r.budget:,}" for r in shares.itertuples())
        said = [f"Over the thinkings that reach a budget: {told} tokens."]
    worse = frame[(frame["measure"] == "ratio") & (frame["value"] > WORSE)]
    for baseline, part in worse.groupby("baseline", sort=False):
        where = ", ".join(f"{b:,}" for b in part["budget"])
        left = ", ".join(f"{v:.2g}" for v in part["value"])
        said.append(
            f"The {BASELINE_NAMES.get(baseline, baseline)} baseline is worse than none at {where} "
            f"tokens: it leaves {left} times the variance."
        )
    if len(worse):
        said.append(
            "So it goes near the accuracy ceiling, where returns hardly vary: a baseline adds "
            "variance once its spread is more than twice its correlation times that of the return."
        )
    return said
