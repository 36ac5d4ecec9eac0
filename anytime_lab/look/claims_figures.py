"""A study's frames → figures: what each claim comes to, and a measure over the cost of training."""

from collections.abc import Mapping

import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from anytime_lab.look.figures import curve_traces
from anytime_lab.look.style import COLOURS, QUIET, base, end_names, run_styles, safe_text
from anytime_lab.read.claims import AXES

MARKS = {"updates": "circle", "seconds": "diamond", "flops": "square"}
SIDES = {"holds": COLOURS[0], "above": COLOURS[0], "the other way": COLOURS[1]}
SIDES |= {"below": COLOURS[1]}


def plot_claims(frame: pd.DataFrame, title: str = "What each claim comes to") -> go.Figure:
    """Effects with their intervals, a row a claim and a mark an axis; blue holds, orange contrary.

    Args:
        frame: of `claim_frame`; one measure's unit, so claims on lengths are left out.

    Returns traces named by the axes.
    """
    shown, numbers = frame[frame["measure"] != "length"], ["effect", "low", "high"]
    shown = shown.assign(**(100 * shown[numbers]))
    claims = list(dict.fromkeys(shown["claim"]))[::-1]
    height = 120 + 34 * len(claims)
    figure = base(go.Figure(), height, title, dragmode=False)
    for place, (axis, part) in enumerate(shown.groupby("axis", sort=False)):
        rows = [claims.index(claim) + 0.22 * (1 - place) for claim in part["claim"]]
        colours = [SIDES.get(verdict, QUIET) for verdict in part["verdict"]]
        bars = {"array": part["high"] - part["effect"], "arrayminus": part["effect"] - part["low"]}
        told = [
            f"{safe_text(row.claim)} at equal {AXES[axis]}: <b>{row.effect:+.1f}</b> points "
            f"[{row.low:+.1f}, {row.high:+.1f}], {row.seeds} seeds: {row.verdict}"
            for row in part.itertuples()
        ]
        figure.add_scatter(
            x=part["effect"], y=rows, mode="markers", name=f"at equal {AXES[axis]}",
            marker={"symbol": MARKS[axis], "size": 8, "color": colours},
            error_x={**bars, "symmetric": False, "color": QUIET, "thickness": 1.4, "width": 0},
            customdata=told, hovertemplate="%{customdata}<extra></extra>",
        )  # fmt: skip
    figure.add_vline(x=0, line_color=QUIET, line_width=1.5)
    figure.update_xaxes(title="Difference in points, with 95 % interval over seeds and problems")
    return figure.update_yaxes(
        tickvals=list(range(len(claims))), ticktext=[safe_text(claim) for claim in claims],
        automargin=True, zeroline=False, range=[-0.6, len(claims) - 0.4],
    )  # fmt: skip


def plot_course(panels: Mapping[str, pd.DataFrame], words: str, title: str = "") -> go.Figure:
    """A measure over the cost of training, a line with its band for each run.

    Args:
        panels: an x axis in words → the frame over it, of `course_frame` or another of its
            columns; side by side.
        words: the y axis in words; a share.

    Returns traces named "RUN 95 %" (bands) and RUN, for each panel.
    """
    whole = pd.concat(panels.values())
    common = set.intersection(*(set(frame["run"]) for frame in panels.values()))
    runs = sorted(dict.fromkeys(whole["run"]), key=lambda run: run not in common)
    # No other run has a colour of those that are in every panel.
    free = [i for i in range(99) if i < len(common) or i % len(COLOURS) >= len(common)]
    styles = dict(zip(runs, map(run_styles(range(99)).get, [*free, *range(99)]), strict=False))
    figure = make_subplots(1, len(panels), shared_yaxes=True, horizontal_spacing=0.03)
    base(figure, 420, title, dragmode=False, showlegend=False, margin={"r": 170, "t": 48})
    for column, (over, frame) in enumerate(panels.items(), start=1):
        told = frame.assign(at=frame["cost"].map("{:,.3g}".format))
        traces = curve_traces(dict([*told.groupby("run", sort=False)]), "cost", styles, "value")
        figure.add_traces(traces, rows=1, cols=column)
        ticks = "~s" if "FLOPs" in over else ",d"
        figure.update_xaxes(title=over, tickformat=ticks, rangemode="tozero", col=column)
    low, high = whole[["value", "low"]].min().min(), whole[["value", "high"]].max().max()
    span = [low - 0.03 * (high - low), high + 0.03 * (high - low)]
    ends = whole.sort_values("cost").groupby("run", sort=False)["value"].last()
    figure.layout.annotations = end_names(ends, styles, span, 280)
    figure.update_yaxes(tickformat=".0%", range=span)
    return figure.update_yaxes(title=words, col=1)
