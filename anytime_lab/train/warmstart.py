"""Warm start: teach a fresh model to search in the open, inefficiently, and to answer when cut.

Reinforcement learning needs a start that thinks at all. The traces are deliberately poor: trials in
random order, repeated, sometimes going on after a success. What is left to learn is the method's
subject: to find the solution early, and to answer well whenever the budget ends.
"""

import hashlib
import random
import re
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Annotated, NamedTuple

import numpy as np
import pandas as pd
from datasets import Dataset
from pydantic import Field, PositiveInt
from pydantic.dataclasses import dataclass
from transformers import PreTrainedTokenizerBase, Qwen3ForCausalLM, set_seed
from transformers.trainer_utils import get_last_checkpoint
from trl import SFTConfig, SFTTrainer

from anytime_lab.engines.load import build_model, load_tokenizer
from anytime_lab.prompts import COUNTDOWN, prompt_ids, resolve_tokens
from anytime_lab.tasks.countdown import (
    Problem,
    Rules,
    Trial,
    countdown_problems,
    sample_trial,
    solve,
)
from anytime_lab.verify.countdown import read_expression

STEP_TOKENS = 6  # `7`, `-`, `6`, `=`, `1` and the separator or mark
TRIAL_TOKENS = 2 * STEP_TOKENS  # of three numbers
PRACTICE_SUCCESS = 0.35  # share of trials in practice rows that hit the target
MAX_TRIALS = 10  # of a trace
GO_ON = 0.4  # probability of one more trial after a success, asked again after each
CLOSED_SHARE = 0.4  # of the rows whose trace ended itself, those that show it
STEP = re.compile(r"(\d+)([-+*/])(\d+)=(\d+)")
RULES = Rules()  # of the task


@dataclass(frozen=True)
class WarmStartConfig:
    """What decides the warm-started checkpoint.

    Attributes:
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

    steps: PositiveInt = 5000
    batch_size: PositiveInt = 64
    learning_rate: float = 2e-3
    warmup_steps: int = 200
    seed: int = 0
    practice_share: Annotated[float, Field(ge=0, le=1)] = 0.6
    good_share: Annotated[float, Field(ge=0, le=1)] = 0.0


def sample_trace(
    problem: Problem, good_share: float, rng: random.Random
) -> tuple[list[Trial], bool]:
    """Random trials on a problem, and whether the trace ended itself after a success."""
    trials: list[Trial] = []
    solved = False
    while len(trials) < MAX_TRIALS:
        good = good_share and rng.random() < good_share
        trial = solve(problem, RULES, rng) if good else sample_trial(problem.numbers, RULES, rng)
        if trial is None:
            raise ValueError(f"{problem.question} No trial is possible under {RULES}.")
        trials.append(trial)
        solved = solved or trial.value == problem.target
        if solved and rng.random() >= GO_ON:
            return trials, True
    return trials, False


def summary_expression(
    problem: Problem, trials: list[Trial], tokens: int, rng: random.Random, good_share: float = 0.0
) -> str:
    """What to answer after the first `tokens` tokens of a trace.

    The first solution that stands there; else the unfinished trial, completed at random; else a
    random guess, which is a solution with probability `good_share` at least.
    """
    whole, rest = divmod(tokens, TRIAL_TOKENS)
    if rest == TRIAL_TOKENS - 1:  # only the mark is missing
        whole, rest = whole + 1, 0
    for trial in trials[:whole]:
        if trial.value == problem.target:
            return trial.expression
    begun = (rest + 3) // STEP_TOKENS  # steps of the unfinished trial whose operands stand there
    if begun == len(problem.numbers) - 1:
        return trials[whole].expression
    start = trials[whole].steps[:begun] if begun else None
    if start is None and good_share and rng.random() < good_share:
        return solve(problem, RULES, rng).expression
    trial = sample_trial(problem.numbers, RULES, rng, start) or trials[0]  # a dead end
    return trial.expression


class _Draw(NamedTuple):
    question: str
    trace: str
    kept: int | None  # tokens of the trace, or None where the thinking ended itself
    answer: str
    practice: bool  # train only what follows from the rest: results, marks, a stated solution
    solved: bool  # a solution stands in what is kept of the trace


def _draw(problem: Problem, config: WarmStartConfig, rng: random.Random) -> _Draw:
    shown = Problem(tuple(rng.sample(problem.numbers, 3)), problem.target)
    practice = rng.random() < config.practice_share
    if practice:
        closed = False
        trials = [
            solve(shown, RULES, rng)
            if rng.random() < PRACTICE_SUCCESS
            else sample_trial(shown.numbers, RULES, rng)
            for _ in range(rng.randint(1, MAX_TRIALS))
        ]
    else:
        trials, closed = sample_trace(shown, config.good_share, rng)
    length = len(trials) * TRIAL_TOKENS
    closed = closed and rng.random() < CLOSED_SHARE
    # Cut anywhere; practice keeps all but a part of the last trial.
    first = length - TRIAL_TOKENS + 1 if practice else 1
    kept = length if closed else rng.randint(first, length)
    return _Draw(
        question=shown.question,
        trace="".join(trial.text(shown.target) for trial in trials),
        kept=None if closed else kept,
        answer=f"\\boxed{{{summary_expression(shown, trials, kept, rng, config.good_share)}}}",
        practice=practice,
        solved=any(t.value == shown.target for t in trials[: (kept + 1) // TRIAL_TOKENS]),
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
    problems = countdown_problems("train", min_success=0.08)
    tokens = resolve_tokens(tokenizer, COUNTDOWN)
    prompt_of = lru_cache(maxsize=None)(
        lambda q: prompt_ids([{"role": "user", "content": q}], tokenizer, COUNTDOWN)
    )
    rng = random.Random(f"warm start {config.seed}")
    left = config.steps * config.batch_size if count is None else count
    while left > 0:  # in blocks: the tokenizer is far quicker on many texts at once
        draws = [_draw(rng.choice(problems), config, rng) for _ in range(min(left, 1000))]
        left -= len(draws)
        thinkings = tokenizer([d.trace for d in draws], add_special_tokens=False)["input_ids"]
        summaries = tokenizer([d.answer for d in draws], add_special_tokens=False)["input_ids"]
        for draw, thinking, summary in zip(draws, thinkings, summaries, strict=True):
            closed = draw.kept is None
            thinking = [*thinking, tokens.close_id] if closed else thinking[: draw.kept]
            summary = [*summary, tokenizer.eos_token_id]
            forced = list(tokens.header_ids if closed else tokens.cut_ids)
            prompt = prompt_of(draw.question)
            sampled = [*thinking, *forced, *summary]
            labels = [*thinking, *([-100] * len(forced)), *summary]
            if draw.practice:
                # Operands and operators are no targets: they were drawn to succeed often, which the
                # model shall not imitate. A guess (no solution stands there) is none either.
                for place in range(len(labels)):
                    drawn = place % STEP_TOKENS < 3 if place < len(thinking) else not draw.solved
                    labels[place] = -100 if drawn else labels[place]
            yield {
                "input_ids": [*prompt, *sampled],
                "labels": [*([-100] * len(prompt)), *labels],
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
        model: Folder of the model to go on from; None begins with random weights.
        **sft_options: Further `SFTConfig` options, such as `report_to`.

    Returns:
        `output_dir`, loadable by `from_pretrained`.
    """
    output_dir = Path(output_dir)
    output_dir.mkdir(parents=True, exist_ok=True)
    tokenizer = load_tokenizer("embedded")
    set_seed(config.seed)
    if model is None:
        start = build_model()
    else:
        start = Qwen3ForCausalLM.from_pretrained(model, dtype="float32")
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
        "save_steps": 500,
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


def solved_at(thinking: str, answer: str) -> int | None:
    """Characters of a thinking after which a solution stands there; None if none ever does.

    A line counts when its steps are right, it arrives at the target and it carries the mark.
    """
    target = read_expression(answer).value
    end = 0
    for line in thinking.splitlines(keepends=True):
        end += len(line)
        steps = STEP.findall(line)
        marked = steps and line.endswith("✓\n")
        if marked and all(map(_is_right, steps)) and int(steps[-1][3]) == target:
            return end
    return None


def _is_right(step: tuple[str, str, str, str]) -> bool:
    first, operator, second, result = step
    return RULES.apply(int(first), operator, int(second)) == int(result)


def trace_quality(records: pd.DataFrame, thinkings: pd.DataFrame) -> dict[str, float]:
    """How good a start is for study, from its evaluation on Countdown problems.

    Args:
        records: One row per summary, as `read_records` gives them.
        thinkings: One row per thinking, as `read_thinkings` gives them.

    Returns:
        Shares: `arithmetic_right` of the steps in all thinkings; `solution_stated` of the summaries
        whose truncated thinking holds a solution; `smallest_budget`, `largest_budget` accuracies;
        `closed` of the thinkings.
    """
    steps = thinkings["thinking"].str.findall(STEP).explode().dropna()
    solved = [
        np.inf if (at := solved_at(row.thinking, row.gold)) is None
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
