"""View: accuracy by thinking budget of several runs, read at a budget and under a prior."""

from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path

import anywidget
import ipywidgets as widgets
import numpy as np
import pandas as pd
import plotly.graph_objects as go
import traitlets

from anytime_lab.look.figures import MANY, OVER, plot_curves, prior_trace
from anytime_lab.look.live import (
    LiveFigure,
    Text,
    beside,
    button,
    chooser,
    described,
    esm,
    row,
    ticked,
)
from anytime_lab.look.problem_view import InsideProblem
from anytime_lab.look.style import run_styles
from anytime_lab.look.view import RunsView, View
from anytime_lab.page import plain, short, table
from anytime_lab.priors import PRIORS, Prior
from anytime_lab.read import told
from anytime_lab.read.curves import ProblemTable, difference_table
from anytime_lab.read.runs import Runs, find_evaluations

NO_BENCHMARK = "none"
HEIGHT = 520
HAND, GEOMETRIC = "by hand", "geometric"
KINDS = {name: words for name, (words, _) in PRIORS.items()}
KINDS[HAND] = "drawn over the bars, or set below"


class RunList(anywidget.AnyWidget):
    """Legend and table of runs in one; ticked and reference are what the reader chose."""

    _esm = esm("run_list.js")
    ticked = traitlets.List(traitlets.Unicode()).tag(sync=True)
    reference = traitlets.Unicode().tag(sync=True)
    over = traitlets.Unicode().tag(sync=True)  # the label of the run that is pointed at
    # lines of name, label, colour, dash, glyph, shown and four texts; and what stands above them
    _rows = traitlets.List().tag(sync=True)
    _head = traitlets.List().tag(sync=True)


class PriorEditor(View):
    """Controls for a prior over budgets; observe `prior`, which is None without budgets.

    The bars are drawn elsewhere: `draw` takes what was drawn over them by hand, and `stand_at`
    chooses the budget whose weight the slider sets.
    """

    prior = traitlets.Instance(Prior, allow_none=True)

    def __init__(self, budgets: Sequence[int]) -> None:
        super().__init__(style=False)
        self._place = 0  # of the budget whose weight the slider sets
        kinds = [(f"{name}: {words}", name) for name, words in KINDS.items()]
        self.kind = described(widgets.Dropdown, "Prior", "100%", options=kinds, value="uniform")
        self.ratio = described(
            widgets.FloatLogSlider, "Ratio", value=0.8, base=2, min=-2, max=2, step=0.05
        )
        self.weight = described(
            widgets.FloatSlider, "Weight here", "100%", value=1, min=0, max=1, step=0.01
        )
        self.children = [self.kind, self.ratio, self.weight, self.notes]
        self.on((self.kind, self.ratio), self._changed)
        self.on(self.weight, self._weight_set)
        self.set_budgets(budgets)

    def set_budgets(self, budgets: Sequence[int]) -> None:
        """Takes other budgets; weights drawn by hand are kept by their place in the grid."""
        self.budgets = tuple(budgets)
        self._changed()

    def stand_at(self, budget: float | None) -> None:
        """Has the slider set the weight of this budget."""
        if budget in self.budgets:
            self._place = self.budgets.index(budget)
        if self.prior is not None:
            self._place = min(self._place, len(self.budgets) - 1)
            with self.quiet():
                self.weight.description = f"Weight of {self.budgets[self._place]:,}"
                self.weight.value = round(self._heights[self._place], 2)

    def draw(self, weights: Sequence[float]) -> None:
        """Takes bars drawn by hand, one height for each budget, as relative weights."""
        heights = np.maximum(np.asarray(weights, dtype=float), 0.0)
        if not self.prior or len(heights) != len(self.budgets) or not np.isfinite(heights).all():
            return
        if not heights.any():
            return self.say("At least one weight must be above 0; the prior is left as it was.")
        with self.quiet():
            self.kind.value = HAND
        self.prior = Prior(self.budgets, heights / heights.sum())
        self._changed()

    @property
    def _heights(self) -> np.ndarray:
        """The weights as they are shown, the greatest 1."""
        return np.asarray(self.prior.weights) / max(self.prior.weights)

    def _weight_set(self) -> None:
        if self.prior is not None:
            heights = self._heights
            heights[self._place] = self.weight.value
            self.draw(heights)

    def _changed(self) -> None:
        kind = self.kind.value
        for control in (self.kind, self.ratio, self.weight):
            control.disabled = not self.budgets
        self.ratio.layout.display = None if kind == GEOMETRIC else "none"
        self.weight.layout.display = None if kind == HAND else "none"
        said = "Draw over the bars below the curves to set it by hand."
        if not self.budgets:
            said = "No budget is common to the runs shown, so there is no prior to set."
            self.prior = None
        elif kind != HAND:
            self.prior = PRIORS[kind][1](self.budgets, self.ratio.value)
        elif self.prior is None or self.prior.budgets != self.budgets:  # goes on from what is shown
            shown = self.prior.weights if self.prior else [1.0]
            places, before = (np.linspace(0, 1, len(of)) for of in (self.budgets, shown))
            kept = np.interp(places, before, shown)
            kept = kept if kept.any() else np.ones(len(kept))
            self.prior = Prior(self.budgets, kept / kept.sum())
        self.say(said, kind="note")
        self.stand_at(None)


class BudgetCurves(RunsView):
    """Budget curves of evaluated runs: a line to move along the budgets, a prior to draw.

    Args:
        runs: run folders of evaluations, a mapping from a name to its folder, or one folder that
            holds them.
        reference: the run that the others are compared with; the first if None.
        equal_time: evaluations after equal training time, the reference among them, for the
            headline.

    Attributes:
        shown: The tables of the runs that are chosen and could be read, by name.
        pairs: The paired differences of the others to the reference; None where they share nothing.
    """

    name = "budget-curves"

    def __init__(
        self,
        runs: Runs,
        reference: str | None = None,
        equal_time: Mapping[str, str | Path] | None = None,
    ) -> None:
        super().__init__(runs)
        self._wanted, self._equal_time = reference, dict(equal_time or {})
        self._difference = cache(difference_table)
        self.shown: dict[str, ProblemTable] = {}
        self.pairs: dict[str, ProblemTable | None] = {}
        if not self.names:
            return
        self.live = LiveFigure()
        self.runs, self.prior, self.published_table = RunList(), PriorEditor([]), Text()
        self.story, self.score, self.reach = (Text(live=True) for _ in range(3))
        self.axes = Text()  # what the curves cannot be drawn over, and why
        self.dataset = chooser("Dataset", self.datasets)
        self.common = described(widgets.Dropdown, "Score over", "100%", options=[("", "")])
        self.over = described(widgets.Dropdown, "Drawn over", "36em", options=list(OVER))
        self.log_axis = ticked("Logarithmic axis")
        self.level = described(
            widgets.FloatSlider, "Tokens to accuracy", "28em",
            value=0.5, min=0, max=1, step=0.01, readout_format=".0%",
        )  # fmt: skip
        self.published = chooser("Published values (BRPO)", [NO_BENCHMARK, *told.BENCHMARKS])
        self.again = button("Read the folders again", self._read_again)
        self.back = button("Back to the runs", self._look_at_runs, icon="arrow-left")
        self.inside = button(
            "Problems behind the line",
            lambda: self._look_inside(self._other()),
            "What the runs answered there; a click on a point of a curve does the same",
        )
        self.more = widgets.ToggleButton(description="More", icon="ellipsis-h")
        more = widgets.VBox(
            [
                row(self.over, self.log_axis, self.published, self.again),
                self.axes,
                self.published_table,
                row(self.level, self.reach),
                self.exporter(),
            ]
        )
        opened = {True: "", False: "none"}
        widgets.dlink((self.more, "value"), (more.layout, "display"), opened.get)
        self.aside = widgets.VBox()
        self._look_at_runs()
        self.compose(self.story, beside([self.live], self.aside, 2), self.more, more)
        self._dataset_chosen()
        self.on(self.dataset, self._dataset_chosen)
        self.on(self.runs, self._draw, "ticked")
        self.on(self.runs, self._reference_chosen, "reference")
        self.on([self.common, self.log_axis, self.over, self.published], self._draw)
        self.on(self.prior, self._prior_chosen, "prior")
        self.on(self.live, self._line_moved, "at")
        self.on(self.level, self._read_reach)
        self.live.hear("click", self._point_clicked)
        self.live.hear("painted", self._painted)
        widgets.jslink((self.runs, "over"), (self.live, "over"))

    def frame(self) -> pd.DataFrame:
        """The tidy table of what is shown: accuracy by budget and the paired difference."""
        frame = told.tidy_curves(self.shown, self.pairs)
        found = [self.names[name] for name in frame["run"]]
        frame["seconds"] = frame["spent"] * pd.Series([e.pace for e in found], dtype=float)
        sizes = pd.Series([e.parameters for e in found], dtype=float)
        frame["flops"] = 2.0 * frame["spent"] * sizes
        frame.insert(1, "dataset", self.dataset.value)
        frame.insert(2, "step", [e.step for e in found])
        return frame.assign(reference=self.runs.reference)

    def figure(self) -> go.Figure:
        """The static figure of what is shown."""
        if not self.shown:
            raise ValueError("no run is shown; choose at least one.")
        published = self.published.value
        ends = [self.tables.endings[self.names[name].path].assign(run=name) for name in self.shown]
        frame = self.frame().merge(pd.concat(ends), on=["run", "budget"], how="left")
        return plot_curves(
            frame.assign(told=[_told_ending(line) for line in frame.to_dict("records")]),
            self._here,
            over=self.over.value,
            reference=self.runs.reference,
            prior=self.prior.prior,
            published=None if published == NO_BENCHMARK else told.published_table(published),
            log=self.log_axis.value,
            height=HEIGHT,
        )

    def _apart(self, tables: Mapping[str, ProblemTable]) -> dict[str, ProblemTable | None]:
        """The differences of tables to that of the reference, each worked out once."""
        base = tables.get(self.runs.reference)
        others = {name: table for name, table in tables.items() if table is not base}
        return {name: base and self._difference(table, base) for name, table in others.items()}

    def _dataset_chosen(self) -> None:
        self._here = [n for n, found in self.names.items() if found.dataset == self.dataset.value]
        by_step = sorted(self._here, key=lambda name: self.names[name].step or 0)
        last = {self.names[name].run: name for name in by_step}.values()
        kept = [n for n in self._here if n in self.runs.ticked]
        with self.quiet():
            self.runs.ticked = kept or [n for n in self._here if n in last][:MANY]
        self._draw()

    def _reference_chosen(self) -> None:
        if self.runs.reference not in self.shown:  # compared with, so shown
            with self.quiet():
                self.runs.ticked = [*self.runs.ticked, self.runs.reference]
        self._draw()

    def _read_again(self) -> None:
        """Looks at the folders anew: runs that were written further, and new ones."""
        self.find()
        self._difference.cache_clear()
        if self.dataset.value in self.datasets:
            self.refill(self.common, [])  # chosen anew
            self._dataset_chosen()

    def _draw(self) -> None:
        """Reads the runs that are chosen, and shows them as the controls say."""
        here, before = self._here, self.runs.reference or self._wanted
        chosen = [name for name in here if name in self.runs.ticked]
        self.shown = shown = self.read({name: self.names[name] for name in chosen})
        matching = [name for name in shown if before in (name, self.names[name].run)]
        with self.quiet():
            self.runs.reference = (matching or [*shown, ""])[0]
        self.pairs = self._apart(shown)
        self._tell_notes(chosen)
        frame = self.frame()
        untold = {c: frame.loc[frame[c].isna(), "run"].unique().tolist() for c in OVER}
        self.refill(self.over, [(OVER[c], c) for c in OVER if not untold[c]], self.over.value)
        missing = [
            f"No axis of {column}: not told by "
            f"{'any run' if len(names) == len(shown) else ', '.join(names)}."
            for column, names in untold.items()
            if names
        ]
        self.axes.say(*missing, kind="note")
        with self.quiet():
            over = [shown[self.common.value]] if self.common.value in shown else [*shown.values()]
            self.prior.set_budgets(told.common_budgets(over))
        # each budget stands at what the runs spent of it, on their average
        self._places = frame.groupby("budget")[self.over.value].mean()
        stops = [(x, f"{budget:,} tokens") for budget, x in self._places.items()]
        self.live.update_from(self.picture(), stops=stops)
        self._tell_story()
        self._draw_published()
        self._line_moved()
        self._read_reach()

    def _tell_notes(self, chosen: list[str]) -> None:
        """What is to be known of the runs chosen; and the budgets that their score may be over."""
        here, shown = self._here, self.shown
        known = {asked for name in here for asked in (name, self.names[name].run)}
        common = told.common_budgets(list(shown.values()))
        grids = {name: _listed(table.budgets) for name, table in shown.items()}
        different = len({table.budgets for table in shown.values()}) > 1
        said = self.wrong(chosen)
        if not chosen:
            said.append("No run is chosen; tick one or more in the list.")
        if self._wanted and self._wanted not in known:
            said.append(f"The reference {self._wanted!r} is not one of the runs; another is used.")
        if different:
            at = "; ".join(f"{name} at {budgets}" for name, budgets in grids.items())
            said.append(f"The runs were measured at different budgets: {at}.")
            said[-1] += f" They share {_listed(common) or 'none'}."
        if len(chosen) < len(here):
            said.append(f"{len(chosen)} of {len(here)} runs are shown; tick others in the list.")
        if len(shown) > MANY:
            said.append(
                f"Bands of more than {MANY} runs hide each other: point at a run for its own."
            )
        self.say(*said)
        options = [(f"{len(common)} budgets all share: {_listed(common)}", "")] if common else []
        options += [(f"those of {short(n, 24)}: {budgets}", n) for n, budgets in grids.items()]
        if options != [*self.common.options]:
            self.refill(self.common, options)
        self.common.layout.display = None if different else "none"

    def _prior_chosen(self) -> None:
        """Draws the bars anew, and no more: a slider may ask for it at each step."""
        figure, prior = self.live.figure, self.prior.prior
        bars = next(figure.select_traces({"name": "prior"}), None)
        if bars is None or prior is None:
            return self._draw()
        bars.update(prior_trace(prior, self._places))
        figure.layout.yaxis3.range = [0, 1.25 * max(prior.weights)]
        self.live.update_from(figure)
        self._tell_story()
        self._read()

    def _painted(self, heights: list[float]) -> None:
        drawn = dict(zip(self._places.index, heights, strict=False))
        self.prior.draw([drawn.get(budget, 0.0) for budget in self.prior.budgets])

    @property
    def budget(self) -> int:
        """The budget at which the line stands; 0 where no run is shown."""
        budgets = self._places.index.tolist()
        return budgets[min(self.live.at, len(budgets) - 1)] if budgets else 0

    def _tell_story(self) -> None:
        """Puts the result in one sentence above the figure."""
        if not self.shown:
            return self.story.show()
        prior = self.prior.prior
        story = told.told_story(self.shown, self.pairs, self.runs.reference, prior)
        found, _ = find_evaluations(self._equal_time)
        timed = self.read({e.name: e for e in found if e.dataset == self.dataset.value})
        said = ", ".join(
            f"{name} {told.told_points(*told.under_prior(lead, prior)[:3])}"
            for name, lead in self._apart(timed).items()
            if lead and prior
        )
        story += f"; at equal training time {said}" if said else ""
        self.story.say(story, kind="story")
        self.live.label = f"Accuracy by thinking budget. {story}"

    def _draw_published(self) -> None:
        benchmark = self.published.value
        if benchmark == NO_BENCHMARK:
            return self.published_table.show()
        note = (
            f"{told.SOURCE}: its tables' final accuracy (a mark at 8,000 tokens) and anytime "
            "accuracy (a dotted line; the mean over 32 budgets to there). Without intervals; it "
            "gives the curves themselves as pictures only. "
        )
        if told.DATASETS.get(self.dataset.value) != benchmark:
            note += f"The runs shown are on {self.dataset.value}, not {benchmark}."
        percent = [
            (r.run, f"{100 * r.final:.1f} %", f"{100 * r.anytime:.1f} %")
            for r in told.published_table(benchmark).itertuples()
        ]
        header = ["published run", f"final, {benchmark}", "anytime"]
        self.published_table.show(table(header, percent, note))

    def _line_moved(self) -> None:
        self.prior.stand_at(self.budget)
        self._read()
        if isinstance(self.aside.children[-1], InsideProblem):
            self.aside.children[-1].live.move_to(self.budget)

    def _read(self) -> None:
        """The numbers where the line stands, and those under the prior."""
        reference, shown, pairs = self.runs.reference, self.shown, self.pairs
        rows, scores, there = [], [], Prior.base([self.budget or 1])
        for name, style in run_styles(self._here).items():
            run, pair = shown.get(name), pairs.get(name)
            here, apart = (told.under_prior(t, there) for t in (run, pair))
            line = {"colour": style.colour, "dash": style.dash, "glyph": style.glyph}
            cells = {"here": (here, told.told_percent), "difference": (apart, told.told_points)}
            for column, (estimate, words) in cells.items():  # an interval stands below its value
                line[column], _, line[f"{column}_bounds"] = words(*estimate[:3]).partition(" ")
            if run:
                score, lead = (told.under_prior(t, self.prior.prior) for t in (run, pair))
                against = told.told_difference(lead) if pair else "nothing in common"
                if not here.n_problems:
                    line["here"] = "not measured"
                if name == reference:
                    against = line["difference"] = "reference"
                scores.append((name, told.told_percent(*score[:3]), against))
            rows.append({"name": name, "label": plain(name), "shown": bool(run), **line})
        with self.runs.hold_sync():
            head = ["", "", "run", f"at {self.budget:,} tokens", "difference", "ref."]
            self.runs._head, self.runs._rows = head, rows
        header = ["anytime score, under the prior", "", f"to {short(reference, 24)}"]
        self.score.show(*([table(header, scores, kind="score")] if scores else []))

    def _read_reach(self) -> None:
        level = self.level.value
        said = [f"{n}: {told.told_reach(table, level)}" for n, table in self.shown.items()]
        self.reach.say(f"To {level:.0%}: {'; '.join(said)}.")

    def _other(self) -> str:
        """The run whose problems are of most interest: the furthest above the reference here."""
        there = Prior.base([self.budget or 1])
        leads = {n: told.under_prior(pair, there).value for n, pair in self.pairs.items()}
        return max(
            leads, key=lambda n: (leads[n] == leads[n], leads[n]), default=self.runs.reference
        )

    def _point_clicked(self, point: list) -> None:
        groups = {t.name: t.meta.get("name") for t in self.live.figure.data if t.meta}
        self._look_inside(next((n for n in self.shown if plain(n) == groups.get(point[0])), ""))

    def _look_at_runs(self) -> None:
        several = [self.dataset] if len(self.datasets) > 1 else []
        runs = [*several, self.runs, self.inside, self.common, self.prior, self.score]
        self.aside.children = runs

    def _look_inside(self, name: str) -> None:
        """Problems in place of the runs: those that this run and the reference answer unlike."""
        if name not in self.names:
            return
        other = self.runs.reference if self.runs.reference != name else self._other()
        pair = {n: self.names[n].path for n in dict.fromkeys([name, other])}
        view = InsideProblem(pair, self.budget, beside=True)
        self.aside.children = [self.back, view]


def _listed(budgets) -> str:
    """Budgets in words; of many the first and last."""
    budgets = list(budgets)
    if len(budgets) > 6:
        return f"{budgets[0]:,}, {budgets[1]:,} … {budgets[-1]:,}"
    return ", ".join(f"{b:,}" for b in budgets)


def _told_ending(line: dict) -> str:
    """What was cut at a point of a curve, and what its unanswered summaries leave open."""
    if pd.isna(line["cut"]):
        return ""
    said = f"{line['cut']:.0%} of thinkings cut, {1 - line['cut']:.0%} finished"
    if line["unanswered"] > 0:
        most = min(line["accuracy"] + line["unanswered"], 1.0)
        said += (
            f"; {line['unanswered']:.0%} of summaries without an answer, so accuracy is up to "
            f"{most:.0%} if they were right"
        )
    return said
