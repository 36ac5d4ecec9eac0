"""Several notebook runs that depend on each other, side by side, with one live table."""

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from anytime_lab.launch import NotebookRun, RunFailed, finish_run, start_run, stop_run
from anytime_lab.records import PROGRESS, read_json

POLL = 0.25  # seconds between looks at the runs


@dataclass(frozen=True)
class Job:
    """A notebook run with a name and what has to be finished before it.

    Attributes:
        name: Unique; what the table shows.
        notebook: Path of the source.
        parameters: Of the notebook, or a function that makes them once `after` is finished.
        folder: Of the run.
        after: Names of jobs whose results it needs.
    """

    name: str
    notebook: Path
    parameters: Mapping[str, Any] | Callable[[], Mapping[str, Any]]
    folder: Path
    after: tuple[str, ...] = ()

    def run(self) -> NotebookRun:
        """The run with its parameters made."""
        made = self.parameters() if callable(self.parameters) else self.parameters
        return NotebookRun(self.notebook, made, self.folder)


@dataclass
class _State:
    job: Job
    status: str = "waiting"  # waiting, running, done, kept, failed, not run
    run: NotebookRun | None = None
    process: subprocess.Popen | None = None
    started: float = 0.0
    ended: float = 0.0
    message: str = ""
    result: dict[str, Any] = field(default_factory=dict)

    @property
    def finished(self) -> bool:
        return self.status in ("done", "kept")


class JobsFailed(RuntimeError):
    """Some jobs failed; the others' results are kept."""


def run_jobs(
    jobs: Sequence[Job],
    workers: int,
    environment: Mapping[str, str] | None = None,
    console: Console | None = None,
) -> dict[str, dict[str, Any]]:
    """Run jobs side by side in the given order, each as soon as what it needs is there.

    A job whose folder holds its result already is kept. Ctrl-C and SIGTERM stop all runs; the next
    call goes on from what they left.

    Args:
        jobs: In order of preference.
        workers: Most runs at a time.
        environment: For the runs, such as the number of threads.
        console: Where the live table goes.

    Returns:
        Name of a job to its `result.json`.

    Raises:
        ValueError: a job needs an unknown one or itself, or a parameter is wrong; nothing has run.
        JobsFailed: at least one failed; jobs that do not need it were still run.
    """
    states = {job.name: _State(job) for job in jobs}
    _check(jobs, states)
    console = console or Console()
    with (
        _stopping(states),
        Live(console=console, refresh_per_second=4, get_renderable=lambda: _table(states.values())),
    ):
        while _advance(states, workers, environment):
            time.sleep(POLL)
    failed = [state for state in states.values() if not state.finished]
    if failed:
        raise JobsFailed("\n".join(f"{s.job.name}: {s.message or s.status}" for s in failed))
    return {name: state.result for name, state in states.items()}


def _check(jobs: Sequence[Job], states: Mapping[str, _State]) -> None:
    if len(states) != len(jobs):
        raise ValueError(f"names of jobs must differ; got {[job.name for job in jobs]}.")
    before: set[str] = set()
    for job in jobs:
        if missing := set(job.after) - before:
            raise ValueError(
                f"job {job.name!r} comes after {sorted(missing)}, which no earlier job is. List "
                f"what it needs before it; there are {list(states)}."
            )
        before.add(job.name)
        if not callable(job.parameters):
            job.run().check()


def _advance(states: Mapping[str, _State], workers: int, environment: Any) -> bool:
    """Take ends, start what can be started; whether anything is left to wait for."""
    for state in states.values():
        if state.process is not None and (code := state.process.poll()) is not None:
            state.process, state.ended = None, time.time()
            try:
                state.result, state.status = finish_run(state.run, code), "done"
            except RunFailed as failure:
                state.status, state.message = "failed", str(failure)
    for state in states.values():
        if state.status != "waiting":
            continue
        needed = [states[name] for name in state.job.after]
        if any(one.status in ("failed", "not run") for one in needed):
            state.status = "not run"
            state.message = "not run: " + ", ".join(o.job.name for o in needed if not o.finished)
            continue
        running = sum(one.process is not None for one in states.values())
        if all(one.finished for one in needed):
            _start(state, environment, running < workers)
    return any(state.process or state.status == "waiting" for state in states.values())


def _start(state: _State, environment: Any, free: bool) -> None:
    run = state.run = state.run or state.job.run()
    if (result := run.result) is not None:
        state.result, state.status = result, "kept"
        return
    if not free:
        return
    run.check()
    state.started = time.time()
    state.process, state.status = start_run(run, environment), "running"


@contextlib.contextmanager
def _stopping(states: Mapping[str, _State]) -> Iterator[None]:
    """Whatever ends the block, no run goes on behind it."""

    def on_term(*_: Any) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, on_term)
    try:
        yield
    finally:
        for state in states.values():
            if state.process is not None:
                stop_run(state.process)
        signal.signal(signal.SIGTERM, before)


def _table(states: Any) -> Table:
    table = Table.grid(padding=(0, 2))
    for _ in range(5):
        table.add_column(no_wrap=True)
    for state in states:
        table.add_row(*_cells(state))
    return table


def _cells(state: _State) -> tuple[Any, ...]:
    name = Text(state.job.name)
    if state.status == "running":
        progress = _progress(state)
        spent = _clock(time.time() - state.started)
        if progress is None:
            return name, Text("starting"), ProgressBar(pulse=True, width=24), spent, Text("")
        done, total = progress["done"], progress["total"]
        left = progress.get("seconds_left")
        told = f"{spent} < {_clock(left)}" if left is not None else spent
        where = Text(f"{done:,}/{total:,} {progress['unit']}")
        bar = ProgressBar(total=max(total, 1), completed=done, width=24)
        return name, where, bar, told, Text(progress["message"], style="dim")
    styles = {"done": "green", "kept": "green", "failed": "red", "not run": "red"}
    told = _clock(state.ended - state.started) if state.status == "done" else ""
    notes = {"kept": "finished earlier"}
    message = notes.get(state.status, state.message)
    return name, Text(state.status, style=styles.get(state.status, "dim")), "", told, Text(message)


def _progress(state: _State) -> dict[str, Any] | None:
    try:
        progress = read_json(state.job.folder / PROGRESS)
    except Exception:  # noqa: BLE001  (not there yet)
        return None
    return progress if progress.get("updated", 0) >= state.started else None


def _clock(seconds: float) -> str:
    minutes, rest = divmod(int(max(0, seconds)), 60)
    return f"{minutes}:{rest:02d}"


def cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
