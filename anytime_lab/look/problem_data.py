"""One thinking out of a run folder, and where along it the answer turns.

A run may hold gigabytes of thinking. Only ids are read to know where each lies; a thinking is read
when it is looked at, from the one part that holds it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.compute as pc
import pyarrow.parquet as pq

from anytime_lab.read.curves import ProblemTable
from anytime_lab.store.records import (
    RECORD_SCHEMA,
    RECORDS,
    THINKINGS,
    RunFolderError,
    finished_chunks,
    part_path,
)

ORDERS = {
    "solved by A, not by B": "a over b",
    "solved by B, not by A": "b over a",
    "least solved by A": "hard",
    "by name": "name",
}


@dataclass(frozen=True, eq=False)
class Thought:
    """One thinking, with the records of all its budgets.

    token_ends: (T,) characters before which each token ends.
    records: one row per (budget, summary), sorted.
    """

    problem_id: str
    sample: int
    question: str
    gold: str
    thinking: str
    token_ends: np.ndarray
    tokens: int
    end: str
    records: pd.DataFrame

    def characters(self, tokens: int) -> int:
        """How many characters the first `tokens` tokens have."""
        if tokens <= 0 or not len(self.token_ends):
            return 0
        return int(self.token_ends[min(tokens, len(self.token_ends)) - 1])


@dataclass(frozen=True, eq=False)
class ThinkingStore:
    """Where the thinkings of a run lie. parts: (problem_id, sample) → part number."""

    path: Path
    parts: Mapping[str, Mapping[int, int]]

    def samples(self, problem: str) -> list[int]:
        """The samples of a problem, in order."""
        return sorted(self.parts.get(problem, {}))

    def records(self, problem: str) -> pd.DataFrame:
        """All records of a problem.

        Raises:
            RunFolderError: a part is damaged, or lacks the problem.
        """
        parts = sorted(set(self.parts.get(problem, {}).values()))
        frames = [self._rows(RECORDS, part, problem, RECORD_SCHEMA.names) for part in parts]
        if not frames or not sum(map(len, frames)):
            raise RunFolderError(f"{self.path} holds no records of problem {problem!r}.")
        frame = pd.concat(frames, ignore_index=True)
        return frame.sort_values(["sample", "budget", "summary"], ignore_index=True)

    def thought(self, problem: str, sample: int, records: pd.DataFrame) -> Thought:
        """One thinking with its records (those of the problem, from `records()`).

        Raises:
            RunFolderError: it is not there, or its part is damaged.
        """
        part = self.parts.get(problem, {}).get(sample)
        frame = None if part is None else self._rows(THINKINGS, part, problem, None)
        rows = None if frame is None else frame[frame["sample"] == sample]
        if rows is None or not len(rows):
            raise RunFolderError(
                f"{self.path} holds no thinking of problem {problem!r}, sample {sample}."
            )
        found = rows.iloc[0]
        return Thought(
            problem_id=problem,
            sample=sample,
            question=str(found["question"]),
            gold=str(found["gold"]),
            thinking=str(found["thinking"] or ""),
            token_ends=np.asarray(
                found["token_ends"] if found["token_ends"] is not None else [], dtype=np.int64
            ),
            tokens=int(found["tokens"]),
            end=str(found["end"]),
            records=records[records["sample"] == sample].reset_index(drop=True),
        )

    def _rows(
        self, table: str, part: int, problem: str, columns: Sequence[str] | None
    ) -> pd.DataFrame:
        path = part_path(self.path, table, part)
        try:
            whole = pq.ParquetFile(path, pre_buffer=False).read(columns, use_threads=False)
            return whole.filter(pc.equal(whole["problem_id"], problem)).to_pandas()
        except Exception as error:
            raise RunFolderError(
                f"{path} is damaged or missing ({str(error).splitlines()[0]}). Run the same "
                "evaluation again to write it anew."
            ) from error


def find_thinkings(run_dir: str | Path) -> ThinkingStore:
    """Learns where the thinkings of a run lie, from the ids alone.

    Raises:
        RunFolderError: no finished part, or a damaged one.
    """
    path = Path(run_dir)
    chunks = sorted(finished_chunks(path))
    if not chunks:
        raise RunFolderError(f"{path} has no finished part yet. Wait, or run it again.")

    def ids(chunk: int) -> list[tuple[str, int]]:
        part = part_path(path, THINKINGS, chunk)
        try:
            table = pq.ParquetFile(part).read(["problem_id", "sample"], use_threads=False)
        except Exception as error:
            raise RunFolderError(
                f"{part} is damaged or missing ({str(error).splitlines()[0]}). Run the same "
                "evaluation again to write it anew."
            ) from error
        return list(zip(table["problem_id"].to_pylist(), table["sample"].to_pylist(), strict=True))

    parts: dict[str, dict[int, int]] = {}
    for chunk in chunks:
        for problem, sample in ids(chunk):
            parts.setdefault(problem, {})[sample] = chunk
    return ThinkingStore(path, parts)


# --- along one thinking --------------------------------------------------------------------------


def answer_path(records: pd.DataFrame) -> pd.DataFrame:
    """What one thinking would have answered at each budget, and where that turns.

    The answer at a budget is the most frequent one of its summaries (the first of those tied; no
    answer has no vote). It is right where its summaries are.

    Args:
        records: of one thinking.

    Returns columns budget, cut, answer (None: no answer), votes (share of the summaries that gave
    it), share_right, right, flip (differs from the budget before), first_right, lost (right at
    the budget before, not here).
    """
    rows = []
    for budget, part in records.groupby("budget", sort=True):
        answers = part["answer"].astype(object).where(part["answer"].notna(), None).tolist()
        given = [a for a in answers if a is not None]
        answer = max(dict.fromkeys(given), key=given.count) if given else None
        correct = part["correct"].to_numpy(dtype=bool)
        giving = np.array([a == answer for a in answers])
        rows.append(
            {
                "budget": int(budget),
                "cut": int(part["cut"].iloc[0]),
                "answer": answer,
                "votes": float(giving.mean()),
                "share_right": float(correct.mean()),
                "right": bool(given) and bool(correct[giving].mean() >= 0.5),
            }
        )
    columns = ["budget", "cut", "answer", "votes", "share_right", "right"]
    frame = pd.DataFrame(rows, columns=columns)
    frame["answer"] = pd.Series([row["answer"] for row in rows], dtype=object)  # None stays None
    right = frame["right"].to_numpy(dtype=bool)
    answers = frame["answer"].tolist()
    before = [None, *answers[:-1]]
    flips = [j > 0 and a != b for j, (a, b) in enumerate(zip(answers, before, strict=True))]
    frame["flip"] = np.array(flips, dtype=bool)
    frame["first_right"] = right & (np.cumsum(right) == 1)
    frame["lost"] = ~right & np.concatenate([[False], right[:-1]])
    return frame


def told_path(path: pd.DataFrame) -> str:
    """The turns of a thinking in a sentence."""
    flips = int(path["flip"].sum())
    said = [f"The answer flips {flips} time{'' if flips == 1 else 's'}"]
    first = path.loc[path["first_right"], "budget"]
    said.append(f"is first right at {first.iloc[0]:,} tokens" if len(first) else "is never right")
    lost = path.loc[path["lost"], "budget"]
    if len(lost):
        said.append("is lost again at " + ", ".join(f"{b:,}" for b in lost) + " tokens")
    return ", ".join(said[:-1]) + " and " + said[-1] + "."


# --- which problems ------------------------------------------------------------------------------


def order_problems(
    a: ProblemTable, b: ProblemTable | None, budget: int, order: str
) -> list[tuple[str, float, float]]:
    """The problems of `a`, with both runs' accuracy at a budget, in one of ORDERS' orders.

    Returns (problem, accuracy of a, accuracy of b); NaN where not measured or not graded.
    """
    names = [str(p) for p in a.problems]
    mine = _column(a, budget)
    theirs = dict(zip(map(str, b.problems), _column(b, budget), strict=True)) if b else {}
    rows = [(n, float(v), float(theirs.get(n, np.nan))) for n, v in zip(names, mine, strict=True)]

    def lead(row: tuple[str, float, float]) -> float:
        pair = row[1:] if b else (row[1], 0.0)
        return pair[0] - pair[1]

    def after(key: float) -> float:  # what cannot be compared comes last
        return np.inf if np.isnan(key) else key

    keys = {
        "a over b": lambda row: (after(-lead(row)), row[0]),
        "b over a": lambda row: (after(lead(row)), row[0]),
        "hard": lambda row: (after(row[1]), row[0]),
        "name": lambda row: (0.0, row[0]),
    }
    return sorted(rows, key=keys[order])


def _column(table: ProblemTable, budget: int) -> np.ndarray:
    if budget not in table.budgets:
        return np.full(len(table.problems), np.nan)
    return table.values[:, table.budgets.index(budget)]
