"""Warm start: teach a fresh model to search in the open, inefficiently, and to answer when cut.

Reinforcement learning needs a start that thinks at all. The traces are deliberately poor: trials in
random order, repeated, sometimes going on after a success. What is left to learn is the method's
subject: to find the solution early, and to answer well whenever the budget ends.
"""

import hashlib
import random
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import pandas as pd
from datasets import Dataset
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
PRACTICE_SUCCESS = 0.35  # share of trials in practice rows that hit the target
STEP = re.compile(r"(\d+)([-+*/])(\d+)=(\d+)")


@dataclass(frozen=True)
class WarmStartConfig:
    """Everything that decides the warm-started checkpoint.

    Attributes:
        steps: Optimiser steps.
        batch_size: Rows per step, each one cut trace with its summary.
        learning_rate: Peak, reached after `warmup_steps`, then cosine to 0.
        warmup_steps: Linear warm-up.
        seed: Weights, traces and order.
        max_trials: Length limit of a trace.
        go_on: Probability of one more trial after a success, asked again after each.
        closed_share: Share of rows whose thinking ended by itself (where the trace allows).
        practice_share: Share of rows that train only what follows from the rest (results, marks, a
            stated solution). Free choices are noise that hides these from the optimiser: without
            practice, marks were no better than chance after 2,500 steps.
        good_share: Probability that a trial is a solution on purpose, and so is a guess where no
            trial was begun. 0 searches blindly: then reinforcement has nothing to prefer, and
            learned little in 100 updates.
        high: Largest number shown; `numbers`, `ops`, `max_value`, `min_success` as in the task.
        hidden_size: Width of the model.
        layers: Depth of the model.
    """

    steps: int = 5000
    batch_size: int = 64
    learning_rate: float = 2e-3
    warmup_steps: int = 200
    seed: int = 0
    max_trials: int = 10
    go_on: float = 0.4
    closed_share: float = 0.4
    practice_share: float = 0.6
    good_share: float = 0.0
    numbers: int = 3
    high: int = 20
    ops: str = "+-*"
    max_value: int = 99
    min_success: float = 0.08
    hidden_size: int = 128
    layers: int = 4

    def __post_init__(self):
        for name in ("steps", "batch_size", "max_trials", "hidden_size", "layers"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; expected at least 1.")
        for name in ("go_on", "closed_share", "practice_share", "good_share"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is {getattr(self, name)}; expected a share in 0…1.")
        if self.go_on == 1:
            raise ValueError("go_on is 1: no trace would ever end. Set it below 1.")
        if self.hidden_size % 64:
            raise ValueError(
                f"hidden_size is {self.hidden_size}; expected a multiple of 64 (heads of 32)."
            )


def sample_trace(
    problem: Problem, rules: Rules, config: WarmStartConfig, rng: random.Random
) -> tuple[list[Trial], bool]:
    """Random trials on a problem, and whether the trace ended itself after a success."""
    trials: list[Trial] = []
    solved = False
    while len(trials) < config.max_trials:
        good = config.good_share and rng.random() < config.good_share
        trial = solve(problem, rules, rng) if good else sample_trial(problem.numbers, rules, rng)
        if trial is None:
            raise ValueError(f"{problem.question} No trial is possible under {rules}.")
        trials.append(trial)
        solved = solved or trial.value == problem.target
        if solved and rng.random() >= config.go_on:
            return trials, True
    return trials, False


def summary_expression(
    problem: Problem,
    trials: list[Trial],
    tokens: int,
    rules: Rules,
    rng: random.Random,
    good_share: float = 0.0,
) -> str:
    """What to answer after the first `tokens` tokens of a trace.

    The first solution that stands there; else the unfinished trial, completed at random; else a
    random guess, which is a solution with probability `good_share` at least.
    """
    per_trial = STEP_TOKENS * (len(problem.numbers) - 1)
    whole, rest = divmod(tokens, per_trial)
    if rest == per_trial - 1:  # only the mark is missing
        whole, rest = whole + 1, 0
    for trial in trials[:whole]:
        if trial.value == problem.target:
            return trial.expression
    begun = (rest + 3) // STEP_TOKENS  # steps of the unfinished trial whose operands stand there
    if begun == len(problem.numbers) - 1:
        return trials[whole].expression
    start = trials[whole].steps[:begun] if begun else None
    if start is None and good_share and rng.random() < good_share:
        return solve(problem, rules, rng).expression
    trial = sample_trial(problem.numbers, rules, rng, start) or trials[0]  # a dead end
    return trial.expression


@dataclass(frozen=True)
class _Draw:
    question: str
    trace: str
    kept: int | None  # tokens of the trace, or None where the thinking ended itself
    answer: str
    practice: bool  # train only what follows from the rest: results, marks, a stated solution
    solved: bool  # a solution stands in what is kept of the trace


def _draw(problem: Problem, rules: Rules, config: WarmStartConfig, rng: random.Random) -> _Draw:
    shown = Problem(tuple(rng.sample(problem.numbers, config.numbers)), problem.target)
    practice = rng.random() < config.practice_share
    if practice:
        closed = False
        trials = [
            solve(shown, rules, rng)
            if rng.random() < PRACTICE_SUCCESS
            else sample_trial(shown.numbers, rules, rng)
            for _ in range(rng.randint(1, config.max_trials))
        ]
    else:
        trials, closed = sample_trace(shown, rules, config, rng)
    per_trial = STEP_TOKENS * (config.numbers - 1)
    length = len(trials) * per_trial
    closed = closed and rng.random() < config.closed_share
    # Cut anywhere; practice keeps all but a part of the last trial.
    first = length - per_trial + 1 if practice else 1
    kept = length if closed else rng.randint(first, length)
    answer = summary_expression(shown, trials, kept, rules, rng, config.good_share)
    return _Draw(
        question=shown.question,
        trace="".join(trial.text(shown.target) for trial in trials),
        kept=None if closed else kept,
        answer=f"\\boxed{{{answer}}}",
        practice=practice,
        solved=any(t.value == shown.target for t in trials[: (kept + 1) // per_trial]),
    )


def _labels(thinking: list[int], summary: list[int], draw: _Draw) -> tuple[list[int], list[int]]:
    # In practice rows operands and operators are no targets: they were drawn to succeed often,
    # which the model shall not imitate. A guess (no solution stands there) is none either.
    if not draw.practice:
        return thinking, summary
    follows = [t if i % STEP_TOKENS >= 3 else -100 for i, t in enumerate(thinking)]
    return follows, summary if draw.solved else [-100] * len(summary)


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
    rules = Rules(config.ops, config.max_value)
    problems = countdown_problems(
        "train",
        numbers=config.numbers,
        high=config.high,
        rules=rules,
        min_success=config.min_success,
    )
    tokens = resolve_tokens(tokenizer, COUNTDOWN)
    prompt_of = lru_cache(maxsize=None)(
        lambda q: prompt_ids([{"role": "user", "content": q}], tokenizer, COUNTDOWN)
    )
    rng = random.Random(f"warm start {config.seed}")
    left = config.steps * config.batch_size if count is None else count
    while left > 0:  # in blocks: the tokenizer is far quicker on many texts at once
        draws = [_draw(rng.choice(problems), rules, config, rng) for _ in range(min(left, 1000))]
        left -= len(draws)
        thinkings = tokenizer([d.trace for d in draws], add_special_tokens=False)["input_ids"]
        summaries = tokenizer([d.answer for d in draws], add_special_tokens=False)["input_ids"]
        for draw, thinking, summary in zip(draws, thinkings, summaries, strict=True):
            closed = draw.kept is None
            thinking = [*thinking, tokens.close_id] if closed else thinking[: draw.kept]
            summary = [*summary, tokenizer.eos_token_id]
            forced = list(tokens.header_ids if closed else tokens.cut_ids)
            prompt = prompt_of(draw.question)
            think_labels, summary_labels = _labels(thinking, summary, draw)
            yield {
                "input_ids": [*prompt, *thinking, *forced, *summary],
                "labels": [
                    *([-100] * len(prompt)),
                    *think_labels,
                    *([-100] * len(forced)),
                    *summary_labels,
                ],
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
        start = build_model(config.hidden_size, config.layers)
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


def solved_at(thinking: str, answer: str, rules: Rules) -> int | None:
    """Characters of a thinking after which a solution stands there; None if none ever does.

    A line counts when its steps are right, it arrives at the target and it carries the mark.
    """
    target = read_expression(answer).value
    end = 0
    for line in thinking.splitlines(keepends=True):
        end += len(line)
        steps = STEP.findall(line)
        right = all(rules.apply(int(a), op, int(b)) == int(c) for a, op, b, c in steps)
        if steps and right and line.endswith("✓\n") and int(steps[-1][3]) == target:
            return end
    return None


def trace_quality(
    records: pd.DataFrame,
    thinkings: pd.DataFrame,
    rules: Rules = Rules(),  # noqa: B008  (frozen)
) -> dict[str, float]:
    """How good a start is for study, from its evaluation on Countdown problems.

    Args:
        records: One row per summary, as `read_records` gives them.
        thinkings: One row per thinking, as `read_thinkings` gives them.
        rules: The rules the problems were made under.

    Returns:
        Shares: `arithmetic_right` of the steps in all thinkings; `solution_stated` of the summaries
        whose truncated thinking holds a solution; `smallest_budget`, `largest_budget` accuracies;
        `closed` of the thinkings.
    """
    steps = [step for text in thinkings["thinking"] for step in STEP.findall(text)]
    right = [rules.apply(int(a), op, int(b)) == int(c) for a, op, b, c in steps]
    solved = [
        _token_of(solved_at(row.thinking, row.gold, rules), row.token_ends)
        for row in thinkings.itertuples()
    ]
    keys = ["problem_id", "sample"]
    merged = records.astype({"problem_id": str}).merge(
        thinkings[keys].assign(solved=solved), on=keys, validate="many_to_one"
    )
    holds = merged[merged["cut"] >= merged["solved"]]
    by_budget = merged.groupby("budget")["correct"].mean()
    return {
        "arithmetic_right": float(np.mean(right)) if right else float("nan"),
        "solution_stated": float(holds["correct"].mean()),
        "smallest_budget": float(by_budget.iloc[0]),
        "largest_budget": float(by_budget.iloc[-1]),
        "closed": float((thinkings["end"] == "closed").mean()),
    }


def _token_of(character: int | None, token_ends) -> float:
    # tokens that are needed to reach a character; infinite where there is none
    if character is None:
        return float("inf")
    return float(np.searchsorted(token_ends, character) + 1)
