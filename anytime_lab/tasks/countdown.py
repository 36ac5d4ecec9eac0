"""Countdown: reach a target from a few numbers, each used once (the embedded task).

A *trial* combines the numbers two at a time until one value is left. Searching is what makes the
task anytime: a longer thinking holds more trials, so more of them have hit the target. Problems
are generated, never stored; which side of the train/test line a problem falls on depends on the
problem alone, so that the two are disjoint whatever the seed, the size and the difficulty.
"""

import hashlib
import itertools
import random
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

from datasets import Dataset, DatasetInfo

OPERATORS = "+-*/"
TEST_SHARE = 0.25  # of all problems, by a hash of the problem


def split_of(problem: str) -> str:
    """`test` for a fixed quarter of all problems, else `train`; depends on the problem only."""
    digest = hashlib.sha256(problem.encode()).digest()
    return "test" if digest[0] < 256 * TEST_SHARE else "train"


@dataclass(frozen=True)
class Rules:
    """What a trial may do.

    Attributes:
        ops: Operators allowed, out of `+-*/`. Division must be exact.
        max_value: Every intermediate result and the target lie in 0…max_value.
    """

    ops: str = "+-*"
    max_value: int = 99

    def __post_init__(self):
        unknown = sorted(set(self.ops) - set(OPERATORS))
        if unknown or not self.ops or len(set(self.ops)) != len(self.ops):
            raise ValueError(
                f"ops is {self.ops!r}; expected distinct ones out of {OPERATORS!r}, e.g. '+-*'."
            )
        if self.max_value < 1:
            raise ValueError(f"max_value is {self.max_value}; expected an integer of at least 1.")

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
    for (i, a), (j, b) in itertools.permutations(enumerate(values), 2):
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


def _finish(parts: list[tuple[int, str]], done: tuple, rules: Rules, rng, target) -> Trial | None:
    # parts: (value, expression) of what is left. With a target: depth-first search for a solution
    # in the order that rng (or the natural order) gives; without: one random trial.
    if len(parts) == 1:
        hit = target is None or parts[0][0] == target
        return Trial(done, parts[0][1]) if hit else None
    steps = list(first_steps(tuple(v for v, _ in parts), rules))
    if rng is not None:
        rng.shuffle(steps)
    for i, op, j, result in steps:
        (a, left), (b, right) = parts[i], parts[j]
        text = f"{_operand(left)}{op}{_operand(right)}"
        rest = [part for k, part in enumerate(parts) if k not in (i, j)]
        step = (a, op, b, result)
        trial = _finish([*rest, (result, text)], (*done, step), rules, rng, target)
        if trial is not None:
            return trial
    return None


def _operand(text: str) -> str:
    return text if text.isdigit() else f"({text})"


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
    parts = [(n, str(n)) for n in numbers]
    for a, op, b, result in start or ():
        left = next(p for p in parts if p[0] == a)
        parts.remove(left)
        right = next(p for p in parts if p[0] == b)
        parts.remove(right)
        parts.append((result, f"{_operand(left[1])}{op}{_operand(right[1])}"))
    return _finish(parts, tuple(start or ()), rules, rng, target=None)


def solve(problem: Problem, rules: Rules, rng: random.Random | None = None) -> Trial | None:
    """A trial that solves the problem, or None: a random one, or always the same without `rng`."""
    parts = [(n, str(n)) for n in problem.numbers]
    return _finish(parts, (), rules, rng, target=problem.target)


def countdown_problems(
    split: str,
    *,
    numbers: int = 3,
    low: int = 1,
    high: int = 20,
    rules: Rules = Rules(),  # noqa: B008  (frozen)
    min_success: float = 0.12,
    max_success: float = 1.0,
) -> list[Problem]:
    """Every problem of one split whose success rate lies in the given range, in a fixed order.

    Args:
        split: `train` or `test`.
        numbers: How many numbers a problem has (2 to 6).
        low: Smallest number.
        high: Largest number.
        rules: Operators and value range.
        min_success: Least probability that a random trial solves it, in (0, 1].
        max_success: Greatest probability that a random trial solves it.

    Raises:
        ValueError: On a bad argument, or when no problem is left.
    """
    if split not in ("train", "test"):
        raise ValueError(f"split is {split!r}; expected 'train' or 'test'.")
    if not 2 <= numbers <= 6:
        raise ValueError(f"numbers is {numbers}; expected 2 to 6.")
    if not 0 <= low <= high <= rules.max_value:
        raise ValueError(
            f"low={low}, high={high}; expected 0 <= low <= high <= max_value={rules.max_value}."
        )
    if not 0 < min_success <= max_success <= 1:
        raise ValueError(
            f"min_success={min_success}, max_success={max_success}; "
            "expected 0 < min_success <= max_success <= 1."
        )
    found = []
    for values in itertools.combinations_with_replacement(range(low, high + 1), numbers):
        rates = value_distribution(values, rules)
        for target in sorted(t for t, p in rates.items() if min_success <= p <= max_success):
            problem = Problem(values, target)
            if split_of(problem.problem_id) == split:
                found.append(problem)
    if not found:
        raise ValueError(
            f"no {split} problem has a success rate between {min_success} and {max_success}. "
            "Widen the range or the numbers."
        )
    return found


def load_countdown(
    num_problems: int | None = None,
    split: str = "train",
    seed: int = 0,
    *,
    numbers: int = 3,
    low: int = 1,
    high: int = 20,
    ops: str = "+-*",
    max_value: int = 99,
    **difficulty: float,
) -> Dataset:
    """Countdown problems as a dataset, drawn without replacement.

    Args:
        num_problems: How many; None takes all there are.
        split: `train` or `test`, disjoint by problem for any seed and difficulty.
        seed: Chooses the problems, their order, and the order in which numbers are shown.
        ops, max_value: See `Rules`.
        numbers, low, high, **difficulty: See `countdown_problems`.

    Returns:
        Columns problem_id, prompt (conversational), answer (a solution, such as `(7-6)*3`),
        question, numbers, target, success_rate.

    Raises:
        ValueError: On a bad argument, or when more problems are asked for than exist.
    """
    rules = Rules(ops, max_value)
    problems = countdown_problems(
        split, numbers=numbers, low=low, high=high, rules=rules, **difficulty
    )
    if num_problems is not None and not 1 <= num_problems <= len(problems):
        raise ValueError(
            f"num_problems is {num_problems}, but the {split} split holds {len(problems)} such "
            "problems. Ask for 1 to that many, or widen the difficulty or the numbers."
        )
    rng = random.Random(f"{split}-{seed}")
    problems = rng.sample(problems, num_problems or len(problems))
    rows = []
    for problem in problems:
        shown = Problem(tuple(rng.sample(problem.numbers, numbers)), problem.target)
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
    settings = f"{numbers} numbers of {low} to {high}, {ops}, seed {seed}"
    source = f"Countdown, {split} split, generated ({settings})"
    return Dataset.from_list(rows, info=DatasetInfo(description=source))
