"""What of a sweep is done, what is not any more and why, and how long the rest takes."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.table import Table
from rich.text import Text

from anytime_lab.run.job_table import clock
from anytime_lab.run.jobs import Job
from anytime_lab.run.launch import RUN, NotebookRun
from anytime_lab.run.sweep_jobs import Place
from anytime_lab.store.records import PROGRESS, RESULT, RunFolderError, read_json

STYLES = {"done": "green", "stale": "yellow", "begun": "cyan", "failed": "red"}


@dataclass(frozen=True)
class Planned:
    """A run and how it stands.

    Attributes:
        state: "done"; "stale": made by other parameters, code or versions, and will run anew;
            "begun": will go on; "failed"; "new".
        why: What changed, how far it is, or the reason of the failure.
        expected: Seconds that it still takes, from finished siblings; None if nobody knows.
    """

    place: Place
    job: Job
    state: str
    why: str
    expected: float | None


def plan_sweep(jobs: Mapping[Place, Job]) -> list[Planned]:
    """How each run stands, in order.

    Args:
        jobs: Of `sweep_jobs`.
    """
    runs: dict[str, NotebookRun] = {}
    stands: dict[Place, tuple[str, str]] = {}
    for place, job in jobs.items():
        try:
            run = job.run({name: runs[name].hash for name in job.after})
        except (KeyError, ValueError, RunFolderError):  # it reads results that are not there yet
            stands[place] = ("new", f"after {', '.join(job.after)}")
            continue
        runs[job.name] = run
        stands[place] = _stands(run)
    took = {place: _seconds(job.folder) for place, job in jobs.items()
            if stands[place][0] == "done"}  # fmt: skip
    return [
        Planned(place, job, *stands[place], _expected(place, job, stands[place][0], took))
        for place, job in jobs.items()
    ]


def _stands(run: NotebookRun) -> tuple[str, str]:
    if run.result is not None:
        return "done", ""
    if (changes := run.changes) is not None:
        return "stale", "; ".join(changes)
    if (reason := run.failure) is not None:
        return "failed", reason
    if (run.folder / RUN).exists():
        done, total, unit = _progress(run.folder)
        return "begun", f"{done:,} of {total:,} {unit}" if total else "stopped at its start"
    return "new", ""


def _progress(folder: Path) -> tuple[int, int, str]:
    try:
        progress = read_json(folder / PROGRESS)
        return progress["done"], progress["total"], progress["unit"]
    except (RunFolderError, KeyError, TypeError):
        return 0, 0, ""


def _seconds(folder: Path) -> float:
    try:
        return float(read_json(folder / RESULT)["seconds"])
    except (RunFolderError, KeyError, TypeError):
        return 0.0


def _expected(place: Place, job: Job, state: str, took: Mapping[Place, float]) -> float | None:
    """Seconds still to go: what siblings took, of the same variant if there are any."""
    if state == "done":
        return 0.0
    same_step = {other: s for other, s in took.items() if other.step == place.step}
    closest = [s for other, s in same_step.items() if other.variant == place.variant]
    if not same_step:
        return None
    whole = statistics.median(closest or same_step.values())
    done, total, _ = _progress(job.folder) if state == "begun" else (0, 0, "")
    return whole * (1 - done / total) if total else whole


def seconds_left(planned: Sequence[Planned], workers: int) -> float | None:
    """Expected time of all that is not done; None if a kind of run has never finished."""
    expected = [one.expected for one in planned]
    if any(seconds is None for seconds in expected):
        return None
    longest = max(expected, default=0.0)
    return max(longest, sum(expected) / max(1, workers))


def plan_table(planned: Sequence[Planned], title: str) -> Table:
    """The plan for a terminal or a notebook."""
    table = Table(title=title, title_justify="left", box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("run", overflow="fold")
    table.add_column("state", no_wrap=True)
    table.add_column("time", no_wrap=True, justify="right")
    table.add_column("", overflow="fold")
    for one in planned:
        told = "" if not one.expected else f"~{clock(one.expected)}"
        style = STYLES.get(one.state, "dim")
        table.add_row(Text(one.job.name), Text(one.state, style=style), told, Text(one.why))
    return table


def plan_line(planned: Sequence[Planned], workers: int) -> str:
    """The plan in a sentence."""
    counts = {state: sum(one.state == state for one in planned)
              for state in ("done", "stale", "begun", "failed", "new")}  # fmt: skip
    told = ", ".join(f"{count} {state}" for state, count in counts.items() if count)
    left = seconds_left(planned, workers)
    if left is None:
        time = "The time is unknown until a run of every step has finished."
    else:
        time = f"About {clock(left)} to go, {workers} at a time, by what finished siblings took."
    return f"{len(planned)} runs: {told}. {time}"


class LiveExpectation:
    """Time left of a running sweep, from the states of its jobs, by what finished runs took.

    Args:
        jobs: Those that are run.
        workers: Runs at a time.
    """

    def __init__(self, jobs: Mapping[Place, Job], workers: int):
        self.jobs, self.workers = jobs, workers
        self._took: dict[Place, float] = {}

    def __call__(self, statuses: Mapping[str, str]) -> float | None:
        """Seconds; None if a kind of run has never finished.

        Args:
            statuses: Name of a job to its status in `run_jobs`.
        """
        left = []
        for place, job in self.jobs.items():
            if statuses[job.name] in ("done", "kept") and place not in self._took:
                self._took[place] = _seconds(job.folder)
        for place, job in self.jobs.items():
            status = statuses[job.name]
            if status == "running":
                left.append(self._of_running(place, job))
            elif status in ("waiting", "queued"):
                left.append(_expected(place, job, "new", self._took))
        if not left or any(seconds is None for seconds in left):
            return None
        return max(max(left), sum(left) / max(1, self.workers))

    def _of_running(self, place: Place, job: Job) -> float | None:
        try:
            told = read_json(job.folder / PROGRESS)["seconds_left"]
        except (RunFolderError, KeyError, TypeError):
            told = None
        return told if told is not None else _expected(place, job, "begun", self._took)
