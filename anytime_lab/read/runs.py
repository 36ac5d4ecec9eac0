"""Run folders → which evaluations there are, and their tables, each read once.

Whatever is wrong with a folder becomes a sentence; nothing here raises for what lies on disk.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from anytime_lab.read.curves import CURVE_COLUMNS, ProblemTable, problem_table
from anytime_lab.store.records import (
    FORMAT,
    MANIFEST,
    RECORDS,
    RunFolderError,
    finished_chunks,
    part_path,
    read_json,
    read_manifest,
    read_records,
)

STEP = re.compile(r"(?:checkpoint|step|update)[-_ ]?(\d+)$", re.IGNORECASE)
DEPTH = 3  # folders below a given one in which evaluations are looked for
Runs = Mapping[str, str | Path] | Sequence[str | Path] | str | Path


@dataclass(frozen=True)
class Evaluation:
    """One evaluated run: where it lies and what its manifest says it is."""

    run: str
    dataset: str
    step: int | None
    path: Path
    done: int  # parts written
    chunks: int  # parts wanted

    @property
    def partial(self) -> bool:
        """Whether it is still being written, or was stopped."""
        return self.done < self.chunks


@dataclass(frozen=True)
class Catalogue:
    """The evaluations that were found, and a sentence for every folder that held none."""

    evaluations: tuple[Evaluation, ...]
    complaints: tuple[str, ...]

    @property
    def datasets(self) -> list[str]:
        """Names of the datasets, in the order in which they were found."""
        return list(dict.fromkeys(e.dataset for e in self.evaluations))

    def of(self, dataset: str | None) -> list[Evaluation]:
        """The evaluations on one dataset."""
        return [e for e in self.evaluations if e.dataset == dataset]

    def names(self, dataset: str | None) -> dict[str, Evaluation]:
        """Evaluations on a dataset by a name of their own: the run, and its step if it has more."""
        mine = self.of(dataset)
        runs = [e.run for e in mine]
        return {
            e.run if runs.count(e.run) == 1 else f"{e.run} · {_told_step(e.step)}": e for e in mine
        }


def find_evaluations(runs: Runs) -> Catalogue:
    """Looks for evaluations in the folders given, and below them.

    Args:
        runs: run folders, or a mapping from a name to its folder, or one folder that holds them.
    """
    found, complaints = [], []
    for name, path in named_runs(runs):
        try:
            folders = _folders(path)
            if not folders:
                read_manifest(path)  # raises, and says what is there
            for folder in folders:
                known = name or (folder.relative_to(path).parts[:1] or (folder.name,))[0]
                found.append(_evaluation(known, folder))
        except Exception as error:  # whatever is on that disk, the view goes on
            complaints.append(told_error(path, error))
    return Catalogue(tuple(_with_own_names(found)), tuple(complaints))


def told_error(path: str | Path, error: Exception) -> str:
    """What went wrong with a folder, in a sentence."""
    if isinstance(error, RunFolderError):
        return str(error)
    return f"{path} could not be read ({type(error).__name__}: {error}). It is left out."


def named_runs(runs: Runs) -> list[tuple[str, Path]]:
    """Name and folder of each; no name for a folder that may hold several."""
    if isinstance(runs, Mapping):
        return [(str(name), Path(path)) for name, path in runs.items()]
    if isinstance(runs, str | Path):  # names come from the folders inside
        return [("", Path(runs))]
    if not isinstance(runs, Iterable):
        raise TypeError(f"runs is {type(runs).__name__}; give a list of run folders.")
    return [(Path(path).resolve().name, Path(path)) for path in dict.fromkeys(runs)]


def run_folders(path: Path, holds: str) -> list[Path]:
    """The folder itself if it holds a file or folder of that name, or those below that do."""
    if (path / holds).exists():
        return [path]
    below = (path.glob("/".join(["*"] * depth + [holds])) for depth in range(1, DEPTH + 1))
    return sorted({place.parent for places in below for place in places})


def folder_name(name: str, path: Path, folder: Path) -> str:
    """A name for a run found in or below a folder that may have been given one."""
    below = folder.relative_to(path).as_posix()
    return name or folder.resolve().name if below == "." else "/".join(filter(None, [name, below]))


def _folders(path: Path) -> list[Path]:
    """The evaluation in a folder, or those below it."""
    found = run_folders(path, MANIFEST)
    if found == [path]:
        return found
    shown = [f for f in found if not any(p.startswith(".") for p in f.relative_to(path).parts)]
    return [folder for folder in shown if _is_evaluation(folder)]


def _is_evaluation(folder: Path) -> bool:
    try:
        manifest = read_json(folder / MANIFEST)
    except RunFolderError:
        return False
    return isinstance(manifest, dict) and manifest.get("format") == FORMAT


def _evaluation(run: str, folder: Path) -> Evaluation:
    manifest = read_manifest(folder)
    about = manifest.get("dataset")
    about = about if isinstance(about, dict) else {}
    dataset = about.get("name") or str(about.get("sha256") or "")[:8] or "(not named)"
    return Evaluation(
        run=run,
        dataset=str(dataset),
        step=_step(folder.name) or _step(str(manifest.get("model_path") or "").rstrip("/")),
        path=folder,
        done=len(finished_chunks(folder)),
        chunks=int(manifest["chunks"]),
    )


def _step(name: str) -> int | None:
    match = STEP.search(name)
    return int(match[1]) if match else None


def _told_step(step: int | None) -> str:
    return "no step" if step is None else f"step {step}"


def _with_own_names(found: list[Evaluation]) -> list[Evaluation]:
    """Lengthens the names of runs that would be taken for one another by their folders."""

    def keys(evaluations: list[Evaluation]) -> list[tuple[Any, ...]]:
        return [(e.run, e.dataset, e.step) for e in evaluations]

    found = list({e.path.resolve(): e for e in found}.values())
    for length in range(2, 12):
        taken = keys(found)
        if len(set(taken)) == len(taken):
            break
        found = [
            replace(e, run="/".join(e.path.resolve().parts[-length:])) if taken.count(k) > 1 else e
            for e, k in zip(found, taken, strict=True)
        ]
    return found


@dataclass
class Tables:
    """The problem tables of evaluations, each read and averaged once."""

    known: dict[Path, ProblemTable] = field(default_factory=dict)
    complaints: dict[Path, str] = field(default_factory=dict)

    def read(self, evaluations: Sequence[Evaluation]) -> None:
        """Reads those that are not known yet; what cannot be read becomes a complaint."""
        new = [e.path for e in evaluations if e.path not in {*self.known, *self.complaints}]
        for path in new:  # threads are no gain: parts are small, and opening them holds the GIL
            told = _read_table(path)
            place = self.complaints if isinstance(told, str) else self.known
            place[path] = told

    def forget(self, paths: Iterable[Path]) -> None:
        """Has these read anew next time."""
        for path in paths:
            self.known.pop(path, None)
            self.complaints.pop(path, None)


def read_parts(path: Path, columns: Sequence[str]) -> pd.DataFrame:
    """The records that are written, as `read_records` reads them, in a third of its time.

    Opening a part costs more than reading it, so this opens each once and checks nothing twice;
    whatever is wrong is left to `read_records` to find and say.
    """
    columns = list(columns)
    labels = [c for c in columns if c in ("problem_id", "thinking_end")]
    chunks = sorted(finished_chunks(path))
    try:
        sound = chunks and chunks[-1] < int(read_manifest(path)["chunks"])
        parts = [
            pq.ParquetFile(
                part_path(path, RECORDS, chunk), read_dictionary=labels, pre_buffer=False
            ).read(columns, use_threads=False)
            for chunk in (chunks if sound else [])
        ]
        if sound and all(part.column_names == columns for part in parts):
            return pa.concat_tables(parts).unify_dictionaries().to_pandas()
    except (OSError, ValueError, KeyError, TypeError, pa.ArrowException):
        pass
    return read_records(path, columns, allow_partial=True)


def _read_table(path: Path) -> ProblemTable | str:
    try:
        return problem_table(read_parts(path, CURVE_COLUMNS))
    except Exception as error:  # a damaged part, mixed parts, no part yet
        return told_error(path, error)
