"""Records of an evaluation: the columns, the parts on disk, and the one reader of them.

A run folder holds

    manifest.json              settings, seeds, versions, hashes: how the run was made
    progress.json              how far it is, for whoever watches
    metrics.jsonl              training: one line per logged step
    rollouts/step-000050.parquet   training: some rollout trees (rollouts.py)
    records/part-00000.parquet     evaluation: one row per (problem, sample, budget, summary)
    thinkings/part-00000.parquet   evaluation: one row per thinking, with its text
    result.json                written last by the job that owns the folder

The prior is not in a record: a record tells what happened at a budget, a reader weights budgets.
A part of another version reads well: a column that it lacks is null, one too many is ignored.
"""

import base64
import json
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from anytime_lab.store import files
from anytime_lab.store.files import MANIFEST, RECORDS, THINKINGS, RunFolderError, run_folder
from anytime_lab.store.manifest import environment, sessions_of

FORMAT = "anytime_lab evaluation 1"
AGAIN = "Run the same evaluation again: it writes this part anew, and only this one."


@dataclass(frozen=True, kw_only=True)
class Known:
    """What an evaluation knows of a thinking and, but for rows of thinkings, of a summary of it."""

    problem: Any  # with `id`, `question` and `gold`
    sample: int  # number of the thinking among those of its problem
    tree: Any  # with `thinking` (token ids) and `end`
    thinking: str = ""  # text of the thinking
    token_ends: Sequence[int] = ()  # characters before which each token ends
    budget: int = 0  # in tokens
    summary: int = 0  # number of the summary at that budget
    leaf: Any = None  # with `cut`, `summary` (token ids), `logprobs` and `finished`
    text: str = ""  # of the summary
    grade: Any = None  # with `answer`, `score` (None: the verifier abstained) and `reason`


@dataclass(frozen=True)
class Column:
    """A column of a table: its type, and its value of what the evaluation knows.

    A column that is added here is written by the next evaluation, and null in those before it.
    """

    name: str
    type: pa.DataType
    of: Callable[[Known], Any] | None = None
    key: bool = False  # tells rows apart; a part without it is none
    label: bool = False  # few values, many rows: read as categories


def _gold(known: Known) -> str:
    gold = known.problem.gold
    return gold if isinstance(gold, str) else json.dumps(gold, default=str)


_PROBLEM = Column("problem_id", pa.string(), lambda k: k.problem.id, key=True, label=True)
_SAMPLE = Column("sample", pa.int32(), lambda k: k.sample, key=True)
COLUMNS: Mapping[str, tuple[Column, ...]] = {
    RECORDS: (
        _PROBLEM,
        _SAMPLE,
        Column("budget", pa.int32(), lambda k: k.budget, key=True),  # tokens
        Column("summary", pa.int32(), lambda k: k.summary, key=True),
        # tokens of thinking kept: min(budget, thinking_tokens)
        Column("cut", pa.int32(), lambda k: k.leaf.cut),
        Column("thinking_tokens", pa.int32(), lambda k: len(k.tree.thinking)),
        # closed, eos, length
        Column("thinking_end", pa.string(), lambda k: k.tree.end, label=True),
        Column("summary_tokens", pa.int32(), lambda k: len(k.leaf.summary)),
        Column("finish", pa.string(), lambda k: "eos" if k.leaf.finished else "length", label=True),
        Column("answer", pa.string(), lambda k: k.grade.answer),  # null: none was found
        Column("score", pa.float64(), lambda k: k.grade.score),  # null: the verifier abstained
        # full marks; a verifier with partial credit gives less than 1 for less
        Column("correct", pa.bool_(), lambda k: (k.grade.score or 0) >= 1),
        Column("reason", pa.string(), lambda k: k.grade.reason, label=True),
        # nats, summed over the tokens of the summary
        Column("logprob", pa.float64(), lambda k: float(sum(k.leaf.logprobs))),
        Column("summary_text", pa.string(), lambda k: k.text),
    ),
    THINKINGS: (
        _PROBLEM,
        _SAMPLE,
        Column("question", pa.string(), lambda k: k.problem.question),
        Column("gold", pa.string(), _gold),
        Column("thinking", pa.string(), lambda k: k.thinking),
        # token t ends before character token_ends[t]
        Column("token_ends", pa.list_(pa.int32()), lambda k: list(k.token_ends)),
        Column("tokens", pa.int32(), lambda k: len(k.tree.thinking)),
        Column("end", pa.string(), lambda k: k.tree.end),
    ),
}


def schema_of(columns: Iterable[Column]) -> pa.Schema:
    """Names and types of columns as pyarrow has them."""
    return pa.schema([(column.name, column.type) for column in columns])


# --- writing -------------------------------------------------------------------------------------


def open_evaluation(run_dir: Path, settings: dict, about: dict, chunks: int) -> None:
    """Starts a run folder, or makes sure that what is there was begun with the same settings."""
    now = environment()
    settings = json.loads(json.dumps(settings, default=str))  # as it will be read back
    if (run_dir / MANIFEST).exists():
        manifest = read_manifest(run_dir)
        if changed := _changes(manifest.get("settings", {}), settings, "{}: {!r} there, {!r} now"):
            raise RunFolderError(
                f"{run_dir} holds an evaluation with other settings ({'; '.join(changed)}). Use a "
                "new folder, or delete this one to start over."
            )
        manifest["sessions"] = sessions_of(manifest)
        before = [now, *manifest["sessions"]][-1]["versions"]
        if changed := _changes(before, now["versions"], "{} {} → {}"):
            warnings.warn(
                f"{run_dir} was begun with other versions ({', '.join(changed)}); the rest may "
                "differ from an unbroken run.",
                stacklevel=3,
            )
        manifest["sessions"].append(now)
    elif finished_chunks(run_dir):
        raise RunFolderError(
            f"{run_dir} holds records but no {MANIFEST}, so nobody knows how they were made. "
            "Evaluate into a new folder."
        )
    else:
        manifest = {"format": FORMAT, "settings": settings, "chunks": chunks, **about}
        manifest["sessions"] = [now]
    files.remove_leftovers(run_dir)
    files.write_json(run_dir / MANIFEST, manifest)


def note_session(run_dir: str | Path, numbers: Mapping[str, float]) -> None:
    """Adds numbers to what the manifest says of its last session."""
    manifest = read_manifest(run_dir)
    manifest["sessions"][-1] |= numbers
    files.write_json(Path(run_dir) / MANIFEST, manifest)


def pace_of(manifest: Mapping[str, Any]) -> float | None:
    """Seconds a token of thinking, over the sessions that tell them; None if none does."""
    told = [s for s in sessions_of(manifest) if s.get("tokens") and s.get("seconds")]
    return sum(s["seconds"] for s in told) / sum(s["tokens"] for s in told) if told else None


def _changes(before: Mapping[str, Any], now: Mapping[str, Any], words: str) -> list[str]:
    """What differs, in words of its name and both values."""
    rows = [(name, before.get(name), now.get(name)) for name in sorted({*before, *now})]
    return [words.format(*row) for row in rows if row[1] != row[2]]


def part_path(run_dir: str | Path, table: str, chunk: int) -> Path:
    """Where chunk number `chunk` of `table` ("records" or "thinkings") lies."""
    return run_folder(run_dir) / table / f"part-{chunk:05d}.parquet"


def row_of(table: str, known: Known) -> dict[str, Any]:
    """A row of a table, every column computed."""
    return {column.name: column.of(known) for column in COLUMNS[table]}


def write_part(
    run_dir: str | Path, table: str, chunk: int, rows: Sequence[Mapping[str, Any]]
) -> None:
    """Writes one chunk of rows as a parquet part, whole or not at all.

    Raises:
        RunFolderError: the disk is full or the folder cannot be written.
    """
    data = pa.Table.from_pylist([*rows], schema=schema_of(COLUMNS[table]))
    write_table(part_path(run_dir, table, chunk), data)


def write_table(path: str | Path, data: pa.Table) -> None:
    """Writes a parquet file with a checksum for every page, whole or not at all.

    Raises:
        RunFolderError: the disk is full or the folder cannot be written.
    """
    written = pa.BufferOutputStream()
    pq.write_table(data, written, compression="zstd", write_page_checksum=True)
    files.write_text(path, written.getvalue().to_pybytes())


def finished_chunks(run_dir: str | Path) -> set[int]:
    """The chunks whose records are on disk. A chunk's records are written after its thinkings."""
    numbers = (path.stem[5:] for path in (run_folder(run_dir) / RECORDS).glob("part-*.parquet"))
    return {int(number) for number in numbers if number.isdecimal()}


def drop_damaged_chunks(run_dir: str | Path) -> list[str]:
    """Removes the records of chunks of which a part is damaged; what was found, a sentence each.

    An evaluation that goes on makes such a chunk anew.
    """
    found = []
    for chunk in sorted(finished_chunks(run_dir)):
        for table in COLUMNS:
            try:
                read_part(run_dir, table, chunk)
            except RunFolderError as error:
                found.append(str(error).replace(AGAIN, "It is written anew."))
                part_path(run_dir, RECORDS, chunk).unlink(missing_ok=True)
    return found


# --- reading -------------------------------------------------------------------------------------


def read_manifest(run_dir: str | Path) -> dict[str, Any]:
    """Reads the manifest of an evaluation.

    Raises:
        RunFolderError: there is no such folder, it is empty, or it is something else.
    """
    run_dir = run_folder(run_dir)
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
    path = run_dir / MANIFEST
    manifest = files.read_json(path, "Put a copy of it back, or evaluate into a new folder.")
    kind = manifest.get("format") if isinstance(manifest, dict) else type(manifest).__name__
    chunks = manifest.get("chunks") if kind == FORMAT else None
    if type(chunks) is not int or chunks < 1:
        raise RunFolderError(
            f"{path} says format {kind!r} and {chunks!r} parts; this version reads {FORMAT!r} of 1 "
            "part or more. Put a copy of it back, evaluate again into a new folder, or read it "
            "with the version that wrote it."
        )
    return manifest


def read_records(
    run_dir: str | Path,
    columns: Iterable[str] | None = None,
    allow_partial: bool = False,
    table: str = RECORDS,
) -> pd.DataFrame:
    """Reads the records of an evaluation: one row per (problem, sample, budget, summary).

    Labels (problem_id, thinking_end, finish, reason) come as categories.

    Args:
        columns: the columns wanted; all of COLUMNS if None.
        allow_partial: read what is there of a run that is still being written.
        table: of COLUMNS.

    Raises:
        RunFolderError: the folder is missing, empty, foreign or damaged, or the run not finished.
        ValueError: there is no such column.
    """
    wanted = range(read_manifest(run_dir)["chunks"])
    done = sorted(finished_chunks(run_dir))
    if foreign := [chunk for chunk in done if chunk not in wanted]:
        raise RunFolderError(
            f"{run_dir} holds parts that its manifest does not know: {foreign[:5]} "
            f"of {len(wanted)}. Parts of another run were copied in; evaluate into a new folder."
        )
    if not done:
        raise RunFolderError(
            f"{run_dir} has no finished part yet (0 of {len(wanted)}). Wait, or run it again."
        )
    if len(done) < len(wanted) and not allow_partial:
        raise RunFolderError(
            f"{run_dir} is partial: {len(done)} of {len(wanted)} parts are written. Run the same "
            "evaluation again to finish it, or read what is there with allow_partial=True."
        )
    names = None if columns is None else list(columns)
    parts = [read_table(part_path(run_dir, table, n), COLUMNS[table], names, AGAIN) for n in done]
    return pa.concat_tables(parts).unify_dictionaries().to_pandas()


def read_thinkings(
    run_dir: str | Path, columns: Iterable[str] | None = None, allow_partial: bool = False
) -> pd.DataFrame:
    """Reads the thinkings of an evaluation: one row per (problem, sample); as `read_records`."""
    return read_records(run_dir, columns, allow_partial, THINKINGS)


def read_part(
    run_dir: str | Path,
    table: str,
    chunk: int,
    columns: Iterable[str] | None = None,
    problem: str | None = None,
) -> pd.DataFrame:
    """Reads one part of a table, of all problems or of one.

    Raises:
        RunFolderError: the part is missing, foreign or damaged.
    """
    part = read_table(part_path(run_dir, table, chunk), COLUMNS[table], columns, AGAIN)
    if problem is not None:
        part = part.filter(pc.equal(part["problem_id"], problem))
    return part.to_pandas()


def read_table(
    path: Path, columns: Sequence[Column], names: Sequence[str] | None, way_on: str
) -> pa.Table:
    """Reads columns of a parquet file; one that the file lacks is null.

    Opening costs more than reading where files are small, so each is opened once.

    Args:
        columns: which there are.
        names: of those that are wanted; all if None.
        way_on: what to do where the file is missing or damaged, a sentence for the error.

    Raises:
        RunFolderError: the file is missing, damaged or something else.
        ValueError: there is no such column.
    """
    known = {column.name: column for column in columns}
    names = list(known) if names is None else names
    if unknown := [name for name in names if name not in known]:
        raise ValueError(f"{path.parent.name} have no column {unknown}; there are {list(known)}.")
    try:
        with pq.ParquetFile(path, pre_buffer=False, page_checksum_verification=True) as file:
            present = file.schema_arrow.names
            # Names, which no checksum covers, stand a second time in what pyarrow writes.
            given = base64.b64decode((file.metadata.metadata or {}).get(b"ARROW:schema", b""))
            if given and present != pa.ipc.read_schema(pa.py_buffer(given)).names:
                raise ValueError("a column has another name than it was given")
            if missing := [n for n, column in known.items() if column.key and n not in present]:
                raise RunFolderError(
                    f"{path} has no column {missing}: it holds something else. {way_on}"
                )
            part = file.read([name for name in names if name in present], use_threads=False)
        found = []
        for name, kind in ((name, known[name].type) for name in names):
            column = part[name].cast(kind) if name in present else pa.nulls(part.num_rows, kind)
            found.append(column.dictionary_encode() if known[name].label else column)
    except FileNotFoundError:
        raise RunFolderError(f"{path} is missing. {way_on}") from None
    except (OSError, pa.ArrowException, ValueError, TypeError) as error:
        said = str(error).splitlines()[0]
        raise RunFolderError(f"{path} is damaged ({said}). {way_on}") from error
    return pa.table(found, names=names, metadata=part.schema.metadata)
