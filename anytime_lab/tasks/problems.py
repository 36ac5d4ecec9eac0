"""Problems and their verifier by name: the embedded task, a benchmark, or your own file."""

import codecs
import contextlib
import csv
import errno
import hashlib
import json
import math
import os
import re
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

import datasets
import pyarrow.parquet as pq
from datasets import Dataset, DatasetInfo
from datasets.exceptions import DataFilesNotFoundError, DatasetNotFoundError
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    RevisionNotFoundError,
)
from pyarrow import ArrowException, RecordBatch

from anytime_lab.store.manifest import describe_problems
from anytime_lab.tasks.countdown import load_countdown
from anytime_lab.verify.verifiers import CountdownVerifier, MathVerifier, Verifier

MAX_ROW = 10_000_000  # characters of a row; a problem is a thousandth of that
PIECE = 1 << 16  # characters of a JSON file that are read at least at a time
SUFFIXES = (".json", ".jsonl", ".parquet", ".csv")


def read_rows(path: str | Path) -> list[tuple[int, dict[str, Any]]]:
    """All rows of a file, each with its number: of the line (.jsonl), or of the record from 1.

    Args:
        path: A list of objects (.json; also an object whose values are such lists, of which the
            longest is taken), one object a line (.jsonl), a table (.parquet, .csv with a header).

    Raises:
        TypeError: the path is no text and no path.
        FileNotFoundError: there is no such file.
        ValueError: it is empty, no UTF-8, torn, or of another form; the message names the row.
    """
    if not isinstance(path, str | os.PathLike):
        raise TypeError(f"path is {path!r:.80}; give the name of a file ({', '.join(SUFFIXES)}).")
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
    try:
        rows = list(readers[path.suffix.lower()](path))
    except UnicodeDecodeError:
        raise ValueError(_first_bad_byte(path)) from None
    if not rows:
        raise ValueError(f"{path} holds no problems; expected at least one row.")
    return rows


def _first_bad_byte(path: Path) -> str:
    """Where a file stops being UTF-8."""
    decoder, line = codecs.getincrementaldecoder("utf-8")(), 1
    with open(path, "rb") as file:
        while True:
            chunk = file.read(1 << 20)
            try:
                line += decoder.decode(chunk, final=not chunk).count("\n")
            except UnicodeDecodeError as error:
                line += error.object[: error.start].count(b"\n")
                bad = error.object[error.start]
                return (
                    f"{path}, line {line}: byte {bad:#04x} is no UTF-8. Save the file as UTF-8 "
                    "(iconv -t UTF-8)."
                )


def _too_long(path: Path, row: int) -> ValueError:
    return ValueError(
        f"{path}, row {row} is longer than {MAX_ROW:,} characters; expected one problem a row. Is "
        "a quote or bracket never closed, or is it another kind of file?"
    )


def _checked(path: Path, number: int, row: Any) -> tuple[int, dict[str, Any]]:
    if not isinstance(row, Mapping):
        raise ValueError(
            f"{path}, row {number}: found {type(row).__name__} {str(row)[:60]!r}; expected an "
            'object such as {"problem": "...", "answer": "..."}.'
        )
    return number, dict(row)


class _JsonText:
    """The text of a JSON file, read as far as it is asked for."""

    def __init__(self, path: Path, file: TextIO, row: int = 0):
        self.path, self.file = path, file
        self.row = row  # the one at hand, for errors; 0 outside of rows
        self.text, self.at, self.ended = "", 0, False
        self.line, self.column = 1, 0  # that the text starts in; characters before it there

    def next(self) -> str:
        """The next character that is no space; "" at the end."""
        while True:
            while self.at < len(self.text) and self.text[self.at] in " \t\r\n":
                self.at += 1
            if self.at < len(self.text):
                return self.text[self.at]
            if not self._more():
                return ""

    def take(self, wanted: str) -> str:
        """The next character, which must be one of some."""
        found = self.next()
        if not found or found not in wanted:
            raise self.error(f"expected {' or '.join(wanted)}", self.at)
        self.at += 1
        return found

    def value(self) -> Any:
        """The next value of any kind."""
        self.next()
        while True:
            try:
                value, end = _DECODER.raw_decode(self.text, self.at)
            except json.JSONDecodeError as error:
                wrong = error.pos - self.at
                left = len(self.text) - self.at
                # Cut off by the end of what is read, or wrong wherever it ends?
                if wrong < left - 16 and not error.msg.startswith("Unterminated string"):
                    raise self.error(error.msg, error.pos) from None
                if left > MAX_ROW:
                    raise _too_long(self.path, self.row) from None
                if not self._more():
                    raise self.error(error.msg, self.at + wrong) from None
            except RecursionError:
                raise self.error("brackets nested too deeply", self.at) from None
            except ValueError as error:  # an integer of thousands of digits
                raise self.error(f"{error}. Write it as a string", self.at) from None
            else:
                # `1.5e+`: a number near the end of what is read may go on beyond.
                taken = end - self.at
                if len(self.text) - end > 2 or not self._more():
                    self.at += taken
                    return value

    def elements(self) -> Iterator[Any]:
        """The elements of a list, one by one."""
        self.take("[")
        self.row = 0
        if self.next() == "]":
            self.at += 1
            return
        while True:
            self.row += 1
            yield self.value()
            if self.take(",]") == "]":
                self.row = 0
                return

    def _more(self) -> bool:
        """Read on, each time as much again, and forget what was taken; False at the end."""
        self.line, self.column = self._place(self.at)
        self.text, self.at = self.text[self.at :], 0
        chunk = "" if self.ended else self.file.read(max(PIECE, len(self.text)))
        self.ended = not chunk
        self.text += chunk
        return bool(chunk)

    def error(self, what: str, at: int) -> ValueError:
        line, column = self._place(at)
        row = f" (row {self.row})" if self.row else ""
        hint = "" if self.row else f" {_LINES}"
        return ValueError(f"{self.path}, line {line}, column {column + 1}{row}: {what}.{hint}")

    def _place(self, at: int) -> tuple[int, int]:
        """Line (from 1) and column (from 0) of a character of the text."""
        start = self.text.rfind("\n", 0, at) + 1
        column = at - start if start else self.column + at
        return self.line + self.text.count("\n", 0, at), column


_DECODER = json.JSONDecoder()
_LINES = "If each line is an object of its own, name the file .jsonl."


def _json(path: Path) -> list[tuple[int, dict[str, Any]]]:
    with open(path, encoding="utf-8-sig") as file:
        text = _JsonText(path, file)
        first = text.next()
        if first == "[":
            rows = [_checked(path, n, row) for n, row in enumerate(text.elements(), start=1)]
        elif first == "{":
            rows = [_checked(path, n, row) for n, row in enumerate(_longest(text), start=1)]
        else:
            found = type(text.value()).__name__
            raise ValueError(f"{path} holds a {found}; expected a list of problems.")
        if text.next():
            raise text.error("expected the end of the file", text.at)
    return rows


def _longest(text: _JsonText) -> list[Any]:
    """The longest of the lists that an object holds."""
    lists = []
    text.take("{")
    more = text.next() != "}"
    while more:
        if text.next() != '"':
            text.take('"')
        text.value()
        text.take(":")
        if text.next() == "[":
            lists.append(list(text.elements()))
        else:
            text.value()
        more = text.take(",}") == ","
    if not lists:
        raise ValueError(f"{text.path} holds one object; expected a list of problems. {_LINES}")
    return max(lists, key=len)


def _jsonl(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    hint = "Each line must be one whole object."
    with open(path, encoding="utf-8-sig") as file:
        number = 0
        while line := file.readline(MAX_ROW + 1):
            number += 1
            if len(line) > MAX_ROW:
                raise _too_long(path, number)
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                raise ValueError(
                    f"{path}, line {number}, column {error.colno}: {error.msg}. {hint}"
                ) from None
            except RecursionError:
                raise ValueError(f"{path}, line {number}: brackets nested too deeply.") from None
            except ValueError as error:  # an integer of thousands of digits
                raise ValueError(f"{path}, line {number}: {error}. Write it as a string.") from None
            yield _checked(path, number, row)


def _parquet(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    number = 0
    try:
        with pq.ParquetFile(path) as table:
            for batch in table.iter_batches(batch_size=1000):
                try:
                    rows = batch.to_pylist()
                except UnicodeDecodeError:
                    rows = _rows_until_broken(batch)
                for row in rows:
                    number += 1
                    yield number, row
                if len(rows) < batch.num_rows:
                    break
            else:
                return
    except (OSError, ArrowException) as error:
        raise ValueError(
            f"{path} cannot be read as parquet: {error}. Is it whole, and no Git LFS pointer?"
        ) from None
    raise ValueError(
        f"{path}, row {number + 1}: text that is no UTF-8. Write the table anew as UTF-8."
    )


def _rows_until_broken(batch: RecordBatch) -> list[dict[str, Any]]:
    """The rows before the first one with text that is no UTF-8."""
    rows: list[dict[str, Any]] = []
    with contextlib.suppress(UnicodeDecodeError):
        for at in range(batch.num_rows):
            rows += batch.slice(at, 1).to_pylist()
    return rows


def _csv(path: Path) -> list[tuple[int, dict[str, Any]]]:
    limit = csv.field_size_limit(MAX_ROW)
    made: list[tuple[int, dict[str, Any]]] = []
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            # Strict: a quote that is never closed would swallow the rest of the file.
            table = csv.DictReader(_lines(file), strict=True)
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


def _lines(file: TextIO) -> Iterator[str]:
    while line := file.readline(MAX_ROW + 1):
        if len(line) > MAX_ROW:
            raise csv.Error(f"a line longer than {MAX_ROW:,} characters")
        yield line


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


HUB = "https://huggingface.co/datasets"


def load_hub_rows(
    name: str,
    path: str,
    config: str | None,
    split: str,
    revision: str | None,
    columns: Mapping[str, str | None],
) -> tuple[list[tuple[int, Mapping[str, Any]]], str]:
    """(numbered rows, address of the commit that they are of).

    Args:
        name: Of the benchmark, for errors.
        path: Repository.
        config: Configuration, or None.
        split: Of the repository.
        revision: Commit, branch or tag; None takes the newest.
        columns: Roles to the repository's columns; only these are read.

    Raises:
        ValueError: There is no such data set, revision, configuration, split or column.
        ConnectionError: The hub cannot be reached, does not answer, or must not be asked.
        PermissionError: The hub wants a login or an agreement first.
    """
    try:
        rows = datasets.load_dataset(path, config, split=split, revision=revision)
    except Exception as error:
        explained = _explained(error, name, path, revision)
        if explained is error:
            raise
        raise explained from error
    used = [column for column in columns.values() if column is not None]
    if missing := sorted(set(used) - set(rows.column_names)):
        raise ValueError(
            f"{path} has the columns {rows.column_names}, but no {missing}: it has changed. Name "
            "its columns (columns=...), an older commit (revision=...), or a file (path=...)."
        )
    commit = _commit(rows)
    if commit and re.fullmatch("[0-9a-f]{40}", revision or "") and commit != revision:
        raise ValueError(  # `datasets` takes what it has where it cannot ask
            f"{name}: the hub cannot be asked, and the cache holds {commit} and not {revision!r}. "
            "Leave revision out to take that, or pass a file (path=...)."
        )
    commit = commit or revision
    homepage = f"{HUB}/{path}" + (f"/tree/{commit}" if commit else "")
    return list(enumerate(rows.select_columns(used), start=1)), homepage


def _commit(rows: Dataset) -> str | None:
    """The repository's commit, which names the folder that the hub's rows are cached in."""
    parts = {part for file in rows.cache_files for part in Path(file["filename"]).parts}
    return next((part for part in sorted(parts) if re.fullmatch("[0-9a-f]{40}", part)), None)


def _explained(error: Exception, name: str, path: str, revision: str | None) -> Exception:
    """An error of `datasets` as one that says what was asked and what to do."""
    what = f"{name} ({HUB}/{path})"
    pass_file = (
        f'bring the file here by other means and pass it: load_benchmark("{name}", '
        f'path="{name}.jsonl")'
    )
    said = str(error).split("\n")[0][:300].rstrip(".")
    causes = list(_causes(error))
    statuses = [c.response.status_code for c in causes if isinstance(c, HfHubHTTPError)]
    unreachable = any(_is_of_the_network(cause) for cause in causes)
    if datasets.config.HF_HUB_OFFLINE and (unreachable or "cache" in said):
        return ConnectionError(
            f"{what} is not in the cache ({datasets.config.HF_DATASETS_CACHE}), and HF_HUB_OFFLINE "
            f"forbids to ask the hub. Unset HF_HUB_OFFLINE and load it once; or {pass_file}."
        )
    if any(isinstance(c, GatedRepoError) for c in causes) or "gated" in said:
        return PermissionError(
            f"{what} is gated: {said}. Agree to its terms on that page, log in (hf auth login, or "
            f"HF_TOKEN); or {pass_file}."
        )
    if any(isinstance(c, RevisionNotFoundError) for c in causes) or said.startswith("Revision"):
        return ValueError(
            f"{what} has no revision {revision!r}; its commits are listed at "
            f"{HUB}/{path}/commits/main. Name one of them, or leave revision out."
        )
    if isinstance(error, DatasetNotFoundError):
        return ValueError(
            f"{what}: {said}. It was moved or deleted, or is private and wants a login (hf auth "
            f"login, or HF_TOKEN); {pass_file}."
        )
    if {401, 403} & set(statuses):
        return PermissionError(
            f"{what}: the hub refuses ({said}). Check the token (hf auth whoami, HF_TOKEN); or "
            f"{pass_file}."
        )
    if isinstance(error, (ValueError, DataFilesNotFoundError)):  # configuration, split, no data
        return ValueError(
            f"{what} is not as it was: {said}. Name an older commit (revision=...), or {pass_file}."
        )
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EACCES, errno.EROFS):
        error.add_note(f"{what} is kept in {datasets.config.HF_DATASETS_CACHE} (HF_HOME moves it).")
        return error
    if unreachable or statuses:
        return ConnectionError(
            f"{what} could not be loaded: {type(error).__name__}: {said}. Check the connection "
            f"(proxy, HF_ENDPOINT) or try again later; or {pass_file}."
        )
    error.add_note(f"This came of loading {what}. Without the hub: {pass_file}.")
    return error


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """An error and what it came of."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__


def _is_of_the_network(error: BaseException) -> bool:
    kinds = (ConnectionError, TimeoutError, LocalEntryNotFoundError)
    # httpx has a tree of errors of its own.
    transport = {base.__name__ for base in type(error).__mro__} & {"TransportError", "gaierror"}
    routes = (errno.EHOSTUNREACH, errno.ENETUNREACH, errno.EHOSTDOWN, errno.ENETDOWN)
    no_route = isinstance(error, OSError) and error.errno in routes
    return isinstance(error, kinds) or bool(transport) or no_route


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
        split: Of the embedded task, `train` or `test`; the others have one.
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
        return Task(name, problems, CountdownVerifier(), dataset_card(problems).sentence())
    if name in BENCHMARKS:
        problems = load_benchmark(name, check=check and not require_all, **options)
    elif Path(name).expanduser().is_file():
        problems = load_problems(name, check=check and not require_all, **options)
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
    return Task(name, problems, verifier, dataset_card(problems).sentence())
