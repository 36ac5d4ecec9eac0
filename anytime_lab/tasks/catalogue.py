"""Problems and their verifier by name: the embedded task, a benchmark, or your own file."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datasets import Dataset

from anytime_lab.tasks.benchmarks import BENCHMARKS, dataset_card, load_benchmark, load_problems
from anytime_lab.tasks.countdown import load_countdown
from anytime_lab.verify import CountdownVerifier, MathVerifier, Verifier

COUNTDOWN = "countdown"


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
    name: str, split: str = "train", num_problems: int | None = None, **options: Any
) -> Task:
    """Problems by name.

    Args:
        name: `countdown`; a benchmark (`aime24`, `amc22_23`, `math500`, `minerva`,
            `olympiad_bench`, `deepscaler`); or a file of mathematics problems (JSON, JSONL,
            parquet, CSV).
        split: Of the embedded task, `train` or `test`; the others have one.
        num_problems: How many; None takes all.
        **options: For `load_countdown`, `load_benchmark` or `load_problems`.

    Raises:
        ValueError: there is no such task, or too few problems.
    """
    if isinstance(num_problems, bool) or not isinstance(num_problems, int | None):
        raise ValueError(
            f"num_problems is {num_problems!r}; expected a whole number, or None for all."
        )
    if name == COUNTDOWN:
        problems = load_countdown(num_problems, split, **options)
        return Task(name, problems, CountdownVerifier(), dataset_card(problems).sentence())
    if name in BENCHMARKS:
        problems = load_benchmark(name, **options)
    elif Path(name).expanduser().is_file():
        problems = load_problems(name, **options)
    else:
        raise ValueError(
            f"there is no task {name!r}. Choose {COUNTDOWN}, {', '.join(BENCHMARKS)}, or the path "
            "of a file of problems (.json, .jsonl, .parquet, .csv)."
        )
    if num_problems is not None:
        if not 1 <= num_problems <= len(problems):
            raise ValueError(
                f"num_problems is {num_problems}, but {name} has {len(problems)}; give 1 to "
                f"{len(problems)}, or None for all."
            )
        problems = problems.select(range(num_problems))
    return Task(name, problems, MathVerifier(), dataset_card(problems).sentence())
