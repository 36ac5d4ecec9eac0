"""What a tree saves over one row per summary: `python benchmarks/trees.py [--thinking 512 …]`.

Log-probs, loss and gradients of the same trees by each backend of the trainer, by TRL's own rows,
by sequence packing and with the prompt alone shared, beside a plain causal pass over as many tokens
and the time that their FLOPs take at this machine's pace. Peak memory is above that of weights and
gradients, on a CPU in a process of its own. All ways give the same log-probs, which is checked
first (float32).
"""

import argparse
import functools
import math
import multiprocessing
import random
import resource
import statistics
import sys
import types
from collections.abc import Callable
from dataclasses import dataclass
from unittest import mock

import psutil
import torch
from accelerate import Accelerator
from common import TOKENS, Number, budgets, make_model, number, parse, ratio, seconds_of, tell
from trl import GRPOTrainer
from trl.trainer.utils import add_fused_lm_head

from anytime_lab.engines import attention
from anytime_lab.train import scoring
from anytime_lab.train.scoring import TreeRows, choose_backend, score_rows, stack_rows
from anytime_lab.tree import Leaf, Tree, pack, tree_mask, unroll

BACKENDS = ("segmented", "dense", "unrolled")
# Tokens of thinking and summary → aims: over TRL's rows, plain causal, FLOPs; memory, TRL's rows.
AIMS = {
    (512, 16): (">= 15", "<= 0.95", "<= 1.6", ">= 6"),
    (2048, 16): (">= 20", "", "", ">= 6"),
    (2048, 100): (">= 12", "", "", ">= 6"),
}


def aims(args: argparse.Namespace) -> tuple[str, ...]:
    return AIMS.get((args.thinking, args.summary), ("",) * 4)


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


@dataclass(frozen=True)
class Update:
    """One update of the same trees, in several ways.

    Attributes:
        ways: Name → function that gives the log-probs of one pass and adds to the gradients.
        packed: Columns of the packed rows, prompts included.
        computed: Name → tokens that it runs through the model, padding included.
        flops: Fewest of forward and backward pass over packed rows.
    """

    ways: dict[str, Callable[[], torch.Tensor]]
    packed: int
    computed: dict[str, int]
    flops: float


def make_update(args: argparse.Namespace) -> Update:
    """The ways to the log-probs and gradients of one update of the trees.

    Besides the trainer's backends: TRL's own rows (stock `GRPOTrainer`: each summary's row
    padded to the longest, every position through the head), sequence packing (rows of one length
    together, so that nothing is padded and none attends to another), the prompt alone shared (what
    AReaL and others do: prompt once, each summary with its own copy of the thinking), and a plain
    causal pass over as many tokens.
    """
    model = make_model(args)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    add_fused_lm_head(model, temperature=1.0, outputs=("log_probs", "entropy"))
    for backend in (*args.backends, "segmented"):  # whose attention is SDPA where no tree is
        choose_backend(model, backend)
    trees = make_trees(args)
    packed = [pack(tree) for tree in trees]  # all of one length
    device = torch.device(args.device)
    rows: TreeRows = stack_rows(packed, device)
    prompts = torch.tensor([tree.prompt for tree in trees], device=device)
    ids = torch.cat([prompts, torch.tensor([row.ids for row in packed], device=device)], dim=1)
    mask, columns = torch.ones_like(ids), rows.leaf.shape[1]
    weights = torch.linspace(-1, 1, rows.trained.numel(), device=device)
    weights = weights.view_as(rows.trained) * rows.trained
    taken = unroll(prompts, mask[:, : args.prompt], ids[:, args.prompt :], rows.leaf, rows.branch)
    trained = (taken.source >= 0) & rows.trained.flatten()[taken.source.clamp(min=0)].bool()
    lengths = taken.mask.sum(1)

    def finish(log_probs: torch.Tensor) -> torch.Tensor:
        (log_probs * weights).sum().backward()
        return log_probs.detach() * rows.trained

    def by_backend(backend: str) -> torch.Tensor:
        return finish(score_rows(model, backend, ids, mask, rows).log_probs)

    def back(log_probs: torch.Tensor, source: torch.Tensor) -> torch.Tensor:
        flat = log_probs.new_zeros(rows.leaf.numel())
        return flat.index_put((source,), log_probs).view_as(rows.trained)

    def score(ids: torch.Tensor, scored: torch.Tensor) -> torch.Tensor:
        return scoring.score_tokens(model, ids, ids[scored], scoring.predicting(scored))[0]

    def trls_rows() -> torch.Tensor:
        stock = types.SimpleNamespace(accelerator=Accelerator(cpu=args.device == "cpu"))
        columns = taken.ids.shape[1] - args.prompt
        told, *_ = GRPOTrainer._get_per_token_logps_and_entropies(
            stock, model, taken.ids, taken.mask, columns, compute_entropy=True
        )
        kept = trained[:, -columns:]
        return finish(back(told[kept], taken.source[:, -columns:][kept]))

    def sequence_packing() -> torch.Tensor:
        told = torch.zeros(rows.leaf.shape, device=device)
        for length in lengths.unique().tolist():
            some = lengths == length
            source = taken.source[some][:, :length]
            log_probs = score(taken.ids[some, :length], trained[some][:, :length])
            told = told + back(log_probs, source[trained[some][:, :length]])
        return finish(told)

    def prompt_shared() -> torch.Tensor:
        per_tree = len(taken.ids) // len(trees)
        copies, numbers, scored, sources = [], [], [], []
        for tree in range(len(trees)):
            mine = range(tree * per_tree, (tree + 1) * per_tree)
            bodies = [torch.arange(args.prompt, int(lengths[n]), device=device) for n in mine]
            copies.append(torch.cat([taken.ids[n, b] for n, b in zip(mine, bodies, strict=True)]))
            scored.append(torch.cat([trained[n, b] for n, b in zip(mine, bodies, strict=True)]))
            sources.append(
                torch.cat([taken.source[n, b] for n, b in zip(mine, bodies, strict=True)])
            )
            numbers.append(torch.cat([torch.full_like(b, n) for n, b in enumerate(bodies)]))
        layout = TreeRows(
            torch.stack(numbers), torch.zeros_like(torch.stack(numbers)), torch.stack(scored).long()
        )
        every = [(n, n) for n in range(per_tree)]  # each copy attends to itself and the prompt
        with mock.patch.object(attention, "_segment_bounds", lambda leaf, branch: every):
            row = torch.cat([prompts, torch.stack(copies)], dim=1)
            told = score_rows(model, "segmented", row, torch.ones_like(row), layout).log_probs
        kept = layout.trained.bool()
        return finish(back(told[kept], torch.stack(sources)[kept]))

    def plain_causal() -> torch.Tensor:
        sampled = torch.cat([torch.zeros_like(prompts), rows.trained], dim=1).bool()
        score(ids, sampled).sum().backward()
        return torch.zeros(())

    ways = {name: functools.partial(by_backend, name) for name in args.backends}
    ways |= {
        "TRL's rows": trls_rows,
        "sequence packing": sequence_packing,
        "prompt shared": prompt_shared,
        "plain causal": plain_causal,
    }
    copied = int((lengths - args.prompt).sum()) + args.prompt * len(trees)
    computed = dict.fromkeys(ways, ids.numel())
    computed |= dict.fromkeys(("unrolled", "TRL's rows"), taken.ids.numel())
    computed["sequence packing"] = int(lengths.sum())
    computed["prompt shared"] = copied
    seen = tree_mask(rows.leaf, rows.branch, mask[:, :-columns]).sum().item()
    inside = sum(p.numel() for p in model.model.layers.parameters() if p.ndim > 1)
    head = args.vocab * args.hidden * int(rows.trained.sum())
    flops = 6 * (inside * ids.numel() + head) + 12 * seen * args.hidden * args.layers
    return Update(ways, ids.numel(), computed, flops)


def matmul_rate(args: argparse.Namespace, tokens: int) -> float:
    """FLOPs a second of the model's widest matrix product on as many tokens: the machine's pace."""
    rows = torch.randn(tokens, args.hidden, device=args.device, dtype=getattr(torch, args.dtype))
    weight = torch.randn(
        args.hidden, 4 * args.hidden, device=args.device, dtype=getattr(torch, args.dtype)
    )
    spent = seconds_of({"product": lambda turn: [rows @ weight for _ in range(10)]}, 5)["product"]
    return 20 * tokens * args.hidden * 4 * args.hidden / statistics.median(spent)


def peak_mib(args: argparse.Namespace, backend: str) -> float:
    """Most memory of an update above what lay there before, in MiB."""
    if args.device != "cpu":
        update = make_update(args).ways[backend]
        update()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        update()
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    # A process that is started anew would be told its parent's peak as its own; a fork is not.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["trl.trainer.grpo_trainer", "anytime_lab.train.scoring"])
    with context.Pool(1) as pool:
        return pool.apply(_peak_of_this_process, (args, backend))


def _peak_of_this_process(args: argparse.Namespace, backend: str) -> float:
    short = {"thinking": 4 * args.budgets, "summary": 2, "trees": 1, "prompt": 4}
    # A small one loads what is needed.
    make_update(argparse.Namespace(**{**vars(args), **short})).ways[backend]()
    update = make_update(args).ways[backend]
    before = psutil.Process().memory_info().rss
    update()
    unit = 1 if sys.platform == "darwin" else 1024
    return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit - before) / 2**20


def check_alike(update: Update, args: argparse.Namespace) -> None:
    """All ways give the log-probs of the first, to 1e-3 in float32."""
    told = {name: way() for name, way in update.ways.items()}
    first = told[args.backends[0]]
    for name in [name for name in told if name != "plain causal" and args.dtype == "float32"]:
        torch.testing.assert_close(
            told[name], first, rtol=0, atol=1e-3, msg=lambda m, n=name: n + m
        )
    print(f"log-probs of {', '.join(n for n in update.ways if n != 'plain causal')} agree")


def time_updates(args: argparse.Namespace) -> list[Number]:
    """Ratios of the first backend's update to the other ways'."""
    update = make_update(args)
    check_alike(update, args)
    first = args.backends[0]
    ways = {name: lambda turn, way=way: way() for name, way in update.ways.items()}
    spent = seconds_of(ways, args.rounds, warm=True)
    rows, plain, fewest, _ = aims(args)
    told = [number(f"update, {first}", spent[first], "s")]
    for name in [n for n in update.ways if n not in (first, "plain causal")]:
        words = f"update, {name} over {first} ({update.computed[name]:,} tokens)"
        aim = rows if name == "TRL's rows" else ""
        told.append(ratio(words, spent[name], spent[first], aim))
    causal = f"update, {first} over plain causal"
    told.append(ratio(causal, spent[first], spent["plain causal"], plain))
    floor = update.flops / matmul_rate(args, update.packed)
    times = [s / floor for s in spent[first]]
    told.append(number(f"update, {first} over its FLOPs", times, "x", fewest))
    return told


def growth(args: argparse.Namespace) -> list[Number]:
    """Exponents of an update's time and memory along each axis: 1 is linear, attention's is 2."""
    told, first = [], args.backends[0]
    axes = {"thinking": (args.thinking, 4 * args.thinking)}
    axes |= dict.fromkeys(("summaries", "budgets", "trees"), (2, 8))
    for axis, (small, large) in axes.items():
        sizes = [argparse.Namespace(**{**vars(args), axis: size}) for size in (small, large)]
        ways = {str(n): make_update(size).ways[first] for n, size in enumerate(sizes)}
        spent = seconds_of({n: lambda turn, w=w: w() for n, w in ways.items()}, args.rounds)
        memory = [[peak_mib(size, first)] for size in sizes]
        for what, (less, more) in {"time": spent.values(), "memory": memory}.items():
            power = [math.log(b / a, large / small) for a, b in zip(less, more, strict=True)]
            told.append(number(f"{what} with {axis}, {small} to {large}", power, "exponent"))
    return told


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--backends", nargs="+", choices=BACKENDS, default=BACKENDS)
    parser.add_argument("--growth", action="store_true", help="exponents in T, S, budgets, trees")
    args = parse(parser, trees=4, prompt=200, rounds=5)
    memory = {way: peak_mib(args, way) for way in (*args.backends, "TRL's rows")}
    first = args.backends[0]
    numbers = time_updates(args)
    for name in memory:
        words = f"memory of an update, {first}" if name == first else f"memory, {name} over {first}"
        value = memory[name] if name == first else memory[name] / max(memory[first], 1)
        aim = aims(args)[3] if name == "TRL's rows" else ""
        numbers.append(number(words, [value], "MiB" if name == first else "x", aim))
    if args.growth:
        numbers += growth(args)
    tell("trees", vars(args), numbers, args.json)


if __name__ == "__main__":
    main()
