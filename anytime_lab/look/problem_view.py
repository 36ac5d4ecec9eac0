"""View: the problems behind a point of a curve, and two runs' thinkings read up to a budget."""

from collections.abc import Callable, Iterable
from functools import cache

import ipywidgets as widgets
import numpy as np
import pandas as pd
import plotly.graph_objects as go

from anytime_lab.look.figures import MARKS, plot_thinking
from anytime_lab.look.live import LiveFigure, Text, button, chooser, described, row, ticked
from anytime_lab.look.view import ENDS, RunsView, View, summaries_html, told_answer
from anytime_lab.page import escaped, paragraph, region, short
from anytime_lab.read.curves import ProblemTable
from anytime_lab.read.runs import (
    ORDERS,
    Evaluation,
    Runs,
    ThinkingStore,
    Thought,
    answer_path,
    order_problems,
    told_error,
)

BEFORE, AFTER = 12_000, 4_000  # characters shown on each side of the cut


def thinking_html(thought: Thought, path: pd.DataFrame, budget: int) -> str:
    """The text of a thinking around its cut at a budget, with a mark at every turn in sight."""
    here, text = path.loc[path["budget"] == budget, "cut"], thought.thinking
    cut = thought.characters(int(here.iloc[0]) if len(here) else budget)
    first, last = max(0, cut - BEFORE), min(len(text), cut + AFTER)
    turns = [(thought.characters(row["cut"]), _mark(row)) for row in path.to_dict("records")]
    marks = [
        (first, _left_out(first, "before") + '<span class="kept">'),
        *(turn for turn in turns if first < turn[0] <= last or turn[0] == first == 0),
        (cut, '</span><span class="rest">'),  # what is at the cut was thought by then
    ]
    marks.sort(key=lambda pair: pair[0])
    ends = [*(place for place, _ in marks[1:]), last]
    parts = [mark + escaped(text[at:end]) for (at, mark), end in zip(marks, ends, strict=True)]
    parts += ["</span>", _left_out(len(text) - last, "after")]
    return region(f"thinking of sample {thought.sample}, strong up to {budget:,} tokens", parts)


def _mark(row: dict) -> str:
    """The turn of the answer at a budget; nothing where it did not turn."""
    words = next((mark[2] for column, mark in MARKS.items() if row[column]), "")
    kind = "right" if row["right"] else "wrong" if row["lost"] else ""
    answer = escaped(told_answer(row["answer"], 40))
    mark = f'<span class="mark {kind}">{row["budget"]:,} tokens {words} {answer}</span>'
    return mark if words else ""


def _left_out(count: int, where: str) -> str:
    said = f'<span class="mark">{count:,} characters {where} are not shown</span>'
    return said if count > 0 else ""


def position_html(thought: Thought, path: pd.DataFrame, budget: int) -> str:
    """A sentence on where in the thinking the budget is, and what it would answer."""
    here = path[path["budget"] == budget]
    if not len(here):
        return paragraph(f"This thinking was not measured at {budget:,} tokens.")
    row = here.iloc[0]
    place = f"{row['cut']:,} of {thought.tokens:,} tokens"
    if row["cut"] >= thought.tokens:
        place += f", the whole thinking ({ENDS.get(thought.end, thought.end)})"
    answer = "answer " * (row["answer"] is not None) + told_answer(row["answer"])
    kind, verdict = ("right", "right") if row["right"] else ("wrong", "not right")
    return (
        f"<p>At {budget:,} tokens ({escaped(place)}): {escaped(answer)}, "
        f'<strong class="{kind}">{verdict}</strong>; '
        f"{row['share_right']:.0%} of the summaries are right.</p>"
    )


def told_path(path: pd.DataFrame) -> str:
    """The turns of a thinking in a sentence."""
    flips = int(path["flip"].sum())
    said = [f"The answer flips {flips} time{'' if flips == 1 else 's'}"]
    first = path.loc[path["first_right"], "budget"]
    said.append(f"is first right at {first.iloc[0]:,} tokens" if len(first) else "is never right")
    lost = path.loc[path["lost"], "budget"]
    if len(lost):
        said.append("is lost again at " + ", ".join(f"{b:,}" for b in lost) + " tokens")
    return ", ".join(said[:-1]) + " and " + said[-1] + "."


NOBODY = "(none)"
LISTED = 2_000  # problems in the list; the order puts those of interest first
QUESTION = 6_000  # characters
LEGEND = "★ first right, ✗ right before and lost, ▼ another answer; filled: right"


class Side(View):
    """What one run thought about a problem, a sample at a time.

    Args:
        letter: A or B.
        names: of the runs to choose from.
        changed: called when another sample was chosen.
    """

    def __init__(self, letter: str, names: Iterable[str], changed: Callable[[], object]) -> None:
        super().__init__(style=False)
        self.layout = {"flex": "1 1 280px", "min_width": "0"}
        self.thought: Thought | None = None
        self.path: pd.DataFrame | None = None
        self._find = cache(ThinkingStore)
        self.run = chooser(f"Run {letter}", names)
        self.sample = described(widgets.Dropdown, f"Sample of {letter}", "100%", options=[])
        self.position, self.thinking, self.summaries = Text(live=True), Text(), Text()
        self.compose(self.sample, self.position, self.thinking, self.summaries)
        self.on(self.sample, lambda: [self.say(), self._open_sample(), changed()])

    def think(
        self, found: Evaluation | None, problem: str | None, budget: int, right: bool
    ) -> None:
        """Opens the thinking of a problem that shows most, or says what went wrong.

        Args:
            right: whether one that is right at the budget shows more than one that is not.
        """
        self.layout.display = "none" if found is None else None
        self._found, self._problem, options, best = found, problem, [], None
        self.say()
        if problem is not None and found is not None:
            try:
                self._records = self._find(found.path).records(problem)
                by = self._records.groupby(["sample", "budget"])["correct"]
                rights = by.mean().astype(float).unstack() >= 0.5
                turns = pd.Series(np.diff(rights, axis=1).sum(axis=1), rights.index)
                wanted = rights[budget] == right if budget in rights else 0
                best = (turns + len(rights.columns) * wanted).idxmax()
                counts = rights.sum(axis=1).items()
                of = f"of {len(rights.columns)} budgets"
                options = [
                    (f"{sample} · right at {count} {of}", sample) for sample, count in counts
                ]
            except Exception as error:  # damaged, moved or half-written: told, not thrown
                self.say(told_error(found.path, error))
        self.refill(self.sample, options, best)
        self._open_sample()

    def _open_sample(self) -> None:
        self.thought = self.path = None
        for part in (self.position, self.thinking, self.summaries):
            part.show()
        if self.sample.value is None:
            return
        try:
            store = self._find(self._found.path)
            self.thought = store.thought(self._problem, self.sample.value, self._records)
            self.path = answer_path(self.thought.records)
        except Exception as error:
            self.say(told_error(self._found.path, error))

    def read(self, budget: int) -> None:
        """Shows the thinking up to this budget."""
        if self.path is not None:
            of = self.thought, self.path, budget
            self.position.show(f"<b>{escaped(short(self.run.value, 60))}</b> ", position_html(*of))
            self.thinking.show(thinking_html(*of))
            here = self.thought.records[self.thought.records["budget"] == budget]
            known = np.where(here["correct"], "right", "wrong")
            verdicts = np.where(here["score"].isna(), "abstained", known)
            names = {"summary_tokens": "tokens", "finish": "end", "summary_text": "text"}
            rows = here.set_index("summary").rename(columns=names).assign(verdict=verdicts)
            self.summaries.show(summaries_html(rows, f"Summaries at {budget:,} tokens"))


class InsideProblem(RunsView):
    """The problems of two runs in an order of interest, and a thinking of each, side by side.

    Args:
        runs: as for BudgetCurves. The first is run A, the second run B.
        budget: where to begin; the middle budget if None.
        beside: beside the curves, whose line and style sheet it shares: without choosing runs.
    """

    def __init__(self, runs: Runs, budget: int | None = None, beside: bool = False) -> None:
        super().__init__(runs, style=not beside)
        self._listed_at = 0
        self.sides = [Side(letter, self.names, self._draw) for letter in "AB"]
        if not self.names:
            return
        self.a, self.b = (side.run for side in self.sides)
        self.b.options = [(NOBODY, None), *self.b.options]
        self.b.value = next(iter([*self.names][1:]), None)
        self.order = described(widgets.Dropdown, "Order", options=ORDERS)
        self.apart = ticked("only where they disagree")
        self.problem = described(widgets.Select, "Problem", "100%", options=[], rows=4)
        self.play = widgets.ToggleButton(description="Play the budgets", icon="play")
        self.relist = button(
            "List", self._list_problems, "Order the problems by the answers at the line"
        )
        self.question, self.live = Text(), LiveFigure()
        both = widgets.HBox(self.sides, layout={"flex_flow": "row wrap", "grid_gap": "0 18px"})
        choices = [self.a, self.b, self.order, self.apart, self.relist, self.play]
        figure = [] if beside else [self.live, Text(paragraph(LEGEND, "note"))]
        choices = row(*choices[2:5] if beside else choices)
        self.compose(choices, self.problem, self.question, *figure, both)
        self._runs_chosen(budget)
        self.on([self.a, self.b], self._runs_chosen)
        self.on([self.order, self.apart], self._list_problems)
        self.on(self.problem, self._problem_chosen)
        self.on(self.live, self._budget_moved, "at")
        widgets.link((self.play, "value"), (self.live, "playing"))

    @property
    def budget(self) -> int:
        """The budget up to which the thinkings are read."""
        return int(self.live.stop or 0)

    def figure(self) -> go.Figure:
        """The static figure of the thinkings that are open."""
        paths = {side.run.value: side.path for side in self.sides if side.path is not None}
        if not paths:
            said = " ".join(self.wrong(list(self.names))) or "Choose a problem and a sample."
            raise ValueError(f"no thinking is open. {said}")
        problem = self.problem.value
        return plot_thinking(paths, f"Share of right summaries: {short(problem, 40)}")

    @property
    def _tables(self) -> dict[str, ProblemTable]:
        chosen = [side.run.value for side in self.sides if side.run.value is not None]
        return self.read({name: self.names[name] for name in chosen})

    def _runs_chosen(self, budget: int | None = None) -> None:
        budgets = sorted({b for table in self._tables.values() for b in table.budgets})
        at = budget or self.budget
        self.live.update_from(self.live.figure, stops=[(x, f"{x:,} tokens") for x in budgets])
        self.live.move_to(at if at in budgets else None)
        self.apart.layout.display = None if self.b.value in self._tables else "none"
        self._list_problems()

    def _list_problems(self) -> None:
        self._listed_at = self.budget
        a, b = (self._tables.get(side.run.value) for side in self.sides)
        rows = [] if a is None else order_problems(a, b, self.budget, self.order.value)
        if self.apart.value and b is not None:
            rows = [row for row in rows if (row[1] >= 0.5) != (row[2] >= 0.5)]
        options = []
        for problem, *shares in rows[:LISTED]:
            told = ["—" if share != share else f"{share:.0%}" for share in shares]
            words = f"right {told[0]}" if b is None else f"A {told[0]}, B {told[1]}"
            options.append((f"{words} · {short(problem, 48)}", problem))
        self.refill(self.problem, options)
        self._problem_chosen()

    def _problem_chosen(self) -> None:
        problem, wanted = self.problem.value, self.order.value != ORDERS["solved by B, not by A"]
        for side, right in zip(self.sides, (wanted, not wanted), strict=True):
            side.think(self.names.get(side.run.value), problem, self.budget, right)
        self._draw()

    def _draw(self) -> None:
        said = self.wrong([s.run.value for s in self.sides if s.run.value is not None])
        if not self.problem.options and self.apart.value:
            said.append("They disagree on no problem at this budget.")
        self.say(*said)
        opened = [side for side in self.sides if side.path is not None]
        self.question.show()
        if opened:
            thought = opened[0].thought
            told = " ".join(f"{side.run.value}: {told_path(side.path)}" for side in opened)
            self.question.show(
                region("question", [escaped(thought.question, QUESTION)]),
                paragraph(f"Right answer: {short(thought.gold, 200)}. {told}"),
            )
        self.live.update_from(self.picture(), "Share of right summaries along the thinkings.")
        self._budget_moved()

    def _budget_moved(self) -> None:
        self.relist.description = f"List at {self.budget:,} tokens"
        self.relist.layout.display = "none" if self.budget == self._listed_at else None
        for side in self.sides:
            side.read(self.budget)
