"""Run folders → which evaluations there are, and their tables, each read once.

Whatever is wrong with a folder becomes a sentence; nothing here raises for what lies on disk.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field, replace
from glob import glob
from pathlib import Path

import numpy as np
import pandas as pd

from anytime_lab.read.curves import TABLE_COLUMNS, ProblemTable, endings, problem_table
from anytime_lab.store import files
from anytime_lab.store import records as stored
from anytime_lab.store.files import MANIFEST, RECORDS, THINKINGS, RunFolderError, run_folder

STEP = re.compile(r"(?:checkpoint|step|update)[-_ ]?(\d+)$", re.IGNORECASE)
DEPTH = 3  # folders below a given one in which evaluations are looked for
Runs = Mapping[str, str | Path] | Sequence[str | Path] | str | Path
EXAMPLE = Path(__file__).resolve().parents[2] / "experiments" / "example"
MAIN_JOB = Path("runs/lab")


def or_example(runs: Mapping[str, str]) -> Mapping[str, str]:
    """The runs; or the small ones that ship, where they are the main job's and not made yet."""
    shipped = {name: EXAMPLE / Path(folder).name for name, folder in runs.items()}
    known = not runs or any(f.parent != MAIN_JOB or f.exists() for f in map(Path, runs.values()))
    if known or not all(folder.is_dir() for folder in shipped.values()):
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
    parameters: int | None = None  # of the model, where the manifest tells them
    pace: float | None = None  # seconds that it took a token of thinking, summaries included
    name: str = ""  # its own among those of its dataset: the run, and the step if it has more

    @property
    def partial(self) -> bool:
        """Whether it is still being written, or was stopped."""
        return self.done < self.chunks


def find_evaluations(runs: Runs) -> tuple[list[Evaluation], list[str]]:
    """The evaluations in the folders given, and below them; a sentence for what holds none.

    Args:
        runs: run folders, or a mapping from a name to its folder, or one folder that holds them.
    """
    found, complaints = [], []
    for name, path, folder in found_folders(runs, MANIFEST, _is_evaluation):
        below = folder.relative_to(path).parts[:1] or (folder.name,)
        try:
            found.append(_evaluation(name or below[0], folder))
        except Exception as error:  # whatever is on that disk, the view goes on
            complaints.append(told_error(folder, error))
    return _with_own_names(found), complaints


def told_error(path: str | Path, error: Exception) -> str:
    """What went wrong with a folder, in a sentence."""
    if isinstance(error, RunFolderError):
        return str(error)
    return f"{path} could not be read ({type(error).__name__}: {error}). It is left out."


def found_folders(
    runs: Runs, holds: str, kind: Callable[[Path], bool] = Path.is_dir
) -> list[tuple[str, Path, Path]]:
    """A folder given that holds a file or folder of that name, else those in sight below that do.

    Args:
        kind: which of those below are wanted.

    Returns the name given (none for a folder that may hold several), the folder given and the one
    found: that which was given where there is none, since reading it says what is there.
    """
    if isinstance(runs, Mapping):
        given = [(str(name), run_folder(path)) for name, path in runs.items()]
    elif isinstance(runs, str | Path):  # names come from the folders inside
        given = [("", run_folder(runs))]
    elif isinstance(runs, Iterable):
        given = [(path.resolve().name, path) for path in dict.fromkeys(map(run_folder, runs))]
    else:
        raise TypeError(f"runs is {type(runs).__name__}; give a list of run folders.")
    found = []
    for name, path in given:
        here = os.path.exists(path / holds) or not path.is_dir()
        depths = () if here else range(1, DEPTH + 1)
        below = (glob("*/" * depth + holds, root_dir=path) for depth in depths)
        folders = sorted(path / Path(place).parent for places in below for place in places)
        found += [(name, path, folder) for folder in [*filter(kind, folders)] or [path]]
    return found


def folder_name(name: str, path: Path, folder: Path) -> str:
    """A name for a run found in or below a folder that may have been given one."""
    below = folder.relative_to(path).as_posix()
    return name or folder.resolve().name if below == "." else "/".join(filter(None, [name, below]))


def _is_evaluation(folder: Path) -> bool:
    with suppress(Exception):  # no JSON, or no mapping
        return files.read_json(folder / MANIFEST).get("format") == stored.FORMAT
    return False


def _evaluation(run: str, folder: Path) -> Evaluation:
    manifest = stored.read_manifest(folder)
    about, parameters = manifest.get("dataset"), manifest.get("parameters")
    about = about if isinstance(about, dict) else {}
    dataset = about.get("name") or str(about.get("sha256") or "")[:8] or "(not named)"
    places = folder.name, str(manifest.get("model_path") or "").rstrip("/")
    steps = [int(match[1]) for match in map(STEP.search, places) if match]
    return Evaluation(
        run=run,
        dataset=str(dataset),
        step=next(filter(None, steps), None),
        path=folder,
        done=len(stored.finished_chunks(folder)),
        chunks=int(manifest["chunks"]),
        parameters=parameters if isinstance(parameters, int) else None,
        pace=stored.pace_of(manifest),
    )


def _with_own_names(found: list[Evaluation]) -> list[Evaluation]:
    """Runs that would be taken for one another are named by as many folders as tell them apart."""
    found = list({e.path.resolve(): e for e in found}.values())
    for length in range(2, 12):
        taken = Counter((e.run, e.dataset, e.step) for e in found)
        for at, e in enumerate(found):
            if taken[e.run, e.dataset, e.step] > 1:
                found[at] = replace(e, run="/".join(e.path.resolve().parts[-length:]))
    steps = ["no step" if e.step is None else f"step {e.step}" for e in found]
    alone = Counter((e.run, e.dataset) for e in found)
    return [
        replace(e, name=e.run if alone[e.run, e.dataset] == 1 else f"{e.run} · {step}")
        for e, step in zip(found, steps, strict=True)
    ]


@dataclass
class Tables:
    """The problem tables of evaluations, each read and averaged once."""

    known: dict[Path, ProblemTable] = field(default_factory=dict)
    endings: dict[Path, pd.DataFrame] = field(default_factory=dict)  # what is censored in each
    complaints: dict[Path, str] = field(default_factory=dict)

    def read(self, evaluations: Sequence[Evaluation]) -> None:
        """Reads those that are not known yet; what cannot be read becomes a complaint."""
        new = {e.path for e in evaluations} - {*self.known, *self.complaints}

        def one(path: Path) -> None:
            try:
                rows = stored.read_records(path, TABLE_COLUMNS, allow_partial=True)
                self.known[path], self.endings[path] = problem_table(rows), endings(rows)
            except Exception as error:  # a damaged part, mixed parts, no part yet
                self.complaints[path] = told_error(path, error)

        with ThreadPoolExecutor(2) as pool:  # more are no gain: opening parts holds the GIL
            list(pool.map(one, new))


ORDERS = {
    "solved by A, not by B": "a over b",
    "solved by B, not by A": "b over a",
    "least solved by A": "hard",
    "by name": "name",
}


@dataclass(frozen=True, eq=False)
class Thought:
    """One thinking, with the records of all its budgets."""

    sample: int
    question: str
    gold: str
    thinking: str
    token_ends: np.ndarray  # (T,) characters before which each token ends
    tokens: int
    end: str
    records: pd.DataFrame  # one row per (budget, summary), sorted

    def characters(self, tokens: int) -> int:
        """How many characters the first `tokens` tokens have."""
        known = min(tokens, len(self.token_ends))
        return int(self.token_ends[known - 1]) if known > 0 else 0


class ThinkingStore:
    """Where the thinkings of a run lie, learnt from their ids alone.

    Attributes:
        path: of the run folder.
        parts: problem_id → sample → part number.

    Raises:
        RunFolderError: no finished part, or a damaged one.
    """

    def __init__(self, run_dir: str | Path) -> None:
        self.path, self.parts = run_folder(run_dir), {}
        for chunk in sorted(stored.finished_chunks(self.path)):
            ids = stored.read_part(self.path, THINKINGS, chunk, ["problem_id", "sample"])
            for problem, sample in zip(ids["problem_id"], ids["sample"], strict=True):
                self.parts.setdefault(problem, {})[sample] = chunk
        if not self.parts:
            raise RunFolderError(f"{self.path} has no finished part yet. Wait, or run it again.")

    def records(self, problem: str) -> pd.DataFrame:
        """All records of a problem.

        Raises:
            RunFolderError: a part is damaged, or the run lacks the problem.
        """
        parts = sorted(set(self.parts.get(problem, {}).values()))
        if not parts:
            raise RunFolderError(f"{self.path} holds no records of problem {problem!r}.")
        frame = pd.concat([stored.read_part(self.path, RECORDS, n, problem=problem) for n in parts])
        return frame.sort_values(["sample", "budget", "summary"], ignore_index=True)

    def thought(self, problem: str, sample: int, records: pd.DataFrame) -> Thought:
        """One thinking with its records (those of the problem, from `records()`).

        Raises:
            RunFolderError: it is not there, or its part is damaged.
        """
        part = self.parts.get(problem, {}).get(sample)
        if part is None:
            raise RunFolderError(
                f"{self.path} holds no thinking of problem {problem!r}, sample {sample}."
            )
        found = stored.read_part(self.path, THINKINGS, part, problem=problem)
        found = found.fillna({name: "" for name in found if name != "tokens"})  # an older run's
        row = found.set_index("sample").loc[sample].drop("problem_id").to_dict()
        row["token_ends"] = np.array([*row["token_ends"]], dtype=int)
        mine = records[records["sample"] == sample].reset_index(drop=True)
        return Thought(sample=sample, records=mine, **row)


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
        votes = Counter(part["answer"].dropna())
        answer = max(votes, key=votes.get, default=None)
        giving = part["answer"].eq(answer) if votes else part["answer"].isna()
        correct = part["correct"].astype(bool)
        right = bool(votes) and bool(correct[giving].mean() >= 0.5)
        rows.append((budget, part["cut"].iloc[0], giving.mean(), correct.mean(), right, answer))
    frame = pd.DataFrame(rows, columns=["budget", "cut", "votes", "share_right", "right", "answer"])
    frame["answer"] = pd.Series([row[-1] for row in rows], dtype=object)  # None stays None
    answers, right = frame["answer"].map(repr), frame["right"]
    frame["flip"] = answers.ne(answers.shift(fill_value=answers[0]))
    frame["first_right"] = right & (right.cumsum() == 1)
    frame["lost"] = ~right & right.shift(fill_value=False)
    return frame


# --- which problems ------------------------------------------------------------------------------


def order_problems(
    a: ProblemTable, b: ProblemTable | None, budget: int, order: str
) -> list[tuple[str, float, float]]:
    """The problems of `a`, with both runs' accuracy at a budget, in one of ORDERS' orders.

    Of problems alike in it those come first whose answer came with thinking, and what cannot be
    compared last. Returns (problem, accuracy of a, accuracy of b); NaN where not measured or not
    graded.
    """
    frame = pd.DataFrame(index=a.problems.astype(str), columns=["a", "b"], dtype=float)
    for name, table in {"a": a, "b": b}.items():
        if table and budget in table.budgets:
            values = table.values[:, table.budgets.index(budget)]
            frame[name] = pd.Series(values, table.problems.astype(str))
    lead = frame["a"] - (frame["b"] if b else 0.0)
    keys = {"a over b": -lead, "b over a": lead, "hard": frame["a"], "name": frame.index}
    rise = (frame["a"] - a.values[:, 0]).fillna(0.0)
    frame = frame.assign(key=keys[order], rise=-rise, name=frame.index)
    frame = frame.sort_values(["key", "rise", "name"])
    return list(frame[["a", "b"]].itertuples(name=None))
