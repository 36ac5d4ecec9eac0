"""A whole update of AnytimeReasoner over one of GRPO: `python benchmarks/iteration.py`.

Both train the same random model with the trainer of notebook 02 on thinkings that all reach the
largest budget, so that their thinking tokens are equal: GRPO with a summary at the end,
AnytimeReasoner with 4 budgets x 4 summaries. Rewards are by chance, of each cut, and its summaries
agree as those of the main job do: one in five or six has a gradient there. Then of each summary for
itself, so that nearly all have one: the dear case. GRPO's own have one in both. They take turns,
some updates each; seconds on a CPU are of one thread. Gradients of packed trees and of a row per
summary are compared first.
"""

import argparse
import math
import random
import statistics
import tempfile
import time
from pathlib import Path

import torch
from common import Number, budgets, end_after, make_model, number, parse, ratio, tell
from datasets import Dataset
from transformers import PrinterCallback, TrainerCallback

from anytime_lab.engines.load import load_tokenizer
from anytime_lab.store.files import read_jsonl
from anytime_lab.train.config import train_config
from anytime_lab.train.trainer import BRPOTrainer


class Clock(TrainerCallback):
    """Seconds of each update."""

    def __init__(self):
        self.clock = time.perf_counter if torch.cuda.is_available() else time.process_time
        self.seconds: list[float] = []

    def on_step_begin(self, args, state, control, **kwargs):
        self.start = self.clock()

    def on_step_end(self, args, state, control, **kwargs):
        self.seconds.append(self.clock() - self.start)


# Name → preset, and how likely a summary gets the reward that is drawn for its cut.
WAYS = {"GRPO": ("grpo", 1.0), "AnytimeReasoner": ("ar_uniform", 0.95), "dear": ("ar_uniform", 0.5)}


def updates(
    args: argparse.Namespace, way: str, folder: Path, **settings: object
) -> tuple[list[float], list[dict]]:
    """Seconds and metrics of each update but the first."""
    model = make_model(args)
    preset, agree = WAYS[way]
    summaries = 1 if preset == "grpo" else args.summaries

    def noise(prompts, completions, **columns) -> list[float]:
        cuts = [random.random() < 0.5 for _ in completions[::summaries]]
        agreed = [(random.random() < agree) == cut for cut in cuts for _ in range(summaries)]
        return [float(one) for one in agreed]

    config = train_config(
        preset,
        budgets(args),
        output_dir=str(folder),
        max_steps=args.updates + 1,
        problems_per_step=args.problems,
        num_generations=args.group,
        max_summary_tokens=args.summary,
        save_steps=10_000,
        report_to="none",
        settings={"disable_tqdm": True, "use_cpu": args.device == "cpu", **settings},
    )
    text = "1 " * (args.prompt // 2)
    problems = Dataset.from_dict(
        {"prompt": [text] * args.problems, "answer": ["1"] * args.problems}
    )
    clock = Clock()
    trainer = BRPOTrainer(
        model, noise, config, Dataset.from_list(problems), callbacks=[clock],
        processing_class=load_tokenizer("embedded"),
    )  # fmt: skip
    trainer.remove_callback(PrinterCallback)  # it prints all metrics
    end_after(model, math.inf)
    trainer.train()
    lines = read_jsonl(folder / "metrics.jsonl")[1:]
    assert {line["thinking/length"] for line in lines} == {args.thinking}, "a thinking ended early"
    return clock.seconds[1:], lines


def own_share(line: dict) -> float:
    """The share of an update that is neither model nor reward."""
    parts = ("generation", "scoring", "update")
    return 1 - sum(line.get(f"time/{part}", 0.0) for part in parts) / line["time/step"]


def check_alike(args: argparse.Namespace, folder: Path) -> None:
    """A short update of packed trees has the gradient of one of a row per summary."""
    small = argparse.Namespace(**{**vars(args), "thinking": 16, "updates": 1})
    norms = []
    for backend in ("auto", "unrolled"):
        random.seed(0)
        _, (line,) = updates(small, "dear", folder / backend, tree_backend=backend)
        norms.append(line["grad_norm"])
    assert norms[0] > 0 and math.isclose(*norms, rel_tol=1e-2), norms
    print(f"gradients of packed trees and of a row per summary agree: {norms[0]:.5f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--problems", type=int, default=1, help="of an update")
    parser.add_argument("--group", type=int, default=8, help="thinkings of a problem")
    parser.add_argument("--updates", type=int, default=2, help="in a turn")
    args = parse(parser, thinking=1024)
    torch.set_num_threads(1)
    spent: dict[str, list[float]] = {way: [] for way in WAYS}
    own: list[float] = []
    with tempfile.TemporaryDirectory() as place:
        check_alike(args, Path(place))
        for turn in range(args.rounds):
            for way in WAYS:
                seconds, lines = updates(args, way, Path(place) / f"{way}{turn}")
                spent[way].append(statistics.median(seconds))
                own += map(own_share, lines) if way == "AnytimeReasoner" else []
    limit = "<= 1.05" if args.thinking >= 1024 else "<= 1.6"
    numbers: list[Number] = [
        number("an update of GRPO", spent["GRPO"], "s"),
        *(
            ratio(f"an update{told} over GRPO", spent[way], spent["GRPO"], limit)
            for way, told in (
                ("AnytimeReasoner", " of AnytimeReasoner"),
                ("dear", ", every summary trained,"),
            )
        ),
        number("own bookkeeping of AnytimeReasoner", own, "share", "<= 0.03"),
    ]
    tell("iteration", vars(args), numbers, args.json)


if __name__ == "__main__":
    main()
