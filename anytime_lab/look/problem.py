"""View: the problems behind a point of a curve, and one thinking read up to a budget."""

from __future__ import annotations

import ipywidgets as widgets
import pandas as pd
import plotly.graph_objects as go

from anytime_lab.look.canvas import LABEL, framed, live_figure, row, style_sheet, text
from anytime_lab.look.catalogue import Runs, Tables, find_evaluations, told_error
from anytime_lab.look.comparison import all_budgets
from anytime_lab.look.figures import TURNS, plot_thinking, thinking_traces
from anytime_lab.look.plot_style import budget_ticks, told_figure
from anytime_lab.look.problem_data import (
    ORDERS,
    ThinkingStore,
    Thought,
    answer_path,
    find_thinkings,
    order_problems,
    told_path,
)
from anytime_lab.look.thought_html import position_html, summaries_html, thinking_html
from anytime_lab.page import block, escaped, paragraph, region, short

NOBODY = "(none)"
LISTED = 2_000  # problems in the list; the order puts those of interest first
QUESTION = 6_000  # characters


class InsideProblem(widgets.VBox):
    """The problems of a run in an order of interest, and a thinking with its budget to slide.

    Args:
        runs: as for BudgetCurves. The first is run A, the second run B.
        budget: where to begin; the middle budget if None.
        style: bring the style sheet along (not where another view shows it).
    """

    def __init__(self, runs: Runs, budget: int | None = None, style: bool = True) -> None:
        super().__init__()
        self.catalogue = find_evaluations(runs)
        self.tables = Tables()
        self._names = {
            name if len(self.catalogue.datasets) == 1 else f"{name} · {dataset}": e
            for dataset in self.catalogue.datasets
            for name, e in self.catalogue.names(dataset).items()
        }
        self._stores: dict[str, ThinkingStore] = {}
        self._records = pd.DataFrame()
        self._busy = False
        self.thought: Thought | None = None
        self.path: pd.DataFrame | None = None
        self.notes, self.question = text(live=True), text()
        self.position, self.thinking, self.summaries = text(live=True), text(), text()
        sheet = [style_sheet()] if style else []
        if not self._names:
            said = self.catalogue.complaints or ("No run folders were given.",)
            self.notes.value = block(*map(paragraph, said))
            self.children = [*sheet, self.notes]
            return
        self._make_controls()
        self.live = live_figure(
            [{"showlegend": False}, *({"mode": "markers"} for _ in range(3))],
            240,
            "Summaries right",
        )
        self.live.update_xaxes(title="Thinking budget (tokens)", tickformat=",d")
        self.live.update_yaxes(tickformat=".0%", range=TURNS, tickvals=[0, 0.5, 1])
        line = {"color": "#888", "width": 1.5, "dash": "dot"}
        self.live.add_shape(type="line", xref="x", yref="paper", x0=0, x1=0, y0=0, y1=1, line=line)
        self.children = [
            *sheet,
            self.notes,
            row(self.a, self.b, self.listed, self.order),
            row(self.problem, self.sample),
            self.question,
            row(self.budget, self.play),
            self.position,
            framed(self.live),
            self.thinking,
            self.summaries,
        ]
        self._runs_chosen(budget)
        self._observe()

    def figure(self) -> go.Figure:
        """The static figure of the thinking that is open; of none, a sentence."""
        if self.path is None:
            said = " ".join(self.catalogue.complaints) or "Choose a problem and a sample."
            return told_figure(f"No thinking is open. {said}")
        problem = short(self.thought.problem_id, 30)
        title = f"Share of right summaries: {problem}, sample {self.thought.sample}"
        return plot_thinking(self.path, title)

    # --- parts -----------------------------------------------------------------------------------

    def _make_controls(self) -> None:
        names = [(short(name), name) for name in self._names]
        self.a = widgets.Dropdown(options=names, description="Run A", style=LABEL)
        others = [(NOBODY, None), *names]
        second = names[1][1] if len(names) > 1 else None
        self.b = widgets.Dropdown(options=others, value=second, description="Run B", style=LABEL)
        self.listed = widgets.Dropdown(options=[], description="Problems at budget", style=LABEL)
        self.order = widgets.Dropdown(options=ORDERS, description="Order", style=LABEL)
        self.problem = widgets.Select(
            options=[], description="Problem", style=LABEL, rows=6, layout={"width": "44em"}
        )
        self.sample = widgets.Select(
            options=[], description="Sample of A", style=LABEL, rows=6, layout={"width": "26em"}
        )
        self.budget = widgets.SelectionSlider(
            options=[("—", 0)], description="Budget", style=LABEL, layout={"width": "36em"}
        )
        self.play = widgets.Play(interval=700, min=0, max=0, description="Play the budgets")

    def _observe(self) -> None:
        for control in (self.a, self.b):
            control.observe(self._on(self._runs_chosen), "value")
        for control in (self.listed, self.order):
            control.observe(self._on(self._list_problems), "value")
        self.problem.observe(self._on(self._problem_chosen), "value")
        self.sample.observe(self._on(self._sample_chosen), "value")
        self.budget.observe(self._on(self._budget_moved), "value")
        self.play.observe(self._on(self._played), "value")

    def _on(self, then):
        """An observer that keeps still while the view sets its own controls."""

        def changed(_change) -> None:
            if not self._busy:
                then()

        return changed

    def _say(self, *sentences: str) -> None:
        said = [*self.catalogue.complaints, *self.tables.complaints.values(), *sentences]
        self.notes.value = block(*map(paragraph, said), live=True)

    # --- from runs to a thinking -----------------------------------------------------------------

    def _runs_chosen(self, budget: int | None = None) -> None:
        chosen = [self._names[n] for n in (self.a.value, self.b.value) if n is not None]
        self.tables.read(chosen)
        known = [self.tables.known[e.path] for e in chosen if e.path in self.tables.known]
        budgets = all_budgets(known) if known else []
        self._busy = True
        wanted = budget or self.budget.value
        at = wanted if wanted in budgets else (budgets[len(budgets) // 2] if budgets else 0)
        options = [(f"{b:,} tokens", b) for b in budgets] or [("—", 0)]
        self.budget.options = self.listed.options = options
        self.budget.value = self.listed.value = at
        self.play.max = max(len(budgets) - 1, 0)
        self.play.value = budgets.index(at) if budgets else 0
        self._busy = False
        self._list_problems()

    def _list_problems(self) -> None:
        a, b = (self._table(name) for name in (self.a.value, self.b.value))
        self._busy = True
        if a is None:
            self.problem.options = []
        else:
            rows = order_problems(a, b, self.listed.value, self.order.value)[:LISTED]
            self.problem.options = [(_label(row, b is not None), row[0]) for row in rows]
            self.problem.value = rows[0][0]
        self._busy = False
        self._problem_chosen()

    def _table(self, name: str | None):
        return None if name is None else self.tables.known.get(self._names[name].path)

    def _problem_chosen(self) -> None:
        problem, name = self.problem.value, self.a.value
        if problem is None:
            self._say()
            return self._show(None)
        try:
            if name not in self._stores:
                self._stores[name] = find_thinkings(self._names[name].path)
            store = self._stores[name]
            self._records = store.records(problem)
        except Exception as error:  # damaged, moved or half-written: told, not thrown
            self._say(told_error(self._names[name].path, error))
            return self._show(None)
        self._say()
        options = []
        for sample in store.samples(problem):
            path = answer_path(self._records[self._records["sample"] == sample])
            right = f"right at {int(path['right'].sum())} of {len(path)} budgets"
            options.append((f"sample {sample} · {right}", sample))
        self._busy = True
        self.sample.options = options
        self.sample.value = options[0][1]
        self._busy = False
        self._sample_chosen()

    def _sample_chosen(self) -> None:
        problem, sample, name = self.problem.value, self.sample.value, self.a.value
        if sample is None:
            return self._show(None)
        try:
            thought = self._stores[name].thought(problem, sample, self._records)
        except Exception as error:
            self._say(told_error(self._names[name].path, error))
            return self._show(None)
        self._show(thought)

    def _show(self, thought: Thought | None) -> None:
        self.thought = thought
        self.path = None if thought is None else answer_path(thought.records)
        if thought is None:
            for part in (self.question, self.position, self.thinking, self.summaries):
                part.value = ""
            with self.live.batch_update():
                for trace in self.live.data:
                    trace.x, trace.y = [], []
            return
        self.question.value = block(
            region("question", [escaped(thought.question, QUESTION)]),
            paragraph(f"Right answer: {short(thought.gold, 200)}. {told_path(self.path)}"),
        )
        with self.live.batch_update():
            for trace, new in zip(self.live.data, thinking_traces(self.path), strict=True):
                trace.update(new)
            ticks = {"tickmode": "auto", **budget_ticks(self.path["budget"])}
            self.live.update_xaxes(**ticks)
        self._budget_moved()

    # --- moving along it -------------------------------------------------------------------------

    def _played(self) -> None:
        values = [value for _, value in self.budget.options]
        self.budget.value = values[min(self.play.value, len(values) - 1)]

    def _budget_moved(self) -> None:
        budget = self.budget.value
        self._busy = True
        self.play.value = [value for _, value in self.budget.options].index(budget)
        self._busy = False
        if self.thought is None:
            return
        self.live.layout.shapes[0].update(x0=budget, x1=budget)
        self.position.value = block(position_html(self.thought, self.path, budget), live=True)
        self.thinking.value = block(thinking_html(self.thought, self.path, budget))
        self.summaries.value = block(summaries_html(self.thought, budget))


def _label(row: tuple[str, float, float], paired: bool) -> str:
    told = ["—" if value != value else f"{value:.0%}" for value in row[1:]]
    pair = f"A {told[0]}, B {told[1]}" if paired else f"right {told[0]}"
    return f"{short(row[0], 48)} · {pair}"
