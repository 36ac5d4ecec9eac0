"""View: accuracy by thinking budget of several runs, read at a budget and under a prior."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

import ipywidgets as widgets
import pandas as pd
import plotly.graph_objects as go

from anytime_lab.look.figures import band, plot_accuracy, plot_published, published_traces
from anytime_lab.look.live import (
    LABEL,
    framed,
    line_traces,
    live_figure,
    row,
    style_sheet,
    text,
)
from anytime_lab.look.prior_editor import PriorEditor
from anytime_lab.look.problem_view import InsideProblem
from anytime_lab.look.style import (
    FIGURES,
    TABLES,
    axis_span,
    budget_ticks,
    export,
    log_ticks,
    run_styles,
    short_text,
)
from anytime_lab.page import block, paragraph, short, table
from anytime_lab.read.curves import ProblemTable, final_accuracy, mean_curve
from anytime_lab.read.runs import Evaluation, Runs, Tables, find_evaluations
from anytime_lab.read.told import (
    BENCHMARKS,
    DATASETS,
    NOTHING,
    SOURCE,
    all_budgets,
    at_budget,
    common_budgets,
    difference_table,
    published_table,
    tidy_curves,
    told_difference,
    told_reach,
    told_value,
    under_prior,
)

LINE = {"type": "line", "line": {"color": "#888", "width": 1.5, "dash": "dot"}}
CURSOR = {**LINE, "xref": "x", "yref": "paper", "x0": 0, "x1": 0, "y0": 0, "y1": 1}
LEVEL = {**LINE, "xref": "paper", "yref": "y", "x0": 0, "x1": 1, "y0": 0, "y1": 0}


class CurveFigure:
    """A figure with a band and a line per run, a cursor, and room for published values.

    Args:
        on_point: called with the run's name and the budget of a point that was clicked.
    """

    def __init__(self, on_point: Callable[[str, int], None]) -> None:
        self.live = live_figure([], 440, "Accuracy")
        self.live.update_xaxes(title="Thinking budget (tokens)", hoverformat=",d")
        self.live.update_yaxes(tickformat=".0%")
        self.live.update_layout(hovermode="x unified", shapes=[CURSOR, LEVEL])
        self._on_point = on_point
        self._names: list[str] = []
        self._slots: list[tuple] = []  # a band and a line for each run shown
        self._published: tuple = ()
        self._span = (0.0, 1.0)

    def draw(self, shown: Mapping[str, ProblemTable], names: Sequence[str]) -> None:
        """Fills the traces with the runs shown; `names` are all runs, which gives the colours."""
        self._names = list(shown)
        styles = run_styles(names)
        while len(self._slots) < len(shown):
            before = len(self.live.data)
            self.live.add_traces(line_traces("", styles[names[0]]))
            fill, line = self.live.data[before:]
            line.on_click(partial(self._clicked, len(self._slots)))
            self._slots.append((fill, line))
        parts = {name: mean_curve(table, "accuracy") for name, table in shown.items()}
        with self.live.batch_update():
            for (fill, line), (name, part) in zip(self._slots, parts.items(), strict=False):
                style = styles[name]
                fill.update(band(part, "budget", style, name) | {"visible": True})
                line.update(line_traces(name, style)[1] | {"visible": True})
                line.x, line.y = part["budget"].tolist(), part["accuracy"].tolist()
                line.customdata = (100 * part[["accuracy", "low", "high"]]).to_numpy().tolist()
                line.hovertemplate = (
                    f"{short_text(name)}: <b>%{{customdata[0]:.1f}}%</b> "
                    "[%{customdata[1]:.1f}, %{customdata[2]:.1f}]<extra></extra>"
                )
            for pair in self._slots[len(shown) :]:
                for trace in pair:
                    trace.visible = False
            if parts:
                values = pd.concat(parts.values())[["accuracy", "low", "high"]]
                self._span = axis_span(values, 0.0, 1.0)
                self.live.layout.yaxis.range = self._span

    def set_axis(self, budgets: Sequence[int], log: bool) -> None:
        """A linear or logarithmic budget axis with ticks at the budgets."""
        ticks = {"tickangle": None, "tickmode": "auto", **budget_ticks(budgets)}
        if log:
            ticks = log_ticks(budgets)
        self.live.update_xaxes(type="log" if log else "linear", autorange=True, **ticks)

    def overlay(self, published: pd.DataFrame | None, names: Sequence[str]) -> None:
        """Shows a benchmark's published values, or none."""
        told = [] if published is None else published_traces(published, names)
        if told and not self._published:
            before = len(self.live.data)
            self.live.add_traces(told)
            self._published = self.live.data[before:]
        low, high = self._span
        with self.live.batch_update():
            for trace in self._published:
                trace.visible = bool(told)
            for trace, new in zip(self._published, told, strict=False):
                trace.update(new)
            if told:
                values = published[["final", "anytime"]]
                low = min(low, values.min().min() - 0.02)
                high = max(high, values.max().max() + 0.02)
            self.live.layout.yaxis.range = (low, high)

    def set_cursor(self, budget: int, level: float, visible: bool) -> None:
        """Moves the line at the budget and that at the accuracy wanted."""
        with self.live.batch_update():
            cursor, reach = self.live.layout.shapes
            cursor.update(x0=budget, x1=budget, visible=visible)
            reach.update(y0=level, y1=level, visible=visible)

    def _clicked(self, slot: int, _trace, points, _state) -> None:
        if points.xs and slot < len(self._names):
            self._on_point(self._names[slot], round(points.xs[0]))


AT_FIRST = 6  # runs that are shown before any is chosen
NO_BENCHMARK = "none"


class BudgetCurves(widgets.VBox):
    """Budget curves of evaluated runs, with a budget to slide and a prior to edit.

    Args:
        runs: run folders of evaluations, a mapping from a name to its folder, or one folder that
            holds them.
        reference: the run that the others are compared with; the first if None.
        export_dir: where exports go unless the reader says otherwise.
    """

    def __init__(
        self, runs: Runs, reference: str | None = None, export_dir: str | Path = "exports"
    ) -> None:
        super().__init__()
        self._given = runs
        self.catalogue = find_evaluations(runs)
        self.tables = Tables()
        self._wanted = reference
        self._names: dict[str, Evaluation] = {}
        self._differences: dict[tuple[Path, Path], ProblemTable | None] = {}
        self._busy = False  # controls are being set by the view itself
        self.notes, self.read_out = text(live=True), text(live=True)
        self.published_table, self.status = text(), text(live=True)
        if not self.catalogue.evaluations:
            self.children = [style_sheet(), self.notes]
            self.notes.value = block(*map(paragraph, self._sentences()))
            return
        self._make_controls(str(export_dir))
        self.curves = CurveFigure(self._point_chosen)
        self.prior = PriorEditor([])
        self._arrange()
        self._dataset_chosen()
        self._observe()

    # --- what is shown ---------------------------------------------------------------------------

    @property
    def shown(self) -> dict[str, ProblemTable]:
        """The tables of the runs that are chosen and could be read, by name."""
        return {
            name: self.tables.known[self._names[name].path]
            for name in self._chosen()
            if self._names[name].path in self.tables.known
        }

    def frame(self) -> pd.DataFrame:
        """The tidy table of what is shown: accuracy by budget and the paired difference."""
        shown = self.shown
        frame = tidy_curves(shown, {name: self._difference(name) for name in shown})
        frame.insert(1, "dataset", self.dataset.value)
        frame.insert(2, "step", [self._names[name].step for name in frame["run"]])
        return frame.assign(reference=self.reference.value)

    def figure(self) -> go.Figure:
        """The static figure of what is shown.

        Raises:
            ValueError: no run is shown.
        """
        if not self.shown:
            raise ValueError("no run is shown; choose at least one.")
        figure = plot_accuracy(self.frame(), list(self._names), self.log_axis.value)
        if self.published.value == NO_BENCHMARK:
            return figure
        return plot_published(figure, published_table(self.published.value), list(self._names))

    def save(self, kind: str) -> Path | None:
        """Writes the figure (html, png, svg) or the tidy table (csv, tex); says what came of it."""
        try:
            path = Path(self.folder.value or ".") / f"budget-curves.{kind}"
            export(self.figure(), self.frame(), path)
        except Exception as error:  # a full disk, no browser, nothing shown: told, not thrown
            self.status.value = block(paragraph(f"Not exported: {error}"), live=True)
            return None
        self.status.value = block(paragraph(f"Wrote {path.resolve()}"), live=True)
        return path

    # --- parts -----------------------------------------------------------------------------------

    def _make_controls(self, folder: str) -> None:
        self.dataset = widgets.Dropdown(
            options=[(short(d), d) for d in self.catalogue.datasets],
            description="Dataset",
            style=LABEL,
        )
        self.runs = widgets.SelectMultiple(options=[], description="Runs", style=LABEL, rows=4)
        self.steps = widgets.SelectMultiple(options=[], description="Steps", style=LABEL, rows=4)
        self.reference = widgets.Dropdown(options=[], description="Reference", style=LABEL)
        self.budget = widgets.SelectionSlider(
            options=[("—", 0)],
            description="Budget",
            continuous_update=True,
            style=LABEL,
            layout={"width": "36em"},
        )
        self.log_axis = widgets.Checkbox(
            value=False, description="Logarithmic budget axis", indent=False
        )
        self.level = widgets.FloatSlider(
            value=0.5,
            min=0,
            max=1,
            step=0.01,
            readout_format=".0%",
            description="Tokens to accuracy",
            style=LABEL,
            layout={"width": "28em"},
        )
        self.published = widgets.Dropdown(
            options=[NO_BENCHMARK, *BENCHMARKS],
            description="Published values (BRPO)",
            style=LABEL,
        )
        self.again = widgets.Button(description="Read the folders again", layout={"width": "auto"})
        self.folder = widgets.Text(value=folder, description="Export to folder", style=LABEL)
        self.exports = {
            kind: widgets.Button(
                description={"tex": "LaTeX"}.get(kind, kind.upper()),
                tooltip=f"Write the {'figure' if kind in FIGURES else 'table'} as {kind}",
                layout={"width": "6em"},
            )
            for kind in FIGURES + TABLES
        }
        self.inside_run = widgets.Dropdown(options=[], description="Look inside", style=LABEL)
        self.inside = widgets.Button(
            description="Problems behind this point",
            tooltip="The problems that this run solves at this budget, and the reference does not",
            layout={"width": "auto"},
        )
        self.inside_slot = widgets.VBox([])

    def _arrange(self) -> None:
        several = len(self.catalogue.datasets) > 1
        choices = [*([self.dataset] if several else []), self.runs, self.steps, self.reference]
        self.children = [
            style_sheet(),
            self.notes,
            row(*choices, self.again),
            row(self.budget, self.log_axis, self.level, self.published),
            framed(self.curves.live),
            self.read_out,
            self.published_table,
            self.prior,
            row(self.folder, *self.exports.values()),
            self.status,
            row(self.inside_run, self.inside),
            self.inside_slot,
        ]

    def _observe(self) -> None:
        self.dataset.observe(self._on(self._dataset_chosen), "value")
        for control in (self.runs, self.steps):
            control.observe(self._on(self._runs_chosen), "value")
        self.log_axis.observe(self._on(self._draw_axis), "value")
        self.published.observe(self._on(self._draw_published), "value")
        for control in (self.reference, self.budget, self.level):
            control.observe(self._on(self._read), "value")
        self.prior.observe(self._on(self._read), "prior")
        self.again.on_click(lambda _: self._read_again())
        self.inside.on_click(lambda _: self._look_inside())
        for kind, button in self.exports.items():
            button.on_click(lambda _, kind=kind: self.save(kind))

    def _on(self, then):
        """An observer that keeps still while the view sets its own controls."""

        def changed(_change) -> None:
            if not self._busy:
                then()

        return changed

    # --- choices ---------------------------------------------------------------------------------

    def _chosen(self) -> list[str]:
        steps = set(self.steps.value)
        return [
            name
            for name, e in self._names.items()
            if e.run in self.runs.value and (e.step is None or not steps or e.step in steps)
        ]

    def _dataset_chosen(self, keep: Sequence[str] = ()) -> None:
        self._busy = True
        self._names = self.catalogue.names(self.dataset.value)
        runs = list(dict.fromkeys(e.run for e in self._names.values()))
        steps = sorted({e.step for e in self._names.values() if e.step is not None})
        self.runs.value, self.steps.value = [], []  # a page fails on a choice past a shorter list
        self.runs.options = [(short(run), run) for run in runs]
        self.runs.value = [run for run in runs if run in keep] or runs[:AT_FIRST]
        self.steps.options = [(f"step {step:,}", step) for step in steps]
        last = {e.run: e.step for e in sorted(self._names.values(), key=lambda e: e.step or 0)}
        self.steps.value = sorted({step for step in last.values() if step is not None})
        self.steps.layout.display = None if len(steps) > 1 else "none"
        self._busy = False
        self._runs_chosen()

    def _runs_chosen(self) -> None:
        self.tables.read([self._names[name] for name in self._chosen()])
        shown = self.shown
        tables = list(shown.values())
        self._busy = True
        options = [(short(name), name) for name in shown]
        before = self.reference.value or self._wanted
        self.reference.options = options
        self.inside_run.options = options
        if shown:
            named = [n for n in shown if before in (n, self._names[n].run)]
            self.reference.value = named[0] if named else next(iter(shown))
            others = [n for n in shown if n != self.reference.value]
            self.inside_run.value = others[0] if others else self.reference.value
        budgets = all_budgets(tables) if tables else []
        at = self.budget.value if self.budget.value in budgets else None
        self.budget.options = [(f"{b:,} tokens", b) for b in budgets] or [("—", 0)]
        self.budget.value = at or (budgets[len(budgets) // 2] if budgets else 0)
        self.budget.disabled = not budgets
        self.prior.set_budgets(common_budgets(tables))
        self._busy = False
        self.notes.value = block(*[paragraph(s) for s in self._sentences()], live=True)
        self._draw()
        self._read()

    def _sentences(self) -> list[str]:
        """What is wrong or unfinished with the folders, for the reader."""
        said = list(self.catalogue.complaints)
        if not self.catalogue.evaluations:
            return said or ["No run folders were given; give those that evaluate() returned."]
        chosen = [self._names[name] for name in self._chosen()]
        said += [self.tables.complaints[e.path] for e in chosen if e.path in self.tables.complaints]
        said += [
            f"{name} is still being written, or was stopped: {e.done} of {e.chunks} parts are read."
            for name, e in self._names.items()
            if e in chosen and e.partial and e.path in self.tables.known
        ]
        if not chosen:
            said.append("No run is chosen; choose one or more from the list.")
        if self._wanted and self._wanted not in {
            x for n, e in self._names.items() for x in (n, e.run)
        }:
            said.append(f"The reference {self._wanted!r} is not one of the runs; another is used.")
        if len(self.runs.value) < len(self.runs.options):
            said.append(f"{len(self.runs.value)} of {len(self.runs.options)} runs are shown.")
        return said

    def _read_again(self) -> None:
        """Looks at the folders anew: runs that were written further, and new ones."""
        self.catalogue = find_evaluations(self._given)
        self.tables.forget([*self.tables.known, *self.tables.complaints])
        self._differences.clear()
        self._dataset_chosen(keep=self.runs.value)

    def _look_inside(self) -> None:
        name = self.inside_run.value
        if name is None:
            return
        pair = [name, *([self.reference.value] if self.reference.value != name else [])]
        view = InsideProblem(
            {n: self._names[n].path for n in pair}, budget=self.budget.value, style=False
        )
        self.inside_slot.children = [view]

    def _draw(self) -> None:
        self.curves.draw(self.shown, list(self._names))
        self._draw_axis()
        self._draw_published()

    def _draw_axis(self) -> None:
        if self.shown:
            self.curves.set_axis(all_budgets(list(self.shown.values())), self.log_axis.value)

    def _draw_published(self) -> None:
        benchmark = self.published.value
        if benchmark == NO_BENCHMARK:
            self.curves.overlay(None, [])
            self.published_table.value = ""
            return
        wanted = published_table(benchmark)
        self.curves.overlay(wanted, list(self._names))
        matches = DATASETS.get(self.dataset.value) == benchmark
        note = (
            f"{SOURCE}: its tables' final accuracy (a mark at 8,000 tokens) and anytime accuracy "
            "(a dotted line; the mean over 32 budgets to there). Without intervals; it gives the "
            "curves themselves as pictures only. "
        )
        note += "" if matches else f"The runs shown are on {self.dataset.value}, not {benchmark}."
        percent = [
            (r.run, f"{100 * r.final:.1f} %", f"{100 * r.anytime:.1f} %")
            for r in wanted.itertuples()
        ]
        header = ["published run", f"final, {benchmark}", "anytime"]
        self.published_table.value = block(table(header, percent, note))

    def _point_chosen(self, name: str, budget: int) -> None:
        if name in self.shown and budget in [value for _, value in self.budget.options]:
            self.inside_run.value = name
            self.budget.value = budget

    # --- reading ---------------------------------------------------------------------------------

    def _difference(self, name: str) -> ProblemTable | None:
        """The paired difference to the reference, worked out once per pair of folders."""
        reference = self.reference.value
        if reference is None or name == reference:
            return None
        pair = (self._names[name].path, self._names[reference].path)
        if pair not in self._differences:
            known = self.tables.known
            self._differences[pair] = difference_table(known[pair[0]], known[pair[1]])
        return self._differences[pair]

    def _read(self) -> None:
        budget, level = self.budget.value, self.level.value
        self.curves.set_cursor(budget, level, bool(self.shown))
        if not self.shown:
            self.read_out.value = ""
            return
        self.read_out.value = block(self._values(budget, level), live=True)

    def _values(self, budget: int, level: float) -> str:
        prior, reference = self.prior.prior, self.reference.value
        at = f"{budget:,} tokens"
        header = ["run", f"at {at}", f"difference to {reference}", "anytime, under the prior"]
        header += ["difference", "final", f"tokens to {level:.0%}"]
        lines = []
        for name, run in self.shown.items():
            pair = self._difference(name)
            here = at_budget(run, budget)
            weighted = under_prior(run, prior) if prior else NOTHING
            if name == reference:
                differences = ["reference", "reference"]
            elif pair is None:
                differences = ["nothing in common"] * 2
            else:
                known = [at_budget(pair, budget), under_prior(pair, prior) if prior else NOTHING]
                differences = [told_difference(d) for d in known]
            measured = told_value(here) if here.n_problems else "not measured"
            last = told_value(final_accuracy(run))
            reach = told_reach(run, level)
            lines.append(
                (name, measured, differences[0], told_value(weighted), differences[1], last, reach)
            )
        caption = (
            "95 % intervals over problems; differences in points, paired over the problems both "
            "runs have. Not distinguishable: the interval holds 0."
        )
        return table(header, lines, caption)
