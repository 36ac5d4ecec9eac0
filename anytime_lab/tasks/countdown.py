"""Countdown: reach a target from a few numbers, each used once (the embedded task).

A *trial* combines the numbers two at a time until one value is left. Searching is what makes the
task anytime: a longer thinking holds more trials, so more of them have hit the target. Problems
are generated, never stored; which side of the train/test line a problem falls on depends on the
problem alone, so that the two are disjoint whatever the seed, the size and the difficulty.
"""

import hashlib
import random
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import combinations_with_replacement, permutations
from typing import Any

from datasets import Dataset, DatasetInfo

OPERATORS = "+-*/"
TEST_SHARE = 0.25  # of all problems, by a hash of the problem


def in_split(problem: str, split: str) -> bool:
    """Whether a problem is of a split; `test` has a fixed quarter of all, by the problem alone.

    Raises:
        ValueError: There is no such split.
    """
    if split not in ("train", "test"):
        raise ValueError(f"split is {split!r}; expected 'train' or 'test'.")
    digest = hashlib.sha256(problem.encode()).digest()
    return (digest[0] < 256 * TEST_SHARE) == (split == "test")


@dataclass(frozen=True)
class Rules:
    """What a trial may do, and which problems there are.

    Attributes:
        ops: Operators allowed, out of `+-*/`. Division must be exact.
        max_value: Every intermediate result and the target lie in 0…max_value.
        numbers: How many numbers a problem has (2 to 6).
        low: Smallest number.
        high: Largest number.
        min_success: Least probability that a random trial solves a problem, in (0, 1].
        max_success: Greatest probability that a random trial solves it.
    """

    ops: str = "+-*"
    max_value: int = 99
    numbers: int = 3
    low: int = 1
    high: int = 20
    min_success: float = 0.12
    max_success: float = 1.0

    def __post_init__(self):
        ops, top, low, high = self.ops, self.max_value, self.low, self.high
        least, most = self.min_success, self.max_success
        distinct = 0 < len(ops) == len(set(ops) & set(OPERATORS))
        for holds, found, wanted in (
            (distinct, f"ops is {ops!r}", f"distinct ones out of {OPERATORS!r}, e.g. '+-*'"),
            (top >= 1, f"max_value is {top}", "an integer of at least 1"),
            (2 <= self.numbers <= 6, f"numbers is {self.numbers}", "2 to 6"),
            (
                0 <= low <= high <= top,
                f"low={low}, high={high}",
                f"0 <= low <= high <= max_value={top}",
            ),
            (
                0 < least <= most <= 1,
                f"min_success={least}, max_success={most}",
                "0 < min_success <= max_success <= 1",
            ),
        ):
            if not holds:
                raise ValueError(f"{found}; expected {wanted}.")

    def apply(self, a: int, op: str, b: int) -> int | None:
        """`a op b`, or None where the rules forbid the result."""
        if op == "/":
            value = a // b if b and a % b == 0 else -1
        else:
            value = a + b if op == "+" else a - b if op == "-" else a * b
        return value if 0 <= value <= self.max_value else None


@dataclass(frozen=True)
class Trial:
    """One complete attempt: `steps` are (left, operator, right, result) in order."""

    steps: tuple[tuple[int, str, int, int], ...]
    expression: str  # the same attempt as one expression, e.g. "(7-6)*3"

    @property
    def value(self) -> int:
        """What the attempt arrives at."""
        return self.steps[-1][3]

    def text(self, target: int) -> str:
        """The trial as a line of thinking: `7-6=1, 1*3=3 ✓`."""
        steps = ", ".join(f"{a}{op}{b}={result}" for a, op, b, result in self.steps)
        return f"{steps} {'✓' if self.value == target else '✗'}\n"


@dataclass(frozen=True)
class Problem:
    """Numbers as shown, and the target. Equal problems have the same numbers in any order."""

    numbers: tuple[int, ...]
    target: int

    @property
    def problem_id(self) -> str:
        """Order-free name, such as `3-6-7=3`."""
        return "-".join(map(str, sorted(self.numbers))) + f"={self.target}"

    @property
    def question(self) -> str:
        """The user's message."""
        return f"Reach {self.target} with {', '.join(map(str, self.numbers))}."


def first_steps(values: tuple[int, ...], rules: Rules) -> Iterator[tuple[int, str, int, int]]:
    """All (i, operator, j, result) that combine two of the values, in order."""
    for (i, a), (j, b) in permutations(enumerate(values), 2):
        for op in rules.ops:
            result = rules.apply(a, op, b)
            if result is not None:
                yield i, op, j, result


@lru_cache(maxsize=200_000)
def value_distribution(values: tuple[int, ...], rules: Rules) -> dict[int, float]:
    """P(value) of a random trial on sorted `values`: each step uniform over the allowed ones.

    Trials that run into a dead end (no step allowed) have no value; the rest sums below 1 then.
    """
    if len(values) == 1:
        return {values[0]: 1.0}
    steps = list(first_steps(values, rules))
    out: dict[int, float] = {}
    for i, _, j, result in steps:
        rest = [v for k, v in enumerate(values) if k not in (i, j)]
        for value, share in value_distribution(tuple(sorted([*rest, result])), rules).items():
            out[value] = out.get(value, 0.0) + share / len(steps)
    return out


def success_rate(problem: Problem, rules: Rules) -> float:
    """Probability that one random trial solves the problem: its difficulty, 1 = easiest."""
    return value_distribution(tuple(sorted(problem.numbers)), rules).get(problem.target, 0.0)


def _trials(
    parts: list[tuple[int, str]], rules: Rules, rng: random.Random | None, start: tuple, done=()
) -> Iterator[Trial]:
    # parts: (value, expression) of what is left. Depth first, in the order that rng (or the natural
    # order) gives behind the steps of start.
    if len(parts) == 1:
        yield Trial(done, parts[0][1])
        return
    steps, given = list(first_steps(tuple(v for v, _ in parts), rules)), start[len(done) :]
    if rng is not None and not given:
        rng.shuffle(steps)
    for i, op, j, result in steps:
        step = (parts[i][0], op, parts[j][0], result)
        if given and step != given[0]:
            continue
        left, right = (t if t.isdigit() else f"({t})" for t in (parts[i][1], parts[j][1]))
        rest = [part for k, part in enumerate(parts) if k not in (i, j)]
        made = [*rest, (result, f"{left}{op}{right}")]
        yield from _trials(made, rules, rng, start, (*done, step))
        if given:
            return


def sample_trial(
    numbers: tuple[int, ...], rules: Rules, rng: random.Random, start: tuple | None = None
) -> Trial | None:
    """A random trial on the numbers; None if every path dead-ends.

    Args:
        numbers: The values to combine.
        rules: What is allowed.
        rng: Source of randomness.
        start: Steps (left, operator, right, result) already taken; the trial goes on from there.
    """
    return next(_trials([(n, str(n)) for n in numbers], rules, rng, tuple(start or ())), None)


def solve(problem: Problem, rules: Rules, rng: random.Random | None = None) -> Trial | None:
    """A trial that solves the problem, or None: a random one, or always the same without `rng`."""
    found = _trials([(n, str(n)) for n in problem.numbers], rules, rng, ())
    return next((trial for trial in found if trial.value == problem.target), None)


def countdown_problems(split: str, **settings: Any) -> list[Problem]:
    """Every problem of one split whose success rate lies in the given range, in a fixed order.

    Args:
        split: `train` or `test`.
        **settings: Of `Rules`: operators, value range, numbers and difficulty.

    Raises:
        ValueError: On a bad argument, or when no problem is left.
    """
    rules = Rules(**settings)
    least, most = rules.min_success, rules.max_success
    problems = (
        Problem(values, target)
        for values in combinations_with_replacement(range(rules.low, rules.high + 1), rules.numbers)
        for target, rate in sorted(value_distribution(values, rules).items())
        if least <= rate <= most
    )
    found = [problem for problem in problems if in_split(problem.problem_id, split)]
    if not found:
        raise ValueError(
            f"no {split} problem has a success rate between {least} and {most}. "
            "Widen the range or the numbers."
        )
    return found


def load_countdown(
    num_problems: int | None = None, split: str = "train", seed: int = 0, **settings: Any
) -> Dataset:
    """Countdown problems as a dataset, drawn without replacement.

    Args:
        num_problems: How many; None takes all there are.
        split: `train` or `test`, disjoint by problem for any seed and difficulty.
        seed: Chooses the problems, their order, and the order in which numbers are shown.
        **settings: As `countdown_problems`.

    Returns:
        Columns problem_id, prompt (conversational), answer (a solution, such as `(7-6)*3`),
        question, numbers, target, success_rate.

    Raises:
        ValueError: On a bad argument, or when more problems are asked for than exist.
    """
    rules, problems = Rules(**settings), countdown_problems(split, **settings)
    if num_problems is not None and not 1 <= num_problems <= len(problems):
        raise ValueError(
            f"num_problems is {num_problems}, but the {split} split holds {len(problems)} such "
            "problems. Ask for 1 to that many, or widen the difficulty or the numbers."
        )
    rng = random.Random(f"{split}-{seed}")
    rows = []
    for problem in rng.sample(problems, num_problems or len(problems)):
        shown = Problem(tuple(rng.sample(problem.numbers, rules.numbers)), problem.target)
        rows.append(
            {
                "problem_id": shown.problem_id,
                "prompt": [{"role": "user", "content": shown.question}],
                "answer": solve(shown, rules).expression,
                "question": shown.question,
                "numbers": list(shown.numbers),
                "target": shown.target,
                "success_rate": success_rate(shown, rules),
            }
        )
    about = f"{rules.numbers} numbers of {rules.low} to {rules.high}, {rules.ops}, seed {seed}"
    source = f"Countdown, {split} split, generated ({about})"
    return Dataset.from_list(rows, info=DatasetInfo(description=source))
