"""Figure of one thinking's credit: returns and baselines above, advantages of its tokens below."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd
import plotly.graph_objects as go

from anytime_lab.look.credit_data import METHOD_WORDS
from anytime_lab.look.plot_style import COLOURS, axis_span, budget_ticks, run_styles, safe_text

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
