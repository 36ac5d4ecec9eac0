"""View: a rollout tree of training, its tokens coloured by their advantage under two methods."""

from collections.abc import Mapping, Sequence

import ipywidgets as widgets
import pandas as pd
import plotly.graph_objects as go
from markupsafe import Markup
from plotly.subplots import make_subplots

from anytime_lab.look.figures import GAIN, LOSS, plot_tree, told_line
from anytime_lab.look.live import LiveFigure, Text, chooser, described, row
from anytime_lab.look.style import (
    QUIET,
    axis_span,
    base,
    budget_ticks,
    faded,
    run_styles,
    safe_text,
)
from anytime_lab.look.view import ENDS, View
from anytime_lab.page import escaped, folded, paragraph, region, short, table
from anytime_lab.read import credit
from anytime_lab.read.runs import Runs, told_error
from anytime_lab.store.rollouts import ADVANTAGE, Rollouts, read_rollouts, rollout_steps

DEEPEST = 0.6  # opacity at the end of the scale: text stays readable on it, light and dark
SHOWN = 16_000  # characters of a thinking that are shown in a column
SUMMARY, PROMPT = 300, 4_000  # characters
LINES = {
    "return": "return R",
    "progress": "progress baseline V1",
    "group": "group baseline V2",
    "brpo": "BRPO baseline V",
}


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
    steps = [] if largest < credit.NOTHING else [k * largest for k in (-1, -0.5, 0, 0.5, 1)]
    scale = " ".join(
        f'<span style="{tint(step, largest)}; padding: 1px 10px">{credit.signed(step)}</span>'
        for step in steps
    )
    said = "dotted orange: less likely; solid blue: more likely; one scale for both"
    scale = f"<p>Advantage: {scale or 'all are 0.00'} <span class='note'>({said})</span></p>"
    stretches = frame[frame["end"] > frame["start"]]
    limit = max(SHOWN // max(len(stretches), 1), 200)
    columns = []
    for method, words in methods.items():
        parts = []
        for line in stretches.itertuples():
            first = int(tree["token_ends"][line.start - 1]) if line.start else 0
            said = escaped(tree["thinking"][first : int(tree["token_ends"][line.end - 1])], limit)
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
    told = frame[["score", "return", "progress", "group", "brpo"]].map("{:.3f}".format)
    told.insert(0, "prior", frame["prior"].map("{:.2f}".format))
    told.insert(0, "budget", frame["budget"].map("{:,}".format))
    for method in methods:
        told[method] = frame[f"{ADVANTAGE}{method}"].map(lambda value: credit.signed(value, 3))
        told.loc[frame["end"] == frame["start"], method] = "no token"
    rows = told.replace("nan", "—").itertuples(index=False)
    return table(header, rows, "This thinking, budget by budget")


def leaves_html(tree: pd.Series, place: int, budget: int) -> str:
    """The summaries at a budget with their scores and the advantages that they were trained on."""
    every = [abs(float(v)) for row in tree["summary_advantages"] for v in row]
    largest = max((v for v in every if v == v), default=0.0)
    of = (tree[column][place] for column in ("scores", "summary_advantages", "summaries"))
    rows = [
        (
            number,
            "abstained" if score != score else f"{score:.2f}",
            Markup('<span style="{}">{}</span>').format(
                tint(value, largest), credit.signed(value, 3)
            ),
            short(summary, SUMMARY),
        )
        for number, (score, value, summary) in enumerate(zip(*of, strict=True))
    ]
    caption = f"Summaries at {budget:,} tokens, with the advantage that this run trained them on"
    return table(["summary", "score", "advantage", "text"], rows, caption, "text")


def plot_credit(frame: pd.DataFrame, methods: Mapping[str, str], title: str = "") -> go.Figure:
    """R, V1, V2, V and the advantages that methods give to the tokens of one thinking.

    Args:
        frame: of credit.credit_frame().
        methods: name → words, of credit.METHOD_WORDS or a run's own.
    """
    figure = make_subplots(rows=2, cols=1, shared_xaxes=True, row_heights=[0.56, 0.44],
                           vertical_spacing=0.08)  # fmt: skip
    advantages = {f"{ADVANTAGE}{name}": words for name, words in methods.items()}
    budgets, trained = frame["budget"].tolist(), frame[frame["end"] > frame["start"]]
    for column, style in run_styles([*LINES, *advantages]).items():
        above = column in LINES
        at = frame[column].where(above | (frame["end"] > frame["start"]))
        riding = [
            None if v != v else [b, v, f"{v:.2f}" if above else credit.signed(v)]
            for b, v in zip(budgets, at, strict=True)
        ]
        if above:
            said = f"{LINES[column]} at %{{x:,d}} tokens: %{{y:.3f}}"
            line = told_line(budgets, frame[column], said, LINES[column], style, riding)
        else:
            words, values = advantages[column], trained[column].tolist()
            said = f"{safe_text(words)} from token %{{x:,d}}: %{{y:+.3f}}"
            solid = column == next(iter(advantages))
            line = told_line(
                [*trained["start"], *trained["end"][-1:]], [*values, *values[-1:]], said,
                f"advantage, {words}", style, riding, mode="lines",
                line={"shape": "hv", "dash": "solid" if solid else "dash", "width": 3},
            )  # fmt: skip
        figure.add_trace(line, row=1 if above else 2, col=1)
    ended, last = int(frame["end"].max()), int(frame["budget"].max())
    if ended < last:
        figure.add_vline(ended, line={"color": QUIET, "width": 1.5, "dash": "dot"})
        between = {"y": 0.445, "yref": "paper", "yanchor": "middle"}  # the panels
        figure.add_annotation(
            x=ended, xanchor="left", text="ended", showarrow=False, font={"size": 12}, **between
        )
    base(figure, 380 + (44 if title else 0), title, margin={"t": 96 if title else 52})
    span = [-0.01 * last, 1.05 * last]
    figure.update_xaxes(range=span, zeroline=False, **budget_ticks(budgets))
    figure.update_xaxes(title="Thinking (tokens)", title_standoff=4, row=2)
    for number, (words, part) in enumerate((("Reward", LINES), ("Advantage", advantages)), start=1):
        span = axis_span(frame[list(part)].assign(zero=0.0), -1e9, 1e9)
        figure.update_yaxes(title=words, range=span, row=number)
    return figure.update_yaxes(zeroline=True, zerolinecolor=QUIET, row=2)


class Credit(View):
    """The trees that training kept: choose one and see what each of its tokens was credited.

    Args:
        runs: output folders of training, a name for each, or one folder that holds them.
        methods: whose advantages stand left and right.
    """

    def __init__(self, runs: Runs, methods: Sequence[str] = ("brpo", "grpo")) -> None:
        super().__init__()
        self.folders, self.complaints = credit.find_rollouts(runs)
        self.rollouts: Rollouts | None = None
        self.tree: pd.Series | None = None
        self.table: pd.DataFrame | None = None
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
        words = [(word, name) for name, word in credit.METHOD_WORDS.items()]
        self.left = described(widgets.Dropdown, "Compare", options=words)
        self.right = described(widgets.Dropdown, "with", options=words)
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
        self._wanted = tuple(methods)
        self._run_chosen()
        for name in self._wanted:
            if name not in self.known:
                raise ValueError(f"methods has {name!r}; choose two of {', '.join(self.known)}.")
        self.on(self.run, self._run_chosen)
        self.on(self.step, self._step_chosen)
        self.on(self.problem, self._problem_chosen)
        self.on(self.thinking, self._thinking_chosen)
        self.on((self.left, self.right), self._show)
        self.on(self.trees, lambda: self._moved(self.trees, self.live), "at")
        self.on(self.live, lambda: self._moved(self.live, self.trees), "at")

    @property
    def methods(self) -> dict[str, str]:
        """Whose advantages are compared: name → words."""
        return {name: self.known[name] for name in (self.left.value, self.right.value)}

    def figure(self) -> go.Figure:
        """The static figure of the thinking that is open.

        Raises:
            ValueError: none is; says why.
        """
        if self.table is None:
            why = " ".join(self.complaints) or "choose a run and a step that can be read."
            raise ValueError(f"No rollout is open. {why}")
        where = f"update {self.rollouts.step}, thinking {self.tree['sample']}"
        title = f"Credit along one thinking: {short(self.run.value, 40)}, {where}"
        return plot_credit(self.table, self.methods, title)

    def _run_chosen(self) -> None:
        steps = rollout_steps(self.folders[self.run.value])
        at = self.step.value if self.step.value in steps else (steps or [0])[-1]
        self.refill(self.step, [(f"{s:,}", s) for s in steps] or [("—", 0)], at)
        self._step_chosen()

    def _step_chosen(self) -> None:
        folder = self.folders[self.run.value]
        said = list(self.complaints)
        try:
            self.rollouts = read_rollouts(folder, self.step.value)
        except Exception as error:  # damaged, foreign, removed by a run that began anew
            self.rollouts = None
            said.append(told_error(folder, error))
        self.say(*said)
        if self.rollouts is None:
            self.refill(self.problem, [], None)
            self.refill(self.thinking, [], None)
            return self._thinking_chosen()
        for control, wanted in ((self.left, self._wanted[0]), (self.right, self._wanted[1])):
            at = control.value if control.value in self.known and self.tree is not None else wanted
            if at in self.known:
                self.refill(control, [(word, name) for name, word in self.known.items()], at)
        problems = list(dict.fromkeys(self.rollouts.frame["problem"].tolist()))
        self.refill(self.problem, [(f"{p} of this update", p) for p in problems], problems[0])
        self._problem_chosen()

    @property
    def known(self) -> dict[str, str]:
        """The baselines that can be compared, in words."""
        return credit.METHOD_WORDS if self.rollouts is None else credit.method_words(self.rollouts)

    @property
    def group(self) -> pd.DataFrame:
        """The thinkings of the chosen problem."""
        frame = self.rollouts.frame
        return frame[frame["problem"] == self.problem.value]

    def _problem_chosen(self) -> None:
        options = []
        for tree in self.group.to_dict("records"):
            scores = " ".join("—" if s != s else f"{s:.2f}" for s in tree["credited"][-8:])
            words = f"{tree['sample']} · {tree['tokens']:,} tokens · scores {scores}"
            options.append((words, tree["sample"]))
        # the thinking whose score moves most along its budgets shows most
        moves = self.group["credited"].map(lambda r: pd.Series(r).max() - pd.Series(r).min())
        best = self.group.loc[moves.astype(float).fillna(0).idxmax(), "sample"]
        self.refill(self.thinking, options, int(best))
        self._thinking_chosen()

    def _thinking_chosen(self) -> None:
        self.tree = self.table = None
        if self.rollouts is not None and self.thinking.value is not None:
            self.tree = self.group[self.group["sample"] == self.thinking.value].iloc[0]
            self.table = credit.credit_frame(self.rollouts, self.tree)
            prompt = region("prompt", [escaped(self.tree["prompt"], PROMPT)])
            self.prompt.show(folded("The prompt, as the model was given it", prompt))
        for part in (self.sentence, *self._opened):
            part.layout.display = "none" if self.tree is None else None
        self._show()

    def _show(self) -> None:
        if self.tree is None:
            return
        end = ENDS.get(self.tree["end"], short(self.tree["end"]))
        told = credit.told_credit(self.table, self.methods)
        self.sentence.show(
            paragraph(f"Problem: {short(credit.question_of(self.tree['prompt']), 400)}"),
            paragraph(
                f"Thinking {self.tree['sample']} of {len(self.group)}: {self.tree['tokens']:,} "
                f"tokens, {end}. The run trained with baseline {self.rollouts.baseline!r}.", "note"
            ),
            paragraph(told),
        )  # fmt: skip
        self.numbers.show(folded("All numbers", numbers_html(self.table, self.methods)))
        stops = [(b, f"{b:,} tokens") for b in self.rollouts.budgets]
        opened, of = self.trees.stop is None, (self.tree[c] for c in ("cuts", "scores"))
        trunks = {words: self.table[f"{ADVANTAGE}{m}"] for m, words in self.methods.items()}
        tree = plot_tree(self.rollouts.budgets, *of, trunks, self.tree["summaries"])
        with self.quiet():
            self.trees.update_from(tree, f"One thinking as a tree. {told}", stops)
            self.live.update_from(plot_credit(self.table, self.methods), told, stops)
            if opened:  # the line stands where the method on the left credits most
                self.trees.at = int(self.table[f"{ADVANTAGE}{self.left.value}"].idxmax())
            self.live.at = self.trees.at
        self._moved(self.trees, self.live)

    def _moved(self, moved: LiveFigure, other: LiveFigure) -> None:
        """The line of one figure was moved: that of the other follows, and the words."""
        if self.tree is None:
            return
        with self.quiet():
            other.at = moved.at
        budget = int(moved.stop)
        self.tokens.show(tokens_html(self.tree, self.table, self.methods, budget))
        self.position.say(credit.told_budget(self.table, budget, self.methods))
        self.leaves.show(leaves_html(self.tree, moved.at, budget))
