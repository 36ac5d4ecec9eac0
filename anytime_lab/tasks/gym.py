"""Problems of reasoning-gym's generators, each with its own verifier: `reasoning_gym/NAME`"""

import functools
import hashlib
import json
from typing import Any

from datasets import Dataset, DatasetInfo

from anytime_lab.tasks.countdown import in_split

TRIES = 40  # drawn for each problem that is asked for, before there are taken to be no more
DEFAULT_COUNT = 1000


def load_gym(
    generator: str,
    num_problems: int | None = None,
    split: str = "train",
    seed: int = 0,
    *,
    question_suffix: str = "",
    **options: Any,
) -> Dataset:
    """Problems of a generator, no question twice.

    Args:
        generator: A name that reasoning-gym knows.
        num_problems: How many; None takes `DEFAULT_COUNT`.
        split: `train` or `test`, disjoint by question for any seed and options.
        seed: Chooses the problems.
        question_suffix: Appended to every question.
        **options: Of the generator, such as `max_terms`.

    Returns:
        Columns problem_id, prompt (a conversation), question, answer: JSON with the generator's
        answer, and what `score` makes the problem of again.

    Raises:
        ValueError: reasoning-gym is not installed, there is no such generator, option or split, or
            the generator has too few problems.
    """
    count, found = num_problems or DEFAULT_COUNT, {}
    drawn = _generator(generator, seed, json.dumps(options))
    for index in range(TRIES * count):
        entry = drawn[index]
        question = entry["question"].strip()
        if not in_split(question, split) or question in found:
            continue
        gold = {"answer": entry["answer"], "generator": generator, "seed": seed, "index": index}
        found[question] = {
            "problem_id": f"{generator}-{hashlib.sha256(question.encode()).hexdigest()[:12]}",
            "prompt": [{"role": "user", "content": question + question_suffix}],
            "question": question,
            "answer": json.dumps(gold | ({"options": options} if options else {})),
        }
        if len(found) == count:
            break
    else:
        raise ValueError(
            f"num_problems is {count}, but {TRIES * count:,} problems of reasoning_gym/{generator} "
            f"hold {len(found):,} different ones of the {split} split. Ask for fewer, or widen its "
            f"options (now {options or 'the usual ones'})."
        )
    settings = "".join(f", {name} {value}" for name, value in options.items())
    source = f"reasoning_gym/{generator}, {split} split, generated (seed {seed}{settings})"
    return Dataset.from_list([*found.values()], info=DatasetInfo(description=source))


def score(answer: str, gold: str) -> float:
    """What the generator's own verifier gives an answer, 1 where it is right (a worker's job)."""
    asked = json.loads(gold)
    drawn = _generator(asked["generator"], asked["seed"], json.dumps(asked.get("options", {})))
    return float(drawn.score_answer(answer, drawn[asked["index"]]))


@functools.lru_cache(maxsize=64)
def _generator(name: str, seed: int, options: str) -> Any:
    try:
        import reasoning_gym
    except ImportError:
        raise ValueError(
            "the task reasoning_gym/… needs the library reasoning-gym, which is not installed. "
            "Install it: pip install -e '.[reasoning-gym]'."
        ) from None
    if name not in reasoning_gym.factory.DATASETS:
        raise ValueError(
            f"reasoning-gym has no generator {name!r}; it has "
            f"{', '.join(sorted(reasoning_gym.factory.DATASETS))}."
        )
    try:
        return reasoning_gym.create_dataset(name, seed=seed, size=2**31 - 1, **json.loads(options))
    except (TypeError, ValueError, AssertionError) as error:
        raise ValueError(f"reasoning_gym/{name} with the options {options}: {error}") from None
