"""View: a rollout tree of training, its tokens coloured by their advantage under two methods."""

from __future__ import annotations

from collections.abc import Sequence

import ipywidgets as widgets
import pandas as pd
import plotly.graph_objects as go

from anytime_lab.look.live import LABEL, framed, live_figure, row, style_sheet, text
from anytime_lab.look.style import (
    COLOURS,
    axis_span,
    budget_ticks,
    run_styles,
    safe_text,
    told_figure,
)
from anytime_lab.page import block, escaped, paragraph, region, short, table
from anytime_lab.read.credit import (
    METHOD_WORDS,
    NOTHING,
    credit_frame,
    find_rollouts,
    largest_advantage,
    signed,
    told_budget,
    told_credit,
    told_tokens,
)
from anytime_lab.read.runs import Runs, told_error
from anytime_lab.store.rollouts import Rollouts, read_rollouts, rollout_steps

GAIN, LOSS = "0,114,178", "230,159,0"  # Okabe–Ito blue and orange
DEEPEST = 0.6  # opacity at the end of the scale: text stays readable on it, light and dark
SHOWN = 16_000  # characters of a thinking that are shown in a column
SUMMARY = 300  # characters of a summary


def tint(value: float, largest: float) -> str:
    """The inline style of an advantage: hue and underline by its sign, depth by its size."""
    if value != value or abs(value) < NOTHING or largest <= 0:
        return ""
    depth = DEEPEST * min(abs(value) / largest, 1.0)
    hue, line = (GAIN, "solid") if value > 0 else (LOSS, "dotted")
    return f"background: rgba({hue},{depth:.3f}); border-bottom: 2px {line} rgb({hue})"


def tokens_html(
    thinking: str,
    token_ends: Sequence[int],
    frame: pd.DataFrame,
    method: str,
    largest: float,
    budget: int,
) -> str:
    """The thinking, every stretch between two cuts in the colour of its advantage.

    Args:
        thinking: its text.
        token_ends: (T,) the character before which each token ends.
        frame: of credit_frame().
        method: whose advantages.
        largest: end of the colour scale.
        budget: whose stretch is outlined.
    """
    stretches = frame[frame["end"] > frame["start"]]
    limit = max(SHOWN // max(len(stretches), 1), 200)
    parts = []
    for line in stretches.itertuples():
        first = int(token_ends[line.start - 1]) if line.start else 0
        text = thinking[first : int(token_ends[line.end - 1])]
        value = getattr(line, f"advantage_{method}")
        words = f"{told_tokens(line.start, line.end)}: advantage {signed(value, 3)}"
        here = ' class="here"' if line.budget == budget else ""
        parts.append(
            f'<span style="{tint(value, largest)}" title="{words}"{here}>'
            f"{escaped(text, limit)}</span>"
        )
        told = "" if line.score != line.score else f", score {line.score:.2f}"
        parts.append(
            f'<span class="mark">{line.end:,} tokens{told}, A {escaped(signed(value))}</span>'
        )
    if len(stretches) < len(frame):
        parts.append('<span class="mark">ended: later budgets train no token here</span>')
    title = f"{METHOD_WORDS[method]}: advantage of the thinking's tokens"
    return f"<div><p><b>{escaped(title)}</b></p>{region(title, parts)}</div>"


def legend_html(largest: float) -> str:
    """The colour scale with its numbers."""
    steps = [] if largest < NOTHING else [-1, -0.5, 0, 0.5, 1]
    cells = "".join(
        f'<span style="{tint(k * largest, largest)}; padding: 1px 10px">'
        f"{escaped(signed(k * largest))}</span> "
        for k in steps
    )
    said = "dotted orange: less likely; solid blue: more likely; one scale for the whole group"
    return f"<p>Advantage: {cells or 'all are 0.00'} <span class='note'>({said})</span></p>"


def numbers_html(frame: pd.DataFrame, methods: Sequence[str]) -> str:
    """All numbers of the figure as a table."""
    methods = list(dict.fromkeys(methods))
    header = ["budget", "prior", "score r", "return R", "V1 progress", "V2 group", "V BRPO"]
    header += [f"A {METHOD_WORDS[m]}" for m in methods]
    rows = []
    for line in frame.to_dict("records"):
        ended = line["end"] == line["start"]
        rows.append(
            [
                f"{line['budget']:,}",
                f"{line['prior']:.2f}",
                *(
                    "—" if line[c] != line[c] else f"{line[c]:.3f}"
                    for c in ("score", "return", "progress", "group", "brpo")
                ),
                *("no token" if ended else signed(line[f"advantage_{m}"], 3) for m in methods),
            ]
        )
    return table(header, rows, "This thinking, budget by budget")


def leaves_html(row: pd.Series, place: int, budget: int, largest: float) -> str:
    """The summaries at a budget with their scores and the advantages that they were trained on."""
    scores, advantages = row["scores"][place], row["summary_advantages"][place]
    lines = []
    for number, summary in enumerate(row["summaries"][place]):
        score, value = float(scores[number]), float(advantages[number])
        told = "abstained" if score != score else f"{score:.2f}"
        lines.append(
            f'<tr><th scope="row">{number}</th><td>{told}</td>'
            f'<td><span style="{tint(value, largest)}">{escaped(signed(value, 3))}</span></td>'
            f"<td>{escaped(short(summary, SUMMARY))}</td></tr>"
        )
    head = "".join(f'<th scope="col">{c}</th>' for c in ("summary", "score", "advantage", "text"))
    return (
        f'<div class="wide"><table class="text"><caption>Summaries at {budget:,} tokens, with the '
        f"advantage that this run trained them on</caption><thead><tr>{head}</tr></thead>"
        f"<tbody>{''.join(lines)}</tbody></table></div>"
    )


LINES = {
    "return": "return R",
    "progress": "progress baseline V1",
    "group": "group baseline V2",
    "brpo": "BRPO baseline V",
}
ABOVE, BELOW = (0.5, 1.0), (0.0, 0.38)  # shares of the height


def credit_traces(frame: pd.DataFrame, methods: Sequence[str]) -> list[dict]:
    """Six scatter traces: R, V1, V2 and V at the budgets, and two methods' token advantages."""
    styles = list(run_styles([*LINES, "left", "right"]).values())
    traces = []
    for (column, name), style in zip(LINES.items(), styles, strict=False):
        traces.append(
            {
                "type": "scatter",
                "x": frame["budget"].tolist(),
                "y": frame[column].tolist(),
                "mode": "lines+markers",
                "name": name,
                "line": {"color": style.colour, "dash": style.dash, "width": 2.2},
                "marker": {"symbol": style.marker, "size": 8},
                "hovertemplate": f"{name} at %{{x:,d}} tokens: %{{y:.3f}}<extra></extra>",
            }
        )
    trained = frame[frame["end"] > frame["start"]]
    for method, colour, dash in zip(
        methods, (COLOURS[0], COLOURS[4]), ("solid", "dash"), strict=True
    ):
        values = trained[f"advantage_{method}"].tolist()
        name = safe_text(METHOD_WORDS[method])
        traces.append(
            {
                "type": "scatter",
                "x": [*trained["start"].tolist(), *trained["end"].tolist()[-1:]],
                "y": [*values, *values[-1:]],
                "yaxis": "y2",
                "mode": "lines",
                "name": f"advantage, {name}",
                "line": {"color": colour, "dash": dash, "width": 3, "shape": "hv"},
                "hovertemplate": f"{name} from token %{{x:,d}}: %{{y:+.3f}}<extra></extra>",
            }
        )
    return traces


def credit_axes(frame: pd.DataFrame, methods: Sequence[str]) -> dict:
    """Layout of the axes for a thinking."""
    columns = [f"advantage_{m}" for m in methods]
    low, high = axis_span(frame[columns].assign(zero=0.0), -1e9, 1e9)
    top = axis_span(frame[list(LINES)].assign(zero=0.0), -1e9, 1e9)
    last = int(frame["budget"].max())
    return {
        "xaxis": {
            "title": {"text": "Thinking tokens, and budgets"},
            "range": [-0.02 * last, 1.02 * last],
            "anchor": "y2",
            **budget_ticks(frame["budget"]),
        },
        "yaxis": {"title": {"text": "Reward"}, "domain": ABOVE, "range": top},
        "yaxis2": {
            "title": {"text": "Advantage"},
            "domain": BELOW,
            "range": [low, high],
            "zeroline": True,
            "zerolinecolor": "#888",
        },
    }


def end_mark(frame: pd.DataFrame) -> dict:
    """A line where the thinking ended."""
    end = int(frame["end"].max())
    line = {"color": "#888", "width": 1.5, "dash": "dot"}
    place = {"xref": "x", "yref": "paper", "x0": end, "x1": end, "y0": 0, "y1": 1}
    return {"type": "line", "line": line, **place}


def plot_credit(
    frame: pd.DataFrame, methods: Sequence[str], title: str, template: str = "plotly_white"
) -> go.Figure:
    """R, V1, V2, V and the advantages that two methods give to the tokens of one thinking.

    Args:
        frame: of credit_frame().
        methods: two of METHOD_WORDS.
    """
    figure = go.Figure(credit_traces(frame, methods))
    figure.add_shape(**end_mark(frame))
    figure.update_layout(
        template=template,
        title={"text": safe_text(title), "x": 0, "xref": "paper", "xanchor": "left"},
        height=520,
        margin={"l": 64, "r": 24, "t": 116, "b": 56},
        font={"size": 13},
        hovermode="closest",
        modebar={"remove": ["sendChartToCloud", "lasso2d", "select2d"]},
        legend={"orientation": "h", "x": 0, "xanchor": "left", "y": 1.02, "yanchor": "bottom"},
        **credit_axes(frame, methods),
    )
    return figure


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
