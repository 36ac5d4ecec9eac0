"""Rows of problems from a JSON, JSONL, parquet or CSV file, or an error that names the row."""

import csv
import io
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

MAX_LINE = 10_000_000  # characters; a problem is a thousandth of that
SUFFIXES = (".json", ".jsonl", ".parquet", ".csv")


def read_rows(path: str | Path) -> list[dict[str, Any]]:
    """All rows of a file.

    Args:
        path: A list of objects (.json; also an object whose values are such lists, of which the
            longest is taken), one object a line (.jsonl), a table (.parquet, .csv with a header).

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is empty, no UTF-8, torn, or of another form; the message names the row.
    """
    path = Path(path).expanduser()
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


def _text(path: Path) -> str:
    data = path.read_bytes()
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise ValueError(
            f"{path}, line {line}: byte {data[error.start]:#04x} is no UTF-8. Save the file as "
            "UTF-8 (iconv -t UTF-8)."
        ) from None


def _checked(path: Path, number: int, row: Any) -> dict[str, Any]:
    if not isinstance(row, Mapping):
        raise ValueError(
            f"{path}, row {number}: found {type(row).__name__} {str(row)[:60]!r}; expected an "
            'object such as {"problem": "...", "answer": "..."}.'
        )
    return dict(row)


def _json(path: Path) -> Iterator[dict[str, Any]]:
    try:
        data = json.loads(_text(path))
    except json.JSONDecodeError as error:
        hint = " One object a line is the form of a .jsonl file." if error.lineno > 1 else ""
        raise ValueError(
            f"{path}, line {error.lineno}, column {error.colno}: {error.msg}.{hint}"
        ) from None
    if isinstance(data, Mapping):
        lists = [value for value in data.values() if isinstance(value, list)]
        if not lists:
            raise ValueError(f"{path} holds one object; expected a list of problems.")
        data = max(lists, key=len)
    if not isinstance(data, list):
        raise ValueError(f"{path} holds a {type(data).__name__}; expected a list of problems.")
    for number, row in enumerate(data, start=1):
        yield _checked(path, number, row)


def _jsonl(path: Path) -> Iterator[dict[str, Any]]:
    with open(path, "rb") as file:
        number = 0
        while line := file.readline(MAX_LINE + 1):
            number += 1
            if len(line) > MAX_LINE:
                raise ValueError(
                    f"{path}, line {number} is longer than {MAX_LINE:,} bytes; expected one "
                    "problem a line. Is it really JSON Lines?"
                )
            if not line.strip():
                continue
            try:
                row = json.loads(line.decode("utf-8-sig" if number == 1 else "utf-8"))
            except UnicodeDecodeError as error:
                raise ValueError(
                    f"{path}, line {number}: byte {line[error.start]:#04x} is no UTF-8. Save the "
                    "file as UTF-8 (iconv -t UTF-8)."
                ) from None
            except json.JSONDecodeError as error:
                raise ValueError(
                    f"{path}, line {number}, column {error.colno}: {error.msg}. Each line must be "
                    "one whole object."
                ) from None
            yield _checked(path, number, row)


def _parquet(path: Path) -> Iterator[dict[str, Any]]:
    try:
        table = pq.read_table(path)
    except Exception as error:
        raise ValueError(f"{path} cannot be read as parquet: {error}") from None
    yield from table.to_pylist()


def _csv(path: Path) -> Iterator[dict[str, Any]]:
    csv.field_size_limit(MAX_LINE)
    rows = csv.DictReader(io.StringIO(_text(path), newline=""))
    try:
        for number, row in enumerate(rows, start=1):
            if None in row:
                raise ValueError(
                    f"{path}, row {number} has {len(row[None])} fields more than the header "
                    f"({', '.join(rows.fieldnames)}). Quote fields that hold commas."
                )
            if None in row.values():
                short = [name for name, value in row.items() if value is None]
                raise ValueError(
                    f"{path}, row {number} ends before {', '.join(short)}; every row needs as many "
                    "fields as the header."
                )
            yield row
    except csv.Error as error:
        raise ValueError(f"{path}, line {rows.line_num}: {error}.") from None
