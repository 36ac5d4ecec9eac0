"""The table of jobs that a terminal or a notebook shows while they run, and lines elsewhere."""

import contextlib
import io
import math
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from anytime_lab.page import plain, redacted
from anytime_lab.run.process import read_or_nothing
from anytime_lab.store.files import PROGRESS

REDRAW = 1.0  # seconds between drawings
RELOOK = 10.0  # between looks at how long all still takes
RETELL = 30.0  # between lines about a running job, where there is no terminal
WIDTH = 110  # characters of the table in a notebook
BAR = 16  # characters
ROWS = 24  # jobs shown one by one while they run; of more, those that say something
STYLES = {"done": "green", "kept": "green", "failed": "red", "failed earlier": "red",
          "not run": "red", "stale": "yellow", "begun": "cyan"}  # fmt: skip


def text(told: object, style: str = "") -> Text:
    """Text as it stands: no markup, no secret, and nothing in it that acts on a terminal."""
    return Text(plain(redacted(str(told))), style=style)


def jobs_table(
    states: Sequence[Any], seconds_left: float | None = None, whole: bool = False
) -> Group:
    """State, progress, time and last metric of each job, and one line about all.

    Args:
        states: Of the jobs, in order; see `jobs.State`.
        seconds_left: Expected for all that is not finished; None if nobody knows.
        whole: As a plan: every job with all its words, and no line.
    """
    # Running and failed ones first, then the latest to end and next to come.
    rank = {"running": 0, "failed": 1, "failed earlier": 1}
    by_need = sorted(states, key=lambda state: (rank.get(state.status, 2), -state.ended))
    chosen = {id(state) for state in (by_need if whole else by_need[:ROWS])}
    table = Table.grid(padding=(0, 2))
    for column in range(5):  # where a terminal is narrow, names of a plan and the last give way
        wraps = whole and column in (0, 4)
        table.add_column(no_wrap=not wraps, overflow="fold" if wraps else "ellipsis")
    for state in states:
        if id(state) in chosen:
            table.add_row(*_cells(state))
    if whole or (len(states) <= 8 and seconds_left is None):
        return Group(table)
    left = "" if seconds_left is None else f"; about {clock(seconds_left)} left"
    return Group(table, Text(f"{told_counts(states)}{left}", style="bold"))


def told_counts(states: Sequence[Any]) -> str:
    """How many jobs there are, and how they stand."""
    counts = Counter(state.status for state in states)
    return f"{len(states)} runs: " + ", ".join(f"{n} {status}" for status, n in counts.items())


@contextlib.contextmanager
def live_table(
    states: Sequence[Any], console: Console, seconds_left: Callable[[], float | None]
) -> Iterator[Callable[[], None]]:
    """Show the jobs' table, and keep it up to date while the block runs.

    Without a terminal, lines tell what begins and ends, and now and then how far it is.

    Yields:
        To be called often in the block; looks and draws when it is time to.
    """
    left, looked, drawn = None, -math.inf, -math.inf
    told: dict[str, tuple[str, float]] = {}
    live, show = contextlib.nullcontext(), None
    if console.is_jupyter:
        # Not rich's own way, an Output widget: papermill without widget state fails on those.
        from IPython.display import HTML, display

        shown = display(HTML(""), display_id=True)

        def show(table: Group) -> None:
            page = Console(file=io.StringIO(), record=True, width=WIDTH, force_jupyter=False)
            page.print(table)
            code = page.export_html(inline_styles=True, code_format="<pre>{code}</pre>")
            shown.update(HTML(code))
    elif console.is_terminal:
        live = Live(console=console, auto_refresh=False)

        def show(table: Group) -> None:
            live.update(table, refresh=True)

    def draw() -> None:
        nonlocal left, looked, drawn
        now = time.monotonic()
        if now - looked > RELOOK:
            left, looked = seconds_left(), now
        if show is None:
            _tell(states, told, console)
        elif now - drawn >= REDRAW:
            show(jobs_table(states, left))
            drawn = now

    with live:
        try:
            yield draw
        finally:
            (show or console.print)(jobs_table(states))


def _tell(states: Sequence[Any], told: dict[str, tuple[str, float]], console: Console) -> None:
    """A line for each job that has changed, or that has long been running since the last one."""
    now = time.monotonic()
    for state in states:
        status, at = told.get(state.job.name, ("waiting", now))
        if state.status == status and (status != "running" or now - at < RETELL):
            continue
        told[state.job.name] = (state.status, now)
        name, *cells = _cells(state)
        said = [str(cell) for cell in cells if isinstance(cell, str | Text) and str(cell)]
        line = text(f"{name}: {', '.join(said)}")
        console.print(line, soft_wrap=True, highlight=False)


def _cells(state: Any) -> tuple[Any, ...]:
    name = text(state.job.name)
    if state.status != "running":
        told = f"~{clock(state.expected)}" if state.expected else ""
        if state.status == "done" and state.started:
            told = clock(state.ended - state.started)
        message = "finished earlier" if state.status == "kept" else state.message
        return (
            name,
            Text(state.status, STYLES.get(state.status, "dim")),
            "",
            told,
            text(" ".join(message.split())),
        )
    spent = clock(time.time() - state.started)
    progress = read_or_nothing(state.job.folder / PROGRESS)
    if progress.get("updated", 0) < state.started:  # of an earlier try, or not there yet
        return name, Text("starting"), ProgressBar(pulse=True, width=BAR), spent, Text("")
    done, total, left = progress["done"], progress["total"], progress.get("seconds_left")
    told = f"{spent} < {clock(left)}" if left is not None else spent
    where = text(f"{done:,}/{total:,} {progress['unit']}")
    bar = ProgressBar(total=max(total, 1), completed=done, width=BAR)
    return name, where, bar, told, text(" ".join(progress["message"].split()), "dim")


def clock(seconds: float) -> str:
    """Minutes and seconds; from an hour on, hours, minutes and seconds."""
    minutes, rest = divmod(int(max(0, seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
