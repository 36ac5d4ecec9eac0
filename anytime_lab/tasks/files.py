"""Problems from a JSON, JSONL, parquet or CSV file, or an error that names the row."""

import csv
import hashlib
import io
import json
import math
import warnings
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from datasets import Dataset, DatasetInfo

MAX_LINE = 10_000_000  # bytes of a line; a problem is a thousandth of that
MAX_TEXT = 1_000_000  # characters of a question, an answer or an id
SUFFIXES = (".json", ".jsonl", ".parquet", ".csv")
# Where no column is named, the first of these that is there is taken.
USUAL = {
    "question": ("question", "problem", "prompt", "query"),
    "answer": ("answer", "final_answer", "gold", "solution_answer", "target"),
    "problem_id": ("problem_id", "id", "unique_id", "ID", "uid"),
}
ADVICE = "drop_unusable=True leaves such problems out."


def read_rows(path: str | Path) -> list[tuple[int, dict[str, Any]]]:
    """All rows of a file, each with its number: of the line (.jsonl), or of the record from 1.

    Args:
        path: A list of objects (.json; also an object whose values are such lists, of which the
            longest is taken), one object a line (.jsonl), a table (.parquet, .csv with a header).

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is empty, no UTF-8, torn, or of another form; the message names the row.
    """
    path = Path(path).expanduser()
    if path.is_dir():
        raise ValueError(f"{path} is a folder; give a file in it ({', '.join(SUFFIXES)}).")
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path} (looked in {Path.cwd()}).")
    readers = {".json": _json, ".jsonl": _jsonl, ".parquet": _parquet, ".csv": _csv}
    if path.suffix.lower() not in readers:
        raise ValueError(
            f"{path.name} ends in {path.suffix!r}; expected one of {', '.join(SUFFIXES)}."
        )
    rows = list(readers[path.suffix.lower()](path))
    if not rows:
        raise ValueError(f"{path} holds no problems; expected at least one row.")
    return rows


def _decoded(data: bytes, path: Path, first_line: int = 1) -> str:
    try:
        return data.decode("utf-8-sig" if first_line == 1 else "utf-8")
    except UnicodeDecodeError as error:
        line = first_line + error.object[: error.start].count(b"\n")
        raise ValueError(
            f"{path}, line {line}: byte {error.object[error.start]:#04x} is no UTF-8. Save the "
            "file as UTF-8 (iconv -t UTF-8)."
        ) from None


def _parsed(text: str, path: Path, first_line: int, hint: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        line = first_line + error.lineno - 1
        raise ValueError(f"{path}, line {line}, column {error.colno}: {error.msg}.{hint}") from None
    except RecursionError:
        raise ValueError(f"{path}, line {first_line} on: brackets nested too deeply.") from None
    except ValueError as error:  # an integer of thousands of digits
        raise ValueError(f"{path}, line {first_line} on: {error}. Write it as a string.") from None


def _checked(path: Path, number: int, row: Any) -> tuple[int, dict[str, Any]]:
    if not isinstance(row, Mapping):
        raise ValueError(
            f"{path}, row {number}: found {type(row).__name__} {str(row)[:60]!r}; expected an "
            'object such as {"problem": "...", "answer": "..."}.'
        )
    return number, dict(row)


def _json(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    hint = " If each line is an object of its own, name the file .jsonl."
    data = _parsed(_decoded(path.read_bytes(), path), path, 1, hint)
    if isinstance(data, Mapping):
        lists = [value for value in data.values() if isinstance(value, list)]
        if not lists:
            raise ValueError(f"{path} holds one object; expected a list of problems.")
        data = max(lists, key=len)
    if not isinstance(data, list):
        raise ValueError(f"{path} holds a {type(data).__name__}; expected a list of problems.")
    for number, row in enumerate(data, start=1):
        yield _checked(path, number, row)


def _jsonl(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    with open(path, "rb") as file:
        number = 0
        # Never more than MAX_LINE of a line in memory, whatever the file is.
        while line := file.readline(MAX_LINE + 1):
            number += 1
            if len(line) > MAX_LINE:
                raise ValueError(
                    f"{path}, line {number} is longer than {MAX_LINE:,} bytes; expected one "
                    "problem a line. Is it really JSON Lines?"
                )
            text = _decoded(line, path, number)
            if text.strip():
                hint = " Each line must be one whole object."
                yield _checked(path, number, _parsed(text, path, number, hint))


def _parquet(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    try:
        table = pq.read_table(path)
    except Exception as error:
        raise ValueError(
            f"{path} cannot be read as parquet: {error}. Is it whole, and no Git LFS pointer?"
        ) from None
    for number in range(1, table.num_rows + 1):
        try:
            yield number, table.slice(number - 1, 1).to_pylist()[0]
        except UnicodeDecodeError:
            raise ValueError(
                f"{path}, row {number}: text that is no UTF-8. Write the table anew as UTF-8."
            ) from None


def _csv(path: Path) -> list[tuple[int, dict[str, Any]]]:
    text = _decoded(path.read_bytes(), path)
    # Strict: a quote that is never closed would swallow the rest of the file.
    table = csv.DictReader(io.StringIO(text, newline=""), strict=True)
    limit = csv.field_size_limit(MAX_LINE)
    made: list[tuple[int, dict[str, Any]]] = []
    try:
        header = list(table.fieldnames or ())
        _check_header(header, path)
        for row in table:
            made.append((len(made) + 1, _record(row, len(made) + 1, header, path)))
        return made
    except csv.Error as error:
        raise ValueError(
            f"{path}, row {len(made) + 1}: {error}. Is a closing quote missing, or a quote inside "
            "a field not doubled?"
        ) from None
    finally:
        csv.field_size_limit(limit)  # it holds for the whole process


def _check_header(header: list[str], path: Path) -> None:
    if twice := sorted({name for name in header if header.count(name) > 1}):
        raise ValueError(f"{path} has several columns named {', '.join(twice)}. Rename them.")
    if len(header) == 1 and (other := set(header[0]) & set(";\t|")):
        raise ValueError(
            f"{path} has one column, {header[0]!r}; expected fields separated by commas, not by "
            f"{' '.join(map(repr, sorted(other)))}. Save it with commas."
        )


def _record(row: dict, number: int, header: list[str], path: Path) -> dict[str, Any]:
    if None in row:
        raise ValueError(
            f"{path}, row {number} has {len(row[None])} fields more than the header "
            f"({', '.join(header)}). Quote fields that hold commas."
        )
    if None in row.values():
        short = [name for name, value in row.items() if value is None]
        raise ValueError(
            f"{path}, row {number} ends before {', '.join(short)}; every row needs as many "
            "fields as the header."
        )
    return row


# --- rows to problems ----------------------------------------------------------------------------


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
