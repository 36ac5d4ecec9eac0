"""One function a figure: tidy frames in, a plotly figure out, shown static and alive."""

from collections.abc import Iterable, Mapping, Sequence
from itertools import product
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.colors import sample_colorscale
from plotly.subplots import make_subplots

from anytime_lab.look.style import (
    BAND_OPACITY,
    COLOURS,
    QUIET,
    RunStyle,
    axis_span,
    base,
    budget_ticks,
    end_names,
    faded,
    label_lines,
    log_ticks,
    point_ticks,
    run_styles,
    safe_text,
    short_text,
)
from anytime_lab.page import plain, short
from anytime_lab.priors import Prior
from anytime_lab.read.claims import AXES
from anytime_lab.read.credit import largest_advantage
from anytime_lab.read.policies import FIXED, MAJORITY, RULES
from anytime_lab.read.told import BUDGETS, SOURCE, signed
from anytime_lab.read.training import BASELINE_NAMES
from anytime_lab.store.rollouts import ADVANTAGE

CURVES = {  # what a curve is of: before its bounds in the frame, its value in words
    "accuracy": ("", "{:.1f} %"),
    "difference": ("difference_", "{:+.1f}"),
    "value": ("", "{:.1f}%"),
}
BANDS = {  # the widest first: before low and high in the frame, what it holds at, its opacity
    "band_": ("at all budgets", BAND_OPACITY / 2),
    "": ("95 %", BAND_OPACITY),
}
OVER = {  # what the curves are drawn over: column, words
    "budget": "Thinking budget (tokens allowed)",
    "spent": "Thinking tokens spent (mean per problem)",
    "seconds": "Seconds, estimated: tokens spent at the evaluation's own pace, summaries included",
    "flops": "FLOPs of thinking, estimated: 2 × parameters × tokens spent",
}
MANY = 6  # runs whose bands can still be told apart
STRIP, GAP = 0.13, 0.055  # shares of the height: the prior, and the room between panels


def plot_curves(
    curves: pd.DataFrame,
    runs: Sequence[str] | None = None,
    *,
    over: str = "budget",
    reference: str = "",
    prior: Prior | None = None,
    published: pd.DataFrame | None = None,
    log: bool = False,
    title: str = "Accuracy by thinking budget",
    height: int = 440,
) -> go.Figure:
    """Accuracy against the thinking budget; below it, on the same axis, what the frame has more of.

    Args:
        curves: columns run, budget (tokens), accuracy, low, high; with difference, difference_low,
            difference_high the panel of differences to `reference` is drawn; with spent, seconds or
            flops the curves can be drawn over it; with told a sentence is said of each point.
        runs: all runs of the study in order, which gives their colours; those in `curves` if None.
        over: one of OVER.
        prior: drawn as bars under the budgets.
        published: the frame of published_table() for one benchmark, laid over.
        log: logarithmic axis.

    Returns traces named "RUN 95 %" (bands, unseen where there are more than MANY), RUN (lines), for
    each panel, and "prior"; with difference_band_low and difference_band_high also "RUN at all
    budgets", the wider and fainter bands that hold at all of them at once.
    """
    wanted = ["run", "budget", "accuracy", "low", "high"]
    if missing := [column for column in wanted if column not in curves]:
        raise ValueError(f"the frame lacks the columns {missing}; it has {list(curves.columns)}.")
    if not len(curves):
        raise ValueError("the frame is empty; there is nothing to draw.")
    found = curves["run"].unique().tolist()
    styles = run_styles(runs or found)
    if missing := [run for run in found if run not in styles]:
        raise ValueError(f"the frame holds runs that `runs` does not name: {missing}.")
    rows = curves.sort_values(over).set_index("budget", drop=False)
    rows = rows.assign(at=rows["budget"].map("{:,.0f} tokens".format))
    parts = {run: rows[rows["run"] == run] for run in styles if run in found}
    settings = {"stops": sorted(set(rows.index)), "rest": 0 if len(found) > MANY else 1}
    settings["showlegend"] = False
    traces = curve_traces(parts.items(), over, styles, **settings)
    compared = "difference" in rows and bool(rows["difference"].notna().any())
    bottom = STRIP + GAP if prior else 0.0
    middle = bottom + 0.42 * (1 - bottom) if compared else bottom - GAP
    values = rows[["accuracy", "low", "high"]]
    if published is not None:
        values = pd.concat([values, published[["final", "anytime"]]])
    span, domain = axis_span(values, 0.0, 1.0), [middle + GAP, 1.0]
    panels = {"yaxis": {"title": "Accuracy", "tickformat": ".0%", "range": span, "domain": domain}}
    if compared:
        settings |= {"measure": "difference", "yaxis": "y2"}
        traces += curve_traces(parts.items(), over, styles, **settings)
        values = rows[["difference", "difference_low", "difference_high"]].assign(zero=0.0)
        low, high = axis_span(values, -1.0, 1.0)
        panels["yaxis2"] = {
            "title": f"Points to {short_text(reference, 24)}", "domain": [bottom, middle],
            "zeroline": True, "zerolinecolor": QUIET, "zerolinewidth": 1.5,
            "range": [low, high], **point_ticks(low, high),
        }  # fmt: skip
    if prior is not None:
        traces.append(prior_trace(prior, rows[over].groupby("budget").mean()))
        panels["yaxis3"] = {
            "title": "Prior", "domain": [0.0, STRIP], "range": [0, 1.25 * max(prior.weights)],
            "tickformat": ".0%", "nticks": 3, "zeroline": True,
        }  # fmt: skip
    places = sorted(set(rows[over].dropna()))
    if published is not None:  # its points may lie further out
        traces += published_traces(published, list(styles))
        axis = {"tickformat": ",d"}
    else:  # the range ends with the budgets, and has ticks there where they are drawn over
        least, most = np.log10([places[0], places[-1]]) if log else (places[0], places[-1])
        room = 0.02 * (most - least or most or 1)
        axis = log_ticks(places) if log else budget_ticks(places)
        if over != "budget":
            axis = {"tickformat": "~s" if over == "flops" else ",d" if places[-1] > 10 else None}
        axis["range"] = [least - room, most + room]
    axis |= {"title": OVER[over], "type": "log" if log else "linear"}
    letters = max(len(line) for run in found for line in label_lines(run))  # at line ends
    margin = {"r": 36 + round(7.4 * letters), "t": 56 if title else 20, "b": 48}
    pixels = (height - margin["t"] - margin["b"]) * (domain[1] - domain[0])
    ends = rows.groupby("run", sort=False)["accuracy"].last()
    return base(
        go.Figure(traces), height, title, **panels,
        xaxis={**axis, "anchor": [*panels][-1].replace("axis", "")},  # under the lowest
        showlegend=published is not None, dragmode=False, hoverdistance=30, margin=margin,
        annotations=end_names(ends, styles, span, pixels),
    )  # fmt: skip


def curve_traces(
    parts: Iterable[tuple[str, pd.DataFrame]],
    x: str,
    styles: Mapping[str, RunStyle],
    measure: str = "accuracy",
    stops: Sequence[int] = (),
    rest: float = 1,
    banded: Sequence[str] | None = None,
    **more: Any,
) -> list[dict]:
    """Curves as traces, told point by point: BANDS, and lines on top of them.

    Args:
        parts: names, each with its points: columns run and at (their names in words), the measure,
            its low and high, and x; told, where more is said. Their index says at which stop they
            are.
        measure: one of CURVES.
        stops: where a line may stand, whose numbers ride on it.
        rest: opacity of the bands, not pointed at.
        banded: the names that have a band; None for all.
        more: of all traces, beside that.
    """
    prefix, words = CURVES[measure]
    known = {name: rows for name, part in parts if len(rows := part.dropna(subset=measure))}
    traces = []
    for (before, (held, opacity)), (name, part) in product(BANDS.items(), known.items()):
        ends = [f"{prefix}{before}{end}" for end in ("high", "low")]
        if ends[1] in part and (banded is None or name in banded):
            part = part.dropna(subset=ends)
            traces.append(
                {
                    "x": [*part[x], *part[x][::-1]],
                    "y": [*part[ends[0]], *part[ends[1]][::-1]],
                    "fill": "toself",
                    "fillcolor": faded(styles[name].colour, opacity),
                    "line": {"width": 0},
                    "mode": "lines",
                    "name": f"{safe_text(name)} {held}",
                    "showlegend": False,
                    "hoverinfo": "skip",
                    "opacity": rest,
                    "meta": {"name": plain(name), "rest": rest},
                    **more,
                }
            )
    for name, part in known.items():
        said, riding = [], dict.fromkeys(stops)
        for stop, row in zip(part.index, part.to_dict("records"), strict=True):
            told, low, high = (
                words.format(100 * row[column]).replace("-", "−")
                for column in (measure, f"{prefix}low", f"{prefix}high")
            )
            bounds = "" if pd.isna(row[f"{prefix}low"]) else f" [{low}, {high}]".replace(" %", "")
            also = f"<br>{safe_text(row['told'])}" if row.get("told") else ""
            said.append(f"{short_text(row['run'])}: <b>{told}</b>{bounds} at {row['at']}{also}")
            if stop in riding:
                riding[stop] = [row[x], row[measure], told]
        points = part[x], part[measure], said, name, styles[name], riding.values()
        traces.append(told_line(*points, marker={"size": 7 if len(part) <= 16 else 5}, **more))
    return traces


def told_line(
    x: Iterable[float],
    y: Iterable[float],
    said: str | Sequence[str],
    name: str,
    style: RunStyle,
    riding: Iterable[Sequence | None] = (),
    **more: Any,
) -> dict:
    """A line with markers, as a trace.

    Args:
        said: of each point, safe for plotly; or a hover template for all.
        riding: of each stop where a line may stand: x, y and words, or None; none where y is NaN.
        more: of the trace, in place of what it has; of its line and marker, beside that.
    """
    told, template = (None, said) if isinstance(said, str) else (list(said), "%{customdata}")
    line = {"color": style.colour, "dash": style.dash, "width": 2.4}
    stops = [[*stop] if stop and not pd.isna(stop[1]) else None for stop in riding]
    return {
        "x": list(x),
        "y": list(y),
        "customdata": told,
        "hovertemplate": f"{template}<extra></extra>",
        "mode": "lines+markers",
        "name": safe_text(name),
        "legendgroup": safe_text(name),
        "meta": {"riding": stops, "name": plain(name)} if stops else None,
        **more,
        "line": line | more.get("line", {}),
        "marker": {"symbol": style.marker, "size": 7} | more.get("marker", {}),
    }


def prior_trace(prior: Prior, places: pd.Series) -> dict:
    """The bars of a prior; `places` are the x of all budgets drawn."""
    weights = pd.Series(prior.weights, prior.budgets).reindex(places.index, fill_value=0.0)
    said = [f"{weight:.1%} on {budget:,} tokens" for budget, weight in weights.items()]
    return {
        "yaxis": "y3",
        "x": np.repeat(places.to_numpy(), 3).tolist(),
        "y": [y for weight in weights for y in (0, weight, None)],
        "mode": "lines",
        "name": "prior",
        "showlegend": False,
        "line": {"color": QUIET, "width": 12 if len(weights) <= 16 else 6},
        "customdata": np.repeat(said, 3).tolist(),
        "hovertemplate": "%{customdata}<extra></extra>",
        "meta": {"paint": weights.tolist()},
    }


MARKS = {  # a turn of the answer, the most telling first: words, symbol; in a text
    "first_right": ("first right", "star", "★ first right:"),
    "lost": ("right before, lost here", "x", "✗ lost:"),
    "flip": ("another answer", "triangle-down", "▼"),
}
COUNT_WORDS = {
    "spent": "Thinking tokens spent (mean per problem)",
    "allowed": "Thinking tokens allowed (budget at the stop; k·b for a majority)",
    "with_summaries": "Thinking and summary tokens spent (mean per problem)",
}


def plot_policies(
    policies: pd.DataFrame,
    title: str = "Early-exit rules beside fixed budgets",
    count: str = "spent",
    log_tokens: bool = True,
    beyond: bool = False,
) -> go.Figure:
    """Accuracy against tokens of each rule, with the band of the fixed budgets.

    Args:
        policies: the frame of policy_frame(): policy, setting, value, tokens, accuracy, low, high.
        count: how its tokens were counted, for the axis.
        log_tokens: logarithmic token axis.
        beyond: also show what costs more than the largest fixed budget, and has none beside it.

    Returns traces named "fixed budget 95 %" and, per rule, its name.
    """
    shown = policy_points(policies, beyond)
    at = shown["tokens"].map("{:,.0f} tokens".format)
    points = shown.assign(run=shown["setting"], at=at)
    lines, styles = policy_lines(points).items(), run_styles(list(policy_lines(policies)))
    stops = points.index[points["policy"] != FIXED]
    traces = curve_traces(lines, "tokens", styles, stops=stops, banded=[FIXED])
    figure = base(go.Figure(traces), 460, title, dragmode=False)
    span = axis_span(shown[["accuracy", "low", "high"]], 0.0, 1.0)
    figure.update_yaxes(title="Accuracy", tickformat=".0%", range=span)
    log = log_tokens and shown["tokens"].min() > 0
    scale = {"type": "log", "dtick": "D2"} if log else {"type": "linear"}
    return figure.update_xaxes(title=COUNT_WORDS[count], tickformat=",d", **scale)


def policy_points(policies: pd.DataFrame, beyond: bool) -> pd.DataFrame:
    """What is drawn: unless `beyond`, what costs no more than the dearest fixed budget."""
    fixed = policies.loc[policies["policy"] == FIXED, "tokens"]
    return policies if beyond else policies[policies["tokens"] <= 1.05 * fixed.max()]


def policy_lines(policies: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """The points of each line: one per rule, a majority one per k; sorted along the line."""
    rules = policies["policy"].map({policy: words for policy, (words, *_) in RULES.items()})
    by_k = policies["value"].map("majority of {:g}".format)
    lines = policies.groupby(rules.mask(policies["policy"] == MAJORITY, by_k), sort=False)
    return {name: part.sort_values(["value", "tokens"]) for name, part in lines}


def plot_calibration(
    calibration: pd.DataFrame,
    title: str = "Calibration of the confidence",
) -> go.Figure:
    """How often answers of a confidence are right, with 95 % bars and the diagonal.

    Args:
        calibration: columns confidence, accuracy, low, high, answers.
    """
    said = [
        f"confidence {c:.1%}: <b>{a:.1%}</b> right of {n:,} answers"
        for c, a, n in calibration[["confidence", "accuracy", "answers"]].to_numpy(dtype=object)
    ]
    right, style = calibration["accuracy"], run_styles(["answers"])["answers"]
    bars = {"symmetric": False, "width": 4}
    bars |= {"array": calibration["high"] - right, "arrayminus": right - calibration["low"]}
    points = told_line(calibration["confidence"], right, said, "answers", style, error_y=bars)
    figure = base(go.Figure(), 380, title, showlegend=False, margin={"t": 56})
    figure.add_scatter(
        x=[0, 1], y=[0, 1], mode="lines", name="perfectly calibrated", hoverinfo="skip",
        line={"color": QUIET, "width": 1.5, "dash": "dot"},
    )  # fmt: skip
    figure.add_trace(points)
    figure.update_xaxes(title="Confidence of the answer", tickformat=".0%", range=[-0.02, 1.02])
    return figure.update_yaxes(title="Share right", tickformat=".0%", range=[-0.02, 1.02])


def plot_thinking(
    paths: Mapping[str, pd.DataFrame],
    title: str = "Share of right summaries along one thinking",
) -> go.Figure:
    """How right thinkings of one problem are at each budget, and where their answers turn.

    Args:
        paths: run → the frame of answer_path(): budget, answer, share_right, right, flip,
            first_right, lost.
    """
    figure = base(go.Figure(), 250, title, dragmode=False, margin={"b": 48})
    for row, (run, style) in enumerate(run_styles(list(paths)).items()):
        path, said, riding, turns = paths[run], [], [], []
        for line in path.to_dict("records"):
            answer = "no answer" if line["answer"] is None else line["answer"]
            told = f"{short_text(run)} at {line['budget']:,} tokens: {short_text(answer)}"
            said.append(f"{told} ({line['share_right']:.0%} right)")
            riding.append([line["budget"], line["share_right"], short(answer, 24)])
            if mark := next((mark for column, mark in MARKS.items() if line[column]), None):
                turns.append((line["budget"], f"{told}, {mark[0]}", mark[1]))
        filled = {"size": 9, "symbol": np.where(path["right"], "circle", "circle-open").tolist()}
        shape = {"line": {"shape": "hv"}, "marker": filled}
        shares = path["budget"], path["share_right"]
        figure.add_trace(told_line(*shares, said, run, style, riding, **shape))
        budgets, said, symbols = zip(*turns, strict=True) if turns else ((), (), ())
        marks = {"size": 12, "color": style.colour, "symbol": list(symbols)}
        more = {"mode": "markers", "showlegend": False, "marker": marks}
        heights = [1.18 + 0.2 * row] * len(budgets)  # in a row of their own above
        figure.add_trace(told_line(budgets, heights, said, f"{run}, turns", style, **more))
    budgets = [budget for path in paths.values() for budget in path["budget"]]
    figure.update_xaxes(title="Thinking budget (tokens)", **budget_ticks(budgets))
    top = 1.15 + 0.2 * len(paths)
    return figure.update_yaxes(
        title="Summaries right", tickformat=".0%", range=[-0.1, top], tickvals=[0, 0.5, 1]
    )


def published_traces(published: pd.DataFrame, runs: Sequence[str]) -> list[dict]:
    """Two traces per published run: its anytime accuracy as a line, its final one as a point."""
    names = [f"{run} (published)" for run in published["run"]]
    styles = run_styles([*runs, *names])
    traces = []
    for name, row in zip(names, published.itertuples(), strict=True):
        told, said = f"{safe_text(name)}, {safe_text(row.benchmark)}", f"%{{y:.1%}} ({SOURCE})"
        style, ends = styles[name], [BUDGETS[0], BUDGETS[-1]]
        line = {"mode": "lines", "line": {"dash": "dot", "width": 1.2}, "showlegend": False}
        line |= {"legendgroup": safe_text(name)}
        ring = {"symbol": f"{style.marker}-open", "size": 11, "line": {"width": 2}}
        point = {"mode": "markers", "marker": {**ring, "color": style.colour}}
        along = (ends, [row.anytime] * 2, f"{told}: anytime {said}", f"{name}, anytime", style)
        at_end = (ends[1:], [row.final], f"{told}: final {said}", name, style)
        traces += [told_line(*along, **line), told_line(*at_end, **point)]
    return traces


GAIN, LOSS = "#0072B2", "#B37A00"  # of an advantage, above and below 0: more and less likely
CREDITED = [[0.0, LOSS], [0.5, "#888888"], [1.0, GAIN]]
LEAVES = {  # verdict: symbol, colour
    "right": ("circle", COLOURS[2]),
    "wrong": ("x-thin", COLOURS[1]),
    "abstained": ("circle-open", QUIET),
}


def plot_tree(tree: pd.Series, frame: pd.DataFrame, methods: Mapping[str, str]) -> go.Figure:
    """One thinking as a tree: a trunk along its tokens, and at each budget its summaries as leaves.

    A leaf is a disc where it is right, a cross where it is wrong, a ring where it abstained; the
    right ones stand lowest. Past the end of the thinking the trunk is dotted: later budgets ask
    the same one again.

    Args:
        tree: a row of Rollouts.frame.
        frame: its credit_frame().
        methods: name → words; each is a trunk, one below the other, whose colour and width are the
            advantage of the tokens that lead to a budget.
    """
    figure, budgets, ended = go.Figure(), frame["budget"].tolist(), int(frame["end"].max())
    last, largest = budgets[-1], largest_advantage(frame, methods)
    for level, (name, words) in enumerate(methods.items()):
        for line in frame[frame["end"] > frame["start"]].itertuples():
            start, end, value = line.start, line.end, getattr(line, f"{ADVANTAGE}{name}")
            told = f"{safe_text(words)}, tokens {start + 1:,}–{end:,}: {signed(value, 3)}"
            share = value / largest if largest and value == value else 0.0
            (colour,) = sample_colorscale(CREDITED, [0.5 + share / 2])
            figure.add_scatter(
                x=[start, (start + end) / 2, end], y=[-level] * 3, name=safe_text(words),
                mode="lines", hovertemplate=f"{told}<extra></extra>",
                line={"color": colour, "width": 3 + 11 * abs(share)},
            )  # fmt: skip
    quiet = {"mode": "lines", "hoverinfo": "skip", "line": {"color": QUIET, "width": 1}}
    if ended < last:
        figure.add_scatter(x=[ended, last], y=[0, 0], name="ended", **quiet, line_dash="dot")
    scores, count = np.stack([*tree["scores"]]), len(tree["scores"][0])
    ranks = np.argsort(np.argsort(-np.nan_to_num(scores, nan=-1.0), kind="stable")).ravel()
    below = np.repeat(budgets, count)
    x = (below + min(0.025 * last, 0.5 * min(np.diff([0, *budgets])))).tolist()
    y = (1 + 3.2 * (ranks + 0.5) / count).tolist()
    verdicts = np.select([np.isnan(scores), scores >= 0.5], ["abstained", "right"], "wrong").ravel()
    symbols, colours = zip(*map(LEAVES.get, verdicts), strict=True)
    texts = [short_text(text) for row in tree["summaries"] for text in row]
    told = [
        f"{budget:,} tokens, summary {place % count}: {verdict}<br>{text}"
        for place, (budget, verdict, text) in enumerate(zip(below, verdicts, texts, strict=True))
    ]
    figure.add_scatter(
        x=[at for ends in zip(below, x, strict=True) for at in (*ends, None)],
        y=[at for end in y for at in (0, end, None)], name="branches", **quiet,
    )  # fmt: skip
    figure.add_scatter(
        x=x, y=y, mode="markers", name="summaries",
        customdata=told, hovertemplate="%{customdata}<extra></extra>",
        marker={
            "size": 10 if count <= 6 else 6,
            "color": colours,
            "symbol": symbols,
            "line": {"color": colours, "width": 2},
        },
    )  # fmt: skip
    margin = {"t": 10, "b": 48, "l": 8}
    base(figure, 150 + 24 * len(methods), showlegend=False, margin=margin)
    figure.update_xaxes(
        title="Thinking (tokens)", range=[-0.01 * last, 1.05 * last], zeroline=False,
        title_standoff=4, **budget_ticks(budgets),
    )  # fmt: skip
    return figure.update_yaxes(
        range=[0.4 - len(methods), 4.6], showgrid=False, zeroline=False, automargin=True,
        tickvals=[-level for level in range(len(methods))],
        ticktext=[safe_text(words) for words in methods.values()],
    )  # fmt: skip


CREDIT = {  # column of credit_frame(), words
    "return": "return R",
    "progress": "progress baseline V1",
    "group": "group baseline V2",
    "brpo": "BRPO baseline V",
}


def plot_credit(frame: pd.DataFrame, methods: Mapping[str, str], title: str = "") -> go.Figure:
    """R, V1, V2, V and the advantages that methods give to the tokens of one thinking.

    Args:
        frame: of credit_frame().
        methods: name → words, of METHOD_WORDS or a run's own.
    """
    figure = make_subplots(2, 1, shared_xaxes=True, row_heights=[0.56, 0.44], vertical_spacing=0.08)
    advantages = {f"{ADVANTAGE}{name}": words for name, words in methods.items()}
    budgets, trained = frame["budget"].tolist(), frame[frame["end"] > frame["start"]]
    styles = run_styles([*CREDIT, *advantages])
    for column, words in CREDIT.items():
        values, said = frame[column], f"{words} at %{{x:,d}} tokens: %{{y:.3f}}"
        riding = zip(budgets, values, values.map("{:.2f}".format), strict=True)
        line = told_line(budgets, values, said, words, styles[column], riding)
        figure.add_trace(line, row=1, col=1)
    for place, (column, words) in enumerate(advantages.items()):
        values, at = trained[column].tolist(), trained[column].reindex(frame.index)
        line = told_line(
            [*trained["start"], *trained["end"][-1:]], [*values, *values[-1:]],
            f"{safe_text(words)} from token %{{x:,d}}: %{{y:+.3f}}", f"advantage, {words}",
            styles[column], zip(budgets, at, at.map(signed), strict=True), mode="lines",
            line={"shape": "hv", "dash": "dash" if place else "solid", "width": 3},
        )  # fmt: skip
        figure.add_trace(line, row=2, col=1)
    ended, last = int(frame["end"].max()), int(frame["budget"].max())
    if ended < last:
        figure.add_vline(ended, line={"color": QUIET, "width": 1.5, "dash": "dot"})
        figure.add_annotation(
            text="ended", x=ended, xanchor="left", showarrow=False, font={"size": 12},
            y=0.445, yref="paper", yanchor="middle",
        )  # fmt: skip
    base(figure, 380 + (60 if title else 0), title, margin={"t": 112 if title else 52})
    if title:  # above a legend of two rows
        figure.update_layout(title={"y": 1, "yanchor": "top", "pad": {"t": 16}})
    span = [-0.01 * last, 1.05 * last]
    figure.update_xaxes(range=span, zeroline=False, **budget_ticks(budgets))
    figure.update_xaxes(title="Thinking (tokens)", title_standoff=4, row=2)
    panels = (("Reward", CREDIT), ("Advantage", advantages))
    for number, (words, part) in enumerate(panels, start=1):
        span = axis_span(frame[[*part]].assign(zero=0.0), -1e9, 1e9)
        figure.update_yaxes(title=words, range=span, row=number)
    return figure.update_yaxes(zeroline=True, zerolinecolor=QUIET, row=2)


MOST = 500  # points of a line, about its pixels; more are thinned evenly, the last always drawn
FOLLOWED = 7  # budgets whose score is followed over the updates: as many as there are colours
MEASURES = {"corr": "corr(V, R)", "ratio": "Var[R−V] / Var[R]"}
ROW, BETWEEN = 210, 110  # pixels of a row of panels, and between two: axis title, legend, title


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
    styles = run_styles(runs or training["run"].unique())
    measures = training["measure"].unique()
    titles = [[m.capitalize() + ("" if "accuracy" in m else " (tokens)") for m in measures]]
    if scores:
        titles.append(["Score by budget, latest mean", f"Scores of {short_text(detail, 24)}"])
    if variance is not None and len(variance):
        titles.append(list(MEASURES.values()))
    plotted, spans = len(titles) * (ROW + BETWEEN) - BETWEEN, [6 // len(row) for row in titles]
    figure = make_subplots(
        rows=len(titles),
        cols=6,
        specs=[[{"colspan": span}, *[None] * (span - 1)] * (6 // span) for span in spans],
        subplot_titles=[title for row in titles for title in row],
        horizontal_spacing=0.045,
        vertical_spacing=BETWEEN / plotted if len(titles) > 1 else 0,
    )
    base(figure, plotted + 76 + 56, margin={"t": 76})
    for number in range(len(titles)):  # the second row's is of the right panel: the left has runs
        side = {"x": 1, "xanchor": "right"} if number == 1 else {"x": 0}
        top = 1 - (number * (ROW + BETWEEN) - 24) / plotted
        legend = {"orientation": "h", "y": top, "yanchor": "bottom", **side}
        figure.update_layout({f"legend{number + 1 if number else ''}": legend})
    for place, (measure, part) in enumerate(training.groupby("measure", sort=False)):
        _add_measure(figure, part, measure, styles, over, {"row": 1, "col": 1 + place * spans[0]})
    if scores:
        _add_scores(figure, pd.concat(scores, names=["run"]).reset_index("run"), styles, detail)
    if len(titles) == 3:
        _add_variance(figure, variance)
    return figure.update_xaxes(title_standoff=4, zeroline=False)


def _add_lines(figure, frame, by, x, y, styles, said, where, suffix="", **more: Any) -> None:
    """A line of y over x for each name in the column `by`; `said` of its points, after the name."""
    for name, part in frame.groupby(by, sort=False):
        part = part.sort_values(x).iloc[thinned(len(part))]
        settings = {"mode": "lines" if len(part) > 1 else "markers"}  # one point is no line
        settings |= {"legendgroup": safe_text(name), **more}
        told = f"{short_text(name)}{said}"
        line = told_line([], [], told, f"{name}{suffix}", styles[name], **settings)
        points = {"x": part[x].to_numpy(), "y": part[y].to_numpy()}  # arrays are sent faster
        figure.add_trace(line | points, **where)


def _add_measure(figure, frame, measure: str, styles, over: str, where: dict) -> None:
    share, values, first = "accuracy" in measure, frame[["value", "smooth"]], where["col"] == 1
    unit = ": %{y:.1%}" if share else ": %{y:.1f} tokens"
    faint = {"opacity": 0.4, "line": {"width": 1, "dash": "solid"}, "hoverinfo": "skip"}
    faint |= {"hovertemplate": None, "showlegend": False}
    _add_lines(figure, frame, "run", over, "value", styles, "", where, ", each step", **faint)
    # the first panel has every run
    _add_lines(figure, frame, "run", over, "smooth", styles, unit, where, showlegend=first)
    figure.update_xaxes(title="Update" if over == "step" else "Seconds of training", **where)
    if share and values.notna().any(axis=None):
        figure.update_yaxes(tickformat=".0%", range=axis_span(values, 0.0, 1.0), **where)


def _add_scores(figure, scores: pd.DataFrame, styles, detail: str) -> None:
    left, right = {"row": 2, "col": 1}, {"row": 2, "col": 4}
    said, marked = " at %{x:,d} tokens: %{y:.1%}", {"mode": "lines+markers", "showlegend": False}
    last = scores.groupby(["run", "budget"], sort=False, as_index=False).last()
    _add_lines(figure, last, "run", "budget", "smooth", styles, said, left, **marked)
    mine = scores[scores["run"] == detail]
    budgets = mine["budget"].unique()
    evenly = np.linspace(0, len(budgets) - 1, min(FOLLOWED, len(budgets))).round().astype(int)
    mine = mine[mine["budget"].isin(budgets[evenly])]
    mine = mine.assign(at=mine["budget"].map("{:,} tokens".format))
    own, more = run_styles(mine["at"].unique()), {"legend": "legend2"}
    _add_lines(figure, mine, "at", "step", "smooth", own, ": %{y:.1%}", right, **more)
    every = budget_ticks(scores["budget"], 8)
    figure.update_xaxes(title="Thinking budget (tokens)", **every, **left)
    figure.update_xaxes(title="Update", **right)
    figure.update_yaxes(tickformat=".0%", row=2)


def _add_variance(figure, variance: pd.DataFrame) -> None:
    told = variance.assign(baseline=variance["baseline"].replace(BASELINE_NAMES))
    styles, said = run_styles(told["baseline"].unique()), " at %{x:,d} tokens: %{y:.2f}"
    for place, measure in enumerate(MEASURES):
        part, where = told[told["measure"] == measure], {"row": 3, "col": 1 + 3 * place}
        more = {"mode": "lines+markers", "legend": "legend3", "showlegend": not place}
        _add_lines(figure, part, "baseline", "budget", "value", styles, said, where, **more)
    ticks = budget_ticks(variance["budget"], 8)
    figure.update_xaxes(title="Thinking budget (tokens)", **ticks, row=3)
    figure.update_yaxes(rangemode="tozero", row=3, col=4)
    one = {"line": {"color": QUIET, "width": 1.5}, "layer": "below"}
    note = {"annotation_text": "no baseline", "annotation_position": "top right"}
    figure.add_hline(1, row=3, col=4, **one, **note)


AXIS_MARKS = {"updates": "circle", "seconds": "diamond", "flops": "square"}
SIDES = {"holds": 0, "above": 0, "the other way": 1, "below": 1}  # their colours


def plot_claims(frame: pd.DataFrame, title: str = "What each claim comes to") -> go.Figure:
    """Effects with their intervals, a row a claim and a mark an axis; blue holds, orange contrary.

    Args:
        frame: of `claim_frame`; one measure's unit, so claims on lengths are left out.

    Returns traces named by the axes.
    """
    shown, numbers = frame[frame["measure"] != "length"], ["effect", "low", "high"]
    shown = shown.assign(**(100 * shown[numbers]))
    claims = list(dict.fromkeys(shown["claim"]))[::-1]
    figure = base(go.Figure(), 120 + 34 * len(claims), title, dragmode=False)
    for place, (axis, part) in enumerate(shown.groupby("axis", sort=False)):
        rows = [claims.index(claim) + 0.22 * (1 - place) for claim in part["claim"]]
        colours = [COLOURS[SIDES[v]] if v in SIDES else QUIET for v in part["verdict"]]
        bars = {"array": part["high"] - part["effect"], "arrayminus": part["effect"] - part["low"]}
        told = [
            f"{safe_text(row.claim)} at equal {AXES[axis]}: <b>{row.effect:+.1f}</b> points "
            f"[{row.low:+.1f}, {row.high:+.1f}], {row.seeds} seeds: {row.verdict}"
            for row in part.itertuples()
        ]
        figure.add_scatter(
            x=part["effect"], y=rows, mode="markers", name=f"at equal {AXES[axis]}",
            marker={"symbol": AXIS_MARKS[axis], "size": 8, "color": colours},
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
        told = frame.assign(at=frame["cost"].map("{:,.3g}".format)).groupby("run", sort=False)
        figure.add_traces(curve_traces(told, "cost", styles, "value"), rows=1, cols=column)
        ticks = "~s" if "FLOPs" in over else ",d"
        figure.update_xaxes(title=over, tickformat=ticks, rangemode="tozero", col=column)
    low, high = whole[["value", "low"]].min().min(), whole[["value", "high"]].max().max()
    span = [low - 0.03 * (high - low), high + 0.03 * (high - low)]
    ends = whole.sort_values("cost").groupby("run", sort=False)["value"].last()
    figure.layout.annotations = end_names(ends, styles, span, 280)
    figure.update_yaxes(tickformat=".0%", range=span)
    return figure.update_yaxes(title=words, col=1)
