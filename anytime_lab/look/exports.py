"""A figure or a tidy table → a file."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import plotly.graph_objects as go
from plotly.offline import get_plotlyjs

from anytime_lab.look.pictures import draw
from anytime_lab.page import escaped
from anytime_lab.store.records import write_text

FIGURES, TABLES = ("html", "png", "svg"), ("csv", "tex")
PIXELS = {"width": 960, "scale": 2}
_TEX = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    **{c: f"\\{c}" for c in "&%$#_{}"},
}


def export(figure: go.Figure, frame: pd.DataFrame, path: str | Path) -> Path:
    """Writes the figure (html, png, svg) or the frame (csv, tex), by the ending of `path`.

    Raises:
        ValueError: the ending is none of these.
        RuntimeError: an image was wanted and no browser could draw it.
        RunFolderError: the file cannot be written.
    """
    path = Path(path)
    kind = path.suffix.lstrip(".").lower()
    if kind not in FIGURES + TABLES:
        raise ValueError(
            f"cannot export to {path.name!r}; end it in one of {', '.join(FIGURES + TABLES)}."
        )
    if kind == "html":
        write_text(path, _page(figure))
    elif kind == "csv":
        write_text(path, frame.to_csv(index=False))
    elif kind == "tex":
        write_text(path, latex_table(frame))
    else:
        write_text(path, *draw([figure.to_dict()], kind, **PIXELS))
    return path


def _page(figure: go.Figure) -> str:
    """The figure as one page that fetches nothing."""
    title = escaped(figure.layout.title.text or "Accuracy by thinking budget")
    inner = figure.to_html(
        full_html=False,
        include_plotlyjs=False,
        config={"displaylogo": False, "responsive": True, "plotlyServerURL": ""},
    )
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
        f'<link rel="icon" href="data:,"><script>{get_plotlyjs()}</script></head>\n'
        f"<body>{inner}</body></html>\n"
    )


def latex_table(frame: pd.DataFrame, digits: int = 3) -> str:
    """The frame as a booktabs tabular; numbers rounded, text escaped, missing values a dash."""
    align = "".join("l" if not pd.api.types.is_numeric_dtype(frame[c]) else "r" for c in frame)
    lines = [rf"\begin{{tabular}}{{{align}}}", r"\toprule"]
    lines.append(" & ".join(_tex(c) for c in frame.columns) + r" \\")
    lines.append(r"\midrule")
    for values in frame.itertuples(index=False):
        lines.append(" & ".join(_cell(v, digits) for v in values) + r" \\")
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}"]) + "\n"


def _cell(value: object, digits: int) -> str:
    if pd.isna(value):
        return "--"
    return f"${value:.{digits}f}$" if isinstance(value, float) else _tex(value)


def _tex(text: object) -> str:
    return "".join(_TEX.get(c, c) for c in str(text)).replace("\n", " ")
