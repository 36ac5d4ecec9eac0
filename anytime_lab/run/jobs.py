"""Several notebook runs that depend on each other, side by side, with one live table."""

import contextlib
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console

from anytime_lab.run.executors import Executor, LocalExecutor, Needs
from anytime_lab.run.job_table import jobs_table, live_table
from anytime_lab.run.launch import NotebookRun, RunFailed, finish_run, told_anew
from anytime_lab.store.records import RunFolderError

POLL = 0.25  # seconds between looks at the runs


@dataclass(frozen=True)
class Job:
    """A notebook run with a name and what has to be finished before it.

    Attributes:
        name: Unique; what the table shows.
        notebook: Path of the source.
        parameters: Of the notebook, or a function that makes them once `after` is finished.
        folder: Of the run.
        after: Names of jobs whose results it needs; when one of them has changed, this runs again.
        needs: Devices.
        root, timeout, processes, accelerate: See `NotebookRun`.
    """

    name: str
    notebook: Path
    parameters: Mapping[str, Any] | Callable[[], Mapping[str, Any]]
    folder: Path
    after: tuple[str, ...] = ()
    needs: Needs = Needs()
    root: Path | None = None
    timeout: float | None = None
    processes: int = 1
    accelerate: Mapping[str, Any] | None = None

    def run(self, inputs: Mapping[str, str] | None = None) -> NotebookRun:
        """The run with its parameters made.

        Args:
            inputs: Hashes of the runs of `after`, by name.
        """
        return NotebookRun(
            self.notebook,
            self.parameters() if callable(self.parameters) else self.parameters,
            self.folder,
            self.root,
            inputs or {},
            self.timeout,
            self.processes,
            self.accelerate,
        )


@dataclass
class _State:
    job: Job
    status: str = "waiting"  # waiting, queued, running, done, kept, failed, failed earlier, not run
    run: NotebookRun | None = None
    handle: object | None = None
    started: float = 0.0
    ended: float = 0.0
    message: str = ""
    result: dict[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return self.job.name

    @property
    def folder(self) -> Path:
        return self.job.folder

    @property
    def finished(self) -> bool:
        return self.status in ("done", "kept")


class JobsFailed(RuntimeError):
    """Some jobs failed; the others' results are kept."""


def run_jobs(
    jobs: Sequence[Job],
    executor: Executor | int,
    console: Console | None = None,
    *,
    retry_failed: bool = True,
    seconds_left: Callable[[Mapping[str, str]], float | None] | None = None,
) -> dict[str, dict[str, Any]]:
    """Run jobs side by side in the given order, each as soon as what it needs is there.

    A job whose folder holds its result already is kept. Ctrl-C and SIGTERM stop all runs; the next
    call goes on from what they left.

    Args:
        jobs: In order of preference.
        executor: Where the runs go; a number is so many at a time on this machine.
        console: Where the live table goes.
        retry_failed: Try a run again that failed when it was last tried as it is now.
        seconds_left: From the jobs' states by name to the time that all of them still take.

    Returns:
        Name of a job to its `result.json`.

    Raises:
        ValueError: a job needs an unknown one or itself, or a parameter is wrong; nothing has run.
        JobsFailed: at least one failed; jobs that do not need it were still run.
    """
    states = {job.name: _State(job) for job in jobs}
    if isinstance(executor, int):
        executor = LocalExecutor(executor)
    _check(jobs, states, executor)
    console = console or Console()

    def table() -> Any:
        statuses = {state.name: state.status for state in states.values()}
        left = seconds_left(statuses) if seconds_left is not None else None
        return jobs_table(list(states.values()), left)

    with _stopping(states, executor), live_table(table, console) as draw:
        while _advance(states, executor, retry_failed, console):
            draw()
            time.sleep(POLL)
    failed = [state for state in states.values() if not state.finished]
    if failed:
        raise JobsFailed("\n".join(f"{s.job.name}: {s.message or s.status}" for s in failed))
    return {name: state.result for name, state in states.items()}


def _check(jobs: Sequence[Job], states: Mapping[str, _State], executor: Executor) -> None:
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
        executor.check(job.needs, job.processes)


def _advance(
    states: Mapping[str, _State], executor: Executor, retry_failed: bool, console: Console
) -> bool:
    """Take ends, start what can be started; whether anything is left to wait for."""
    for state in states.values():
        if state.handle is not None:
            _take_end(state, executor)
    for state in states.values():
        if state.status != "waiting":
            continue
        needed = [states[name] for name in state.job.after]
        if lost := [o.name for o in needed if o.status.startswith(("failed", "not run"))]:
            state.status, state.message = "not run", "not run: " + ", ".join(lost)
        elif all(one.finished for one in needed):
            hashes = {o.name: o.run.hash for o in needed}
            _start(state, hashes, executor, retry_failed, console)
    return any(state.handle or state.status == "waiting" for state in states.values())


def _take_end(state: _State, executor: Executor) -> None:
    if state.status == "queued" and executor.begun(state.handle):
        state.status, state.started = "running", time.time()
    try:
        code = executor.poll(state.handle)
        if code is None:
            return
        state.result, state.status = finish_run(state.run, code), "done"
        state.started = time.time() - state.result["seconds"]
    except RunFailed as failure:
        state.status, state.message = "failed", str(failure)
    state.handle, state.ended = None, time.time()


def _start(
    state: _State,
    inputs: Mapping[str, str],
    executor: Executor,
    retry_failed: bool,
    console: Console,
) -> None:
    try:
        run = state.run = state.run or state.job.run(inputs)
    except (ValueError, RunFolderError) as error:  # parameters made of results that are not there
        state.status, state.message, state.ended = "failed", str(error), time.time()
        return
    if (result := run.result) is not None:
        state.result, state.status = result, "kept"
    elif not retry_failed and (reason := run.failure) is not None:
        state.status, state.message = "failed earlier", reason
    elif executor.fits(state.job.needs):
        run.check()
        if told := told_anew(run):
            console.print(f"{state.name}: {told}", markup=False, highlight=False, soft_wrap=True)
        try:
            state.handle, state.status = executor.start(run, state.job.needs), "queued"
        except RunFailed as failure:
            state.status, state.message, state.ended = "failed", str(failure), time.time()


@contextlib.contextmanager
def _stopping(states: Mapping[str, _State], executor: Executor) -> Iterator[None]:
    """Whatever ends the block, no run goes on behind it."""

    def on_term(*_: Any) -> None:
        raise KeyboardInterrupt

    main = threading.current_thread() is threading.main_thread()
    before = signal.signal(signal.SIGTERM, on_term) if main else None
    try:
        yield
    finally:
        executor.stop([s.handle for s in states.values() if s.handle is not None])
        if main:
            signal.signal(signal.SIGTERM, before)
