"""View: early-exit rules replayed on a run's records, and the calibration of its confidence."""

from collections.abc import Sequence
from functools import cache
from pathlib import Path

import ipywidgets as widgets
import numpy as np
import pandas as pd
import plotly.graph_objects as go

from anytime_lab.look.figures import COUNT_WORDS, plot_calibration, plot_policies, policy_points
from anytime_lab.look.live import LiveFigure, Text, beside, chooser, described, row, ticked
from anytime_lab.look.style import told_figure
from anytime_lab.look.view import RunsView
from anytime_lab.page import short
from anytime_lab.read import policies
from anytime_lab.read.runs import Runs, told_error
from anytime_lab.read.told import told_percent, told_points, told_side
from anytime_lab.store.records import read_records

CONFIDENCES = [("of the whole summary", False), ("of its mean token", True)]


class Policies(RunsView):
    """Accuracy against tokens of early-exit rules, for one run at a time.

    Args:
        runs: as for BudgetCurves.
        agreements: how many successive budgets must agree, each a point.
        majorities: how many samples vote, each a line (those with enough samples).
    """

    def __init__(
        self,
        runs: Runs,
        agreements: Sequence[int] = policies.SETTINGS[policies.AGREEMENT],
        majorities: Sequence[int] = policies.SETTINGS[policies.MAJORITY],
    ) -> None:
        super().__init__(runs)
        self._settings = {policies.AGREEMENT: agreements, policies.MAJORITY: majorities}
        self._lay_out, self._outcomes = cache(self._lay_out), cache(self._outcomes)
        self._calibration = cache(self._calibration)
        self.replay: policies.Replay | None = None  # the chosen run's records, laid out
        self.points = pd.DataFrame()  # of policies.policy_frame(): every rule at every setting
        self._said = self.complaints
        if not self.names:
            return
        self.run = chooser("Run", self.names)
        counts = [(COUNT_WORDS[c].partition(" (")[0], c) for c in policies.COUNTS]
        self.count = described(widgets.Dropdown, "Count", options=counts)
        self.confidence = described(
            widgets.Dropdown, "Confidence: probability", "26em", options=CONFIDENCES
        )
        self.log_axis = ticked("Logarithmic token axis", True)
        self.beyond = ticked("Also what costs more than the largest budget")
        self.at = described(
            widgets.SelectionSlider, "Calibration at", "100%", options=[("all budgets", 0)]
        )
        self.live, self.reliability = LiveFigure(moves="Rule and setting"), LiveFigure()
        self.read_out, self.calibrated = Text(live=True), Text(live=True)
        right = widgets.VBox([self.at, self.reliability, self.calibrated])
        controls = row(self.run, self.count, self.confidence, self.log_axis, self.beyond)
        self.compose(controls, beside([self.live, self.read_out], right, 1.5))
        self._draw()
        self._calibrate()
        self.on([self.run, self.count, self.confidence, self.log_axis, self.beyond], self._draw)
        self.on([self.run, self.confidence, self.at], self._calibrate)  # after what it stands on
        self.on(self.live, self._read, "at")

    def figure(self) -> go.Figure:
        """The static figure of the rules."""
        if self.points.empty:
            raise ValueError(f"No run is open. {' '.join(self._said)}")
        title = f"Early-exit rules beside fixed budgets: {short(self.run.value, 40)}"
        axis = self.log_axis.value, self.beyond.value
        return plot_policies(self.points, title, self.count.value, *axis)

    def calibration_figure(self) -> go.Figure:
        """The static figure of the calibration; a sentence where there is nothing to draw."""
        if self.replay is None:
            return self.picture()
        told, said = self._calibration(self._path, self.at.value, self.confidence.value)
        title = f"Calibration: {short(self.run.value, 40)}"
        return told_figure(said) if told.empty else plot_calibration(told, title)

    # what each run gives is worked out once
    def _lay_out(self, path: Path, per_token: bool = False) -> policies.Replay:
        if per_token:
            return self._lay_out(path).per_token()
        return policies.lay_out(read_records(path, policies.REPLAY_COLUMNS, allow_partial=True))

    def _outcomes(self, path: Path, per_token: bool) -> list[policies.Outcome]:
        return policies.replay_all(self._lay_out(path, per_token), self._settings)

    def _calibration(self, path: Path, budget: int, per_token: bool) -> tuple[pd.DataFrame, str]:
        at = (self._lay_out(path, per_token), budget or None)
        told, area = policies.calibration(*at), policies.confidence_auroc(*at)
        return told, _told_calibration(told, budget, area)

    @property
    def _path(self) -> Path:
        return self.names[self.run.value].path

    def _draw(self) -> None:
        """Replays the chosen run, and draws what each rule comes to."""
        self._said, self.replay = self.wrong([self.run.value]), None
        try:
            self.replay = self._lay_out(self._path)
        except Exception as error:  # damaged, ragged, nothing written: told, not thrown
            self._said = [*self.complaints, told_error(self._path, error)]
        if self.replay and not policies.votes(self.replay, self._settings[policies.MAJORITY]):
            self._said.append("Majorities are left out: they need equally many samples, 2 or more.")
        self.say(*self._said)
        budgets = self.replay.budgets if self.replay else ()
        options = [("all budgets", 0), *((f"{b:,} tokens", b) for b in budgets)]
        self.refill(self.at, options, self.at.value)
        self.points = self._stops = pd.DataFrame(columns=["tokens", "setting"])
        label = "No run is open."
        if self.replay:
            outcomes = self._outcomes(self._path, self.confidence.value)
            self.points = policies.policy_frame(outcomes, self.count.value)
            shown = policy_points(self.points, self.beyond.value)
            self._stops = shown[shown["policy"] != policies.FIXED]
            label = f"Accuracy of early-exit rules against tokens, for {self.run.value}"
        settings = self._stops["setting"].tolist()
        stops = list(zip(self._stops["tokens"], settings, strict=True))
        before = self.live._stops[self.live.at][1] if self.live._stops else ""
        self.live.update_from(self.picture(), label, stops)
        self.live.at = settings.index(before) if before in settings else 0
        self._read()

    def _read(self) -> None:
        here = self._stops[self.live.at : self.live.at + 1]
        self.read_out.say(*(_told_point(line) for _, line in here.iterrows()))

    def _calibrate(self) -> None:
        self.calibrated.show()
        if self.replay is not None:
            said = self._calibration(self._path, self.at.value, self.confidence.value)[1]
            self.reliability.update_from(self.calibration_figure(), said)
            self.calibrated.say(said)


def _told_calibration(told: pd.DataFrame, budget: int, area: float) -> str:
    """How well the confidence is calibrated at a budget (0: at all of them), in words."""
    where = f"{budget:,} tokens" if budget else "all budgets"
    if told.empty:
        return f"At {where} no summary has both an answer and a verdict."
    ranked = (
        f"; a right answer is more confident than a wrong one with chance {area:.2f} (0.50 tells "
        "nothing)"
    )
    return (
        f"At {where}, {told['answers'].sum():,} answers: expected calibration error "
        f"{100 * policies.calibration_error(told):.1f} points (0 is perfect)"
        f"{'' if np.isnan(area) else ranked}."
    )


def _told_point(line: pd.Series) -> str:
    """A rule at a setting in words: what it scores, what it costs, and against a fixed budget."""
    accuracy = told_percent(line["accuracy"], line["low"], line["high"])
    said = f"{line['setting']}: {accuracy} at {line['tokens']:,.0f} tokens."
    if pd.isna(line["difference"]):
        return said + " It spends less than the smallest fixed budget, so there is no match."
    points = [line[c] for c in ("difference", "difference_low", "difference_high")]
    side = told_side(*points[1:])
    against = "a fixed budget that costs the same (or the largest, past it)"
    verb = "is not distinguishable from" if side == "not distinguishable" else f"is {side}"
    if side == "too few problems to tell":
        return f"{said} Against {against}: {told_points(*points)} points, {side}."
    return f"{said} It {verb} {against}: {told_points(*points)} points, paired over problems."
