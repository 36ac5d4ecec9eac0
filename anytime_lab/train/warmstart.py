"""Warm start: teach a model to search in the open, inefficiently, and to answer when cut.

Reinforcement learning needs a start that thinks at all. The traces are deliberately poor: trials in
random order, repeated, sometimes going on after a success. What is left to learn is the method's
subject: to find the solution early, and to answer well whenever the budget ends.
"""

import hashlib
import json
import random
import re
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from itertools import accumulate
from math import gcd
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np
import pandas as pd
from datasets import Dataset
from pydantic import Field, PositiveInt
from pydantic.dataclasses import dataclass
from transformers import PreTrainedTokenizerBase, set_seed
from transformers.trainer_utils import get_last_checkpoint
from trl import SFTConfig, SFTTrainer

from anytime_lab.engines.load import build_model, load_model, load_tokenizer
from anytime_lab.prompts import COUNTDOWN, prompt_ids, resolve_tokens
from anytime_lab.tasks import countdown
from anytime_lab.tasks.countdown import Problem, Trial
from anytime_lab.tasks.gym import load_gym
from anytime_lab.verify.countdown import read_expression

STEP_TOKENS = 6  # `7`, `-`, `6`, `=`, `1` and the separator or mark
TRIAL_TOKENS = 2 * STEP_TOKENS  # of three numbers
PRACTICE_SUCCESS = 0.35  # share of trials in practice rows that hit the target
MAX_TRIALS = 10  # of a trace
GO_ON = 0.4  # probability of one more trial after a success, asked again after each
CLOSED_SHARE = 0.4  # of the rows whose trace ended itself, those that show it
STEP = re.compile(r"(\d+)([-+*/])(\d+)=(\d+)")
TOKEN = re.compile(r"\d+|\S")
RULES = countdown.Rules()
GCD_OPTIONS = {"min_value": 2, "max_value": 99}  # of reasoning_gym/gcd: every number is a token
SMALL = 12  # half of the divisors that are tried are at most this


@dataclass(frozen=True)
class WarmStartConfig:
    """What decides the warm-started checkpoint.

    Attributes:
        task: One of `SEARCHES`.
        steps: Optimiser steps.
        batch_size: Rows per step, each one cut trace with its summary.
        learning_rate: Peak, reached after `warmup_steps`, then cosine to 0.
        warmup_steps: Linear warm-up.
        seed: Weights, traces and order.
        practice_share: Share of rows that train only what follows from the rest (results, marks, a
            stated solution). Free choices are noise that hides these from the optimiser: without
            practice, marks were no better than chance after 2,500 steps.
        good_share: Probability that a trial is a solution on purpose, and so is a guess where no
            trial was begun. 0 searches blindly: then reinforcement has nothing to prefer, and
            learned little in 100 updates.
    """

    task: str = "countdown"
    steps: PositiveInt = 5000
    batch_size: PositiveInt = 64
    learning_rate: float = 2e-3
    warmup_steps: int = 200
    seed: int = 0
    practice_share: Annotated[float, Field(ge=0, le=1)] = 0.6
    good_share: Annotated[float, Field(ge=0, le=1)] = 0.0

    def __post_init__(self):
        if self.task not in SEARCHES:
            raise ValueError(f"task is {self.task!r}; traces are made for {', '.join(SEARCHES)}.")


# --- Countdown -----------------------------------------------------------------------------------


def summary_expression(
    problem: Problem, trials: list[Trial], tokens: int, rng: random.Random, good_share: float = 0.0
) -> str:
    """What to answer after the first `tokens` tokens of a trace.

    The first solution that stands there; else the unfinished trial, completed at random; else a
    random guess, which is a solution with probability `good_share` at least.
    """
    whole = whole_trials(trials, tokens)
    for trial in whole:
        if trial.value == problem.target:
            return trial.expression
    rest = max(0, tokens - TRIAL_TOKENS * len(whole))
    begun = (rest + 3) // STEP_TOKENS  # steps of the unfinished trial whose operands stand there
    if begun == len(problem.numbers) - 1:
        return trials[len(whole)].expression
    start = trials[len(whole)].steps[:begun] if begun else None
    if start is None and good_share and rng.random() < good_share:
        return countdown.solve(problem, RULES, rng).expression
    trial = countdown.sample_trial(problem.numbers, RULES, rng, start) or trials[0]  # a dead end
    return trial.expression


# --- greatest common divisor ---------------------------------------------------------------------


class Pair(NamedTuple):
    """Two numbers whose greatest common divisor is asked for."""

    numbers: tuple[int, int]
    question: str

    @property
    def target(self) -> int:
        """The greatest common divisor."""
        return gcd(*self.numbers)


class Division(NamedTuple):
    """A trial: does `value` divide both numbers?"""

    numbers: tuple[int, int]
    value: int

    def text(self, target: int = 0) -> str:
        """The trial as a line: `26/2=13, 88/2=44 ✓`, `26/13=2, 88/13 ✗` or `26/3 ✗`."""
        said = ""
        for number in self.numbers:
            said += f"{', ' if said else ''}{number}/{self.value}"
            if number % self.value:
                return f"{said} ✗\n"
            said += f"={number // self.value}"
        return f"{said} ✓\n"


def gcd_pairs(count: int = 3000) -> list[Pair]:
    """Problems of reasoning-gym's `gcd`, training split."""
    asked = load_gym("gcd", count, "train", **GCD_OPTIONS)["question"]
    return [Pair(tuple(map(int, re.findall(r"\d+", said))), said) for said in asked]


def try_divisor(pair: Pair, good: bool, rng: random.Random) -> Division:
    """A divisor to try: the greatest common one, or a random one, more often a small one."""
    limit = min(pair.numbers)
    value = rng.randint(2, max(2, min(limit, SMALL) if rng.random() < 0.5 else limit))
    return Division(pair.numbers, pair.target if good and pair.target > 1 else value)


def greatest_found(
    pair: Pair, trials: Sequence[Division], tokens: int, rng: random.Random, good_share: float = 0.0
) -> str:
    """What to answer after the first `tokens` tokens: the greatest divisor that stands there.

    Without any: 1, or the right one with probability `good_share`.
    """
    whole = whole_trials(trials, tokens)
    found = max((t.value for t in whole if pair.target % t.value == 0), default=1)
    if found == 1 and good_share and rng.random() < good_share:
        return str(pair.target)
    return str(found)


# --- any task ------------------------------------------------------------------------------------


class Search(NamedTuple):
    """How a task is searched in the open."""

    problems: Callable[[], Sequence[Any]]
    shown: Callable[[Any, random.Random], Any]  # a problem as it is asked
    attempt: Callable[[Any, bool, random.Random], Any]  # problem, a good one? → trial
    chosen: Callable[[int], bool]  # place of a token in a trial → whether it is a free choice
    answer: Callable[..., str]  # problem, trials, tokens kept, rng, good_share → answer
    goal: Callable[[str], int]  # gold → what a trial must arrive at
    arrived: Callable[[list[tuple[str, str, str, str]]], int]  # a trial's steps → where it does


SEARCHES = {
    "countdown": Search(
        problems=lambda: countdown.countdown_problems("train", min_success=0.08),
        shown=lambda problem, rng: Problem(tuple(rng.sample(problem.numbers, 3)), problem.target),
        attempt=lambda problem, good, rng: (
            countdown.solve(problem, RULES, rng)
            if good
            else countdown.sample_trial(problem.numbers, RULES, rng)
        ),
        chosen=lambda place: place % STEP_TOKENS < 3,
        answer=summary_expression,
        goal=lambda gold: read_expression(gold).value,
        arrived=lambda steps: int(steps[-1][3]),
    ),
    "reasoning_gym/gcd": Search(
        problems=gcd_pairs,
        shown=lambda pair, rng: pair,
        attempt=try_divisor,
        chosen=lambda place: place == 2,  # the divisor, where it stands first
        answer=greatest_found,
        goal=lambda gold: int(json.loads(gold)["answer"]),
        arrived=lambda steps: int(steps[-1][2]),
    ),
}


def trial_tokens(trial: Any) -> int:
    """Tokens of a trial's line: numbers, signs, and the mark with its newline."""
    return len(TOKEN.findall(trial.text(0)))


def whole_trials(trials: Sequence[Any], tokens: int) -> list[Any]:
    """The trials that stand whole in so many tokens of a trace; the last mark may be missing."""
    ends = accumulate(map(trial_tokens, trials))
    return [trial for trial, end in zip(trials, ends, strict=True) if end <= tokens + 1]


def sample_trace(
    problem: Any, good_share: float, rng: random.Random, search: Search = SEARCHES["countdown"]
) -> tuple[list[Any], bool]:
    """Random trials on a problem, and whether the trace ended itself after a success."""
    trials: list[Any] = []
    solved = False
    while len(trials) < MAX_TRIALS:
        good = bool(good_share) and rng.random() < good_share
        trials.append(search.attempt(problem, good, rng))
        solved = solved or trials[-1].value == problem.target
        if solved and rng.random() >= GO_ON:
            return trials, True
    return trials, False


class _Draw(NamedTuple):
    question: str
    trace: str
    kept: int | None  # tokens of the trace, or None where the thinking ended itself
    answer: str
    # What is a target: of each token of the trace, and of the answer. Practice trains only what
    # follows from the rest (results, marks, a stated solution): free choices were drawn to succeed
    # often, which the model shall not imitate, and a guess is none either.
    trained: list[bool]
    states: bool


def _draw(problem: Any, config: WarmStartConfig, rng: random.Random) -> _Draw:
    search = SEARCHES[config.task]
    shown = search.shown(problem, rng)
    practice = rng.random() < config.practice_share
    if practice:
        closed, count = False, rng.randint(1, MAX_TRIALS)
        trials = [search.attempt(shown, rng.random() < PRACTICE_SUCCESS, rng) for _ in range(count)]
    else:
        trials, closed = sample_trace(shown, config.good_share, rng, search)
    sizes = [*map(trial_tokens, trials)]
    closed = closed and rng.random() < CLOSED_SHARE
    # Cut anywhere; practice keeps all but a part of the last trial.
    total = sum(sizes)
    kept = total if closed else rng.randint(total - sizes[-1] + 1 if practice else 1, total)
    solved = any(trial.value == shown.target for trial in whole_trials(trials, kept))
    return _Draw(
        question=shown.question,
        trace="".join(trial.text(shown.target) for trial in trials),
        kept=None if closed else kept,
        answer=f"\\boxed{{{search.answer(shown, trials, kept, rng, config.good_share)}}}",
        trained=[not (practice and search.chosen(n)) for size in sizes for n in range(size)],
        states=solved or not practice,
    )


def warm_start_rows(
    tokenizer: PreTrainedTokenizerBase, config: WarmStartConfig, count: int | None = None
) -> Iterator[dict[str, list[int]]]:
    """Training rows `input_ids`, `labels`: prompt and forced text are not targets (-100).

    Two kinds: traces to imitate, and practice in computing, checking and stating (see
    `WarmStartConfig.practice_share`).

    Args:
        tokenizer: The embedded tokenizer.
        config: What to generate.
        count: Rows; by default `steps * batch_size`.
    """
    problems = SEARCHES[config.task].problems()
    tokens = resolve_tokens(tokenizer, COUNTDOWN)
    prompt_of = cache(lambda q: prompt_ids([{"role": "user", "content": q}], tokenizer, COUNTDOWN))
    rng = random.Random(f"warm start {config.seed}")
    count = config.steps * config.batch_size if count is None else count
    for start in range(0, count, 1000):  # the tokenizer is far quicker on many texts at once
        size = min(count - start, 1000)
        draws = [_draw(rng.choice(problems), config, rng) for _ in range(size)]
        thinkings = tokenizer([d.trace for d in draws], add_special_tokens=False)["input_ids"]
        summaries = tokenizer([d.answer for d in draws], add_special_tokens=False)["input_ids"]
        for draw, thinking, summary in zip(draws, thinkings, summaries, strict=True):
            closed = draw.kept is None
            ends = [tokens.close_id] if closed else []
            forced = tokens.header_ids if closed else tokens.cut_ids
            parts = [
                *((token, False) for token in prompt_of(draw.question)),
                *zip(thinking[: draw.kept], draw.trained, strict=False),
                *((token, True) for token in ends),
                *((token, False) for token in forced),
                *((token, draw.states) for token in (*summary, tokenizer.eos_token_id)),
            ]
            yield {
                "input_ids": [token for token, _ in parts],
                "labels": [token if trained else -100 for token, trained in parts],
            }


def warm_start(
    output_dir: str | Path,
    config: WarmStartConfig,
    model: str | Path | None = None,
    **sft_options,
) -> Path:
    """Train the embedded model with TRL's `SFTTrainer`.

    Args:
        output_dir: Gets checkpoints while training and the model at the end. A run that was cut
            goes on from its last checkpoint.
        config: Task, traces and schedule.
        model: Name or folder of the model to go on from; None begins with random weights.
        **sft_options: Further `SFTConfig` options, such as `report_to`.

    Returns:
        `output_dir`, loadable by `from_pretrained`.
    """
    output_dir = Path(output_dir)
    output_dir.mkdir(parents=True, exist_ok=True)
    tokenizer = load_tokenizer("embedded")
    set_seed(config.seed)
    start = build_model() if model is None else load_model(str(model))
    rows = Dataset.from_generator(
        lambda: warm_start_rows(tokenizer, config),
        cache_dir=str(output_dir / "cache"),
        fingerprint="warmstart-" + hashlib.sha256(repr(config).encode()).hexdigest()[:16],
    )
    options = {
        "max_steps": config.steps,
        "per_device_train_batch_size": config.batch_size,
        "learning_rate": config.learning_rate,
        "lr_scheduler_type": "cosine",
        "warmup_steps": config.warmup_steps,
        "adam_beta2": 0.98,
        "weight_decay": 0.01,
        "train_sampling_strategy": "group_by_length",
        "logging_steps": 50,
        "save_total_limit": 1,
        "bf16": False,
        "gradient_checkpointing": False,
        "report_to": "none",
        "seed": config.seed,
        "dataloader_pin_memory": False,
        **sft_options,
    }
    trainer = SFTTrainer(
        model=start,
        args=SFTConfig(output_dir=str(output_dir), **options),
        train_dataset=rows,
        processing_class=tokenizer,
    )
    trainer.train(resume_from_checkpoint=get_last_checkpoint(str(output_dir)))
    trainer.save_model(str(output_dir))
    return output_dir


def solved_at(thinking: str, answer: str, task: str = "countdown") -> int | None:
    """Characters of a thinking after which a solution stands there; None if none ever does.

    A line counts when its steps are right, it arrives at the target and it carries the mark.
    """
    search = SEARCHES[task]
    target = search.goal(answer)
    end = 0
    for line in thinking.splitlines(keepends=True):
        end += len(line)
        steps = STEP.findall(line) if line.endswith("✓\n") else []
        if steps and all(map(_is_right, steps)) and search.arrived(steps) == target:
            return end
    return None


def _is_right(step: tuple[str, str, str, str]) -> bool:
    first, operator, second, result = step
    return RULES.apply(int(first), operator, int(second)) == int(result)


def trace_quality(
    records: pd.DataFrame, thinkings: pd.DataFrame, task: str = "countdown"
) -> dict[str, float]:
    """How good a start is for study, from its evaluation.

    Args:
        records: One row per summary, as `read_records` gives them.
        thinkings: One row per thinking, as `read_thinkings` gives them.
        task: Whose problems these are; one of `SEARCHES`.

    Returns:
        Shares: `arithmetic_right` of the steps in all thinkings; `solution_stated` of the summaries
        whose truncated thinking holds a solution; `smallest_budget`, `largest_budget` accuracies;
        `closed` of the thinkings.
    """
    steps = thinkings["thinking"].str.findall(STEP).explode().dropna()
    solved = [
        np.inf if (at := solved_at(row.thinking, row.gold, task)) is None
        else np.searchsorted(row.token_ends, at) + 1.0  # tokens that it takes to get there
        for row in thinkings.itertuples()
    ]  # fmt: skip
    keys = ["problem_id", "sample"]
    merged = records.astype({"problem_id": str}).merge(
        thinkings[keys].assign(solved=solved), on=keys, validate="many_to_one"
    )
    by_budget = merged.groupby("budget")["correct"].mean()
    return {
        "arithmetic_right": float(steps.map(_is_right).mean()),
        "solution_stated": float(merged["correct"][merged["cut"] >= merged["solved"]].mean()),
        "smallest_budget": float(by_budget.iloc[0]),
        "largest_budget": float(by_budget.iloc[-1]),
        "closed": float((thinkings["end"] == "closed").mean()),
    }
