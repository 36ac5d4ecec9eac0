"""View: training runs as they go, or as they went, from what they write."""

import threading
import time
from collections.abc import Mapping

import ipywidgets as widgets
import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from anytime_lab.look.figures import told_line
from anytime_lab.look.live import LiveFigure, Text, chooser, described, row
from anytime_lab.look.style import (
    QUIET,
    axis_span,
    base,
    budget_ticks,
    faded,
    run_styles,
    safe_text,
    short_text,
)
from anytime_lab.look.view import View
from anytime_lab.page import short, table
from anytime_lab.read.runs import Runs
from anytime_lab.read.training import (
    BASELINE_NAMES,
    find_training,
    score_frame,
    told_compared,
    told_runs,
    told_variance,
    training_frame,
    variance_frame,
)

MOST = 500  # points of a line, about its pixels; more are thinned evenly, the last always drawn
BUDGETS = 7  # whose score is followed over the updates: as many as there are colours
MEASURES = {"corr": "corr(V, R)", "ratio": "Var[R−V] / Var[R]"}
ROW, GAP = 210, 110  # pixels of a row of panels, and between two: axis title, legend, title
NO_STEP = "No run has an update yet; wait for the first one."


def thinned(count: int) -> np.ndarray:
    """Which of `count` points are drawn."""
    step = -(-count // MOST)
    return np.arange(count - 1, -1, -step)[::-1]


def plot_training(
    training: pd.DataFrame,
    runs: list[str] | None = None,
    over: str = "step",
    scores: Mapping[str, pd.DataFrame] | None = None,
    detail: str = "",
    variance: pd.DataFrame | None = None,
) -> go.Figure:
    """The paper's three panels; below them, where given, scores by budget, and the variance figure.

    Args:
        training: the frame of training_frame(): the value is drawn faint, its running mean strong.
        runs: all runs of the study in order, which gives their colours; those in `training` if
            None.
        over: the column on the x axis, "step" or "seconds".
        scores: run → frame of score_frame().
        detail: the run whose scores are followed over its updates, and whose variance is given.
        variance: the frame of variance_frame().
    """
    styles = run_styles(runs or list(dict.fromkeys(training["run"])))
    panels = list(dict.fromkeys(training["measure"]))
    titles = [[m.capitalize() + ("" if "accuracy" in m else " (tokens)") for m in panels]]
    if scores:
        named = f"Scores of {short_text(detail, 24)}"
        titles.append(["Score by budget, latest mean", named])
    if variance is not None and len(variance):
        titles.append(list(MEASURES.values()))
    plotted = len(titles) * (ROW + GAP) - GAP
    figure = make_subplots(
        rows=len(titles),
        cols=6,
        specs=[[{"colspan": 6 // len(t)} if i % (6 // len(t)) == 0 else None for i in range(6)]
               for t in titles],
        subplot_titles=[title for row in titles for title in row],
        horizontal_spacing=0.045,
        vertical_spacing=GAP / plotted if len(titles) > 1 else 0,
    )  # fmt: skip
    base(figure, plotted + 76 + 56, margin={"t": 76})
    for number in range(len(titles)):
        legend = {"orientation": "h", "x": 0, "yanchor": "bottom"}
        legend["y"] = 1 - (number * (ROW + GAP) - 24) / plotted
        if number == 1:  # of the right panel: the left one has the runs
            legend |= {"x": 1, "xanchor": "right"}
        figure.update_layout({f"legend{number + 1 if number else ''}": legend})
    for place, measure in enumerate(panels):
        part = training[training["measure"] == measure]
        _add_measure(figure, part, styles, over, {"row": 1, "col": 1 + place * (6 // len(panels))})
    if scores:
        _add_scores(figure, scores, styles, detail)
    if len(titles) == 3:
        _add_variance(figure, variance)
    return figure.update_xaxes(title_standoff=4, zeroline=False)


def _line(part: pd.DataFrame, x: str, y: str, said: str, name: str, style, **more) -> dict:
    part = part.iloc[thinned(len(part))]
    mode = "lines" if len(part) > 1 else "markers"  # a line of one point is not seen
    line = told_line([], [], said, name, style, **{"mode": mode, **more})
    return {**line, "x": part[x].to_numpy(), "y": part[y].to_numpy()}  # arrays are sent faster


def _add_measure(figure, training: pd.DataFrame, styles, over: str, where: dict) -> None:
    share = "accuracy" in training["measure"].iloc[0]
    unit = "%{y:.1%}" if share else "%{y:.1f} tokens"
    for run, part in training.groupby("run", sort=False):
        part, style = part.sort_values(over), styles[run]
        first = not any(trace.legendgroup == safe_text(run) for trace in figure.data)
        faint = {"color": faded(style.colour, 0.4), "width": 1, "dash": "solid"}
        more = {"legendgroup": safe_text(run), "showlegend": False}
        each = _line(part, over, "value", "", f"{run}, each step", style, line=faint, **more)
        mean = _line(part, over, "smooth", f"{short_text(run)}: {unit}", run, style)
        figure.add_trace({**each, "hoverinfo": "skip", "hovertemplate": None}, **where)
        figure.add_trace({**mean, "showlegend": first}, **where)
    figure.update_xaxes(title="Update" if over == "step" else "Seconds of training", **where)
    values = training[["value", "smooth"]]
    if share and values.notna().any(axis=None):
        figure.update_yaxes(tickformat=".0%", range=axis_span(values, 0.0, 1.0), **where)


def _add_scores(figure, scores: Mapping[str, pd.DataFrame], styles, detail: str) -> None:
    left, right = {"row": 2, "col": 1}, {"row": 2, "col": 4}
    for run, frame in scores.items():
        last = frame.groupby("budget", as_index=False).last()
        said, more = f"{short_text(run)} at %{{x:,d}} tokens: %{{y:.1%}}", {"showlegend": False}
        line = told_line(last["budget"], last["smooth"], said, run, styles[run], **more)
        figure.add_trace(line, **left)
    every = sorted({b for frame in scores.values() for b in frame["budget"]})
    figure.update_xaxes(title="Thinking budget (tokens)", **budget_ticks(every, 8), **left)
    mine = scores.get(detail)
    budgets = [] if mine is None else sorted(set(mine["budget"]))
    chosen = np.unique(np.linspace(0, len(budgets) - 1, BUDGETS).round()) if budgets else []
    for budget, style in run_styles([budgets[int(i)] for i in chosen]).items():
        part, name = mine[mine["budget"] == budget], f"{budget:,} tokens"
        line = _line(part, "step", "smooth", f"{name}: %{{y:.1%}}", name, style, legend="legend2")
        figure.add_trace(line, **right)
    figure.update_xaxes(title="Update", **right)
    figure.update_yaxes(tickformat=".0%", row=2)


def _add_variance(figure, variance: pd.DataFrame) -> None:
    styles = run_styles(list(dict.fromkeys(variance["baseline"])))
    for (baseline, measure), part in variance.groupby(["baseline", "measure"], sort=False):
        column, name = 1 + 3 * list(MEASURES).index(measure), BASELINE_NAMES.get(baseline, baseline)
        part, said = (
            part.sort_values("budget"),
            f"{safe_text(name)} at %{{x:,d}} tokens: %{{y:.2f}}",
        )
        more = {"legend": "legend3", "showlegend": column == 1}
        line = told_line(part["budget"], part["value"], said, name, styles[baseline], **more)
        figure.add_trace(line, row=3, col=column)
    ticks = budget_ticks(variance["budget"], 8)
    figure.update_xaxes(title="Thinking budget (tokens)", **ticks, row=3)
    figure.update_yaxes(rangemode="tozero", row=3, col=4)
    one = {"line": {"color": QUIET, "width": 1.5}, "layer": "below"}
    note = {"annotation_text": "no baseline", "annotation_position": "top right"}
    figure.add_hline(1, row=3, col=4, **one, **note)


class Training(View):
    """The paper's three panels, scores by budget and the variance figure, of several runs.

    While a run is unfinished, a thread looks at the files every `seconds` and updates the figure
    in place; it reads files only, so a training cell that runs in the same kernel goes on.

    Args:
        runs: output folders of training, a name for each, or one folder that holds them. A folder
            need not exist yet.
        window: updates that a strong line averages; the variance takes medians of five times as
            many.
        seconds: between two looks.
        follow: whether to follow. None: if a run is unfinished. True: also wait for one that is
            about to begin, where the folder is empty or holds an earlier run.
    """

    def __init__(
        self, runs: Runs, window: int = 10, seconds: float = 2.0, follow: bool | None = None
    ) -> None:
        super().__init__()
        if window < 1 or seconds <= 0:
            raise ValueError(
                f"window={window} and seconds={seconds}; expected 1 update or more, and a time "
                "above 0."
            )
        self.tails = find_training(runs)
        self.seconds, self._waits, self._made = seconds, bool(follow), time.time()
        self._lock, self._stop = threading.RLock(), threading.Event()
        self._thread: threading.Thread | None = None
        self._training: pd.DataFrame | None = None  # what is drawn
        self._variance: pd.DataFrame | None = None
        self._frames: dict[str, pd.DataFrame] = {}  # metrics of the runs that have a step
        if not self.tails:
            self.say("No run folders were given.")
            return
        names = [(short(name), name) for name in self.tails]
        self.follow = widgets.ToggleButton(
            description="Follow", icon="refresh", tooltip="Look at the files again and again"
        )
        axes = [("updates", "step"), ("seconds", "seconds")]
        self.over = described(widgets.Dropdown, "Over", "11em", options=axes)
        self.window = described(
            widgets.BoundedIntText, "Mean of updates", "12em", value=window, min=1, max=10_000
        )
        self.runs = described(
            widgets.SelectMultiple, "Runs", "22em", options=names, value=list(self.tails),
            rows=min(len(names), 4),
        )  # fmt: skip
        self.detail = chooser("Run in detail", self.tails, "20em")
        self.state, self.variance, self.live = Text(), Text(), LiveFigure()
        self.compose(
            row(self.follow, self.over, self.window, self.runs, self.detail),
            self.state,
            self.live,
            self.variance,
        )
        self.on((self.over, self.window, self.runs, self.detail), self._draw)
        self.refresh()
        self.follow.observe(self._follow_pressed, "value")
        self.follow.value = bool(self.unfinished()) if follow is None else follow

    def figure(self) -> go.Figure:
        """All panels of the chosen runs.

        Raises:
            ValueError: none of them has a step yet.
        """
        if self._training is None:
            raise ValueError(
                "None of the chosen runs has an update yet." if self._frames else NO_STEP
            )
        over, detail, window = self.over.value, self.detail.value, self.window.value
        scores = {name: score_frame(frame, window) for name, frame in self._shown().items()}
        names = list(self.tails)
        return plot_training(self._training, names, over, scores, detail, self._variance)

    def _shown(self) -> dict[str, pd.DataFrame]:
        return {name: self._frames[name] for name in self.runs.value if name in self._frames}

    def unfinished(self) -> list[str]:
        """The runs of which more is to come, as far as they say."""
        return [
            name
            for name, tail in self.tails.items()
            if not tail.progress.ended or (self._waits and tail.progress.updated <= self._made)
        ]

    def _follow_pressed(self, change) -> None:
        if change["new"]:
            self._stop = threading.Event()
            self._thread = threading.Thread(
                target=self._watch, args=(self._stop,), name="training view", daemon=False
            )
            self._thread.start()
        else:
            self._stop.set()

    def _watch(self, stop: threading.Event) -> None:
        """Refresh until all runs are finished, Follow is off, or the view is closed.

        The thread is no daemon, which would be torn out of native code when the interpreter ends:
        it looks by itself whether that is about to happen.
        """
        due = time.monotonic() + self.seconds
        while threading.main_thread().is_alive():
            if stop.wait(min(max(due - time.monotonic(), 0.0), 0.25)):
                return
            if time.monotonic() >= due:
                self.refresh()
                if not self.unfinished():
                    self.follow.value = False
                    return
                due = time.monotonic() + self.seconds

    def close(self) -> None:
        """Stop following, and go."""
        self._stop.set()
        super().close()

    def refresh(self) -> None:
        """Read what the runs have added and update the figure; does not raise."""
        with self._lock:
            try:
                changed = [name for name, tail in self.tails.items() if tail.read()]
                for name in changed:
                    self._frames.pop(name, None)
                    if self.tails[name].rows:
                        self._frames[name] = self.tails[name].frame()
                self._draw() if changed else self._tell()  # a run that is silent is told to be
            except Exception as error:  # a thread's traceback would land in the training cell
                self.say(f"The figures could not be updated ({type(error).__name__}: {error}).")

    def _draw(self) -> None:
        with self._lock:
            shown = self._shown()
            self.live.layout.display = None if shown else "none"  # no axes without a line
            self._training = training_frame(shown, self.window.value) if shown else None
            metrics, last, said = self._frames.get(self.detail.value), 5 * self.window.value, []
            self._variance = None if metrics is None else variance_frame(metrics, last)
            if shown:
                self.live.update_from(self.figure())
            if self._variance is not None:
                said = [f"Medians of the last {last} updates."] if len(self._variance) else []
                said += told_variance(self._variance)
            self.variance.say(" ".join(said), kind="note")
            self._tell()

    def _tell(self) -> None:
        said = [tail.complaint for tail in self.tails.values() if tail.complaint]
        shown = self._shown()
        longest = max(map(len, shown.values()), default=0)
        if longest > MOST:
            said.append(f"Lines show {len(thinned(longest)):,} of {longest:,} updates, evenly.")
        self.say(*said, *filter(None, [told_compared(shown) if shown else NO_STEP]))
        rows = told_runs(self.tails, self._training, time.time())
        told = "; ".join(", ".join(cells) for cells in rows)
        self.live.label = f"Training by update. Means of the last updates: {told}."
        header = ["run", "updates", "anytime accuracy", "final accuracy", "thinking length"]
        caption = f"Means of the last {self.window.value} updates, as the strong lines"
        self.state.show(table(header, rows, caption))
