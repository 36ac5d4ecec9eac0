"""Problems and their verifier by name: the embedded task, a benchmark, or your own file."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datasets import Dataset

from anytime_lab.tasks.benchmarks import (
    BENCHMARKS,
    dataset_card,
    load_benchmark,
    load_problems,
    warn_of_golds,
)
from anytime_lab.tasks.countdown import load_countdown
from anytime_lab.verify.verifiers import CountdownVerifier, MathVerifier, Verifier

COUNTDOWN = "countdown"
_KNOWN = (
    f"Choose {COUNTDOWN}, {', '.join(BENCHMARKS)}, or the path of a file of problems (.json, "
    ".jsonl, .parquet, .csv)."
)


@dataclass(frozen=True)
class Task:
    """Problems and who grades their answers.

    Attributes:
        name: As it was asked for.
        problems: Columns problem_id, prompt, question, answer.
        verifier: Grades a summary against the answer.
        card: Source, revision, count and hash of the problems in a sentence, for the manifest.
    """

    name: str
    problems: Dataset
    verifier: Verifier
    card: str


def load_task(
    name: str,
    split: str = "train",
    num_problems: int | None = None,
    *,
    require_all: bool = False,
    **options: Any,
) -> Task:
    """Problems by name.

    Args:
        name: `countdown`; a benchmark (`aime24`, `amc22_23`, `math500`, `minerva`,
            `olympiad_bench`, `deepscaler`); or a file of mathematics problems (JSON, JSONL,
            parquet, CSV).
        split: Of the embedded task, `train` or `test`; the others have one.
        num_problems: How many; None takes all.
        require_all: Where a problem has several answers, ask for all of them, in any order; by
            default any one is right. Not for the embedded task.
        **options: For `load_countdown`, `load_benchmark` or `load_problems`.

    Raises:
        TypeError: the name is no text and no path.
        ValueError: there is no such task, too few problems, or require_all for `countdown`.
    """
    if not isinstance(name, str | os.PathLike):
        raise TypeError(f"the task is {name!r:.80}. {_KNOWN}")
    if isinstance(num_problems, bool) or not isinstance(num_problems, int | None):
        raise ValueError(
            f"num_problems is {num_problems!r}; expected a whole number, or None for all."
        )
    if require_all and name == COUNTDOWN:
        raise ValueError("require_all is for lists of answers; a Countdown problem has one.")
    check = options.pop("check", True) if name != COUNTDOWN else False
    if name == COUNTDOWN:
        problems = load_countdown(num_problems, split, **options)
        return Task(name, problems, CountdownVerifier(), dataset_card(problems).sentence())
    if name in BENCHMARKS:
        problems = load_benchmark(name, check=check and not require_all, **options)
    elif Path(name).expanduser().is_file():
        problems = load_problems(name, check=check and not require_all, **options)
    else:
        raise ValueError(f"there is no task {name!r}. {_KNOWN}")
    if num_problems is not None:
        if not 1 <= num_problems <= len(problems):
            raise ValueError(
                f"num_problems is {num_problems}, but {name} has {len(problems)}; give 1 to "
                f"{len(problems)}, or None for all."
            )
        problems = problems.select(range(num_problems))
    verifier = MathVerifier(require_all=require_all)
    if check and require_all:
        warn_of_golds(problems, verifier)
    return Task(name, problems, verifier, dataset_card(problems).sentence())
