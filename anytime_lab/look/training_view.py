"""View: training runs as they go, or as they went, from what they write."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping

import ipywidgets as widgets
import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from anytime_lab.look.live import LiveFigure, described, row, text
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
from anytime_lab.page import block, paragraph, short, table
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


def _mode(part: pd.DataFrame) -> str:
    return "lines" if len(part) > 1 else "markers"  # a line of one point is not seen


def plot_training(
    training: pd.DataFrame,
    runs: list[str] | None = None,
    over: str = "step",
    scores: Mapping[str, pd.DataFrame] | None = None,
    detail: str = "",
    variance: pd.DataFrame | None = None,
    template: str = "plotly_white",
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
    runs = runs or list(dict.fromkeys(training["run"]))
    panels = list(dict.fromkeys(training["measure"]))
    named = f"Score at each budget, {short_text(detail, 24)}"
    titles = [[m.capitalize() + ("" if "accuracy" in m else " (tokens)") for m in panels]]
    if scores:
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
    base(figure, plotted + 76 + 56, template=template, margin={"t": 76})
    for number in range(len(titles)):
        legend = {"orientation": "h", "x": 0, "yanchor": "bottom"}
        legend["y"] = 1 - (number * (ROW + GAP) - 24) / plotted
        if number == 1:  # of the right panel: the left one has the runs
            legend |= {"x": 1, "xanchor": "right"}
        figure.update_layout({f"legend{number + 1 if number else ''}": legend})
    styles = run_styles(runs)
    for place, measure in enumerate(panels):
        part = training[training["measure"] == measure]
        _add_measure(figure, part, styles, over, (1, 1 + place * (6 // len(panels))))
    if scores:
        _add_scores(figure, scores, styles, detail)
    if len(titles) == 3:
        _add_variance(figure, variance)
    return figure.update_xaxes(title_standoff=4, zeroline=False)


def _add_measure(figure, training: pd.DataFrame, styles, over: str, at: tuple[int, int]) -> None:
    where = {"row": at[0], "col": at[1]}
    measure = training["measure"].iloc[0]
    unit = "%{y:.1%}" if "accuracy" in measure else "%{y:.1f} tokens"
    for run, part in training.groupby("run", sort=False):
        part = part.sort_values(over).iloc[thinned(len(part))]
        style, name = styles[run], safe_text(run)
        common = {"x": part[over], "mode": _mode(part), "legendgroup": name}
        faint = faded(style.colour, 0.3)
        figure.add_scatter(
            y=part["value"], name=f"{name}, each step", showlegend=False,
            line={"color": faint, "width": 1}, hoverinfo="skip", **common, **where,
        )  # fmt: skip
        figure.add_scatter(
            y=part["smooth"], name=name,
            showlegend=not any(trace.showlegend and trace.name == name for trace in figure.data),
            line={"color": style.colour, "dash": style.dash, "width": 2.2},
            hovertemplate=f"{short_text(run)}: {unit}<extra></extra>", **common, **where,
        )  # fmt: skip
    figure.update_xaxes(title="Update" if over == "step" else "Seconds of training", **where)
    values = training[["value", "smooth"]]
    if "accuracy" in measure and values.notna().any(axis=None):
        figure.update_yaxes(tickformat=".0%", range=axis_span(values, 0.0, 1.0), **where)


def _add_scores(figure, scores: Mapping[str, pd.DataFrame], styles, detail: str) -> None:
    for run, frame in scores.items():
        last = frame.groupby("budget", as_index=False).last()
        style = styles[run]
        figure.add_scatter(
            x=last["budget"], y=last["smooth"], mode="lines+markers",
            name=safe_text(run), legendgroup=safe_text(run), showlegend=False,
            line={"color": style.colour, "dash": style.dash, "width": 2.2},
            marker={"symbol": style.marker, "size": 8},
            hovertemplate=f"{short_text(run)} at %{{x:,d}} tokens: %{{y:.1%}}<extra></extra>",
            row=2, col=1,
        )  # fmt: skip
    every = sorted({b for frame in scores.values() for b in frame["budget"]})
    figure.update_xaxes(title="Thinking budget (tokens)", **budget_ticks(every, 8), row=2, col=1)
    mine = scores.get(detail)
    budgets = [] if mine is None else sorted(set(mine["budget"]))
    chosen = np.unique(np.linspace(0, len(budgets) - 1, BUDGETS).round()) if budgets else []
    for budget, style in run_styles([budgets[int(i)] for i in chosen]).items():
        part = mine[mine["budget"] == budget]
        part = part.iloc[thinned(len(part))]
        figure.add_scatter(
            x=part["step"], y=part["smooth"], mode=_mode(part), legend="legend2",
            name=f"{budget:,} tokens",
            line={"color": style.colour, "dash": style.dash, "width": 2.2},
            hovertemplate=f"{budget:,} tokens: %{{y:.1%}}<extra></extra>", row=2, col=4,
        )  # fmt: skip
    figure.update_xaxes(title="Update", row=2, col=4)
    figure.update_yaxes(tickformat=".0%", row=2)


def _add_variance(figure, variance: pd.DataFrame) -> None:
    names = {b: BASELINE_NAMES.get(b, b) for b in dict.fromkeys(variance["baseline"])}
    for baseline, style in run_styles(list(names)).items():
        for column, measure in zip((1, 4), MEASURES, strict=True):
            mine = (variance["baseline"] == baseline) & (variance["measure"] == measure)
            part = variance[mine].sort_values("budget")
            label = safe_text(names[baseline])
            figure.add_scatter(
                x=part["budget"], y=part["value"], mode="lines+markers",
                name=label, legendgroup=baseline, legend="legend3", showlegend=column == 1,
                line={"color": style.colour, "dash": style.dash, "width": 2.2},
                marker={"symbol": style.marker, "size": 8},
                hovertemplate=f"{label} at %{{x:,d}} tokens: %{{y:.2f}}<extra></extra>",
                row=3, col=column,
            )  # fmt: skip
    figure.update_xaxes(
        title="Thinking budget (tokens)", **budget_ticks(variance["budget"], 8), row=3
    )
    figure.update_yaxes(rangemode="tozero", row=3, col=4)
    one = {"line": {"color": QUIET, "width": 1.5}, "layer": "below"}
    figure.add_hline(
        1, row=3, col=4, annotation_text="no baseline", annotation_position="top right", **one
    )


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
        self._frames: dict[str, pd.DataFrame] = {}  # metrics of the runs that have a step
        if not self.tails:
            self.say("No run folders were given.")
            return
        names = [(short(name), name) for name in self.tails]
        self.follow = widgets.ToggleButton(
            description="Follow", icon="refresh", tooltip="Look at the files again and again"
        )
        self.over = described(
            widgets.Dropdown, "Over", "11em", options=[("updates", "step"), ("seconds", "seconds")]
        )
        self.window = described(
            widgets.BoundedIntText, "Mean of updates", "12em", value=window, min=1, max=10_000
        )
        self.runs = described(
            widgets.SelectMultiple, "Runs", "22em", options=names, value=list(self.tails),
            rows=min(len(names), 4),
        )  # fmt: skip
        self.detail = described(widgets.Dropdown, "Run in detail", "20em", options=names)
        self.state, self.variance, self.live = text(), text(), LiveFigure()
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
        return self._figure(self.frame())

    def _figure(self, training: pd.DataFrame) -> go.Figure:
        window, detail = self.window.value, self.detail.value
        return plot_training(
            training,
            list(self.tails),
            self.over.value,
            {name: score_frame(frame, window) for name, frame in self._shown().items()},
            detail,
            self._variance(),
        )

    def _variance(self) -> pd.DataFrame | None:
        metrics = self._frames.get(self.detail.value)
        return None if metrics is None else variance_frame(metrics, 5 * self.window.value)

    def frame(self) -> pd.DataFrame:
        """The training_frame() of the chosen runs.

        Raises:
            ValueError: none of them has a step yet.
        """
        if not (shown := self._shown()):
            raise ValueError(
                "None of the chosen runs has an update yet." if self._frames else NO_STEP
            )
        return training_frame(shown, self.window.value)

    def _shown(self) -> dict[str, pd.DataFrame]:
        return {name: self._frames[name] for name in self.runs.value if name in self._frames}

    # --- following -------------------------------------------------------------------------------

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

        The thread is no daemon, which would be torn out of native code when the interpreter ends.
        """
        while self._waited(stop):
            self.refresh()
            if not self.unfinished():
                self.follow.value = False
                return

    def _waited(self, stop: threading.Event) -> bool:
        """Wait for the next look. False if there is none, such as when the interpreter ends."""
        look = time.monotonic() + self.seconds
        while threading.main_thread().is_alive():
            left = look - time.monotonic()
            if stop.wait(max(0.0, min(left, 0.25))):
                return False
            if left <= 0.25:
                return True
        return False

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

    # --- showing ---------------------------------------------------------------------------------

    def _draw(self) -> None:
        with self._lock:
            shown = self._shown()
            self.live.layout.display = None if shown else "none"  # no axes without a line
            self._training = training_frame(shown, self.window.value) if shown else None
            if shown:
                told = "; ".join(", ".join(cells) for cells in self._rows())
                label = f"Training by update. Means of the last updates: {told}."
                self.live.update_from(self._figure(self._training), label)
            variance, said = self._variance(), []
            if variance is not None:
                last = f"Medians of the last {5 * self.window.value} updates."
                said = [*([last] if len(variance) else []), *told_variance(variance)]
            self.variance.value = block(paragraph(" ".join(said), "note"))
            self._tell()

    def _rows(self) -> list[list[str]]:
        return told_runs(self.tails, self._training, time.time())

    def _tell(self) -> None:
        said = [tail.complaint for tail in self.tails.values() if tail.complaint]
        shown = self._shown()
        longest = max(map(len, shown.values()), default=0)
        if longest > MOST:
            said.append(f"Lines show {len(thinned(longest)):,} of {longest:,} updates, evenly.")
        self.say(*said, *filter(None, [told_compared(shown) if shown else NO_STEP]))
        header = ["run", "updates", "anytime accuracy", "final accuracy", "thinking length"]
        caption = f"Means of the last {self.window.value} updates, as the strong lines"
        self.state.value = block(table(header, self._rows(), caption))
