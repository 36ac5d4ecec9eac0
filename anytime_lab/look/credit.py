"""View: a rollout tree of training, its tokens coloured by their advantage under two methods."""

from __future__ import annotations

from collections.abc import Sequence

import ipywidgets as widgets
import pandas as pd
import plotly.graph_objects as go

from anytime_lab.look.canvas import LABEL, framed, live_figure, row, style_sheet, text
from anytime_lab.look.catalogue import Runs, told_error
from anytime_lab.look.credit_data import (
    METHOD_WORDS,
    credit_frame,
    find_rollouts,
    largest_advantage,
    told_budget,
    told_credit,
)
from anytime_lab.look.credit_figure import credit_axes, credit_traces, end_mark, plot_credit
from anytime_lab.look.credit_html import leaves_html, legend_html, numbers_html, tokens_html
from anytime_lab.look.plot_style import told_figure
from anytime_lab.page import block, escaped, paragraph, region, short
from anytime_lab.store.rollout_records import Rollouts, read_rollouts, rollout_steps

PROMPT = 4_000  # characters
ENDS = {"closed": "closed by itself", "eos": "ended in EOS", "length": "cut by its limit"}


class Credit(widgets.VBox):
    """The trees that training kept: choose one and see what each of its tokens was credited.

    Args:
        runs: output folders of training, a name for each, or one folder that holds them.
        methods: whose advantages stand left and right.
    """

    def __init__(self, runs: Runs, methods: Sequence[str] = ("brpo", "grpo")) -> None:
        super().__init__()
        if unknown := [m for m in methods if m not in METHOD_WORDS] or len(methods) != 2:
            raise ValueError(
                f"methods is {tuple(methods)}{f': no {unknown}' if unknown is not True else ''}; "
                f"choose two of {', '.join(METHOD_WORDS)}."
            )
        self.folders, self.complaints = find_rollouts(runs)
        self.rollouts: Rollouts | None = None
        self.tree: pd.Series | None = None
        self.frame: pd.DataFrame | None = None
        self._busy = False
        self.notes, self.sentence, self.prompt = text(live=True), text(live=True), text()
        self.tokens, self.position, self.numbers, self.leaves = (
            text(),
            text(live=True),
            text(),
            text(),
        )
        if not self.folders:
            said = self.complaints or ["No run folders were given."]
            self.notes.value = block(*map(paragraph, said))
            self.children = [style_sheet(), self.notes]
            return
        self._make_controls(methods)
        self.live = live_figure([{"yaxis": "y2"} if i > 3 else {} for i in range(6)], 460)
        self.live.add_shape(type="line", xref="x", yref="paper", x0=0, x1=0, y0=0, y1=1)
        self.live.update_layout(yaxis2={"gridcolor": "#8883", "automargin": True})
        self.children = [
            style_sheet(),
            self.notes,
            row(self.run, self.step, self.problem),
            self.thinking,
            row(self.left, self.right),
            self.prompt,
            self.sentence,
            self.tokens,
            row(self.budget),
            self.position,
            self.leaves,
            framed(self.live),
            self.numbers,
        ]
        self._run_chosen()
        self._observe()

    @property
    def methods(self) -> tuple[str, str]:
        """Whose advantages stand left and right."""
        return self.left.value, self.right.value

    def figure(self) -> go.Figure:
        """The static figure of the thinking that is open; of none, the sentence that says why."""
        if self.frame is None:
            why = " ".join(self.complaints) or "choose a run and a step that can be read."
            return told_figure(f"No rollout is open. {why}")
        where = f"update {self.rollouts.step}, thinking {self.tree['sample']}"
        return plot_credit(
            self.frame,
            self.methods,
            f"Credit along one thinking: {short(self.run.value, 40)}, {where}",
        )

    # --- parts -----------------------------------------------------------------------------------

    def _make_controls(self, methods: Sequence[str]) -> None:
        names = [(short(name), name) for name in self.folders]
        self.run = widgets.Dropdown(options=names, description="Run", style=LABEL)
        self.step = widgets.SelectionSlider(
            options=[("—", 0)], description="Update", style=LABEL, layout={"width": "28em"}
        )
        self.problem = widgets.Dropdown(options=[], description="Problem", style=LABEL)
        self.thinking = widgets.Select(
            options=[], description="Thinking", style=LABEL, rows=8, layout={"width": "34em"}
        )
        words = [(word, name) for name, word in METHOD_WORDS.items()]
        self.left = widgets.Dropdown(
            options=words, value=methods[0], description="Left", style=LABEL
        )
        self.right = widgets.Dropdown(
            options=words, value=methods[1], description="Right", style=LABEL
        )
        self.budget = widgets.SelectionSlider(
            options=[("—", 0)], description="Read at budget", style=LABEL, layout={"width": "36em"}
        )

    def _observe(self) -> None:
        for control, then in (
            (self.run, self._run_chosen),
            (self.step, self._step_chosen),
            (self.problem, self._problem_chosen),
            (self.thinking, self._thinking_chosen),
            (self.left, self._show),
            (self.right, self._show),
            (self.budget, self._budget_moved),
        ):
            control.observe(self._on(then), "value")

    def _on(self, then):
        """An observer that keeps still while the view sets its own controls."""

        def changed(_change) -> None:
            if not self._busy:
                then()

        return changed

    def _set(self, control, options: list, value) -> None:
        self._busy = True
        control.options = options
        control.value = value
        self._busy = False

    # --- from a run to a thinking ----------------------------------------------------------------

    def _run_chosen(self) -> None:
        steps = rollout_steps(self.folders[self.run.value])
        at = self.step.value if self.step.value in steps else (steps or [0])[-1]
        self._set(self.step, [(f"{s:,}", s) for s in steps] or [("—", 0)], at)
        self._step_chosen()

    def _step_chosen(self) -> None:
        folder = self.folders[self.run.value]
        said = list(self.complaints)
        try:
            self.rollouts = read_rollouts(folder, self.step.value)
        except Exception as error:  # damaged, foreign, removed by a run that began anew
            self.rollouts = None
            said.append(told_error(folder, error))
        self.notes.value = block(*map(paragraph, said), live=True)
        if self.rollouts is None:
            self._set(self.problem, [], None)
            self._set(self.thinking, [], None)
            return self._thinking_chosen()
        budgets = list(self.rollouts.budgets)
        at = self.budget.value if self.budget.value in budgets else budgets[0]
        self._set(self.budget, [(f"{b:,} tokens", b) for b in budgets], at)
        problems = list(dict.fromkeys(self.rollouts.frame["problem"].tolist()))
        options = [(f"problem {p} of update {self.rollouts.step:,}", p) for p in problems]
        self._set(self.problem, options, problems[0])
        self._problem_chosen()

    @property
    def group(self) -> pd.DataFrame:
        """The thinkings of the chosen problem."""
        frame = self.rollouts.frame
        return frame[frame["problem"] == self.problem.value]

    def _problem_chosen(self) -> None:
        options = []
        for tree in self.group.to_dict("records"):
            scores = " ".join("—" if s != s else f"{s:.2f}" for s in tree["credited"][-8:])
            options.append(
                (
                    f"thinking {tree['sample']} · {tree['tokens']:,} tokens · {scores}",
                    tree["sample"],
                )
            )
        # the thinking whose score moves most along its budgets shows most
        moves = self.group["credited"].map(
            lambda r: float(pd.Series(r).agg(lambda s: s.max() - s.min()))
        )
        best = self.group.loc[moves.fillna(0).idxmax(), "sample"]
        self._set(self.thinking, options, int(best))
        self._thinking_chosen()

    def _thinking_chosen(self) -> None:
        if self.rollouts is None or self.thinking.value is None:
            self.tree = self.frame = None
            for part in (self.prompt, self.sentence, self.tokens, self.position, self.numbers,
                         self.leaves):  # fmt: skip
                part.value = ""
            with self.live.batch_update():
                for trace in self.live.data:
                    trace.x, trace.y = [], []
            return
        self.tree = self.group[self.group["sample"] == self.thinking.value].iloc[0]
        self.frame = credit_frame(self.rollouts, self.tree)
        end = ENDS.get(self.tree["end"], short(self.tree["end"]))
        self.prompt.value = block(
            region("prompt", [escaped(self.tree["prompt"], PROMPT)]),
            paragraph(
                f"Thinking {self.tree['sample']} of {len(self.group)}: {self.tree['tokens']:,} "
                f"tokens, {end}. The run trained with baseline {self.rollouts.baseline!r}."
            ),
        )
        self._show()

    # --- showing it ------------------------------------------------------------------------------

    def _show(self) -> None:
        if self.frame is None:
            return
        self.sentence.value = block(paragraph(told_credit(self.frame, self.methods)), live=True)
        self.numbers.value = block(numbers_html(self.frame, self.methods))
        with self.live.batch_update():
            for trace, new in zip(
                self.live.data, credit_traces(self.frame, self.methods), strict=True
            ):
                trace.update(new)
            self.live.update_layout(credit_axes(self.frame, self.methods))
            self.live.layout.shapes[0].update(end_mark(self.frame))
        self._budget_moved()

    def _budget_moved(self) -> None:
        if self.frame is None:
            return
        budget, largest = self.budget.value, largest_advantage(self.group, self.methods)
        columns = "".join(
            tokens_html(
                self.tree["thinking"], self.tree["token_ends"], self.frame, m, largest, budget
            )
            for m in self.methods
        )
        self.tokens.value = block(legend_html(largest), f'<div class="beside">{columns}</div>')
        self.position.value = block(
            paragraph(told_budget(self.frame, budget, self.methods)), live=True
        )
        place = list(self.rollouts.budgets).index(budget)
        self.leaves.value = block(leaves_html(self.tree, place, budget, self._largest_summary()))

    def _largest_summary(self) -> float:
        values = [abs(float(v)) for row in self.tree["summary_advantages"] for v in row]
        return max((v for v in values if v == v), default=0.0)
