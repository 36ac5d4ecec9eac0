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

from anytime_lab.look.figures import BASELINE_NAMES, plot_training
from anytime_lab.look.live import LABEL, framed, live_figure, row, style_sheet, text
from anytime_lab.look.style import (
    BAND_OPACITY,
    RunStyle,
    axis_span,
    budget_ticks,
    run_styles,
    safe_text,
    told_figure,
)
from anytime_lab.page import block, paragraph, short, table
from anytime_lab.read.runs import Runs
from anytime_lab.read.training import (
    ANYTIME,
    PANELS,
    Progress,
    find_training,
    read_progress,
    score_frame,
    told_run,
    trained_at_fewer,
    training_frame,
    variance_frame,
)

MOST = 1_500  # points of a line; more are thinned evenly, the last one always drawn
MEASURES = {"corr": "Correlation with the return", "ratio": "Variance left: Var[R−V] / Var[R]"}


def thinned(count: int) -> np.ndarray:
    """Which of `count` points are drawn."""
    step = -(-count // MOST)
    return np.arange(count - 1, -1, -step)[::-1]


def panel_traces(part: pd.DataFrame, over: str, measure: str) -> tuple[dict, dict]:
    """Data of the faint and of the strong line of one run in one panel."""
    part = part.iloc[thinned(len(part))] if len(part) else part
    x = part[over].to_numpy(float)
    shown = "%{y:.1%}" if "accuracy" in measure else "%{y:.1f} tokens"
    return (
        {"x": x, "y": part["value"].to_numpy(float)},
        {"x": x, "y": part["smooth"].to_numpy(float), "hovertemplate": shown},
    )


def panel_lines(name: str, style: RunStyle, axis: int, first: bool) -> list[dict]:
    """The faint and the strong line of one run in panel `axis`, without data yet."""
    where = {"xaxis": f"x{axis or ''}", "yaxis": f"y{axis or ''}"}
    common = {"mode": "lines", "legendgroup": safe_text(name), "x": [], "y": [], **where}
    return [
        {
            **common,
            "name": f"{safe_text(name)}, each step",
            "line": {"color": style.band.replace(str(BAND_OPACITY), "0.3"), "width": 1},
            "hoverinfo": "skip",
            "showlegend": False,
        },
        {
            **common,
            "name": safe_text(name),
            "line": {"color": style.colour, "dash": style.dash, "width": 2.2},
            "showlegend": first,
        },
    ]


def score_traces(scores: Mapping[str, pd.DataFrame], names: list[str]) -> list[dict]:
    """Per run, the latest score at each budget (mean of the window): one trace a run."""
    traces = []
    for name, style in run_styles(names).items():
        frame = scores.get(name)
        last = (
            frame.groupby("budget", as_index=False).last()
            if frame is not None and len(frame)
            else pd.DataFrame({"budget": [], "smooth": []})
        )
        traces.append(
            {
                "type": "scatter",
                "x": last["budget"].to_numpy(float),
                "y": last["smooth"].to_numpy(float),
                "mode": "lines+markers",
                "name": safe_text(name),
                "line": {"color": style.colour, "dash": style.dash, "width": 2.2},
                "marker": {"symbol": style.marker, "size": 8},
                "hovertemplate": f"{safe_text(name)} at %{{x:,d}} tokens: %{{y:.1%}}"
                "<extra></extra>",
            }
        )
    return traces


def history_traces(frame: pd.DataFrame, most: int) -> list[dict]:
    """One run's score at each budget over its updates: always `most` traces."""
    budgets = sorted(set(frame["budget"]))[:most]
    traces = []
    for budget, style in run_styles(budgets).items():
        part = frame[frame["budget"] == budget]
        part = part.iloc[thinned(len(part))]
        traces.append(
            {
                "type": "scatter",
                "x": part["step"].to_numpy(float),
                "y": part["smooth"].to_numpy(float),
                "mode": "lines",
                "name": f"{budget:,} tokens",
                "line": {"color": style.colour, "dash": style.dash, "width": 2.2},
                "hovertemplate": f"{budget:,} tokens: %{{y:.1%}}<extra></extra>",
                "visible": True,
            }
        )
    return traces + [{"x": [], "y": [], "visible": False}] * (most - len(budgets))


def variance_traces(frame: pd.DataFrame) -> list[dict]:
    """Six traces of one run: three baselines in two panels; empty where it has none."""
    traces = []
    for measure, axis in zip(MEASURES, ("", "2"), strict=True):
        for baseline, style in run_styles(list(BASELINE_NAMES)).items():
            part = frame[(frame["baseline"] == baseline) & (frame["measure"] == measure)]
            part = part.sort_values("budget")
            label = BASELINE_NAMES[baseline]
            traces.append(
                {
                    "type": "scatter",
                    "x": part["budget"].to_numpy(float),
                    "y": part["value"].to_numpy(float),
                    "xaxis": f"x{axis}",
                    "yaxis": f"y{axis}",
                    "mode": "lines+markers",
                    "name": label,
                    "legendgroup": baseline,
                    "showlegend": not axis,
                    "line": {"color": style.colour, "dash": style.dash, "width": 2.2},
                    "marker": {"symbol": style.marker, "size": 8},
                    "hovertemplate": f"{label} at %{{x:,d}} tokens: %{{y:.2f}}<extra></extra>",
                }
            )
    return traces


def plot_scores(
    scores: Mapping[str, pd.DataFrame],
    names: list[str],
    window: int,
    template: str = "plotly_white",
) -> go.Figure:
    """Score of the rollouts at each budget, mean of the last updates, all runs.

    Args:
        scores: run → frame of score_frame().
        names: all runs in order, which gives their colours.
        window: updates that the mean is over, for the title.
    """
    figure = go.Figure(score_traces(scores, names))
    budgets = [b for frame in scores.values() for b in frame["budget"]]
    _layout(figure, f"Score by budget, mean of the last {window} updates", template, 380)
    figure.update_xaxes(title="Thinking budget (tokens)", **budget_ticks(budgets))
    return figure.update_yaxes(title="Score of the rollouts", tickformat=".0%")


def plot_variances(
    variances: Mapping[str, pd.DataFrame], last: int, template: str = "plotly_white"
) -> go.Figure:
    """The variance figure of several runs, one above the other.

    Args:
        variances: run → frame of variance_frame().
        last: updates that the means are over, for the title.
    """
    titles = [f"{safe_text(run)}: {word}" for run in variances for word in MEASURES.values()]
    height = 172 + 300 * len(variances)
    figure = make_subplots(
        rows=len(variances), cols=2, subplot_titles=titles, horizontal_spacing=0.1,
        vertical_spacing=min(100 / height, 0.9 / max(len(variances) - 1, 1)),
    )  # fmt: skip
    for place, frame in enumerate(variances.values(), start=1):
        for number, trace in enumerate(variance_traces(frame)):
            kept = {k: v for k, v in trace.items() if k not in ("xaxis", "yaxis")}
            kept["showlegend"] = place == 1 and number < 3
            figure.add_trace(kept, row=place, col=1 + number // 3)
        figure.add_hline(y=1, row=place, col=2, line={"color": "#888", "width": 1.5}, layer="below")
    _layout(figure, f"Mean of the last {last} updates", template, height)
    figure.update_xaxes(title="Thinking budget (tokens)", tickformat=",d")
    return figure.update_layout(margin={"t": 116}, legend={"y": 1 + 30 / height})


def _layout(figure: go.Figure, title: str, template: str, height: int) -> None:
    figure.update_layout(
        template=template,
        title={"text": title, "x": 0, "xref": "paper", "xanchor": "left"},
        height=height,
        hovermode="closest",
        modebar={"remove": ["sendChartToCloud", "lasso2d", "select2d"]},
        margin={"l": 64, "r": 24, "t": 84, "b": 56},
        font={"size": 13},
        legend={"orientation": "h", "x": 0, "xanchor": "left", "y": 1.06, "yanchor": "bottom"},
    )


BUDGETS = 8  # whose score is followed over the updates
NO_STEP = "No run has a step yet; wait for the first update."
NO_DIAGNOSTICS = "No run has variance diagnostics; train with more than one budget."
NO_VARIANCE = pd.DataFrame(columns=["budget", "baseline", "measure", "value", "steps"])


class Training(widgets.VBox):
    """The paper's three panels, scores by budget and the variance figure, of several runs.

    While a run is unfinished, a thread looks at the files every `seconds` and updates the figures
    in place; it reads files only, so a training cell that runs in the same kernel goes on.

    Args:
        runs: output folders of training, a name for each, or one folder that holds them. A folder
            need not exist yet.
        window: updates that a strong line averages.
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
        self._frames: dict[str, pd.DataFrame] = {}
        self._progress: dict[str, Progress] = {}
        self._parts: dict[str, pd.DataFrame] = {}  # of training_frame(), a run each
        self._scores: dict[str, pd.DataFrame] = {}
        self._left_out: list[str] = []  # runs without anytime accuracy
        self.notes, self.state = text(live=True), text()
        if not self.tails:
            self.notes.value = block(paragraph("No run folders were given."))
            self.children = [style_sheet(), self.notes]
            return
        self._make_controls(window)
        self._make_figures()
        self.children = [
            style_sheet(),
            self.notes,
            row(self.follow, self.over, self.window, self.runs),
            self.state,
            framed(self.panels),
            framed(self.scores),
            row(self.detail),
            framed(self.history),
            framed(self.variance),
        ]
        self.refresh()
        self.follow.observe(self._follow_pressed, "value")
        self.follow.value = bool(self.unfinished()) if follow is None else follow

    # --- static figures --------------------------------------------------------------------------

    def figure(self) -> go.Figure:
        """The three panels, static; a sentence where no chosen run has a step yet."""
        try:
            return plot_training(self._training(), list(self.tails), self.over.value)
        except ValueError as error:
            return told_figure(str(error))

    def scores_figure(self) -> go.Figure:
        """The latest score at each budget, static; a sentence where there is none yet."""
        if not self._frames:
            return told_figure(NO_STEP)
        scores = {n: score_frame(f, self.window.value) for n, f in self._frames.items()}
        return plot_scores(scores, list(self.tails), self.window.value)

    def variance_figure(self) -> go.Figure:
        """The variance figure of each run that has one, static; a sentence where none has."""
        told = {name: self._variance(name) for name in self._frames}
        told = {n: frame for n, frame in told.items() if frame["budget"].nunique() > 1}
        if not self._frames or not told:
            return told_figure(NO_DIAGNOSTICS if self._frames else NO_STEP)
        return plot_variances(told, 5 * self.window.value)

    # --- parts -----------------------------------------------------------------------------------

    def _make_controls(self, window: int) -> None:
        names = [(short(name), name) for name in self.tails]
        self.follow = widgets.ToggleButton(
            description="Follow", icon="refresh", tooltip="Look at the files again and again"
        )
        self.over = widgets.Dropdown(
            options=[("updates", "step"), ("seconds", "seconds")], description="Over", style=LABEL
        )
        self.window = widgets.BoundedIntText(
            value=window, min=1, max=10_000, description="Mean of updates", style=LABEL,
            layout={"width": "12em"},
        )  # fmt: skip
        self.runs = widgets.SelectMultiple(
            options=names, value=list(self.tails), description="Runs", style=LABEL,
            rows=min(len(names), 6),
        )  # fmt: skip
        self.detail = widgets.Dropdown(options=names, description="Run in detail", style=LABEL)
        for control in (self.over, self.window, self.runs):
            control.observe(lambda _: self._draw(list(self.tails)), "value")
        self.detail.observe(lambda _: self._draw([]), "value")

    def _make_figures(self) -> None:
        styles = run_styles(list(self.tails))
        self.panels = live_figure(
            [
                line
                for name, style in styles.items()
                for axis in (0, 2, 3)
                for line in panel_lines(name, style, axis, axis == 2)  # which every run has
            ],
            360,
        )
        words = list(PANELS.values())
        titles = [words[0].capitalize(), words[1].capitalize(), f"{words[2].capitalize()} (tokens)"]
        grid = {"gridcolor": "#8883", "zeroline": False, "automargin": True}
        for i, title in enumerate(titles):
            tail = str(i + 1) if i else ""
            domain = [i * 0.37, i * 0.37 + 0.26]
            tick = {"tickformat": ".0%"} if i < 2 else {}
            self.panels.update_layout(
                {
                    f"xaxis{tail}": {**grid, "domain": domain, "anchor": f"y{tail}"},
                    f"yaxis{tail}": {
                        **grid,
                        **tick,
                        "anchor": f"x{tail}",
                        "title": {"text": title},
                    },
                }
            )
        self.scores = live_figure(score_traces({}, list(self.tails)), 320, "Score, latest mean")
        self.scores.update_xaxes(title="Thinking budget (tokens)", tickformat=",d")
        self.scores.update_yaxes(tickformat=".0%")
        self.history = live_figure([{"x": [], "y": []}] * BUDGETS, 320, "Score at each budget")
        self.history.update_xaxes(title="Update")
        self.history.update_yaxes(tickformat=".0%")
        self.variance = live_figure(variance_traces(NO_VARIANCE), 340)
        one = {"x0": 0, "x1": 1, "y0": 1, "y1": 1, "line": {"color": "#888", "width": 1.5}}
        self.variance.add_shape(type="line", xref="x2 domain", yref="y2", layer="below", **one)
        for i, title in enumerate(MEASURES.values()):
            tail = "2" if i else ""
            self.variance.update_layout(
                {
                    f"xaxis{tail}": {
                        **grid, "domain": [i * 0.55, i * 0.55 + 0.45], "anchor": f"y{tail}",
                        "tickformat": ",d", "title": {"text": "Thinking budget (tokens)"},
                    },
                    f"yaxis{tail}": {**grid, "anchor": f"x{tail}", "title": {"text": title}},
                }
            )  # fmt: skip

    # --- following -------------------------------------------------------------------------------

    def unfinished(self) -> list[str]:
        """The runs of which more is to come, as far as they say."""
        return [name for name, tail in self.tails.items() if not self._over(tail)]

    def _over(self, tail) -> bool:
        progress = read_progress(tail.folder)
        return progress.finished and (not self._waits or progress.updated > self._made)

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
            done = not self.unfinished()  # asked first: what was written before it is read after
            self.refresh()
            if done:
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
        """Read what the runs have added and update the figures; does not raise."""
        with self._lock:
            try:
                changed = [name for name, tail in self.tails.items() if tail.read()]
                for name in changed:
                    tail = self.tails[name]
                    if tail.rows:
                        self._frames[name] = tail.frame()
                    else:
                        self._frames.pop(name, None)
                progress = {n: read_progress(t.folder) for n, t in self.tails.items()}
                moved, self._progress = progress != self._progress, progress
                if changed:
                    self._draw(changed)
                elif moved:  # written after the last line, when a run ends
                    self._tell()
            except Exception as error:  # a thread's traceback would land in the training cell
                said = f"The figures could not be updated ({type(error).__name__}: {error})."
                self.notes.value = block(paragraph(said), live=True)

    # --- drawing ---------------------------------------------------------------------------------

    def _training(self) -> pd.DataFrame:
        if not self._frames:
            raise ValueError(NO_STEP)
        runs = {name: self._frames[name] for name in self.runs.value if name in self._frames}
        if not runs:
            raise ValueError("None of the chosen runs has a step yet; choose another.")
        return training_frame(runs, self.window.value)

    def _variance(self, name: str) -> pd.DataFrame:
        try:
            return variance_frame(self._frames[name], 5 * self.window.value)
        except (KeyError, ValueError):
            return NO_VARIANCE

    def _draw(self, changed: list[str]) -> None:
        with self._lock:
            names = list(self.tails)
            shown = [name for name in self.runs.value if name in self._frames]
            window = self.window.value
            for name in set(changed) & set(self._frames):  # the others' are still true
                self._parts[name] = training_frame({name: self._frames[name]}, window)
                self._scores[name] = score_frame(self._frames[name], window)
            if shown and changed:
                self._draw_panels(changed, shown)
                scores = {name: self._scores[name] for name in shown}
                self._update(self.scores, score_traces(scores, names))
            if not changed or self.detail.value in changed:
                self._draw_detail(self.detail.value)
            self._tell()

    def _draw_panels(self, changed: list[str], shown: list[str]) -> None:
        left_out = trained_at_fewer({name: self._frames[name] for name in shown})
        if left_out != self._left_out:  # a run that came in may take others' anytime accuracy away
            self._left_out, changed = left_out, list(self.tails)
        parts = [self._parts[name] for name in shown]
        parts = [p[(p["measure"] != ANYTIME) | ~p["run"].isin(left_out)] for p in parts]
        frame = pd.concat(parts, ignore_index=True)
        words = {"step": "Update", "seconds": "Training time (s)"}[self.over.value]
        with self.panels.batch_update():
            self.panels.update_xaxes(title={"text": words})
            for run_place, name in enumerate(self.tails):
                if name not in changed:
                    continue
                mine = frame[frame["run"] == name]
                for i, measure in enumerate(PANELS.values()):
                    part = mine[mine["measure"] == measure]
                    data = panel_traces(part, self.over.value, measure)
                    at = 6 * run_place + 2 * i
                    for trace, new in zip(self.panels.data[at : at + 2], data, strict=True):
                        trace.update(new)
            for i, measure in enumerate(list(PANELS.values())[:2]):
                values = frame.loc[frame["measure"] == measure, ["value", "smooth"]]
                if values.notna().any(axis=None):
                    axis = self.panels.layout[f"yaxis{i + 1 if i else ''}"]
                    axis.range = axis_span(values, 0.0, 1.0)

    def _draw_detail(self, name: str) -> None:
        frame = self._frames.get(name)
        scores = score_frame(frame if frame is not None else pd.DataFrame(), self.window.value)
        self._update(self.history, history_traces(scores, BUDGETS))
        self._update(self.variance, variance_traces(self._variance(name)))

    @staticmethod
    def _update(figure, traces: list[dict]) -> None:
        with figure.batch_update():
            for trace, new in zip(figure.data, traces, strict=True):
                trace.update(new)

    def _tell(self) -> None:
        shown = [name for name in self.runs.value if name in self._frames]
        said = [tail.complaint for tail in self.tails.values() if tail.complaint]
        fewer = trained_at_fewer({name: self._frames[name] for name in shown})
        if fewer:
            said.append(
                f"{', '.join(fewer)}: scored at fewer budgets than the others, so left out of "
                "anytime accuracy."
            )
        detail = self.detail.value
        if detail in self._frames and self._variance(detail)["value"].isna().all():
            said.append(
                f"{detail} has no variance diagnostics to show: they need more than one budget and "
                "returns that vary."
            )
        longest = max((len(self._frames[n]) for n in shown), default=0)
        if longest and len(thinned(longest)) < longest:
            said.append(f"Lines show {len(thinned(longest)):,} of {longest:,} updates, evenly.")
        self.notes.value = block(*map(paragraph, said), live=True)
        rows = [told_run(n, t, self._progress[n], n in fewer) for n, t in self.tails.items()]
        header = ["run", "updates", "anytime accuracy", "final accuracy", "thinking length"]
        self.state.value = block(table(header, rows, "Latest update of each run"))
