"""Runs side by side: each as soon as what it needs is there, stopped together, shown in one table.

A job whose folder holds its result already is kept. Ctrl-C, and SIGTERM of the command, stop all
runs; the next call goes on from what they left.
"""

import contextlib
import math
import threading
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from rich.console import Console, Group
from rich.jupyter import JupyterMixin
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from anytime_lab.page import plain, redacted
from anytime_lab.run.notebook import check_parameters
from anytime_lab.run.places import Place, Share
from anytime_lab.run.process import LOOK, REPLACED, Job, RunFailed, read_or_nothing
from anytime_lab.store.files import PROGRESS, RunFolderError

RELOOK = 10.0  # between looks at how long all still takes
RETELL = 30.0  # between lines about a running job, where there is no terminal
BAR = 16  # characters
ROWS = 24  # jobs shown one by one while they run; of more, those that say something
STYLES = {"done": "green", "kept": "green", "failed": "red", "failed earlier": "red",
          "not run": "red", "stale": "yellow", "begun": "cyan"}  # fmt: skip


@dataclass(eq=False)
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
    share: Share = field(default_factory=dict)  # of the place, while it runs
    future: Future | None = None
    started: float = 0.0
    ended: float = 0.0
    told: tuple[str, float] = ("waiting", 0.0)  # status of the last line about it, and when

    def end(self, status: str, message: str = "") -> None:
        """Note how it ended."""
        self.status, self.message, self.ended = status, message, time.time()

    @property
    def finished(self) -> bool:
        """Whether its result is there."""
        return self.status in ("done", "kept")


def run_jobs(
    jobs: Sequence[Job],
    place: Place,
    console: Console | None = None,
    *,
    retry_failed: bool = True,
    seconds_left: Callable[[], float | None] = lambda: None,
) -> None:
    """Run jobs; of several that could start, those that most others wait for go first.

    Args:
        jobs: Each after those that it needs.
        place: Where the runs go.
        console: Where the table goes.
        retry_failed: Try a run again that failed when it was last tried as it is now.
        seconds_left: How long all of them still take, as far as anybody knows.

    Raises:
        ValueError: a job can never run there; nothing has run.
        RunFailed: at least one failed; jobs that do not need it were still run.
    """
    states = {job.name: State(job) for job in jobs}
    for job in jobs:
        place.check(job.needs)
    console, stopped = console or Console(), threading.Event()
    waited_for = Counter(name for job in jobs for name in job.after)
    by_need = sorted(states.values(), key=lambda state: -waited_for[state.job.name])

    def look(state: State, begun: bool = True) -> None:
        if stopped.is_set():
            raise RunFailed("stopped")
        if begun and state.status == "waiting":
            state.status, state.started = "running", time.time()

    def start(state: State) -> None:
        """Start a job if what it needs is there; it may be kept, or be lost with what it needs."""
        needed = [states[name] for name in state.job.after]
        if lost := [one.job.name for one in needed if one.ended and not one.finished]:
            state.end("not run", "not run: " + ", ".join(lost))
        if not all(one.finished for one in needed):
            return
        run = state.run = state.run or state.job.run({o.job.name: o.run.hash for o in needed})
        stands, why, _ = run.stands
        taken = [one.share for one in by_need if one.future and not one.ended]
        if stands == "done":
            state.end("kept")
        elif stands == "failed" and not retry_failed:
            state.end("failed earlier", why)
        elif (share := place.share(run.needs, taken)) is not None:
            check_parameters(run.notebook, run.parameters)
            if stands == "stale":
                told = f"made anew ({why}); the old files go to {run.folder / REPLACED}."
                console.print(text(f"{run.name}: {told}"), soft_wrap=True)
            state.share = share
            state.future = pool.submit(place.run, run, share, partial(look, state))

    with (
        ThreadPoolExecutor(len(jobs)) as pool,
        contextlib.ExitStack() as at_end,
        live_table(list(states.values()), console, seconds_left) as draw,
    ):
        at_end.callback(stopped.set)  # whatever ends the block, no run goes on behind it
        while going := [state for state in by_need if not state.ended]:
            for state in going:
                try:
                    if state.future is None:
                        start(state)
                    elif state.future.done():
                        seconds = state.future.result()["seconds"]
                        state.end("done")
                        state.started = state.ended - seconds
                # Such as results that are not there
                except (RunFailed, ValueError, OSError, RunFolderError) as failure:
                    state.end("failed", str(failure))
            draw()
            wait([one.future for one in going if one.future], LOOK, FIRST_COMPLETED)
    if failed := [state for state in by_need if not state.finished]:
        raise RunFailed("\n".join(f"{s.job.name}: {s.message or s.status}" for s in failed))


# --- the table -----------------------------------------------------------------------------------


def text(told: object, style: str = "") -> Text:
    """Text as it stands: no markup, no secret, and nothing in it that acts on a terminal."""
    return Text(plain(redacted(str(told))), style=style)


class Shown(JupyterMixin, Group):
    """What a terminal shows, and a notebook as HTML."""


def jobs_table(
    states: Sequence[State], seconds_left: float | None = None, whole: bool = False
) -> Shown:
    """State, progress, time and last metric of each job, and one line about all.

    Args:
        states: Of the jobs, in order.
        seconds_left: Expected for all that is not finished; None if nobody knows.
        whole: As a plan: every job with all its words, and no line.
    """
    # Running and failed ones first, then the latest to end and next to come.
    rank = {"running": 0, "failed": 1, "failed earlier": 1}
    by_need = sorted(states, key=lambda state: (rank.get(state.status, 2), -state.ended))
    chosen = by_need if whole else by_need[:ROWS]
    table = Table.grid(padding=(0, 2))
    for column in range(5):  # where a terminal is narrow, names of a plan and the last give way
        wraps = whole and column in (0, 4)
        table.add_column(no_wrap=not wraps, overflow="fold" if wraps else "ellipsis")
    for state in states:
        if state in chosen:
            table.add_row(*_cells(state))
    if whole or (len(states) <= 8 and seconds_left is None):
        return Shown(table)
    left = "" if seconds_left is None else f"; about {clock(seconds_left)} left"
    return Shown(table, Text(f"{told_counts(states)}{left}", style="bold"))


def told_counts(states: Collection[State]) -> str:
    """How many jobs there are, and how they stand."""
    counts = Counter(state.status for state in states)
    return f"{len(states)} runs: " + ", ".join(f"{n} {status}" for status, n in counts.items())


@contextlib.contextmanager
def live_table(
    states: Sequence[State], console: Console, seconds_left: Callable[[], float | None]
) -> Iterator[Callable[[], None]]:
    """Show the jobs' table, and keep it up to date while the block runs.

    Without a terminal, lines tell what begins and ends, and now and then how far it is.

    Yields:
        Draws; to be called every second or so in the block.
    """
    left, looked = None, -math.inf
    live, show = contextlib.nullcontext(), None
    if console.is_jupyter:
        # Not rich's own way, an Output widget: papermill without widget state fails on those.
        from IPython.display import display

        show = display(jobs_table(states), display_id=True).update
    elif console.is_terminal:
        live = Live(console=console, auto_refresh=False)
        show = partial(live.update, refresh=True)

    def draw() -> None:
        nonlocal left, looked
        if time.monotonic() - looked > RELOOK:
            left, looked = seconds_left(), time.monotonic()
        if show is None:
            _tell(states, console)
        else:
            show(jobs_table(states, left))

    with live:
        try:
            yield draw
        finally:
            (show or console.print)(jobs_table(states))


def _tell(states: Sequence[State], console: Console) -> None:
    """A line for each job that has changed, or that has long been running since the last one."""
    now = time.monotonic()
    for state in states:
        status, at = state.told
        if state.status != status or (status == "running" and now - at >= RETELL):
            state.told = (state.status, now)
            name, *cells = _cells(state)
            said = [str(cell) for cell in cells if isinstance(cell, str | Text) and str(cell)]
            line = text(f"{name}: {', '.join(said)}")
            console.print(line, soft_wrap=True, highlight=False)


def _cells(state: State) -> tuple[Any, ...]:
    """Name, state, bar, time and message."""
    where, bar, message = Text(state.status, STYLES.get(state.status, "dim")), "", state.message
    spent = f"~{clock(state.expected)}" if state.expected else ""
    if state.status == "kept":
        message = "finished earlier"
    elif state.status == "done" and state.started:
        spent = clock(state.ended - state.started)
    elif state.status == "running":
        spent = clock(time.time() - state.started)
        where, bar = Text("starting"), ProgressBar(pulse=True, width=BAR)
        progress = read_or_nothing(state.job.folder / PROGRESS)
        if progress.get("updated", 0) >= state.started:  # else of an earlier try
            done, total, left = progress["done"], progress["total"], progress.get("seconds_left")
            spent += "" if left is None else f" < {clock(left)}"
            where, message = text(f"{done:,}/{total:,} {progress['unit']}"), progress["message"]
            bar = ProgressBar(total=max(total, 1), completed=done, width=BAR)
    style = "dim" if state.status == "running" else ""
    return text(state.job.name), where, bar, spent, text(" ".join(message.split()), style)


def clock(seconds: float) -> str:
    """Minutes and seconds; from an hour on, hours, minutes and seconds."""
    minutes, rest = divmod(int(max(0, seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
