"""Results of other harnesses as records: lm-evaluation-harness samples, inspect logs."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa

from anytime_lab.store.files import (
    MANIFEST,
    RECORDS,
    THINKINGS,
    RunFolderError,
    only_writer,
    read_json,
    read_jsonl,
)
from anytime_lab.store.manifest import describe_rows
from anytime_lab.store.records import COLUMNS, open_evaluation, part_path, schema_of, write_table

_LETTERS = {"C": 1.0, "P": 0.5, "I": 0.0, "N": 0.0}  # as inspect's scorers write a verdict


def import_results(files: Mapping[int, str | Path], run_dir: str | Path, metric: str = "") -> Path:
    """Writes what another harness measured at several budgets as one evaluation.

    Args:
        files: budget in tokens → `samples_*.jsonl` of lm-evaluation-harness (`--log_samples`), or a
            log of inspect (`.json`; `.eval` where inspect-ai is installed).
        run_dir: a new folder.
        metric: which score to take where a file has several: `exact_match,strict-match` (metric
            and filter) of lm-evaluation-harness, the scorer's name of inspect.

    Returns:
        run_dir, absolute. What no such file tells is null (log-probs, ends) or empty (thinkings);
        as the tokens that were thought (`cut`) the budget stands.

    Raises:
        ValueError: there is no such metric, or the files do not hold the same problems.
        RunFolderError: a file cannot be read, or the folder holds an evaluation.
    """
    frames = [_frame(Path(path), metric) for path in files.values()]
    counts = [frame["problem_id"].value_counts().to_dict() for frame in frames]
    if not files or any(one != counts[0] for one in counts):
        told = ", ".join(f"{len(c)} problems at {b}" for b, c in zip(files, counts, strict=True))
        raise ValueError(
            f"the files hold {told or 'nothing'}; expected the same problems and numbers of "
            "samples at every budget. Evaluate the same task, one budget a file."
        )
    for frame, budget in zip(frames, files, strict=True):
        right, sample = frame["score"] >= 1, frame.groupby("problem_id").cumcount()
        frame[["budget", "cut", "summary"]] = budget, budget, 0
        frame["sample"], frame["correct"] = sample, right
    thinkings = frames[-1].assign(thinking="", tokens=0, end="", token_ends=[[]] * len(frames[-1]))
    with only_writer(run_dir) as folder:
        if (folder / MANIFEST).exists():
            raise RunFolderError(f"{folder} holds an evaluation; give a new folder.")
        problems = describe_rows(thinkings[["problem_id", "gold"]].to_dict("records"))
        settings = {"budgets": sorted(files), "files": files}
        open_evaluation(folder, settings, {"dataset": problems}, chunks=1)
        for table, frame in ((THINKINGS, thinkings), (RECORDS, pd.concat(frames))):
            schema = schema_of(COLUMNS[table])
            data = pa.Table.from_pandas(frame.reindex(columns=schema.names), schema)
            write_table(part_path(folder, table, 0), data.replace_schema_metadata())
    return folder


def _frame(path: Path, metric: str) -> pd.DataFrame:
    """The samples of a file, none of them where it is of something else."""
    try:
        if path.stat().st_size:
            return pd.DataFrame(_samples(path, metric))
        found = "nothing"
    except OSError as error:
        raise RunFolderError(f"{path} cannot be read: {error.strerror}.") from error
    except (KeyError, IndexError, TypeError, AttributeError) as error:
        found = f"rows of another form ({type(error).__name__}: {error})"
    raise RunFolderError(
        f"{path} holds {found}; expected samples of lm-evaluation-harness (--log_samples) or a log "
        "of inspect."
    )


def _samples(path: Path, metric: str) -> Iterator[dict[str, Any]]:
    if path.suffix == ".jsonl":
        return _of_lm_eval(path, metric)
    if path.suffix == ".eval":
        try:
            from inspect_ai.log import read_eval_log
        except ImportError as error:
            raise ImportError(
                f"{path} is a log that only inspect reads: pip install inspect-ai, or convert it: "
                "inspect log convert --to json."
            ) from error
        return _of_inspect(path, json.loads(read_eval_log(str(path)).model_dump_json()), metric)
    return _of_inspect(path, read_json(path), metric)


def _of_lm_eval(path: Path, metric: str) -> Iterator[dict[str, Any]]:
    rows = read_jsonl(path)
    known = sorted({f"{name},{row['filter']}" for row in rows for name in row["metrics"]})
    name, _, kept = _chosen(path, known, metric).rpartition(",")
    for row in rows:
        if row["filter"] == kept and name in row:
            answer, asked = row["filtered_resps"][0], row["doc"]
            yield {
                "problem_id": str(row["doc_id"]),
                "question": str(asked.get("question") or asked.get("problem") or asked),
                "gold": str(row["target"]),
                "answer": str(answer[0] if isinstance(answer, list) else answer),
                "score": float(row[name]),
                "summary_text": str(row["resps"][0][0]),
            }


def _of_inspect(path: Path, log: Any, metric: str) -> Iterator[dict[str, Any]]:
    samples = log.get("samples") if isinstance(log, dict) else None
    if not samples:
        raise RunFolderError(f"{path} holds no samples; expected a whole log of inspect.")
    name = _chosen(path, sorted({n for s in samples for n in s.get("scores") or {}}), metric)
    for sample in samples:
        told, asked = (sample.get("scores") or {}).get(name) or {}, sample["input"]
        value, target = told.get("value", math.nan), sample["target"]
        choices = (sample.get("output") or {}).get("choices") or [{}]
        said = (choices[0].get("message") or {}).get("content") or ""
        yield {
            "problem_id": str(sample["id"]),
            "question": asked if isinstance(asked, str) else str(asked[-1].get("content")),
            "gold": target if isinstance(target, str) else json.dumps(target),
            "answer": told.get("answer"),
            "score": _LETTERS[value] if value in _LETTERS else float(value),
            "summary_text": said if isinstance(said, str) else json.dumps(said),
        }


def _chosen(path: Path, known: list[str], metric: str) -> str:
    if metric in known or (len(known) == 1 and not metric):
        return metric or known[0]
    raise ValueError(f"{path} has the scores {known}; choose one of them as metric ({metric!r}).")
