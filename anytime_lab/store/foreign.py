"""Records of other harnesses' results (lm-evaluation-harness, inspect), and as inspect's logs."""

import json
import math
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from anytime_lab.store import records as stored
from anytime_lab.store.files import (
    MANIFEST,
    RECORDS,
    THINKINGS,
    RunFolderError,
    only_writer,
    read_json,
    read_jsonl,
    run_folder,
)
from anytime_lab.store.manifest import describe_rows

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
        stored.open_evaluation(folder, settings, {"dataset": problems}, chunks=1)
        for table, frame in ((THINKINGS, thinkings), (RECORDS, pd.concat(frames))):
            rows = frame.astype(object).where(frame.notna(), None)
            stored.write_part(folder, table, 0, rows.to_dict("records"))
    return folder


def _frame(path: Path, metric: str) -> pd.DataFrame:
    """The samples of a file, none of them where it is of something else."""
    read = _of_lm_eval if path.suffix == ".jsonl" else _of_inspect
    try:
        if path.stat().st_size:
            return pd.DataFrame(read(path, metric))
        found = "nothing"
    except OSError as error:
        raise RunFolderError(f"{path} cannot be read: {error.strerror}.") from error
    except (KeyError, IndexError, TypeError, AttributeError) as error:
        found = f"rows of another form ({type(error).__name__}: {error})"
    raise RunFolderError(
        f"{path} holds {found}; expected samples of lm-evaluation-harness (--log_samples) or a log "
        "of inspect."
    )


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


def _of_inspect(path: Path, metric: str) -> Iterator[dict[str, Any]]:
    if path.suffix == ".eval":
        try:
            from inspect_ai.log import read_eval_log
        except ImportError as error:
            raise ImportError(
                f"{path} is a log that only inspect reads: pip install inspect-ai, or convert it: "
                "inspect log convert --to json."
            ) from error
        log = json.loads(read_eval_log(str(path)).model_dump_json())
    else:
        log = read_json(path)
    samples = log.get("samples") if isinstance(log, dict) else None
    if not samples:
        raise RunFolderError(f"{path} holds no samples; expected a whole log of inspect.")
    name = _chosen(path, sorted({n for s in samples for n in s.get("scores") or {}}), metric)
    for sample in samples:
        told, asked = (sample.get("scores") or {}).get(name) or {}, sample["input"]
        value, target = told.get("value"), sample["target"]
        choices = (sample.get("output") or {}).get("choices") or [{}]
        said = (choices[0].get("message") or {}).get("content") or ""
        yield {
            "problem_id": str(sample["id"]),
            "question": asked if isinstance(asked, str) else str(asked[-1].get("content")),
            "gold": target if isinstance(target, str) else json.dumps(target),
            "answer": told.get("answer"),
            "score": float(_LETTERS.get(value, math.nan if value is None else value)),
            "summary_text": said
            if isinstance(said, str)
            else "".join(p.get("text", "") for p in said),
        }


def _chosen(path: Path, known: list[str], metric: str) -> str:
    if metric in known or (len(known) == 1 and not metric):
        return metric or known[0]
    raise ValueError(f"{path} has the scores {known}; choose one of them as metric ({metric!r}).")


def export_inspect(run_dir: str | Path, folder: str | Path) -> dict[int, Path]:
    """Writes an evaluation as logs of inspect, through its own Python API, one budget a file.

    The epochs of a sample are its thinkings and their summaries; a thinking up to the budget stands
    there as reasoning, a summary as text.

    Returns:
        budget in tokens → file in `folder` (`256.eval`), as `import_results` takes them.

    Raises:
        RunFolderError: the evaluation cannot be read.
        ImportError: inspect-ai is not installed.
    """
    try:
        from inspect_ai import log, model, scorer
    except ImportError as error:
        raise ImportError("inspect writes its logs itself: pip install inspect-ai.") from error
    about, folder = stored.read_manifest(run_dir), run_folder(folder)
    thinkings = stored.read_thinkings(run_dir)
    rows = stored.read_records(run_dir).merge(thinkings, on=["problem_id", "sample"])
    rows["epoch"] = 1 + rows.groupby(["problem_id", "budget"], observed=True).cumcount()
    name = str(about.get("model_path") or "unknown")
    folder.mkdir(parents=True, exist_ok=True)
    files = {}
    for budget, part in rows.astype(object).where(rows.notna(), None).groupby("budget"):
        samples = []
        for row in part.itertuples():
            ends = [0, *row.token_ends]
            thought = row.thinking[: ends[min(row.cut, len(ends) - 1)]]
            said = (
                model.ContentReasoning(reasoning=thought),
                model.ContentText(text=row.summary_text),
            )
            value = math.nan if row.score is None else row.score
            score = scorer.Score(value=value, answer=row.answer, explanation=row.reason)
            of = {"id": row.problem_id, "epoch": row.epoch, "input": row.question}
            of |= {"target": row.gold, "output": model.ModelOutput.from_content(name, [*said])}
            samples.append(log.EvalSample(**of, scores={"correct": score}))
        problems, epochs = part["problem_id"].nunique(), part["epoch"].max()
        dataset = log.EvalDataset(name=about["dataset"].get("name"), samples=problems)
        task, config = dataset.name or "anytime_lab", log.EvalConfig(epochs=epochs)
        told = {"created": time.strftime("%Y-%m-%dT%H:%M:%S%z"), "task": task, "model": name}
        spec = log.EvalSpec(**told, dataset=dataset, config=config)
        files[budget] = folder / f"{budget}.eval"
        whole = log.EvalLog(status="success", eval=spec, samples=samples)
        log.write_eval_log(whole, str(files[budget]))
    return files
