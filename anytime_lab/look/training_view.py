"""View: training runs as they go, or as they went, from what they write."""

import threading
import time

import ipywidgets as widgets
import pandas as pd
import plotly.graph_objects as go

from anytime_lab.look.figures import MOST, plot_training, thinned
from anytime_lab.look.live import LiveFigure, Text, chooser, described, row
from anytime_lab.look.view import View
from anytime_lab.page import short, table
from anytime_lab.read import training
from anytime_lab.read.runs import Runs

NO_STEP = "No run has an update yet; wait for the first one."


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
        self._lock, self._stop = threading.RLock(), threading.Event()
        if window < 1 or seconds <= 0:
            raise ValueError(
                f"window={window} and seconds={seconds}; expected 1 update or more, and a time "
                "above 0."
            )
        self.tails = training.find_training(runs)
        self.seconds, self._waits, self._made = seconds, bool(follow), time.time()
        self._training: pd.DataFrame | None = None  # what is drawn
        # metrics of each run, empty before its first step
        self._frames = {name: tail.frame() for name, tail in self.tails.items()}
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
        self.on(self.follow, self._follow_pressed)
        self.follow.value = bool(self.unfinished()) if follow is None else follow

    def figure(self) -> go.Figure:
        """All panels of the chosen runs."""
        if self._training is None:
            begun = any(map(len, self._frames.values()))
            raise ValueError("None of the chosen runs has an update yet." if begun else NO_STEP)
        over, detail, window = self.over.value, self.detail.value, self.window.value
        scores = {name: training.score_frame(run, window) for name, run in self._shown().items()}
        return plot_training(self._training, [*self.tails], over, scores, detail, self._variance)

    def _shown(self) -> dict[str, pd.DataFrame]:
        return {name: self._frames[name] for name in self.runs.value if len(self._frames[name])}

    def unfinished(self) -> list[str]:
        """The runs of which more is to come, as far as they say."""
        return [
            name
            for name, tail in self.tails.items()
            if not tail.progress.ended or (self._waits and tail.progress.updated <= self._made)
        ]

    def _follow_pressed(self) -> None:
        self._stop.set()
        if self.follow.value:
            self._stop = threading.Event()
            self._thread = threading.Thread(
                target=self._watch, args=(self._stop,), name="training view", daemon=False
            )
            self._thread.start()

    def _watch(self, stop: threading.Event) -> None:
        """Refresh until all runs are finished, Follow is off, or the view is closed.

        The thread is no daemon, which would be torn out of native code when the interpreter ends:
        it looks by itself whether that is about to happen.
        """
        due = time.monotonic() + self.seconds
        while threading.main_thread().is_alive() and not stop.wait(min(self.seconds, 0.25)):
            if time.monotonic() >= due:
                self.refresh()
                if not self.unfinished():
                    self.follow.value = False
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
                self._frames |= {name: self.tails[name].frame() for name in changed}
                self._draw() if changed else self._tell()  # a run that is silent is told to be
            except Exception as error:  # a thread's traceback would land in the training cell
                self.say(f"The figures could not be updated ({type(error).__name__}: {error}).")

    def _draw(self) -> None:
        with self._lock:
            shown = self._shown()
            self.live.layout.display = None if shown else "none"  # no axes without a line
            self._training = training.training_frame(shown, self.window.value) if shown else None
            metrics, last = self._frames[self.detail.value], 5 * self.window.value
            self._variance = training.variance_frame(metrics, last)
            if shown:
                self.live.update_from(self.figure())
            said = [f"Medians of the last {last} updates."] if len(self._variance) else []
            said += training.told_variance(self._variance) if len(metrics) else []
            self.variance.say(" ".join(said), kind="note")
            self._tell()

    def _tell(self) -> None:
        said = [tail.complaint for tail in self.tails.values() if tail.complaint]
        shown = self._shown()
        longest = max(map(len, shown.values()), default=0)
        if longest > MOST:
            said.append(f"Lines show {len(thinned(longest)):,} of {longest:,} updates, evenly.")
        self.say(*said, *filter(None, [training.told_compared(shown) if shown else NO_STEP]))
        rows = training.told_runs(self.tails, self._training, time.time())
        told = "; ".join(", ".join(cells) for cells in rows)
        self.live.label = f"Training by update. Means of the last updates: {told}."
        header = ["run", "updates", "anytime accuracy", "final accuracy", "thinking length"]
        caption = f"Means of the last {self.window.value} updates, as the strong lines"
        self.state.show(table(header, rows, caption))
