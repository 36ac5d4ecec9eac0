"""The benchmarks of the paper by name, and your own problems from a file, all in one form.

Columns of every dataset: problem_id, prompt (a conversation), question, answer (a string, or a list
of strings: accepted or required answers as the verifier reads them).
"""

import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from datasets import Dataset

from anytime_lab.store.manifest import describe_problems
from anytime_lab.tasks.files import read_rows
from anytime_lab.tasks.hub import load_hub_rows
from anytime_lab.tasks.problems import problems_from_rows
from anytime_lab.verify.verifiers import MathVerifier

# What the published runs append to every question (BRPO §7), with one space before it.
QUESTION_SUFFIX = " Let's think step by step and output the final answer within \\boxed{}."


@dataclass(frozen=True)
class Benchmark:
    """Where a benchmark lies on the hub.

    Attributes:
        path: Repository.
        split: Of the repository.
        question: Its column of questions.
        answer: Its column of golds.
        count: Problems it has.
        problem_id: Its column of ids; None makes them of the questions.
        name: Configuration, or None.
        drop_unusable: Whether problems without an answer, and repeated ones, are left out: a
            training set may have some, a test set must not.
    """

    path: str
    split: str
    question: str
    answer: str
    count: int
    problem_id: str | None = None
    name: str | None = None
    drop_unusable: bool = False

    def columns(self) -> dict[str, str | None]:
        """This module's columns to the repository's."""
        return {"question": self.question, "answer": self.answer, "problem_id": self.problem_id}

    def source(self) -> str:
        """Repository, configuration and split, for people."""
        return " ".join(filter(None, (self.path, self.name, self.split)))


BENCHMARKS: Mapping[str, Benchmark] = {
    "aime24": Benchmark(
        "HuggingFaceH4/aime_2024", "train", "problem", "answer", 30, problem_id="id"
    ),
    # AMC12 of 2022 and 2023; the paper calls it AMC 2022.
    "amc22_23": Benchmark(
        "AI-MO/aimo-validation-amc", "train", "problem", "answer", 83, problem_id="id"
    ),
    "math500": Benchmark(
        "HuggingFaceH4/MATH-500", "test", "problem", "answer", 500, problem_id="unique_id"
    ),
    "minerva": Benchmark("math-ai/minervamath", "test", "question", "answer", 272),
    # Open-ended, text-only, mathematics, English, of competitions. The paper's copy has 675.
    "olympiad_bench": Benchmark(
        "Hothan/OlympiadBench",
        "train",
        "question",
        "final_answer",
        674,
        problem_id="id",
        name="OE_TO_maths_en_COMP",
    ),
    # For training; a few of its problems have no answer.
    "deepscaler": Benchmark(
        "agentica-org/DeepScaleR-Preview-Dataset",
        "train",
        "problem",
        "answer",
        40_315,
        drop_unusable=True,
    ),
}


def load_benchmark(
    name: str,
    path: str | Path | None = None,
    *,
    columns: Mapping[str, str | None] | None = None,
    question_suffix: str = QUESTION_SUFFIX,
    revision: str | None = None,
    check: bool = True,
) -> Dataset:
    """A benchmark by name, from the hub or from a local file.

    Args:
        name: One of `BENCHMARKS`.
        path: A file to read instead of asking the hub.
        columns: See `load_problems`.
        question_suffix: Appended to every question.
        revision: Commit, branch or tag of the hub's repository.
        check: See `load_problems`.

    Raises:
        ValueError: the name is unknown, the hub has no such data set, revision, split or column,
            or the rows are not what they should be.
        ConnectionError: the hub cannot be reached, or must not be (HF_HUB_OFFLINE).
        PermissionError: the hub wants a login, or an agreement to its terms, first.

    Whatever the hub refuses, the message says how to pass a file instead.
    """
    if name not in list(BENCHMARKS):  # a list, so that a name that has no hash is none of them
        raise ValueError(
            f"there is no benchmark {name!r}; there are {', '.join(BENCHMARKS)}. For problems of "
            "your own: load_problems(path)."
        )
    benchmark = BENCHMARKS[name]
    if path is not None:
        if revision is not None:
            raise ValueError(f"revision is {revision!r}, but {path} is a file and has none.")
        rows = read_rows(path)
        about = {"source": str(path), "columns": columns}
    else:
        wanted = {**benchmark.columns(), **(columns or {})}
        rows, homepage = load_hub_rows(
            name, benchmark.path, benchmark.name, benchmark.split, revision, wanted
        )
        about = {"source": benchmark.source(), "columns": wanted, "homepage": homepage}
    if len(rows) != benchmark.count:
        warnings.warn(
            f"{name} has {benchmark.count:,} problems, but {about['source']} has {len(rows):,}: "
            "accuracies on it do not compare with published ones.",
            stacklevel=2,
        )
    made = problems_from_rows(
        rows, question_suffix=question_suffix, drop_unusable=benchmark.drop_unusable, **about
    )
    return _with_golds_checked(made) if check else made


def load_problems(
    path: str | Path,
    *,
    columns: Mapping[str, str | None] | None = None,
    question_suffix: str = QUESTION_SUFFIX,
    drop_unusable: bool = False,
    check: bool = True,
) -> Dataset:
    """Problems from a JSON, JSONL, parquet or CSV file.

    Args:
        path: See `read_rows`.
        columns: prompt (or question), answer and problem_id to the file's columns; the usual
            names (`problem`, `id`, …) are found without it. A problem_id of None, or no column
            of ids, makes ids of the questions.
        question_suffix: Appended to every question.
        drop_unusable: Leave out problems without an answer, and repetitions of a question, instead
            of refusing the file; a warning tells how many.
        check: Run `check_golds` with a `MathVerifier` and warn of golds that it cannot read (some
            seconds for ten thousand problems). Switch it off where another verifier grades.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a column is missing, a row is empty or of mixed types, ids repeat; the message
            names the row.
    """
    made = problems_from_rows(read_rows(path), str(path), columns, question_suffix, drop_unusable)
    return _with_golds_checked(made) if check else made


@dataclass(frozen=True)
class DatasetCard:
    """What a run's manifest says about its problems.

    Attributes:
        source: Repository or file.
        revision: Commit of the repository; "" for a file.
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


def dataset_card(dataset: Dataset) -> DatasetCard:
    """Describe a dataset that this module loaded, or a part of it."""
    return DatasetCard(**describe_problems(dataset))


# --- golds ---------------------------------------------------------------------------------------

# Obvious ways to state a gold. Each gives None where it does not apply.
VARIANTS: Sequence[tuple[str, Callable[[str], str | None]]] = (
    ("as it stands", lambda gold: gold),
    ("in dollars", lambda gold: None if "$" in gold else f"${gold}$"),
    ("with a full stop", lambda gold: None if gold.endswith(".") else f"{gold}."),
    ("on a line of its own", lambda gold: f"\n{gold}\n"),
    ("with large fractions", lambda gold: re.sub(r"\\t?frac(?![a-zA-Z])", r"\\dfrac", gold)),
    ("without \\left and \\right", lambda gold: _without_left_and_right(gold)),
    ("without leading zeros", lambda gold: str(int(gold)) if gold.isdecimal() else None),
    (
        "with thousands separators",
        lambda gold: f"{int(gold):,}" if re.fullmatch("[1-9][0-9]{3,19}", gold) else None,
    ),
)


def _without_left_and_right(gold: str) -> str | None:
    if re.search(r"\\(left|right)\s*\.", gold):
        return None  # an invisible bracket would become a visible full stop
    return re.sub(r"\\(left|right)(?![a-zA-Z])", "", gold)


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
    """Grade every gold against itself and its obvious variants; report what is not right.

    Args:
        dataset: Of this module's form.
        verifier: The one that will grade answers to it.
    """
    golds = dataset["answer"][:]
    distinct = list({str(gold): gold for gold in golds}.values())
    why = dict(zip(map(str, distinct), verifier.read_golds(distinct), strict=True))
    asked = [
        (gold, how, stated)
        for gold in distinct
        if not why[str(gold)]
        for text in verifier.accepted(gold)
        for how, state in VARIANTS
        if (stated := state(text)) is not None
    ]
    texts = [_final_answer(verifier, stated) for _, _, stated in asked]
    grades = verifier.grade(texts, [gold for gold, _, _ in asked])
    for (gold, how, _), grade in zip(asked, grades, strict=True):
        if grade.score != 1.0 and not why[str(gold)]:
            why[str(gold)] = f"{gold!r:.60} {how} is graded {grade.reason!r}"
    ids = zip(dataset["problem_id"][:], golds, strict=True)
    return GoldReport(len(golds), {id: why[str(gold)] for id, gold in ids if why[str(gold)]})


def _final_answer(verifier: MathVerifier, answer: str) -> str:
    """A text in which an answer is given as the verifier looks for it."""
    return f"{verifier.think_close or ''}\n\n{verifier.header or ''}\n\\boxed{{{answer}}}"


def _with_golds_checked(made: Dataset) -> Dataset:
    warn_of_golds(made, MathVerifier())
    return made


def warn_of_golds(dataset: Dataset, verifier: MathVerifier) -> None:
    """Warn of golds that `check_golds` finds unreadable; ends the verifier's workers."""
    try:
        report = check_golds(dataset, verifier)
    finally:
        verifier.close()
    if report.unreadable:
        warnings.warn(f"{dataset.info.description}: {report.sentence()}", stacklevel=4)
