"""The table of jobs that a terminal or a notebook shows while they run, and lines elsewhere."""

import contextlib
import io
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
from anytime_lab.store.files import PROGRESS, RunFolderError, read_json

REFRESH = 0.25  # seconds between drawings in a terminal
REDRAW = 1.0  # in a notebook, where each one is a message to the page
RETELL = 30.0  # between lines about a running job, where there is no terminal
WIDTH = 110  # characters of the table in a notebook
BAR = 16  # characters
ROWS = 24  # jobs shown one by one; of more, those that say something
STYLES = {"done": "green", "kept": "green", "failed": "red", "failed earlier": "red",
          "not run": "red"}  # fmt: skip
NOTES = {"kept": "finished earlier"}


def text(told: object, style: str = "") -> Text:
    """Text as it stands: no markup, no secret, and nothing in it that acts on a terminal."""
    return Text(plain(redacted(str(told))), style=style)


def jobs_table(states: Sequence[Any], seconds_left: float | None = None) -> Group:
    """State, progress, time and last metric of each job, and one line about all.

    Args:
        states: Of the jobs, in order; see `jobs.State`.
        seconds_left: Expected for all that is not finished; None if nobody knows.
    """
    shown = list(states)
    if len(shown) > ROWS:  # running and failed ones first, then the latest to end and next to come
        rank = {"running": 0, "failed": 1, "failed earlier": 1}
        by_need = sorted(shown, key=lambda s: (rank.get(s.status, 2), -s.ended))
        chosen = {id(state) for state in by_need[:ROWS]}
        shown = [state for state in shown if id(state) in chosen]
    table = Table.grid(padding=(0, 2))
    for _ in range(4):
        table.add_column(no_wrap=True)
    table.add_column()  # where a terminal is narrow, this one gives way
    for state in shown:
        table.add_row(*_cells(state))
    if len(states) <= 8 and seconds_left is None:
        return Group(table)
    counts = Counter(state.status for state in states)
    told = ", ".join(f"{number} {status}" for status, number in counts.items())
    left = "" if seconds_left is None else f"; about {clock(seconds_left)} left"
    return Group(table, Text(f"{len(states)} runs: {told}{left}", style="bold"))


@contextlib.contextmanager
def live_table(
    render: Callable[[], Any], console: Console, states: Sequence[Any]
) -> Iterator[Callable[[], None]]:
    """Show what `render` makes, and keep it up to date while the block runs.

    Without a terminal, lines tell what begins and ends, and now and then how far it is.

    Yields:
        To be called often in the block; draws when it is time to.
    """
    if console.is_terminal and not console.is_jupyter:
        with Live(console=console, refresh_per_second=1 / REFRESH, get_renderable=render):
            yield lambda: None
        return
    if not console.is_jupyter:
        told: dict[str, tuple[str, float]] = {}
        try:
            yield lambda: _tell(states, told, console)
        finally:
            console.print(render())
        return
    # Not rich's own way, an Output widget: papermill without widget state fails on those.
    from IPython.display import HTML, display

    shown = display(HTML(_as_html(render())), display_id=True)
    drawn = time.monotonic()

    def draw() -> None:
        nonlocal drawn
        if time.monotonic() - drawn >= REDRAW:
            shown.update(HTML(_as_html(render())))
            drawn = time.monotonic()

    try:
        yield draw
    finally:
        shown.update(HTML(_as_html(render())))


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


def _as_html(renderable: Any) -> str:
    page = Console(file=io.StringIO(), record=True, width=WIDTH, force_jupyter=False)
    page.print(renderable)
    return page.export_html(inline_styles=True, code_format="<pre>{code}</pre>")


def _cells(state: Any) -> tuple[Any, ...]:
    name = text(state.job.name)
    if state.status == "running":
        progress = _progress(state)
        spent = clock(time.time() - state.started)
        if progress is None:
            return name, Text("starting"), ProgressBar(pulse=True, width=BAR), spent, Text("")
        done, total = progress["done"], progress["total"]
        left = progress.get("seconds_left")
        told = f"{spent} < {clock(left)}" if left is not None else spent
        where = text(f"{done:,}/{total:,} {progress['unit']}")
        bar = ProgressBar(total=max(total, 1), completed=done, width=BAR)
        return name, where, bar, told, _in_a_line(progress["message"], "dim")
    told = clock(state.ended - state.started) if state.status == "done" else ""
    message = _in_a_line(NOTES.get(state.status, state.message))
    style = STYLES.get(state.status, "dim")
    return name, Text(state.status, style=style), "", told, message


def _in_a_line(message: str, style: str = "") -> Text:
    line = text(" ".join(message.split()), style)
    line.no_wrap, line.overflow = True, "ellipsis"
    return line


def _progress(state: Any) -> dict[str, Any] | None:
    try:
        progress = read_json(state.job.folder / PROGRESS)
    except RunFolderError:  # not there yet
        return None
    return progress if progress.get("updated", 0) >= state.started else None


def clock(seconds: float) -> str:
    """Minutes and seconds; from an hour on, hours, minutes and seconds."""
    minutes, rest = divmod(int(max(0, seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
