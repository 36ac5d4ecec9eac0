"""Rows of problems as they lie in a file or on the hub, each with its number for errors."""

import csv
import errno
import io
import json
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
        FileNotFoundError: there is no such file, or it is a folder.
        ValueError: it is empty, no UTF-8, torn, of another form, or holds several lists and none
            of the name; the message names the row.
    """
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


# --- kinds of files ------------------------------------------------------------------------------


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
