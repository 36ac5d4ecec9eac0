"""Before hours are spent: what a run takes and makes, and whether it fits.

`python -m anytime_lab preflight --model NAME --task TASK --devices 8 --device a100 …`, or from a
notebook `preflight(model, config, prompts, hardware)`. No weights are loaded: a model's
configuration is enough. What only sampling can tell (how long thinkings are, how many prompts teach
nothing) is read from the records of an evaluation, where one is given.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pandas as pd
from rich.console import Console
from rich.table import Table

from anytime_lab.run.costs import (
    DEVICES,
    GIB,
    SHARDINGS,
    Hardware,
    rollout_flops,
    seconds,
    update_flops,
)
from anytime_lab.run.preflight_plan import HEADROOM, Plan, make_plan, this_machine
from anytime_lab.tasks.catalogue import load_task
from anytime_lab.train import presets
from anytime_lab.train.config import BRPOConfig


def refusals(plan: Plan) -> list[str]:
    """Why a plan cannot run, each with what could; empty if it can."""
    told = []
    args, longest = plan.config, plan.shape(longest=True)
    needed = int(longest.prompt) + args.budgets[-1] + args.max_summary_tokens
    if plan.size.positions and needed > plan.size.positions:
        room = plan.size.positions - int(longest.prompt) - args.max_summary_tokens
        told.append(
            f"the longest prompt, thinking and summary take {needed:,} positions of "
            f"{plan.size.positions:,}. Set the largest budget to {room:,} or less."
        )
    if plan.trees % args.num_generations:
        told.append(
            f"a generation has {plan.trees} trees on {plan.hardware.devices} devices, no whole "
            f"number of groups of {args.num_generations}. Change per_device_train_batch_size or "
            "steps_per_generation."
        )
    if not plan.fits:
        told.append(
            f"one device needs {plan.memory.total / GIB:.1f} GiB; it has "
            f"{plan.hardware.memory / GIB:.1f}, of which {HEADROOM:.0%} can be used. "
            + _what_would_fit(plan)
        )
    if plan.disk > plan.disk_free:
        told.append(
            f"the run writes {plan.disk / GIB:.1f} GiB; {plan.disk_free / GIB:.1f} are free at "
            f"{args.output_dir}. Set save_total_limit=2, a larger save_steps, or another folder."
        )
    return told


def _what_would_fit(plan: Plan) -> str:
    """The mildest changes after which it fits."""
    changes: list[tuple[str, dict[str, Any]]] = [
        ("rollout_batch_size=8", {"rollout_rows": min(8, plan.rollout_rows)}),
        ("per_device_train_batch_size=1", {"rows": 1}),
        ("gradient_checkpointing=True", {"checkpointing": True}),
        ("bfloat16 weights", {"weight_width": 2}),
        ("ZeRO-2", {"sharding": "zero2"}),
        ("ZeRO-3 or FSDP", {"sharding": "zero3"}),
    ]
    fitting = []
    changed, names = plan, []
    for name, change in changes:
        if any(getattr(plan, key) != value for key, value in change.items()):
            alone = replace(plan, **change)
            if alone.fits:
                fitting.append(f"{name} ({alone.memory.total / GIB:.1f} GiB)")
            changed, names = replace(changed, **change), [*names, name]
            if not fitting and changed.fits:
                fitting.append(f"{' with '.join(names)} ({changed.memory.total / GIB:.1f} GiB)")
    if fitting:
        return f"It would fit with {', or '.join(fitting)}."
    for name in DEVICES:
        larger = replace(plan.hardware, name=name, memory=DEVICES[name][0])
        if replace(changed, hardware=larger).fits:
            return f"It would fit with {', '.join(names) or 'nothing else'} on {name} devices."
    return "Take shorter budgets, fewer summaries, more devices or a smaller model."


def report(plan: Plan) -> list[tuple[str, str, str]]:
    """Rows of (what, per step, in all)."""
    shape, devices = plan.shape(), plan.hardware.devices
    trees, generations = plan.trees, plan.steps / plan.updates
    times = plan.config.num_iterations
    sampled = trees * shape.trained
    flops = trees * (
        rollout_flops(plan.size, shape)
        + times * update_flops(plan.size, shape, plan.checkpointing)
    )  # fmt: skip
    sampling, updating = seconds(
        plan.size, shape, plan.hardware, rows=trees // devices, updates=times,
        rollout_rows=plan.rollout_rows, compute_width=2 if plan.half else 4,
        checkpointing=plan.checkpointing,
    )  # fmt: skip
    used = plan.memory
    per = 1 / plan.updates
    rows = [
        ("optimiser steps", "1", f"{plan.steps:,}"),
        ("thinkings", f"{trees * per:,.0f}", f"{trees * generations:,.0f}"),
        ("thinking tokens", f"{trees * shape.thinking * per:,.0f}",
         f"{trees * shape.thinking * generations:,.0f}"),
        ("summary tokens", f"{(sampled - trees * shape.thinking) * per:,.0f}",
         f"{(sampled - trees * shape.thinking) * generations:,.0f}"),
        ("packed tokens trained", f"{trees * shape.packed * times * per:,.0f}",
         f"{trees * shape.packed * times * generations:,.0f}"),
        ("FLOPs", f"{flops * per:.3g}", f"{flops * generations:.3g}"),
        ("time sampling", _clock(sampling * per), _clock(sampling * generations)),
        ("time training", _clock(updating * per), _clock(updating * generations)),
        ("disk", "", f"{plan.disk / GIB:.2f} GiB"),
        ("memory a device: weights", f"{used.weights / GIB:.2f} GiB", ""),
        ("gradients and optimizer", f"{(used.gradients + used.optimizer) / GIB:.2f} GiB", ""),
        ("activations, longest trees", f"{used.activations / GIB:.2f} GiB", ""),
        ("rollout cache, longest trees", f"{used.cache / GIB:.2f} GiB", ""),
        ("peak", f"{used.total / GIB:.2f} GiB", f"of {plan.hardware.memory / GIB:.2f}"),
    ]  # fmt: skip
    seen = plan.observed
    if seen is None:
        rows.append(("thinkings finished before the end", "unknown", "give --records"))
        rows.append(("prompts without variance", "unknown", "give --records"))
    else:
        note = "" if seen.exact else "upper estimate: fewer samples than a group"
        flat = "unknown" if seen.flat is None else f"{seen.flat:.1%}"
        rows.append(("thinkings finished before the end", f"{seen.finished:.1%}", ""))
        rows.append(("prompts without variance", flat, note))
    return rows


def _clock(time: float) -> str:
    if time < 120:
        return f"{time:.3g} s"
    return f"{time / 60:.3g} min" if time < 7200 else f"{time / 3600:.3g} h"


def preflight(model: Any, config: BRPOConfig, prompts: Sequence[Any], hardware: Hardware,
              **settings: Any) -> pd.DataFrame:  # fmt: skip
    """The report as a table, for a notebook; settings as `make_plan`.

    Raises:
        ValueError: the run cannot fit; the message says what would.
    """
    plan = make_plan(model, config, prompts, hardware, **settings)
    if told := refusals(plan):
        raise ValueError("\n".join(told))
    return pd.DataFrame(report(plan), columns=["", "per step", "in all"]).set_index("")


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the report; 1 if the run cannot fit."""
    parser = argparse.ArgumentParser("python -m anytime_lab.run.preflight", description=__doc__)
    add = parser.add_argument
    add("--model", default="embedded", help="embedded, a folder, or a name on the hub")
    add("--task", default="countdown", help="a task, a benchmark, or a file of problems")
    add("--preset", default="ar_uniform", choices=presets.PRESETS)
    add("--budgets", type=int, nargs="+", default=[24, 48, 72, 96])
    add("--settings", type=json.loads, default={}, help="fields of BRPOConfig as JSON")
    add("--prompts", type=int, default=64, help="prompts to measure")
    add("--records", help="run folder of an evaluation of this model")
    add("--device", choices=DEVICES, help="of the data sheets; what is here by default")
    add("--devices", type=int, help="how many share the run")
    add("--memory", type=float, help="GiB of one device, instead of the data sheet's")
    add("--sharding", choices=SHARDINGS, default="none")
    add("--dtype", default="bfloat16", choices=("bfloat16", "float16", "float32"))
    add("--trainable", type=int, help="parameters of an adapter; all weights by default")
    asked = parser.parse_args(arguments)
    try:
        if asked.device:
            hardware = Hardware(asked.device, asked.devices or 1, *DEVICES[asked.device])
        else:
            hardware = this_machine(asked.devices)
        if asked.memory:
            hardware = replace(hardware, memory=asked.memory * GIB)
        config = presets.by_name(asked.preset)(
            asked.budgets, **{"output_dir": "runs/train", "report_to": "none", **asked.settings}
        )
        problems = load_task(asked.task, split="train").problems
        sample = problems["prompt"][: asked.prompts]
        plan = make_plan(
            asked.model, config, sample, hardware, records=asked.records, sharding=asked.sharding,
            trainable=asked.trainable, weight_dtype=asked.dtype, problems=len(problems),
        )  # fmt: skip
    except (ValueError, TypeError, OSError) as error:
        print(error, file=sys.stderr)
        return 2
    table = Table("", "per step", "in all", title=f"{asked.model} on {hardware.devices} × "
                  f"{hardware.name}")  # fmt: skip
    for row in report(plan):
        table.add_row(*row)
    Console().print(table)
    told = refusals(plan)
    for reason in told:
        print(f"Refused: {reason}", file=sys.stderr)
    return 1 if told else 0


if __name__ == "__main__":
    sys.exit(main())
