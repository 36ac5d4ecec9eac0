"""Runs of a YAML file: what is done, what is not any more and why, how long the rest takes.

It runs what is left on one of `places.PLACES` and writes the comparison; a second call goes on
where the first was stopped. What the file may hold stands in `sweep_file`.
"""

import contextlib
import fnmatch
import json
import shutil
import statistics
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from rich.console import Console

from anytime_lab.look.report import write_report
from anytime_lab.read.curves import paired_differences, read_tables
from anytime_lab.read.told import seed_frame, summary_table, terminal_table, verdicts
from anytime_lab.run.jobs import State, clock, jobs_table, run_jobs, text, told_counts
from anytime_lab.run.notebook import ROOT, declared_parameters
from anytime_lab.run.places import Place, open_place
from anytime_lab.run.process import Job, RunFailed
from anytime_lab.run.storage import MIRROR, Storage, mirror
from anytime_lab.run.sweep_file import Point, Sweep, load_sweep, sweep_jobs, told
from anytime_lab.store import files

PAGE, TABLE = "comparison", "summary.csv"


# --- settings, before anything runs --------------------------------------------------------------


def check_settings(sweep: Sweep, jobs: Mapping[Point, Job]) -> None:
    """Build every run's training config as its notebook will, and look up its task by name.

    Nothing is loaded: models and datasets of the hub need not be reachable.

    Raises:
        ValueError: a preset, a task or a setting is unknown, or settings do not go together.
    """
    from anytime_lab.tasks.problems import check_task

    seen = set()
    for point, job in jobs.items():
        if callable(job.parameters):  # made of results that are not there yet
            continue
        said = {k: v for k, v in job.parameters.items() if k not in ("output_dir", "seed")}
        if (kind := json.dumps([point.step, said], sort_keys=True)) in seen:
            continue
        seen.add(kind)
        values = {**declared_parameters(job.notebook), **job.parameters}
        try:
            if "task" in values:
                check_task(values["task"])
            if "preset" in values and "train_config(" in job.notebook.read_text(encoding="utf-8"):
                config_of(values, job.needs.processes)
        except (ValueError, TypeError) as error:
            raise ValueError(f"{sweep.name}.yaml: {job.name}: {error}") from error


def config_of(values: Mapping[str, Any], processes: int = 1) -> Any:
    """The config that a training notebook makes of its parameters.

    Args:
        values: Of all parameters.
        processes: That it will run on; here their batches are those of one.
    """
    from anytime_lab.train.config import train_config

    beside = ("model", "task", "task_options", "lora")  # no settings of the training itself
    given = {name: value for name, value in values.items() if name not in beside}
    settings, key = dict(given.get("settings") or {}), "per_device_train_batch_size"
    if key in settings:
        settings[key] *= processes
    rows = given["rows_per_batch"] * processes
    return train_config(**{**given, "settings": settings, "rows_per_batch": rows})


# --- the plan ------------------------------------------------------------------------------------


def plan_sweep(jobs: Mapping[Point, Job]) -> dict[Point, State]:
    """How each run of `sweep_jobs` stands, and how long it still takes.

    That a run tells itself, or it is what finished siblings took: of its variant if there are any,
    else of its step. None: nobody knows.
    """
    runs: dict[str, Job] = {}
    plan: dict[Point, State] = {}
    took: dict[Any, list[float]] = defaultdict(list)  # of a step, and of a step and variant
    for point, job in jobs.items():
        try:
            run = runs[job.name] = job.run({name: runs[name].hash for name in job.after})
        # It reads results that are not there yet.
        except (KeyError, ValueError, files.RunFolderError):
            plan[point] = State(job, "new", f"after {', '.join(job.after)}")
            continue
        plan[point] = State(job, *run.stands)
        if (result := run.result) is not None:
            for kind in (point.step, (point.step, point.variant)):
                took[kind].append(result["seconds"])
    for point, state in plan.items():
        siblings = took.get((point.step, point.variant)) or took.get(point.step)
        if state.expected is None and siblings:
            state.expected = statistics.median(siblings)
    return plan


def seconds_left(planned: Sequence[State], workers: int) -> float | None:
    """Expected time of all that is not done; None if a kind of run has never finished."""
    expected = [one.expected for one in planned]
    if any(seconds is None for seconds in expected):
        return None
    return max([sum(expected) / workers, *expected])


def plan_line(planned: Sequence[State], workers: int) -> str:
    """The plan in a sentence."""
    if (left := seconds_left(planned, workers)) is None:
        time = "The time is unknown until a run of every step has finished."
    else:
        time = f"About {clock(left)} to go, {workers} at a time, by what finished siblings took."
    return f"{told_counts(planned)}. {time}"


# --- the comparison ------------------------------------------------------------------------------


def compare(prepared: "Prepared", console: Console | None = None) -> pd.DataFrame | None:
    """Write pages and `summary.csv` over all runs that have a result; None if none evaluates.

    The table of each step, what it says, and where the pages are goes to the console.

    Returns:
        One row per step and variant: the columns of `summary_table`, and step, seeds.
    """
    console = console or Console()
    sweep, out = prepared.sweep, prepared.out
    plan = plan_sweep(prepared.jobs)
    evaluations: dict[str, dict[str, list[Path]]] = {}  # step → variant → a folder for each seed
    training: dict[str, dict[str, list[Path]]] = {}
    for point, state in plan.items():
        folder = state.job.folder
        for found, what in ((evaluations, files.MANIFEST), (training, files.METRICS)):
            if state.status == "done" and (folder / what).exists():
                found.setdefault(point.step, {}).setdefault(point.variant, []).append(folder)
    trained = {name: folders for step in training.values() for name, folders in step.items()}
    notes = []
    for note in sweep.file.notes:
        with contextlib.suppress(ValueError, files.RunFolderError):  # of results that are not there
            notes.append(told(sweep, out, note, results=True))
    if missing := sum(state.status != "done" for state in plan.values()):
        notes.append(f"{missing} of the sweep's runs have no result yet; they are not in the "
                     "numbers.")  # fmt: skip
    if len(training) > 1:
        notes.append("The training curves are those of the chain's last training step.")
    frames = []
    alone = len(evaluations) == 1
    for step, runs in evaluations.items():
        reference = sweep.file.reference if sweep.file.reference in runs else next(iter(runs))
        page = out / (f"{PAGE}.html" if alone else f"{PAGE}-{step}.html")
        title = sweep.file.title if alone else f"{sweep.file.title}: {step}"
        try:
            tables = read_tables(runs)
        except files.RunFolderError as error:
            raise files.RunFolderError(
                f"{error} For a sweep that run is finished and kept: delete the result.json of its "
                "folder, then run the sweep again."
            ) from error
        write_report(runs, page, reference=reference, training=trained, title=title, notes=notes)
        frames.append(_summary(tables, reference, step))
        console.print(terminal_table(frames[-1], sweep.file.title if alone else step))
        if len(tables) > 1:
            for sentence in verdicts(paired_differences(tables, reference)):
                console.print(text(sentence), highlight=False)
        console.print(f"Curves with their bands: {page.as_uri()}", soft_wrap=True)
    if not frames:
        return None
    summary = pd.concat(frames, ignore_index=True)
    files.write_csv(out / TABLE, summary)
    return summary


def _summary(tables: Mapping, reference: str, step: str) -> pd.DataFrame:
    frame = summary_table(tables, reference)
    frame.insert(0, "step", step)
    frame.insert(2, "seeds", [len(tables[run]) for run in frame["run"]])
    spread = seed_frame(tables).groupby("run", sort=False)[["anytime", "final"]].std()
    return frame.join(spread.add_suffix("_seed_sd"), on="run")


# --- running -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Prepared:
    """A sweep with its folder and jobs, checked."""

    sweep: Sweep
    out: Path
    jobs: Mapping[Point, Job]  # all of them; `chosen` are those to run
    chosen: Mapping[Point, Job]
    # URL of the results, which `out` then only shows; None if they are in `out`
    storage: str | None = None

    def plan(self) -> list[State]:
        """How each chosen run stands now."""
        return [state for point, state in plan_sweep(self.jobs).items() if point in self.chosen]

    def show(self, workers: int | None = None, console: Console | None = None) -> None:
        """Print the plan."""
        console = console or Console()
        planned = self.plan()
        if workers is None:
            workers = open_place("local", self.out).width
        console.print(text(f"{self.sweep.file.title} → {self.out}", "italic"))
        console.print(jobs_table(planned, whole=True))
        console.print(plan_line(planned, workers), highlight=False)
        if self.sweep.file.takes and any(one.status != "done" for one in planned):
            console.print(text(told(self.sweep, self.out, self.sweep.file.takes)), highlight=False)
        if any(one.status == "stale" for one in planned):
            console.print(
                "Stale runs are made anew; what they hold goes to .replaced/ in their folder."
            )

    def remove(self) -> None:
        """Remove what earlier calls made in the folder, and nothing else by mistake.

        Raises:
            ValueError: the folder holds other things.
        """
        ours = {files.WRITING, MIRROR, TABLE, ".seen-by-all", ".sweep.lock"}
        ours |= {job.name.split("/")[0] for job in self.jobs.values()}
        found = sorted(path.name for path in self.out.iterdir()) if self.out.is_dir() else []
        strange = [n for n in found if n not in ours and not fnmatch.fnmatch(n, f"{PAGE}*.html")]
        if strange:
            raise ValueError(
                f"{self.out} holds {', '.join(strange[:5])}, which this sweep did not make; "
                "--fresh would remove it. Choose another --out."
            )
        with files.only_writer(self.out):
            shutil.rmtree(self.out)


def prepare_sweep(
    path: str | Path,
    out: str | Path | None = None,
    only: Sequence[str] = (),
    storage: str | None = None,
    **changes: Any,
) -> Prepared:
    """Read and check a sweep; nothing runs, and no model or dataset is loaded.

    Args:
        path: The YAML file.
        out: Folder of the results; `runs/NAME` of the project if None.
        only: Patterns such as `ar_*` or `*/seed-0/*` of the runs wanted; what they need is added.
        storage: An fsspec URL where the results are, for a cluster whose nodes share no file
            system; `out` is then made to show what a plan and a comparison read of them.
        **changes: Scale and seeds in place of the file's; see `load_sweep`.

    Raises:
        ValueError: the file, a reference, a parameter or a setting is wrong, or no run matches.
    """
    sweep = load_sweep(path, **changes)
    out = Path(out).expanduser().resolve() if out else ROOT / "runs" / sweep.name
    jobs = sweep_jobs(sweep, out)
    check_settings(sweep, jobs)
    chosen = _choose(jobs, only)
    mirror(Storage(storage) if storage else None, out, [job.name for job in jobs.values()])
    return Prepared(sweep, out, jobs, chosen, storage)


def _choose(jobs: Mapping[Point, Job], only: Sequence[str]) -> dict[Point, Job]:
    patterns = [one for pattern in only or "*" for one in (pattern, f"{pattern}/*")]
    wanted: set[str] = set()
    for job in reversed(jobs.values()):  # what a job needs stands before it
        if job.name in wanted or any(fnmatch.fnmatch(job.name, one) for one in patterns):
            wanted |= {job.name, *job.after}
    if not wanted:
        names = ", ".join(job.name for job in list(jobs.values())[:6])
        raise ValueError(f"no run matches {', '.join(only)}; there are {names}, …")
    return {point: job for point, job in jobs.items() if job.name in wanted}


def run_sweep(
    prepared: Prepared,
    workers: int | None = None,
    retry_failed: bool = False,
    executor: Place | str = "local",
    console: Console | None = None,
) -> pd.DataFrame | None:
    """Run what is to be done and write the comparison over all that has a result.

    Args:
        prepared: Of `prepare_sweep`.
        workers: Runs at a time; None for one a GPU, or by the cores, and on a cluster for as many
            as it takes.
        retry_failed: Try failed runs again.
        executor: Where the runs go, or its name in `PLACES`.

    Returns:
        The summary, as `compare` gives it; None where no step evaluates.

    Raises:
        RunFailed: some runs failed; the comparison of the others was written.
        RunFolderError: another sweep is running in the folder.
    """
    console = console or Console()
    with files.only_writer(prepared.out), contextlib.ExitStack() as at_end:
        files.remove_leftovers(prepared.out)  # of pages that a killed sweep was writing
        if isinstance(executor, str):
            executor = open_place(executor, prepared.out, workers, prepared.storage)
            at_end.callback(executor.close)
        try:
            run_jobs(
                list(prepared.chosen.values()),
                executor,
                console,
                retry_failed=retry_failed,
                seconds_left=lambda: seconds_left(prepared.plan(), executor.width),
            )
        except RunFailed:
            compare(prepared, console)
            raise
        compared = compare(prepared, console)
    if then := prepared.sweep.file.then:
        console.print(text(told(prepared.sweep, prepared.out, then)), highlight=False)
    return compared
