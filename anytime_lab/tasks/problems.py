"""Problems and their verifier by name: the embedded task, a benchmark, or your own file."""

import ast
import contextlib
import csv
import errno
import hashlib
import io
import json
import os
import re
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import pyarrow.parquet as pq
from datasets import Dataset, DatasetInfo
from datasets.exceptions import DataFilesNotFoundError, DatasetNotFoundError
from pyarrow import ArrowException

from anytime_lab.prompts import of_text, what_is_wrong
from anytime_lab.store.manifest import describe_problems
from anytime_lab.tasks.countdown import load_countdown
from anytime_lab.tasks.gym import load_gym
from anytime_lab.verify.answers import find_boxed
from anytime_lab.verify.forms import UnreadableError, clean
from anytime_lab.verify.verifiers import (
    CountdownVerifier,
    FunctionVerifier,
    MathVerifier,
    Verifier,
    written,
)

MAX_TEXT = 1_000_000  # characters of a question, an answer or an id
SPLIT = "split"  # a column of this name says to which split a row belongs
Rows = list[tuple[int, dict[str, Any]]]  # each with its number, for errors
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
# What the published runs append to every question (BRPO §7), with one space before it.
QUESTION_SUFFIX = " Let's think step by step and output the final answer within \\boxed{}."


@dataclass(frozen=True)
class Benchmark:
    """Where a benchmark lies on the hub.

    Attributes:
        path: Repository.
        split: Of the repository.
        count: Problems it has.
        name: Configuration, or None.
        drop_unusable: Whether problems without an answer, and repeated ones, are left out: a
            training set may have some, a test set must not.
    """

    path: str
    split: str
    count: int
    name: str | None = None
    drop_unusable: bool = False


BENCHMARKS: Mapping[str, Benchmark] = {
    "aime24": Benchmark("HuggingFaceH4/aime_2024", "train", 30),
    # AMC12 of 2022 and 2023; the paper calls it AMC 2022.
    "amc22_23": Benchmark("AI-MO/aimo-validation-amc", "train", 83),
    "math500": Benchmark("HuggingFaceH4/MATH-500", "test", 500),
    "minerva": Benchmark("math-ai/minervamath", "test", 272),
    # Open-ended, text-only, mathematics, English, of competitions. The paper's copy has 675.
    "olympiad_bench": Benchmark("Hothan/OlympiadBench", "train", 674, name="OE_TO_maths_en_COMP"),
    # For training; a few of its problems have no answer.
    "deepscaler": Benchmark(
        "agentica-org/DeepScaleR-Preview-Dataset", "train", 40_315, drop_unusable=True
    ),
}


def load_problems(
    name: str | Path,
    path: str | Path | None = None,
    *,
    split: str | None = None,
    columns: Mapping[str, str | None] | None = None,
    question_suffix: str = QUESTION_SUFFIX,
    revision: str | None = None,
    drop_unusable: bool = False,
) -> Dataset:
    """Problems of a benchmark, from the hub or a file, or of a file of your own.

    A file is a list of objects (.json; also an object that holds such lists by name), one object a
    line (.jsonl), or a table (.parquet, .csv with a header). A question that is a conversation
    keeps its turns; what its last turn says is the question.

    Args:
        name: One of `BENCHMARKS`, or a file.
        path: A file with a benchmark's problems, instead of asking the hub.
        split: Which of several lists of a .json file; and which rows, where a column `split` has
            this value among others. A warning tells what was left out.
        columns: prompt (or question), answer and problem_id to the columns there; the usual
            names (`problem`, `id`, …) are found without it. A dotted name looks into objects
            (`reward_model.ground_truth`). A problem_id of None, or no column of ids, makes ids of
            the questions.
        question_suffix: Appended to every question.
        revision: Commit, branch or tag of the hub's repository; None takes the newest.
        drop_unusable: Leave out problems without an answer, and repetitions of a question, instead
            of refusing the file; a warning tells how many.

    Returns:
        Columns problem_id, prompt (a conversation), question, answer.

    Raises:
        TypeError: the path is no text and no path.
        FileNotFoundError: there is no such file, or it is a folder.
        ValueError: the file is empty, no UTF-8, torn, of another form, or holds several lists and
            none of the name; a column is missing, a row is empty or of mixed types, ids repeat (the
            message names the row); or the hub has no such data set, revision or split.
        ConnectionError: the hub cannot be reached, or must not be (HF_HUB_OFFLINE).
        PermissionError: the hub wants a login, or an agreement to its terms, first.

    Whatever the hub refuses, the message says how to pass a file instead.
    """
    benchmark = BENCHMARKS.get(name) if isinstance(name, str) else None
    if benchmark and path is None:
        source = " ".join(filter(None, (benchmark.path, benchmark.name, benchmark.split)))
        rows, homepage = _hub_rows(name, benchmark, revision)
    else:
        file = path if benchmark else name
        if revision is not None:
            raise ValueError(f"revision is {revision!r}, but {file} is a file and has none.")
        source, rows, homepage = str(file), _file_rows(file, split), ""
    if benchmark and len(rows) != benchmark.count:
        warnings.warn(
            f"{name} has {benchmark.count:,} problems, but {source} has {len(rows):,}: "
            "accuracies on it do not compare with published ones.",
            stacklevel=2,
        )
    drop_unusable = drop_unusable or bool(benchmark and benchmark.drop_unusable)
    made = _problems(rows, source, _columns(rows, source, columns or {}), drop_unusable)
    several = any(isinstance(row["answer"], list) for row in made)
    for row in made:
        row["prompt"][-1]["content"] += question_suffix
        if several and isinstance(row["answer"], str):  # one type in a column
            row["answer"] = [row["answer"]]
    return Dataset.from_list(made, info=DatasetInfo(description=source, homepage=homepage))


def _problems(
    rows: Rows, source: str, columns: Mapping[str, str], drop_unusable: bool
) -> list[dict[str, Any]]:
    """Numbered rows as problems, each checked; warns of what was left out or looks like no gold."""
    made: dict[str, dict[str, Any]] = {}
    numbers: dict[str, int] = {}
    unanswered, repeated, doubtful, worked = 0, 0, [], []
    for number, row in rows:
        where, role = f"{source}, row {number}", "question"
        try:
            turns = _turns(_field(row, columns[role]))
            question, role = turns[-1]["content"], "answer"
            stated = _field(row, columns[role])
            if isinstance(stated, Mapping) and "ground_truth" in stated:
                stated = stated["ground_truth"]
            gold = _final(stated)
            if gold != stated:
                worked.append(f"row {number} {gold!r:.40}")
            why = _looks_missing(gold)
            if drop_unusable and why:
                unanswered += 1
                continue
            answer = _answer(gold)
            if why:
                doubtful.append(f"row {number} {gold!r:.40} ({why})")
            id = hashlib.sha256(question.encode()).hexdigest()[:12]
            if (role := "problem_id") in columns:
                id = _problem_id(_field(row, columns[role]))
        except ValueError as error:
            raise ValueError(f"{where}: the {role} ({columns[role]!r}) {error}") from None
        if id in made and drop_unusable and made[id]["prompt"] == turns:
            repeated += 1
            continue
        if id in made:
            kind, way = f"question as row {numbers[id]}", "name a column of ids (columns="
            way += '{"problem_id": "..."}), or let drop_unusable=True keep the first.'
            if "problem_id" in columns:
                kind = f"id as row {numbers[id]} ({id!r:.80}, {columns['problem_id']!r})"
                way = 'let columns={"problem_id": None} make ids of the questions.'
            raise ValueError(f"{where} has the same {kind}. Remove one of them, or {way}")
        made[id] = {"problem_id": id, "prompt": turns, "question": question, "answer": answer}
        numbers[id] = number
    if not made:
        raise ValueError(f"{source} holds no problem with an answer; expected at least one.")
    of_them = f"of {len(made):,} answers"
    for holds, told in (
        (
            unanswered or repeated,
            f"left out {unanswered} problems without an answer and {repeated} repeated ones; "
            f"{len(made):,} are left.",
        ),
        (
            worked,
            f"{len(worked):,} {of_them} are worked solutions; taken is what follows their last "
            f"'####' or stands in their only box: {_first(worked)}.",
        ),
        (
            doubtful,
            f"{len(doubtful):,} {of_them} look like none: {_first(doubtful)}. No answer will be "
            f"graded right there. Correct them; {ADVICE}",
        ),
    ):
        if holds:
            warnings.warn(f"{source}: {told}", stacklevel=3)
    return list(made.values())


def _first(told: list[str]) -> str:
    """The first five of what there is to tell, and how many more."""
    return "; ".join(told[:5]) + (f" and {len(told) - 5:,} more" if len(told) > 5 else "")


def _field(row: Mapping[str, Any], name: Any) -> Any:
    """A column, or what lies under a dotted name in a column of objects (or of their JSON)."""
    if name in row or not isinstance(name, str) or "." not in name:
        return row.get(name)
    first, _, rest = name.partition(".")
    inside = _read(row.get(first), "{")
    return _field(inside, rest) if isinstance(inside, Mapping) else None


def _columns(rows: Rows, source: str, columns: Mapping[str, str | None]) -> dict[str, str]:
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
        there = (
            n for n in wanted if n in present or any(_field(r, n) is not None for _, r in rows)
        )
        if name := next(there, None):
            found[role] = name
        elif role != "problem_id" or columns.get(role) is not None:
            raise ValueError(
                f"{source} has the columns {present}, but none for the {role} (looked for "
                f"{', '.join(map(str, wanted))}). Name it: columns={{{role!r}: '...'}} (a dot "
                "looks into a column of objects)."
            )
    return found


def _turns(value: Any) -> list[dict[str, str]]:
    """A question as the turns of a conversation, of which the last one is the user's."""
    if isinstance(value, str) and re.match(r"\s*\[\s*\{.*[\"']role[\"']", value, re.DOTALL):
        value = _read(value, "[") or value  # a conversation that a table holds as text
    turns = [{"role": "user", "content": value}] if isinstance(value, str) else value
    made = [] if what_is_wrong(turns) else [of_text(turn) for turn in turns]
    if not made or made[-1]["role"] != "user" or not made[-1]["content"].strip():
        raise ValueError(
            f"is {value!r:.80}; expected text, or a conversation whose last turn is the user's, as "
            '[{"role": "user", "content": "..."}].'
        )
    return [{"role": turn["role"], "content": _plain(turn["content"])} for turn in made]


def _plain(text: str) -> str:
    """Trimmed text that can be written out again."""
    if len(text) > MAX_TEXT:
        raise ValueError(
            f"has {len(text):,} characters; expected at most {MAX_TEXT:,}. Is it the right column?"
        )
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            f"holds half a character ({text[error.start]!a}) at position {error.start}. Repair the "
            "escape, or cut the text elsewhere."
        ) from None
    return text.strip()


# Golds that stand for none, once cleaned.
_NONE = re.compile(
    r"(\\text\{ ?)?(nan|none|null|nil|n/?a|not (available|applicable)|missing|unknown|tbd|todo|-*|"
    r"no(ne)? (answer|given|solution given)|"
    r"\(?(see )?(the )?(proofs?|solution|above|below|attached)( (omitted|below|above|needed))?\)?)"
    r"\.? ?\}?",
    re.IGNORECASE,
)


def _looks_missing(value: Any) -> str:
    """Why a gold is none, or may be none in disguise; "" for any other."""
    if value is None or value == []:
        return "no answer"
    if isinstance(value, (list, tuple)):
        return next(filter(None, map(_looks_missing, value)), "")
    if not isinstance(value, str):
        return ""
    listed = _read(value, "[") if len(value) < 10_000 else None
    if listed == [] or (isinstance(listed, list) and re.search("[\"']", value)):
        return "a list written as text; make it a list, or name the one answer"
    with contextlib.suppress(UnreadableError):
        return "stands for a missing one" if _NONE.fullmatch(clean(value.strip())) else ""
    return ""


def _final(gold: Any) -> Any:
    """What a worked solution comes to: behind its last `####`, or in its only box among words."""
    if not isinstance(gold, str):
        return gold
    if "####" in gold:
        return gold.rpartition("####")[2].strip()
    boxed = find_boxed(gold) if gold.count("\\boxed") == 1 else None
    words = re.findall(r"(?<![\\a-zA-Z])[a-zA-Z]{2,}", gold.replace(boxed, "")) if boxed else []
    return boxed if len(words) > 2 else gold


def _read(value: Any, opening: str) -> Any:
    """A list or object written as text, as JSON or as Python; None for other text."""
    if not isinstance(value, str):
        return value
    if value.lstrip().startswith(opening):
        for read in (json.loads, ast.literal_eval):
            with contextlib.suppress(ValueError, SyntaxError, MemoryError, RecursionError):
                return read(value.strip())
    return None


def _answer(value: Any, listed: bool = False) -> str | list[str]:
    if isinstance(value, (list, tuple)) and value and not listed:
        return [_answer(one, listed=True) for one in value]
    if not (text := written(value)):
        told = "empty" if isinstance(value, str) else f"{value!r:.80}"
        raise ValueError(f"is {told}; expected text, a finite number or a list of such. {ADVICE}")
    return _plain(text)


def _problem_id(value: Any) -> str:
    part = isinstance(value, float) and not value.is_integer()
    if part or not (text := written(value)):
        raise ValueError(
            f"is {value!r:.80}; expected text or a whole number. "
            'columns={"problem_id": None} makes ids of the questions.'
        )
    return _plain(text)


def card_of(dataset: Dataset) -> str:
    """What a dataset that this module loaded, or a part of it, is: a sentence for a manifest."""
    about = describe_problems(dataset)
    revision = f" at {about['revision']}" if about["revision"] else ""
    count, digest = f"{about['problems']:,} problems", f"sha256 {about['sha256'][:16]}"
    return f"{about['source']}{revision}: {count}, {digest}"


COUNTDOWN, GYM = "countdown", "reasoning_gym/"


def check_task(name: Any) -> None:
    """Refuse what names no task.

    Raises:
        TypeError: the name is no text and no path.
        ValueError: there is no such task.
    """
    known = (
        f"Choose {COUNTDOWN}, {', '.join(BENCHMARKS)}, {GYM}GENERATOR, or the path of a file of "
        "problems (.json, .jsonl, .parquet, .csv)."
    )
    if not isinstance(name, str | os.PathLike):
        raise TypeError(f"the task is {name!r:.80}. {known}")
    made = name in (COUNTDOWN, *BENCHMARKS) or str(name).startswith(GYM)
    place = Path(name).expanduser().absolute()
    if not made and not place.is_file():
        folder = ", but a folder; one of datasets.load_from_disk can write a file: .to_parquet()"
        why = folder if name and place.is_dir() else f", and no file {place}"
        raise ValueError(f"there is no task {str(name)!r}{why}. {known}")


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
    check: bool = True,
    **options: Any,
) -> Task:
    """Problems by name.

    Args:
        name: `countdown`; a benchmark (`aime24`, `amc22_23`, `math500`, `minerva`,
            `olympiad_bench`, `deepscaler`); `reasoning_gym/` and a generator of that library; or
            a file of mathematics problems (JSON, JSONL, parquet, CSV).
        split: Of a generated task, `train` or `test`, or of a file that holds several; a benchmark
            has one.
        num_problems: How many; None takes all.
        require_all: Where a problem has several answers, ask for all of them, in any order; by
            default any one is right. Not for generated tasks.
        check: Grade every gold against itself and warn of those that cannot be graded (some seconds
            for ten thousand problems).
        **options: For `load_countdown`, `load_gym` or `load_problems`.

    Raises:
        TypeError: the name is no text and no path.
        ValueError: there is no such task, too few problems, or require_all for `countdown`.
    """
    check_task(name)
    if isinstance(num_problems, bool) or not isinstance(num_problems, int | None):
        raise ValueError(
            f"num_problems is {num_problems!r}; expected a whole number, or None for all."
        )
    if require_all and (name == COUNTDOWN or str(name).startswith(GYM)):
        raise ValueError(f"require_all is for lists of answers; a problem of {name} has one.")
    if name == COUNTDOWN:
        problems, verifier = load_countdown(num_problems, split, **options), CountdownVerifier()
    elif str(name).startswith(GYM):
        options = {"question_suffix": QUESTION_SUFFIX, **options}
        problems = load_gym(name.removeprefix(GYM), num_problems, split, **options)
        graded = "anytime_lab.tasks.gym:score"
        warm_up = (graded, ["", problems["answer"][0]])  # no answer pays for the import
        verifier = FunctionVerifier(graded, name="reasoning_gym", warm_up=warm_up)
    else:
        problems = load_problems(name, split=split, **options)
        if num_problems is not None:
            if not 1 <= num_problems <= len(problems):
                raise ValueError(
                    f"num_problems is {num_problems}, but {name} has {len(problems)}; give 1 to "
                    f"{len(problems)}, or None for all."
                )
            problems = problems.select(range(num_problems))
        verifier = MathVerifier(require_all=require_all)
        with contextlib.closing(verifier):
            whys = verifier.read_golds(problems["answer"][:]) if check else []
        bad = {id: why for id, why in zip(problems["problem_id"], whys, strict=False) if why}
        if bad:
            warnings.warn(
                f"{problems.info.description}: {len(bad)} of {len(problems):,} golds cannot be "
                f"graded ({_first([f'{id}: {why}' for id, why in bad.items()])}). Hardly an answer "
                "to them will be right: write the answer alone into a file of yours, or leave out "
                f"{[*bad]}.",
                stacklevel=2,
            )
    return Task(name, problems, verifier, card_of(problems))


# --- files ---------------------------------------------------------------------------------------


def _file_rows(path: str | Path, split: str | None) -> Rows:
    """All rows of a file, each with its number: of the line (.jsonl), or of the record from 1."""
    kinds = ", ".join(READERS)
    path = Path(path).expanduser()
    if not path.is_file():
        found = "is a folder" if path.is_dir() else f"is not there (looked in {Path.cwd()})"
        raise FileNotFoundError(f"{path} {found}; give a file ({kinds}).")
    if path.suffix.lower() not in READERS:
        raise ValueError(f"{path.name} ends in {path.suffix!r}; expected one of {kinds}.")
    rows = list(READERS[path.suffix.lower()](path, split))
    for number, row in rows:
        if not isinstance(row, Mapping):
            raise ValueError(
                f"{path}, row {number}: found {type(row).__name__} {str(row)[:60]!r}; expected "
                'an object such as {"problem": "...", "answer": "..."}.'
            )
    if not rows:
        raise ValueError(f"{path} holds no problems; expected at least one row.")
    said = [row.get(SPLIT) for _, row in rows]
    if split not in said or len(set(map(str, said))) == 1:
        return rows
    chosen = [one for one, its in zip(rows, said, strict=True) if its == split]
    warnings.warn(
        f"{path}: taken are the {len(chosen):,} of {len(rows):,} rows whose column {SPLIT!r} says "
        f"{split!r}.",
        stacklevel=4,
    )
    return chosen


def _text(path: Path) -> str:
    try:
        return path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line, byte = error.object.count(b"\n", 0, error.start) + 1, error.object[error.start]
        raise ValueError(
            f"{path}, line {line}: byte {byte:#04x} is no UTF-8. Save the file as UTF-8 "
            "(iconv -t UTF-8)."
        ) from None


def _loaded(path: Path, text: str, line: int = 0) -> Any:
    """The JSON of a file, or of one line of it; an error names the place."""
    place = f"line {line or 1}"
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        place, said = f"line {line or error.lineno}, column {error.colno}", error.msg
    except RecursionError:
        said = "brackets nested too deeply"
    except ValueError as error:  # an integer of thousands of digits
        said = f"{error}; write it as a string"
    raise ValueError(
        f"{path}, {place}: {said}. A .json file is one list; a .jsonl file has a whole object on "
        "each line."
    )


def _jsonl(path: Path, _: str | None) -> Iterator[tuple[int, Any]]:
    for number, line in enumerate(_text(path).split("\n"), start=1):
        if line.strip():
            yield number, _loaded(path, line, number)


def _json(path: Path, split: str | None) -> Iterator[tuple[int, Any]]:
    """Of an object the list in it, by its name where there are several."""
    found = _loaded(path, _text(path))
    lists = {"": found} if isinstance(found, list) else dict(_lists(found))
    lists = {n: rows for n, rows in lists.items() if rows and isinstance(rows[0], dict)} or lists
    told = ", ".join(f"{name} ({len(rows):,} rows)" for name, rows in lists.items())
    named = [name for name in lists if name.split(".")[-1] == split]
    if not lists:
        raise ValueError(
            f"{path} holds a {type(found).__name__}; expected a list of problems. If each line is "
            "an object of its own, name the file .jsonl."
        )
    if len(lists) > 1 and len(named) != 1:
        raise ValueError(
            f"{path} holds several lists of problems: {told}"
            + (". " if split is None else f"; none is called {split!r}. ")
            + "Name one of them (split=...), or write the one that is meant to a file of its own."
        )
    name = named[0] if named else next(iter(lists))
    of_a_split = name.split(".")[-1] in ("train", "test", "validation", "dev", "eval")
    if split is not None and not named and of_a_split:
        warnings.warn(f"{path} holds {told} only; that is taken for {split!r}.", stacklevel=4)
    return enumerate(lists[name], start=1)


def _lists(found: Any, before: str = "") -> Iterator[tuple[str, list[Any]]]:
    """All lists in an object and in objects inside it, by their dotted names."""
    for name, value in found.items() if isinstance(found, dict) else ():
        if isinstance(value, list):
            yield before + name, value
        yield from _lists(value, f"{before}{name}.")


def _parquet(path: Path, _: str | None) -> Iterator[tuple[int, Any]]:
    try:
        table = pq.read_table(path)
        for number in range(len(table)):  # one by one, up to the one that is broken
            yield number + 1, table.slice(number, 1).to_pylist()[0]
    except UnicodeDecodeError:
        raise ValueError(
            f"{path}, row {number + 1}: text that is no UTF-8. Write the table anew as UTF-8."
        ) from None
    except (OSError, ArrowException) as error:
        raise ValueError(
            f"{path} cannot be read as parquet: {error}. Is it whole, and no Git LFS pointer?"
        ) from None


def _csv(path: Path, _: str | None) -> Iterator[tuple[int, Any]]:
    # Strict: a quote that is never closed would swallow the rest of the file.
    table = filter(None, csv.reader(io.StringIO(_text(path), newline=""), strict=True))
    number = 0
    try:
        header = next(table, [])
        if twice := sorted({name for name in header if header.count(name) > 1}):
            raise ValueError(f"{path} has several columns named {', '.join(twice)}. Rename them.")
        for number, row in enumerate(table, start=1):
            if len(row) != len(header):
                raise ValueError(
                    f"{path}, row {number} has {len(row)} fields; expected {len(header)}, as "
                    f"the header ({', '.join(header)}). Quote fields that hold commas."
                )
            yield number, dict(zip(header, row, strict=True))
    except csv.Error as error:
        raise ValueError(
            f"{path}, row {number + 1}: {error}. Is a closing quote missing, or a quote inside "
            "a field not doubled?"
        ) from None


READERS = {".json": _json, ".jsonl": _jsonl, ".parquet": _parquet, ".csv": _csv}


# --- the hub -------------------------------------------------------------------------------------

HUB = "https://huggingface.co/datasets"
COMMIT = re.compile("[0-9a-f]{40}")
# Names of errors, since httpx has a tree of its own.
UNREACHABLE = {
    "ConnectionError",
    "TimeoutError",
    "LocalEntryNotFoundError",
    "TransportError",
    "gaierror",
}
NO_ROUTE = {errno.EHOSTUNREACH, errno.ENETUNREACH, errno.EHOSTDOWN, errno.ENETDOWN}


def _hub_rows(name: str, benchmark: Benchmark, revision: str | None) -> tuple[Rows, str]:
    """(numbered rows of a benchmark, address of the commit that they are of)."""
    path = benchmark.path
    try:
        rows = datasets.load_dataset(path, benchmark.name, split=benchmark.split, revision=revision)
    except Exception as error:
        raise _explained(error, f"{name} ({HUB}/{path})", name) from error
    # The repository's commit names the folder that the hub's rows are cached in.
    parts = {part for file in rows.cache_files for part in Path(file["filename"]).parts}
    commit = next((part for part in sorted(parts) if COMMIT.fullmatch(part)), None)
    if commit and COMMIT.fullmatch(revision or "") and commit != revision:
        raise ValueError(  # `datasets` takes what it has where it cannot ask
            f"{name}: the hub cannot be asked, and the cache holds {commit} and not {revision!r}. "
            "Leave revision out to take that, or pass a file (path=...)."
        )
    commit = commit or revision
    homepage = f"{HUB}/{path}" + (f"/tree/{commit}" if commit else "")
    return list(enumerate(rows, start=1)), homepage


def _explained(error: Exception, what: str, name: str) -> Exception:
    """An error of `datasets` as one that says what was asked and what to do."""
    causes, cause = [], error
    while cause is not None and cause not in causes:
        causes.append(cause)
        cause = cause.__cause__ or cause.__context__
    names = {base.__name__ for cause in causes for base in type(cause).__mro__}
    numbers = {cause.errno for cause in causes if isinstance(cause, OSError)}
    said = f"{type(error).__name__}: {error}".split("\n")[0][:300].rstrip(".")
    unreachable = bool(names & UNREACHABLE or numbers & NO_ROUTE)
    if datasets.config.HF_HUB_OFFLINE and (unreachable or "cache" in said):
        kind = ConnectionError
        advice = (
            f"It is not in the cache ({datasets.config.HF_DATASETS_CACHE}), and HF_HUB_OFFLINE "
            "forbids to ask the hub: unset that and load it once"
        )
    elif "gated" in said or "GatedRepoError" in names:
        kind = PermissionError
        advice = "Agree to its terms on that page and log in (hf auth login, or HF_TOKEN)"
    elif isinstance(error, (ValueError, DataFilesNotFoundError, DatasetNotFoundError)):
        kind = ValueError
        advice = (
            "It was moved, deleted or changed, or is private: name another commit (revision=...) "
            "or log in (hf auth login, or HF_TOKEN)"
        )
    elif unreachable or "HfHubHTTPError" in names:
        kind = ConnectionError
        advice = "Check the connection (proxy, HF_ENDPOINT) and HF_TOKEN, or try again later"
    else:
        error.add_note(f"This came of loading {what} into {datasets.config.HF_DATASETS_CACHE}.")
        return error  # a full disk, or a fault of the library
    return kind(
        f"{what} could not be loaded: {said}. {advice}; or bring the file here by other means and "
        f'pass it: load_task("{name}", path="{name}.jsonl").'
    )
