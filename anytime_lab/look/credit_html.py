"""One thinking → HTML: each stretch of its tokens coloured by its advantage, cuts marked."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from anytime_lab.look.credit_data import METHOD_WORDS, NOTHING, signed, told_tokens
from anytime_lab.page import escaped, region, short, table

GAIN, LOSS = "0,114,178", "230,159,0"  # Okabe–Ito blue and orange
DEEPEST = 0.6  # opacity at the end of the scale: text stays readable on it, light and dark
SHOWN = 16_000  # characters of a thinking that are shown in a column
SUMMARY = 300  # characters of a summary


def tint(value: float, largest: float) -> str:
    """The inline style of an advantage: hue and underline by its sign, depth by its size."""
    if value != value or abs(value) < NOTHING or largest <= 0:
        return ""
    depth = DEEPEST * min(abs(value) / largest, 1.0)
    hue, line = (GAIN, "solid") if value > 0 else (LOSS, "dotted")
    return f"background: rgba({hue},{depth:.3f}); border-bottom: 2px {line} rgb({hue})"


def tokens_html(
    thinking: str,
    token_ends: Sequence[int],
    frame: pd.DataFrame,
    method: str,
    largest: float,
    budget: int,
) -> str:
    """The thinking, every stretch between two cuts in the colour of its advantage.

    Args:
        thinking: its text.
        token_ends: (T,) the character before which each token ends.
        frame: of credit_frame().
        method: whose advantages.
        largest: end of the colour scale.
        budget: whose stretch is outlined.
    """
    stretches = frame[frame["end"] > frame["start"]]
    limit = max(SHOWN // max(len(stretches), 1), 200)
    parts = []
    for line in stretches.itertuples():
        first = int(token_ends[line.start - 1]) if line.start else 0
        text = thinking[first : int(token_ends[line.end - 1])]
        value = getattr(line, f"advantage_{method}")
        words = f"{told_tokens(line.start, line.end)}: advantage {signed(value, 3)}"
        here = ' class="here"' if line.budget == budget else ""
        parts.append(
            f'<span style="{tint(value, largest)}" title="{words}"{here}>'
            f"{escaped(text, limit)}</span>"
        )
        told = "" if line.score != line.score else f", score {line.score:.2f}"
        parts.append(
            f'<span class="mark">{line.end:,} tokens{told}, A {escaped(signed(value))}</span>'
        )
    if len(stretches) < len(frame):
        parts.append('<span class="mark">ended: later budgets train no token here</span>')
    title = f"{METHOD_WORDS[method]}: advantage of the thinking's tokens"
    return f"<div><p><b>{escaped(title)}</b></p>{region(title, parts)}</div>"


def legend_html(largest: float) -> str:
    """The colour scale with its numbers."""
    steps = [] if largest < NOTHING else [-1, -0.5, 0, 0.5, 1]
    cells = "".join(
        f'<span style="{tint(k * largest, largest)}; padding: 1px 10px">'
        f"{escaped(signed(k * largest))}</span> "
        for k in steps
    )
    said = "dotted orange: less likely; solid blue: more likely; one scale for the whole group"
    return f"<p>Advantage: {cells or 'all are 0.00'} <span class='note'>({said})</span></p>"


def numbers_html(frame: pd.DataFrame, methods: Sequence[str]) -> str:
    """All numbers of the figure as a table."""
    methods = list(dict.fromkeys(methods))
    header = ["budget", "prior", "score r", "return R", "V1 progress", "V2 group", "V BRPO"]
    header += [f"A {METHOD_WORDS[m]}" for m in methods]
    rows = []
    for line in frame.to_dict("records"):
        ended = line["end"] == line["start"]
        rows.append(
            [
                f"{line['budget']:,}",
                f"{line['prior']:.2f}",
                *(
                    "—" if line[c] != line[c] else f"{line[c]:.3f}"
                    for c in ("score", "return", "progress", "group", "brpo")
                ),
                *("no token" if ended else signed(line[f"advantage_{m}"], 3) for m in methods),
            ]
        )
    return table(header, rows, "This thinking, budget by budget")


def leaves_html(row: pd.Series, place: int, budget: int, largest: float) -> str:
    """The summaries at a budget with their scores and the advantages that they were trained on."""
    scores, advantages = row["scores"][place], row["summary_advantages"][place]
    lines = []
    for number, text in enumerate(row["summaries"][place]):
        score, value = float(scores[number]), float(advantages[number])
        told = "abstained" if score != score else f"{score:.2f}"
        lines.append(
            f'<tr><th scope="row">{number}</th><td>{told}</td>'
            f'<td><span style="{tint(value, largest)}">{escaped(signed(value, 3))}</span></td>'
            f"<td>{escaped(short(text, SUMMARY))}</td></tr>"
        )
    head = "".join(f'<th scope="col">{c}</th>' for c in ("summary", "score", "advantage", "text"))
    return (
        f'<div class="wide"><table class="text"><caption>Summaries at {budget:,} tokens, with the '
        f"advantage that this run trained them on</caption><thead><tr>{head}</tr></thead>"
        f"<tbody>{''.join(lines)}</tbody></table></div>"
    )
