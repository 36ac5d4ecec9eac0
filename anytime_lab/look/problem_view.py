"""View: the problems behind a point of a curve, and one thinking read up to a budget."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import ipywidgets as widgets
import numpy as np
import pandas as pd
import plotly.graph_objects as go
import pyarrow.compute as pc
import pyarrow.parquet as pq

from anytime_lab.look.figures import TURNS, plot_thinking, thinking_traces
from anytime_lab.look.live import LABEL, framed, live_figure, row, style_sheet, text
from anytime_lab.look.style import budget_ticks, told_figure
from anytime_lab.page import block, escaped, paragraph, region, short, table
from anytime_lab.read.curves import ProblemTable
from anytime_lab.read.runs import Runs, Tables, find_evaluations, told_error
from anytime_lab.read.told import all_budgets
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


NOBODY = "(none)"
LISTED = 2_000  # problems in the list; the order puts those of interest first
QUESTION = 6_000  # characters


class InsideProblem(widgets.VBox):
    """The problems of a run in an order of interest, and a thinking with its budget to slide.

    Args:
        runs: as for BudgetCurves. The first is run A, the second run B.
        budget: where to begin; the middle budget if None.
        style: bring the style sheet along (not where another view shows it).
    """

    def __init__(self, runs: Runs, budget: int | None = None, style: bool = True) -> None:
        super().__init__()
        self.catalogue = find_evaluations(runs)
        self.tables = Tables()
        self._names = {
            name if len(self.catalogue.datasets) == 1 else f"{name} · {dataset}": e
            for dataset in self.catalogue.datasets
            for name, e in self.catalogue.names(dataset).items()
        }
        self._stores: dict[str, ThinkingStore] = {}
        self._records = pd.DataFrame()
        self._busy = False
        self.thought: Thought | None = None
        self.path: pd.DataFrame | None = None
        self.notes, self.question = text(live=True), text()
        self.position, self.thinking, self.summaries = text(live=True), text(), text()
        sheet = [style_sheet()] if style else []
        if not self._names:
            said = self.catalogue.complaints or ("No run folders were given.",)
            self.notes.value = block(*map(paragraph, said))
            self.children = [*sheet, self.notes]
            return
        self._make_controls()
        self.live = live_figure(
            [{"showlegend": False}, *({"mode": "markers"} for _ in range(3))],
            240,
            "Summaries right",
        )
        self.live.update_xaxes(title="Thinking budget (tokens)", tickformat=",d")
        self.live.update_yaxes(tickformat=".0%", range=TURNS, tickvals=[0, 0.5, 1])
        line = {"color": "#888", "width": 1.5, "dash": "dot"}
        self.live.add_shape(type="line", xref="x", yref="paper", x0=0, x1=0, y0=0, y1=1, line=line)
        self.children = [
            *sheet,
            self.notes,
            row(self.a, self.b, self.listed, self.order),
            row(self.problem, self.sample),
            self.question,
            row(self.budget, self.play),
            self.position,
            framed(self.live),
            self.thinking,
            self.summaries,
        ]
        self._runs_chosen(budget)
        self._observe()

    def figure(self) -> go.Figure:
        """The static figure of the thinking that is open; of none, a sentence."""
        if self.path is None:
            said = " ".join(self.catalogue.complaints) or "Choose a problem and a sample."
            return told_figure(f"No thinking is open. {said}")
        problem = short(self.thought.problem_id, 30)
        title = f"Share of right summaries: {problem}, sample {self.thought.sample}"
        return plot_thinking(self.path, title)

    # --- parts -----------------------------------------------------------------------------------

    def _make_controls(self) -> None:
        names = [(short(name), name) for name in self._names]
        self.a = widgets.Dropdown(options=names, description="Run A", style=LABEL)
        others = [(NOBODY, None), *names]
        second = names[1][1] if len(names) > 1 else None
        self.b = widgets.Dropdown(options=others, value=second, description="Run B", style=LABEL)
        self.listed = widgets.Dropdown(options=[], description="Problems at budget", style=LABEL)
        self.order = widgets.Dropdown(options=ORDERS, description="Order", style=LABEL)
        self.problem = widgets.Select(
            options=[], description="Problem", style=LABEL, rows=6, layout={"width": "44em"}
        )
        self.sample = widgets.Select(
            options=[], description="Sample of A", style=LABEL, rows=6, layout={"width": "26em"}
        )
        self.budget = widgets.SelectionSlider(
            options=[("—", 0)], description="Budget", style=LABEL, layout={"width": "36em"}
        )
        self.play = widgets.Play(interval=700, min=0, max=0, description="Play the budgets")

    def _observe(self) -> None:
        for control in (self.a, self.b):
            control.observe(self._on(self._runs_chosen), "value")
        for control in (self.listed, self.order):
            control.observe(self._on(self._list_problems), "value")
        self.problem.observe(self._on(self._problem_chosen), "value")
        self.sample.observe(self._on(self._sample_chosen), "value")
        self.budget.observe(self._on(self._budget_moved), "value")
        self.play.observe(self._on(self._played), "value")

    def _on(self, then):
        """An observer that keeps still while the view sets its own controls."""

        def changed(_change) -> None:
            if not self._busy:
                then()

        return changed

    def _say(self, *sentences: str) -> None:
        said = [*self.catalogue.complaints, *self.tables.complaints.values(), *sentences]
        self.notes.value = block(*map(paragraph, said), live=True)

    # --- from runs to a thinking -----------------------------------------------------------------

    def _runs_chosen(self, budget: int | None = None) -> None:
        chosen = [self._names[n] for n in (self.a.value, self.b.value) if n is not None]
        self.tables.read(chosen)
        known = [self.tables.known[e.path] for e in chosen if e.path in self.tables.known]
        budgets = all_budgets(known) if known else []
        self._busy = True
        wanted = budget or self.budget.value
        at = wanted if wanted in budgets else (budgets[len(budgets) // 2] if budgets else 0)
        options = [(f"{b:,} tokens", b) for b in budgets] or [("—", 0)]
        self.budget.options = self.listed.options = options
        self.budget.value = self.listed.value = at
        self.play.max = max(len(budgets) - 1, 0)
        self.play.value = budgets.index(at) if budgets else 0
        self._busy = False
        self._list_problems()

    def _list_problems(self) -> None:
        a, b = (self._table(name) for name in (self.a.value, self.b.value))
        self._busy = True
        if a is None:
            self.problem.options = []
        else:
            rows = order_problems(a, b, self.listed.value, self.order.value)[:LISTED]
            self.problem.options = [(_label(row, b is not None), row[0]) for row in rows]
            self.problem.value = rows[0][0]
        self._busy = False
        self._problem_chosen()

    def _table(self, name: str | None):
        return None if name is None else self.tables.known.get(self._names[name].path)

    def _problem_chosen(self) -> None:
        problem, name = self.problem.value, self.a.value
        if problem is None:
            self._say()
            return self._show(None)
        try:
            if name not in self._stores:
                self._stores[name] = find_thinkings(self._names[name].path)
            store = self._stores[name]
            self._records = store.records(problem)
        except Exception as error:  # damaged, moved or half-written: told, not thrown
            self._say(told_error(self._names[name].path, error))
            return self._show(None)
        self._say()
        options = []
        for sample in store.samples(problem):
            path = answer_path(self._records[self._records["sample"] == sample])
            right = f"right at {int(path['right'].sum())} of {len(path)} budgets"
            options.append((f"sample {sample} · {right}", sample))
        self._busy = True
        self.sample.options = options
        self.sample.value = options[0][1]
        self._busy = False
        self._sample_chosen()

    def _sample_chosen(self) -> None:
        problem, sample, name = self.problem.value, self.sample.value, self.a.value
        if sample is None:
            return self._show(None)
        try:
            thought = self._stores[name].thought(problem, sample, self._records)
        except Exception as error:
            self._say(told_error(self._names[name].path, error))
            return self._show(None)
        self._show(thought)

    def _show(self, thought: Thought | None) -> None:
        self.thought = thought
        self.path = None if thought is None else answer_path(thought.records)
        if thought is None:
            for part in (self.question, self.position, self.thinking, self.summaries):
                part.value = ""
            with self.live.batch_update():
                for trace in self.live.data:
                    trace.x, trace.y = [], []
            return
        self.question.value = block(
            region("question", [escaped(thought.question, QUESTION)]),
            paragraph(f"Right answer: {short(thought.gold, 200)}. {told_path(self.path)}"),
        )
        with self.live.batch_update():
            for trace, new in zip(self.live.data, thinking_traces(self.path), strict=True):
                trace.update(new)
            ticks = {"tickmode": "auto", **budget_ticks(self.path["budget"])}
            self.live.update_xaxes(**ticks)
        self._budget_moved()

    # --- moving along it -------------------------------------------------------------------------

    def _played(self) -> None:
        values = [value for _, value in self.budget.options]
        self.budget.value = values[min(self.play.value, len(values) - 1)]

    def _budget_moved(self) -> None:
        budget = self.budget.value
        self._busy = True
        self.play.value = [value for _, value in self.budget.options].index(budget)
        self._busy = False
        if self.thought is None:
            return
        self.live.layout.shapes[0].update(x0=budget, x1=budget)
        self.position.value = block(position_html(self.thought, self.path, budget), live=True)
        self.thinking.value = block(thinking_html(self.thought, self.path, budget))
        self.summaries.value = block(summaries_html(self.thought, budget))


def _label(row: tuple[str, float, float], paired: bool) -> str:
    told = ["—" if value != value else f"{value:.0%}" for value in row[1:]]
    pair = f"A {told[0]}, B {told[1]}" if paired else f"right {told[0]}"
    return f"{short(row[0], 48)} · {pair}"
