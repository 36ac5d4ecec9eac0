"""Rows of a JSON, JSONL, parquet or CSV file, or an error that names the row.

JSON, JSON Lines and CSV are read row by row: of a row without end no more than `MAX_ROW` reaches
memory.
"""

import codecs
import contextlib
import csv
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TextIO

import pyarrow.parquet as pq
from pyarrow import ArrowException, RecordBatch

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
