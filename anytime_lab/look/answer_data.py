"""What a thinking answers when it is asked: the spread of its summaries, and how it moves."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import pandas as pd

from anytime_lab.engines.thoughts import Answer, Thought
from anytime_lab.page import escaped, paragraph, short, table
from anytime_lab.verify.verifiers import Verifier, find_answer

SPREAD = ("answer", "count", "share", "probability", "per_token", "verdict")
HISTORY = ("tokens", "answer", "share", "right", "share_right")
NO_GOLD = "not graded"
TEXTS = 32  # summaries shown


@dataclass(frozen=True)
class Asked:
    """One question put to a thinking.

    Attributes:
        tokens: How long the thinking was.
        end: How it had ended, if it had.
        answers: Its summaries.
        summaries: One row for each: answer (None: none was found), verdict, reason, probability of
            the summary (NaN: not told), per_token (the geometric mean over its tokens).
    """

    tokens: int
    end: str
    answers: tuple[Answer, ...]
    summaries: pd.DataFrame

    @cached_property
    def spread(self) -> pd.DataFrame:
        """The distinct answers, the most frequent first (of those tied, the more probable).

        Columns answer, count, share, probability and per_token (means over its summaries), verdict.
        """
        groups = self.summaries.groupby("answer", dropna=False, sort=False)
        rows = [
            {
                "answer": None if pd.isna(answer) else answer,
                "count": len(part),
                "share": len(part) / len(self.summaries),
                "probability": part["probability"].mean(),
                "per_token": part["per_token"].mean(),
                "verdict": part["verdict"].iloc[0],
            }
            for answer, part in groups
        ]
        rows.sort(key=lambda r: (-r["count"], -_known(r["probability"])))
        frame = pd.DataFrame(rows, columns=SPREAD)
        frame["answer"] = pd.Series([r["answer"] for r in rows], dtype=object)  # None stays None
        return frame


def _known(value: float) -> float:
    return 0.0 if math.isnan(value) else value


def ask(thought: Thought, count: int, verifier: Verifier | None, gold: Any = None) -> Asked:
    """Ask a thinking as it stands, and grade what it says.

    Args:
        thought: Goes on afterwards as if it had not been asked.
        count: Summaries.
        verifier: Finds the answers and grades them; None finds mathematical ones.
        gold: The right answer; None where it is not known.
    """
    answers = tuple(thought.answers(count))
    texts = [thought.text + a.forced + a.text for a in answers]
    if verifier is not None and gold is not None:
        grades = verifier.grade(texts, [gold] * len(texts))
        told = [(g.answer, _verdict(g.score), g.reason) for g in grades]
    else:
        find = getattr(verifier, "find", find_answer)
        told = [(find(text), NO_GOLD, "") for text in texts]
    rows = [
        {
            "answer": found,
            "verdict": verdict,
            "reason": reason,
            "probability": math.nan if a.logprob is None else math.exp(a.logprob),
            "per_token": math.nan if a.logprob is None else math.exp(a.logprob / max(a.tokens, 1)),
        }
        for a, (found, verdict, reason) in zip(answers, told, strict=True)
    ]
    frame = pd.DataFrame(rows)
    frame["answer"] = pd.Series([r["answer"] for r in rows], dtype=object)
    return Asked(thought.length, thought.end, answers, frame)


def _verdict(score: float | None) -> str:
    if score is None:
        return "abstained"
    return "right" if score >= 1 else "wrong"


def ask_along(
    thought: Thought, budgets: Sequence[int], count: int, verifier: Verifier | None, gold: Any
) -> Iterator[Asked]:
    """Think on from budget to budget and ask at each; at the end of the thinking for the last time.

    Args:
        budgets: Increasing, in tokens.
    """
    if list(budgets) != sorted(set(budgets)) or not budgets or budgets[0] < 0:
        raise ValueError(f"budgets must increase from 0 or more; got {list(budgets)}.")
    for budget in budgets:
        while thought.length < budget and not thought.end:
            thought.step()
        yield ask(thought, count, verifier, gold)
        if thought.end:
            return


def history(asked: Sequence[Asked]) -> pd.DataFrame:
    """The leading answer at each point that was asked at, shortest first.

    Returns columns tokens, answer (None: no answer), share (of the summaries), right (of the
    leading answer; None where it is not graded), share_right (NaN where nothing is graded). Where
    one length was asked at twice, the last time counts.
    """
    rows = {}
    for point in sorted(asked, key=lambda a: a.tokens):
        lead = point.spread.iloc[0]
        graded = point.summaries["verdict"].isin(["right", "wrong"])
        right = point.summaries["verdict"] == "right"
        rows[point.tokens] = {
            "tokens": point.tokens,
            "answer": lead["answer"],
            "share": lead["share"],
            "right": {"right": True, "wrong": False}.get(lead["verdict"]),
            "share_right": right.sum() / graded.sum() if graded.any() else math.nan,
        }
    frame = pd.DataFrame(rows.values(), columns=HISTORY)
    for column in ("answer", "right"):
        frame[column] = pd.Series([r[column] for r in rows.values()], dtype=object)
    return frame


# --- in words ------------------------------------------------------------------------------------


def told_answer(answer: str | None, limit: int = 60) -> str:
    """An answer on one line; not escaped."""
    return "no answer" if answer is None else short(answer, limit)


def told_probability(value: float) -> str:
    """A probability, precise where it is small."""
    if math.isnan(value):
        return "not told"
    return f"{value:.0%}" if value >= 0.1 else f"{value:.2g}"


def told_asked(asked: Asked) -> str:
    """The leading answer of a question, in a sentence; not escaped."""
    spread = asked.spread
    lead = spread.iloc[0]
    where = f"After {asked.tokens:,} tokens"
    if asked.end:
        how = {"closed": "closed by itself", "eos": "ended in EOS", "length": "its limit"}
        where += f", at the end ({how.get(asked.end, asked.end)})"
    others = len(spread) - 1
    rest = "all alike" if not others else f"{others} other answer{'' if others == 1 else 's'}"
    verdict = "" if lead["verdict"] == NO_GOLD else f", {lead['verdict']}"
    return (
        f"{where}: {told_answer(lead['answer'])}{verdict}; {lead['count']} of "
        f"{len(asked.summaries)} summaries, {rest}; probability of such a summary "
        f"{told_probability(lead['probability'])}."
    )


def asked_html(asked: Asked) -> str:
    """The spread of one question, and its summaries one by one."""
    total = len(asked.summaries)
    spread = [
        (
            told_answer(row.answer, 80),
            f"{row.count_} of {total}",
            told_probability(row.probability),
            told_probability(row.per_token),
            row.verdict,
        )
        for row in asked.spread.rename(columns={"count": "count_"}).itertuples()
    ]
    header = ["answer", "summaries", "mean probability", "per token", "verdict"]
    caption = f"Answers after {asked.tokens:,} tokens"
    rows = []
    pairs = zip(asked.answers, asked.summaries.itertuples(), strict=True)
    for number, (answer, row) in enumerate(pairs):
        if number == TEXTS:
            break
        logprob = "not told" if answer.logprob is None else f"{answer.logprob:.2f}"
        finish = "ended" if answer.finished else "cut off"
        reason = "" if row.reason in ("", "correct", "wrong") else f" ({short(row.reason, 40)})"
        rows.append(
            (
                number + 1,
                row.verdict + reason,
                logprob.replace("-", "−"),
                f"{answer.tokens:,} ({finish})",
                short(answer.text, 400),
            )
        )
    shown = f"Its summaries, the first {TEXTS} of {total}" if total > TEXTS else "Its summaries"
    each = table(["summary", "verdict", "log-prob", "tokens", "text"], rows, shown, "text")
    return (
        paragraph(told_asked(asked))
        + table(header, spread, caption, "text")
        + f"<details><summary>{escaped(shown)}</summary>{each}</details>"
    )
