"""Problems and their verifier by name: the embedded task, a benchmark, or your own file."""

import ast
import hashlib
import json
import math
import os
import re
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datasets import Dataset, DatasetInfo

from anytime_lab.store.manifest import describe_problems
from anytime_lab.tasks.countdown import load_countdown
from anytime_lab.tasks.rows import load_hub_rows, read_rows
from anytime_lab.verify.verifiers import CountdownVerifier, MathVerifier, Verifier

MAX_TEXT = 1_000_000  # characters of a question, an answer or an id
# Where no column is named, the first of these that is there is taken; a dot looks into an object.
USUAL = {
    "question": ("question", "problem", "prompt", "query", "messages"),
    "answer": (
        "answer",
        "final_answer",
        "gold",
        "solution_answer",
        "target",
        "ground_truth",
        "reward_model.ground_truth",
        "expected_answer",
    ),
    "problem_id": ("problem_id", "id", "unique_id", "ID", "uid"),
}
ADVICE = "drop_unusable=True leaves such problems out."


def problems_from_rows(
    rows: Iterable[tuple[int, Mapping[str, Any]]],
    source: str,
    columns: Mapping[str, str | None] | None = None,
    question_suffix: str = "",
    drop_unusable: bool = False,
    homepage: str = "",
) -> Dataset:
    """Numbered rows as problems: columns problem_id, prompt (a conversation), question, answer.

    A question that is a conversation keeps its turns; what its last turn says is the question.

    Args:
        rows: As `read_rows` gives them.
        source: Named in errors and in the dataset's info.
        columns: See `load_problems`.
        question_suffix: Appended to every question.
        drop_unusable: See `load_problems`.
        homepage: Address of the source, for the dataset's info.

    Raises:
        ValueError: See `load_problems`.
    """
    rows = list(rows)
    mapped = _columns(rows, source, columns or {})
    made: dict[str, tuple[int, list[dict[str, str]], str | list[str]]] = {}
    unanswered, repeated, doubtful = 0, 0, []
    for number, row in rows:
        where = f"{source}, row {number}"
        turns = _turns(_field(row, mapped["question"]), where, mapped["question"])
        question = turns[-1]["content"]
        value = _field(row, mapped["answer"])
        if isinstance(value, Mapping) and "ground_truth" in value:
            value = value["ground_truth"]
        why = _looks_missing(value)
        if drop_unusable and why:
            unanswered += 1
            continue
        answer = _answer(value, where, mapped["answer"])
        if why:
            doubtful.append(f"row {number} {value!r:.40} ({why})")
        problem_id = _problem_id(row, mapped.get("problem_id"), question, where)
        if problem_id in made:
            first, known, _ = made[problem_id]
            if drop_unusable and known == turns:
                repeated += 1
                continue
            raise ValueError(_repeats(where, first, problem_id, mapped.get("problem_id")))
        made[problem_id] = (number, turns, answer)
    _tell(source, unanswered, repeated, doubtful, len(made))
    several = any(isinstance(answer, list) for _, _, answer in made.values())
    return Dataset.from_dict(
        {
            "problem_id": list(made),
            "prompt": [
                [*turns[:-1], {"role": "user", "content": turns[-1]["content"] + question_suffix}]
                for _, turns, _ in made.values()
            ],
            "question": [turns[-1]["content"] for _, turns, _ in made.values()],
            # One type in a column: lists of answers where any problem has several.
            "answer": [
                answer if isinstance(answer, list) or not several else [answer]
                for _, _, answer in made.values()
            ],
        },
        info=DatasetInfo(description=source, homepage=homepage),
    )


def _field(row: Mapping[str, Any], name: str) -> Any:
    """A column, or what lies under a dotted name in a column of objects (or of their JSON)."""
    if name in row or "." not in name:
        return row.get(name)
    first, _, rest = name.partition(".")
    inside = row.get(first)
    if isinstance(inside, str) and inside.lstrip().startswith("{"):
        try:
            inside = json.loads(inside)
        except ValueError:
            return None
    return _field(inside, rest) if isinstance(inside, Mapping) else None


def _columns(
    rows: list[tuple[int, Mapping[str, Any]]], source: str, columns: Mapping[str, str | None]
) -> dict[str, str]:
    """The column of each of question, answer and (where there is one) problem_id."""
    if unknown := set(columns) - {*USUAL, "prompt"}:
        raise ValueError(
            f"columns maps {sorted(unknown)}; it can map prompt (or question), answer and "
            "problem_id to columns of the file."
        )
    if {"prompt", "question"} <= set(columns):
        raise ValueError("columns maps both prompt and question; they are one and the same.")
    columns = {"question" if role == "prompt" else role: name for role, name in columns.items()}
    present = list(dict.fromkeys(key for _, row in rows for key in row))
    found = {}
    for role, usual in USUAL.items():
        wanted = [columns[role]] if role in columns else usual
        name = next((name for name in wanted if _is_there(rows, name, present)), None)
        if name is None and (role != "problem_id" or columns.get(role) is not None):
            raise ValueError(
                f"{source} has the columns {present}, but none for the {role} (looked for "
                f'{", ".join(map(str, wanted))}). Name it: columns={{"{role}": "..."}} (a dot '
                "looks into a column of objects)."
            )
        if name is not None:
            found[role] = name
    return found


def _is_there(rows: list[tuple[int, Mapping[str, Any]]], name: Any, present: list[str]) -> bool:
    if name in present or not isinstance(name, str):
        return name in present
    return any(_field(row, name) is not None for _, row in rows)


def _turns(value: Any, where: str, column: str) -> list[dict[str, str]]:
    """A question as the turns of a conversation, of which the last one is the user's."""
    if isinstance(value, str) and re.match(r"\s*\[\s*\{.*[\"']role[\"']", value, re.DOTALL):
        value = _listed(value) or value  # a conversation that a table holds as text
    if isinstance(value, str) and value.strip():
        value = [{"role": "user", "content": value}]
    turns = []
    for turn in value if isinstance(value, list) else ():
        role, content = (
            (turn.get(k) for k in ("role", "content")) if isinstance(turn, dict) else ("", "")
        )
        if isinstance(content, list):  # in parts, as models that see take it
            parts = [part.get("text") for part in content if isinstance(part, dict)]
            content = "".join(parts) if parts and all(isinstance(p, str) for p in parts) else None
        if not (isinstance(role, str) and isinstance(content, str)):
            turns = []
            break
        turns.append({"role": role, "content": _plain(content, where, "question")})
    if not turns or turns[-1]["role"] != "user" or not turns[-1]["content"]:
        raise ValueError(
            f"{where}: the question ({column!r}) is {value!r:.80}; expected text, or a "
            'conversation whose last turn is the user\'s, as [{"role": "user", "content": "..."}].'
        )
    return turns


def _plain(text: str, where: str, what: str) -> str:
    """Trimmed text that can be written out again."""
    if len(text) > MAX_TEXT:
        raise ValueError(
            f"{where}: the {what} has {len(text):,} characters; expected at most {MAX_TEXT:,}. "
            "Is it the right column?"
        )
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            f"{where}: the {what} holds half a character ({text[error.start]!a}) at position "
            f"{error.start}. Repair the escape, or cut the text elsewhere."
        ) from None
    return text.strip()


# Golds that stand for none, but for case, dollars, a box, \\text and a full stop.
_NONE = re.compile(
    r"(nan|none|null|nil|n/?a|not (available|applicable)|no(ne)? (answer|given|solution given)|"
    r"missing|unknown|tbd|todo|-+|\?+|\.*|"
    r"\(?(see )?(the )?(proofs?|solution|above|below|attached)( (omitted|below|above|needed))?\)?)",
    re.IGNORECASE,
)
_WRAPPED = re.compile(
    r"\s*(?:\$+(.*?)\$+|\\(?:boxed|fbox|text|textbf|mathrm|mathbf)\s*\{(.*)\}|\\\((.*)\\\))\s*",
    re.DOTALL,
)


def _looks_missing(value: Any) -> str:
    """Why a gold is none, or may be none in disguise; "" for any other."""
    if value is None or value == []:
        return "no answer"
    if isinstance(value, (list, tuple)):
        return next(filter(None, map(_looks_missing, value)), "")
    if not isinstance(value, str):
        return ""
    text = value.strip()
    listed = _listed(text) if len(text) < 10_000 else None
    if listed == [] or (isinstance(listed, list) and re.search("[\"']", text)):
        return "a list written as text; make it a list, or name the one answer"
    while match := _WRAPPED.fullmatch(text):
        text = next(part for part in match.groups() if part is not None).strip()
    if not text:
        return "no answer" if not value.strip() else "an empty box"
    return "stands for a missing one" if _NONE.fullmatch(text.rstrip(" .")) else ""


def _listed(text: str) -> Any:
    """What a list written as text holds, as JSON or as Python; None where it is none."""
    if not text.lstrip().startswith("["):
        return None
    for read in (json.loads, ast.literal_eval):
        try:
            return read(text.strip())
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            continue
    return None


def _answer(value: Any, where: str, column: str, listed: bool = False) -> str | list[str]:
    if isinstance(value, (list, tuple)) and value and not listed:
        return [_answer(one, where, column, listed=True) for one in value]
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    known = isinstance(value, (str, int, float)) and not isinstance(value, bool)
    if known and isinstance(value, float):
        known = math.isfinite(value)
    if not known or not str(value).strip():
        told = "empty" if isinstance(value, str) else f"{value!r:.80}"
        raise ValueError(
            f"{where}: the answer ({column!r}) is {told}; expected text, a finite number or a list "
            f"of such. {ADVICE}"
        )
    return _plain(str(value), where, "answer")


def _problem_id(row: Mapping[str, Any], column: str | None, question: str, where: str) -> str:
    if column is None:
        return hashlib.sha256(question.encode()).hexdigest()[:12]
    value = _field(row, column)
    if isinstance(value, float) and value.is_integer():
        value = int(value)  # as a table with gaps gives whole numbers
    if isinstance(value, bool) or not isinstance(value, (str, int)) or not str(value).strip():
        raise ValueError(
            f"{where}: the id ({column!r}) is {value!r:.80}; expected text or a whole number. "
            'columns={"problem_id": None} makes ids of the questions.'
        )
    return _plain(str(value), where, "id")


def _repeats(where: str, first: int, problem_id: str, column: str | None) -> str:
    if column is None:
        return (
            f"{where} has the same question as row {first}. Remove one of them, name a column of "
            'ids (columns={"problem_id": "..."}), or let drop_unusable=True keep the first.'
        )
    return (
        f"{where} has the same id as row {first} ({problem_id!r:.80}, {column!r}). Remove one of "
        'them, or let columns={"problem_id": None} make ids of the questions.'
    )


def _tell(source: str, unanswered: int, repeated: int, doubtful: list[str], left: int) -> None:
    if not left:
        raise ValueError(f"{source} holds no problem with an answer; expected at least one.")
    if unanswered or repeated:
        warnings.warn(
            f"{source}: left out {unanswered} problems without an answer and {repeated} repeated "
            f"ones; {left:,} are left.",
            stacklevel=4,
        )
    if doubtful:
        more = f" and {len(doubtful) - 5:,} more" if len(doubtful) > 5 else ""
        warnings.warn(
            f"{source}: {len(doubtful):,} of {left:,} answers look like none: "
            f"{'; '.join(doubtful[:5])}{more}. No answer will be graded right there. Correct them; "
            f"{ADVICE}",
            stacklevel=4,
        )


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
    split: str | None = None,
    columns: Mapping[str, str | None] | None = None,
    question_suffix: str = QUESTION_SUFFIX,
    revision: str | None = None,
    check: bool = True,
) -> Dataset:
    """A benchmark by name, from the hub or from a local file.

    Args:
        name: One of `BENCHMARKS`.
        path: A file to read instead of asking the hub.
        split: Of such a file; see `read_rows`.
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
        rows = read_rows(path, split)
        about = {"source": str(path), "columns": columns}
    else:
        wanted = {**benchmark.columns(), **(columns or {})}
        place = (benchmark.path, benchmark.name, benchmark.split)
        rows, homepage = load_hub_rows(name, place, revision, filter(None, wanted.values()))
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
    if check:
        warn_of_golds(made, MathVerifier())
    return made


def load_problems(
    path: str | Path,
    *,
    split: str | None = None,
    columns: Mapping[str, str | None] | None = None,
    question_suffix: str = QUESTION_SUFFIX,
    drop_unusable: bool = False,
    check: bool = True,
) -> Dataset:
    """Problems from a JSON, JSONL, parquet or CSV file.

    Args:
        path, split: See `read_rows`.
        columns: prompt (or question), answer and problem_id to the file's columns; the usual
            names (`problem`, `id`, …) are found without it. A dotted name looks into objects
            (`reward_model.ground_truth`). A problem_id of None, or no column of ids, makes ids of
            the questions.
        question_suffix: Appended to every question.
        drop_unusable: Leave out problems without an answer, and repetitions of a question, instead
            of refusing the file; a warning tells how many.
        check: Run `unreadable_golds` with a `MathVerifier` and warn of what it finds (some
            seconds for ten thousand problems). Switch it off where another verifier grades.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a column is missing, a row is empty or of mixed types, ids repeat; the message
            names the row.
    """
    rows = read_rows(path, split)
    made = problems_from_rows(rows, str(path), columns, question_suffix, drop_unusable)
    if check:
        warn_of_golds(made, MathVerifier())
    return made


def card_of(dataset: Dataset) -> str:
    """What a dataset that this module loaded, or a part of it, is: a sentence for a manifest."""
    about = describe_problems(dataset)
    revision = f" at {about['revision']}" if about["revision"] else ""
    count, digest = f"{about['problems']:,} problems", f"sha256 {about['sha256'][:16]}"
    return f"{about['source']}{revision}: {count}, {digest}"


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


def unreadable_golds(dataset: Dataset, verifier: MathVerifier) -> dict[str, str]:
    """Grade every gold against itself and its obvious variants; ids to why it cannot be graded.

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
    before = f"{verifier.think_close or ''}\n\n{verifier.header or ''}\n"  # where it looks
    texts = [f"{before}\\boxed{{{stated}}}" for _, _, stated in asked]
    grades = verifier.grade(texts, [gold for gold, _, _ in asked])
    for (gold, how, _), grade in zip(asked, grades, strict=True):
        if grade.score != 1.0 and not why[str(gold)]:
            why[str(gold)] = f"{gold!r:.60} {how} is graded {grade.reason!r}"
    ids = zip(dataset["problem_id"][:], golds, strict=True)
    return {id: why[str(gold)] for id, gold in ids if why[str(gold)]}


def warn_of_golds(dataset: Dataset, verifier: MathVerifier) -> None:
    """Warn of golds that cannot be graded; ends the verifier's workers."""
    try:
        bad = unreadable_golds(dataset, verifier)
    finally:
        verifier.close()
    if bad:
        told = "; ".join(f"{id}: {why}" for id, why in list(bad.items())[:5])
        more = f" and {len(bad) - 5} more" if len(bad) > 5 else ""
        warnings.warn(
            f"{dataset.info.description}: {len(bad)} of {len(dataset):,} golds cannot be graded "
            f"({told}{more}).",
            stacklevel=4,
        )


COUNTDOWN = "countdown"
_KNOWN = (
    f"Choose {COUNTDOWN}, {', '.join(BENCHMARKS)}, or the path of a file of problems (.json, "
    ".jsonl, .parquet, .csv)."
)


@dataclass(frozen=True)
class Task:
    """Problems and who grades their answers.

    Attributes:
        name: As it was asked for.
        problems: Columns problem_id, prompt, question, answer.
        verifier: Grades a summary against the answer.
        card: Source, revision, count and hash of the problems in a sentence, for the manifest.
    """

    name: str
    problems: Dataset
    verifier: Verifier
    card: str


def load_task(
    name: str,
    split: str = "train",
    num_problems: int | None = None,
    *,
    require_all: bool = False,
    **options: Any,
) -> Task:
    """Problems by name.

    Args:
        name: `countdown`; a benchmark (`aime24`, `amc22_23`, `math500`, `minerva`,
            `olympiad_bench`, `deepscaler`); or a file of mathematics problems (JSON, JSONL,
            parquet, CSV).
        split: Of the embedded task, `train` or `test`, or of a file that holds several; a benchmark
            has one.
        num_problems: How many; None takes all.
        require_all: Where a problem has several answers, ask for all of them, in any order; by
            default any one is right. Not for the embedded task.
        **options: For `load_countdown`, `load_benchmark` or `load_problems`.

    Raises:
        TypeError: the name is no text and no path.
        ValueError: there is no such task, too few problems, or require_all for `countdown`.
    """
    if not isinstance(name, str | os.PathLike):
        raise TypeError(f"the task is {name!r:.80}. {_KNOWN}")
    if isinstance(num_problems, bool) or not isinstance(num_problems, int | None):
        raise ValueError(
            f"num_problems is {num_problems!r}; expected a whole number, or None for all."
        )
    if require_all and name == COUNTDOWN:
        raise ValueError("require_all is for lists of answers; a Countdown problem has one.")
    check = options.pop("check", True) if name != COUNTDOWN else False
    if name == COUNTDOWN:
        problems = load_countdown(num_problems, split, **options)
        return Task(name, problems, CountdownVerifier(), card_of(problems))
    if name in BENCHMARKS:
        problems = load_benchmark(name, split=split, check=check and not require_all, **options)
    elif Path(name).expanduser().is_file():
        problems = load_problems(name, split=split, check=check and not require_all, **options)
    else:
        raise ValueError(f"there is no task {name!r}. {_KNOWN}")
    if num_problems is not None:
        if not 1 <= num_problems <= len(problems):
            raise ValueError(
                f"num_problems is {num_problems}, but {name} has {len(problems)}; give 1 to "
                f"{len(problems)}, or None for all."
            )
        problems = problems.select(range(num_problems))
    verifier = MathVerifier(require_all=require_all)
    if check and require_all:
        warn_of_golds(problems, verifier)
    return Task(name, problems, verifier, card_of(problems))
