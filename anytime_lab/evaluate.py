"""Engine + problems + budgets → records: one thinking per sample, sliced at every budget.

The work is cut into chunks of `batch_size` thinkings. A chunk's randomness comes from (seed, chunk)
alone and its rows reach the disk in one step, so a killed evaluation goes on where it was, and ends
with the same records as an unbroken one.
"""

import hashlib
import os
import time
import warnings
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from tqdm.auto import tqdm

from anytime_lab import prompts
from anytime_lab.engines.base import Engine, Sampling
from anytime_lab.engines.load import model_path
from anytime_lab.priors import check_budgets
from anytime_lab.store import records
from anytime_lab.store.files import RECORDS, THINKINGS, only_writer, write_progress
from anytime_lab.store.manifest import describe_problems, describe_rows, hash_model_folder
from anytime_lab.verify.verifiers import FAILURES, Verifier

DEFAULT_SAMPLING = Sampling()


@dataclass(frozen=True)
class Problem:
    """One problem, ready to be asked."""

    id: str
    question: str
    gold: Any
    prompt: tuple[int, ...]


Pairs = list[tuple[Problem, int]]  # problems, and numbers of their samples


def evaluate(
    engine: Engine,
    dataset: Dataset,
    verifier: Verifier,
    budgets: Sequence[int],
    run_dir: str | Path,
    *,
    num_samples: int = 1,
    num_summaries: int = 1,
    sampling: Sampling = DEFAULT_SAMPLING,
    seed: int = 0,
    batch_size: int = 64,
    model: str | Path | None = None,
    dataset_name: str = "",
    dataset_card: str = "",
    chat_template_kwargs: Mapping[str, Any] | None = None,
    progress: bool = True,
) -> Path:
    """Evaluates a model at every budget and writes the records; resumes what was begun.

    Each sample is one thinking of at most `budgets[-1]` tokens, cut at each budget; at every cut
    `num_summaries` summaries are drawn and graded. Budgets past the end of a thinking share theirs.

    Args:
        dataset: columns problem_id, prompt (string or conversation), answer; question (shown to
            readers) if there is one.
        run_dir: may hold other files; what is done there with the same settings is kept.
        num_samples: thinkings per problem.
        num_summaries: summaries per thinking and budget.
        seed: with the chunk number it fixes the randomness of the engine.
        batch_size: thinkings per engine call and per part file. A kill loses at most one chunk.
        model: path or name for the manifest; needed where the engine holds no model to hash.
        dataset_name, dataset_card: for the manifest, e.g. a path and a sentence.
        chat_template_kwargs: passed to the chat template.
        progress: show a progress bar (progress.json is written in any case).

    Returns:
        run_dir, absolute.

    Raises:
        ValueError: an argument is of another kind; bad budgets, sizes or dataset, or an engine
            whose context is too short.
        RunFolderError: the folder holds something else, or an evaluation with other settings, or
            another run writes there.
    """
    sizes = {"num_samples": num_samples, "num_summaries": num_summaries, "batch_size": batch_size}
    rows = (
        ("engine", engine, _has(engine, "sample_trees"), "an engine such as HFEngine"),
        ("dataset", dataset, _has(dataset, "column_names"), "load_task(name).problems"),
        ("verifier", verifier, _has(verifier, "grade"), "load_task(name).verifier"),
        ("sampling", sampling, isinstance(sampling, Sampling), "Sampling(temperature=0.6)"),
        ("seed", seed, _has(seed, "__index__"), "a whole number"),
        ("run_dir", run_dir, isinstance(run_dir, str | os.PathLike) and run_dir, "a folder"),
        *((n, v, type(v) is int and v > 0, "a whole number above 0") for n, v in sizes.items()),
    )
    for name, value, holds, wanted in rows:
        if not holds:
            raise ValueError(f"{name} is {value!r:.60}; expected {wanted}.")
    tokens, chat_template_kwargs = engine.tokens, dict(chat_template_kwargs or {})
    problems = _problems(dataset, tokens, chat_template_kwargs)
    budgets, verifier = check_budgets(budgets), prompts.fit_verifier(verifier, tokens.fmt)
    # all problems once, then again, so that a run still being written already speaks of all
    pairs = [(problem, sample) for sample in range(num_samples) for problem in problems]
    chunks = [pairs[start : start + batch_size] for start in range(0, len(pairs), batch_size)]
    longest = max(problems, key=lambda problem: len(problem.prompt))
    room = engine.room(len(longest.prompt), sampling)
    if room is not None and room < budgets[-1]:
        raise ValueError(
            f"the engine's context is {engine.context_length} tokens, and problem {longest.id!r} "
            f"needs {engine.context_length - room + budgets[-1]}: prompt {len(longest.prompt)} + "
            f"thinking {budgets[-1]} + forced text {tokens.longest_forced} + summary "
            f"{sampling.max_summary_tokens}. Lower the largest budget to {room}, or leave the long "
            "problems out."
        )
    asked = ({"id": p.id, "prompt": p.prompt, "gold": p.gold} for p in problems)
    settings = {
        "budgets": budgets,
        "sampling": asdict(sampling),
        "seed": seed,
        **sizes,
        "format": asdict(tokens.fmt),
        "chat_template_kwargs": chat_template_kwargs,
        "engine": _described(engine, ("batch_size",)),
        "model": _weights(engine, model),
        "dataset": describe_rows(asked)["sha256"],
        "verifier": _described(verifier, sorted(vars(verifier))),
    }
    weights = getattr(engine, "model", None)
    path = model or getattr(getattr(weights, "config", None), "_name_or_path", "")
    about = {
        "model_path": str(path),
        "parameters": weights.num_parameters() if hasattr(weights, "num_parameters") else None,
        "dataset": {"name": dataset_name, "card": dataset_card, **describe_problems(dataset)},
    }
    with only_writer(run_dir) as folder:
        records.open_evaluation(folder, settings, about, len(chunks))
        if progress:
            print(tokens.describe(problems[0].prompt))
        work = partial(evaluate_chunk, engine, verifier, budgets, num_summaries, sampling)
        ends = _run_chunks(folder, work, chunks, seed, budgets, progress)
    if ends:
        tokens.warn_of_eos(ends.count("eos") / len(ends))
    return folder


def evaluate_each(
    models: Mapping[str, str],
    load: Callable[[str], Engine],
    dataset: Dataset,
    verifier: Verifier,
    budgets: Sequence[int],
    **settings: Any,
) -> list[Path]:
    """Evaluates several models, such as the checkpoints of a training run; resumes as `evaluate`.

    Args:
        models: folder of an evaluation → name or folder of its model.
        load: such a name → an engine.
        dataset, verifier, budgets, settings: of `evaluate`, the same for all.

    Returns the folders, absolute.
    """
    if not models:
        raise ValueError(
            "there is no model to evaluate. With checkpoints=True give the folder of a training "
            "run as model, one that holds a whole checkpoint-N."
        )
    folders = []
    for folder, name in tqdm(models.items(), unit="model", disable=len(models) == 1):
        told = {"model": model_path(name), "progress": not folders}
        folders += [evaluate(load(name), dataset, verifier, budgets, folder, **told, **settings)]
    return folders


# --- the loop ------------------------------------------------------------------------------------


def _run_chunks(
    run_dir: Path,
    work: Callable[[Pairs, int], tuple[list[dict], list[dict], float]],
    chunks: list[Pairs],
    seed: int,
    budgets: tuple[int, ...],
    progress: bool,
) -> list[str]:
    """Evaluates and writes the chunks that are not there yet; how their thinkings ended."""
    for found in records.drop_damaged_chunks(run_dir):
        warnings.warn(found, stacklevel=3)
    finished = records.finished_chunks(run_dir)
    done = before = sum(len(chunks[number]) for number in finished)
    total, seen, ends, spent = sum(map(len, chunks)), Counter(), [], Counter()
    about = {"total": total, "unit": "thinkings", "started": time.time(), "done_before": before}
    tell = partial(write_progress, run_dir, "evaluate", **about)
    tell(done, message="resumed" if done else "started")
    words = f"evaluate at {len(budgets)} budgets"
    with tqdm(total=total, initial=done, desc=words, unit="thinking", disable=not progress) as bar:
        for number in sorted({*range(len(chunks))} - finished):
            rows, thinkings, seconds = work(chunks[number], chunk_seed(seed, number))
            records.write_part(run_dir, THINKINGS, number, thinkings)
            records.write_part(run_dir, RECORDS, number, rows)  # last: it makes the chunk finished
            ends += [thinking["end"] for thinking in thinkings]
            done += len(thinkings)
            spent.update(seconds=seconds, tokens=sum(thinking["tokens"] for thinking in thinkings))
            last = [r for r in rows if r["budget"] == budgets[-1]]
            seen["right"] += sum(r["correct"] for r in last)
            seen["graded"] += sum(r["score"] is not None for r in last)
            seen["failed"] += sum(r["reason"] in FAILURES for r in rows)
            right = seen["right"] / max(1, seen["graded"])
            message = f"{right:.1%} right at the largest budget" if seen["graded"] else ""
            message += f"; grading cut short {seen['failed']} times" if seen["failed"] else ""
            bar.update(len(thinkings))
            bar.set_postfix_str(message)
            tell(done, message=message)
    tell(done, message="finished")
    if spent:
        records.note_session(run_dir, spent)
    return ends


def chunk_seed(seed: int, chunk: int) -> int:
    """The engine's seed for a chunk, in 0 … 2⁶³ − 1; independent of every other chunk's."""
    digest = hashlib.sha256(f"anytime_lab {seed} {chunk}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def evaluate_chunk(
    engine: Engine,
    verifier: Verifier,
    budgets: tuple[int, ...],
    num_summaries: int,
    sampling: Sampling,
    pairs: Pairs,
    seed: int,
) -> tuple[list[dict], list[dict], float]:
    """Samples and grades one chunk: rows of its records, of its thinkings, seconds of sampling."""
    asked, start = [problem.prompt for problem, _ in pairs], time.perf_counter()
    trees = engine.sample_trees(asked, budgets, num_summaries, sampling, seed, share_cuts=True)
    seconds, tokens, told, asked = time.perf_counter() - start, engine.tokens, [], []
    for (problem, sample), tree in zip(pairs, trees, strict=True):
        text, ends = prompts.text_and_ends(tokens, tree.thinking)
        of = {"problem": problem, "sample": sample, "tree": tree}
        told.append(records.Known(**of, thinking=text, token_ends=ends))
        places = product(budgets, range(num_summaries))
        for (budget, summary), leaf in zip(places, tree.leaves, strict=True):
            said = {"budget": budget, "summary": summary, "text": tokens.decode(leaf.summary)}
            whole = tokens.decode((*tree.thinking[: leaf.cut], *leaf.forced, *leaf.summary))
            asked.append((replace(told[-1], leaf=leaf, **said), whole))
    # budgets past the end of a thinking repeat the same text: grade it once
    unique = {(known.problem.id, text): known.problem.gold for known, text in asked}
    grades = verifier.grade([text for _, text in unique], list(unique.values()))
    if len(grades) != len(unique):
        raise RuntimeError(
            f"the verifier returned {len(grades)} grades for {len(unique)} texts; one each is due."
        )
    verdict = dict(zip(unique, grades, strict=True))
    rows = [
        records.row_of(RECORDS, replace(known, grade=verdict[known.problem.id, text]))
        for known, text in asked
    ]
    return rows, [records.row_of(THINKINGS, known) for known in told], seconds


# --- checks --------------------------------------------------------------------------------------


def _has(value: Any, method: str) -> bool:
    return hasattr(value, method) and not isinstance(value, type)


def _problems(
    dataset: Dataset,
    tokens: prompts.ThinkingTokens,
    chat_template_kwargs: Mapping[str, Any],
) -> tuple[Problem, ...]:
    columns = list(dataset.column_names)
    if missing := [c for c in ("problem_id", "prompt", "answer") if c not in columns]:
        raise ValueError(
            f"the dataset has no column {', '.join(map(repr, missing))}; it has {columns}. Rename "
            "with dataset.rename_column()."
        )
    if not len(dataset):
        raise ValueError("the dataset is empty; give at least one problem.")
    problems: dict[str, Problem] = {}
    for number, row in enumerate(dataset):
        id, prompt, key = row["problem_id"], row["prompt"], str(row["problem_id"])
        if id is None or key in problems:
            raise ValueError(
                f"row {number} of the dataset has problem_id {id!r}, "
                + ("which is missing" if id is None else "which an earlier row has")
                + "; every problem needs an id of its own."
            )
        said = prompt if isinstance(prompt, str) else prompt[-1]["content"]
        ids = tuple(prompts.prompt_ids(prompt, tokens.tokenizer, tokens.fmt, chat_template_kwargs))
        problems[key] = Problem(key, str(row.get("question") or said), row["answer"], ids)
    return tuple(problems.values())


def _described(thing: Any, names: Sequence[str]) -> dict[str, Any]:
    """The class of an object and those of its plain attributes that change what it does."""
    told = {n: getattr(thing, n) for n in names if not n.startswith("_") and hasattr(thing, n)}
    plain = {n: v for n, v in told.items() if isinstance(v, str | int | float | None)}
    return {"class": type(thing).__name__, **plain}


def _weights(engine: Engine, model: str | Path | None) -> str:
    """A hash of the weights that will run; the name where they are not at hand."""
    if not hasattr(engine, "model"):
        if model is None:
            raise ValueError(
                f"{type(engine).__name__} holds no model to describe; say which one it runs with "
                "evaluate(…, model=PATH_OR_NAME)."
            )
        return hash_model_folder(model) if Path(model).is_dir() else str(model)
    digest = hashlib.sha256()
    for name, tensor in sorted(engine.model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\0".encode())
        flat = tensor.detach().cpu().contiguous().flatten()
        if flat.numel():
            digest.update(flat.view(torch.uint8).numpy().data)
    return digest.hexdigest()
