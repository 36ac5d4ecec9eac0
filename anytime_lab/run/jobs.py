"""Runs side by side: each as soon as what it needs is there, stopped together, shown in one table.

A job whose folder holds its result already is kept. Ctrl-C and SIGTERM stop all runs; the next call
goes on from what they left.
"""

import contextlib
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

from rich.console import Console

from anytime_lab.run.notebook import check_parameters
from anytime_lab.run.places import LocalPlace, Place
from anytime_lab.run.process import REPLACED, Job, RunFailed
from anytime_lab.run.table import live_table, text
from anytime_lab.store.files import RunFolderError

POLL = 0.25  # seconds between looks at the runs


@dataclass
class State:
    """How a job stands.

    In a plan as `Job.stands` has it; else waiting, running, done, kept, failed, failed earlier or
    not run.
    """

    job: Job
    status: str = "waiting"
    message: str = ""  # why
    expected: float | None = None  # seconds that it still takes, as a plan has it
    run: Job | None = None
    future: Future | None = None
    started: float = 0.0
    ended: float = 0.0
    result: dict[str, Any] = field(default_factory=dict)

    def begin(self) -> None:
        """Note that it runs now."""
        if self.status == "waiting":
            self.status, self.started = "running", time.time()

    def end(self, status: str, message: str = "") -> None:
        """Note how it ended."""
        self.status, self.message, self.ended = status, message, time.time()

    @property
    def finished(self) -> bool:
        """Whether its result is there."""
        return self.status in ("done", "kept")


class JobsFailed(RuntimeError):
    """Some jobs failed; the others' results are kept."""


def run_jobs(
    jobs: Sequence[Job],
    place: Place | int,
    console: Console | None = None,
    *,
    retry_failed: bool = True,
    seconds_left: Callable[[], float | None] = lambda: None,
) -> dict[str, dict[str, Any]]:
    """Run jobs; of several that could start, those that most others wait for go first.

    Args:
        jobs: Each after those that it needs.
        place: Where the runs go; a number is so many at a time on this machine.
        console: Where the table goes.
        retry_failed: Try a run again that failed when it was last tried as it is now.
        seconds_left: How long all of them still take, as far as anybody knows.

    Returns:
        Name of a job to its `result.json`.

    Raises:
        ValueError: a job can never run there; nothing has run.
        JobsFailed: at least one failed; jobs that do not need it were still run.
    """
    states = {job.name: State(job) for job in jobs}
    place = LocalPlace(place) if isinstance(place, int) else place
    for job in jobs:
        place.check(job.needs)
    console = console or Console()
    waited_for = Counter(name for job in jobs for name in job.after)
    by_need = sorted(states.values(), key=lambda state: -waited_for[state.job.name])
    with _stopping(place), live_table(list(states.values()), console, seconds_left) as draw:
        while going := [state for state in by_need if not state.ended]:
            for state in going:
                try:
                    if state.future is None:
                        needed = [states[name] for name in state.job.after]
                        _start(state, needed, place, retry_failed, console)
                    elif state.future.done():
                        state.result = state.future.result()
                        state.end("done")
                        state.started = state.ended - state.result["seconds"]
                # Such as results that are not there
                except (RunFailed, ValueError, OSError, RunFolderError) as failure:
                    state.end("failed", str(failure))
            draw()
            time.sleep(POLL)
    if failed := [state for state in by_need if not state.finished]:
        raise JobsFailed("\n".join(f"{s.job.name}: {s.message or s.status}" for s in failed))
    return {name: state.result for name, state in states.items()}


def _start(
    state: State, needed: Sequence[State], place: Place, retry_failed: bool, console: Console
) -> None:
    """Start a job if what it needs is there; it may be kept, or be lost with what it needs."""
    if lost := [one.job.name for one in needed if one.ended and not one.finished]:
        state.end("not run", "not run: " + ", ".join(lost))
        return
    if not all(one.finished for one in needed):
        return
    run = state.run = state.run or state.job.run({o.job.name: o.run.hash for o in needed})
    stands, why = run.stands
    if stands == "done":
        state.result = run.result
        state.end("kept")
    elif stands == "failed" and not retry_failed:
        state.end("failed earlier", why)
    elif place.fits(run.needs):
        check_parameters(run.notebook, run.parameters)
        if stands == "stale":
            told = f"made anew ({why}); the old files go to {run.folder / REPLACED}."
            console.print(text(f"{state.job.name}: {told}"), soft_wrap=True)
        state.future = place.submit(run, state.begin)


@contextlib.contextmanager
def _stopping(place: Place) -> Iterator[None]:
    """Whatever ends the block, no run goes on behind it."""

    def on_term(*_: Any) -> None:
        raise KeyboardInterrupt

    main = threading.current_thread() is threading.main_thread()
    before = signal.signal(signal.SIGTERM, on_term) if main else None
    try:
        yield
    finally:
        place.stop()
        if main:
            signal.signal(signal.SIGTERM, before)
