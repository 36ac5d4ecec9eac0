"""One thinking → HTML: what was thought by a budget strong, the rest faint, turns marked."""

from __future__ import annotations

import pandas as pd

from anytime_lab.look.problem_data import Thought
from anytime_lab.page import escaped, paragraph, short, table

BEFORE, AFTER = 12_000, 4_000  # characters shown on each side of the cut
SUMMARIES = 32  # summaries shown at a budget


def thinking_html(thought: Thought, path: pd.DataFrame, budget: int) -> str:
    """The text of a thinking around its cut at a budget, with a mark at every turn in sight."""
    here = path[path["budget"] == budget]
    cut = thought.characters(int(here["cut"].iloc[0]) if len(here) else budget)
    text = thought.thinking
    first, last = max(0, cut - BEFORE), min(len(text), cut + AFTER)
    turns = [
        (thought.characters(row.cut), _marks(row))
        for row in path.itertuples()
        if row.flip or row.first_right or row.lost
    ]
    parts = [_left_out(first, "before")]
    for start, stop, kind in ((first, cut, "kept"), (cut, last, "rest")):
        # a mark at the cut belongs to what was thought by then
        at_start = kind == "kept" and first == 0
        inside = [t for t in turns if start < t[0] <= stop or (at_start and t[0] == 0)]
        parts.append(f'<span class="{kind}">')
        for place, marks in inside:
            parts += [escaped(text[start:place], len(text) + 1), marks]
            start = place
        parts += [escaped(text[start:stop], len(text) + 1), "</span>"]
    parts.append(_left_out(len(text) - last, "after"))
    label = f"thinking of sample {thought.sample}, strong up to {budget:,} tokens"
    return (
        f'<div class="model" tabindex="0" role="region" aria-label="{label}">{"".join(parts)}</div>'
    )


def _marks(row) -> str:
    told = []
    answer = "no answer" if row.answer is None else short(row.answer, 40)
    if row.first_right:
        told.append(("right", f"★ first right: {answer}"))
    elif row.lost:
        told.append(("wrong", f"✗ lost: {answer}"))
    elif row.flip:
        told.append(("right" if row.right else "", f"▼ {answer}"))
    return "".join(
        f'<span class="mark {kind}">{row.budget:,} tokens {escaped(words)}</span>'
        for kind, words in told
    )


def _left_out(count: int, where: str) -> str:
    if count <= 0:
        return ""
    return f'<span class="mark">{count:,} characters {where} are not shown</span>'


def position_html(thought: Thought, path: pd.DataFrame, budget: int) -> str:
    """A sentence on where in the thinking the budget is, and what it would answer."""
    here = path[path["budget"] == budget]
    if not len(here):
        return paragraph(f"This thinking was not measured at {budget:,} tokens.")
    row = here.iloc[0]
    ended = row["cut"] >= thought.tokens
    how = {"closed": "closed by itself", "eos": "ended in EOS", "length": "cut by its limit"}
    place = f"{row['cut']:,} of {thought.tokens:,} tokens"
    if ended:
        place += f", the whole thinking ({how.get(thought.end, thought.end)})"
    answer = "no answer" if row["answer"] is None else f"answer {short(row['answer'], 60)}"
    verdict = "right" if row["right"] else "not right"
    return (
        f"<p>At {budget:,} tokens ({escaped(place)}): {escaped(answer)}, "
        f'<strong class="{"right" if row["right"] else "wrong"}">{verdict}</strong>; '
        f"{row['share_right']:.0%} of the summaries are right.</p>"
    )


def summaries_html(thought: Thought, budget: int) -> str:
    """The summaries at a budget with their verdicts and log-probs."""
    part = thought.records[thought.records["budget"] == budget]
    rows = []
    for record in part.head(SUMMARIES).itertuples():
        answer = "—" if pd.isna(record.answer) else short(record.answer, 80)
        logprob = "—" if pd.isna(record.logprob) else f"{record.logprob:.2f}".replace("-", "−")
        verdict = "abstained" if pd.isna(record.score) else ("right" if record.correct else "wrong")
        reason = "" if record.reason in ("correct", "wrong") else f" ({short(record.reason, 40)})"
        rows.append(
            (
                record.summary,
                answer,
                verdict + reason,
                logprob,
                f"{record.summary_tokens:,} ({record.finish})",
                short(record.summary_text, 400),
            )
        )
    caption = f"Summaries at {budget:,} tokens"
    if len(part) > SUMMARIES:
        caption += f", the first {SUMMARIES} of {len(part)}"
    header = ["summary", "answer", "verdict", "log-prob", "tokens (end)", "text"]
    return table(header, rows, caption, "text")
