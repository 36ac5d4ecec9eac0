"""View: early-exit rules replayed on a run's records, and the calibration of its confidence."""

from __future__ import annotations

from collections.abc import Sequence

import ipywidgets as widgets
import numpy as np
import pandas as pd
import plotly.graph_objects as go

from anytime_lab.look.figures import (
    COUNT_WORDS,
    DIAGONAL,
    band,
    calibration_trace,
    plot_calibration,
    plot_policies,
    policy_lines,
    policy_trace,
    token_axis,
)
from anytime_lab.look.live import LABEL, framed, live_figure, row, style_sheet, text
from anytime_lab.look.style import axis_span, run_styles, told_figure
from anytime_lab.page import block, paragraph, short
from anytime_lab.read.policies import (
    COUNTS,
    FIXED,
    REPLAY_COLUMNS,
    Outcome,
    Replay,
    calibration,
    calibration_error,
    confidence_auroc,
    fixed_budgets,
    lay_out,
    majority_votes,
    policy_frame,
    spread_thresholds,
    stop_on_agreement,
    stop_on_confidence,
)
from anytime_lab.read.runs import Runs, find_evaluations, read_parts, told_error
from anytime_lab.read.told import told_percent, told_points, told_side

AGREEMENTS = (2, 3, 4, 5, 6, 8)
MAJORITIES = (2, 4, 8, 16)
CONFIDENCES = [("of the whole summary", False), ("of its mean token", True)]


class Policies(widgets.VBox):
    """Accuracy against tokens of early-exit rules, for one run at a time.

    Args:
        runs: as for BudgetCurves.
        agreements: how many successive budgets must agree, each a point.
        majorities: how many samples vote, each a line (those with enough samples).
    """

    def __init__(
        self,
        runs: Runs,
        agreements: Sequence[int] = AGREEMENTS,
        majorities: Sequence[int] = MAJORITIES,
    ) -> None:
        super().__init__()
        self.catalogue = find_evaluations(runs)
        self._names = {
            name if len(self.catalogue.datasets) == 1 else f"{name} · {dataset}": e
            for dataset in self.catalogue.datasets
            for name, e in self.catalogue.names(dataset).items()
        }
        self._agreements, self._majorities = tuple(agreements), tuple(majorities)
        self._replays: dict[str, Replay | str] = {}
        self._outcomes: dict[tuple[str, bool], list[Outcome]] = {}
        self._calibrations: dict[tuple, tuple[pd.DataFrame, str]] = {}
        self._busy = False
        self.frame = pd.DataFrame()
        self.notes, self.read_out = text(live=True), text(live=True)
        self.calibrated = text(live=True)
        if not self._names:
            said = self.catalogue.complaints or ("No run folders were given.",)
            self.notes.value = block(*map(paragraph, said))
            self.children = [style_sheet(), self.notes]
            return
        self._make_controls()
        self._make_figures()
        self.children = [
            style_sheet(),
            self.notes,
            row(self.run, self.count, self.confidence, self.log_axis),
            framed(self.live),
            self.point,
            self.read_out,
            self.at,
            framed(self.reliability),
            self.calibrated,
        ]
        self._run_chosen()
        self._observe()

    @property
    def replay(self) -> Replay | None:
        """The chosen run's records, laid out; None if they could not be read."""
        found = self._replays.get(self.run.value)
        return found if isinstance(found, Replay) else None

    def figure(self) -> go.Figure:
        """The static figure of the rules; a sentence where no run could be read."""
        if self.frame.empty:
            return told_figure(self._none_open())
        title = f"Early-exit rules beside fixed budgets: {short(self.run.value, 40)}"
        return plot_policies(self.frame, title, self.count.value, self.log_axis.value)

    def calibration_figure(self) -> go.Figure:
        """The static figure of the calibration; a sentence where there is nothing to draw."""
        if self.frame.empty:
            return told_figure(self._none_open())
        told = calibration(self.replay, self.at.value or None, self.confidence.value)
        if told.empty:
            return told_figure(_told_calibration(told, self.at.value, np.nan))
        return plot_calibration(told, f"Calibration: {short(self.run.value, 40)}")

    def _none_open(self) -> str:
        said = list(self.catalogue.complaints)
        if self._names:
            said.append(str(self._replays[self.run.value]))
        return f"No run is open. {' '.join(said)}"

    # --- parts -----------------------------------------------------------------------------------

    def _make_controls(self) -> None:
        names = [(short(name), name) for name in self._names]
        self.run = widgets.Dropdown(options=names, description="Run", style=LABEL)
        self.count = widgets.Dropdown(
            options=[(COUNT_WORDS[c].partition(" (")[0], c) for c in COUNTS],
            description="Count",
            style=LABEL,
        )
        self.confidence = widgets.Dropdown(
            options=CONFIDENCES, description="Confidence: probability", style=LABEL,
            layout={"width": "26em"},
        )  # fmt: skip
        self.log_axis = widgets.Checkbox(
            value=True, description="Logarithmic token axis", indent=False
        )
        self.point = widgets.SelectionSlider(
            options=[("—", -1)],
            description="Rule and setting",
            style=LABEL,
            layout={"width": "48em"},
        )
        self.at = widgets.SelectionSlider(
            options=[("all budgets", 0)],
            description="Calibration at",
            style=LABEL,
            layout={"width": "36em"},
        )

    def _make_figures(self) -> None:
        self.live = live_figure([], 460, "Accuracy")
        self.live.update_yaxes(tickformat=".0%")
        self.reliability = live_figure([DIAGONAL, {}], 340, "Share right")
        self.reliability.update_xaxes(
            title="Confidence of the answer", tickformat=".0%", range=[-0.02, 1.02]
        )
        self.reliability.update_yaxes(tickformat=".0%", range=[-0.02, 1.02])
        self.reliability.update_layout(showlegend=False, margin={"t": 24})

    def _observe(self) -> None:
        self.run.observe(self._on(self._run_chosen), "value")
        for control in (self.count, self.confidence, self.log_axis):
            control.observe(self._on(self._draw), "value")
        self.point.observe(self._on(self._read), "value")
        for control in (self.at, self.confidence):
            control.observe(self._on(self._calibrate), "value")

    def _on(self, then):
        """An observer that keeps still while the view sets its own controls."""

        def changed(_change) -> None:
            if not self._busy:
                then()

        return changed

    # --- replaying -------------------------------------------------------------------------------

    def _run_chosen(self) -> None:
        name = self.run.value
        evaluation = self._names[name]
        if name not in self._replays:
            try:
                records = read_parts(evaluation.path, REPLAY_COLUMNS)
                self._replays[name] = lay_out(records)
            except Exception as error:  # damaged, ragged, nothing written: told, not thrown
                self._replays[name] = told_error(evaluation.path, error)
        said = list(self.catalogue.complaints)
        if self.replay is None:
            said.append(str(self._replays[name]))
        elif evaluation.partial:
            said.append(
                f"{name} is still being written, or was stopped: {evaluation.done} of "
                f"{evaluation.chunks} parts are read."
            )
        if self.replay is not None and not self._votes():
            said.append("Majorities are left out: they need equally many samples, 2 or more.")
        self.notes.value = block(*map(paragraph, said), live=True)
        self._busy = True
        budgets = self.replay.budgets if self.replay else ()
        before = self.at.value
        self.at.options = [("all budgets", 0), *((f"{b:,} tokens", b) for b in budgets)]
        self.at.value = before if before in budgets else 0
        self._busy = False
        self._draw()
        self._calibrate()

    def _votes(self) -> list[int]:
        """The majorities that this run has samples for."""
        samples = np.bincount(self.replay.grid.problem)
        if samples.min() != samples.max():
            return []
        return [k for k in self._majorities if 2 <= k <= samples.min()]

    def _agreed(self) -> list[int]:
        """The agreements that there are budgets enough for."""
        return [k for k in self._agreements if k <= len(self.replay.budgets)]

    def _replayed(self) -> list[Outcome]:
        key = (self.run.value, self.confidence.value)
        if key not in self._outcomes:
            per_token = self.confidence.value
            other = self._outcomes.get((key[0], not per_token))
            if other is None:
                rest = [
                    *fixed_budgets(self.replay),
                    *stop_on_agreement(self.replay, self._agreed()),
                    *majority_votes(self.replay, self._votes()),
                ]
            else:  # only the confidence is counted otherwise
                rest = [o for o in other if o.policy != "confidence"]
            thresholds = spread_thresholds(self.replay, per_token)
            exits = stop_on_confidence(self.replay, thresholds, per_token)
            self._outcomes[key] = [*rest, *exits]
        return self._outcomes[key]

    # --- drawing ---------------------------------------------------------------------------------

    def _draw(self) -> None:
        if self.replay is None:
            self.frame = pd.DataFrame()
            with self.live.batch_update():
                for trace in self.live.data:
                    trace.visible = False
            self.read_out.value = self.calibrated.value = ""
            return
        self.frame = policy_frame(self._replayed(), self.count.value)
        lines = policy_lines(self.frame)
        styles = run_styles(list(lines))
        plain = next(name for name, part in lines.items() if (part["policy"] == FIXED).all())
        ring = {"symbol": "circle-open", "size": 17, "color": "#888", "line": {"width": 2.5}}
        chosen = {"x": [], "y": [], "mode": "markers", "marker": ring, "hoverinfo": "skip"}
        told = [
            band(lines[plain], "tokens", styles[plain], plain),
            {**chosen, "name": "chosen setting", "showlegend": False},
            *(policy_trace(part, name, styles[name]) for name, part in lines.items()),
        ]
        while len(self.live.data) < len(told):
            self.live.add_scatter()
        with self.live.batch_update():
            for trace, new in zip(self.live.data, told, strict=False):
                trace.update(new | {"visible": True})
            for trace in self.live.data[len(told) :]:
                trace.visible = False
            axis = token_axis(self.frame["tokens"], self.log_axis.value)
            self.live.update_xaxes(title=COUNT_WORDS[self.count.value], autorange=True, **axis)
            span = axis_span(self.frame[["accuracy", "low", "high"]], 0.0, 1.0)
            self.live.layout.yaxis.range = span
        self._busy = True
        rules = self.frame[self.frame["policy"] != FIXED]
        before = self.point.label
        self.point.options = [
            (setting, i) for i, setting in zip(rules.index, rules["setting"], strict=True)
        ] or [("—", -1)]
        labels = [label for label, _ in self.point.options]
        self.point.index = labels.index(before) if before in labels else 0
        self._busy = False
        self._read()

    def _read(self) -> None:
        if self.point.value not in self.frame.index:
            self.read_out.value = ""
            return
        line = self.frame.loc[self.point.value]
        with self.live.batch_update():
            self.live.data[1].x, self.live.data[1].y = [line["tokens"]], [line["accuracy"]]
        self.read_out.value = block(paragraph(_told_point(line)), live=True)

    def _calibrate(self) -> None:
        if self.replay is None:
            return
        key = (self.run.value, self.at.value, self.confidence.value)
        if key not in self._calibrations:
            at = (self.replay, self.at.value or None, self.confidence.value)
            told, area = calibration(*at), confidence_auroc(*at)
            self._calibrations[key] = told, _told_calibration(told, self.at.value, area)
        told, said = self._calibrations[key]
        with self.reliability.batch_update():
            self.reliability.data[1].update(calibration_trace(told))
        self.calibrated.value = block(paragraph(said), live=True)


def _told_calibration(told: pd.DataFrame, budget: int, area: float) -> str:
    """How well the confidence is calibrated at a budget (0: at all of them), in words."""
    where = f"{budget:,} tokens" if budget else "all budgets"
    if told.empty:
        return f"At {where} no summary has both an answer and a verdict."
    ranked = ""
    if not np.isnan(area):
        ranked = (
            f"; a right answer is more confident than a wrong one with chance {area:.2f} (0.50 "
            "tells nothing)"
        )
    return (
        f"At {where}, {told['answers'].sum():,} answers: expected calibration error "
        f"{100 * calibration_error(told):.1f} points (0 is perfect){ranked}."
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
