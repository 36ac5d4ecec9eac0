"""View: a rollout tree of training, its tokens coloured by their advantage under two methods."""

from collections.abc import Mapping, Sequence

import ipywidgets as widgets
import numpy as np
import pandas as pd
import plotly.graph_objects as go
from markupsafe import Markup

from anytime_lab.look.figures import CREDIT, GAIN, LOSS, plot_credit, plot_tree
from anytime_lab.look.live import LiveFigure, Text, chooser, described, row
from anytime_lab.look.style import faded
from anytime_lab.look.view import ENDS, View
from anytime_lab.page import escaped, folded, paragraph, region, short, table
from anytime_lab.read import credit
from anytime_lab.read.runs import Runs, told_error
from anytime_lab.store.rollouts import ADVANTAGE, read_rollouts, rollout_steps

DEEPEST = 0.6  # opacity at the end of the scale: text stays readable on it, light and dark
SHOWN = 16_000  # characters of a thinking that are shown in a column
SUMMARY, PROMPT = 300, 4_000  # characters


def tint(value: float, largest: float) -> str:
    """The inline style of an advantage: hue and underline by its sign, depth by its size."""
    if value != value or abs(value) < credit.NOTHING or largest <= 0:
        return ""
    depth = DEEPEST * min(abs(value) / largest, 1.0)
    hue, line = (GAIN, "solid") if value > 0 else (LOSS, "dotted")
    return f"background: {faded(hue, depth)}; border-bottom: 2px {line} {hue}"


def tokens_html(
    tree: pd.Series, frame: pd.DataFrame, methods: Mapping[str, str], budget: int
) -> str:
    """The thinking under each method, every stretch between two cuts coloured by its advantage.

    Args:
        tree: a row of Rollouts.frame.
        frame: of credit.credit_frame().
        methods: name → words, of those compared.
        budget: whose stretch is outlined.
    """
    largest = credit.largest_advantage(frame, methods)
    steps = [k * largest for k in (-1, -0.5, 0, 0.5, 1)] if largest >= credit.NOTHING else []
    scale = " ".join(
        f'<span style="{tint(step, largest)}; padding: 1px 10px">{credit.signed(step)}</span>'
        for step in steps
    )
    said = "dotted orange: less likely; solid blue: more likely; one scale for both"
    scale = f"<p>Advantage: {scale or 'all are 0.00'} <span class='note'>({said})</span></p>"
    stretches = frame[frame["end"] > frame["start"]]
    limit = max(SHOWN // max(len(stretches), 1), 200)
    places = [0, *tree["token_ends"]]  # of the characters after so many tokens
    columns = []
    for method, words in methods.items():
        parts = []
        for line in stretches.itertuples():
            said = escaped(tree["thinking"][places[line.start] : places[line.end]], limit)
            value = getattr(line, f"{ADVANTAGE}{method}")
            told = f"{credit.told_stretch(line)}: advantage {credit.signed(value, 3)}"
            here = ' class="here"' if line.budget == budget else ""
            score = "" if line.score != line.score else f", score {line.score:.2f}"
            parts.append(
                f'<span style="{tint(value, largest)}" title="{told}"{here}>{said}</span>'
                f'<span class="mark">{line.end:,} tokens{score}, A {credit.signed(value)}</span>'
            )
        if len(stretches) < len(frame):
            parts.append('<span class="mark">ended: later budgets train no token here</span>')
        title = f"{words}: advantage of the thinking's tokens"
        columns.append(f"<div><p><b>{escaped(title)}</b></p>{region(title, parts)}</div>")
    return f'{scale}<div class="beside">{"".join(columns)}</div>'


def numbers_html(frame: pd.DataFrame, methods: Mapping[str, str]) -> str:
    """All numbers of the figure as a table."""
    header = ["budget", "prior", "score r", "return R", "V1 progress", "V2 group", "V BRPO"]
    header += [f"A {words}" for words in methods.values()]
    formats = {"budget": "{:,}", "prior": "{:.2f}", "score": "{:.3f}"}
    formats |= dict.fromkeys(CREDIT, "{:.3f}")
    told = pd.DataFrame({name: frame[name].map(form.format) for name, form in formats.items()})
    for method in methods:
        signs = frame[f"{ADVANTAGE}{method}"].map(lambda value: credit.signed(value, 3))
        told[f"{ADVANTAGE}{method}"] = signs.where(frame["end"] > frame["start"], "no token")
    rows = told.replace("nan", "—").itertuples(index=False)
    return table(header, rows, "This thinking, budget by budget")


def leaves_html(tree: pd.Series, place: int, budget: int) -> str:
    """The summaries at a budget with their scores and the advantages that they were trained on."""
    largest = float(np.nanmax(np.abs([*tree["summary_advantages"]]), initial=0.0))
    of = (tree[column][place] for column in ("scores", "summary_advantages", "summaries"))
    rows = []
    for number, (score, value, summary) in enumerate(zip(*of, strict=True)):
        told = "abstained" if score != score else f"{score:.2f}"
        mark = Markup('<span style="{}">{}</span>')
        mark = mark.format(tint(value, largest), credit.signed(value, 3))
        rows.append((number, told, mark, short(summary, SUMMARY)))
    caption = f"Summaries at {budget:,} tokens, with the advantage that this run trained them on"
    return table(["summary", "score", "advantage", "text"], rows, caption, "text")


class Credit(View):
    """The trees that training kept: choose one and see what each of its tokens was credited.

    Args:
        runs: output folders of training, a name for each, or one folder that holds them.
        methods: whose advantages stand left and right.
    """

    def __init__(self, runs: Runs, methods: Sequence[str] = ("brpo", "grpo")) -> None:
        super().__init__()
        self.folders, self.complaints = credit.find_rollouts(runs)
        self.table: pd.DataFrame | None = None  # of the thinking that is open
        if len(methods) != 2:
            raise ValueError(
                f"methods is {tuple(methods)}; choose two of {', '.join(credit.METHOD_WORDS)}."
            )
        if not self.folders:
            self.say(*(self.complaints or ["No run folders were given."]))
            return
        self.run = chooser("Run", self.folders)
        self.step = described(widgets.SelectionSlider, "Update", "24em", options=[("—", 0)])
        self.problem = described(widgets.Dropdown, "Problem", options=[])
        self.thinking = described(widgets.Select, "Thinking", "30em", options=[], rows=5)
        self.left = described(widgets.Dropdown, "Compare", options=methods[:1])
        self.right = described(widgets.Dropdown, "with", options=methods[1:])
        self.sentence, self.prompt, self.leaves, self.numbers = (Text(live=not i) for i in range(4))
        self.tokens, self.position = Text(), Text(live=True)
        self.trees, self.live = LiveFigure(moves="Budget"), LiveFigure(moves="Budget")
        self.sentence.layout.flex = "1 1 24em"
        self._opened = [self.trees, self.position, self.tokens, self.live, self.leaves]
        self._opened += [self.numbers, self.prompt]
        self.compose(
            row(self.run, self.step, self.problem, self.left, self.right),
            row(self.thinking, self.sentence),
            *self._opened,
        )
        self._run_chosen()
        known = [name for _, name in self.left.options]
        for name in methods:
            if name not in known:
                raise ValueError(f"methods has {name!r}; choose two of {', '.join(known)}.")
        self.on(self.run, self._run_chosen)
        self.on(self.step, self._step_chosen)
        self.on(self.problem, self._problem_chosen)
        self.on((self.thinking, self.left, self.right), self._show)
        widgets.link((self.trees, "at"), (self.live, "at"))
        self.on(self.trees, self._moved, "at")

    @property
    def methods(self) -> dict[str, str]:
        """Whose advantages are compared: name → words."""
        return {control.value: control.label for control in (self.left, self.right)}

    def figure(self) -> go.Figure:
        """The static figure of the thinking that is open."""
        if self.table is None:
            why = " ".join(self.complaints) or "choose a run and a step that can be read."
            raise ValueError(f"No rollout is open. {why}")
        where = f"update {self.rollouts.step}, thinking {self.tree['sample']}"
        title = f"Credit along one thinking: {short(self.run.value, 40)}, {where}"
        return plot_credit(self.table, self.methods, title)

    def _run_chosen(self) -> None:
        steps = rollout_steps(self.folders[self.run.value])
        told = [(f"{s:,}", s) for s in steps] or [("—", 0)]
        self.refill(self.step, told, self.step.value, *steps[-1:])
        self._step_chosen()

    def _step_chosen(self) -> None:
        folder, said = self.folders[self.run.value], list(self.complaints)
        known, self.kept = credit.METHOD_WORDS, pd.DataFrame({"problem": []})
        try:
            self.rollouts = read_rollouts(folder, self.step.value)
            known, self.kept = credit.method_words(self.rollouts), self.rollouts.frame
        except Exception as error:  # damaged, foreign, removed by a run that began anew
            said.append(told_error(folder, error))
        self.say(*said)
        for control in (self.left, self.right):
            self.refill(control, [(words, name) for name, words in known.items()], control.value)
        problems = self.kept["problem"].unique().tolist()
        self.refill(self.problem, [(f"{p} of this update", p) for p in problems])
        self._problem_chosen()

    def _problem_chosen(self) -> None:
        self.group = self.kept[self.kept["problem"] == self.problem.value]
        options, moves = [], {}
        for tree in self.group.to_dict("records"):
            scores = " ".join("—" if s != s else f"{s:.2f}" for s in tree["credited"][-8:])
            words = f"{tree['sample']} · {tree['tokens']:,} tokens · scores {scores}"
            options.append((words, tree["sample"]))
            moves[tree["sample"]] = np.ptp([s for s in tree["credited"] if s == s] or [0.0])
        # the thinking whose score moves most along its budgets shows most
        self.refill(self.thinking, options, max(moves, key=moves.get, default=None))
        self._show()

    def _show(self) -> None:
        opened = self.thinking.value is not None
        for part in (self.sentence, *self._opened):
            part.layout.display = None if opened else "none"
        self.table = None
        if not opened:
            return
        self.tree = self.group[self.group["sample"] == self.thinking.value].iloc[0]
        self.table = credit.credit_frame(self.rollouts, self.tree)
        of, told = (self.table, self.methods), credit.told_credit(self.table, self.methods)
        prompt = region("prompt", [escaped(self.tree["prompt"], PROMPT)])
        self.prompt.show(folded("The prompt, as the model was given it", prompt))
        end = ENDS.get(self.tree["end"], short(self.tree["end"]))
        about = (
            f"Thinking {self.tree['sample']} of {len(self.group)}: {self.tree['tokens']:,} tokens, "
            f"{end}. The run trained with baseline {self.rollouts.baseline!r}."
        )
        question = f"Problem: {short(credit.question_of(self.tree['prompt']), 400)}"
        self.sentence.show(paragraph(question), paragraph(about, "note"), paragraph(told))
        self.numbers.show(folded("All numbers", numbers_html(*of)))
        stops = [(b, f"{b:,} tokens") for b in self.rollouts.budgets]
        before = self.trees.stop
        with self.quiet():
            words = f"One thinking as a tree. {told}"
            self.trees.update_from(plot_tree(self.tree, *of), words, stops)
            self.live.update_from(plot_credit(*of), told, stops)
            self.trees.move_to(before)
            if before is None:  # where the method on the left credits most
                self.trees.at = int(self.table[f"{ADVANTAGE}{self.left.value}"].idxmax())
        self._moved()

    def _moved(self) -> None:
        """The line of both figures was moved: the words follow."""
        if self.table is None:
            return
        budget = int(self.trees.stop)
        self.tokens.show(tokens_html(self.tree, self.table, self.methods, budget))
        self.position.say(credit.told_budget(self.table, budget, self.methods))
        self.leaves.show(leaves_html(self.tree, self.trees.at, budget))
