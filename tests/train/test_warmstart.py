"""Warm start: what the generated rows hold, and what is made of an evaluation."""

import random
import re

import numpy as np
import pandas as pd
import pytest

from anytime_lab.engines.load import build_model, load_tokenizer
from anytime_lab.tasks.countdown import Problem, Rules, Trial, countdown_problems, success_rate
from anytime_lab.train.warmstart import (
    MAX_TRIALS,
    SEARCHES,
    Division,
    Pair,
    WarmStartConfig,
    greatest_found,
    sample_trace,
    solved_at,
    summary_expression,
    trace_quality,
    trial_tokens,
    try_divisor,
    warm_start,
    warm_start_rows,
)
from anytime_lab.verify.countdown import read_expression

RULES = Rules()
MISS = Trial(((7, "-", 6, 1), (1, "*", 3, 3)), "(7-6)*3")
HIT = Trial(((7, "*", 3, 21), (21, "-", 6, 15)), "(7*3)-6")
PROBLEM = Problem((3, 6, 7), 15)


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer("embedded")


def test_the_tokenizer_gives_back_every_ascii_text_and_the_forced_texts(tokenizer):
    texts = ["".join(map(chr, range(32, 127))) + "\n", "100 and 07, 3142 + 0", "a  b\n\n c"]
    texts.append("7-6=1 ✗\n7...\n\n...\n\n</think>\n\n**Final Answer**\n\\boxed{(7-6)*3}<|im_end|>")
    for text in texts:
        assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def test_a_trial_costs_six_tokens_a_step(tokenizer):
    assert len(tokenizer(MISS.text(15))["input_ids"]) == 12
    assert len(tokenizer(HIT.text(15) + MISS.text(15))["input_ids"]) == 24


def test_the_model_has_one_to_three_million_parameters(tokenizer):
    assert 1e6 <= build_model().num_parameters() <= 3e6


@pytest.mark.parametrize(
    ("tokens", "expected"),
    [
        (24, {"(7*3)-6"}),  # the solution stands there
        (23, {"(7*3)-6"}),  # only its mark is missing
        (21, {"(7*3)-6"}),  # `21-6` has begun: that attempt is the guess
        # `7*3` has begun: any way to go on from it
        (15, {"(7*3)-6", "(7*3)+6", "6+(7*3)"}),
        (20, {"(7*3)-6", "(7*3)+6", "6+(7*3)"}),
    ],
)
def test_the_summary_follows_what_stands_in_the_thinking(tokens, expected):
    rng = random.Random(0)
    seen = {summary_expression(PROBLEM, [MISS, HIT], tokens, rng) for _ in range(200)}
    assert seen == expected


def test_a_summary_after_failed_trials_is_a_random_guess():
    rng = random.Random(0)
    seen = {summary_expression(PROBLEM, [MISS, HIT], 12, rng) for _ in range(2000)}
    assert len(seen) > 20
    assert all(read_expression(text).numbers == (3, 6, 7) for text in seen)


def test_a_trace_ends_only_after_a_success_and_sometimes_goes_on():
    rng = random.Random(1)
    after = []
    for problem in countdown_problems("train", high=9)[:200]:
        trials, closed = sample_trace(problem, 0.0, rng)
        hits = [i for i, trial in enumerate(trials) if trial.value == problem.target]
        assert closed or len(trials) == MAX_TRIALS
        assert not closed or hits
        if closed:
            after.append(len(trials) - 1 - hits[0])
    assert 0.45 < np.mean([n == 0 for n in after]) < 0.75  # 1 - GO_ON


def test_good_trials_come_as_often_as_asked():
    problems = countdown_problems("train", min_success=0.08)[::10]
    blind = np.mean([success_rate(problem, RULES) for problem in problems])

    def first_hits(share):
        rng = random.Random(2)
        many = problems * 3
        return np.mean([sample_trace(p, share, rng)[0][0].value == p.target for p in many])

    assert first_hits(0.0) == pytest.approx(blind, abs=0.03)
    assert first_hits(0.5) == pytest.approx(0.5 + 0.5 * blind, abs=0.03)
    assert first_hits(1.0) == 1.0


def test_a_guess_without_a_trial_is_a_solution_as_often_as_asked():
    rng = random.Random(0)
    for tokens, share, expected in ((12, 1.0, {True}), (12, 0.0, {True, False})):
        seen = [summary_expression(PROBLEM, [MISS, HIT], tokens, rng, share)
                for _ in range(300)]  # fmt: skip
        assert {read_expression(text).value == PROBLEM.target for text in seen} == expected


def test_rows_train_thinking_and_summary_but_neither_prompt_nor_forced_text(tokenizer):
    config = WarmStartConfig(steps=1, batch_size=300, practice_share=0)
    forced = "...\n\n...\n\n</think>\n\n**Final Answer**\n"
    cut = closed = 0
    for row in warm_start_rows(tokenizer, config):
        text = tokenizer.decode(row["input_ids"])
        trained = tokenizer.decode([t for t in row["labels"] if t != -100])
        question, _, rest = text.partition("<think>\n")
        assert text.count("</think>") == 1
        if forced in rest:
            cut += 1
            thinking, _, summary = rest.partition(forced)
            assert trained == thinking + summary
        else:
            closed += 1
            thinking, _, summary = rest.partition("\n\n**Final Answer**\n")
            assert trained == thinking + summary
            assert thinking.endswith("✓\n</think>") or "✓" in thinking
        assert "Reach" in question and summary.endswith("}<|im_end|>")
        shown = [int(n) for n in question.split(" with ")[1].split(".")[0].split(", ")]
        answer = read_expression(summary.removeprefix("\\boxed{").removesuffix("}<|im_end|>"))
        assert answer.numbers == tuple(sorted(shown))
        target = int(question.split("Reach ")[1].split(" ")[0])
        if solved_at(thinking.removesuffix("</think>"), f"{target}"):
            assert answer.value == target
    assert cut > 100 and closed > 50


def test_practice_rows_train_results_marks_and_stated_solutions_only(tokenizer):
    stated = 0
    for row in warm_start_rows(tokenizer, WarmStartConfig(practice_share=1), count=200):
        thinking = tokenizer.decode(row["input_ids"]).partition("<think>\n")[2]
        thinking = thinking.partition("...")[0]
        pieces = [tokenizer.decode([t]) for t in row["labels"] if t != -100]
        solution = "".join(pieces[pieces.index("\\boxed{") :]) if "\\boxed{" in pieces else ""
        results = "".join(pieces).removesuffix(solution)
        # what stands before `=` was drawn, what follows it is a consequence
        lines = re.sub(r"\d+[-+*]\d+=", "=", thinking)
        unfinished = re.search(r"(\d+([-+*]\d*)?)$", lines)
        lines = (
            lines.removesuffix(unfinished[0]) if unfinished and "=" not in unfinished[0] else lines
        )
        target = tokenizer.decode(row["input_ids"]).split("Reach ")[1].split(" ")[0]
        assert results.startswith(lines) or lines.startswith(results)
        assert abs(len(results) - len(lines)) <= 3
        if solution:
            stated += 1
            answer = solution.removeprefix("\\boxed{").removesuffix("}<|im_end|>")
            assert read_expression(answer).value == int(target)
    assert stated > 80


GCD = "reasoning_gym/gcd"


@pytest.mark.parametrize(
    ("divisor", "text"),
    [(5, "24/5 ✗\n"), (8, "24/8=3, 36/8 ✗\n"), (12, "24/12=2, 36/12=3 ✓\n")],
)
def test_a_division_says_how_far_it_goes_and_chooses_its_divisor(tokenizer, divisor, text):
    trial = Division((24, 36), divisor)
    assert trial.text() == text
    tokens = tokenizer(text)["input_ids"]
    assert trial_tokens(trial) == len(tokens)
    assert [n for n in range(len(tokens)) if SEARCHES[GCD].chosen(n)] == [2]


@pytest.mark.parametrize(
    ("tokens", "found"),
    [(0, "1"), (10, "1"), (11, "2"), (16, "2"), (26, "2"), (27, "12"), (40, "12")],
)
def test_the_greatest_divisor_that_stands_there_is_the_answer(tokens, found):
    trials = [Division((24, 36), divisor) for divisor in (2, 5, 12, 3)]  # 12, 4, 12, 12 tokens
    pair, rng = Pair((24, 36), ""), random.Random(0)
    assert greatest_found(pair, trials, tokens, rng) == found
    if found == "1":
        assert greatest_found(pair, trials, tokens, rng, good_share=1.0) == "12"


def test_divisors_are_tried_up_to_the_smaller_number_and_the_right_one_where_asked():
    rng, pair = random.Random(0), Pair((6, 90), "")
    assert {try_divisor(pair, False, rng).value for _ in range(200)} == {2, 3, 4, 5, 6}
    assert {try_divisor(pair, True, rng).value for _ in range(20)} == {6}
    assert 1 not in {try_divisor(Pair((7, 9), ""), True, rng).value for _ in range(50)}  # gcd 1


@pytest.mark.slow
def test_rows_of_the_second_task_hold_what_its_verifier_takes_for_right(tokenizer):
    pytest.importorskip("reasoning_gym")
    from anytime_lab.tasks.problems import load_task

    options = {"min_value": 2, "max_value": 99, "question_suffix": ""}
    task = load_task(GCD, "train", 3000, **options)
    golds = dict(zip(task.problems["question"], task.problems["answer"], strict=True))
    stated = 0
    for row in warm_start_rows(tokenizer, WarmStartConfig(task=GCD, practice_share=0), count=300):
        text = tokenizer.decode(row["input_ids"])
        question = text.split("user\n")[1].split("<|im_end|>")[0]
        thinking = text.partition("<think>\n")[2].partition("\n\n**Final Answer**\n")[0]
        gold = golds.get(question)
        if gold and solved_at(thinking.removesuffix("</think>"), gold, GCD):
            stated += 1
            assert task.verifier.grade([text.removesuffix("<|im_end|>")], [gold])[0].score == 1
    assert stated > 20


def test_rows_are_the_same_for_the_same_seed(tokenizer):
    def rows(seed):
        return list(warm_start_rows(tokenizer, WarmStartConfig(seed=seed), count=20))

    assert rows(1) == rows(1) != rows(2)


def test_quality_counts_arithmetic_and_stated_solutions(tokenizer):
    # 7-6=2 is wrong (1 of 4 steps); the solution stands after 24 tokens, so of the budgets
    # 12, 24, 36 two hold it, and one of those two summaries is right.
    text = "7-6=2, 2*3=6 ✗\n7*3=21, 21-6=15 ✓\n"
    ends = np.cumsum([len(tokenizer.decode([t])) for t in tokenizer(text)["input_ids"]])
    thinkings = pd.DataFrame(
        {
            "problem_id": ["a"],
            "sample": [0],
            "gold": ["(7*3)-6"],
            "thinking": [text],
            "token_ends": [ends],
            "end": ["closed"],
        }
    )
    records = pd.DataFrame(
        {
            "problem_id": ["a"] * 3,
            "sample": [0] * 3,
            "budget": [12, 24, 36],
            "cut": [12, 24, 25],
            "correct": [False, False, True],
        }
    )
    assert trace_quality(records, thinkings) == {
        "arithmetic_right": 0.75,
        "solution_stated": 0.5,
        "smallest_budget": 0.0,
        "largest_budget": 1.0,
        "closed": 1.0,
    }


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 0}, "steps\n.* greater than 0"),
        ({"task": "sudoku"}, "task is 'sudoku'; traces are made for countdown, reasoning_gym/gcd"),
        ({"good_share": 1.5}, "good_share\n.* less than or equal to 1"),
    ],
)
def test_bad_settings_say_what_was_found_and_what_to_do(options, message):
    with pytest.raises(ValueError, match=message):
        WarmStartConfig(**options)


@pytest.mark.slow
def test_a_short_warm_start_learns_the_format_and_goes_on_after_a_cut(tmp_path):
    config = WarmStartConfig(steps=30, batch_size=16, warmup_steps=5)
    folder = warm_start(tmp_path / "a", config, save_steps=10, logging_steps=5, disable_tqdm=True)
    losses = [
        row["loss"]
        for row in pd.read_json(folder / "checkpoint-30/trainer_state.json", typ="series")[
            "log_history"
        ]
        if "loss" in row
    ]
    assert losses[-1] < 0.8 * losses[0]
