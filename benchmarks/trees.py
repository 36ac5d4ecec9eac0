"""What a tree saves over one row per summary: `python benchmarks/trees.py [--thinking 512 …]`.

Update: log-probs, loss and gradients of the same trees by each backend of the trainer; sampling:
summaries in one row on the cache of their thinking, and by `generate` from each prefix. The ways
take turns in one process after a warm-up, so that ratios hold where the machine is not quiet; peak
memory is above that of weights and gradients, on a CPU in a process of its own. The model is a
random Qwen2. All ways give the same log-probs, which is checked to 1e-3 in float32.
"""

import argparse
import json
import multiprocessing
import random
import resource
import sys
import time
from collections.abc import Callable

import psutil
import torch
from engines import sampled_tokens
from transformers import Qwen2Config, Qwen2ForCausalLM
from trl.trainer.utils import add_fused_lm_head

from anytime_lab.engines.base import Sampling
from anytime_lab.engines.hf import HFEngine
from anytime_lab.engines.load import load_tokenizer
from anytime_lab.prompts import COUNTDOWN, resolve_tokens
from anytime_lab.train.scoring import TreeRows, choose_backend, score_rows, stack_rows
from anytime_lab.tree import Leaf, Tree, pack

BACKENDS = ("segmented", "dense", "unrolled")
TOKENS = resolve_tokens(load_tokenizer("embedded"), COUNTDOWN)


def make_model(args: argparse.Namespace) -> Qwen2ForCausalLM:
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
    model = Qwen2ForCausalLM(config).to(args.device, getattr(torch, args.dtype))
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    return model


def budgets(args: argparse.Namespace) -> list[int]:
    return [args.thinking * (j + 1) // args.budgets for j in range(args.budgets)]


def make_trees(args: argparse.Namespace) -> list[Tree]:
    """Trees of random tokens, full at every budget."""
    rng = random.Random(0)

    def words(count: int) -> tuple[int, ...]:
        return tuple(rng.randrange(100, 200) for _ in range(count))

    trees = []
    for _ in range(args.trees):
        leaves = [
            Leaf(cut, TOKENS.cut_ids, words(args.summary), (0.0,) * args.summary, True)
            for cut in budgets(args)
            for _ in range(args.summaries)
        ]
        thinking = words(args.thinking)
        logprobs = (0.0,) * args.thinking
        trees.append(Tree(words(args.prompt), thinking, logprobs, "length", tuple(leaves)))
    return trees


def make_update(args: argparse.Namespace) -> Callable[[str], torch.Tensor]:
    """From a backend's name to the log-probs of one update of the trees."""
    model = make_model(args)
    add_fused_lm_head(model, temperature=1.0, outputs=("log_probs", "entropy"))
    trees = make_trees(args)
    packed = [pack(tree) for tree in trees]  # all of one length
    rows: TreeRows = stack_rows(packed, torch.device(args.device))
    ids = torch.tensor(
        [[*tree.prompt, *row.ids] for tree, row in zip(trees, packed, strict=True)],
        device=args.device,
    )
    mask = torch.ones_like(ids)
    weights = torch.linspace(-1, 1, rows.trained.numel(), device=args.device)
    weights = weights.view_as(rows.trained) * rows.trained

    prepared = [""]

    def update(backend: str) -> torch.Tensor:
        if prepared[-1] != backend:  # it tries the backend, which is no part of an update
            prepared.append(choose_backend(model, backend)[0])
        scored = score_rows(model, backend, ids, mask, rows)
        (scored.log_probs * weights).sum().backward()
        return scored.log_probs.detach() * rows.trained

    return update


def make_samplers(args: argparse.Namespace) -> dict[str, Callable[[int], list[Tree]]]:
    """The two ways to sample the same trees, from a seed."""
    model = make_model(args).eval()
    prompts = [list(tree.prompt) for tree in make_trees(args)]
    sampling = Sampling(max_summary_tokens=args.summary)
    engine, plain = HFEngine(model, TOKENS), HFEngine(model, TOKENS, branches=False)
    wanted = budgets(args)

    def on_the_cache(seed: int) -> list[Tree]:
        return engine.sample_trees(prompts, wanted, args.summaries, sampling, seed=seed)

    def by_generate(seed: int) -> list[Tree]:
        return plain.sample_trees(prompts, wanted, args.summaries, sampling, seed=seed)

    return {"on the cache": on_the_cache, "by generate": by_generate}


def synchronise(device: str) -> None:
    if device != "cpu":
        torch.cuda.synchronize()


def peak_mib(args: argparse.Namespace, backend: str) -> float:
    """Most memory of an update above what lay there before, in MiB."""
    if args.device != "cpu":
        update = make_update(args)
        update(backend)
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        update(backend)
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    context = multiprocessing.get_context("spawn")
    with context.Pool(1) as pool:
        return pool.apply(_peak_of_this_process, (args, backend))


def _peak_of_this_process(args: argparse.Namespace, backend: str) -> float:
    short = {"thinking": 4 * args.budgets, "summary": 2, "trees": 1, "prompt": 4}
    make_update(argparse.Namespace(**{**vars(args), **short}))(backend)  # loads what is needed
    update = make_update(args)
    before = psutil.Process().memory_info().rss
    update(backend)
    unit = 1 if sys.platform == "darwin" else 1024
    return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit - before) / 2**20


def time_updates(args: argparse.Namespace) -> dict[str, float]:
    """Seconds of an update by each backend."""
    update = make_update(args)
    seconds = dict.fromkeys(args.backends, 0.0)
    for turn in range(args.rounds + 1):
        first = None
        for backend in args.backends:
            start = time.perf_counter()
            logps = update(backend)
            synchronise(args.device)
            if turn:  # the first is the warm-up
                seconds[backend] += (time.perf_counter() - start) / args.rounds
            elif first is None:
                first = logps
            elif args.dtype == "float32":
                torch.testing.assert_close(logps, first, rtol=0, atol=1e-3)
    return seconds


def time_sampling(args: argparse.Namespace) -> dict[str, float]:
    """Sampled tokens a second of each way."""
    samplers = make_samplers(args)
    sums = {name: [0, 0.0] for name in samplers}
    for turn in range(args.rounds + 1):
        for name, sample in samplers.items():
            start = time.perf_counter()
            count = sampled_tokens(sample(turn))
            synchronise(args.device)
            if turn:
                sums[name] = [sums[name][0] + count, sums[name][1] + time.perf_counter() - start]
    return {name: count / spent for name, (count, spent) in sums.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, default in (
        ("layers", 4), ("hidden", 256), ("vocab", 4096), ("trees", 4), ("prompt", 32),
        ("thinking", 512), ("budgets", 4), ("summaries", 4), ("summary", 16), ("rounds", 3),
    ):  # fmt: skip
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--backends", nargs="+", choices=BACKENDS, default=BACKENDS)
    args = parser.parse_args()
    if args.vocab < 200:
        parser.error(f"--vocab is {args.vocab}; expected at least 200, for the forced tokens.")
    print(json.dumps(vars(args)))
    # Memory first: a new process is told its parent's peak as its own.
    memory = {backend: peak_mib(args, backend) for backend in args.backends}
    seconds = time_updates(args)
    slow, large = seconds[args.backends[-1]], memory[args.backends[-1]]
    for name in args.backends:
        print(
            f"update, {name:14} {seconds[name]:9.3f} s  {slow / seconds[name]:5.1f}x faster"
            f"  {memory[name]:8,.0f} MiB  {large / memory[name]:5.1f}x less"
        )
    rates = time_sampling(args)
    slow = rates["by generate"]
    for name, rate in rates.items():
        print(f"sampling, {name:12} {rate:9,.0f} tokens/s  {rate / slow:5.1f}x")


if __name__ == "__main__":
    main()
