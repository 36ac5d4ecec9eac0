"""What the benchmarks share: ways that take turns, ratios with spread, one form of results."""

import argparse
import json
import math
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from transformers import Qwen2Config, Qwen2ForCausalLM

from anytime_lab.engines.load import load_tokenizer
from anytime_lab.prompts import COUNTDOWN, resolve_tokens

TOKENS = resolve_tokens(load_tokenizer("embedded"), COUNTDOWN)
RESULTS = Path(__file__).resolve().parent / "results"


@dataclass(frozen=True)
class Number:
    """A measured number.

    Attributes:
        name: What was measured.
        median: Over the rounds.
        low: Lower quartile of the rounds.
        high: Upper quartile.
        unit: `x` for a ratio.
        target: What is aimed at, such as `>= 15`; empty where nothing is.
    """

    name: str
    median: float
    low: float
    high: float
    unit: str = "x"
    target: str = ""

    @property
    def holds(self) -> bool | None:
        """Whether the median reaches the target; None where there is none."""
        if not self.target:
            return None
        sign, value = self.target.split()
        return self.median >= float(value) if sign == ">=" else self.median <= float(value)


def number(name: str, values: Sequence[float], unit: str = "x", target: str = "") -> Number:
    """Median and quartiles of the rounds' values."""
    low, middle, high = (
        statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else values * 3
    )
    return Number(name, middle, low, high, unit, target)


def seconds_of(
    ways: Mapping[str, Callable[[int], object]], rounds: int, warm: bool = False
) -> dict[str, list[float]]:
    """Seconds of each way in each round; they take turns, after a round that is not counted.

    On a CPU these are seconds of one thread, which other work on the machine hardly changes.

    Args:
        ways: Name → function of the round's number.
        rounds: Counted rounds.
        warm: Whether all have run before, so that the first round is counted.
    """
    spent: dict[str, list[float]] = {name: [] for name in ways}
    clock = time.perf_counter if torch.cuda.is_available() else time.process_time
    torch.set_num_threads(1)
    for turn in range(warm, rounds + 1):
        for name, way in ways.items():
            start = clock()
            way(turn)
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            if turn:
                spent[name].append(clock() - start)
    return spent


def ratio(name: str, above: Sequence[float], below: Sequence[float], target: str = "") -> Number:
    """How many times the one the other is, round by round."""
    return number(name, [a / b for a, b in zip(above, below, strict=True)], "x", target)


def tell(script: str, settings: Mapping[str, object], numbers: Sequence[Number], path: str) -> None:
    """Print the numbers, and write them with settings and machine where a path is given."""
    for one in numbers:
        mark = {None: "", True: "reached", False: "not reached"}[one.holds]
        aim = f"  aim {one.target}: {mark}" if one.target else ""
        print(
            f"{one.name:<58} {one.median:10,.3f} {one.unit:<9}"
            f" [{one.low:,.3f}, {one.high:,.3f}]{aim}",
            flush=True,
        )
    if not path:
        return
    told = {
        "script": script,
        "settings": dict(settings),
        "machine": {
            "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
            "cores": os.cpu_count(),
            "threads": torch.get_num_threads(),
            "python": platform.python_version(),
            "torch": torch.__version__,
        },
        "numbers": [asdict(one) for one in numbers],
    }
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_text(json.dumps(told, indent=1) + "\n")


def parse(parser: argparse.ArgumentParser, **defaults: int) -> argparse.Namespace:
    """The arguments that the benchmarks of models share, after a script's own."""
    shape = {"layers": 4, "hidden": 256, "vocab": 4096, "prompt": 32, "thinking": 512}
    shape |= {"budgets": 4, "summaries": 4, "summary": 16, "rounds": 3}
    for name, default in (shape | defaults).items():
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--json", default="", help="write the numbers to this file, too")
    args = parser.parse_args()
    if args.vocab < 220:
        parser.error(f"--vocab is {args.vocab}; expected at least 220, the tokenizer's tokens.")
    return args


def make_model(args: argparse.Namespace) -> Qwen2ForCausalLM:
    """A random Qwen2 of the wanted shape."""
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=args.vocab,
        hidden_size=args.hidden,
        intermediate_size=4 * args.hidden,
        num_hidden_layers=args.layers,
        num_attention_heads=max(1, args.hidden // 64),
        num_key_value_heads=max(1, args.hidden // 256),
        max_position_embeddings=2 * (args.prompt + args.thinking + args.summary),
    )
    return Qwen2ForCausalLM(config).to(args.device, getattr(torch, args.dtype))


def budgets(args: argparse.Namespace, count: int | None = None) -> list[int]:
    """Evenly spaced token budgets up to the whole thinking."""
    count = count or args.budgets
    count = min(count, args.thinking)
    return [args.thinking * (j + 1) // count for j in range(count)]


def end_after(model: Qwen2ForCausalLM, mean: float) -> None:
    """Let each sampled token end its text with probability 1 / mean; `inf` lets none end."""
    ends = [TOKENS.close_id, *TOKENS.eos_ids]

    def shift(module, inputs, logits):
        logits[..., ends] = -torch.inf
        if mean != math.inf:
            rest = logits.logsumexp(-1, keepdim=True)
            logits[..., ends] = rest - math.log(len(ends) * (mean - 1))
        return logits

    model.lm_head.register_forward_hook(shift)
