"""Files of a run that are whole or not there: JSON, JSON lines, text, CSV, progress.

Every file but the jsonl is written beside its place, flushed to disk and moved over it, so a reader
sees a whole file or none. Leftovers of a killed writer end in ``.tmp`` and are ignored. A path may
begin with ``~``: every reader and writer takes it for the home folder.
"""

import contextlib
import errno
import json
import math
import os
import shlex
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pydantic_core
from filelock import FileLock, Timeout

MANIFEST, PROGRESS = "manifest.json", "progress.json"
METRICS, RESULT = "metrics.jsonl", "result.json"
RECORDS, THINKINGS, ROLLOUTS = "records", "thinkings", "rollouts"  # folders of parts
WRITING = ".writing"  # locked by the process that writes the folder; a kill lets it go
_FORMULA = ("=", "+", "-", "@", "\t", "\r", "＝", "＋", "－", "＠")


class RunFolderError(Exception):
    """A run folder cannot be read or written; the message says what was found and what to do."""

    def _render_traceback_(self) -> list[str]:  # asked by IPython: a sentence ends a cell as well
        return [f"{type(self).__name__}: {self}"]


def run_folder(folder: str | Path) -> Path:
    """The one place that a folder's name means, for all that read and write it."""
    return Path(folder).expanduser().absolute()


@contextlib.contextmanager
def only_writer(folder: str | Path, lock: str = WRITING, patience: float = 0) -> Iterator[Path]:
    """Hold a folder, which is made if need be, while a run writes it.

    Args:
        lock: name of the file that is locked; a run's starter and its notebook have one each.
        patience: seconds in which another run may let go.

    Raises:
        RunFolderError: another run writes there now, or nothing can be written there.
    """
    folder = run_folder(folder)
    with contextlib.ExitStack() as stack:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            stack.enter_context(FileLock(folder / lock, timeout=patience))
        except Timeout as error:
            raise RunFolderError(
                f"another run writes into {folder} now. Wait until it has ended, stop it, or give "
                "this one a folder of its own."
            ) from error
        except OSError as error:
            raise _unwritten(f"could not write into {folder}", error) from error
        yield folder


# --- writing -------------------------------------------------------------------------------------


def _plain(value: Any) -> Any:
    """What JSON can hold of a value; numbers that are not finite become null."""

    def other(value: Any) -> Any:  # numpy and torch, scalars and arrays
        return dict(value) if isinstance(value, Mapping) else value.tolist()

    return json.loads(pydantic_core.to_json(value, inf_nan_mode="null", fallback=other))


def write_text(path: str | Path, text: str | bytes, durable: bool = True) -> None:
    """Writes a file of text (or of bytes, as they are) in one step: beside it, then over it.

    `durable=False` skips the flush to disk, for files that are rewritten often.

    Raises:
        RunFolderError: the disk is full or the folder cannot be written.
    """
    path = run_folder(path)
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "wb") as file:
            file.write(text.encode() if isinstance(text, str) else text)
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
        raise _unwritten(f"could not write {path}", error) from error
    finally:
        with contextlib.suppress(OSError):  # a folder that cannot be written holds none
            temporary.unlink(missing_ok=True)


def _unwritten(what: str, error: OSError) -> RunFolderError:
    return RunFolderError(
        f"{what}: {error.strerror or error}. What was written before is intact; free space or make "
        "the folder writable, then run the same command again."
    )


def write_json(path: str | Path, obj: Any, durable: bool = True) -> None:
    """Writes `obj` as JSON, as `write_text` does: a reader sees the old file or the new one.

    Takes dataclasses, paths, tuples, sets, numpy and torch values; NaN and infinities become null.

    Raises:
        RunFolderError: the disk is full or the folder cannot be written.
    """
    text = json.dumps(_plain(obj), ensure_ascii=False, indent=1, allow_nan=False)
    write_text(path, text + "\n", durable)


def write_csv(path: str | Path, frame: Any) -> None:
    """Writes a frame of pandas as CSV in one step; no cell is taken for a formula by a spreadsheet.

    Text that begins as a formula does gets an apostrophe before it; numbers stay as they are.

    Raises:
        RunFolderError: the disk is full or the folder cannot be written.
    """
    told = frame.map(_no_formula).rename(columns=_no_formula)
    write_text(path, told.to_csv(index=False))


def _no_formula(cell: Any) -> Any:
    if not isinstance(cell, str) or not cell.lstrip().startswith(_FORMULA):
        return cell
    with contextlib.suppress(ValueError):  # -3 is a number, and safe
        return cell if math.isfinite(float(cell)) else f"'{cell}"
    return f"'{cell}"


def append_jsonl(path: str | Path, obj: Any) -> None:
    """Appends one line in one write. A torn last line of a killed writer is removed first.

    Raises:
        RunFolderError: the disk is full or the folder cannot be written.
    """
    line = json.dumps(_plain(obj), ensure_ascii=False, allow_nan=False).encode() + b"\n"
    path = run_folder(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
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
        raise _unwritten(f"could not append to {path}", error) from error


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
    now, new = time.time(), done - done_before
    left = (now - started) / new * (total - done) if new > 0 else None
    told = {"stage": stage, "done": done, "total": total, "unit": unit, "started": started}
    told |= {"updated": now, "seconds_left": left, "message": message}
    write_json(run_folder(run_dir) / PROGRESS, told, durable=False)


def remove_leftovers(run_dir: str | Path) -> None:
    """Removes the ``*.tmp`` files that a killed writer left in the run folder."""
    for name in (".", RECORDS, THINKINGS, ROLLOUTS):
        for path in (run_folder(run_dir) / name).glob("*.tmp"):
            path.unlink(missing_ok=True)


# --- reading -------------------------------------------------------------------------------------


def read_json(path: str | Path, way_on: str = "") -> Any:
    """Reads a JSON file.

    Args:
        way_on: what to do where it is damaged, a sentence for the error.

    Raises:
        RunFolderError: the file is missing or is not JSON.
    """
    path = run_folder(path)
    try:
        return json.loads(path.read_bytes())
    except FileNotFoundError:
        raise RunFolderError(f"{path} does not exist.") from None
    except (ValueError, OSError, RecursionError) as error:
        said = f"{path} cannot be read as JSON: {error}. {way_on}"
        raise RunFolderError(said.rstrip()) from error


def read_jsonl(path: str | Path) -> list[Any]:
    """Reads the lines of a jsonl file; a torn last line is dropped, a missing file is empty.

    Raises:
        RunFolderError: a line before the last is not JSON.
    """
    path = run_folder(path)
    rows, bad, _ = parse_jsonl(path) if path.exists() else ([], {}, 0)
    if bad:
        (first, what), *others = bad.items()
        more = f" (as are {len(others)} more)" if others else ""
        script = ";".join(f"{number}d" for number in bad)
        raise RunFolderError(
            f"{path}, line {first}{more}, is not JSON: {what}. Take such lines out (sed -i "
            f"'{script}' {shlex.quote(str(path))}) and go on: the others do not need them."
        ) from what
    return rows


def parse_jsonl(path: Path, start: int = 0) -> tuple[list[Any], dict[int, Exception], int]:
    """The lines of a jsonl file from byte `start` on, but for what follows the last newline.

    Returns their values, what is wrong with those that are not JSON, by number, and where they end.
    """
    with open(path, "rb") as file:
        file.seek(start)
        lines = file.read().split(b"\n")[:-1]
    rows, bad = [], {}
    for number, line in enumerate(lines, start=1):
        try:
            rows.append(json.loads(line))
        except (ValueError, RecursionError) as error:
            bad[number] = error
    return rows, bad, start + sum(len(line) + 1 for line in lines)
