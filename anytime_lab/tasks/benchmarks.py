"""The benchmarks of the paper by name, and your own problems from a file, all in one form.

Columns of every dataset: problem_id, prompt (a conversation), question, answer (a string, or a list
of strings: accepted or required answers as the verifier reads them).
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
from datasets import Dataset

from anytime_lab.manifest import describe_rows
from anytime_lab.tasks.files import read_rows
from anytime_lab.verify import MathVerifier

# What the published runs append to every question (BRPO §7).
QUESTION_SUFFIX = "\nLet's think step by step and output the final answer within \\boxed{}."
# Where a file has no column of the asked name, these are tried.
USUAL = {
    "question": ("question", "problem", "prompt", "query"),
    "answer": ("answer", "final_answer", "gold", "solution_answer", "target"),
    "problem_id": ("problem_id", "id", "unique_id", "ID", "uid"),
}


@dataclass(frozen=True)
class Benchmark:
    """Where a benchmark lies on the hub.

    Attributes:
        path: Repository.
        name: Configuration, or None.
        split: Of the repository.
        columns: question, answer and, where there is one, problem_id to the repository's columns.
        count: Problems it should have; None where it grows.
    """

    path: str
    split: str
    columns: Mapping[str, str]
    name: str | None = None
    count: int | None = None


BENCHMARKS: Mapping[str, Benchmark] = {
    "aime24": Benchmark(
        "HuggingFaceH4/aime_2024",
        "train",
        {"question": "problem", "answer": "answer", "problem_id": "id"},
        count=30,
    ),
    "amc22_23": Benchmark(
        "AI-MO/aimo-validation-amc",
        "train",
        {"question": "problem", "answer": "answer", "problem_id": "id"},
        count=83,
    ),
    "math500": Benchmark(
        "HuggingFaceH4/MATH-500",
        "test",
        {"question": "problem", "answer": "answer", "problem_id": "unique_id"},
        count=500,
    ),
    "minerva": Benchmark(
        "math-ai/minervamath", "test", {"question": "question", "answer": "answer"}, count=272
    ),
    "olympiad_bench": Benchmark(
        "Hothan/OlympiadBench",
        "train",
        {"question": "question", "answer": "final_answer", "problem_id": "id"},
        name="OE_TO_maths_en_COMP",  # open-ended, text-only, mathematics, English
        count=674,
    ),
    "deepscaler": Benchmark(
        "agentica-org/DeepScaleR-Preview-Dataset",
        "train",
        {"question": "problem", "answer": "answer"},
        count=40_315,
    ),
}


@dataclass(frozen=True)
class DatasetCard:
    """What a run's manifest says about its problems.

    Attributes:
        source: Repository or file.
        revision: Of the repository; "" for a file.
        problems: Their number.
        sha256: Of ids, questions and answers in order.
    """

    source: str
    revision: str
    problems: int
    sha256: str

    def sentence(self) -> str:
        """The card in one line."""
        revision = f" at {self.revision}" if self.revision else ""
        return f"{self.source}{revision}: {self.problems:,} problems, sha256 {self.sha256[:16]}"


def dataset_card(dataset: Dataset, source: str, revision: str = "") -> DatasetCard:
    """Describe a dataset of this module's form."""
    rows = dataset.select_columns(["problem_id", "question", "answer"])
    said = describe_rows(rows)
    return DatasetCard(source, revision, said["problems"], said["sha256"])


def load_benchmark(
    name: str,
    path: str | Path | None = None,
    *,
    columns: Mapping[str, str] | None = None,
    question_suffix: str = QUESTION_SUFFIX,
    revision: str | None = None,
) -> Dataset:
    """A benchmark by name, from the hub or from a local file.

    Args:
        name: One of `BENCHMARKS`.
        path: A file to read instead of asking the hub.
        columns: question, answer, problem_id to the file's columns, where they are not the usual.
        question_suffix: Appended to every question.
        revision: Of the hub's repository.

    Raises:
        ValueError: the name is unknown, or the rows are not what they should be.
        ConnectionError: the hub cannot be reached; the message says how to pass a file.
    """
    if name not in BENCHMARKS:
        raise ValueError(f"there is no benchmark {name!r}; there are {', '.join(BENCHMARKS)}.")
    benchmark = BENCHMARKS[name]
    if path is not None:
        return load_problems(path, columns=columns, question_suffix=question_suffix)
    try:
        rows = datasets.load_dataset(
            benchmark.path, benchmark.name, split=benchmark.split, revision=revision
        )
    except Exception as error:
        raise ConnectionError(
            f"{name} ({benchmark.path} on the hub) could not be loaded: "
            f"{type(error).__name__}: {str(error)[:200]}. Without a connection pass a file: "
            f'load_benchmark("{name}", path="{name}.jsonl").'
        ) from error
    if missing := set(benchmark.columns.values()) - set(rows.column_names):
        raise ValueError(
            f"{benchmark.path} has the columns {rows.column_names}, but no {sorted(missing)}: it "
            "has changed. Pass an older revision=..., or a file: path=..."
        )
    mapped = {**benchmark.columns, **(columns or {})}
    return problems_from_rows(list(rows), benchmark.path, mapped, question_suffix)


def load_problems(
    path: str | Path,
    *,
    columns: Mapping[str, str] | None = None,
    question_suffix: str = QUESTION_SUFFIX,
    drop_unanswered: bool = False,
) -> Dataset:
    """Problems from a JSON, JSONL, parquet or CSV file.

    Args:
        path: See `read_rows`.
        columns: question, answer, problem_id to the file's columns; the usual names (`problem`,
            `id`, …) are found without it.
        question_suffix: Appended to every question.
        drop_unanswered: Leave out problems without an answer instead of refusing the file.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a column is missing, a row is empty or of mixed types, ids repeat; the message
            names the row.
    """
    return problems_from_rows(read_rows(path), str(path), columns, question_suffix, drop_unanswered)


def problems_from_rows(
    rows: list[Mapping[str, Any]],
    source: str,
    columns: Mapping[str, str] | None = None,
    question_suffix: str = QUESTION_SUFFIX,
    drop_unanswered: bool = False,
) -> Dataset:
    """Rows in this module's form; see `load_problems`."""
    mapped = _columns(rows, source, columns or {})
    made, seen = [], {}
    for number, row in enumerate(rows, start=1):
        question = row.get(mapped["question"])
        if not isinstance(question, str) or not question.strip():
            raise ValueError(
                f"{source}, row {number}: the question ({mapped['question']!r}) is {question!r}; "
                "expected text."
            )
        if drop_unanswered and row.get(mapped["answer"]) in (None, "", []):
            continue
        answer = _answer(row.get(mapped["answer"]), f"{source}, row {number}", mapped["answer"])
        problem_id = _problem_id(row, mapped.get("problem_id"), question, f"{source}, row {number}")
        if problem_id in seen:
            what = "id" if "problem_id" in mapped else "question"
            raise ValueError(
                f"{source}, row {number} has the same {what} as row {seen[problem_id]} "
                f"({problem_id!r}). Remove one of them"
                + ("." if "problem_id" in mapped else ", or name a column of ids.")
            )
        seen[problem_id] = number
        prompt = [{"role": "user", "content": question.strip() + question_suffix}]
        made.append((problem_id, prompt, question.strip(), answer))
    several = any(isinstance(answer, list) for *_, answer in made)
    return Dataset.from_dict(
        {
            "problem_id": [row[0] for row in made],
            "prompt": [row[1] for row in made],
            "question": [row[2] for row in made],
            # One type in a column: lists of answers where any problem has several.
            "answer": [
                row[3] if isinstance(row[3], list) or not several else [row[3]] for row in made
            ],
        }
    )


def _columns(
    rows: list[Mapping[str, Any]], source: str, columns: Mapping[str, str]
) -> dict[str, str]:
    if unknown := set(columns) - set(USUAL):
        raise ValueError(
            f"columns maps {sorted(unknown)}; it can map {', '.join(USUAL)} to columns of the file."
        )
    present = list(dict.fromkeys(key for row in rows for key in row))
    found = {}
    for role, usual in USUAL.items():
        wanted = [columns[role]] if role in columns else usual
        name = next((name for name in wanted if name in present), None)
        if name is None and (role != "problem_id" or role in columns):
            raise ValueError(
                f"{source} has the columns {present}, but none for the {role} (looked for "
                f'{", ".join(wanted)}). Name it: columns={{"{role}": "..."}}.'
            )
        if name is not None:
            found[role] = name
    return found


def _answer(value: Any, where: str, column: str) -> str | list[str]:
    if isinstance(value, (list, tuple)):
        listed = [_answer(one, where, column) for one in value]
        if not listed or any(isinstance(one, list) for one in listed):
            raise ValueError(
                f"{where}: the answer ({column!r}) is {value!r}; expected one or several."
            )
        return listed
    if isinstance(value, bool) or value is None or not isinstance(value, (str, int, float)):
        raise ValueError(
            f"{where}: the answer ({column!r}) is {value!r}; expected text, a number or a list. "
            "drop_unanswered=True leaves such problems out."
        )
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if not str(value).strip():
        raise ValueError(
            f"{where}: the answer ({column!r}) is empty. drop_unanswered=True leaves such problems "
            "out."
        )
    return str(value).strip()


def _problem_id(row: Mapping[str, Any], column: str | None, question: str, where: str) -> str:
    if column is None:
        return hashlib.sha256(question.strip().encode()).hexdigest()[:12]
    value = row.get(column)
    if value is None or not str(value).strip():
        raise ValueError(f"{where}: the id ({column!r}) is {value!r}; every problem needs one.")
    return str(value).strip()


@dataclass(frozen=True)
class GoldReport:
    """What the grader makes of the golds of a dataset.

    Attributes:
        problems: How many were read.
        unreadable: Id of a problem to why its gold cannot be graded.
    """

    problems: int
    unreadable: Mapping[str, str]

    def sentence(self) -> str:
        """The report in words."""
        if not self.unreadable:
            return f"All {self.problems:,} golds can be graded."
        shown = "; ".join(f"{id}: {why}" for id, why in list(self.unreadable.items())[:5])
        more = f" and {len(self.unreadable) - 5} more" if len(self.unreadable) > 5 else ""
        return (
            f"{len(self.unreadable)} of {self.problems:,} golds cannot be graded ({shown}{more})."
        )


def check_golds(dataset: Dataset, verifier: MathVerifier) -> GoldReport:
    """Grade every gold against itself and report what the grader cannot read.

    Args:
        dataset: Of this module's form.
        verifier: The one that will grade answers to it.
    """
    found = verifier.read_golds(dataset["answer"][:])
    pairs = zip(dataset["problem_id"], found, strict=True)
    return GoldReport(len(dataset), {id: str(why) for id, why in pairs if why})
