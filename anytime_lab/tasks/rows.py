"""Rows of problems as they lie in a file or on the hub, each with its number for errors."""

import csv
import errno
import json
import os
import re
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import datasets
import pyarrow.parquet as pq
from datasets.exceptions import DataFilesNotFoundError, DatasetNotFoundError
from pyarrow import ArrowException

SPLIT = "split"  # a column of this name says to which split a row belongs
Rows = list[tuple[int, dict[str, Any]]]


def read_rows(path: str | Path, split: str | None = None) -> Rows:
    """All rows of a file, each with its number: of the line (.jsonl), or of the record from 1.

    Args:
        path: A list of objects (.json; also an object that holds such lists by name), one object a
            line (.jsonl), a table (.parquet, .csv with a header).
        split: Which of several lists of a .json file; and which rows, where a column `split` has
            this value among others. A warning tells what was left out.

    Raises:
        TypeError: the path is no text and no path.
        FileNotFoundError: there is no such file.
        ValueError: it is empty, no UTF-8, torn, of another form, or holds several lists and none
            of the name; the message names the row.
    """
    if not isinstance(path, str | os.PathLike):
        raise TypeError(f"path is {path!r:.80}; give the name of a file ({', '.join(READERS)}).")
    path = Path(path).expanduser()
    if path.is_dir():
        raise ValueError(f"{path} is a folder; give a file in it ({', '.join(READERS)}).")
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path} (looked in {Path.cwd()}).")
    if path.suffix.lower() not in READERS:
        raise ValueError(
            f"{path.name} ends in {path.suffix!r}; expected one of {', '.join(READERS)}."
        )
    rows = []
    try:
        for number, row in READERS[path.suffix.lower()](path, split):
            if not isinstance(row, Mapping):
                raise ValueError(
                    f"{path}, row {number}: found {type(row).__name__} {str(row)[:60]!r}; expected "
                    'an object such as {"problem": "...", "answer": "..."}.'
                )
            rows.append((number, row))
    except UnicodeDecodeError:
        raise ValueError(_first_bad_byte(path)) from None
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


def _first_bad_byte(path: Path) -> str:
    """Where a file stops being UTF-8."""
    raw = path.read_bytes()
    try:
        raw.decode()
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        bad = f"byte {raw[error.start]:#04x} is no UTF-8"
    return f"{path}, line {line}: {bad}. Save the file as UTF-8 (iconv -t UTF-8)."


# --- kinds of files ------------------------------------------------------------------------------

_LINES = "If each line is an object of its own, name the file .jsonl."


def _json(path: Path, split: str | None) -> Iterator[tuple[int, Any]]:
    found = _loaded(path, path.read_text(encoding="utf-8-sig"))
    if isinstance(found, dict):
        found = _list_of(path, found, split)
    if not isinstance(found, list):
        kind = type(found).__name__
        raise ValueError(f"{path} holds a {kind}; expected a list of problems.")
    return enumerate(found, start=1)


def _loaded(path: Path, text: str, line: int = 0) -> Any:
    """The JSON of a file, or of one line of it; an error names the place."""
    place = f"line {line}" if line else "the one value in it"
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        place = f"line {line or error.lineno}, column {error.colno}"
        hint = "Each line must be one whole object." if line else _LINES
        said = f"{error.msg}. {hint}"
    except RecursionError:
        said = "brackets nested too deeply."
    except ValueError as error:  # an integer of thousands of digits
        said = f"{error}. Write it as a string."
    raise ValueError(f"{path}, {place}: {said}")


def _list_of(path: Path, found: dict[str, Any], split: str | None) -> list[Any]:
    """The list of problems that an object holds, by its name where there are several."""
    lists = {name: rows for name, rows in _lists(found) if rows and isinstance(rows[0], dict)}
    lists = lists or dict(_lists(found))
    if not lists:
        raise ValueError(f"{path} holds one object; expected a list of problems. {_LINES}")
    named = [name for name in lists if name.split(".")[-1] == split]
    told = ", ".join(f"{name} ({len(rows):,} rows)" for name, rows in lists.items())
    if len(named) == 1:
        return lists[named[0]]
    if len(lists) > 1:
        raise ValueError(
            f"{path} holds several lists of problems: {told}"
            + (". " if split is None else f"; none is called {split!r}. ")
            + "Name one of them (split=...), or write the one that is meant to a file of its own."
        )
    only = next(iter(lists))
    if split is not None and only.split(".")[-1] in ("train", "test", "validation", "dev", "eval"):
        warnings.warn(f"{path} holds {told} only; that is taken for {split!r}.", stacklevel=5)
    return lists[only]


def _lists(found: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, list[Any]]]:
    """All lists in an object and in objects inside it, by their dotted names."""
    for name, value in found.items():
        if isinstance(value, list):
            yield before + name, value
        elif isinstance(value, dict):
            yield from _lists(value, f"{before}{name}.")


def _jsonl(path: Path, _: str | None) -> Iterator[tuple[int, Any]]:
    with open(path, encoding="utf-8-sig") as file:
        for number, line in enumerate(file, start=1):
            if line.strip():
                yield number, _loaded(path, line, number)


def _parquet(path: Path, _: str | None) -> Iterator[tuple[int, Any]]:
    number = 0
    try:
        with pq.ParquetFile(path) as table:
            for batch in table.iter_batches(batch_size=1000):
                for at in range(len(batch)):  # one by one, up to the one that is broken
                    (row,) = batch.slice(at, 1).to_pylist()
                    number += 1
                    yield number, row
    except UnicodeDecodeError:
        raise ValueError(
            f"{path}, row {number + 1}: text that is no UTF-8. Write the table anew as UTF-8."
        ) from None
    except (OSError, ArrowException) as error:
        raise ValueError(
            f"{path} cannot be read as parquet: {error}. Is it whole, and no Git LFS pointer?"
        ) from None


def _csv(path: Path, _: str | None) -> Iterator[tuple[int, Any]]:
    number = 0
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            # Strict: a quote that is never closed would swallow the rest of the file.
            table = filter(None, csv.reader(file, strict=True))
            header = next(table, [])
            if twice := sorted({name for name in header if header.count(name) > 1}):
                raise ValueError(
                    f"{path} has several columns named {', '.join(twice)}. Rename them."
                )
            if len(header) == 1 and (other := set(header[0]) & set(";\t|")):
                raise ValueError(
                    f"{path} has one column, {header[0]!r}; expected fields separated by commas, "
                    f"not by {' '.join(map(repr, sorted(other)))}. Save it with commas."
                )
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


def load_hub_rows(
    name: str, place: tuple[str, str | None, str], revision: str | None
) -> tuple[Rows, str]:
    """(numbered rows, address of the commit that they are of).

    Args:
        name: Of the benchmark, for errors.
        place: Repository, its configuration (or None) and its split.
        revision: Commit, branch or tag; None takes the newest.

    Raises:
        ValueError: There is no such data set, revision, configuration or split.
        ConnectionError: The hub cannot be reached, does not answer, or must not be asked.
        PermissionError: The hub wants a login or an agreement first.
    """
    path, config, split = place
    try:
        rows = datasets.load_dataset(path, config, split=split, revision=revision)
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
    advice = (
        "Check the connection (proxy, HF_ENDPOINT) and the token (HF_TOKEN), or try again later"
    )
    if datasets.config.HF_HUB_OFFLINE and (unreachable or "cache" in said):
        advice = (
            f"It is not in the cache ({datasets.config.HF_DATASETS_CACHE}), and HF_HUB_OFFLINE "
            "forbids to ask the hub: unset that and load it once"
        )
    elif "gated" in said or "GatedRepoError" in names:
        advice = "Agree to its terms on that page and log in (hf auth login, or HF_TOKEN)"
    elif isinstance(error, (ValueError, DataFilesNotFoundError, DatasetNotFoundError)):
        advice = (
            "It was moved, deleted or changed, or is private: name another commit (revision=...) "
            "or log in (hf auth login, or HF_TOKEN)"
        )
    elif not unreachable and "HfHubHTTPError" not in names:
        error.add_note(f"This came of loading {what} into {datasets.config.HF_DATASETS_CACHE}.")
        return error  # a full disk, or a fault of the library
    kind = PermissionError if advice.startswith("Agree") else ConnectionError
    kind = ValueError if advice.startswith("It was") else kind
    return kind(
        f"{what} could not be loaded: {said}. {advice}; or bring the file here by other means and "
        f'pass it: load_task("{name}", path="{name}.jsonl").'
    )
