"""Before hours are spent: what a training takes and makes, and whether it fits.

No weights are loaded: a model's configuration is enough. What only sampling can tell (how long
thinkings are, how many prompts teach nothing) is read from the records of an evaluation, where one
is given.
"""

import math
import shutil
import sys
from argparse import Namespace
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import NamedTuple

import psutil
import torch
from rich.console import Console
from rich.table import Table
from scipy.special import comb
from torch.utils.benchmark import Timer
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig

from anytime_lab.engines.load import adapter_base, load_tokenizer, model_path
from anytime_lab.prompts import prompt_ids, resolve_tokens
from anytime_lab.read.curves import least_difference
from anytime_lab.store.records import read_records
from anytime_lab.tasks.problems import load_task
from anytime_lab.train.config import BRPOConfig, train_config

HEADROOM = 0.9  # of a device's memory: fragments, buffers of communication, the context
BYTES_PER_TREE = 3  # of a packed token in saved rollouts and records, compressed
# Share of a device's FLOP/s that training reaches, as is usual for a few billion parameters
UTILISATION = 0.35
PROMPTS = 64  # whose lengths are measured
GIB = 2**30


class Hardware(NamedTuple):
    """One device, as its data sheet has it, and how many of them there are."""

    name: str  # for the report
    devices: int  # processes, one device each
    memory: float  # bytes of one device
    flops: float  # dense bf16 FLOP/s of one device
    bandwidth: float  # bytes/s of its memory


# Memory, dense bf16 FLOP/s, bytes/s: the makers' data sheets.
DEVICES = {
    "h200": (141e9, 989e12, 4.8e12),
    "h100": (80e9, 989e12, 3.35e12),
    "a100": (80e9, 312e12, 2.0e12),
    "a100-40g": (40e9, 312e12, 1.55e12),
    "l40s": (48e9, 362e12, 0.86e12),
    "rtx4090": (24e9, 165e12, 1.0e12),
}


class ModelSize(NamedTuple):
    """What of a model decides its costs."""

    parameters: int
    body: int  # of the blocks' matrices: each token goes through all of them
    q: int  # width of the queries over all heads
    kv: int  # and of the keys
    text: PretrainedConfig  # of the language model

    @classmethod
    def of(cls, config: PretrainedConfig) -> "ModelSize":
        """Count the parameters of a model without its weights."""
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config)
        text = config.get_text_config()
        outside = [model.get_input_embeddings(), model.get_output_embeddings()]
        embeddings = {id(p) for module in outside if module for p in module.parameters()}
        matrices = [p for p in model.parameters() if p.ndim > 1 and id(p) not in embeddings]
        heads = text.num_attention_heads
        head_size = getattr(text, "head_dim", None) or text.hidden_size // heads
        key_heads = getattr(text, "num_key_value_heads", None) or heads
        return cls(
            sum(p.numel() for p in model.parameters()),
            sum(p.numel() for p in matrices),
            heads * head_size,
            key_heads * head_size,
            text,
        )


class Costs(NamedTuple):
    """A rollout tree, and what its packed row takes of a model."""

    prompt: float  # tokens
    thinking: float
    summary: float  # sampled tokens of each
    trained: float  # sampled tokens, which are also those that are trained and scored
    packed: float  # tokens of the row: prompt, thinking, leaves
    update: float  # FLOPs of a forward and a backward pass
    rollout: float  # FLOPs of sampling: each token once, the leaves on the trunk's cache
    activations: float  # bytes kept for the backward pass (SDPA, gated MLP, RMSNorm)
    cached: float  # bytes of keys and values of a token
    width: int  # bytes of an activation


class Observed(NamedTuple):
    """What records say about a model on these problems."""

    lengths: tuple[int, ...]  # tokens of each thinking
    finished: float  # share of thinkings that ended before the largest budget
    summary: float  # mean sampled tokens of a summary
    # Share of prompts whose group is expected to have one score only; NaN if nothing is graded
    flat: float
    # Whether `flat` was counted on groups, not told from fewer samples than a group has
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
    scores = at.groupby(["problem_id", "sample"], observed=True).score.mean().dropna()
    counts = scores.groupby(level=0, observed=True).value_counts()  # of each score of a prompt
    samples = counts.groupby(level=0, observed=True).transform("sum")
    few = samples < group
    # Where there are enough, over all ways to take a group out of the samples.
    ways = comb(counts, group) / comb(samples.clip(lower=group), group)
    alike = ((counts / samples) ** group).where(few, ways).groupby(level=0, observed=True).sum()
    lengths = tuple(map(int, one.thinking_tokens.clip(upper=largest)))
    summary = records.summary_tokens.mean()
    return Observed(lengths, early.mean(), summary, alike.mean(), not few.any())


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
    weight_width: int
    rows: int
    rollout_rows: int
    checkpointing: bool
    sharding: str  # none, `zero2`, or `zero3` (FSDP that reshards is `zero3`)
    trainable: int  # parameters that are trained: all, or those of an adapter

    @property
    def trees(self) -> int:
        """Of a generation, on all devices."""
        args, devices = self.config, self.hardware.devices
        return args.per_device_train_batch_size * args.steps_per_generation * devices

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

    def costs(self, longest: bool = False) -> Costs:
        """Of the mean tree, or of the longest one."""
        args, size, seen = self.config, self.size, None if longest else self.observed
        hidden, inner = size.text.hidden_size, size.text.intermediate_size
        layers, vocabulary = size.text.num_hidden_layers, size.text.vocab_size
        width = 2 if args.bf16 or args.fp16 else self.weight_width
        lengths = seen.lengths if seen else args.budgets[-1:]
        cuts = [fmean(min(budget, length) for length in lengths) for budget in args.budgets]
        prompt = max(self.prompts) if longest else fmean(self.prompts)
        thinking, new = fmean(lengths), args.max_summary_tokens - self.forced
        summary = min(seen.summary, new) if seen else new
        trunk, leaf = prompt + thinking, self.forced + summary
        # Columns of a budget, which see the trunk up to its cut: the forced text once, and no end.
        segment = self.forced + args.num_summaries * (summary - 1)
        keys = [prompt + cut for cut in cuts]
        trained = thinking + len(cuts) * args.num_summaries * summary
        packed = trunk + len(cuts) * args.num_summaries * leaf
        computed = trunk + len(cuts) * segment
        pairs = trunk**2 + sum(segment * (below + segment) for below in keys)  # in whole blocks
        sampled = args.num_summaries * leaf
        sampled_pairs = trunk**2 / 2 + sum(sampled * (below + leaf / 2) for below in keys)
        attention = 4 * layers * size.q
        head = 2 * hidden * vocabulary * trained
        body = 2 * size.body * computed + attention * pairs
        # Norms keep their input in fp32 and the normalised value; q and k before and after
        # rotation, keys and values repeated to all heads, the output; gate, up, product, input.
        token = width * (4 * hidden + 9 * size.q + 3 * size.kv + 4 * inner) + 8 * hidden
        # A segment copies the keys of the trunk up to its cut, and its own.
        block = computed * token + sum(below + segment for below in keys) * 2 * width * size.q
        inputs = layers * computed * width * hidden
        # Checkpointing keeps the inputs of the blocks only, and makes their activations anew.
        kept, again = (inputs + block, body) if self.checkpointing else (layers * block, 0.0)
        return Costs(
            prompt,
            thinking,
            summary,
            trained,
            packed,
            update=3 * (body + head) + again,
            rollout=2 * size.body * packed + attention * sampled_pairs + head,
            # The masks of the leaves take a byte a pair and serve all layers.
            activations=kept + pairs + 2 * width * hidden * trained,
            cached=2 * layers * size.kv * width,
            width=width,
        )

    @property
    def memory(self) -> dict[str, float]:
        """Bytes on one device, of the longest trees, by what they are for."""
        size, costs, width = self.size, self.costs(longest=True), self.weight_width
        devices, adapter = self.hardware.devices, self.trainable < self.size.parameters
        parts = devices if self.sharding != "none" else 1  # zero2 shares gradients and optimizer
        weight_parts = devices if self.sharding == "zero3" else 1
        reference = self.config.beta > 0 and not adapter
        weights = size.parameters * width * (2 if reference else 1) / weight_parts
        weights += adapter * self.trainable * width
        if costs.width < width:  # autocast keeps a narrow copy during a step
            weights += size.body * costs.width / weight_parts
        scored = min(self.rows * costs.trained, 4096)  # a chunk of them at a time
        logits = 3 * 4 * scored * size.text.vocab_size
        cache = self.rollout_rows * (costs.packed * costs.cached + 8 * size.text.vocab_size)
        if self.sharding == "zero3":  # weights are gathered to sample
            cache += size.parameters * costs.width
        return {
            "memory a device: weights": weights,
            "gradients and optimizer": 3 * self.trainable * width / parts,
            "activations, longest trees": self.rows * costs.activations + logits,
            "rollout cache, longest trees": cache,
        }

    @property
    def peak(self) -> float:
        """Bytes on one device; updates and rollouts take turns."""
        weights, states, activations, cache = self.memory.values()
        return weights + states + max(activations, cache)

    @property
    def seconds(self) -> tuple[float, float]:
        """Of sampling and of updates for one generation.

        A decoding step reads all weights and the caches once, or takes its FLOPs, whichever is
        longer.
        """
        costs, hardware = self.costs(), self.hardware
        rows = self.trees // hardware.devices
        speed = hardware.flops * UTILISATION
        steps = -(-rows // self.rollout_rows) * (costs.thinking + costs.summary)
        read = self.size.parameters * costs.width
        read += self.rollout_rows * (costs.prompt + costs.thinking / 2) * costs.cached
        sampling = max(steps * read / hardware.bandwidth, rows * costs.rollout / speed)
        return sampling, self.config.num_iterations * rows * costs.update / speed

    @property
    def fits(self) -> bool:
        """Whether the longest trees fit a device."""
        return self.peak <= HEADROOM * self.hardware.memory

    @property
    def disk(self) -> float:
        """Bytes of checkpoints, the final model and rollouts."""
        args, final = self.config, self.weight_width * self.trainable  # weights, or the adapter
        saves = 0 if args.save_strategy == "no" else self.steps // max(1, int(args.save_steps))
        kept = min(saves, args.save_total_limit) + 1 if args.save_total_limit else saves
        rollouts = BYTES_PER_TREE * self.costs().packed * self.trees * self.steps / self.updates
        return kept * 3 * final + final + rollouts  # a checkpoint holds Adam's moments, too


def make_plan(asked: Namespace) -> Plan:
    """Gather what the estimate needs.

    Args:
        asked: The options of `preflight`. Settings for a device hold for each of the devices.

    Raises:
        ValueError: a device, preset, task or setting is unknown, or the records cannot tell.
    """
    if asked.device is None:
        hardware = this_machine(asked.devices)
    elif asked.device in DEVICES:
        hardware = Hardware(asked.device, asked.devices or 1, *DEVICES[asked.device])
    else:
        raise ValueError(f"--device is {asked.device!r}; choose one of {', '.join(DEVICES)}.")
    given = {"output_dir": "runs/train", "report_to": "none", "settings": asked.settings}
    config = train_config(asked.preset, asked.budgets, **given)
    prompts = load_task(asked.task, split="train").problems["prompt"]
    tokens = resolve_tokens(load_tokenizer(asked.model), config.thinking_format)
    how = tokens.tokenizer, tokens.fmt, config.chat_template_kwargs
    path, seen = adapter_base(asked.model) or model_path(asked.model), None
    if asked.records:
        seen = observe(asked.records, config.budgets[-1], config.num_generations)
    size = ModelSize.of(AutoConfig.from_pretrained(path))
    rows = config.per_device_train_batch_size
    return Plan(
        size=size,
        config=config,
        hardware=hardware,
        prompts=tuple(len(prompt_ids(prompt, *how)) for prompt in prompts[:PROMPTS]),
        problems=len(prompts),
        forced=tokens.longest_forced,
        observed=seen,
        weight_width=getattr(torch, asked.dtype).itemsize,
        rows=rows,
        rollout_rows=config.rollout_batch_size or rows * config.steps_per_generation,
        checkpointing=bool(config.gradient_checkpointing),
        sharding=asked.sharding,
        trainable=asked.trainable or size.parameters,
    )


def this_machine(devices: int | None = None) -> Hardware:
    """The devices here; without CUDA the processor, its speed taken from a short product."""
    if torch.cuda.is_available():
        about = torch.cuda.get_device_properties(0)
        known = next((v for k, v in DEVICES.items() if k in about.name.lower()), DEVICES["a100"])
        count = devices or torch.cuda.device_count()
        return Hardware(about.name, count, about.total_memory, known[1], known[2])
    product = Timer("square @ square", globals={"square": torch.rand(512, 512)}).timeit(10)
    speed, count = 2 * 512**3 / product.mean, devices or 1
    return Hardware("processor", count, psutil.virtual_memory().available / count, speed, 1e10)


def refusals(plan: Plan) -> list[str]:
    """Why a plan cannot run, each with what could; empty if it can."""
    args, longest = plan.config, plan.costs(longest=True)
    positions = getattr(plan.size.text, "max_position_embeddings", None) or math.inf
    room = positions - int(longest.prompt) - args.max_summary_tokens
    folder = Path(args.output_dir).absolute()
    free = shutil.disk_usage(next(p for p in (folder, *folder.parents) if p.exists())).free
    rows = [
        (
            args.budgets[-1] > room,
            f"the longest prompt, thinking and summary take {positions - room + args.budgets[-1]:,}"
            f" positions of {positions:,}. Set the largest budget to {room:,} or less.",
        ),
        (
            not plan.fits,
            f"one device needs {plan.peak / GIB:.1f} GiB; it has "
            f"{plan.hardware.memory / GIB:.1f}, of which {HEADROOM:.0%} can be used. "
            + _what_would_fit(plan),
        ),
        (
            plan.disk > free,
            f"the run writes {plan.disk / GIB:.1f} GiB; {free / GIB:.1f} are free at "
            f"{args.output_dir}. Set save_total_limit=2, a larger save_steps, or another folder.",
        ),
    ]
    return [told for wrong, told in rows if wrong]


def _what_would_fit(plan: Plan) -> str:
    """The mildest changes after which it fits."""
    changes = [
        ("rollout_batch_size=8", {"rollout_rows": min(8, plan.rollout_rows)}),
        ("per_device_train_batch_size=1", {"rows": 1}),
        ("gradient_checkpointing=True", {"checkpointing": True}),
        ("bfloat16 weights", {"weight_width": 2}),
        ("ZeRO-2", {"sharding": "zero2"}),
        ("ZeRO-3 or FSDP", {"sharding": "zero3"}),
    ]
    changed, names, fitting = plan, [], []
    for name, change in changes:
        alone = replace(plan, **change)
        if alone == plan:
            continue
        changed, names = replace(changed, **change), [*names, name]
        if alone.fits:
            fitting.append(f"{name} ({alone.peak / GIB:.1f} GiB)")
        elif not fitting and changed.fits:
            fitting.append(f"{' with '.join(names)} ({changed.peak / GIB:.1f} GiB)")
    if fitting:
        return f"It would fit with {', or '.join(fitting)}."
    for name, (memory, *_) in DEVICES.items():
        if replace(changed, hardware=plan.hardware._replace(memory=memory)).fits:
            return f"It would fit with {', '.join(names) or 'nothing else'} on {name} devices."
    return "Take shorter budgets, fewer summaries, more devices or a smaller model."


def report(plan: Plan) -> list[tuple[str, str, str]]:
    """Rows of (what, per step, in all)."""
    costs, trees, times = plan.costs(), plan.trees, plan.config.num_iterations
    generations = plan.steps / plan.updates
    sampling, updating = plan.seconds
    of_a_generation = [
        ("thinkings", trees, "{:,.0f}".format),
        ("thinking tokens", trees * costs.thinking, "{:,.0f}".format),
        ("summary tokens", trees * (costs.trained - costs.thinking), "{:,.0f}".format),
        ("packed tokens trained", trees * costs.packed * times, "{:,.0f}".format),
        ("FLOPs", trees * (costs.rollout + times * costs.update), "{:.3g}".format),
        ("time sampling", sampling, _clock),
        ("time training", updating, _clock),
    ]
    rows = [("optimiser steps", "1", f"{plan.steps:,}")]
    for what, amount, told in of_a_generation:
        rows.append((what, told(amount / plan.updates), told(amount * generations)))
    rows.append(("disk", "", f"{plan.disk / GIB:.2f} GiB"))
    rows += [(what, f"{amount / GIB:.2f} GiB", "") for what, amount in plan.memory.items()]
    rows.append(("peak", f"{plan.peak / GIB:.2f} GiB", f"of {plan.hardware.memory / GIB:.2f}"))
    finished, flat, of_flat = "unknown", "unknown", "give --records"
    if seen := plan.observed:
        finished, of_flat = f"{seen.finished:.1%}", "nothing in the records is graded"
        if not math.isnan(seen.flat):
            flat = f"{seen.flat:.1%}"
            of_flat = "" if seen.exact else "upper estimate: fewer samples than a group"
    rows.append(("thinkings finished before the end", finished, "" if seen else of_flat))
    rows.append(("prompts without variance", flat, of_flat))
    for problems in (30, 500):  # AIME, MATH500
        one, four = (f"{100 * least_difference(problems, samples):.0f}" for samples in (1, 4))
        what = f"difference that {problems} problems can tell"
        rows.append((what, f"{one} points", f"{four} with 4 samples each"))
    return rows


def _clock(time: float) -> str:
    if time < 120:
        return f"{time:.3g} s"
    return f"{time / 60:.3g} min" if time < 7200 else f"{time / 3600:.3g} h"


def command(asked: Namespace) -> int:
    """Print the report of `python -m anytime_lab preflight`; 1 if the run cannot fit."""
    plan = make_plan(asked)
    title = f"{asked.model} on {plan.hardware.devices} × {plan.hardware.name}"
    table = Table("", "per step", "in all", title=title)
    for row in report(plan):
        table.add_row(*row)
    Console().print(table)
    told = refusals(plan)
    for reason in told:
        print(f"Refused: {reason}", file=sys.stderr)
    return int(bool(told))
