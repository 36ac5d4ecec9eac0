"""Tokens a second of the engines on the same problems: `python benchmarks/engines.py hf vllm`.

Names as in notebook 03: `hf`, `vllm`, or a server's URL. They take turns in one process, each after
a warm-up, so that the ratio holds where the machine is not quiet. Counted are sampled tokens of
thinkings and summaries. On a CPU, vLLM has to be told how much memory it may take:
`VLLM_CPU_KVCACHE_SPACE=1 python benchmarks/engines.py hf vllm --options
'{"vllm": {"gpu_memory_utilization": 0.2, "max_model_len": 512}}'`.
"""

import argparse
import json
import os
import time

from common import number, ratio, tell

from anytime_lab.engines.base import Engine, Sampling
from anytime_lab.engines.load import load_engine, load_tokens
from anytime_lab.prompts import prompt_ids
from anytime_lab.tasks.problems import load_task
from anytime_lab.tree import Tree


def sampled_tokens(trees: list[Tree]) -> int:
    """Tokens of thinkings and summaries; a summary that budgets share is counted once."""
    count = 0
    for tree in trees:
        distinct = {(leaf.cut, leaf.summary, leaf.logprobs) for leaf in tree.leaves}
        count += len(tree.thinking) + sum(len(summary) for _, summary, _ in distinct)
    return count


def time_engine(
    engine: Engine, prompts: list[list[int]], budgets: list[int], summaries: int, seed: int
) -> tuple[int, float]:
    """Sampled tokens and seconds of one call."""
    start = time.perf_counter()
    sampling = Sampling(max_summary_tokens=16)
    trees = engine.sample_trees(prompts, budgets, summaries, sampling, seed=seed, share_cuts=True)
    return sampled_tokens(trees), time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("engines", nargs="+", help="hf, vllm, or a URL")
    parser.add_argument("--model", default="embedded")
    parser.add_argument("--task", default="countdown")
    parser.add_argument("--problems", type=int, default=32)
    parser.add_argument("--samples", type=int, default=4, help="thinkings per problem")
    parser.add_argument("--budgets", type=json.loads, default=[24, 48, 72, 96])
    parser.add_argument("--summaries", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--options", type=json.loads, default={}, help='{"vllm": {…}}')
    parser.add_argument("--json", default="", help="write the numbers to this file, too")
    args = parser.parse_args()
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
    tokens = load_tokens(args.model)
    problems = load_task(args.task, split="test", num_problems=args.problems).problems
    asked = [prompt_ids(prompt, tokens.tokenizer, tokens.fmt) for prompt in problems["prompt"]]
    prompts = [prompt for prompt in asked for _ in range(args.samples)]
    engines = {
        name: load_engine(name, args.model, tokens, **args.options.get(name, {}))
        for name in args.engines
    }
    sums: dict[str, list[float]] = {name: [] for name in engines}
    for turn in range(args.rounds + 1):
        for name, engine in engines.items():
            told = time_engine(engine, prompts, args.budgets, args.summaries, turn)
            if turn:  # the first is the warm-up
                sums[name].append(told[0] / told[1])
    numbers = [number(f"sampling by {name}", rate, "tokens/s") for name, rate in sums.items()]
    first, *others = sums
    numbers += [ratio(f"sampling, {name} over {first}", sums[name], sums[first]) for name in others]
    tell("engines", {**vars(args), "engines": list(sums)}, numbers, args.json)


if __name__ == "__main__":
    main()
