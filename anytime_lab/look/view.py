"""What every view has: its notes, observers that keep still, a static picture, export."""

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import ipywidgets as widgets
import pandas as pd
import plotly.graph_objects as go
from IPython.display import display
from plotly.io.json import to_json_plotly

from anytime_lab.look.live import JS, StyleSheet, Text, button, described, row
from anytime_lab.look.pictures import FIGURE, draw
from anytime_lab.look.style import latex_table, told_figure
from anytime_lab.page import escaped, folded, short, table
from anytime_lab.read.curves import ProblemTable
from anytime_lab.read.runs import Evaluation, Runs, Tables, find_evaluations
from anytime_lab.store.files import write_csv, write_text

ENDS = {"closed": "closed by itself", "eos": "ended in EOS", "length": "cut by its limit"}
# Of an export: the figure, or its frame.
KINDS = {"HTML": "html", "PNG": "png", "SVG": "svg", "CSV": "csv", "LaTeX": "tex"}
SUMMARIES = 32  # shown at once
NONE_GIVEN = "No run folders were given; give those that evaluate() returned."


def told_answer(answer: str | None, limit: int = 60) -> str:
    """An answer on one line; not escaped."""
    return "no answer" if answer is None else short(answer, limit)


def summaries_html(summaries: pd.DataFrame, caption: str) -> str:
    """Summaries one by one, folded away under their caption.

    Args:
        summaries: columns answer, verdict, reason, logprob, tokens, end, text; the index is their
            number.
    """
    header = ["summary", "answer", "verdict", "log-prob", "tokens (end)", "text"]
    rows = []
    for drawn in summaries.head(SUMMARIES).itertuples():
        answer = "—" if pd.isna(drawn.answer) else short(drawn.answer, 80)
        logprob = "—" if pd.isna(drawn.logprob) else f"{drawn.logprob:.2f}".replace("-", "−")
        reason = "" if drawn.reason in ("", "correct", "wrong") else f" ({short(drawn.reason, 40)})"
        length = f"{drawn.tokens:,} ({drawn.end})"
        verdict = f"{drawn.verdict}{reason}"
        rows.append((drawn.Index, answer, verdict, logprob, length, short(drawn.text, 400)))
    if len(summaries) > SUMMARIES:
        caption += f", the first {SUMMARIES} of {len(summaries)}"
    return folded(caption, table(header, rows, kind="text"))


class View(widgets.VBox):
    """A view of something: compose() puts its parts below its notes.

    Args:
        style: bring the style sheet along (not where another view shows it).
    """

    def __init__(self, style: bool = True) -> None:
        super().__init__()
        self.notes, self.status = Text(live=True), Text(live=True)  # screen readers tell them
        self.say = self.notes.say
        self._sheet = [StyleSheet(layout={"display": "none"})] if style else []
        self._quiet = False  # controls are being set by the view itself
        self.compose()

    def compose(self, *parts: widgets.Widget) -> None:
        """Shows these parts."""
        self.children = [*self._sheet, self.notes, *parts]

    def on(
        self,
        controls: widgets.Widget | Sequence[widgets.Widget],
        then: Callable[[], object],
        trait: str = "value",
    ) -> None:
        """Has `then()` called when a control changes, but not while the view sets its own."""

        def changed(_change: object) -> None:
            if not self._quiet:
                then()

        for control in [controls] if isinstance(controls, widgets.Widget) else controls:
            control.observe(changed, trait)

    @contextmanager
    def quiet(self) -> Iterator[None]:
        """Here the view sets its controls itself."""
        before, self._quiet = self._quiet, True
        try:
            yield
        finally:
            self._quiet = before

    def refill(self, control: widgets.Widget, options: Sequence, *wanted: object) -> None:
        """Other options of a control, in words and values; the first one wanted that is there."""
        known = [value for _, value in options]
        with self.quiet():
            control.options = options
            control.value = next((v for v in (*wanted, *known) if v in known), None)

    def figure(self) -> go.Figure:
        """The static figure of what is shown.

        Raises:
            ValueError: there is nothing to draw; says why.
        """
        raise NotImplementedError

    def picture(self) -> go.Figure:
        """The static figure, or a sentence that says why there is none."""
        try:
            return self.figure()
        except Exception as error:  # nothing chosen, a damaged folder: told, not thrown
            return told_figure(f"There is nothing to draw: {error}")

    def _ipython_display_(self) -> None:
        """The picture, which saved notebooks keep, and the view, which hides it while it lives."""
        if not os.environ.get("SERVER_SOFTWARE", "").startswith("voila"):  # which saves nothing
            for sheet in self._sheet:
                sheet._pictured = True
            style = f'<style class="anytime-lab-saved">{(JS / "saved.css").read_text()}</style>'
            display({"text/html": style, "text/plain": ""}, raw=True)
            told = json.loads(to_json_plotly(self.picture().to_dict()))
            display({FIGURE: told, "text/plain": "a figure"}, raw=True)
        display({**self._repr_mimebundle_(), "text/plain": "Run the cell to use it."}, raw=True)

    def exporter(self) -> widgets.Widget:
        """A menu that writes figure() or the tidy frame() into a folder; `status` tells of it."""
        self.folder = described(widgets.Text, "Export to folder", value="exports")
        self.kind = described(widgets.Dropdown, "as", options=KINDS)
        self.write = button("Export", lambda: self.save(self.kind.value))
        return row(self.folder, self.kind, self.write, self.status)

    def save(self, kind: str) -> Path | None:
        """Writes one of KINDS into the folder; says what came of it."""
        try:
            path = Path(self.folder.value or ".") / f"{self.name}.{kind}"
            figure, frame = self.figure(), self.frame()
            if kind == "csv":
                write_csv(path, frame)
            elif kind == "tex":
                write_text(path, latex_table(frame))
            elif kind == "html":
                config = {"displaylogo": False, "responsive": True, "plotlyServerURL": ""}
                title = f"<head><title>{escaped(figure.layout.title.text)}</title>"
                page = figure.to_html(include_plotlyjs=True, config=config)
                write_text(path, page.replace("<head>", title, 1))
            else:
                write_text(path, *draw([figure.to_dict()], kind, width=960, scale=2))
        except Exception as error:  # a full disk, no browser, nothing shown: told, not thrown
            return self.status.say(f"Not exported: {error}")
        self.status.say(f"Wrote {path.resolve()}")
        return path


class RunsView(View):
    """A view of evaluated runs; `names` are those found, with their dataset where there are more.

    Args:
        runs: run folders of evaluations, a mapping from a name to its folder, or one folder that
            holds them.
    """

    def __init__(self, runs: Runs, style: bool = True) -> None:
        super().__init__(style)
        self._given = runs
        self.find()

    def find(self) -> None:
        """Looks at the folders anew."""
        self.tables, (found, self.complaints) = Tables(), find_evaluations(self._given)
        self.datasets = list(dict.fromkeys(e.dataset for e in found))
        several = len(self.datasets) > 1
        self.names: dict[str, Evaluation] = {
            f"{e.name} · {e.dataset}" if several else e.name: e
            for e in sorted(found, key=lambda e: self.datasets.index(e.dataset))
        }
        if not self.names:
            self.say(*(self.complaints or [NONE_GIVEN]))

    def read(self, found: Mapping[str, Evaluation]) -> dict[str, ProblemTable]:
        """The tables of evaluations, without those that cannot be read."""
        self.tables.read([*found.values()])
        known = self.tables.known
        return {name: known[e.path] for name, e in found.items() if e.path in known}

    def wrong(self, names: Sequence[str]) -> list[str]:
        """What is wrong or unfinished with the folders, and with these runs, in sentences."""
        said = list(self.complaints)
        for name in names:
            found = self.names[name]
            if found.path in self.tables.complaints:
                said.append(self.tables.complaints[found.path])
            elif found.partial:
                said.append(
                    f"{name} is still being written, or was stopped: {found.done} of "
                    f"{found.chunks} parts are read."
                )
        return said
