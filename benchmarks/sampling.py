"""What sampling on one cache saves: `python benchmarks/sampling.py [--thinking 512 …]`.

A curve of many budgets over one evaluation at the largest, and over one run for each budget;
thinkings of widely varying length over transformers' `generate`; summaries on the cache of their
thinking over computing each prefix anew; and how the time of a token grows with the thinking, with
attention and without.
Greedy trees of both ways are compared first.
"""

import argparse
import functools
import math
from collections.abc import Callable
from unittest import mock

import torch
from common import (
    TOKENS,
    Number,
    budgets,
    end_after,
    make_model,
    parse,
    ratio,
    seconds_of,
    tell,
)
from engines import sampled_tokens

from anytime_lab.engines.base import Sampling
from anytime_lab.engines.hf import HFEngine


def aim(args: argparse.Namespace, text: str) -> str:
    """What is aimed at holds for long thinkings."""
    return text if args.thinking >= 2048 else ""


def make_prompts(args: argparse.Namespace) -> list[list[int]]:
    return [[100 + (row + place) % 100 for place in range(args.prompt)] for row in range(args.rows)]


def make_engines(args: argparse.Namespace, mean: float) -> tuple[HFEngine, HFEngine]:
    """Our engine and the one that calls `generate`, over one model whose texts end so."""
    model = make_model(args).eval()
    end_after(model, mean)
    return HFEngine(model, TOKENS), HFEngine(model, TOKENS, branches=False)


def check_alike(args: argparse.Namespace) -> None:
    """Greedy trees of both ways are the same (texts that end by chance are sampled otherwise)."""
    sampling = Sampling(temperature=0, max_summary_tokens=args.summary)
    small = argparse.Namespace(**{**vars(args), "thinking": min(args.thinking, 64)})
    cached, plain = (
        engine.sample_trees(make_prompts(small)[:2], budgets(small), 1, sampling)
        for engine in make_engines(small, math.inf)
    )
    same = [[leaf.summary for leaf in tree.leaves] for tree in cached]
    assert same == [[leaf.summary for leaf in tree.leaves] for tree in plain], "trees differ"
    print("greedy trees on the cache and by generate agree")


def rates(
    args: argparse.Namespace, ways: dict[str, Callable[[int], list]]
) -> dict[str, list[float]]:
    """Sampled tokens a second of each way in each round."""
    counts: dict[str, list[int]] = {name: [] for name in ways}

    def counting(name: str) -> Callable[[int], None]:
        return lambda turn: counts[name].append(sampled_tokens(ways[name](turn)))

    spent = seconds_of({name: counting(name) for name in ways}, args.rounds)
    return {
        name: [c / s for c, s in zip(counts[name][1:], spent[name], strict=True)] for name in spent
    }


def curve_cost(args: argparse.Namespace) -> list[Number]:
    """A curve over one evaluation at the largest budget, and over one run for each budget."""
    engine, _ = make_engines(args, math.inf)
    sampling, prompts = Sampling(max_summary_tokens=args.summary), make_prompts(args)

    def curve(wanted: list[int]) -> Callable[[int], list]:
        return lambda turn: engine.sample_trees(prompts, wanted, 1, sampling, seed=turn)

    counts = (1, 32, 128) if "curves" in args.parts else (32,)
    ways = {str(count): curve(budgets(args, count)) for count in counts}
    if "runs" in args.parts:
        ways["each"] = lambda turn: [curve([one])(turn) for one in budgets(args, 32)]
    spent = seconds_of(ways, args.rounds)
    told = []
    for count, most in zip(counts[1:], ("<= 1.04", "<= 1.1"), strict=False):
        name = f"curve of {count} budgets over one evaluation"
        told.append(ratio(name, spent[str(count)], spent["1"], aim(args, most)))
    if "runs" in args.parts:
        told.append(ratio("32 runs, one a budget, over their curve", spent["each"], spent["32"]))
    return told


def against_generate(args: argparse.Namespace) -> list[Number]:
    """Thinkings that vary in length, and summaries, over `generate`."""
    sampling, prompts = Sampling(max_summary_tokens=args.summary), make_prompts(args)
    told = []
    short = Sampling(max_summary_tokens=1)
    for rows in (len(prompts), 4 * len(prompts)):
        pair = make_engines(args, args.thinking / 4)
        many = [prompts[row % len(prompts)] for row in range(rows)]
        ours, plain = rates(
            args,
            {
                str(n): lambda turn, e=engine, many=many: e.sample_trees(
                    many, [args.thinking], 1, short, seed=turn
                )
                for n, engine in enumerate(pair)
            },
        ).values()
        told.append(ratio(f"{rows} thinkings of varying length over generate", ours, plain,
                          aim(args, ">= 2.2")))  # fmt: skip
    engine, plain_engine = make_engines(args, math.inf)
    trunks = {}
    for name, one in (("cache", engine), ("generate", plain_engine)):
        for wanted, summaries in ((budgets(args), args.summaries), ([args.thinking], 1)):
            trunks[name, summaries] = lambda turn, e=one, b=wanted, s=summaries: e.sample_trees(
                prompts, b, s, sampling, seed=turn
            )
    spent = seconds_of(trunks, args.rounds)
    # Seconds of all summaries but one: those of the trees less those of a thinking with one.
    leaves = {
        name: [
            more - less
            for more, less in zip(spent[name, args.summaries], spent[name, 1], strict=True)
        ]
        for name in ("cache", "generate")
    }
    told.append(ratio("summaries on the cache over each prefix anew", leaves["generate"],
                      [max(value, 1e-6) for value in leaves["cache"]],
                      aim(args, ">= 25")))  # fmt: skip
    return told


def token_growth(args: argparse.Namespace) -> list[Number]:
    """A token's time in thinkings of four times the length over that in shorter ones; 1 is flat."""
    lengths = [args.thinking, 4 * args.thinking]
    sdpa = torch.nn.functional.scaled_dot_product_attention
    ways = {}
    for length in lengths:
        one = argparse.Namespace(**{**vars(args), "thinking": length})
        engine, _ = make_engines(one, math.inf)

        def think(turn: int, attend: Callable, engine=engine, length=length) -> None:
            with mock.patch.object(torch.nn.functional, sdpa.__name__, attend):
                engine.sample_trees(
                    make_prompts(args), [length], 1, Sampling(max_summary_tokens=1), seed=turn
                )

        ways["all", length] = functools.partial(think, attend=sdpa)
        ways["rest", length] = functools.partial(think, attend=lambda query, *_, **kwargs: query)
    spent = seconds_of(ways, args.rounds)
    told = []
    for part, words, most in (("all", "", ""), ("rest", ", attention left out", "<= 1.1")):
        long, short = (spent[part, length] for length in lengths[::-1])
        name = f"a token of {lengths[1]:,} over one of {lengths[0]:,}{words}"
        told.append(ratio(name, [seconds / 4 for seconds in long], short, aim(args, most)))
    return told


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=8, help="thinkings sampled together")
    parts = ("curves", "runs", "generate", "growth")
    parser.add_argument("--parts", nargs="+", choices=parts, default=parts[:3])
    args = parse(parser)
    check_alike(args)
    numbers: list[Number] = []
    if {"curves", "runs"} & {*args.parts}:
        numbers += curve_cost(args)
    if "generate" in args.parts:
        numbers += against_generate(args)
    if "growth" in args.parts:
        numbers += token_growth(args)
    tell("sampling", vars(args), numbers, args.json)


if __name__ == "__main__":
    main()
