"""Problems and their verifier by name: the embedded task, a benchmark, or your own file."""

import ast
import contextlib
import hashlib
import json
import math
import os
import re
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datasets import Dataset, DatasetInfo

from anytime_lab.prompts import of_text, what_is_wrong
from anytime_lab.store.manifest import describe_problems
from anytime_lab.tasks.countdown import load_countdown
from anytime_lab.tasks.gym import load_gym
from anytime_lab.tasks.rows import load_hub_rows, read_rows
from anytime_lab.verify.answers import find_boxed
from anytime_lab.verify.forms import UnreadableError, clean
from anytime_lab.verify.verifiers import CountdownVerifier, FunctionVerifier, MathVerifier, Verifier

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
    """Problems of a benchmark, from the hub or a file, or of a JSON, JSONL, parquet or CSV file.

    A question that is a conversation keeps its turns; what its last turn says is the question.

    Args:
        name: One of `BENCHMARKS`, or a file.
        path: A file with a benchmark's problems, instead of asking the hub.
        split: Of a file; see `read_rows`.
        columns: prompt (or question), answer and problem_id to the columns there; the usual
            names (`problem`, `id`, …) are found without it. A dotted name looks into objects
            (`reward_model.ground_truth`). A problem_id of None, or no column of ids, makes ids of
            the questions.
        question_suffix: Appended to every question.
        revision: Commit, branch or tag of the hub's repository.
        drop_unusable: Leave out problems without an answer, and repetitions of a question, instead
            of refusing the file; a warning tells how many.

    Returns:
        Columns problem_id, prompt (a conversation), question, answer.

    Raises:
        FileNotFoundError: there is no such file, or it is a folder.
        ValueError: a column is missing, a row is empty or of mixed types, ids repeat (the message
            names the row); or the hub has no such data set, revision or split.
        ConnectionError: the hub cannot be reached, or must not be (HF_HUB_OFFLINE).
        PermissionError: the hub wants a login, or an agreement to its terms, first.

    Whatever the hub refuses, the message says how to pass a file instead.
    """
    benchmark = BENCHMARKS.get(name) if isinstance(name, str) else None
    if benchmark and path is None:
        place = (benchmark.path, benchmark.name, benchmark.split)
        source = " ".join(filter(None, place))
        rows, homepage = load_hub_rows(name, place, revision)
    else:
        file = path if benchmark else name
        if revision is not None:
            raise ValueError(f"revision is {revision!r}, but {file} is a file and has none.")
        source, rows, homepage = str(file), read_rows(file, split), ""
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
    rows: Iterable[tuple[int, Mapping[str, Any]]],
    source: str,
    columns: Mapping[str, str],
    drop_unusable: bool,
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


def _whole(value: Any) -> Any:
    """A float that a table with gaps makes of a whole number as that number; all else as it is."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _answer(value: Any, listed: bool = False) -> str | list[str]:
    if isinstance(value, (list, tuple)) and value and not listed:
        return [_answer(one, listed=True) for one in value]
    known = isinstance(value, (str, int, float)) and not isinstance(value, bool)
    if isinstance(value, float):
        known = math.isfinite(value)
    if not known or not str(value).strip():
        told = "empty" if isinstance(value, str) else f"{value!r:.80}"
        raise ValueError(f"is {told}; expected text, a finite number or a list of such. {ADVICE}")
    return _plain(str(_whole(value)))


def _problem_id(value: Any) -> str:
    value = _whole(value)
    if isinstance(value, bool) or not isinstance(value, (str, int)) or not str(value).strip():
        raise ValueError(
            f"is {value!r:.80}; expected text or a whole number. "
            'columns={"problem_id": None} makes ids of the questions.'
        )
    return _plain(str(value))


def card_of(dataset: Dataset) -> str:
    """What a dataset that this module loaded, or a part of it, is: a sentence for a manifest."""
    about = describe_problems(dataset)
    revision = f" at {about['revision']}" if about["revision"] else ""
    count, digest = f"{about['problems']:,} problems", f"sha256 {about['sha256'][:16]}"
    return f"{about['source']}{revision}: {count}, {digest}"


def unreadable_golds(dataset: Dataset, verifier: MathVerifier) -> dict[str, str]:
    """Grade every gold against itself; ids to why it cannot be graded.

    Args:
        dataset: Of this module's form.
        verifier: The one that will grade answers to it.
    """
    whys = verifier.read_golds(dataset["answer"][:])
    return {id: why for id, why in zip(dataset["problem_id"][:], whys, strict=True) if why}


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
        problems = load_countdown(num_problems, split, **options)
        return Task(name, problems, CountdownVerifier(), card_of(problems))
    if str(name).startswith(GYM):
        options = {"question_suffix": QUESTION_SUFFIX, **options}
        problems = load_gym(name.removeprefix(GYM), num_problems, split, **options)
        graded = "anytime_lab.tasks.gym:score"
        warm_up = (graded, ["", problems["answer"][0]])  # no answer pays for the import
        verifier = FunctionVerifier(graded, name="reasoning_gym", warm_up=warm_up)
        return Task(name, problems, verifier, card_of(problems))
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
        bad = unreadable_golds(problems, verifier) if check else {}
    if bad:
        warnings.warn(
            f"{problems.info.description}: {len(bad)} of {len(problems):,} golds cannot be graded "
            f"({_first([f'{id}: {why}' for id, why in bad.items()])}). Hardly an answer to them "
            f"will be right: write the answer alone into a file of yours, or leave out {[*bad]}.",
            stacklevel=2,
        )
    return Task(name, problems, verifier, card_of(problems))
