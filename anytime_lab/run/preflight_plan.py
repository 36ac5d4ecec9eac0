"""What a run is to be, as the estimate needs it: model, data, settings, hardware, what was seen."""

import math
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import psutil
import torch
from transformers import AutoConfig, PretrainedConfig, PreTrainedTokenizerBase

from anytime_lab.engines.models import load_tokenizer, model_path
from anytime_lab.prompts import detect_format, prompt_ids, resolve_tokens
from anytime_lab.run.costs import (
    DEVICES,
    Hardware,
    Memory,
    ModelSize,
    TreeShape,
    checkpoint_bytes,
    memory,
)
from anytime_lab.store.records import read_records
from anytime_lab.train.config import BRPOConfig

HEADROOM = 0.9  # of a device's memory: fragments, buffers of communication, the context
BYTES_PER_TREE = 3  # of a packed token in saved rollouts and records, compressed


@dataclass(frozen=True)
class Observed:
    """What records say about a model on these problems.

    Attributes:
        lengths: Tokens of each thinking.
        finished: Share of thinkings that ended before the largest budget.
        summary: Mean sampled tokens of a summary.
        flat: Share of prompts whose group is expected to have one score only; None if unknown.
        exact: Whether `flat` was counted on groups, not told from fewer samples than a group has.
    """

    lengths: tuple[int, ...]
    finished: float
    summary: float
    flat: float | None
    exact: bool


def observe(folder: str | Path, largest: int, group: int) -> Observed:
    """Read an evaluation, whole or partial.

    Args:
        folder: Its run folder.
        largest: The largest budget of the run that is planned; longer thinkings are cut there.
        group: Thinkings per prompt of that run.

    Raises:
        ValueError: it was made at a smaller largest budget, so that it cannot tell.
    """
    records = read_records(folder, allow_partial=True)
    seen = int(records.budget.max())
    if seen < largest:
        raise ValueError(
            f"the records in {folder} stop at {seen} tokens, and the largest budget is {largest}. "
            f"Evaluate with budgets up to {largest}, or plan without records."
        )
    one = records.drop_duplicates(["problem_id", "sample"])
    early = (one.thinking_end != "length") & (one.thinking_tokens < largest)
    at = records[records.budget == records.budget[records.budget >= largest].min()]
    right = at.groupby(["problem_id", "sample"], observed=True).score.mean().dropna()
    flat, exact = _flat_share(right, group)
    lengths = one.thinking_tokens.clip(upper=largest)
    return Observed(
        tuple(map(int, lengths)), float(early.mean()), float(records.summary_tokens.mean()),
        flat, exact,
    )  # fmt: skip


def _flat_share(scores: pd.Series, group: int) -> tuple[float | None, bool]:
    """Expected share of prompts whose `group` scores at the largest budget are all equal."""
    shares, exact = [], True
    for _, own in scores.groupby(level=0, observed=True):
        counts, n = own.value_counts().tolist(), len(own)
        if n >= group:  # over all ways to take a group out of the samples
            shares.append(sum(math.comb(c, group) for c in counts) / math.comb(n, group))
        else:
            shares.append(sum((c / n) ** group for c in counts))
            exact = False
    return (sum(shares) / len(shares) if shares else None), exact


@dataclass(frozen=True)
class Plan:
    """All that the estimate needs; `replace` a field to ask what if."""

    size: ModelSize
    config: BRPOConfig
    hardware: Hardware
    prompts: tuple[int, ...]  # tokens of the sampled prompts
    problems: int  # in the whole dataset
    forced: int
    observed: Observed | None
    sharding: str
    trainable: int | None
    weight_width: int
    disk_free: float
    rows: int
    rollout_rows: int
    checkpointing: bool

    @property
    def trees(self) -> int:
        """Of a generation, on all devices."""
        args = self.config
        rows = args.per_device_train_batch_size * args.steps_per_generation
        return rows * self.hardware.devices

    @property
    def steps(self) -> int:
        """Optimiser steps in all."""
        args = self.config
        if args.max_steps > 0:
            return args.max_steps
        generations = self.problems * args.num_generations // self.trees * args.num_train_epochs
        return max(1, int(generations * self.updates))

    @property
    def updates(self) -> float:
        """Optimiser steps of a generation."""
        args = self.config
        return args.steps_per_generation * args.num_iterations / args.gradient_accumulation_steps

    def shape(self, longest: bool = False) -> TreeShape:
        """Mean or longest tree."""
        args, new = self.config, self.config.max_summary_tokens - self.forced
        largest = args.budgets[-1]
        if longest or self.observed is None:
            lengths, summary = [largest], float(new)
        else:
            lengths, summary = self.observed.lengths, min(self.observed.summary, new)
        mean = sum(lengths) / len(lengths)
        cuts = tuple(sum(min(b, n) for n in lengths) / len(lengths) for b in args.budgets)
        prompt = max(self.prompts) if longest else sum(self.prompts) / len(self.prompts)
        return TreeShape(prompt, mean, cuts, args.num_summaries, self.forced, summary)

    @property
    def memory(self) -> Memory:
        """Of the longest trees on one device."""
        reference = self.config.beta > 0 and self.trainable is None
        return memory(
            self.size, self.shape(longest=True), rows=self.rows, rollout_rows=self.rollout_rows,
            weight_width=self.weight_width, compute_width=2 if self.half else self.weight_width,
            trainable=self.trainable, reference=reference, checkpointing=self.checkpointing,
            sharding=self.sharding, devices=self.hardware.devices,
        )  # fmt: skip

    @property
    def half(self) -> bool:
        """Whether activations take two bytes."""
        return bool(self.config.bf16 or self.config.fp16) or self.weight_width == 2

    @property
    def fits(self) -> bool:
        """Whether the longest trees fit a device."""
        return self.memory.total <= HEADROOM * self.hardware.memory

    @property
    def disk(self) -> float:
        """Bytes of checkpoints, the final model and rollouts."""
        args, one = self.config, checkpoint_bytes(self.size, self.weight_width, self.trainable)
        saves = 0 if args.save_strategy == "no" else self.steps // max(1, int(args.save_steps))
        kept = min(saves, args.save_total_limit) + 1 if args.save_total_limit else saves
        final = self.weight_width * (self.trainable or self.size.parameters)
        rollouts = BYTES_PER_TREE * self.shape().packed * self.trees * self.steps / self.updates
        return kept * one + final + rollouts


def make_plan(
    model: str | PretrainedConfig,
    config: BRPOConfig,
    prompts: Sequence[Any],
    hardware: Hardware,
    *,
    tokenizer: PreTrainedTokenizerBase | None = None,
    records: str | Path | None = None,
    sharding: str = "none",
    trainable: int | None = None,
    weight_dtype: str = "bfloat16",
    problems: int | None = None,
) -> Plan:
    """Gather what the estimate needs.

    Args:
        model: Name or folder, or a configuration (then with `tokenizer`).
        config: Of the run; per-device numbers as on each of the devices.
        prompts: A sample of the dataset's prompts.
        hardware: Devices that share the run.
        tokenizer: Of the model; by default loaded by its name.
        records: Run folder of an evaluation of this model on such problems.
        sharding: `none`, `zero2` or `zero3` (FSDP that reshards is `zero3`).
        trainable: Trained parameters of an adapter; None trains all.
        weight_dtype: Of the stored weights.
        problems: In the whole dataset; by default as many as `prompts`.
    """
    if not prompts:
        raise ValueError("prompts is empty; give a sample of the dataset's prompts.")
    tokenizer = tokenizer or load_tokenizer(str(model))
    model_config = model if not isinstance(model, str) else AutoConfig.from_pretrained(
        model_path(model))  # fmt: skip
    fmt = detect_format(tokenizer)
    tokens = resolve_tokens(tokenizer, fmt)
    lengths = tuple(
        len(prompt_ids(p, tokenizer, fmt, config.chat_template_kwargs or {})) for p in prompts
    )
    rows = config.per_device_train_batch_size
    trees = rows * config.steps_per_generation
    folder = Path(config.output_dir).absolute()
    existing = next(p for p in (folder, *folder.parents) if p.exists())
    return Plan(
        size=ModelSize.of(model_config),
        config=config,
        hardware=hardware,
        prompts=lengths,
        problems=problems or len(prompts),
        forced=max(len(tokens.cut_ids), len(tokens.header_ids)),
        observed=observe(records, config.budgets[-1], config.num_generations) if records else None,
        sharding=sharding,
        trainable=trainable,
        weight_width=torch.empty(0, dtype=getattr(torch, weight_dtype)).element_size(),
        disk_free=shutil.disk_usage(existing).free,
        rows=rows,
        rollout_rows=config.rollout_batch_size or trees,
        checkpointing=bool(config.gradient_checkpointing),
    )


def this_machine(devices: int | None = None) -> Hardware:
    """The devices here; without CUDA the processor, its speed taken from a short product."""
    if torch.cuda.is_available():
        about = torch.cuda.get_device_properties(0)
        known = next((v for k, v in DEVICES.items() if k in about.name.lower()), DEVICES["a100"])
        count = devices or torch.cuda.device_count()
        return Hardware(about.name, count, about.total_memory, known[1], known[2])
    square = torch.rand(512, 512)
    square @ square
    start = time.perf_counter()
    for _ in range(10):
        square @ square
    speed = 10 * 2 * 512**3 / (time.perf_counter() - start)
    count = devices or 1
    return Hardware("processor", count, psutil.virtual_memory().available / count, speed, 1e10)
