"""What a run leaves on disk: the folder layout, the schema, crash-safe writing and careful reading.

A run folder holds

    manifest.json              settings, seeds, versions, hashes: how the run was made
    progress.json              how far it is, for whoever watches
    metrics.jsonl              training: one line per logged step
    rollouts/step-000050.parquet   training: some rollout trees (rollout_records.py)
    records/part-00000.parquet     evaluation: one row per (problem, sample, budget, summary)
    thinkings/part-00000.parquet   evaluation: one row per thinking, with its text
    result.json                written last by the job that owns the folder

Every file but the jsonl is written beside its place, flushed to disk and moved over it, so a reader
sees a whole file or none. Leftovers of a killed writer end in ``.tmp`` and are ignored.
The prior is not in a record: a record tells what happened at a budget, a reader weights budgets.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import json
import math
import os
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

MANIFEST, PROGRESS = "manifest.json", "progress.json"
METRICS, RESULT = "metrics.jsonl", "result.json"
RECORDS, THINKINGS = "records", "thinkings"
FORMAT = "anytime_lab evaluation 1"

RECORD_SCHEMA = pa.schema(
    [
        ("problem_id", pa.string()),
        ("sample", pa.int32()),
        ("budget", pa.int32()),  # tokens
        ("summary", pa.int32()),
        ("cut", pa.int32()),  # tokens of thinking kept: min(budget, thinking_tokens)
        ("thinking_tokens", pa.int32()),
        ("thinking_end", pa.string()),  # closed, eos, length
        ("summary_tokens", pa.int32()),
        ("finish", pa.string()),  # eos, length
        ("answer", pa.string()),  # null: none was found
        ("score", pa.float64()),  # null: the verifier abstained
        ("correct", pa.bool_()),
        ("reason", pa.string()),
        ("logprob", pa.float64()),  # nats, summed over the tokens of the summary
        ("summary_text", pa.string()),
    ]
)
THINKING_SCHEMA = pa.schema(
    [
        ("problem_id", pa.string()),
        ("sample", pa.int32()),
        ("question", pa.string()),
        ("gold", pa.string()),
        ("thinking", pa.string()),
        ("token_ends", pa.list_(pa.int32())),  # token t ends before character token_ends[t]
        ("tokens", pa.int32()),
        ("end", pa.string()),
    ]
)
_LABELS = {"problem_id", "thinking_end", "finish", "reason"}  # few values, many rows


class RunFolderError(Exception):
    """A run folder cannot be read or written; the message says what was found and what to do."""

    def _render_traceback_(self) -> list[str]:  # asked by IPython: a sentence ends a cell as well
        return [f"{type(self).__name__}: {self}"]


class PartialRunError(RunFolderError):
    """The run is still being written, or was stopped before its end."""


# --- writing -------------------------------------------------------------------------------------


def _plain(value: Any) -> Any:
    """Turns a value into what JSON can hold; numbers that are not finite become null."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: _plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, set | frozenset):
        return sorted(_plain(v) for v in value)
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    if isinstance(value, Path):
        return str(value)
    if hasattr(value, "tolist"):  # numpy and torch, scalars and arrays
        return _plain(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def _replace(path: Path, write, durable: bool = True) -> None:
    """Lets `write(file)` fill a file beside `path`, then moves it over `path` in one step."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "wb") as file:
            write(file)
            file.flush()
            if durable:
                os.fsync(file.fileno())
        os.replace(temporary, path)
        if durable:  # the rename itself must survive a power cut
            folder = os.open(path.parent, os.O_RDONLY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)
    except OSError as error:
        raise RunFolderError(
            f"could not write {path}: {error.strerror or error}. What was written before is "
            "intact; free space or make the folder writable, then run the same command again."
        ) from error
    finally:
        with contextlib.suppress(OSError):  # a folder that cannot be written holds none
            temporary.unlink(missing_ok=True)


def write_json(path: str | Path, obj: Any, durable: bool = True) -> None:
    """Writes `obj` as JSON in one step: a reader sees the old file or the new one.

    Takes dataclasses, paths, tuples, sets, numpy and torch values; NaN and infinities become null.
    `durable=False` skips the flush to disk, for files that are rewritten often.

    Raises:
        RunFolderError: the disk is full or the folder cannot be written.
    """
    text = json.dumps(_plain(obj), ensure_ascii=False, indent=1, allow_nan=False)
    _replace(Path(path), lambda file: file.write(text.encode() + b"\n"), durable)


def write_text(path: str | Path, text: str | bytes) -> None:
    """Writes a file of text (or of bytes, as they are) in one step.

    Raises:
        RunFolderError: the disk is full or the folder cannot be written.
    """
    content = text.encode() if isinstance(text, str) else text
    _replace(Path(path), lambda file: file.write(content))


def read_json(path: str | Path) -> Any:
    """Reads a JSON file.

    Raises:
        RunFolderError: the file is missing or is not JSON.
    """
    try:
        return json.loads(Path(path).read_bytes())
    except FileNotFoundError:
        raise RunFolderError(f"{path} does not exist.") from None
    except (ValueError, OSError) as error:
        raise RunFolderError(f"{path} cannot be read as JSON: {error}.") from error


def append_jsonl(path: str | Path, obj: Any) -> None:
    """Appends one line in one write. A torn last line of a killed writer is removed first.

    Raises:
        RunFolderError: the disk is full or the folder cannot be written.
    """
    line = json.dumps(_plain(obj), ensure_ascii=False, allow_nan=False).encode() + b"\n"
    try:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        with open(path, "ab+", buffering=0) as file:
            size = file.seek(0, os.SEEK_END)
            if size and (file.seek(size - 1), file.read(1))[1] != b"\n":
                file.seek(0)
                file.truncate(file.read().rfind(b"\n") + 1)
            size = file.seek(0, os.SEEK_END)
            if file.write(line) != len(line):  # a disk that fills up takes a part, and says nothing
                file.truncate(size)
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    except OSError as error:
        raise RunFolderError(
            f"could not append to {path}: {error.strerror or error}. What was written before is "
            "intact; free space or make the folder writable, then run the same command again."
        ) from error


def read_jsonl(path: str | Path) -> list[Any]:
    """Reads the lines of a jsonl file; a torn last line is dropped, a missing file is empty.

    Raises:
        RunFolderError: a line before the last is not JSON.
    """
    try:
        lines = Path(path).read_bytes().split(b"\n")
    except FileNotFoundError:
        return []
    rows = []
    for number, line in enumerate(lines[:-1], start=1):  # what follows the last newline is torn
        try:
            rows.append(json.loads(line))
        except ValueError as error:
            raise RunFolderError(f"{path}, line {number}, is not JSON: {error}.") from error
    return rows


def write_progress(
    run_dir: str | Path,
    stage: str,
    done: int,
    total: int,
    unit: str,
    *,
    started: float,
    done_before: int = 0,
    message: str = "",
) -> None:
    """Writes progress.json for whoever watches the run.

    Args:
        started: `time.time()` at which this process began the stage.
        done_before: how much of `done` an earlier process had finished; it does not count for
            the speed from which the time left is told.
    """
    now = time.time()
    new = done - done_before
    left = (now - started) / new * (total - done) if new > 0 else None
    write_json(
        Path(run_dir) / PROGRESS,
        {
            "stage": stage,
            "done": done,
            "total": total,
            "unit": unit,
            "started": started,
            "updated": now,
            "seconds_left": left,
            "message": message,
        },
        durable=False,
    )


def part_path(run_dir: str | Path, table: str, chunk: int) -> Path:
    """Where chunk number `chunk` of `table` ("records" or "thinkings") lies."""
    return Path(run_dir) / table / f"part-{chunk:05d}.parquet"


def write_part(
    run_dir: str | Path, table: str, chunk: int, rows: Sequence[Mapping[str, Any]]
) -> None:
    """Writes one chunk of rows as a parquet part, whole or not at all.

    Raises:
        RunFolderError: the disk is full or the folder cannot be written.
    """
    schema = RECORD_SCHEMA if table == RECORDS else THINKING_SCHEMA
    data = pa.Table.from_pylist([dict(row) for row in rows], schema=schema)
    write_table(part_path(run_dir, table, chunk), data)


def write_table(path: str | Path, data: pa.Table) -> None:
    """Writes a parquet file, whole or not at all.

    Raises:
        RunFolderError: the disk is full or the folder cannot be written.
    """
    _replace(Path(path), lambda file: pq.write_table(data, file, compression="zstd"))


def finished_chunks(run_dir: str | Path) -> set[int]:
    """The chunks whose records are on disk. A chunk's records are written after its thinkings."""
    numbers = (
        p.stem.removeprefix("part-") for p in (Path(run_dir) / RECORDS).glob("part-*.parquet")
    )
    return {int(number) for number in numbers if number.isdecimal()}


def remove_leftovers(run_dir: str | Path) -> list[Path]:
    """Removes the ``*.tmp`` files that a killed writer left in the run folder, and names them."""
    folders = [Path(run_dir), Path(run_dir) / RECORDS, Path(run_dir) / THINKINGS]
    leftovers = [path for folder in folders for path in folder.glob("*.tmp")]
    for path in leftovers:
        path.unlink(missing_ok=True)
    return leftovers


# --- reading -------------------------------------------------------------------------------------


def read_manifest(run_dir: str | Path) -> dict[str, Any]:
    """Reads the manifest of an evaluation.

    Raises:
        RunFolderError: there is no such folder, it is empty, or it is something else.
    """
    run_dir = Path(run_dir)
    if not run_dir.is_dir():
        raise RunFolderError(
            f"{run_dir} is not a folder; expected the run folder of an evaluation."
        )
    names = sorted(path.name for path in run_dir.iterdir())
    if not names:
        raise RunFolderError(f"{run_dir} is empty: nothing was evaluated into it yet.")
    if MANIFEST not in names:
        found = ", ".join(names[:5]) + (", …" if len(names) > 5 else "")
        raise RunFolderError(
            f"{run_dir} is not an evaluation: it has no {MANIFEST} (found {found}). Give the "
            "folder that evaluate() returned."
        )
    manifest = read_json(run_dir / MANIFEST)
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        kind = manifest.get("format") if isinstance(manifest, dict) else type(manifest).__name__
        raise RunFolderError(
            f"{run_dir / MANIFEST} says format {kind!r}; this version reads {FORMAT!r}. Evaluate "
            "again, or read it with the version that wrote it."
        )
    return manifest


def _read_table(
    run_dir: str | Path, table: str, columns: Sequence[str] | None, allow_partial: bool
) -> pd.DataFrame:
    manifest = read_manifest(run_dir)
    chunks = manifest.get("chunks")
    if not isinstance(chunks, int) or isinstance(chunks, bool) or chunks < 1:
        raise RunFolderError(
            f"{Path(run_dir) / MANIFEST} says {chunks!r} parts; expected 1 or more. It was "
            "changed by hand or is damaged: evaluate into a new folder."
        )
    done, wanted = finished_chunks(run_dir), set(range(chunks))
    if done - wanted:
        raise RunFolderError(
            f"{run_dir} holds parts that its manifest does not know: {sorted(done - wanted)[:5]} "
            f"of {len(wanted)}. Parts of another run were copied in; evaluate into a new folder."
        )
    if not done:
        raise PartialRunError(
            f"{run_dir} has no finished part yet (0 of {len(wanted)}). Wait, or run it again."
        )
    if done != wanted and not allow_partial:
        raise PartialRunError(
            f"{run_dir} is partial: {len(done)} of {len(wanted)} parts are written. Run the same "
            "evaluation again to finish it, or read what is there with allow_partial=True."
        )
    schema = RECORD_SCHEMA if table == RECORDS else THINKING_SCHEMA
    names = list(columns) if columns is not None else schema.names
    if unknown := [name for name in names if name not in schema.names]:
        raise ValueError(f"{table} have no column {unknown}; choose from {schema.names}.")
    frames = [_read_part(part_path(run_dir, table, chunk), schema, names) for chunk in sorted(done)]
    whole = pa.concat_tables(frames).unify_dictionaries()
    return whole.to_pandas()


def _read_part(path: Path, schema: pa.Schema, names: Sequence[str]) -> pa.Table:
    try:
        part = pq.read_table(
            path, columns=list(names), read_dictionary=[n for n in names if n in _LABELS]
        )
    except FileNotFoundError:
        raise RunFolderError(f"{path} is missing; evaluate again to write it.") from None
    except (OSError, pa.ArrowException, ValueError) as error:
        raise RunFolderError(
            f"{path} is damaged ({str(error).splitlines()[0]}). Delete it and run the same "
            "evaluation again: only this part is made anew."
        ) from error
    if missing := [name for name in names if name not in part.column_names]:
        raise RunFolderError(f"{path} has no column {missing}: it is not a part of an evaluation.")
    return part


def read_records(
    run_dir: str | Path, columns: Iterable[str] | None = None, allow_partial: bool = False
) -> pd.DataFrame:
    """Reads the records of an evaluation: one row per (problem, sample, budget, summary).

    Labels (problem_id, thinking_end, finish, reason) come as categories.

    Args:
        columns: the columns wanted; all of RECORD_SCHEMA if None.
        allow_partial: read what is there of a run that is still being written.

    Raises:
        PartialRunError: the run is not finished (or has nothing yet).
        RunFolderError: the folder is missing, empty, foreign or damaged.
    """
    return _read_table(run_dir, RECORDS, None if columns is None else list(columns), allow_partial)


def read_thinkings(run_dir: str | Path, allow_partial: bool = False) -> pd.DataFrame:
    """Reads the thinkings of an evaluation: one row per (problem, sample); as `read_records`."""
    return _read_table(run_dir, THINKINGS, None, allow_partial)
