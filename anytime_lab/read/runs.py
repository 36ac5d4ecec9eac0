"""Run folders → which evaluations there are, and their tables, each read once.

Whatever is wrong with a folder becomes a sentence; nothing here raises for what lies on disk.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from anytime_lab.read.curves import (
    CURVE_COLUMNS,
    END_COLUMNS,
    ProblemTable,
    endings,
    problem_table,
)
from anytime_lab.store.files import (
    MANIFEST,
    RECORDS,
    THINKINGS,
    RunFolderError,
    read_json,
    run_folder,
)
from anytime_lab.store.records import (
    FORMAT,
    finished_chunks,
    read_manifest,
    read_part,
    read_records,
)

STEP = re.compile(r"(?:checkpoint|step|update)[-_ ]?(\d+)$", re.IGNORECASE)
DEPTH = 3  # folders below a given one in which evaluations are looked for
Runs = Mapping[str, str | Path] | Sequence[str | Path] | str | Path
EXAMPLE = Path(__file__).resolve().parents[2] / "experiments" / "example"
MAIN_JOB = Path("runs/lab")


def or_example(runs: Mapping[str, str]) -> Mapping[str, str]:
    """The runs; or the small ones that ship, where they are the main job's and not made yet."""
    shipped = {name: EXAMPLE / Path(folder).name for name, folder in runs.items()}
    asked = [Path(folder) for folder in runs.values()]
    if (
        not runs
        or any(folder.parent != MAIN_JOB or folder.exists() for folder in asked)
        or not all(folder.is_dir() for folder in shipped.values())
    ):
        return runs
    print(
        f"There is no {MAIN_JOB} yet: these are the runs that ship, evaluated on fewer problems. "
        "`make lab` makes your own, in minutes."
    )
    return {name: str(folder) for name, folder in shipped.items()}


@dataclass(frozen=True)
class Evaluation:
    """One evaluated run: where it lies and what its manifest says it is."""

    run: str
    dataset: str
    step: int | None
    path: Path
    done: int  # parts written
    chunks: int  # parts wanted

    @property
    def partial(self) -> bool:
        """Whether it is still being written, or was stopped."""
        return self.done < self.chunks


@dataclass(frozen=True)
class Catalogue:
    """The evaluations that were found, and a sentence for every folder that held none."""

    evaluations: tuple[Evaluation, ...]
    complaints: tuple[str, ...]

    @property
    def datasets(self) -> list[str]:
        """Names of the datasets, in the order in which they were found."""
        return list(dict.fromkeys(e.dataset for e in self.evaluations))

    def of(self, dataset: str | None) -> list[Evaluation]:
        """The evaluations on one dataset."""
        return [e for e in self.evaluations if e.dataset == dataset]

    def names(self, dataset: str | None) -> dict[str, Evaluation]:
        """Evaluations on a dataset by a name of their own: the run, and its step if it has more."""
        mine = self.of(dataset)
        runs = [e.run for e in mine]
        return {
            e.run if runs.count(e.run) == 1 else f"{e.run} · {_told_step(e.step)}": e for e in mine
        }


def find_evaluations(runs: Runs) -> Catalogue:
    """Looks for evaluations in the folders given, and below them.

    Args:
        runs: run folders, or a mapping from a name to its folder, or one folder that holds them.
    """
    found, complaints = [], []
    for name, path in named_runs(runs):
        try:
            folders = _folders(path)
            if not folders:
                read_manifest(path)  # raises, and says what is there
            for folder in folders:
                known = name or (folder.relative_to(path).parts[:1] or (folder.name,))[0]
                found.append(_evaluation(known, folder))
        except Exception as error:  # whatever is on that disk, the view goes on
            complaints.append(told_error(path, error))
    return Catalogue(tuple(_with_own_names(found)), tuple(complaints))


def told_error(path: str | Path, error: Exception) -> str:
    """What went wrong with a folder, in a sentence."""
    if isinstance(error, RunFolderError):
        return str(error)
    return f"{path} could not be read ({type(error).__name__}: {error}). It is left out."


def named_runs(runs: Runs) -> list[tuple[str, Path]]:
    """Name and folder of each; no name for a folder that may hold several."""
    if isinstance(runs, Mapping):
        return [(str(name), run_folder(path)) for name, path in runs.items()]
    if isinstance(runs, str | Path):  # names come from the folders inside
        return [("", run_folder(runs))]
    if not isinstance(runs, Iterable):
        raise TypeError(f"runs is {type(runs).__name__}; give a list of run folders.")
    return [(path.resolve().name, path) for path in dict.fromkeys(map(run_folder, runs))]


def run_folders(path: Path, holds: str) -> list[Path]:
    """The folder itself if it holds a file or folder of that name, or those below that do."""
    if (path / holds).exists():
        return [path]
    below = (path.glob("/".join(["*"] * depth + [holds])) for depth in range(1, DEPTH + 1))
    return sorted({place.parent for places in below for place in places})


def folder_name(name: str, path: Path, folder: Path) -> str:
    """A name for a run found in or below a folder that may have been given one."""
    below = folder.relative_to(path).as_posix()
    return name or folder.resolve().name if below == "." else "/".join(filter(None, [name, below]))


def _folders(path: Path) -> list[Path]:
    """The evaluation in a folder, or those below it."""
    found = run_folders(path, MANIFEST)
    if found == [path]:
        return found
    shown = [f for f in found if not any(p.startswith(".") for p in f.relative_to(path).parts)]
    return [folder for folder in shown if _is_evaluation(folder)]


def _is_evaluation(folder: Path) -> bool:
    try:
        manifest = read_json(folder / MANIFEST)
    except RunFolderError:
        return False
    return isinstance(manifest, dict) and manifest.get("format") == FORMAT


def _evaluation(run: str, folder: Path) -> Evaluation:
    manifest = read_manifest(folder)
    about = manifest.get("dataset")
    about = about if isinstance(about, dict) else {}
    dataset = about.get("name") or str(about.get("sha256") or "")[:8] or "(not named)"
    return Evaluation(
        run=run,
        dataset=str(dataset),
        step=_step(folder.name) or _step(str(manifest.get("model_path") or "").rstrip("/")),
        path=folder,
        done=len(finished_chunks(folder)),
        chunks=int(manifest["chunks"]),
    )


def _step(name: str) -> int | None:
    match = STEP.search(name)
    return int(match[1]) if match else None


def _told_step(step: int | None) -> str:
    return "no step" if step is None else f"step {step}"


def _with_own_names(found: list[Evaluation]) -> list[Evaluation]:
    """Lengthens the names of runs that would be taken for one another by their folders."""

    def keys(evaluations: list[Evaluation]) -> list[tuple[Any, ...]]:
        return [(e.run, e.dataset, e.step) for e in evaluations]

    found = list({e.path.resolve(): e for e in found}.values())
    for length in range(2, 12):
        taken = keys(found)
        if len(set(taken)) == len(taken):
            break
        found = [
            replace(e, run="/".join(e.path.resolve().parts[-length:])) if taken.count(k) > 1 else e
            for e, k in zip(found, taken, strict=True)
        ]
    return found


@dataclass
class Tables:
    """The problem tables of evaluations, each read and averaged once."""

    known: dict[Path, ProblemTable] = field(default_factory=dict)
    endings: dict[Path, pd.DataFrame] = field(default_factory=dict)  # what is censored in each
    complaints: dict[Path, str] = field(default_factory=dict)

    def read(self, evaluations: Sequence[Evaluation]) -> None:
        """Reads those that are not known yet; what cannot be read becomes a complaint."""
        new = [e.path for e in evaluations if e.path not in {*self.known, *self.complaints}]
        for path in new:  # threads are no gain: parts are small, and opening them holds the GIL
            try:
                columns = dict.fromkeys([*CURVE_COLUMNS, *END_COLUMNS])
                records = read_records(path, columns, allow_partial=True)
                self.known[path] = problem_table(records)
                self.endings[path] = endings(records)
            except Exception as error:  # a damaged part, mixed parts, no part yet
                self.complaints[path] = told_error(path, error)


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
        frames = [read_part(self.path, RECORDS, part, problem=problem) for part in parts]
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
        frame = None if part is None else read_part(self.path, THINKINGS, part, problem=problem)
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


def find_thinkings(run_dir: str | Path) -> ThinkingStore:
    """Learns where the thinkings of a run lie, from the ids alone.

    Raises:
        RunFolderError: no finished part, or a damaged one.
    """
    path = run_folder(run_dir)
    chunks = sorted(finished_chunks(path))
    if not chunks:
        raise RunFolderError(f"{path} has no finished part yet. Wait, or run it again.")
    parts: dict[str, dict[int, int]] = {}
    for chunk in chunks:
        ids = read_part(path, THINKINGS, chunk, ["problem_id", "sample"])
        for problem, sample in zip(ids["problem_id"], ids["sample"], strict=True):
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
