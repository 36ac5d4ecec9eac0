"""Rows of a file or of the hub as problems, or an error that names the row."""

import hashlib
import math
import warnings
from collections.abc import Iterable, Mapping
from typing import Any

from datasets import Dataset, DatasetInfo

MAX_TEXT = 1_000_000  # characters of a question, an answer or an id
# Where no column is named, the first of these that is there is taken.
USUAL = {
    "question": ("question", "problem", "prompt", "query"),
    "answer": ("answer", "final_answer", "gold", "solution_answer", "target"),
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
    made: dict[str, tuple[int, str, str | list[str]]] = {}
    unanswered = repeated = 0
    for number, row in rows:
        where = f"{source}, row {number}"
        question = row.get(mapped["question"])
        if not isinstance(question, str) or not question.strip():
            raise ValueError(
                f"{where}: the question ({mapped['question']!r}) is {question!r:.80}; expected "
                "text."
            )
        question = _plain(question, where, "question")
        value = row.get(mapped["answer"])
        if drop_unusable and _is_missing(value):
            unanswered += 1
            continue
        answer = _answer(value, where, mapped["answer"])
        problem_id = _problem_id(row, mapped.get("problem_id"), question, where)
        if problem_id in made:
            first, known, _ = made[problem_id]
            if drop_unusable and known == question:
                repeated += 1
                continue
            raise ValueError(_repeats(where, first, problem_id, mapped.get("problem_id")))
        made[problem_id] = (number, question, answer)
    _tell_dropped(source, unanswered, repeated, len(made))
    several = any(isinstance(answer, list) for _, _, answer in made.values())
    return Dataset.from_dict(
        {
            "problem_id": list(made),
            "prompt": [
                [{"role": "user", "content": question + question_suffix}]
                for _, question, _ in made.values()
            ],
            "question": [question for _, question, _ in made.values()],
            # One type in a column: lists of answers where any problem has several.
            "answer": [
                answer if isinstance(answer, list) or not several else [answer]
                for _, _, answer in made.values()
            ],
        },
        info=DatasetInfo(description=source, homepage=homepage),
    )


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
        name = next((name for name in wanted if name in present), None)
        if name is None and (role != "problem_id" or columns.get(role) is not None):
            raise ValueError(
                f"{source} has the columns {present}, but none for the {role} (looked for "
                f'{", ".join(map(str, wanted))}). Name it: columns={{"{role}": "..."}}.'
            )
        if name is not None:
            found[role] = name
    return found


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


def _is_missing(value: Any) -> bool:
    return value is None or value == [] or (isinstance(value, str) and not value.strip())


def _answer(value: Any, where: str, column: str) -> str | list[str]:
    if isinstance(value, (list, tuple)):
        listed = [_answer(one, where, column) for one in value]
        if not listed or any(isinstance(one, list) for one in listed):
            raise ValueError(
                f"{where}: the answer ({column!r}) is {value!r:.80}; expected one or several. "
                + ADVICE
            )
        return listed
    if isinstance(value, bool) or value is None or not isinstance(value, (str, int, float)):
        raise ValueError(
            f"{where}: the answer ({column!r}) is {value!r:.80}; expected text, a number or a "
            f"list. {ADVICE if value is None else ''}".rstrip()
        )
    if isinstance(value, float):
        if not math.isfinite(value):
            raise ValueError(
                f"{where}: the answer ({column!r}) is {value}; expected a finite number. Where "
                "there is no answer, leave the field empty."
            )
        value = int(value) if value.is_integer() else value
    if not str(value).strip():
        raise ValueError(f"{where}: the answer ({column!r}) is empty. {ADVICE}")
    return _plain(str(value), where, "answer")


def _problem_id(row: Mapping[str, Any], column: str | None, question: str, where: str) -> str:
    if column is None:
        return hashlib.sha256(question.encode()).hexdigest()[:12]
    value = row.get(column)
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


def _tell_dropped(source: str, unanswered: int, repeated: int, left: int) -> None:
    if not left:
        raise ValueError(f"{source} holds no problem with an answer; expected at least one.")
    if unanswered or repeated:
        warnings.warn(
            f"{source}: left out {unanswered} problems without an answer and {repeated} repeated "
            f"ones; {left:,} are left.",
            stacklevel=4,
        )
