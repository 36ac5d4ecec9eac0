"""Countdown: the generated problems, their difficulty, and the trials on them."""

import itertools
import random
from fractions import Fraction

import pytest

from anytime_lab.tasks.countdown import (
    Problem,
    Rules,
    countdown_problems,
    load_countdown,
    sample_trial,
    solve,
    success_rate,
)
from anytime_lab.tasks.problems import load_task


def exact(expression: str) -> Fraction:
    return eval(expression, {"__builtins__": {}})  # our own strings, in a test


def test_the_success_rate_of_a_pair_is_counted_by_hand():
    # 2 and 3 under + - *: 2+3, 3+2, 3-2, 2*3, 3*2 are allowed (2-3 is negative): five trials.
    assert success_rate(Problem((2, 3), 5), Rules()) == pytest.approx(2 / 5)
    assert success_rate(Problem((3, 2), 1), Rules()) == pytest.approx(1 / 5)
    assert success_rate(Problem((2, 3), 6), Rules("+-")) == 0


def test_the_success_rate_is_the_frequency_of_random_trials():
    problem, rules, rng = Problem((3, 6, 7), 24), Rules(), random.Random(0)
    hits = sum(sample_trial(problem.numbers, rules, rng).value == 24 for _ in range(20_000))
    rate = success_rate(problem, rules)
    assert abs(hits / 20_000 - rate) < 4 * (rate * (1 - rate) / 20_000) ** 0.5


def test_train_and_test_are_disjoint_for_any_seed_order_and_difficulty():
    def keys(split, **options):
        return {
            (tuple(sorted(row["numbers"])), row["target"])
            for row in load_countdown(split=split, **options)
        }

    train = keys("train", seed=1, min_success=0.2) | keys("train", seed=2, min_success=0.08)
    test = keys("test", seed=1, min_success=0.12) | keys("test", seed=3, min_success=0.08)
    assert train and test and not train & test


def test_every_answer_uses_each_number_once_and_reaches_the_target():
    for row in load_countdown(300, "test", high=20, min_success=0.1):
        digits = "".join(c if c.isdigit() else " " for c in row["answer"]).split()
        assert sorted(map(int, digits)) == sorted(row["numbers"])
        assert exact(row["answer"]) == row["target"]
        assert row["prompt"][0]["content"] == row["question"]


def test_the_same_seed_gives_the_same_problems_and_another_seed_others():
    first = load_countdown(20, seed=5)["question"]
    assert first == load_countdown(20, seed=5)["question"]
    assert first != load_countdown(20, seed=6)["question"]


def test_division_is_exact_and_by_no_zero():
    rules = Rules("/")
    assert rules.apply(6, "/", 3) == 2
    assert rules.apply(6, "/", 4) is None
    assert rules.apply(6, "/", 0) is None
    assert solve(Problem((8, 2, 2), 2), rules).expression == "(8/2)/2"


def test_solve_agrees_with_brute_force_on_every_target():
    rules = Rules("+-*/", 99)
    for values in [(1, 5, 7), (2, 8, 9), (4, 4, 6)]:
        reachable = set()
        for a, b, c in itertools.permutations(values):
            for p, q in itertools.product("+-*/", repeat=2):
                first = rules.apply(a, p, b)
                if first is None:
                    continue
                for pair in ((first, c), (c, first)):
                    second = rules.apply(pair[0], q, pair[1])
                    if second is not None:
                        reachable.add(second)
        for target in range(100):
            answer = solve(Problem(values, target), rules)
            assert (answer is not None) == (target in reachable)
            assert answer is None or exact(answer.expression) == target


def test_four_numbers_and_a_trial_as_text():
    rng = random.Random(3)
    trial = sample_trial((2, 3, 5, 7), Rules(), rng)
    assert len(trial.steps) == 3
    assert exact(trial.expression) == trial.value
    assert trial.text(trial.value).endswith(" ✓\n") and trial.text(-1).endswith(" ✗\n")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"split": "dev"}, "expected 'train' or 'test'"),
        ({"numbers": 1}, "expected 2 to 6"),
        ({"ops": "+^"}, "expected distinct ones"),
        ({"max_value": 0}, "expected an integer of at least 1"),
        ({"low": 5, "high": 4}, "expected 0 <= low <= high"),
        ({"min_success": 0}, "expected 0 < min_success"),
        ({"min_success": 0.99}, "Widen the range"),
        ({"num_problems": 10**6}, "Ask for 1 to that many"),
        ({"num_problems": 0}, "Ask for 1 to that many"),
    ],
)
def test_bad_arguments_say_what_was_found_and_what_to_do(options, message):
    with pytest.raises(ValueError, match=message):
        load_countdown(**options)


def test_every_listed_problem_lies_in_the_asked_range():
    rules = Rules()
    problems = countdown_problems("test", min_success=0.1, max_success=0.2)
    assert all(0.1 <= success_rate(p, rules) <= 0.2 for p in problems)


@pytest.mark.parametrize("wrong", ["5", 2.5, True])
def test_a_count_of_problems_that_is_no_whole_number_is_told(wrong):
    with pytest.raises(ValueError, match="num_problems is .* expected a whole number, or None"):
        load_task("countdown", num_problems=wrong)
